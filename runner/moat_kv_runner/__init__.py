"""The runner: takes jobs from the tree and runs them on the nodes of a group.

`run` is a whole runner; the roots are the same as a library: `await AnyRunnerRoot.as_handler(
client, subpath=P("default"), code=cr)`. `runner` tells the way of a job in files.
"""

from moat_kv_runner.admin import CallAdmin
from moat_kv_runner.info_queue import InfoQueue
from moat_kv_runner.job import JobEntry, StateEntry
from moat_kv_runner.roots import AllRunnerRoot, AnyRunnerRoot, SingleRunnerRoot
from moat_kv_runner.runner import run

__all__ = [
    "AllRunnerRoot",
    "AnyRunnerRoot",
    "CallAdmin",
    "InfoQueue",
    "JobEntry",
    "SingleRunnerRoot",
    "StateEntry",
    "run",
]
