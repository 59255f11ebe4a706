"""A filter before Postfix's queue (``smtpd_proxy_filter``): it refuses or marks mail while the client still waits.

    python examples/filter.py [port] [where Postfix takes mail back]

In ``master.cf``, Postfix hands mail to this filter, and takes it back on another port:

    smtp            inet n - n - 20 smtpd -o smtpd_proxy_filter=127.0.0.1:10025
    127.0.0.1:10026 inet n - n - -  smtpd -o smtpd_authorized_xforward_hosts=127.0.0.0/8 -o smtpd_client_restrictions=
        -o smtpd_helo_restrictions= -o smtpd_sender_restrictions= -o mynetworks=127.0.0.0/8
        -o smtpd_recipient_restrictions=permit_mynetworks,reject
        -o receive_override_options=no_unknown_recipient_checks

Port 0 is any free port.
"""

import sys

import greensmtp
from greensmtp import Ack, MessageStream, Session, SMTPServer
from greensmtp.delivery import Deliveries, Forward


def make_server(port: int = 10025, back: str = "smtp://127.0.0.1:10026") -> SMTPServer:
    """Return the filter. Postfix names its client by XFORWARD, and the filter passes that on."""
    server = SMTPServer(("127.0.0.1", port), hostname="filter.example.com", xforward_from=["127.0.0.1"])
    deliveries = Deliveries([Forward(back, received=False)])

    @server.on("message")
    def mark(session: Session, stream: MessageStream, ack: Ack) -> None:
        client = (session.forwarded or {}).get("ADDR", "unknown")
        stream.add_header("X-Filter-Client", client)

    @server.on("received")
    def no_lottery(session: Session, ack: Ack) -> None:
        if "lottery" in (session.from_ or ""):
            ack.reject(550, "5.7.1 No lottery, please")

    deliveries.attach(server)
    return server


def main(port: str = "10025", back: str = "smtp://127.0.0.1:10026") -> None:
    """Serve until Ctrl-C or SIGTERM."""
    greensmtp.run(
        make_server(int(port), back),
        started=lambda server: print("listening on {}:{}".format(*server.address), flush=True),
    )


if __name__ == "__main__":
    main(*sys.argv[1:3])
