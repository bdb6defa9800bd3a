"""The model that the panel, the heater and the 1-wire job share; one for each room.

The job finds it as the stored module `thermostat.model`.
"""

from moat_kv.state import StateModel, attribute, between

__all__ = ["Thermostat"]


class Thermostat(StateModel):
    """The thermostat of a room, in degrees Celsius."""

    model_name = "Thermostat"

    id: str
    target: float = attribute(default=20.0, check=between(5, 30), doc="what the room should have")
    actual: float | None = attribute(default=None, doc="what it has; null: not known")
    heating: bool = attribute(default=False, doc="whether the heater is on")

    def apply(self, old: "Thermostat") -> None:
        """The valve takes half degrees."""
        self.target = round(self.target * 2) / 2
