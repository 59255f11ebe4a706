"""RequireTLS: no mail in the clear."""

from greensmtp import Command, Proceed, Reply, Session

_FIRST = Reply(530, "5.7.0 Must issue a STARTTLS command first")  # RFC 3207 section 4


class RequireTLS:
    """Refuses MAIL without TLS."""

    verbs = ("MAIL",)

    def __call__(self, session: Session, command: Command, proceed: Proceed) -> Reply:
        """Let it pass where TLS is up."""
        return proceed(session, command) if session.tls else _FIRST

    def __repr__(self) -> str:
        return "RequireTLS()"
