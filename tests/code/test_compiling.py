"""Procedures are compiled as their author wrote them."""

from __future__ import annotations

import gc
import inspect
import linecache
import textwrap
import traceback
from typing import Any

import pytest

from moat_kv import errors
from moat_kv.code import compiling


def run(text: str, variables: tuple[str, ...] = (), **values: Any) -> Any:
    return compiling.compile_procedure(text, name="t", variables=variables).bind(values)()


def test_returns_a_result() -> None:
    assert run("return 42") == 42


@pytest.mark.parametrize("text", ["", "# nothing\n", "\n\n", "'''only a docstring'''"])
def test_text_without_statements_gives_none(text: str) -> None:
    assert run(text) is None


def test_multi_line_strings_keep_their_left_margin() -> None:
    text = 'text = """first\nsecond\n  third"""\nif True:\n    return text\n'
    assert run(text) == "first\nsecond\n  third"


def test_source_may_have_any_line_endings() -> None:
    assert run("x = 1\r\nif x:\r\n    return x + 1\r\n") == 2


def test_variables_are_parameters_and_others_are_globals() -> None:
    text = "x = x + 1\nglobal y\ny = y + 1\nreturn x + y"
    assert run(text, ("x",), x=1, y=10) == 13


def test_globals_are_fresh_for_each_call() -> None:
    procedure = compiling.compile_procedure(
        "global seen\nseen = globals().get('seen', 0) + 1\nreturn seen", name="t"
    )
    assert procedure.bind({})() == 1
    assert procedure.bind({})() == 1


def test_inner_functions_see_variables_and_globals() -> None:
    assert run("def f():\n    return a + b\nreturn f()", ("a",), a=1, b=2) == 3


def test_missing_variable_is_named() -> None:
    with pytest.raises(errors.MissingVariable, match="missing variable x"):
        run("return x", ("x",))


def test_future_imports_work() -> None:
    text = '"""Doc"""\nfrom __future__ import annotations\ndef f(x: NotThere): pass\nreturn 1'
    assert run(text) == 1


def test_our_own_future_imports_are_not_inherited() -> None:
    assert run("def f(x: int): pass\nreturn f.__annotations__['x']") is int


def test_async_procedure_is_a_coroutine_function() -> None:
    procedure = compiling.compile_procedure("return 3", name="t", is_async=True)
    coroutine = procedure.bind({})()
    assert inspect.iscoroutine(coroutine)
    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    assert stopped.value.value == 3


@pytest.mark.parametrize(
    ("text", "is_async", "line", "column"),
    [
        pytest.param("a = 1\nb = (", None, 2, 5, id="unclosed"),
        pytest.param("if x:\nreturn 1", None, 2, 1, id="indentation"),
        pytest.param("x = 1\nawait f()", None, 2, 1, id="await-in-sync"),
        pytest.param("def f():\n    await g()", True, 2, 5, id="await-in-inner-sync"),
        pytest.param("x = 1\nfor i in x:\n    yield i", None, 3, 5, id="generator"),
        pytest.param("yield 1", True, 1, 1, id="async-generator"),
        pytest.param("nonlocal x", None, 1, 1, id="nonlocal"),
        pytest.param("from os import *", None, 1, None, id="star"),
        pytest.param("a\0b", None, 1, 1, id="null-byte"),
        pytest.param("x = '\ud800'", None, 1, 1, id="surrogate"),
        pytest.param("(" * 5000 + ")" * 5000, None, 1, None, id="deep"),
        pytest.param("-" * 100_000 + "1", None, 1, 1, id="deep-operators"),
    ],
)
def test_bad_text_is_refused_with_line_and_column(
    text: str, is_async: bool | None, line: int, column: int | None
) -> None:
    with pytest.raises(errors.BadCode) as caught:
        compiling.compile_procedure(text, name="some.thing", is_async=is_async)
    assert caught.value.line == line
    if column is not None:
        assert caught.value.column == column
    assert str(caught.value).startswith(f"some.thing: line {line}, column ")


@pytest.mark.parametrize("text", [None, 1, b"return 1"])
def test_code_that_is_no_text_is_refused(text: Any) -> None:
    with pytest.raises(errors.BadCode, match="code is a text, not"):
        compiling.compile_procedure(text, name="t")


@pytest.mark.parametrize(
    "variables", ["x", ["1"], ["a b"], ["class"], ["x", "x"], [1], ["\ufb01"], None]
)
def test_bad_variables_are_refused(variables: Any) -> None:
    with pytest.raises(errors.BadCode):
        compiling.compile_procedure("return 1", name="t", variables=variables)


@pytest.mark.parametrize("is_async", [0, 1, "yes"])
def test_is_async_is_true_false_or_none(is_async: Any) -> None:
    with pytest.raises(errors.BadCode, match="is_async"):
        compiling.compile_procedure("return 1", name="t", is_async=is_async)


def test_yield_in_an_inner_function_is_allowed() -> None:
    assert run("def f():\n    yield 1\nreturn list(f()) + [x for x in (i for i in [2])]") == [1, 2]


def test_traceback_shows_stored_lines_numbered_as_written() -> None:
    text = textwrap.dedent(
        """\
        # first line

        text = '''
        left
        '''
        divisor = 0
        value = 1 / divisor  # the culprit
        """
    )
    procedure = compiling.compile_procedure(text, name="some.thing", rev=7)
    with pytest.raises(ZeroDivisionError) as caught:
        procedure.bind({})()
    shown = "".join(traceback.format_exception(caught.value))
    assert 'File "<code some.thing #7>", line 7, in procedure' in shown
    assert "value = 1 / divisor  # the culprit" in shown


def test_lines_count_as_the_tokenizer_does() -> None:
    text = "a = 1  # \x0c\u2028 not line ends\nraise KeyError(a)"
    with pytest.raises(KeyError) as caught:
        run(text)
    assert "raise KeyError(a)" in "".join(traceback.format_exception(caught.value))


def test_source_lines_are_forgotten_with_the_code() -> None:
    procedure = compiling.compile_procedure("return 1", name="short.lived")
    filename = procedure.source.filename
    linecache.checkcache()
    assert linecache.getline(filename, 1) == "return 1\n"
    del procedure
    gc.collect()
    assert filename not in linecache.cache


def test_old_source_does_not_take_the_new_one_along() -> None:
    old = compiling.compile_procedure("return 1", name="replaced")
    new = compiling.compile_procedure("return 2", name="replaced")
    del old
    gc.collect()
    assert linecache.getline(new.source.filename, 1) == "return 2\n"


def test_imports_are_known() -> None:
    text = "import a.b, c\nfrom d import e\ndef f():\n    from g.h import i as j"
    procedure = compiling.compile_procedure(text, name="t")
    assert procedure.imports == {"a.b", "c", "d", "d.e", "g.h", "g.h.i"}


@pytest.mark.parametrize(
    ("text", "is_package", "found"),
    [
        pytest.param("from . import b", False, {"p", "p.b"}, id="sibling"),
        pytest.param("from .b import c", False, {"p.b", "p.b.c"}, id="in-sibling"),
        pytest.param("from . import b", True, {"p.m", "p.m.b"}, id="package"),
        pytest.param("from .. import b", True, {"p", "p.b"}, id="parent"),
        pytest.param("from .... import b", True, set(), id="beyond"),
    ],
)
def test_relative_imports_are_resolved(text: str, is_package: bool, found: set[str]) -> None:
    module = compiling.compile_module(text, name="p.m", is_package=is_package)
    assert module.imports == found
