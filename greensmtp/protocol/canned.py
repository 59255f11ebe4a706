"""The replies that the server gives by itself, each named once."""

from __future__ import annotations

from typing import Final

from greensmtp.protocol.reply import Reply

# Done
OK: Final[Reply] = Reply(250, "2.0.0 Ok")
SENDER_OK: Final[Reply] = Reply(250, "2.1.0 Ok")
RECIPIENT_OK: Final[Reply] = Reply(250, "2.1.5 Ok")
MESSAGE_OK: Final[Reply] = Reply(250, "2.0.0 Ok: message accepted")
CANNOT_VERIFY: Final[Reply] = Reply(252, "2.5.2 Cannot verify the user, but will accept the message")
CANNOT_EXPAND: Final[Reply] = Reply(252, "2.5.2 Cannot expand the list, but will accept the message")
QUEUE_STARTED: Final[Reply] = Reply(250, "2.0.0 Queuing started")
START_TLS: Final[Reply] = Reply(220, "2.0.0 Ready to start TLS")
START_MAIL: Final[Reply] = Reply(354, "End data with <CR><LF>.<CR><LF>")
BYE: Final[Reply] = Reply(221, "2.0.0 Bye")


class QueuedAs(Reply):
    """The reply to a message that was accepted without a text: ``250 2.0.0 Ok: queued as ID``.

    Every message has its own, so it is made without the checks of a text that may be anything.
    """

    __slots__ = ()

    def __init__(self, queue_id: str) -> None:
        self.code = 250
        self.lines = (f"Ok: queued as {queue_id}",)
        self.enhanced = "2.0.0"
        self.ends_connection = False
        self.wire = b"250 2.0.0 Ok: queued as %b\r\n" % queue_id.encode()


# The connection is closed
SHUTTING_DOWN: Final[Reply] = Reply(421, "4.3.2 Service shutting down, closing connection")
TIMED_OUT: Final[Reply] = Reply(421, "4.4.2 Timed out, closing connection")
TOO_SLOW: Final[Reply] = Reply(421, "4.4.2 Data comes too slowly, closing connection")
TOO_MANY_CONNECTIONS: Final[Reply] = Reply(421, "4.7.0 Too many connections, try again later")
DISPLACED: Final[Reply] = Reply(421, "4.7.0 Too many connections from your address, closing this one")
TOO_MANY_ERRORS: Final[Reply] = Reply(421, "4.7.0 Too many errors, closing connection")
TOO_MANY_COMMANDS: Final[Reply] = Reply(421, "4.7.0 Too many commands without a message, closing connection")
NOT_SMTP: Final[Reply] = Reply(421, "4.7.0 This is a mail server; the input is not SMTP")
GIVEN_UP: Final[Reply] = Reply(421, "4.3.0 Local error in processing, closing connection")
LINE_WITHOUT_END: Final[Reply] = Reply(421, "4.5.2 Line without CRLF, closing connection")

# Transient failures
LOCAL_ERROR: Final[Reply] = Reply(451, "4.3.0 Local error in processing, try again later")
NO_STORAGE: Final[Reply] = Reply(452, "4.3.1 Insufficient storage, try again later")
TOO_MANY_RECIPIENTS: Final[Reply] = Reply(452, "4.5.3 Too many recipients, send the rest in another transaction")
CANNOT_START_QUEUE: Final[Reply] = Reply(458, "4.3.5 Unable to queue messages for this node")
TLS_UNAVAILABLE: Final[Reply] = Reply(454, "4.7.0 TLS not available for a temporary reason")

# Malformed commands
LINE_TOO_LONG: Final[Reply] = Reply(500, "5.5.6 Line too long")
BARE_NEWLINE: Final[Reply] = Reply(500, "5.5.2 Lines must end with CRLF; a bare LF is not allowed")
NOT_TEXT: Final[Reply] = Reply(500, "5.5.2 Control characters and malformed UTF-8 are not allowed in a command")
UNKNOWN_COMMAND: Final[Reply] = Reply(500, "5.5.1 Command unrecognized")
LMTP_SPOKEN_HERE: Final[Reply] = Reply(500, "5.5.1 This is LMTP; use LHLO")
SMTP_SPOKEN_HERE: Final[Reply] = Reply(500, "5.5.1 This is SMTP; use EHLO or HELO")
NOT_IMPLEMENTED: Final[Reply] = Reply(502, "5.5.1 Command not implemented")
ARGUMENT_NOT_TEXT: Final[Reply] = Reply(
    501, "5.5.2 Control characters and malformed UTF-8 are not allowed in an argument"
)
NO_ARGUMENT: Final[Reply] = Reply(501, "5.5.4 This command takes no argument")
NEEDS_ARGUMENT: Final[Reply] = Reply(501, "5.5.4 This command needs an argument")
NEEDS_HOSTNAME: Final[Reply] = Reply(501, "5.5.4 This command needs a host name or an address literal")
MAIL_SYNTAX: Final[Reply] = Reply(501, "5.5.4 Syntax: MAIL FROM:<address> [parameters]")
RCPT_SYNTAX: Final[Reply] = Reply(501, "5.5.4 Syntax: RCPT TO:<address> [parameters]")
BAD_SENDER: Final[Reply] = Reply(501, "5.1.7 Malformed sender address")
BAD_RECIPIENT: Final[Reply] = Reply(501, "5.1.3 Malformed recipient address")
BDAT_SYNTAX: Final[Reply] = Reply(501, "5.5.4 Syntax: BDAT size [LAST]")

NO_SUCH_HELP: Final[Reply] = Reply(504, "5.5.4 There is no help for this; HELP alone lists the commands")

# Commands out of order
SAY_HELLO_FIRST: Final[Reply] = Reply(503, "5.5.1 Send EHLO, HELO or LHLO first")
NESTED_MAIL: Final[Reply] = Reply(503, "5.5.1 A transaction is in progress; RSET ends it")
NEED_MAIL: Final[Reply] = Reply(503, "5.5.1 Need MAIL first")
NEED_RCPT: Final[Reply] = Reply(503, "5.5.1 Need an accepted RCPT first")
IN_CHUNKS: Final[Reply] = Reply(503, "5.5.1 A message is being sent in chunks; continue with BDAT or send RSET")
TLS_ALREADY: Final[Reply] = Reply(503, "5.5.1 TLS is already active")
BINARY_NEEDS_BDAT: Final[Reply] = Reply(503, "5.5.1 BODY=BINARYMIME requires BDAT")

# Permanent failures
NEED_SMTPUTF8 = Reply(553, "5.6.7 A non-ASCII address requires SMTPUTF8")
TOO_LARGE: Final[Reply] = Reply(552, "5.3.4 Message exceeds the size limit")
BARE_NEWLINE_IN_DATA: Final[Reply] = Reply(554, "5.6.0 The message has a bare CR or LF (RFC 5321 section 2.3.8)")
BODY_LINE_TOO_LONG: Final[Reply] = Reply(
    554, "5.6.0 The message has a line that is too long (RFC 5321 section 4.5.3.1.6)"
)
NO_MAIL_HERE: Final[Reply] = Reply(554, "5.3.2 This server does not accept mail")

# Parameters (RFC 2852 section 4, RFC 4865 section 4, RFC 8689 section 4)
DELIVER_BY_TOO_SOON: Final[Reply] = Reply(555, "5.5.4 BY: less than the time that EHLO names (RFC 2852 section 4)")
HOLD_TOO_LONG: Final[Reply] = Reply(501, "5.5.4 HOLDFOR or HOLDUNTIL: longer than EHLO allows (RFC 4865 section 4)")
PARAMETER_NEEDS_TLS: Final[Reply] = Reply(530, "5.7.10 This parameter requires TLS; send STARTTLS first")

# AUTH (RFC 4954 sections 4 and 6)
AUTH_TOO_MANY_FAILURES: Final[Reply] = Reply(454, "4.7.0 Too many failed attempts, try again later")
AUTH_UNAVAILABLE: Final[Reply] = Reply(454, "4.7.0 Temporary authentication failure, try again later")
AUTH_BAD_BASE64 = Reply(501, "5.5.2 The response is not base64")
AUTH_CANCELLED: Final[Reply] = Reply(501, "5.7.0 Authentication cancelled")
AUTH_MALFORMED: Final[Reply] = Reply(501, "5.5.2 Malformed response for this mechanism")
AUTH_NO_INITIAL: Final[Reply] = Reply(501, "5.7.0 This mechanism takes no initial response")
SAY_AUTH: Final[Reply] = Reply(501, "5.5.4 Syntax: AUTH mechanism [initial-response]")
AUTH_IN_TRANSACTION: Final[Reply] = Reply(503, "5.5.1 Not allowed in a transaction; RSET ends it")
AUTH_ALREADY: Final[Reply] = Reply(503, "5.5.1 Already authenticated")
AUTH_NEEDS_EHLO: Final[Reply] = Reply(503, "5.5.1 Send EHLO first")
AUTH_UNKNOWN_MECHANISM: Final[Reply] = Reply(504, "5.5.4 Unrecognized authentication mechanism")
AUTH_UNKNOWN_BINDING: Final[Reply] = Reply(504, "5.5.4 Unsupported channel binding type")
AUTH_REQUIRED: Final[Reply] = Reply(530, "5.7.0 Authentication required")
AUTH_NEEDS_STARTTLS: Final[Reply] = Reply(530, "5.7.0 Authentication required; send STARTTLS first")
AUTH_TOO_WEAK: Final[Reply] = Reply(534, "5.7.9 This authentication mechanism is too weak")
AUTH_INVALID: Final[Reply] = Reply(535, "5.7.8 Authentication credentials invalid")
AUTH_NEEDS_TLS: Final[Reply] = Reply(538, "5.7.11 Encryption required for this authentication mechanism")

# XCLIENT, XFORWARD
NOT_TRUSTED: Final[Reply] = Reply(550, "5.7.0 This command is for trusted proxies only")
PROXY_IN_TRANSACTION: Final[Reply] = Reply(503, "5.5.1 Not allowed in a transaction; RSET ends it")
