"""SASL (RFC 4422) without a socket: the mechanisms of the server and of the client."""
