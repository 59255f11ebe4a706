"""Where accepted mail can go."""

from greensmtp.delivery.maildir import Maildir

__all__ = ["Maildir"]
