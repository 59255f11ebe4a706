"""The client: one connection, whole messages, a pool of connections."""
