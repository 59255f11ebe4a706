"""Deliveries of accepted mail, and the trace fields that they write before it."""

from greensmtp.delivery.maildir import Maildir
from greensmtp.delivery.trace import received_field, return_path

__all__ = ["Maildir", "received_field", "return_path"]
