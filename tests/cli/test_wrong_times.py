"""Times that do not go together keep servers and runners from starting, and are named."""

from __future__ import annotations

import pathlib

from tests.cli.processes import moat, server


def settings(place: pathlib.Path, text: str) -> str:
    file = place / "config.yaml"
    file.write_text(text)
    return str(file)


def test_a_lease_that_a_lost_leader_would_end_is_refused(tmp_path: pathlib.Path) -> None:
    file = settings(tmp_path, "server: {lease_s: 12}")
    words = ("server", "n1", "--port", "0", "--engine", "nats://127.0.0.1:9/house")
    ended = moat(tmp_path, *words, "--data", str(tmp_path / "data"), MOAT_KV_CONFIG=file)
    assert ended.returncode == 128
    assert "server.lease_s: 12 s does not go with server.renew_s, 3 s" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_runners_times_that_do_not_go_together_are_refused(tmp_path: pathlib.Path) -> None:
    with server(tmp_path, "--engine", "memory"):
        file = settings(tmp_path, "runner: {ttl_s: 2, grace_s: 3}")
        ended = moat(tmp_path, "run", "all", MOAT_KV_CONFIG=file)
        assert ended.returncode == 128
        assert "runner.grace_s: 3 s does not go with runner.ttl_s, 2 s" in ended.stderr
        assert len(ended.stderr.splitlines()) == 1
