"""Configuration: read, check and write TOML files and the command line's options."""
