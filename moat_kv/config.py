"""Settings: those of one machine, from a YAML file, and those of the whole network, from the tree.

The command line loads a `Config` and hands it to the server, the client or the runner; a library's
user may make one directly. `Places` says where jobs, code, errors and so on live in the tree; it is
the same for all nodes, so it is read from the tree itself (`load_places`) and not from a file.

An unknown key is refused by its name, because a setting that is silently ignored is worse than an
error. Nothing here opens a connection, and nothing reads the environment but `load`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from moat_kv import errors
from moat_kv.path import P, Path

DEFAULT_PORT = 27586
DEFAULT_URL = f"tcp://127.0.0.1:{DEFAULT_PORT}"
#: The application's name in the platform's folders.
APPLICATION = "moat-kv"
FILE_NAME = "config.yaml"
FILE_VARIABLE = "MOAT_KV_CONFIG"
URL_VARIABLE = "MOAT_KV_URL"


@dataclass(frozen=True, kw_only=True)
class ClientConfig:
    """How this machine's clients find a server. Times in seconds, above 0."""

    url: tuple[str, ...] = (DEFAULT_URL,)
    """Servers, in the order in which they are tried; in the file one text or a list."""
    name: str | None = None
    connect_timeout_s: float = 10.0
    request_timeout_s: float = 60.0


@dataclass(frozen=True, kw_only=True)
class NatsConfig:
    """How this machine's server joins a network on NATS; what its URL says goes first."""

    network: str = "main"
    """The network's name: letters, digits, - and _, 64 at most."""
    user: str | None = None
    password: str | None = None
    token: str | None = None
    nkey: str | None = None
    """A file with the seed of an NKey."""
    creds: str | None = None
    """A file with credentials, as `nsc` makes them."""
    ca: str | None = None
    """A file with the certificates that the server's is checked with; TLS is then a must."""
    cert: str | None = None
    key: str | None = None
    """Files with this machine's certificate and its key, for servers that ask for one."""
    domain: str | None = None
    """The JetStream domain that the network is in; for a NATS node that is not in it itself, such
    as a leaf node: letters, digits, - and _, 64 at most. None: that of the node."""
    replicas: int | None = None
    """On how many NATS nodes the network is kept, 1, 3 or 5; None: as it is, for a new one 3 in a
    cluster and 1 else."""
    history: int | None = None
    """How many records of a path are kept, 1 to 1000; None: as it is, for a new network 10."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server that is started on this machine; flags of `moat kv server` go first."""

    data: str | None = None
    """The folder for its files; None: the platform's state folder, by the server's name."""
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    """0 to 65535; 0 takes a free one and says which."""
    unix: str | None = None
    """The path of a Unix socket to listen on beside TCP."""
    engine: str = "sqlite"
    """`sqlite`, `memory`, or the URL of a network: `nats://host:port,host:port/NETWORK`."""
    nats: NatsConfig = field(default_factory=NatsConfig)
    lease_s: float = 20.0
    renew_s: float = 3.0
    """For how long a network takes this server for alive after it has renewed its lease, and how
    often it does that; see `server.times`. Above 0; not for a server that is alone."""
    sync_s: float = 0.0
    """0: a write is on disk before it is answered; else that many seconds may be lost."""


@dataclass(frozen=True, kw_only=True)
class RunnerConfig:
    """A node that runs jobs."""

    name: str | None = None
    """Its name in every group; None: the host's. Not a bare number."""
    group: str = "default"
    queue: int = 100
    """How many messages wait for a job in `_info`; at least 1."""
    tags: tuple[str, ...] = ()
    """What this node has that jobs may ask for."""
    weight: float = 1.0
    """How many jobs it takes beside others; 0: only those that no other node takes."""
    ttl_s: float | None = None
    grace_s: float | None = None
    """Others have its jobs when it has been silent for `ttl_s`, or its line to the server broken
    for `grace_s`; above 0. None: as the server has it, 10 and 2, on a network 30 and 10."""
    isolate: str = "process"
    """Where jobs run that do not say, nor their group: `process`, each in one of its own, or
    `inline`, in the runner's."""
    logs: str | None = None
    """The folder for what runs print and how they end; None: the platform's state folder."""
    logs_mb: float = 100.0
    """How large all that may become, in MiB; 0 keeps nothing."""
    logs_runs: int = 20
    """How many runs of a job are kept; at least 1."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one machine, checked, with defaults for what the file leaves out."""

    client: ClientConfig = field(default_factory=ClientConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    runner: RunnerConfig = field(default_factory=RunnerConfig)
    output: str | None = None
    """The command line's default for `-o`; None: a table, or plain text if not on a terminal."""
    source: str | None = field(default=None, metadata={"key": False})
    """The file that this came from, for messages."""


ISOLATIONS = ("process", "inline")
OUTPUTS = ("table", "json", "yaml", "jsonl", "value")

_AT_LEAST: dict[str, float] = {
    "server.port": 0,
    "server.sync_s": 0,
    "server.nats.replicas": 1,
    "server.nats.history": 1,
    "runner.queue": 1,
    "runner.weight": 0,
    "runner.logs_mb": 0,
    "runner.logs_runs": 1,
}
_ABOVE_ZERO = (
    "client.connect_timeout_s",
    "client.request_timeout_s",
    "server.lease_s",
    "server.renew_s",
    "runner.ttl_s",
    "runner.grace_s",
)


def default_file() -> pathlib.Path:
    """Where the settings are if nobody says otherwise: the user's file, else the machine's.

    The user's is returned if neither is there.
    """
    import platformdirs

    user = platformdirs.user_config_path(APPLICATION) / FILE_NAME
    machine = platformdirs.site_config_path(APPLICATION) / FILE_NAME
    return machine if not user.exists() and machine.exists() else user


def default_data(name: str) -> pathlib.Path:
    """The platform's folder for the data of the server of that name."""
    import platformdirs

    return platformdirs.user_state_path(APPLICATION) / name


def default_logs() -> pathlib.Path:
    """The platform's folder for what runs leave on their node; beside those of servers."""
    import platformdirs

    return platformdirs.user_state_path(f"{APPLICATION}-runner")


def load(file: str | os.PathLike[str] | None = None) -> Config:
    """The settings in a file: the given one, else that of MOAT_KV_CONFIG, else the platform's.

    A file that was named must be there; the platform's may be missing. MOAT_KV_URL (several URLs
    with blanks between them) goes before the file's `client.url`.

    Raises BadConfig, which names the key or the file.
    """
    named = file or os.environ.get(FILE_VARIABLE) or None
    place = pathlib.Path(named).expanduser() if named is not None else default_file()
    try:
        text = place.read_text(encoding="utf-8")
    except FileNotFoundError:
        if named is not None:
            raise errors.BadConfig(str(place), "there is no such file") from None
        config = Config()
    except (OSError, UnicodeDecodeError) as exc:
        raise errors.BadConfig(str(place), str(exc)) from exc
    else:
        config = dataclasses.replace(parse(text, source=str(place)), source=str(place))
    urls = os.environ.get(URL_VARIABLE, "").split()
    if urls:
        client = dataclasses.replace(config.client, url=tuple(urls))
        config = dataclasses.replace(config, client=client)
    return config


def parse(text: str, *, source: str = "the configuration") -> Config:
    """The settings in a YAML text. Raises BadConfig, with `source` as the name of the text."""
    data = _parse_yaml(text, source)
    try:
        return from_mapping(data)
    except errors.BadConfig as exc:
        raise errors.BadConfig(f"{source}: {exc.name}", exc.reason) from exc


def from_mapping(data: Any) -> Config:
    """The settings in nested mappings, as a YAML file holds them; None is an empty one.

    Raises BadConfig naming a key that is unknown, of the wrong type or out of its range.
    """
    config = _build(Config, {} if data is None else data, "")
    if config.output is not None and config.output not in OUTPUTS:
        raise errors.BadConfig("output", f"one of {', '.join(OUTPUTS)}")
    if config.runner.isolate not in ISOLATIONS:
        raise errors.BadConfig("runner.isolate", f"one of {', '.join(ISOLATIONS)}")
    if not config.client.url:
        raise errors.BadConfig("client.url", "at least one URL")
    if config.server.port > 65535:
        raise errors.BadConfig("server.port", "at most 65535")
    return config


def _parse_yaml(text: str, source: str) -> Any:
    import ruyaml  # slow to import, and most commands find no file at all

    yaml = ruyaml.YAML(typ="safe", pure=True)
    try:
        return yaml.load(text)
    except ruyaml.error.YAMLError as exc:
        raise errors.BadConfig(source, f"not YAML: {' '.join(str(exc).split())}") from exc


_C = typing.TypeVar("_C")


def _build(cls: type[_C], data: Any, prefix: str) -> _C:
    if not isinstance(data, Mapping):
        raise errors.BadConfig(prefix.rstrip(".") or "top level", "a mapping is needed here")
    hints = typing.get_type_hints(cls)
    fields = {
        item.name
        for item in dataclasses.fields(cls)  # type: ignore[arg-type]  # all are dataclasses
        if item.metadata.get("key", True)
    }
    values: dict[str, Any] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if key not in fields:
            known = ", ".join(prefix + each for each in sorted(fields))
            raise errors.BadConfig(name, f"unknown; known here: {known}")
        values[key] = _convert(hints[key], value, name)
    return cls(**values)


def _convert(hint: Any, value: Any, name: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return _build(typing.cast(type, hint), {} if value is None else value, name + ".")
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(each for each in hint.__args__ if each is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        return _texts(value, name)
    return _plain(hint, value, name)


def _texts(value: Any, name: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Sequence) and all(isinstance(each, str) for each in value):
        return tuple(value)
    raise errors.BadConfig(name, "a text or a list of texts")


_TYPE_WORDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false"}


def _plain(hint: type[Any], value: Any, name: str) -> Any:
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:  # not isinstance: True is no integer here
        raise errors.BadConfig(name, f"{_TYPE_WORDS[hint]} is needed, not {value!r}")
    if name in _ABOVE_ZERO and not value > 0:
        raise errors.BadConfig(name, "above 0")
    if name in _AT_LEAST and not value >= _AT_LEAST[name]:
        raise errors.BadConfig(name, f"at least {_AT_LEAST[name]:g}")
    return value


# The network's places ---------------------------------------------------------------------------

ROOT = Path(".moat", "kv")
#: Where the network-wide settings are; the one place that cannot be moved.
CONFIG_PLACE = ROOT / "config"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where things live in the tree; the value of `:.moat.kv.config` overrides it, network-wide."""

    run: Path = ROOT / "run"
    state: Path = ROOT / "state"
    proc: Path = ROOT / "code" / "proc"
    module: Path = ROOT / "code" / "module"
    error: Path = ROOT / "error"
    model: Path = ROOT / "model"
    lock: Path = ROOT / "lock"
    claim: Path = ROOT / "claim"
    group: Path = ROOT / "group"
    config: Path = CONFIG_PLACE


class Reader(Protocol):
    """What `load_places` needs of a client."""

    async def get(self, path: Path, /) -> Any: ...


async def load_places(client: Reader) -> Places:
    """The places that hold in the client's network.

    The entry at `:.moat.kv.config` may hold a mapping, and its `places` a mapping from the names of
    `Places` to paths, as text or as path values. Two places may not lie within each other.

    Raises BadConfig naming an unknown place or an impossible path; what the client's `get` raises.
    """
    result = await client.get(CONFIG_PLACE)
    value = result.get("value")
    if value is None:
        return Places()
    if not isinstance(value, Mapping):
        raise errors.BadConfig(str(CONFIG_PLACE), "a mapping is needed here")
    overrides = value.get("places")
    return Places() if overrides is None else places_of(overrides)


def places_of(overrides: Any) -> Places:
    """The places with some of them moved: a mapping from name to path. Raises BadConfig."""
    if not isinstance(overrides, Mapping):
        raise errors.BadConfig("places", "a mapping from name to path is needed")
    known = {item.name for item in dataclasses.fields(Places)} - {"config"}
    paths: dict[str, Path] = {}
    for name, text in overrides.items():
        if name not in known:
            known_names = ", ".join(sorted(known))
            raise errors.BadConfig(f"places.{name}", f"unknown; known here: {known_names}")
        try:
            paths[name] = text if isinstance(text, Path) else P(text)
        except (errors.BadPath, TypeError) as exc:
            raise errors.BadConfig(f"places.{name}", str(exc)) from exc
    places = Places(**paths)
    _check_apart(places)
    return places


def _check_apart(places: Places) -> None:
    """Jobs that lie within code, or states within jobs, would be read as each other."""
    by_name = {item.name: getattr(places, item.name) for item in dataclasses.fields(Places)}
    for name, path in by_name.items():
        if not path:
            raise errors.BadConfig(f"places.{name}", "the root holds everything")
        for other, within in by_name.items():
            if name != other and within.startswith(path):
                raise errors.BadConfig(f"places.{other}", f"{within} lies within {name}, {path}")
