"""A simulated 1-wire bus behind owserver's protocol, for tests and demonstrations.

    async with running_bus() as bus:
        ...                                   # a client talks to 127.0.0.1, bus.port
        bus.unplug("28.0000BEDC0001")
        bus.fail(Code.BUS_SHORT)

In the order in which a request passes: `server` (sockets, delays), `protocol` (frames), `answers`
(one request to its replies), `faults`, `tree` (paths), `devices`, `names`. `process` makes a
command of it.
"""

from moat_kv.testing.onewire.protocol import Code
from moat_kv.testing.onewire.server import DEFAULT_DEVICES, Seen, SimulatedBus, running_bus

__all__ = ["DEFAULT_DEVICES", "Code", "Seen", "SimulatedBus", "running_bus"]
