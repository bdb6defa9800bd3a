"""Every error that a caller can meet, with its facts as attributes.

Raised on both sides of the wire. A server turns an error into a name and a mapping of facts
(`to_wire`), a client turns these back into the same class (`from_wire`); an unknown name becomes a
plain `MoatKvError`, so that an older client can still say what a newer server said. Nothing here
does I/O or knows of connections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class MoatKvError(Exception):
    """The base of all errors of this package.

    `facts` is what travels over the wire beside the name: a mapping from str to anything that
    msgpack carries. Each fact is also an attribute of the same name.
    """

    message: ClassVar[str] = "{text}"
    #: The facts that the message is made of; a missing one reads as `?`.
    fields: ClassVar[tuple[str, ...]] = ("text",)
    #: The name that came over the wire, where this version has no class for it.
    wire_name: str = ""

    def __init__(self, /, *values: Any, **facts: Any) -> None:
        for name, value in zip(self.fields, values, strict=False):
            facts.setdefault(name, value)
        self.facts: dict[str, Any] = facts
        super().__init__(*values)

    def __getattr__(self, name: str) -> Any:
        facts = self.__dict__.get("facts")
        if facts is not None and name in facts:
            return facts[name]
        if name in type(self).fields:
            return None
        raise AttributeError(name)

    def __str__(self) -> str:
        if self.wire_name:
            return f"{self.wire_name}: {self.facts}"
        given = _Facts(self.facts)
        text = self.message.format_map(given)
        hint = self.facts.get("hint")
        return f"{text}; {hint}" if hint else text

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.wire_name, self.facts))


class _Facts(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return "?"


def _rebuild(cls: type[MoatKvError], wire_name: str, facts: dict[str, Any]) -> MoatKvError:
    values: list[Any] = []
    for field in cls.fields:
        if field not in facts:
            break
        values.append(facts[field])
    error = cls(*values, **facts)
    if wire_name:
        error.wire_name = wire_name
    return error


# Values and paths -------------------------------------------------------------------------------


class BadPath(MoatKvError, ValueError):
    """A path, or a path's text, that cannot be."""

    fields = ("text", "reason")
    message = "bad path {text!r}: {reason}"


class BadValue(MoatKvError, ValueError):
    """A value that cannot be carried; `where` names the place inside it."""

    fields = ("reason", "where")
    message = "bad value: {reason}"

    def __str__(self) -> str:
        where = self.facts.get("where")
        return super().__str__() + (f" (at {where})" if where else "")


class BadConfig(MoatKvError, ValueError):
    """A setting that is unknown or out of its range."""

    fields = ("name", "reason")
    message = "bad configuration, {name}: {reason}"


# The wire ---------------------------------------------------------------------------------------


class ProtocolError(MoatKvError):
    """A frame or message that does not follow the protocol."""

    fields: ClassVar[tuple[str, ...]] = ("reason",)
    message = "protocol error: {reason}"


class FrameTooLarge(ProtocolError):
    """A frame over the limit; it is skipped and the connection lives on."""

    fields = ("size_bytes", "limit_bytes")
    message = "a frame of {size_bytes} bytes is over the limit of {limit_bytes}"


class BadFrame(ProtocolError):
    """A frame that is not one well-formed message."""

    message = "bad frame: {reason}"


class UnknownAction(ProtocolError):
    """The server does not know that action."""

    fields = ("action",)
    message = "unknown action {action!r}"


class BadArguments(ProtocolError, ValueError):
    """An action's arguments are missing, unknown, or of the wrong type."""

    fields = ("action", "reason")
    message = "{action}: {reason}"


class CannotConnect(MoatKvError, ConnectionError):
    """No server answered."""

    fields = ("url", "reason")
    message = "cannot connect to {url}: {reason}"


class Disconnected(MoatKvError, ConnectionError):
    """The line broke before the request was sent, or the client is closed; nothing happened."""

    fields = ("reason",)
    message = "disconnected: {reason}"


class Unknown(MoatKvError, ConnectionError):
    """The line broke, or a time ran out, when a write may already have happened.

    `line_broke`: it was the line, so the write has happened by now or never will.
    """

    fields = ("reason", "line_broke")
    message = "it is not known whether the write happened: {reason}"


class RequestTimeout(MoatKvError, TimeoutError):
    """A read was not answered in time."""

    fields = ("action", "timeout_s")
    message = "{action}: no answer within {timeout_s} s"


class Behind(MoatKvError):
    """The server has not yet seen the revision that this client has seen."""

    fields = ("have", "want")
    message = "the server is at revision {have}, this client has seen {want}"


# Writes -----------------------------------------------------------------------------------------


class Conflict(MoatKvError):
    """A compare-and-set that did not hold; `have` is the revision that is there (0: none)."""

    fields = ("path", "expect", "have")
    message = "{path}: expected revision {expect}, found {have}"


class GuardFailed(MoatKvError):
    """The entry that guards a write no longer has the revision that was given."""

    fields = ("path", "expect", "have")
    message = "the guard at {path} expected revision {expect}, found {have}"


class StaleFence(GuardFailed):
    """A job's claim, or a lock, has passed on; what its former holder writes is refused."""

    message = "the claim at {path} has passed on (fence {expect}, now {have})"


class SessionExpired(MoatKvError):
    """The session has ended; its entries and locks are gone."""

    fields = ("session",)
    message = "session {session} has ended"


class BatchTooLarge(MoatKvError):
    """More paths than one batch may hold, those of its guards counted."""

    fields = ("size", "limit")
    message = "a batch of {size} paths (its guards counted) is over the limit of {limit}"


class CannotPatch(MoatKvError, ValueError):
    """The present value is not of the type that the patch needs."""

    fields = ("path", "op", "reason")
    message = "{path}: cannot {op}: {reason}"


class Detached(MoatKvError):
    """What was asked needs agreement, and the server cannot reach its engine."""

    fields = ("reason",)
    message = "detached: {reason}"


class NotFound(MoatKvError, KeyError):
    """There is no such thing; `what` is its kind, `name` its name."""

    fields = ("what", "name")
    message = "no {what} {name}"


class NameTaken(MoatKvError):
    """Another live member, session or lock has that name."""

    fields = ("what", "name")
    message = "the {what} {name} is taken"


class AlreadyLocked(MoatKvError):
    """Others have the resource, and did not let go in time; `holder` says who, if it was seen."""

    fields = ("resource", "holder")
    message = "{resource} is locked by {holder}"


class LockLost(MoatKvError):
    """A lock is gone though its holder has not released it: its session ended, or it was deleted.

    Writes under its fence are refused from then on.
    """

    fields = ("resource", "fence")
    message = "the lock of {resource} (fence {fence}) is lost"


# Engines ----------------------------------------------------------------------------------------


class EngineError(MoatKvError):
    """The engine could not do its work."""

    fields: ClassVar[tuple[str, ...]] = ("reason",)
    message = "engine: {reason}"


class EngineUnfit(EngineError):
    """What was found there cannot serve as an engine (too old, set up otherwise, not reachable)."""

    fields = ("place", "reason")
    message = "{place} cannot be used: {reason}"


class EngineUnreachable(EngineUnfit):
    """Nobody answers there, or nobody lets this server in (credentials, certificates)."""


class StorageFailed(EngineError):
    """A write could not be made durable (disk full, I/O error); it did not happen."""

    fields = ("file", "reason")
    message = "cannot store in {file}: {reason}"


class StorageDamaged(EngineError):
    """The file is damaged; it is left as it is."""

    fields = ("file", "reason")
    message = "{file} is damaged: {reason}"


class StorageBusy(EngineError):
    """Another server has the file open."""

    fields = ("file", "owner")
    message = "{file} is in use by {owner}"


# Code and jobs ----------------------------------------------------------------------------------


class BadCode(MoatKvError, ValueError):
    """Code that does not compile; `line` counts from 1, `column` from 1."""

    fields = ("path", "reason", "line", "column")
    message = "{path}: line {line}, column {column}: {reason}"


class Compiling(MoatKvError):
    """Code that is long is being compiled; whoever listens is told when that is done."""

    fields = ("path",)
    message = "{path} is long and is being compiled"


class MissingVariable(MoatKvError):
    """A procedure needs a variable that nobody gave."""

    fields = ("name", "path")
    message = "missing variable {name}"


class MissingModule(MoatKvError, ImportError):
    """A stored module, or an installed package, that code needs is not there."""

    fields = ("name", "needed_by")
    message = "missing module {name}, needed by {needed_by}"

    def __init__(self, /, *values: Any, **facts: Any) -> None:
        super().__init__(*values, **facts)
        # ImportError has an attribute of its own by that name, which hides the fact.
        self.name = self.facts.get("name")


class CyclicModules(MoatKvError, ImportError):
    """Modules that need each other."""

    fields = ("cycle",)
    message = "modules need each other in a circle: {cycle}"


_BY_NAME: dict[str, type[MoatKvError]] = {}


def _register() -> None:
    for cls in list(globals().values()):
        if isinstance(cls, type) and issubclass(cls, MoatKvError):
            _BY_NAME[cls.__name__] = cls


_register()


def to_wire(error: MoatKvError) -> tuple[str, dict[str, Any]]:
    """An error's name and its facts, as they travel.

    Facts that are not plain (a path, a class) travel as their text.
    """
    facts = {name: _plain(value) for name, value in error.facts.items()}
    return error.wire_name or type(error).__name__, facts


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, int | float | bytes):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    # What is wrong with a text may be that it is not fit for UTF-8.
    return str(value).encode("utf-8", "backslashreplace").decode("utf-8")


def from_wire(name: str, facts: Mapping[str, Any]) -> MoatKvError:
    """The error of that name, with its facts.

    An unknown name gives a plain `MoatKvError` that has it as `wire_name`, keeps the facts, and
    travels on under that name.
    """
    clean = {str(key): value for key, value in facts.items()}
    cls = _BY_NAME.get(name)
    return _rebuild(MoatKvError, name, clean) if cls is None else _rebuild(cls, "", clean)
