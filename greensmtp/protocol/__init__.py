"""SMTP without a socket: bytes in, objects out. Nothing in this package does I/O, waits, or imports gevent."""
