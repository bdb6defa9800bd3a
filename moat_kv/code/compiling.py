"""Text to code: procedures and modules, compiled as their author wrote them.

`procedures` and `modules` call it for what they mirror, the command line for a check before it
stores. A procedure's text is the body of a function; it is wrapped in its syntax tree, so that
multi-line strings keep their left margin and line numbers stay the author's. The text is shown to
`linecache` for as long as the code lives, so that tracebacks show stored lines. Nothing here runs
what it compiles.
"""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import io
import keyword
import linecache
import types
import unicodedata
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from moat_kv import errors

#: What stored code has as its builtins, where that is not Python's own: those who try a script out
#: give it another clock so.
BUILTINS: ContextVar[Mapping[str, Any] | None] = ContextVar("BUILTINS", default=None)

#: The name that a procedure's frame has in a traceback.
FRAME_NAME = "procedure"

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Source:
    """A stored text under the name that tracebacks use.

    `filename` tells apart the revisions of one text, because code of an old one may still run. The
    lines are known to `linecache` until the source is garbage.
    """

    def __init__(self, text: str, *, kind: str, name: str, rev: int = 0) -> None:
        self.text = text
        self.name = name
        self.rev = rev
        self.filename = f"<{kind} {name} #{rev}>" if rev else f"<{kind} {name}>"
        # Universal newlines, as the tokenizer counts lines; str.splitlines knows more of them.
        lines = list(io.StringIO(text, newline=None))
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        # Without a time of change, linecache never looks for a file of that name.
        cached = (len(text), None, lines, self.filename)
        linecache.cache[self.filename] = cached
        weakref.finalize(self, _forget, self.filename, cached)


def is_stored(filename: str) -> bool:
    """Whether a frame's file name is a `Source`'s."""
    return filename.startswith(("<code ", "<module "))


def is_raised_by_stored(exc: BaseException) -> bool:
    """Whether it was a stored text itself that raised this, not what it has called."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and is_stored(trace.tb_frame.f_code.co_filename)


def _forget(filename: str, cached: tuple[Any, ...]) -> None:
    if linecache.cache.get(filename) is cached:
        del linecache.cache[filename]


class Procedure:
    """A compiled procedure. `bind` makes a callable of it, with globals of its own each time."""

    __slots__ = ("code", "imports", "is_async", "name", "source", "variables")

    def __init__(
        self,
        source: Source,
        code: types.CodeType,
        *,
        is_async: bool | None,
        variables: tuple[str, ...],
        imports: frozenset[str],
    ) -> None:
        self.source = source
        self.name = source.name
        self.is_async = is_async  # None: quick synchronous; False: for a worker thread
        self.variables = variables
        #: Dotted names of what its import statements may load.
        self.imports = imports
        self.code = code

    def bind(self, values: Mapping[str, Any]) -> Callable[[], Any]:
        """The procedure with these values as its globals, the `variables` as parameters.

        Raises MissingVariable.
        """
        for name in self.variables:
            if name not in values:
                raise errors.MissingVariable(name, self.name)
        namespace = {
            **values,
            "__builtins__": BUILTINS.get() or builtins,
            "__name__": self.name,
            "__file__": self.source.filename,
            # Whatever still runs with these globals keeps its lines known.
            "__source__": self.source,
        }
        function = types.FunctionType(self.code, namespace)
        return functools.partial(function, *(values[name] for name in self.variables))


def compile_procedure(
    text: Any,
    *,
    name: str,
    is_async: bool | None = None,
    variables: Sequence[str] = (),
    rev: int = 0,
) -> Procedure:
    """Compile the body of a function.

    `name` is what messages and tracebacks call it. Raises BadCode with line and column, from 1.
    """
    checked = _checked_variables(variables, name)
    if is_async is not None and not isinstance(is_async, bool):
        raise errors.BadCode(name, "is_async is true, false or none", 1, 1)
    source, tree = _parse(text, kind="code", name=name, rev=rev)
    imports = frozenset(_imports(tree, package=""))
    wrapped = _wrap(tree, bool(is_async), checked)
    module = _compile(wrapped, source)
    code = next(
        each
        for each in module.co_consts
        if isinstance(each, types.CodeType) and each.co_name == FRAME_NAME
    )
    if code.co_flags & _GENERATOR:
        line, column = _first_yield(tree)
        raise errors.BadCode(name, "a procedure returns its result, it cannot yield", line, column)
    return Procedure(source, code, is_async=is_async, variables=checked, imports=imports)


class Module:
    """A compiled module's code and what its import statements may load."""

    __slots__ = ("code", "imports", "source")

    def __init__(self, source: Source, code: types.CodeType, imports: frozenset[str]) -> None:
        self.source = source
        self.code = code
        self.imports = imports


def compile_module(text: Any, *, name: str, is_package: bool = False, rev: int = 0) -> Module:
    """Compile a module; `name` is its dotted name. Raises BadCode."""
    source, tree = _parse(text, kind="module", name=name, rev=rev)
    package = name if is_package else name.rpartition(".")[0]
    return Module(source, _compile(tree, source), frozenset(_imports(tree, package=package)))


def _checked_variables(variables: Any, name: str) -> tuple[str, ...]:
    if isinstance(variables, str) or not isinstance(variables, Sequence):
        raise errors.BadCode(name, "vars is a list of names", 1, 1)
    for each in variables:
        plain = isinstance(each, str) and each.isidentifier() and not keyword.iskeyword(each)
        if not plain or unicodedata.normalize("NFKC", each) != each:
            raise errors.BadCode(name, f"{each!r} cannot be a variable's name", 1, 1)
    if len(set(variables)) != len(variables):
        raise errors.BadCode(name, "a variable comes twice in vars", 1, 1)
    return tuple(variables)


def _parse(text: Any, *, kind: str, name: str, rev: int) -> tuple[Source, ast.Module]:
    if not isinstance(text, str):
        raise errors.BadCode(name, f"code is a text, not {type(text).__name__}", 1, 1)
    source = Source(text, kind=kind, name=name, rev=rev)
    with _translated(name):
        return source, ast.parse(text, source.filename)


def _compile(tree: ast.Module, source: Source) -> types.CodeType:
    with _translated(source.name):
        # dont_inherit: this file's own __future__ imports are nobody else's.
        code: types.CodeType = compile(tree, source.filename, "exec", dont_inherit=True)
    return code


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Turns what the compiler raises into BadCode."""
    try:
        yield
    except SyntaxError as exc:
        line, column = max(1, exc.lineno or 1), max(1, exc.offset or 1)
        raise errors.BadCode(name, exc.msg, line, column) from exc
    except ValueError as exc:  # null bytes, lone surrogates
        raise errors.BadCode(name, str(exc), 1, 1) from exc
    except (RecursionError, MemoryError) as exc:
        raise errors.BadCode(name, "nested too deeply", 1, 1) from exc


def _wrap(tree: ast.Module, is_async: bool, variables: tuple[str, ...]) -> ast.Module:
    """A module that defines one function with the given body.

    Imports from `__future__` are allowed only in front of everything, so they stay outside.
    """
    word = "async def" if is_async else "def"
    template = ast.parse(f"{word} {FRAME_NAME}({', '.join(variables)}): pass")
    function = template.body[0]
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    body = list(tree.body)
    futures: list[ast.stmt] = []
    docstring = body[:1] if body and _is_text(body[0]) else []
    rest = body[len(docstring) :]
    while rest and isinstance(rest[0], ast.ImportFrom) and rest[0].module == "__future__":
        futures.append(rest.pop(0))
    function.body = [*docstring, *rest] or function.body
    template.body = [*futures, function]
    return template


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _first_yield(tree: ast.Module) -> tuple[int, int]:
    """Where the first `yield` of the outermost function is."""
    inner = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
    found: list[tuple[int, int]] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Yield | ast.YieldFrom):
            found.append((node.lineno, node.col_offset + 1))
        if not isinstance(node, inner):
            waiting.extend(ast.iter_child_nodes(node))
    return min(found, default=(1, 1))


def _imports(tree: ast.Module, *, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".") if package else []
                keep = len(parents) - (node.level - 1)
                if keep < 1:
                    continue  # beyond the top; importing it will say so
                base = ".".join([*parents[:keep], *([base] if base else [])])
            yield base
            for alias in node.names:
                yield f"{base}.{alias.name}"
