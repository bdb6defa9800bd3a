"""Long texts of code, compiled in a process of their own, one at a time.

Python's compiler lets nothing else run in its process until it is done: a second and more for some
hundred thousand characters, in a thread too. `procedures` and `modules` come here for those who
must answer meanwhile. The other process runs nothing of what it compiles either.
"""

from __future__ import annotations

import marshal
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import anyio

from moat_kv import codec, errors
from moat_kv.code import compiling

#: A text of more characters is long; ordinary code of that size takes 30 ms.
LONG = 16 * 1024
#: After so long a text is given up, in seconds.
LIMIT_S = 60.0
#: If the other process cannot be started, that is tried again so soon, in seconds.
AGAIN_S = 1.0

COMMAND = (sys.executable, "-P", "-m", "moat_kv.code.aside")


def is_long(value: Any) -> bool:
    """Whether the entry of a procedure or module has a long text."""
    text = value.get("code") if isinstance(value, dict) else None
    return isinstance(text, str) and len(text) > LONG


async def compile_procedure(
    text: str,
    *,
    name: str,
    is_async: bool | None = None,
    variables: Sequence[str] = (),
    rev: int = 0,
) -> compiling.Procedure:
    """As `compiling.compile_procedure`. Raises BadCode, also for what takes too long."""
    code, imports = await _compiled(
        "procedure", text, name=name, is_async=is_async, variables=variables, rev=rev
    )
    source = compiling.Source(text, kind="code", name=name, rev=rev)
    return compiling.Procedure(
        source, code, is_async=is_async, variables=tuple(variables), imports=imports
    )


async def compile_module(
    text: str, *, name: str, is_package: bool = False, rev: int = 0
) -> compiling.Module:
    """As `compiling.compile_module`. Raises BadCode, also for what takes too long."""
    code, imports = await _compiled("module", text, name=name, is_package=is_package, rev=rev)
    return compiling.Module(
        compiling.Source(text, kind="module", name=name, rev=rev), code, imports
    )


_COMPILERS: Mapping[str, Callable[..., compiling.Procedure | compiling.Module]] = {
    "procedure": compiling.compile_procedure,
    "module": compiling.compile_module,
}


async def _compiled(
    kind: str, text: str, *, name: str, **asked: Any
) -> tuple[types.CodeType, frozenset[str]]:
    question = codec.pack({"kind": kind, "text": text, "asked": {"name": name, **asked}})
    answer: dict[str, Any] = {}
    trouble = ""
    with anyio.move_on_after(LIMIT_S):
        while not answer:
            try:
                done = await _run(question)
            except OSError as exc:
                trouble = f": {exc}"
                await anyio.sleep(AGAIN_S)
                continue
            if done.returncode:
                # The compiler itself can be brought down, by what nests very deeply for instance.
                why = f"the compiler has ended with exit code {done.returncode}"
                raise errors.BadCode(name, why, 1, 1)
            answer = codec.unpack(done.stdout)
    if not answer:
        raise errors.BadCode(name, f"it is not compiled after {LIMIT_S:g} s{trouble}", 1, 1)
    if "bad" in answer:
        raise errors.BadCode(name, *answer["bad"])
    code: types.CodeType = marshal.loads(answer["code"])  # our own process wrote it
    return code, frozenset(answer["imports"])


async def _run(question: bytes) -> subprocess.CompletedProcess[bytes]:
    """Have the other process do its work. Raises OSError."""
    # A file, not a pipe: that breaks if the compiler is brought down while it is written to.
    with tempfile.TemporaryFile() as file:
        file.write(question)
        file.seek(0)
        return await anyio.run_process(COMMAND, stdin=file, check=False, stderr=None)


def main() -> None:
    """`python -m moat_kv.code.aside`: one question on standard input, its answer on output."""
    question = codec.unpack(sys.stdin.buffer.read())
    compiler = _COMPILERS[question["kind"]]
    answer: dict[str, Any]
    try:
        made = compiler(question["text"], **question["asked"])
    except errors.BadCode as exc:
        answer = {"bad": [exc.facts["reason"], exc.facts["line"], exc.facts["column"]]}
    else:
        answer = {"code": marshal.dumps(made.code), "imports": sorted(made.imports)}
    sys.stdout.buffer.write(codec.pack(answer))


if __name__ == "__main__":
    main()
