"""A client that sends a file, command by command.

    python examples/client.py [port [file]]

Start ``python examples/local_only.py`` first.
"""

import sys

from greensmtp import connect


def main(port: int = 9025, path: str = "/etc/issue") -> None:
    """Send a file to root@localhost, and print the server's replies."""
    with connect("127.0.0.1", port) as mail:
        mail.ehlo("example.com")
        mail.from_("substack@example.com")
        mail.to("root@localhost")
        print(mail.data())
        with open(path, "rb") as source:  # noqa: PTH123 - as in the README
            print(mail.message(source))
        print(mail.quit())


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 9025, *sys.argv[2:3])
