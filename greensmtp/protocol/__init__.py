"""SMTP without a socket: bytes in, objects out. Nothing here waits, and nothing here knows gevent."""
