"""Deliveries of accepted mail, and the trace fields that they write before it."""

from greensmtp.delivery.celery import CeleryTask
from greensmtp.delivery.contract import Delivery, Envelope, Result, SpooledTransfer, Transfer
from greensmtp.delivery.forward import Forward
from greensmtp.delivery.maildir import Maildir
from greensmtp.delivery.mx import MX
from greensmtp.delivery.pipe import Pipe
from greensmtp.delivery.redis_stream import RedisStream
from greensmtp.delivery.report import RecipientStatus, delivery_report
from greensmtp.delivery.routing import Route
from greensmtp.delivery.runner import Deliveries
from greensmtp.delivery.spool import Spool
from greensmtp.delivery.srs import SRS
from greensmtp.delivery.trace import received_field, return_path
from greensmtp.delivery.webhook import Webhook

__all__ = [
    "MX",
    "SRS",
    "CeleryTask",
    "Deliveries",
    "Delivery",
    "Envelope",
    "Forward",
    "Maildir",
    "Pipe",
    "RecipientStatus",
    "RedisStream",
    "Result",
    "Route",
    "Spool",
    "SpooledTransfer",
    "Transfer",
    "Webhook",
    "delivery_report",
    "received_field",
    "return_path",
]
