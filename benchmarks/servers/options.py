"""The command line that all servers share. Standard library only: the peers' environments have no greensmtp."""

from __future__ import annotations

import argparse
import ssl

#: The servers' name, in the certificate too.
HOSTNAME = "mx.example.com"

#: Room for the most idle connections there are.
BACKLOG = 1024


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser for PORT and TLS, to which a server may add options."""
    made = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    made.add_argument("port", type=int, help="on 127.0.0.1")
    made.add_argument("--tls", choices=("starttls", "implicit"), help="default: no TLS")
    made.add_argument("--cert", help="a PEM file")
    made.add_argument("--key", help="a PEM file")
    return made


def tls_context(options: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the context of the options, with Python's defaults: the same for every Python server."""
    if options.tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(options.cert, options.key)
    return context
