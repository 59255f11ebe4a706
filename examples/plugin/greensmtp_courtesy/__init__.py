"""Plugins for greensmtp. Each module is a plugin, with an entry point in pyproject.toml."""
