"""The replies that the protocol itself gives, each named once."""

from __future__ import annotations

from greensmtp.protocol.reply import Reply

# Done
OK = Reply(250, "2.0.0 Ok")
SENDER_OK = Reply(250, "2.1.0 Ok")
RECIPIENT_OK = Reply(250, "2.1.5 Ok")
MESSAGE_OK = Reply(250, "2.0.0 Ok: message accepted")
CANNOT_VERIFY = Reply(252, "2.5.2 Cannot verify the user, but will accept the message")
CANNOT_EXPAND = Reply(252, "2.5.2 Cannot expand the list, but will accept the message")
START_TLS = Reply(220, "2.0.0 Ready to start TLS")
START_MAIL = Reply(354, "End data with <CR><LF>.<CR><LF>")
BYE = Reply(221, "2.0.0 Bye")

# Good-bye
SHUTTING_DOWN = Reply(421, "4.3.2 Service shutting down, closing connection")
TIMED_OUT = Reply(421, "4.4.2 Timed out, closing connection")
TOO_SLOW = Reply(421, "4.4.2 Data comes too slowly, closing connection")
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0 Too many connections, try again later")
DISPLACED = Reply(421, "4.7.0 Too many connections from your address, closing this one")
TOO_MANY_ERRORS = Reply(421, "4.7.0 Too many errors, closing connection")
TOO_MANY_COMMANDS = Reply(421, "4.7.0 Too many commands without a message, closing connection")
NOT_SMTP = Reply(421, "4.7.0 This is a mail server; that was not SMTP")
GIVEN_UP = Reply(421, "4.3.0 Local error in processing, closing connection")
LINE_WITHOUT_END = Reply(421, "4.5.2 Line without end, closing connection")

# Not now
LOCAL_ERROR = Reply(451, "4.3.0 Local error in processing, try again later")
NO_STORAGE = Reply(452, "4.3.1 Insufficient storage, try again later")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3 Too many recipients, send the rest in another transaction")
TLS_UNAVAILABLE = Reply(454, "4.7.0 TLS not available for a temporary reason")

# What was that?
LINE_TOO_LONG = Reply(500, "5.5.6 Line too long")
BARE_NEWLINE = Reply(500, "5.5.2 End every line with CRLF, and use CR and LF for nothing else")
NOT_TEXT = Reply(500, "5.5.2 Control characters and malformed UTF-8 are not allowed in a command")
UNKNOWN_COMMAND = Reply(500, "5.5.1 Command unrecognized")
LMTP_SPOKEN_HERE = Reply(500, "5.5.1 This is LMTP: say LHLO")
SMTP_SPOKEN_HERE = Reply(500, "5.5.1 This is SMTP: say EHLO or HELO")
NOT_IMPLEMENTED = Reply(502, "5.5.1 Command not implemented")
NO_ARGUMENT = Reply(501, "5.5.4 This command takes no argument")
NEEDS_ARGUMENT = Reply(501, "5.5.4 This command needs an argument")
NEEDS_HOSTNAME = Reply(501, "5.5.4 Say who you are: a host name or an address literal")
SAY_FROM = Reply(501, "5.5.4 Syntax: MAIL FROM:<address> [parameters]")
SAY_TO = Reply(501, "5.5.4 Syntax: RCPT TO:<address> [parameters]")
SAY_SIZE = Reply(501, "5.5.4 Syntax: BDAT octets [LAST]")

# Not in this order
SAY_HELLO_FIRST = Reply(503, "5.5.1 Say EHLO, HELO or LHLO first")
NESTED_MAIL = Reply(503, "5.5.1 A transaction is under way; RSET ends it")
NEED_MAIL = Reply(503, "5.5.1 Need MAIL first")
NEED_RCPT = Reply(503, "5.5.1 Need an accepted RCPT first")
IN_CHUNKS = Reply(503, "5.5.1 A body is being sent in chunks; BDAT goes on with it, RSET gives it up")
TLS_ALREADY = Reply(503, "5.5.1 TLS is up already")
BINARY_NEEDS_BDAT = Reply(503, "5.5.1 A body of type BINARYMIME is sent with BDAT")

# No
BAD_SENDER = Reply(553, "5.1.7 Malformed sender address")
BAD_RECIPIENT = Reply(553, "5.1.3 Malformed recipient address")
NEED_SMTPUTF8 = Reply(553, "5.6.7 An address with characters beyond ASCII needs SMTPUTF8")
TOO_LARGE = Reply(552, "5.3.4 Message exceeds the size limit")
BARE_NEWLINE_IN_DATA = Reply(554, "5.6.0 The message has a bare CR or LF (RFC 5321 section 2.3.8)")
BODY_LINE_TOO_LONG = Reply(554, "5.6.0 The message has a line that is too long (RFC 5321 section 4.5.3.1.6)")
NO_MAIL_HERE = Reply(554, "5.3.2 No mail is taken here")

# AUTH (RFC 4954 sections 4 and 6)
AUTH_TOO_MANY_FAILURES = Reply(454, "4.7.0 Too many failed attempts, try again later")
AUTH_UNAVAILABLE = Reply(454, "4.7.0 Temporary authentication failure, try again later")
AUTH_BAD_BASE64 = Reply(501, "5.5.2 That is not base64")
AUTH_CANCELLED = Reply(501, "5.7.0 Authentication cancelled")
AUTH_MALFORMED = Reply(501, "5.5.2 The response is not what this mechanism has")
AUTH_NO_INITIAL = Reply(501, "5.7.0 The server speaks first in this mechanism")
SAY_AUTH = Reply(501, "5.5.4 Syntax: AUTH mechanism [initial-response]")
AUTH_IN_TRANSACTION = Reply(503, "5.5.1 Not within a transaction; RSET ends it")
AUTH_ALREADY = Reply(503, "5.5.1 Authenticated already")
AUTH_NEEDS_EHLO = Reply(503, "5.5.1 Say EHLO first")
AUTH_UNKNOWN_MECHANISM = Reply(504, "5.5.4 Unrecognized authentication mechanism")
AUTH_UNKNOWN_BINDING = Reply(504, "5.5.4 Unsupported channel binding type")
AUTH_REQUIRED = Reply(530, "5.7.0 Authentication required")
AUTH_NEEDS_STARTTLS = Reply(530, "5.7.0 Authentication required; say STARTTLS first")
AUTH_TOO_WEAK = Reply(534, "5.7.9 This authentication mechanism is too weak here")
AUTH_INVALID = Reply(535, "5.7.8 Authentication credentials invalid")
AUTH_NEEDS_TLS = Reply(538, "5.7.11 Encryption required for this authentication mechanism")
