"""The configuration's model: its tables, keys, types and defaults."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, create_model

from greensmtp._hostport import address
from greensmtp.config.conditions import read_condition
from greensmtp.config.defaults import DEFAULT_MAILDIR, DEFAULT_STACK, DEFAULT_URL, parse_size
from greensmtp.config.locations import KeyPath
from greensmtp.config.urls import Listen
from greensmtp.delivery.routing import check_pattern
from greensmtp.log_writer import STREAMS
from greensmtp.protocol.esmtp import STANDARD
from greensmtp.server.extensions import SWITCHABLE, VALUES, read_switch
from greensmtp.server.limits import Limits
from greensmtp.server.options import check_hostname
from greensmtp.server.trusted import check_networks


def none_for_false(value: Any) -> Any:
    """Return None for ``false``: TOML has no null.

    :raises ValueError: it is ``true``.
    """
    if value is True:
        raise ValueError("expected a value, or false to disable; got true")
    return None if value is False else value


#: Before a type that may be None.
OrFalse = BeforeValidator(none_for_false)


def _check_url(text: str) -> str:
    Listen.parse(text)
    return text


def _check_condition(text: str) -> str:
    read_condition(text)
    return text


def _check_path(text: str | None) -> str | None:
    if text == "":
        raise ValueError("expected a path; got an empty string")
    return text


def _check_name(name: str | None) -> str | None:
    return None if name is None else check_hostname(name)


Hostname = Annotated[str | None, OrFalse, AfterValidator(_check_name)]
OptionalPath = Annotated[str | None, OrFalse, AfterValidator(_check_path)]


class Section(BaseModel):
    """A table with fixed keys and strict types."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True, validate_default=False)

    def __repr__(self) -> str:
        """Leave the values out, since some may be secrets."""
        return f"{type(self).__name__}(...)"

    __str__ = __repr__


class MiddlewareSection(Section):
    """A middleware: its name, the conditions under which it applies, and its options as extra keys."""

    model_config = ConfigDict(extra="allow")

    use: str
    only: list[Annotated[str, AfterValidator(_check_condition)]] = Field(default_factory=list)


class PluginSection(Section):
    """A plugin: its name, and its options as extra keys."""

    model_config = ConfigDict(extra="allow")

    name: str
    optional: bool = False

    @property
    def options(self) -> frozenset[str]:
        """The names of the options."""
        return frozenset(self.model_extra or ())


def _check_wanted(wanted: str | list[str] | None) -> str | list[str] | None:
    """Check the patterns that are no predicates, ``module:function``."""
    for each in wanted if isinstance(wanted, list) else filter(None, [wanted]):
        if not is_predicate(each):
            check_pattern(each)
    if wanted in ([], ""):
        raise ValueError("expected a pattern or an array of patterns; leave the key out for every recipient")
    return wanted


def is_predicate(wanted: str) -> bool:
    """True if it is a predicate, ``module:function``. (An address literal of IPv6 has a colon, too.)"""
    return ":" in wanted and "@" not in wanted


class DeliveriesSection(Section):
    """A delivery: its name, the recipients that it takes, and its options as extra keys."""

    model_config = ConfigDict(extra="allow")

    use: str
    wanted: Annotated[str | list[str] | None, OrFalse, AfterValidator(_check_wanted)] = Field(None, alias="for")


def _check_certificate_name(name: str) -> str:
    check_hostname(name.removeprefix("*."))
    return name


class CertificateSection(Section):
    """A further certificate, for the host names in it."""

    cert: Annotated[str, AfterValidator(_check_path)]
    key: OptionalPath = None
    names: list[Annotated[str, AfterValidator(_check_certificate_name)]] = Field(default_factory=list)


class TLSSection(Section):
    """TLS of all listeners, besides the common certificate."""

    minimum: Literal["1.2", "1.3"] = "1.2"
    ciphers: Annotated[str | None, OrFalse] = None
    tickets: bool = False
    client_ca: OptionalPath = None
    client_auth: Literal["optional", "required", False] = False
    certificates: list[CertificateSection] = Field(default_factory=list)

    def options(self) -> dict[str, Any]:
        """The arguments of Certificates."""
        return self.model_dump(exclude={"certificates"})


class DeliverySection(Section):
    """Where accepted mail goes, in short: one Maildir for all of it."""

    maildir: OptionalPath = DEFAULT_MAILDIR


Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
UserOrGroup = Annotated[str | None, OrFalse, AfterValidator(_check_path)]


class ServiceSection(Section):
    """The process or processes that serve."""

    workers: Annotated[Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] | None, OrFalse] = None
    reuse_port: bool = False
    user: UserOrGroup = None
    group: UserOrGroup = None
    pid_file: OptionalPath = None
    control: OptionalPath = "auto"
    stop_timeout: Seconds = 30.0
    reload_grace: Seconds = 300.0
    report_blocked: Annotated[Annotated[float, Field(ge=0.05, allow_inf_nan=False)] | None, OrFalse] = 1.0


def _check_http_address(text: str | None) -> str | None:
    if text is not None and address(text) is None:
        raise ValueError(f'expected "host:port", like "127.0.0.1:9100"; got {text!r}')
    return text


class HTTPSection(Section):
    """Metrics and health over HTTP."""

    listen: Annotated[str | None, OrFalse, AfterValidator(_check_http_address)] = None


class LoggingSection(Section):
    """The process's log."""

    format: Literal["text", "json"] = "text"
    level: Literal["debug", "info", "warning", "error"] = "warning"
    target: Annotated[str, AfterValidator(_check_path)] = "stderr"


def _limit(name: str, annotation: Any) -> Any:
    """Return a limit's type, with a validator that uses ``Limits`` itself."""

    def check(value: Any) -> Any:
        return getattr(Limits(**{name: value}), name)

    def read(value: Any) -> Any:
        return parse_size(value) if isinstance(value, str) else none_for_false(value)

    checks: list[Any] = [AfterValidator(check)]
    if name == "max_message_size":
        checks.append(BeforeValidator(read))
    elif type(None) in typing.get_args(annotation):
        checks.append(OrFalse)
    return Annotated[annotation | None, *checks]


_LIMITS: dict[str, Any] = {
    name: (_limit(name, annotation), None) for name, annotation in typing.get_type_hints(Limits).items()
}


class _LimitsSection(Section):
    """Every field of :class:`greensmtp.server.limits.Limits`."""

    def given(self) -> dict[str, Any]:
        """Return the limits that are set."""
        return {name: getattr(self, name) for name in self.model_fields_set}


if TYPE_CHECKING:
    LimitsSection = _LimitsSection
else:
    LimitsSection = create_model("LimitsSection", __base__=_LimitsSection, **_LIMITS)


def _switch(keyword: str) -> Any:
    """Return an extension's type, with a validator that uses the server's own."""

    def check(value: Any) -> Any:
        read_switch(keyword, value)
        return value

    return Annotated[Any if keyword in VALUES else bool, AfterValidator(check)]


class _ExtensionsSection(Section):
    """What each extension of ESMTP is switched to."""

    def given(self) -> dict[str, Any]:
        """Return the extensions that are set."""
        return {name: getattr(self, name) for name in self.model_fields_set}


if TYPE_CHECKING:
    ExtensionsSection = _ExtensionsSection
else:
    ExtensionsSection = create_model(
        "ExtensionsSection",
        __base__=_ExtensionsSection,
        **{keyword: (_switch(keyword), extension in STANDARD) for keyword, extension in SWITCHABLE.items()},
    )


def _check_networks(networks: list[str] | None) -> list[str] | None:
    check_networks("it", networks)
    return networks


Networks = Annotated[list[str] | None, OrFalse, AfterValidator(_check_networks)]


class ListenerSection(Section):
    """A listener, and the settings in which it differs from the rest."""

    url: Annotated[str, AfterValidator(_check_url)]
    hostname: Hostname = None
    tls: bool = True
    tls_cert: OptionalPath = None
    tls_key: OptionalPath = None
    backlog: Annotated[Annotated[int, Field(ge=0, le=2**31 - 1)] | None, OrFalse] = None
    proxy_from: Networks = None
    proxy_tls: bool = False
    xclient_from: Networks = None
    xforward_from: Networks = None
    limits: LimitsSection = Field(default_factory=LimitsSection)
    extensions: ExtensionsSection = Field(default_factory=ExtensionsSection)
    lenient_addresses: bool = False
    middleware: Annotated[list[MiddlewareSection] | None, OrFalse] = None
    deliveries: Annotated[list[DeliveriesSection] | None, OrFalse] = None


class Config(Section):
    """The whole configuration."""

    hostname: Hostname = None
    tls_cert: OptionalPath = None
    tls_key: OptionalPath = None
    proxy_from: Networks = None
    proxy_tls: bool = False
    xclient_from: Networks = None
    xforward_from: Networks = None
    listeners: list[ListenerSection] = Field(default_factory=lambda: [ListenerSection(url=DEFAULT_URL)], min_length=1)
    limits: LimitsSection = Field(default_factory=LimitsSection)
    extensions: ExtensionsSection = Field(default_factory=ExtensionsSection)
    lenient_addresses: bool = False
    middleware: list[MiddlewareSection] = Field(
        default_factory=lambda: [MiddlewareSection.model_validate(entry) for entry in DEFAULT_STACK]
    )
    plugins: list[PluginSection] = Field(default_factory=list)
    delivery: DeliverySection = Field(default_factory=DeliverySection)
    deliveries: list[DeliveriesSection] = Field(default_factory=list)
    logging: LoggingSection = Field(default_factory=LoggingSection)
    service: ServiceSection = Field(default_factory=ServiceSection)
    http: HTTPSection = Field(default_factory=HTTPSection)
    tls: TLSSection = Field(default_factory=TLSSection)

    def stacks(self) -> Iterator[tuple[KeyPath, list[MiddlewareSection]]]:
        """Yield every stack that is used, with its path; the common one comes first."""
        if any(listener.middleware is None for listener in self.listeners):
            yield ("middleware",), self.middleware
        for number, listener in enumerate(self.listeners):
            if listener.middleware is not None:
                yield ("listeners", number, "middleware"), listener.middleware

    def all_deliveries(self) -> Iterator[tuple[KeyPath, list[DeliveriesSection]]]:
        """Yield every array of deliveries that is used, with its path; the common one comes first."""
        if any(listener.deliveries is None for listener in self.listeners):
            yield ("deliveries",), self.deliveries
        for number, listener in enumerate(self.listeners):
            if listener.deliveries is not None:
                yield ("listeners", number, "deliveries"), listener.deliveries


#: The keys that are paths. None stands for any index.
_PATHS: tuple[tuple[str | None, ...], ...] = (
    ("tls_cert",),
    ("tls_key",),
    ("listeners", None, "tls_cert"),
    ("listeners", None, "tls_key"),
    ("service", "control"),
    ("delivery", "maildir"),
    ("logging", "target"),
    ("service", "pid_file"),
    ("tls", "client_ca"),
    ("tls", "certificates", None, "cert"),
    ("tls", "certificates", None, "key"),
)


def change_paths(data: Any, change: Callable[[str], Path]) -> None:
    """Replace every path in the data of a configuration, which need not be valid."""
    for place in _PATHS:
        _change_paths(data, place, change)


def _change_paths(data: Any, place: tuple[str | None, ...], change: Callable[[str], Path]) -> None:
    key, *rest = place
    if key is None:
        for inner in data if isinstance(data, list) else ():
            _change_paths(inner, tuple(rest), change)
    elif isinstance(data, dict) and key in data:
        if rest:
            _change_paths(data[key], tuple(rest), change)
        elif isinstance(data[key], str) and data[key] not in ("", "auto", *STREAMS):
            data[key] = str(change(data[key]))


def keys_of(model: type[BaseModel]) -> list[str]:
    """Return the keys of a table."""
    return [field.alias or name for name, field in model.model_fields.items()]


def known_keys(model: type[BaseModel] = Config, path: KeyPath = ()) -> dict[KeyPath, list[str]]:
    """Return the keys of every table, by the table's path without indexes."""
    known: dict[KeyPath, list[str]] = {path: keys_of(model)}
    for name, field in model.model_fields.items():
        for inner in _models_in(field.annotation):
            known |= known_keys(inner, (*path, name))
    return known


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]
