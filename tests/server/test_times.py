"""That a network's times go together; wrong ones are refused with a line that names both."""

from __future__ import annotations

import dataclasses

import pytest

from moat_kv import errors
from moat_kv.server import times


def test_defaults_outlast_the_loss_of_a_leader() -> None:
    times.check(times.DEFAULT_TIMES, silence_s=times.LEADER_LOSS_S)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"renew_s": 7.0}, "server.renew_s: 7 s does not go with server.lease_s, 20 s"),
        ({"lease_s": 12.0}, "server.lease_s: 12 s does not go with server.renew_s, 3 s"),
        ({"lease_s": float("inf")}, "server.lease_s: at most 3600 s"),
        ({"grace_s": 31.0}, "server.grace_s: 31 s does not go with server.ttl_s, 30 s"),
        ({"presence_s": 3.0}, "server.presence_s: 3 s does not go with server.silent_s, 5 s"),
    ],
)
def test_times_that_do_not_go_together_are_refused_by_name(
    changes: dict[str, float], named: str
) -> None:
    with pytest.raises(errors.BadConfig) as caught:
        times.check(
            dataclasses.replace(times.DEFAULT_TIMES, **changes), silence_s=times.LEADER_LOSS_S
        )
    assert named in str(caught.value)
