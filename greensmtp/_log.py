"""The library's logger, ``greensmtp``. It says little, so ``logging`` is imported with the first thing it says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from logging import Logger


class _Later:
    def __getattr__(self, name: str) -> Any:
        import logging

        return getattr(logging.getLogger("greensmtp"), name)


logger = cast("Logger", _Later())
