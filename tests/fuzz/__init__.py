"""Coverage-guided fuzzing of what reads bytes from the network: ``python -m tests.fuzz server --seconds 600``."""
