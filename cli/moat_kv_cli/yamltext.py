"""Values as YAML for people, and back: `-y`, `edit`, `-o yaml`, and mappings that `get` prints.

YAML knows bytes, times and any key by itself; tags of ours are `!path a.b`, `!ext [code, bytes]`
and `!time_ns [seconds, nanoseconds]`. A time needs a zone; a date, or a time without one, stays
text. Reading is safe: no tag makes anything but a value. Import this only when needed, it is slow.
"""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime
from typing import Any

import msgpack
import ruyaml
from ruyaml.constructor import SafeConstructor
from ruyaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruyaml.representer import SafeRepresenter

from moat_kv import errors
from moat_kv.path import P, Path

_TIME = "tag:yaml.org,2002:timestamp"
_ZONED = re.compile(r"\d{4}-\d\d?-\d\d?[Tt ]+\d.*?(Z|[+-]\d\d?(:?\d\d)?)$")
#: A line that a literal block gives back as it was.
_BLOCK_LINE = re.compile(r"(\S.*)?\S|", re.DOTALL)


class _Representer(SafeRepresenter):
    """Writes values; the same object twice is written twice, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> Any:
        lines = data.split("\n")
        if len(lines) > 1 and all(_fits_block(line) for line in lines) and lines[0]:
            return self.represent_scalar("tag:yaml.org,2002:str", data, style="|")
        style = None if data.isprintable() and data == data.strip() else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=style)

    def path(self, data: Path) -> Any:
        return self.represent_scalar("!path", str(data), style='"')

    def ext(self, data: msgpack.ExtType) -> Any:
        return self.represent_sequence("!ext", [data.code, data.data], flow_style=True)

    def time(self, data: datetime) -> Any:
        return self.represent_scalar(_TIME, data.astimezone(UTC).isoformat())

    def time_ns(self, data: Any) -> Any:
        return self.represent_sequence(
            "!time_ns", [data.seconds, data.nanoseconds], flow_style=True
        )


def _fits_block(line: str) -> bool:
    return line.isprintable() and line == line.rstrip()


_Representer.add_representer(str, _Representer.text)
_Representer.add_representer(Path, _Representer.path)
_Representer.add_representer(msgpack.ExtType, _Representer.ext)
_Representer.add_representer(datetime, _Representer.time)
_Representer.add_representer(msgpack.Timestamp, _Representer.time_ns)
_Representer.add_multi_representer(dict, _Representer.represent_dict)


class _Constructor(SafeConstructor):
    """Reads values."""

    def path(self, node: ScalarNode) -> Path:
        try:
            return P(self.construct_scalar(node))
        except errors.BadPath as exc:
            raise errors.BadValue(f"line {node.start_mark.line + 1}: {exc}") from exc

    def ext(self, node: SequenceNode) -> msgpack.ExtType:
        code, data = self.construct_sequence(node)
        return tuple.__new__(msgpack.ExtType, (int(code), bytes(data)))

    def time_ns(self, node: SequenceNode) -> Any:
        return msgpack.Timestamp(*self.construct_sequence(node))

    def time(self, node: ScalarNode) -> Any:
        text = self.construct_scalar(node)
        if not _ZONED.fullmatch(text):
            return text
        try:
            return datetime.fromisoformat(re.sub(r"[Tt ]+", "T", text, count=1))
        except ValueError as exc:
            raise errors.BadValue(f"line {node.start_mark.line + 1}: {text}: {exc}") from exc

    def mapping(self, node: MappingNode) -> dict[Any, Any]:
        result = self.construct_mapping(node, deep=True)
        return dict(result)

    def sequence(self, node: SequenceNode) -> list[Any]:
        return list(self.construct_sequence(node, deep=True))


_Constructor.add_constructor("!path", _Constructor.path)
_Constructor.add_constructor("!ext", _Constructor.ext)
_Constructor.add_constructor("!time_ns", _Constructor.time_ns)
_Constructor.add_constructor(_TIME, _Constructor.time)
_Constructor.add_constructor("tag:yaml.org,2002:map", _Constructor.mapping)
_Constructor.add_constructor("tag:yaml.org,2002:seq", _Constructor.sequence)


def _yaml() -> Any:
    yaml: Any = ruyaml.YAML(typ="safe", pure=True)
    yaml.Representer = _Representer
    yaml.Constructor = _Constructor
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 1 << 20  # a long text stays in one line, so that it can be found
    yaml.allow_unicode = True
    return yaml


def to_yaml(value: Any) -> str:
    """The value as YAML, ending with a newline."""
    out = io.StringIO()
    _yaml().dump(value, out)
    text = out.getvalue()
    # A bare scalar is followed by an end mark that nobody wants to see.
    return text.removesuffix("...\n") if text.endswith("\n...\n") else text


def from_yaml(text: str) -> Any:
    """The value of a YAML text; an empty one is None. Raises BadValue with line and reason."""
    try:
        return _yaml().load(text)
    except ruyaml.error.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise errors.BadValue(f"not YAML: {where}{exc.problem or exc.context}") from exc
    except ruyaml.error.YAMLError as exc:
        raise errors.BadValue(f"not YAML: {' '.join(str(exc).split())}") from exc
    except (ValueError, TypeError) as exc:
        if isinstance(exc, errors.BadValue):
            raise
        raise errors.BadValue(f"not YAML: {exc}") from exc
    except RecursionError as exc:
        raise errors.BadValue("not YAML: nested too deep") from exc
