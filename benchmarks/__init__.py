"""Benchmarks of greensmtp against a bare gevent loop and its peers: ``make bench``, or ``python -m benchmarks``."""
