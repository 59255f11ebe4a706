"""SASL (RFC 4422) without a socket: the mechanisms, for the server and for the client."""
