"""One server a file. Each is a program: ``python -m benchmarks.servers.plain PORT [--tls ... --cert ... --key ...]``.

They accept mail for any address and discard it. The peers run in virtual environments without greensmtp.
"""
