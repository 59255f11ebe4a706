"""One server a file. Each is a program: ``python -m benchmarks.servers.plain PORT [--tls ... --cert ... --key ...]``.

They take mail for anybody and throw it away. Those of the peers run in environments that hold nothing of ours.
"""
