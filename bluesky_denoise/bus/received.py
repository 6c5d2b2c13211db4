"""How much of a stream has come over a message bus that may lose documents."""

from dataclasses import dataclass, field

__all__ = ["ReceivedStream"]


@dataclass
class ReceivedStream:
    """What has come of a stream that is denoised. Numbers are `seq_num`."""

    name: str
    descriptor: str
    """Of what came last."""
    keys: list[str]
    """The data keys of its frames, but of those inside the events."""
    has_events: bool
    """Fly scans may have none."""
    last: int = 0
    """The event up to which all has come, or was filled in; in a fly scan, was filled in."""
    newest: tuple[float, int] = (0.0, 0)
    """Time and number of the last event; what is not newer came before the scan went back."""
    next: dict[str, int] = field(default_factory=dict)
    """By data key, the number that its next stream datum should begin with."""
    unknown: range | None = None
    """Numbers of a stream datum whose stream resource was lost, where there are no events."""
    shifts: dict[str, int] = field(default_factory=dict)
    """By stream resource, how far its indices are ahead of the numbers."""
    repeats: bool = False
    """Points were taken again: the rows of a fly scan in Tiled are not its numbers then."""
    in_vain: bool = False
    """Tiled was last waited for in vain."""

    def __post_init__(self) -> None:
        self.next = dict.fromkeys(self.keys, 1)

    def lacking(self, seq_num: int) -> list[str]:
        """Return the data keys that no stream datum came for."""
        return [key for key in self.keys if seq_num >= self.next[key]]

    def first_lost(self) -> int:
        """Return the first number that has not come whole."""
        return self.last + 1 if self.has_events else min(self.next.values())

    def begun(self) -> int:
        """Return the last number of which anything has come."""
        unknown = self.unknown.stop if self.unknown else 1
        return max(self.last, unknown - 1, *(number - 1 for number in self.next.values()))

    def go_back(self, seq_num: int) -> None:
        """Begin again at a number."""
        self.repeats = True
        self.shifts.clear()
        self.last = min(self.last, seq_num - 1)
        self.next = {key: min(number, seq_num) for key, number in self.next.items()}
