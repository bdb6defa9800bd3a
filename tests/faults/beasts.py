"""The animals of `tests.faults.zoo`: scripts that do what no script should.

Each is a script, what it is given, and what must be said of it. One that ends by itself is seen to
its end; one that does not is told to end once it is under way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: How a run comes to its end: it fails; its result is there; it has to be told to end and does not
#: heed that; it has to be told, and ends; it never begins.
End = Literal["fails", "done", "killed", "stops", "waits"]


@dataclass(frozen=True, kw_only=True)
class Beast:
    """One of them."""

    name: str
    text: str | bytes
    """The script; what is not text cannot be stored by our own means, and is written raw."""
    end: End
    told: str = ""
    """What the error record says of it, or a part of that; empty where nothing has failed."""
    is_async: bool | None = True
    limits: Mapping[str, float] = field(default_factory=dict)
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Modules by name, with what each requires."""
    requires: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)


_BEGUN_ASYNC = "await _client.set(_P('zoo.begun'), 1)\n"
_BEGUN = "_client.set(_P('zoo.begun'), 1)\n"
#: What a run is told that does not heed its end.
NOT_HEEDED = "did not end within"

#: All kinds, in the order in which they are let loose.
BEASTS: tuple[Beast, ...] = (
    Beast(
        name="blocks-the-loop",
        text=_BEGUN_ASYNC + "import time\nwhile True:\n  try: time.sleep(600)\n"
        "  except BaseException: pass",
        end="killed",
        told=NOT_HEEDED,
    ),
    Beast(
        name="busy-in-c",
        text="n = 9 ** 9 ** 9",
        end="fails",
        told="has used 2 s of processor time",
        limits={"cpu_s": 2, "memory_mb": 0},
    ),
    Beast(
        name="leaks-2-GiB",
        text="x = []\nwhile len(x) < 2048: x.append(bytearray(b'x' * 2**20))",
        end="fails",
        told="MemoryError",
    ),
    Beast(
        name="swallows-cancellation",
        text=_BEGUN_ASYNC + "import anyio\nwhile True:\n  try: await anyio.sleep(0.01)\n"
        "  except BaseException: pass",
        end="killed",
        told=NOT_HEEDED,
    ),
    Beast(
        name="raises-BaseException",
        text="class Odd(BaseException): pass\nraise Odd('no Exception')",
        end="fails",
        told="Odd: no Exception",
    ),
    Beast(name="sys-exit", text="import sys\nsys.exit(3)", end="fails", told="called sys.exit(3)"),
    Beast(
        name="os-exit",
        text="import os\nos._exit(7)",
        end="fails",
        told="its process ended with exit code 7, in the middle of the script",
    ),
    Beast(
        name="segfault",
        text="import ctypes\nctypes.string_at(0)",
        end="fails",
        told="its process crashed (SIGSEGV)",
    ),
    Beast(
        name="fork-bomb",
        text="import os\nwhile True:\n  try: os.fork()\n  except OSError: pass",
        end="fails",
        told="it wanted more than 64 processes, its limit",
        is_async=None,
    ),
    Beast(
        name="thread-that-never-ends",
        text="import threading, time\ndef f():\n  while True: time.sleep(0.01)\n"
        "threading.Thread(target=f).start()\nreturn 'begun'",
        end="done",
        is_async=None,
    ),
    Beast(
        name="recursion", text="def f(n): return f(n + 1)\nf(0)", end="fails", told="RecursionError"
    ),
    Beast(
        name="floods-its-output",
        text=_BEGUN + "while True: print('x' * 100)",
        end="stops",
        is_async=None,
    ),
    Beast(
        name="leaks-descriptors",
        text="x = []\nwhile True: x.append(open('/dev/null'))",
        end="fails",
        told="Too many open files",
    ),
    Beast(
        name="ignores-SIGTERM",
        text="import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        + _BEGUN
        + "time.sleep(600)",
        end="killed",
        told=NOT_HEEDED,
        is_async=None,
    ),
    Beast(
        name="closes-its-connection",
        text="import anyio, os\nos.closerange(3, 1024)\nawait _client.set(_P('zoo.x'), 1)",
        end="fails",
        told="",
    ),
    Beast(
        name="writes-many-entries",
        text="import anyio\nroot = _P('zoo.many')\n"
        "async def write(first):\n"
        "  for n in range(first, count, 7200):\n"
        "    some = range(n, min(n + 900, count))\n"
        "    await _client.batch([_client.op_set(root / i, i) for i in some])\n"
        "async with anyio.create_task_group() as tasks:\n"
        "  for first in range(0, 7200, 900): tasks.start_soon(write, first)\n"
        "return count",
        end="done",
        data={"count": 1_000_000},
    ),
    Beast(
        name="watches-everything-and-never-reads",
        text="import anyio\nfor n in range(20): await _self.watch(_P(':'), max_depth=-1)\n"
        "lines = [_client.watch(_P(':'), fetch=True) for n in range(20)]\n"
        "for line in lines: await line.__aenter__()\n"
        + _BEGUN_ASYNC
        + "await anyio.sleep_forever()",
        end="stops",
    ),
    Beast(
        name="double-fork-with-setsid",
        text="import os, time\nif os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n"
        "    os.setsid()\n    time.sleep(600)\n  os._exit(0)\nos.wait()\nreturn 'left one behind'",
        end="done",
        is_async=None,
    ),
    Beast(
        name="changes-directory",
        text="import os\nos.chdir('/'); os.umask(0o777)\nreturn os.getcwd()",
        end="done",
    ),
    Beast(
        name="changes-signal-handlers",
        text="import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n"
        "  except (OSError, ValueError): pass\n" + _BEGUN + "import time\ntime.sleep(600)",
        end="killed",
        told=NOT_HEEDED,
        is_async=None,
    ),
    Beast(
        name="patches-anyio",
        text="import anyio\nanyio.sleep = anyio.Event = anyio.create_task_group = None\n"
        "await anyio.sleep(1)",
        end="fails",
        told="TypeError",
    ),
    Beast(
        name="very-long-line-printed",
        text="import sys\nfor n in range(10): sys.stdout.write('x' * 1_000_000)\n"
        "sys.stdout.flush()\nreturn 'printed'",
        end="done",
        is_async=None,
    ),
    Beast(
        name="very-long-line-of-source",
        text="x = [" + "1, " * 200_000 + "]\nraise ValueError(len(x))",
        end="fails",
        told="200000",
    ),
    Beast(
        name="source-not-UTF-8",
        text=b"return '\xff'",
        end="waits",
        told="code is a text, not bytes",
    ),
    Beast(name="syntax-error", text="retrun 1", end="waits", told="invalid syntax"),
    Beast(
        name="missing-import",
        text="import no_such_module",
        end="fails",
        told="No module named 'no_such_module'",
    ),
    Beast(
        name="missing-requirement",
        text="return 1",
        requires=("zoo_nowhere",),
        end="waits",
        told="zoo_nowhere",
    ),
    Beast(
        name="cyclic-requires",
        text="return 1",
        modules={"zoo_a": ("zoo_b",), "zoo_b": ("zoo_a",)},
        requires=("zoo_a",),
        end="waits",
        told="zoo_a",
    ),
)
