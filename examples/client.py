"""A client that sends a file, command by command. (``mail.send`` would do it in one call.)

    python examples/client.py [port [file]]

Start ``python examples/local_only.py`` first: it accepts mail for localhost, and prints it.
"""

import sys

from greensmtp import connect


def main(port: int | str = 9025, path: str = "/etc/issue") -> None:
    """Send a file to root@localhost, and print the server's replies."""
    with connect("127.0.0.1", int(port)) as mail:
        mail.ehlo("example.com")
        mail.from_("substack@example.com")
        mail.to("root@localhost")
        print(mail.data())  # 354: the server waits for the message
        with open(path, "rb") as source:  # noqa: PTH123 - as in the README
            print(mail.message(source))
        print(mail.quit())


if __name__ == "__main__":
    main(*sys.argv[1:3])
