"""Configuration: a TOML file and the command line's options, read, checked, and written out again."""
