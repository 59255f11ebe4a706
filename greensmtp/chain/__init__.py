"""The middleware machinery: what a middleware is, how a stack is composed, checked and described."""
