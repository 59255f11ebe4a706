"""Build a model for a middleware's or plugin's options from the annotations of its callable."""

from __future__ import annotations

import datetime
import inspect
import types
import typing
from collections import abc
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict, create_model

from greensmtp.config.model import OrFalse

#: Marks a type that TOML cannot express, such as an object or a function.
NOT_IN_TOML = object()

_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_SCALARS = (bool, int, float, str, datetime.datetime, datetime.date, datetime.time)
#: A parameter that accepts any iterable gets a list.
_LISTS = (list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection)
_SETS = (set, frozenset, abc.Set)
_TABLES = (dict, abc.Mapping, abc.MutableMapping)


def option_model(factory: Callable[..., Any], folder: Path | None = None) -> type[BaseModel]:
    """Return a model of the options that a file may set for ``factory``.

    The fields' aliases are the names of the arguments.

    :param folder: the folder that relative paths start from.
    """
    named, extra = {}, "forbid"
    for parameter in _parameters(factory):
        if parameter.kind is parameter.VAR_KEYWORD:
            extra = "allow"
        elif parameter.kind in _NAMED:
            default = ... if parameter.default is parameter.empty else None
            named[parameter.name] = (_field_type(parameter.annotation, folder or Path()), default)
    # Aliases, because an option may have the name of an attribute of BaseModel.
    definitions: dict[str, Any] = {
        f"option_{number}": (kind, Field(default, alias=name))
        for number, (name, (kind, default)) in enumerate(named.items())
    }
    settings = ConfigDict(
        extra=typing.cast(Any, extra), strict=True, hide_input_in_errors=True, arbitrary_types_allowed=True
    )
    return create_model("Options", __config__=settings, **definitions)


def describe_options(factory: Callable[..., Any]) -> str:
    """Describe the options that a file may set, like a signature: ``text, delay=3``; ``...`` for any others."""
    shown = []
    for parameter in _parameters(factory):
        if parameter.kind is parameter.VAR_KEYWORD:
            shown.append("...")
        elif parameter.kind in _NAMED and expressible(parameter.annotation) is not NOT_IN_TOML:
            required = parameter.default is parameter.empty
            shown.append(parameter.name if required else f"{parameter.name}={_shown(parameter.default)}")
    return ", ".join(" ".join(each.split()) for each in shown)


def _shown(default: Any) -> str:
    try:
        return repr(default)
    except Exception:  # an object of the plugin's
        return "..."


def _parameters(factory: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(factory, eval_str=True).parameters.values()
    except Exception:  # an annotation that only type checkers can resolve: as a str, it may be any code
        pass
    try:
        unread = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a built-in without a signature
        return [inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)]
    return [parameter.replace(annotation=parameter.empty) for parameter in unread]


def _field_type(annotation: Any, folder: Path) -> Any:
    kind = expressible(annotation)
    if kind is not NOT_IN_TOML:
        return Annotated[kind, AfterValidator(lambda path: _located(path, folder))] if is_path(annotation) else kind

    def refuse(value: Any) -> Any:
        raise ValueError(f"expected {inspect.formatannotation(annotation)}, which TOML cannot express")

    return Annotated[Any, BeforeValidator(refuse)]


def _located(path: str | Path | None, folder: Path) -> str | Path | None:
    """Return a path that does not depend on the working directory; a URL, such as that of a store, as it is."""
    return path if not path or "://" in str(path) else folder / path


def is_path(annotation: Any) -> bool:
    """True if it accepts a path, as Path or str, and nothing else but None."""
    forms = {part for part in typing.get_args(annotation) or (annotation,) if part is not type(None)}
    return Path in forms and forms <= {str, Path}


def expressible(annotation: Any) -> Any:
    """Return the part of a type that TOML can express, or ``NOT_IN_TOML``; ``None`` is written as ``false``."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if hasattr(annotation, "__value__"):  # type X = ...
        return expressible(annotation.__value__)
    if origin is Annotated:
        return expressible(arguments[0])
    if annotation in (Any, object, inspect.Parameter.empty):
        return Any
    if origin is typing.Literal:
        return annotation
    if origin in (typing.Union, types.UnionType):
        return _union(arguments)
    kind = origin or annotation
    if kind in _LISTS:
        return _container(list, arguments)
    if kind in _SETS:
        return _container(frozenset, arguments)
    if kind in _TABLES:
        return _container(dict, (str, *arguments[1:]))
    if kind is tuple:
        members = [part if part is ... else expressible(part) for part in arguments]
        return NOT_IN_TOML if NOT_IN_TOML in members else _converted(_subscript(tuple, members)) if members else list
    if annotation in (None, type(None)):
        return None
    if not isinstance(annotation, type):
        return NOT_IN_TOML
    if annotation is Path or issubclass(annotation, Enum):
        return _converted(annotation)
    return annotation if annotation in _SCALARS else NOT_IN_TOML


def _converted(kind: Any) -> Any:
    """Return a type that TOML does not have: strict validation would accept only an object of it, not its TOML form."""
    return Annotated[kind, Strict(False)]


def _container(kind: Any, arguments: tuple[Any, ...]) -> Any:
    inner = [expressible(part) for part in arguments]
    if NOT_IN_TOML in inner:
        return NOT_IN_TOML
    made = kind if not inner or (kind is dict and len(inner) == 1) else _subscript(kind, inner)
    return _converted(made) if kind is frozenset else made


def _subscript(generic: Any, arguments: list[Any]) -> Any:
    """Return ``generic[...]`` for arguments that are known at run time only."""
    return generic[tuple(arguments)]


def _union(arguments: tuple[Any, ...]) -> Any:
    parts = [part for part in map(expressible, arguments) if part is not NOT_IN_TOML]
    if not [part for part in parts if part is not None]:
        return NOT_IN_TOML
    if str in parts:  # a string would match both
        parts = [part for part in parts if part != _converted(Path)]
    union = _subscript(typing.Union, parts)
    return Annotated[union, OrFalse] if None in parts and bool not in parts else union
