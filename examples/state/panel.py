"""Another process: shows a room's state, and sets its target.

python examples/state/panel.py hall 21.3
"""

import argparse
import contextlib
import threading

from model import Thermostat

from moat_kv.state import RefusedValue, State, attach


def show(room: Thermostat) -> None:
    actual = "?" if room.actual is None else f"{room.actual:.1f}"
    heater = "on" if room.heating else "off"
    print(f"{room.id}: {actual} of {room.target:g} degrees, heater {heater}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("room")
    parser.add_argument("target", type=float, nargs="?", help="degrees; else only show")
    parser.add_argument("--url", help="a server; MOAT_KV_URL, else this machine's")
    parser.add_argument("--stay", action="store_true", help="go on showing changes")
    options = parser.parse_args()
    with attach(options.url):
        room = Thermostat.instance(options.room)
        with State() as state:
            state.load(Thermostat(options.room))
        if options.target is not None:
            with State(room) as state:
                thermostat = state.checkout(room)
                try:
                    thermostat.target = options.target
                except RefusedValue as exc:
                    raise SystemExit(str(exc)) from None
                state.commit(thermostat)
        show(State().checkout(room))
        if options.stay:
            State().subscribe(room, show)
            threading.Event().wait()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
