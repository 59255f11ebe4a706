"""The compiled build (setup.py): detect it, and give its classes what mypyc leaves out.

A class that mypyc compiles is native: its attributes are fields of a C struct. It allows subclasses in plain Python
only if it is marked, and it has no weak references.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr as mypyc_attr
else:

    def mypyc_attr(**options):
        """Mark a class for mypyc: ``mypyc_attr(allow_interpreted_subclasses=True)``."""
        return lambda kind: kind


T = TypeVar("T")


def weakly_referable(kind: type[T]) -> type[T]:
    """Return this class, or a subclass of the same name, whose instances can be referred to weakly."""
    if kind.__weakrefoffset__:
        return kind
    names = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(kind.__name__, (kind,), {"__slots__": ("__weakref__",), **names})


def is_compiled() -> bool:
    """Return True if the hot modules run as C extensions."""
    module = sys.modules.get("greensmtp.session.session")
    return module is not None and not str(module.__file__).endswith(".py")
