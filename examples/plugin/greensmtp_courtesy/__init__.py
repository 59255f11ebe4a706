"""Plugins for greensmtp: each module is one, and its entry point is in pyproject.toml."""
