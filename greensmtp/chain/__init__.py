"""The middleware machinery: what a middleware is, how a stack is composed, checked and described."""

from greensmtp.chain.chain import Middleware, Proceed, middleware

__all__ = ["Middleware", "Proceed", "middleware"]
