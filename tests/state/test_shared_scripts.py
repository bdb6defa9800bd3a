"""Scripts that share models: they end, and they fork."""

from __future__ import annotations

import subprocess
import sys

from moat_kv.state import Models, State, attach
from moat_kv.testing.server import RunningServer
from tests.state.models import Counter
from tests.state.sharing import load

_FORGETFUL = """
import sys
from moat_kv.state import State, StateModel, attach
class Counter(StateModel):
    n: int = 0
attach(sys.argv[1])
with State() as state:
    state.load(Counter())
    state.subscribe(Counter, lambda counter: print(counter.n, flush=True))
with State(Counter) as state:
    state.commit(Counter(n=3))
"""


def test_a_script_that_forgets_to_detach_ends_all_the_same(served: RunningServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _FORGETFUL, served.url], capture_output=True, text=True, timeout=50
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("3\n", "", 0)
    # Its lock went at once, not with its session, which outlives it by 10 s and more.
    models = Models()
    with attach(served.url, within=models):
        load(models)
        with State(Counter, within=models, timeout_s=5):
            pass


_FORKING = """
import os, sys
from moat_kv.state import Detached, State, StateModel, attach

class Counter(StateModel):
    n: int = 0

def bump():
    with State(Counter) as state:
        counter = state.checkout(Counter)
        counter.n += 1
        state.commit(counter)

attach(sys.argv[1])
with State() as state:
    state.load(Counter())
bump()
if os.fork() == 0:
    try:
        bump()
    except Detached as exc:
        print(exc)
    with attach(sys.argv[1]):
        bump()
    sys.exit(0)
os.wait()
bump()
print(State().checkout(Counter).n)
"""


def test_a_forked_process_attaches_anew(served: RunningServer) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _FORKING, served.url],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.stderr == ""
    said, n = ended.stdout.splitlines()
    assert "this process was forked; attach" in said
    assert n == "3"
