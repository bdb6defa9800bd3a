"""The text form of paths: what each text means, what is printed, what is refused and why."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from moat_kv.errors import BadPath
from moat_kv.path import P, Path
from tests.values.strategies import TEXTS, paths

#: Texts that are printed as they are read.
BOTH_WAYS: list[tuple[str, tuple[Any, ...]]] = [
    (":", ()),
    ("a", ("a",)),
    ("a.b.c", ("a", "b", "c")),
    ("a::b.c:.d.e:_f", ("a:b", "c.d", "e f")),
    ("::a", (":a",)),
    ("::", (":",)),
    (":_", (" ",)),
    (":.moat.kv", (".moat", "kv")),
    ("a.:.x", ("a", ".x")),
    ("a:1.:.x", ("a", 1, ".x")),
    ("a:1.::x", ("a", 1, ":x")),
    (":t:f:n:e", (True, False, None, "")),
    ("t.f.n.e.x.12", ("t", "f", "n", "e", "x", "12")),
    ("a:e.b", ("a", "", "b")),
    (":12:-3:0", (12, -3, 0)),
    (":1:.5:-2:.0", (1.5, -2.0)),
    (":1e+16:1e-07:1:.5e-07", (1e16, 1e-7, 1.5e-7)),
    (":1e999:-1e999", (math.inf, -math.inf)),
    (":18446744073709551615:-9223372036854775808", (2**64 - 1, -(2**63))),
    (":vtext", (b"text",)),
    (":v", (b"",)),
    (":va:.b::c:_d", (b"a.b:c d",)),
    (":y00ff.a", (b"\x00\xff", "a")),
    (":1,2", ((1, 2),)),
    (":-1,2", ((-1, 2),)),
    (":1,", ((1,),)),
    (":()", ((),)),
    (":(b'a',1)", ((b"a", 1),)),
    (":(b'a',)", ((b"a",),)),
    (":('a:_b',)", (("a b",),)),
    (":('a:.b::c',)", (("a.b:c",),)),
    (":(True,False,None)", ((True, False, None),)),
    (":((),)", (((),),)),
    (":((1,2),3)", (((1, 2), 3),)),
    (":1,(2,),()", ((1, (2,), ()),)),
    (":1:.5,1e999,-1e999", ((1.5, math.inf, -math.inf),)),
    (":-1e999,", ((-math.inf,),)),
    (":(\"it's\",'\\n\\x00\\\\')", (("it's", "\n\x00\\"),)),
    ("a:1:t.b", ("a", 1, True, "b")),
    ("tab\there", ("tab\there",)),
    ("line\nhere.\x00", ("line\nhere", "\x00")),
    ("größe.温度.🌡", ("größe", "温度", "🌡")),
    ("'quoted'.(a,b)", ("'quoted'", "(a,b)")),
]

#: Texts that are read, but printed in another way.
READ_ONLY: list[tuple[str, str]] = [
    ("a b", "a:_b"),
    (":xAB", ":171"),
    (":xab:x-10", ":171:-16"),
    (":b01:b-11", ":1:-3"),
    (":sYWI=", ":vab"),
    (":sAP8=", ":y00ff"),
    (":s", ":v"),
    (":y6162", ":vab"),
    (":yFF", ":yff"),
    (":va b", ":va:_b"),
    (":0x1F:0o17:0b11:1_000", ":31:15:3:1000"),
    (":+5:+5:.0", ":5:5:.0"),
    (":1:.", ":1:.0"),
    (":1e3", ":1000:.0"),
    (":-0:.0", ":0:.0"),
    (":(:.5,)", ":0:.5,"),
    (":1, 2", ":1,2"),
    (":(1,2)", ":1,2"),
    (":1,2,", ":1,2"),
    (":[1,[2]]", ":1,(2,)"),
    (":[1]", ":1,"),
    (":[]", ":()"),
    (":(1)", ":1"),
    (":'text':\"x\"", "text.x"),
    (":''", ":e"),
    (":b'\\xff'", ":yff"),
    (":'\\u00e9\\U0001f321\\t'", "é🌡\t"),
    (":True:False:None", ":t:f:n"),
    (":1e400", ":1e999"),
    (":-1e999", ":-1e999"),
    ("e\u0301", "\u00e9"),
]

#: Texts that mean nothing, with what the refusal says.
REFUSED: list[tuple[str, str]] = [
    ("", "the root is written as a lone colon"),
    (".", "at position 0: an empty element; write :e for the empty string"),
    ("a..b", "at position 2: an empty element; write :e for the empty string"),
    (".a", "at position 0: an empty element; write :e for the empty string"),
    ("a.", "at position 2: an empty element; write :e for the empty string"),
    ("a.:1", "at position 2: an empty element; a colon takes the dot's place"),
    ("a.:", "at position 2: an empty element; a colon takes the dot's place"),
    ("a:", "at position 2: nothing after the colon; after a colon comes one of : . _"),
    (":1:", "at position 3: nothing after the colon"),
    ("a:q", "at position 2: unknown escape :q; after a colon comes one of : . _ (an escape)"),
    ("ab:zoo.c", "at position 3: unknown escape :z;"),
    ("a:*", "at position 2: not a literal"),
    (":ta", "at position 1: nothing may follow :t"),
    (":nothing", "nothing may follow :n"),
    (":t1", "nothing may follow :t"),
    (":x", "hex digits after :x"),
    (":xfg", "hex digits after :x"),
    (":x0x1", "hex digits after :x"),
    (":x_1", "hex digits after :x"),
    (":x\u0661", "hex digits after :x"),
    (":b2", "binary digits after :b"),
    (":b", "binary digits after :b"),
    (":x" + "f" * 17, "an integer must be within"),
    (":x" + "f" * 8000, "hex digits after :x"),
    (":vé", "only ASCII after :v"),
    (":yf", "pairs of hex digits after :y"),
    (":yfg", "pairs of hex digits after :y"),
    (":y6 1", "pairs of hex digits after :y"),
    (":sYWI", "base64 with its padding after :s"),
    (":s!", "base64 with its padding after :s"),
    (":sé", "base64 with its padding after :s"),
    (":1a", "not a literal"),
    (":1 2", "not a literal"),
    (":1or 2", "not a literal"),
    (":007", "not a literal"),
    (":1_", "not a literal"),
    (":1j", "not a literal"),
    (":--1", "not a literal"),
    (":1+1", "not a literal"),
    (":,", "not a literal"),
    (":1,,2", "not a literal"),
    (":(", "not a literal"),
    (":(1", "not a literal"),
    (":(1]", "not a literal"),
    (":(,)", "not a literal"),
    (":)", "not a literal"),
    (":1)", "not a literal"),
    (":{1}", "not a literal"),
    (":'a", "not a literal"),
    (":'a' 'b'", "not a literal"),
    (":'\\d'", "not a literal"),
    (":'\\N{DIGIT ONE}'", "not a literal"),
    (":'\\U00110000'", "not a literal"),
    (":'a\nb'", "not a literal"),
    (":b'é'", "not a literal"),
    (":b'\\u0041'", "not a literal"),
    (":'''a'''", "not a literal"),
    (":Trueish", "not a literal"),
    (":(nan,)", "not a literal"),
    (":(__import__('os'),)", "not a literal"),
    (":\u0661", "not a literal"),
    (":99999999999999999999", "an integer must be within"),
    (":" + "9" * 5000, "longer than any element"),
    ("a\ud800", "lone surrogate"),
    (":'\\ud800'", "lone surrogate"),
    (":'\ud800'", "not a literal"),
    ("x" * 1022, "at most 1024 packed bytes"),
    ("x" * 8193, "longer than 8192 characters"),
    (".".join("a" * 65), "at most 64 elements"),
    (":" + "(" * 4000, "nest 32 deep"),
]


def _ids(rows: list[tuple[str, Any]]) -> list[str]:
    return [f"{number}-{row[0][:20]!a}" for number, row in enumerate(rows)]


@pytest.mark.parametrize(("text", "elements"), BOTH_WAYS, ids=_ids(BOTH_WAYS))
def test_a_text_means_these_elements_and_is_printed_so(
    text: str, elements: tuple[Any, ...]
) -> None:
    path = P(text)
    assert path == Path(*elements)
    assert [type(element) for element in path] == [type(element) for element in elements]
    assert str(path) == text


@pytest.mark.parametrize(("text", "printed"), READ_ONLY, ids=_ids(READ_ONLY))
def test_another_way_of_writing_is_read(text: str, printed: str) -> None:
    assert str(P(text)) == printed
    assert P(printed) == P(text)


@pytest.mark.parametrize(("text", "reason"), REFUSED, ids=_ids(REFUSED))
def test_a_text_that_means_nothing_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(BadPath) as caught:
        P(text)
    assert reason in caught.value.reason
    assert len(str(caught.value)) < 600
    assert str(caught.value).encode("utf-8")


def test_the_position_of_an_error_is_a_fact_too() -> None:
    with pytest.raises(BadPath, match="position 5") as caught:
        P("abcd:qq")
    assert caught.value.position == 5
    assert caught.value.text == "abcd:qq"


@pytest.mark.parametrize("other", [None, 1, b"a", ["a"], Path("a")], ids=repr)
def test_what_is_no_text_is_a_type_error(other: Any) -> None:
    with pytest.raises(TypeError, match="a path's text is a str"):
        P(other)


@given(paths())
@example(Path(*[False] * 64))
@example(Path((False,) * 1021))
@example(Path((None,) * 1021))
@example(Path((5e-324,) * 112))
@example(Path(("\x00" * 1015,)))
@example(Path(b"\x00" * 1021))
@example(Path((b"\xff" * 1015,)))
@example(Path("." * 1021))
@example(Path((".\\" * 500,)))
@example(Path(("\u2028" * 338,)))
def test_printed_and_parsed_is_the_same_path(path: Path) -> None:
    back = P(str(path))
    assert back == path
    assert str(back) == str(path)
    assert back.packed == path.packed


def _path_or_none(text: str) -> Path | None:
    try:
        return P(text)
    except BadPath as error:
        if not (error.reason and str(error).encode("utf-8")):
            raise AssertionError("a refusal without a reason") from error
        return None


@given(st.one_of(TEXTS, st.text(alphabet=":.,()'\"\\xbvystfn01e-+_TrueFalsNo []", max_size=20)))
def test_any_text_is_a_path_or_refused_and_nothing_else(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = _path_or_none(text)
    assert path is None or P(str(path)) == path


@given(st.text(alphabet=":.'\"\\ub(,)\ud800\x00\r\n", max_size=12))
def test_texts_with_surrogates_and_controls_are_paths_or_refused(text: str) -> None:
    path = _path_or_none(text)
    assert path is None or P(str(path)) == path


def test_a_path_shows_itself_as_the_text_to_type() -> None:
    assert repr(P("a:1")) == "P('a:1')"
    assert repr(P(":.moat.x:_y")) == "P(':.moat.x:_y')"
    assert repr(Path()) == "P(':')"


def test_a_bad_element_is_named_together_with_its_text() -> None:
    with pytest.raises(BadPath, match="99999999999999999999: an integer must be within"):
        P("a:99999999999999999999")
