"""RequireTLS: a middleware that refuses mail without TLS."""

from greensmtp import Command, Proceed, Reply, Session

_REFUSAL = Reply(530, "5.7.0 Must issue a STARTTLS command first")  # RFC 3207 section 4


class RequireTLS:
    """Refuses MAIL without TLS."""

    verbs = ("MAIL",)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Pass MAIL on if the connection uses TLS."""
        return proceed(session, command) if session.tls else _REFUSAL

    def __repr__(self) -> str:
        return "RequireTLS()"
