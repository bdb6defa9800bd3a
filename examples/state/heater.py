"""One process: turns the heater of a room on and off, and says so.

python examples/state/heater.py hall --metrics 9101
"""

import argparse
import contextlib
import threading

import prometheus_client
from model import Thermostat

from moat_kv.state import State, attach, metrics

#: So far from the target, in degrees, it switches.
MARGIN = 0.2


def wanted(room: Thermostat) -> bool:
    """Whether the heater is to be on."""
    if room.actual is None:
        return False
    if room.heating:
        return room.actual < room.target + MARGIN
    return room.actual < room.target - MARGIN


def switch(room: Thermostat) -> None:
    """A subscriber: called with each new state, in the background thread."""
    if wanted(room) == room.heating:
        return
    with State(Thermostat.instance(room.id)) as state:
        newest = state.checkout(Thermostat, room.id)
        if wanted(newest) == newest.heating:
            return  # what we were told of is over: it was switched for a later state
        newest.heating = wanted(newest)
        state.commit(newest)
    print(f"{room.id}: heater {'on' if newest.heating else 'off'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room")
    parser.add_argument("--url", help="a server; MOAT_KV_URL, else this machine's")
    parser.add_argument("--metrics", type=int, metavar="PORT", help="for Prometheus")
    options = parser.parse_args()
    if options.metrics:
        prometheus_client.start_http_server(
            options.metrics, addr="127.0.0.1", registry=metrics.registry
        )
    with attach(options.url):
        with State() as state:
            room = state.load(Thermostat(options.room))
            state.subscribe(Thermostat.instance(options.room), switch)
        print(f"{room.id}: ready, target {room.target:g}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
