"""Build servers, ready to start, from a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from greensmtp._log import logger
from greensmtp.chain.chain import Middleware, check_middleware
from greensmtp.chain.compose import when
from greensmtp.config.conditions import all_of
from greensmtp.config.load import Loaded, read_options
from greensmtp.config.locations import KeyPath
from greensmtp.config.model import DeliveriesSection, ListenerSection, MiddlewareSection, PluginSection, is_predicate
from greensmtp.config.probe import probe_log, probe_maildir, probe_socket
from greensmtp.config.problems import Problem
from greensmtp.config.secret_file import keep_secret
from greensmtp.config.urls import Listen
from greensmtp.delivery.contract import Delivery
from greensmtp.delivery.forward import Forward
from greensmtp.delivery.maildir import Maildir
from greensmtp.delivery.routing import Predicate, Route
from greensmtp.delivery.runner import Deliveries
from greensmtp.errors import ArgumentError
from greensmtp.plugins import (
    PluginError,
    WrongOptions,
    delivery_factory,
    middleware_factory,
    plug_in,
    recipient_predicate,
    warn_of_shadowed,
)
from greensmtp.plugins.discovery import FAILURES, describe_error
from greensmtp.server.certificates import Certificate, Certificates
from greensmtp.server.server import SMTPServer
from greensmtp.session import ServerInfo, Session
from greensmtp.session.ack import Ack
from greensmtp.session.stream import MessageStream
from greensmtp.signals import shared

Made = TypeVar("Made")

_Stack = list[tuple[KeyPath, str, Middleware]]

#: SMTPServer's arguments -> the keys that they come from.
_KEYS = {"certfile": "tls_cert", "keyfile": "tls_key", "hostname": "hostname", "backlog": "backlog"}
_KEYS |= {name: name for name in ("proxy_from", "proxy_tls", "xclient_from", "xforward_from")}


@dataclass(slots=True)
class ConfiguredServer:
    """A server, and where its parts stand in the configuration."""

    server: SMTPServer
    listen: Listen
    #: The path of the listener's URL.
    path: KeyPath
    #: The path, the name and the object of each middleware.
    stack: _Stack


@dataclass(slots=True)
class Assembled:
    """The servers of a configuration, not started."""

    loaded: Loaded
    serving: list[ConfiguredServer]
    #: Disconnects what is connected to signals of the whole process; call it when the servers have stopped.
    release: Callable[[], None]

    def find(self, use: str, only: list[str], arguments: dict[str, Any]) -> Iterator[Middleware]:
        """Yield the middleware of a name that was made from equal arguments, for equal conditions."""
        for path, stack in self.loaded.config.stacks():
            made = {place: middleware for each in self.serving for place, _, middleware in each.stack}
            for number, entry in enumerate(stack):
                place = (*path, number)
                if (
                    entry.use == use
                    and entry.only == only
                    and place in made
                    and self.loaded.arguments[place] == arguments
                ):
                    yield made[place]


def assemble(
    loaded: Loaded,
    outermost: Iterable[Middleware] = (),
    *,
    dry: bool = False,
    previous: Assembled | None = None,
) -> Assembled:
    """Build the servers: their stacks and certificates, then the deliveries and the plugins.

    A stack or a delivery that several listeners share is built once, so that what it counts covers all of them.

    :param outermost: middleware to put in front of every stack.
    :param dry: check everything, but create nothing on the disk and connect no delivery.
    :param previous: the servers that these replace. Middleware whose table has not changed is taken over from them,
        with what it has counted: no client escapes from a limit because of a reload.
    :raises ConfigError: something cannot be built; the error lists all problems.
    """
    return _Assembly(loaded, tuple(outermost), dry, previous).assemble()


@dataclass
class _Assembly:
    loaded: Loaded
    outermost: tuple[Middleware, ...]
    dry: bool
    previous: Assembled | None
    problems: list[Problem] = field(default_factory=list)
    servers: list[SMTPServer] = field(default_factory=list)
    #: What each server delivers to.
    deliveries: dict[ServerInfo, Deliveries] = field(default_factory=dict)
    #: The addresses of the servers so far.
    addresses: set[tuple[str, int] | str] = field(default_factory=set)
    #: The TLS of each certificate and key; None: something is wrong with it.
    certificates: dict[tuple[str, str | None], Certificates | None] = field(default_factory=dict)
    #: Middleware of the previous servers that is used again.
    taken_over: list[Middleware] = field(default_factory=list)

    def assemble(self) -> Assembled:
        warn_of_shadowed(entry.use for _, stack in self.loaded.config.stacks() for entry in stack)
        stacks = dict(self._stacks())
        serving = [
            made
            for number, listener in enumerate(self.loaded.config.listeners)
            if (made := self._server(number, listener, stacks)) is not None
        ]
        self.servers = [each.server for each in serving]
        if not self.dry:
            # Before the plugins: process-wide handlers run before a server's own, in the order of connecting.
            shared.on("message", self._tap)
        try:
            self._plug_in()
            self._deliver(serving)
        finally:
            if self.problems or not self.deliveries:
                shared.message.disconnect(self._tap)
        if self.dry:
            self._try(("logging", "target"), probe_log, self.loaded.config.logging.target)
        if self.problems:
            raise self.loaded.source.error(self.problems)
        self.previous = None  # or each configuration would keep the one before it, and so all of them
        return Assembled(self.loaded, serving, partial(shared.message.disconnect, self._tap))

    # Middleware

    def _stacks(self) -> Iterator[tuple[KeyPath, _Stack]]:
        """Yield each stack with its path."""
        for path, stack in self.loaded.config.stacks():
            made = []
            for number, entry in enumerate(stack):
                middleware = self._middleware((*path, number), entry)
                if middleware is not None:
                    made.append(((*path, number), entry.use, middleware))
            yield path, made

    def _middleware(self, path: KeyPath, entry: MiddlewareSection) -> Middleware | None:
        name, arguments = entry.use, self.loaded.arguments[path]
        for known in () if self.previous is None else self.previous.find(name, entry.only, arguments):
            if not any(known is each for each in self.taken_over):
                self.taken_over.append(known)
                return known
        try:
            made = middleware_factory(name)(**arguments, **self._secret_for(name, arguments))
            check_middleware(made)
            condition = all_of(entry.only)
            return made if condition is None else when(condition, made)
        except ImportError as error:
            if "middleware" not in self.loaded.config.model_fields_set and path[0] == "middleware":
                logger.info("left %s out of the default stack: %s", name, error)
                return None
            self.problems.append(Problem(path, str(error), name))
        except FAILURES as error:
            key, text = _explain(error, arguments)
            self.problems.append(Problem(path if key is None else (*path, key), text, name))
        return None

    def _secret_for(self, name: str, arguments: dict[str, Any]) -> dict[str, str]:
        """Return a secret for Auth if none is configured and SCRAM may be offered.

        It is kept in a file beside the configuration, so that all workers share it.
        """
        if name != "Auth" or "secret" in arguments or not isinstance(arguments.get("backend"), dict):
            return {}
        if self.dry or not self.loaded.source.name:
            return {}
        mechanisms = arguments.get("mechanisms")
        if mechanisms is not None and not any(name.upper().startswith("SCRAM") for name in mechanisms):
            return {}
        path = Path(self.loaded.source.name).absolute().with_suffix(".secret")
        try:
            return {"secret": keep_secret(path)}
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            logger.warning(
                "cannot keep Auth's secret in %r: %s; SCRAM's salts will differ in every process; "
                'to avoid that, set secret = { file = "..." } for Auth',
                str(path),
                reason,
            )
            return {}

    # Servers

    def _server(self, number: int, listener: ListenerSection, stacks: dict[KeyPath, _Stack]) -> ConfiguredServer | None:
        config = self.loaded.config
        path: KeyPath = ("listeners", number)
        listen = Listen.parse(listener.url)
        # A key belongs to its certificate, so a listener with its own certificate uses nothing of the common pair.
        tls = config if listener.tls_cert is None and listener.tls_key is None else listener
        certfile, keyfile = (tls.tls_cert, tls.tls_key) if listener.tls else (None, None)
        if certfile is None and (keyfile is not None or listen.implicit_tls):
            cert, key = (self.loaded.source.key((name,)) for name in ("tls_cert", "tls_key"))
            self.problems.append(
                Problem((*path, "url"), f"smtps:// needs a certificate: give {cert} and {key}")
                if keyfile is None
                else Problem(self._place_of("keyfile", path, listener), f"needs {cert} with it")
            )
            return None
        certificates = self._certificates(certfile, keyfile, path, listener)
        if certificates is None and certfile is not None:
            return None
        lenient = listener if "lenient_addresses" in listener.model_fields_set else config
        stack = stacks[("middleware",) if listener.middleware is None else (*path, "middleware")]
        try:
            server = SMTPServer(
                listen.address,
                hostname=config.hostname if listener.hostname is None else listener.hostname,
                lmtp=listen.lmtp,
                implicit_tls=listen.implicit_tls,
                backlog=listener.backlog,
                **self._trust(listener),
                middleware=[*self.outermost, *(made for _, _, made in stack)],
                tls=certificates,
                extensions=config.extensions.given() | listener.extensions.given(),
                lenient_addresses=lenient.lenient_addresses,
                **(config.limits.given() | listener.limits.given()),
            )
        except ArgumentError as error:
            self.problems.append(Problem(self._place_of(error.name, path, listener), error.text))
            return None
        except (ValueError, TypeError) as error:
            self.problems.append(Problem((*path, "url"), str(error)))
            return None
        self._check_address((*path, "url"), listen)
        return ConfiguredServer(server, listen, (*path, "url"), stack)

    def _certificates(
        self, certfile: str | None, keyfile: str | None, path: KeyPath, listener: ListenerSection
    ) -> Certificates | None:
        """Return the TLS of a listener; None without a certificate, or if something is wrong with it.

        Listeners with the same certificate share it. Those of ``[[tls.certificates]]`` are for listeners that use the
        common certificate.
        """
        tls = self.loaded.config.tls
        if certfile is None:
            return None
        if (certfile, keyfile) in self.certificates:
            return self.certificates[certfile, keyfile]
        given = [Certificate(certfile, keyfile)]
        if listener.tls_cert is None:
            given += [Certificate(each.cert, each.key, tuple(each.names)) for each in tls.certificates]
        made: Certificates | None
        try:
            made = Certificates(*given, **tls.options())
        except ArgumentError:
            made = self._load_one_by_one(given, path, listener)
        self.certificates[certfile, keyfile] = made
        return made

    def _load_one_by_one(
        self, given: Sequence[Certificate], path: KeyPath, listener: ListenerSection
    ) -> Certificates | None:
        """Note the first of these certificates that is wrong, with its place; return them all if none is by now."""
        options = self.loaded.config.tls.options()
        for number, each in enumerate(given):
            try:
                Certificates(each, **options)
            except ArgumentError as error:
                keys: dict[str, KeyPath] = {
                    "certfile": ("tls", "certificates", number - 1, "cert"),
                    "keyfile": ("tls", "certificates", number - 1, "key"),
                }
                if number == 0:
                    keys = {name: self._place_of(name, path, listener) for name in keys}
                self.problems.append(Problem(keys.get(error.name, ("tls", error.name)), error.text))
                return None
        return Certificates(*given, **options)

    def _trust(self, listener: ListenerSection) -> dict[str, Any]:
        """Return the arguments about proxies: the listener's own, or the common ones."""
        given = listener.model_fields_set
        names = ("proxy_from", "proxy_tls", "xclient_from", "xforward_from")
        trust = {name: getattr(listener if name in given else self.loaded.config, name) for name in names}
        if not trust["proxy_from"] and "proxy_from" in given and "proxy_tls" not in given:
            trust["proxy_tls"] = False  # the common one is for listeners with the common proxies
        return trust

    def _check_address(self, path: KeyPath, listen: Listen) -> None:
        """Check, without binding, that a listener can be opened at this address."""
        address = listen.address
        if isinstance(address, str):
            if self.dry:
                self._try(path, probe_socket, address)
        elif address[1] == 0:
            return  # any free port
        if address in self.addresses:
            self.problems.append(Problem(path, f"another listener already uses {listen.url()}"))
        self.addresses.add(address)

    def _place_of(self, argument: str, path: KeyPath, listener: ListenerSection) -> KeyPath:
        """Return the key that an argument of SMTPServer comes from."""
        key = _KEYS.get(argument)
        if key is None:
            return (*path, "url")
        return (*path, key) if key in listener.model_fields_set else (key,)

    # Delivery and plugins

    def _tap(self, session: Session, stream: MessageStream, ack: Ack) -> None:
        deliveries = self.deliveries.get(session.server)
        if deliveries is not None:
            deliveries.tap(session, stream, ack)

    def _plug_in(self) -> None:
        """Put the plugins between the two halves of the deliveries.

        What they read is also delivered, what they reject is not, and what they leave undecided is accepted.
        """
        for number, plugin in enumerate(self.loaded.config.plugins):
            try:
                plug_in(
                    plugin.name,
                    self.servers,
                    optional=plugin.optional,
                    options=dict.fromkeys(plugin.options),
                    check=partial(self._read_options, ("plugins", number), plugin.name, self.loaded.plugins[number]),
                )
            except _OptionProblems as error:
                self.problems += error.problems
            except PluginError as error:
                self.problems.append(Problem(("plugins", number, "name"), str(error)))

    def _read_options(
        self, path: KeyPath, name: str, entry: dict[str, Any], target: Callable[..., Any], _: dict[str, Any]
    ) -> dict[str, Any]:
        """Read a plugin's options in the same way as a middleware's."""
        without_server = partial(target, None)
        options, problems = read_options(
            path, name, without_server, entry, section=PluginSection, folder=self.loaded.folder
        )
        if problems and self.loaded.source.option(path) is not None:
            wrong = "; ".join(f"{problem.path[-1]} {problem.text}" for problem in problems)
            raise WrongOptions(f"{name}: {wrong}; set its options in a [[plugins]] table of a configuration file")
        if problems:
            raise _OptionProblems(problems)
        self.loaded.arguments[path] = options
        return options

    def _deliver(self, serving: list[ConfiguredServer]) -> None:
        """Build the deliveries that are used, and connect them behind the plugins."""
        config = self.loaded.config
        if config.deliveries and config.delivery.maildir is not None:
            clash = 'is for all mail, and so are [[deliveries]]: write it as one of them, use = "Maildir"'
            self.problems.append(Problem(("delivery", "maildir"), clash))
        built: dict[KeyPath, Deliveries | None] = {}
        places: list[KeyPath] = []
        for number, listener in enumerate(config.listeners):
            path: KeyPath = ("deliveries",)
            entries = config.deliveries
            if listener.deliveries is not None:
                path, entries = ("listeners", number, "deliveries"), listener.deliveries
            places.append(path)
            if path not in built:
                is_short = listener.deliveries is None and not entries
                built[path] = self._short_form() if is_short else self._deliveries(path, entries)
        if self.dry or self.problems:
            return
        for each in serving:
            deliveries = built[places[int(each.path[1])]]
            if deliveries is not None:
                self.deliveries[each.server] = deliveries
                deliveries.attach_rest(each.server)

    def _short_form(self) -> Deliveries | None:
        """Return the Maildir of ``[delivery]``; None if there is none, or something is wrong."""
        path, folder = ("delivery", "maildir"), self.loaded.config.delivery.maildir
        if folder is None:
            return None
        self._try(path, probe_maildir, folder)
        if self.dry or self.problems:
            return None
        maildir = self._try(path, Maildir, folder)
        return None if maildir is None else Deliveries([maildir])

    def _deliveries(self, path: KeyPath, entries: list[DeliveriesSection]) -> Deliveries | None:
        """Return the deliveries of one array of tables; None if it is empty, or something is wrong."""
        before = len(self.problems)
        routes = [self._route((*path, number), entry) for number, entry in enumerate(entries)]
        if not entries or len(self.problems) > before:
            return None
        return self._try(path, Deliveries, [each for each in routes if each is not None])

    def _route(self, path: KeyPath, entry: DeliveriesSection) -> Route | None:
        name, arguments = entry.use, self.loaded.arguments[path]
        try:
            factory = delivery_factory(name)
            if factory is Maildir:
                self._try((*path, "path"), probe_maildir, Maildir.fixed_part(arguments["path"]))
                if self.dry or self.problems:
                    factory, arguments = Delivery, {}  # a Maildir would make its folders
            elif factory is Forward and is_predicate(arguments.get("identity_by") or ""):
                arguments = {**arguments, "identity_by": self._function("identity_by", arguments)}
            delivery = factory(**arguments)
        except FAILURES as error:
            key, text = _explain(error, arguments)
            self.problems.append(Problem(path if key is None else (*path, key), text, name))
            return None
        try:
            return Route(delivery, self._wanted(entry))
        except (PluginError, TypeError, ValueError) as error:
            self.problems.append(Problem((*path, "for"), str(error), name))
        return None

    @staticmethod
    def _function(key: str, arguments: dict[str, Any]) -> Callable[..., object]:
        try:
            return recipient_predicate(arguments[key])
        except PluginError as error:
            raise ArgumentError(key, str(error)) from error

    @staticmethod
    def _wanted(entry: DeliveriesSection) -> list[str | Predicate] | None:
        if entry.wanted is None:
            return None
        wanted = [entry.wanted] if isinstance(entry.wanted, str) else entry.wanted
        return [recipient_predicate(each) if is_predicate(each) else each for each in wanted]

    def _try(self, path: KeyPath, make: Callable[[Any], Made], value: Any) -> Made | None:
        try:
            return make(value)
        except ValueError as error:
            self.problems.append(Problem(path, str(error)))
        except OSError as error:
            self.problems.append(Problem(path, f"cannot use {value!r}: {error.strerror or error}"))
        return None


class _OptionProblems(WrongOptions):
    """A plugin's options are wrong."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("wrong options")
        self.problems = problems


def _explain(error: BaseException, arguments: dict[str, Any]) -> tuple[str | None, str]:
    """Return the argument that an error is about, None if it does not tell, and what is wrong."""
    if isinstance(error, ArgumentError) and error.name in arguments:
        return error.name, error.text
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        about = (key for key, value in arguments.items() if str(value) == str(error.filename))
        return next(about, None), f"{error.strerror}: {str(error.filename)!r}"
    try:
        return None, str(error) or type(error).__name__
    except Exception:  # an exception class of a plugin's
        return None, describe_error(error)
