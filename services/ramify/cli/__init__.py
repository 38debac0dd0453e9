"""The `ramify` command."""
