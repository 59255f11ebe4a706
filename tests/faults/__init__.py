"""Faults: what breaks while the server works, and what must hold then. See ``python -m tests.faults --list``."""
