"""Builtins for stored code that make it live by another clock.

With them `import time` and `import datetime` give modules that tell virtual time; whatever else is
imported is what it is, and the process around keeps its clocks. `time.sleep` is real: it stops the
event loop, with or without this.
"""

from __future__ import annotations

import builtins
import datetime
import time
import types
from collections.abc import Callable, Mapping
from typing import Any


def of_clock(wall: Callable[[], float], monotonic: Callable[[], float]) -> dict[str, Any]:
    """Builtins by these clocks, both in seconds; `wall` since 1970."""
    modules = {"time": _time(wall, monotonic), "datetime": _datetime(wall)}

    def import_(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> types.ModuleType:
        if level == 0 and name in modules:
            return modules[name]
        return builtins.__import__(name, globals, locals, fromlist, level)

    return {**vars(builtins), "__import__": import_}


def _copied(module: types.ModuleType, **changes: Any) -> types.ModuleType:
    made = types.ModuleType(module.__name__, module.__doc__)
    made.__dict__.update({**vars(module), **changes})
    return made


def _time(wall: Callable[[], float], monotonic: Callable[[], float]) -> types.ModuleType:
    def at(seconds: float | None) -> float:
        return wall() if seconds is None else seconds

    return _copied(
        time,
        time=wall,
        time_ns=lambda: int(wall() * 1e9),
        monotonic=monotonic,
        monotonic_ns=lambda: int(monotonic() * 1e9),
        perf_counter=monotonic,
        perf_counter_ns=lambda: int(monotonic() * 1e9),
        localtime=lambda seconds=None: time.localtime(at(seconds)),
        gmtime=lambda seconds=None: time.gmtime(at(seconds)),
        ctime=lambda seconds=None: time.ctime(at(seconds)),
        strftime=lambda form, t=None: time.strftime(form, t or time.localtime(wall())),
    )


class _Seen(type):
    """Real dates are instances of these classes, too."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.__mro__[1])


def _datetime(wall: Callable[[], float]) -> types.ModuleType:
    # Classes of their own for each clock; made by calling, for the clock is in their methods.
    def now(_cls: type, tz: datetime.tzinfo | None = None) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(wall(), tz)

    def utcnow(_cls: type) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(wall(), datetime.UTC).replace(tzinfo=None)

    def today(_cls: type) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(wall())

    def day(_cls: type) -> datetime.date:
        return datetime.date.fromtimestamp(wall())

    moments: dict[str, Any] = {
        "now": classmethod(now),
        "utcnow": classmethod(utcnow),
        "today": classmethod(today),
    }
    return _copied(
        datetime,
        datetime=_Seen("datetime", (datetime.datetime,), moments),
        date=_Seen("date", (datetime.date,), {"today": classmethod(day)}),
    )
