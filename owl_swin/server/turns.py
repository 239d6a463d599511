"""Whose turn it is: works of many requests share the readers and the model fairly, however many each one brings."""

from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Lane:
    """The works of one request in one queue, one behind the other. ``end`` is where the next begins."""

    end: float = 0.0


@dataclass(slots=True)
class Turns:
    """Start-time fair queueing (Goyal et al., 1996): the work with the lowest start is next.

    A work starts where the one before it in its lane ends, but not before what is being served now. So the first work
    of a newcomer stands beside the next one of a long lane and not behind all of it, and nobody waits for ever.
    """

    now: float = field(default=0.0)

    def start(self, lane: Lane, cost: float) -> float:
        """Where a work of this cost starts; its lane then ends behind it."""
        start = max(self.now, lane.end)
        lane.end = start + cost
        return start

    def serve(self, start: float) -> None:
        """The work with this start is being served."""
        self.now = max(self.now, start)
