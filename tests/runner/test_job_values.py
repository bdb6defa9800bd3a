"""The values of jobs and states, read from entries that anybody may have written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moat_kv import P, codec, errors
from moat_kv.config import Config, Places, RunnerConfig
from moat_kv_runner import execution, job, script_config

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=4,
)
names = st.sampled_from([*job.JobSpec.__dataclass_fields__, *job.JobState.__dataclass_fields__])


def test_defaults_of_a_job() -> None:
    spec = job.parse_spec({"code": P("a")})
    assert (spec.delay, spec.backoff, spec.repeat, spec.ok_after) == (100.0, 1.1, 0.0, 0.0)
    assert (spec.target, spec.enabled, spec.data) == (None, True, {})


def test_group_gives_defaults_that_the_job_overrides() -> None:
    defaults = {"delay": 5, "repeat": 7, "code": P("not.this"), "target": 1}
    spec = job.parse_spec({"repeat": 9}, defaults)
    assert (spec.delay, spec.repeat, spec.code, spec.target) == (5.0, 9.0, None, None)


def test_code_may_be_a_text() -> None:
    assert job.parse_spec({"code": "forty.two"}).code == P("forty.two")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "a job is a mapping"),
        ([], "a job is a mapping"),
        ({"code": 1}, "code: a path is needed"),
        ({"code": "a..b"}, "code: bad path"),
        ({"target": "now"}, "target: a number is needed"),
        ({"target": float("nan")}, "target: a number is needed"),
        ({"target": True}, "target: a number is needed"),
        ({"delay": -1}, "delay: 0 or more"),
        ({"enabled": 1}, "enabled: true or false"),
        ({"data": [1]}, "data: a mapping from names"),
        ({"data": {1: 1}}, "data: a mapping from names"),
        ({"isolate": "no"}, "isolate: one of process, inline"),
        ({"on_split": "x"}, "on_split: one of each, fenced, stick"),
        ({"share": 1}, "share: a text"),
        ({"crom": "* * * * *"}, "crom: there is no such attribute of a job"),
    ],
    ids=str,
)
def test_wrong_job_is_refused_by_the_attribute(value: Any, reason: str) -> None:
    with pytest.raises(errors.BadValue, match=reason):
        job.parse_spec(value)


@given(anything | st.dictionaries(names, anything, max_size=5))
def test_any_value_is_a_job_or_refused(value: Any) -> None:
    try:
        spec = job.parse_spec(value)
    except errors.BadValue:
        return
    assert isinstance(spec, job.JobSpec)


@given(anything | st.dictionaries(names, anything, max_size=5))
def test_any_value_is_a_state(value: Any) -> None:
    state = job.parse_state(value)
    assert isinstance(state.running, bool)
    assert job.parse_state(state.as_value()) == state or state.result != state.result  # NaN


def test_state_is_stored_without_what_says_nothing() -> None:
    state = job.JobState(started=1.0, stopped=2.0, result=False, node="n1")
    assert state.as_value() == {"started": 1.0, "stopped": 2.0, "result": False, "node": "n1"}
    assert job.JobState().as_value() == {}


@pytest.mark.parametrize(
    ("started", "stopped", "running"),
    [(None, None, False), (1, None, True), (2, 1, True), (1, 1, False), (1, 2, False)],
)
def test_state_tells_whether_it_runs(started: Any, stopped: Any, running: bool) -> None:
    assert job.JobState(started=started, stopped=stopped).running is running


def test_configuration_that_scripts_see_is_read_only_and_has_no_addresses() -> None:
    settings = Config(runner=RunnerConfig(queue=7))
    view = script_config.view_of(settings, Places(), name="n1", group=P("a.b"), isolate="inline")
    assert (view.runner.queue, view["runner"]["name"], view.runner.group) == (7, "n1", P("a.b"))
    assert view.places.proc == P(":.moat.kv.code.proc")
    assert "client" not in view
    with pytest.raises(AttributeError, match="read-only"):
        view.runner.queue = 8
    with pytest.raises(AttributeError, match="read-only"):
        del view.runner
    with pytest.raises(TypeError):
        view["runner"] = 1
    with pytest.raises(AttributeError):
        _ = view.nothing
    assert len(view) == len(list(view))
    assert "n1" in repr(view)


def test_cause_is_found_in_groups_of_one() -> None:
    cause = KeyError("x")
    assert execution.cause_of(ExceptionGroup("a", [ExceptionGroup("b", [cause])])) is cause
    both = ExceptionGroup("a", [cause, ValueError()])
    assert execution.cause_of(both) is both


def test_state_travels() -> None:
    state = job.JobState(started=1.5, result={"a": [1, P("x")]}, fence=3, interrupted=True)
    assert job.parse_state(codec.unpack(codec.pack(state.as_value()))) == state
