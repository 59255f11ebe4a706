"""The server: listening, one greenlet per connection, commands in and replies out."""
