"""A group's state follows from its members and N."""

from __future__ import annotations

import pytest

from moat_kv_runner import group_state, messages

BROKEN, COMPLETE = messages.BrokenState, messages.CompleteState
PARTIAL, DETACHED = messages.PartialState, messages.DetachedState


@pytest.mark.parametrize(
    ("members", "nodes", "state"),
    [
        pytest.param(None, None, BROKEN, id="cut-off"),
        pytest.param(None, 1, BROKEN, id="cut-off-goes-before-complete"),
        pytest.param({"a"}, None, DETACHED, id="alone-without-N"),
        pytest.param({"a", "b"}, None, COMPLETE, id="two-without-N"),
        pytest.param({"a"}, 1, COMPLETE, id="alone-with-N-1"),
        pytest.param({"a"}, 2, DETACHED, id="alone-of-two"),
        pytest.param({"a", "b"}, 2, COMPLETE, id="two-of-two"),
        pytest.param({"a", "b"}, 3, PARTIAL, id="two-of-three"),
        pytest.param({"a", "b", "c"}, 2, COMPLETE, id="more-than-N"),
        pytest.param(set(), None, DETACHED, id="not-listed-yet"),
        pytest.param({"b"}, 2, COMPLETE, id="counts-itself"),
        pytest.param({"a", "b"}, 0, COMPLETE, id="N-0-is-none"),
    ],
)
def test_state_of_group(
    members: set[str] | None, nodes: int | None, state: type[messages.ActorState]
) -> None:
    assert type(group_state.judge(members, own_name="a", nodes=nodes)) is state


def test_message_carries_members_and_n() -> None:
    state = group_state.judge({"b", "a"}, own_name="a", nodes=3)
    assert state.msg == messages.GroupSeen(members=("a", "b"), nodes=3)
