"""How fast greensmtp is, beside a bare loop and beside others: ``make bench``, or ``python -m benchmarks``."""
