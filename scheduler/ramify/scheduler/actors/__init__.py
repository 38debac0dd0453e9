"""The shell around the core: asyncio and Ray."""
