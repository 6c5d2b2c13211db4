"""Positions of motors as they were at the frame, to be read beside its denoised numbers."""

from collections.abc import Iterable
from typing import Any

from bluesky.utils import Msg, MsgGenerator, get_hinted_fields

__all__ = ["PositionReading", "read_positions"]


class PositionReading:
    """What a motor read when a frame was taken, for an event that comes later.

    Between the two there may be a pause, in which somebody moves the motor.

    Parameters
    ----------
    motor :
        Anything that can be read.
    reading :
        What it read.
    """

    parent = None

    def __init__(self, motor: Any, reading: Any) -> None:
        self.motor, self._reading = motor, reading

    def __eq__(self, other: object) -> bool:
        # A stream must be read from equal objects at each point.
        return isinstance(other, PositionReading) and other.motor is self.motor

    def __hash__(self) -> int:
        return hash((PositionReading, id(self.motor)))

    @property
    def name(self) -> str:
        """That of the motor."""
        return self.motor.name

    @property
    def hints(self) -> dict[str, Any]:
        """Those of the motor, if it has some."""
        fields = get_hinted_fields(self.motor)
        return {"fields": fields} if fields else {}

    def read(self) -> Any:
        """Return what the motor read then."""
        return self._reading

    def describe(self) -> Any:
        """Describe the motor."""
        return self.motor.describe()

    def read_configuration(self) -> Any:
        """Read the configuration of the motor."""
        return self.motor.read_configuration() if self._is_configurable else {}

    def describe_configuration(self) -> Any:
        """Describe the configuration of the motor."""
        return self.motor.describe_configuration() if self._is_configurable else {}

    @property
    def _is_configurable(self) -> bool:
        return hasattr(self.motor, "read_configuration")


def read_positions(motors: Iterable[Any]) -> MsgGenerator[list[PositionReading]]:
    """Read motors, to save their readings in a later event (a stub)."""
    positions = []
    for motor in motors:
        positions.append(PositionReading(motor, (yield Msg("read", motor))))
    return positions
