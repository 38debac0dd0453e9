"""The state store: SQLAlchemy over SQLite or PostgreSQL."""
