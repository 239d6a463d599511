"""Whose turn it is: works of many requests share the readers and the model fairly, however many each one brings."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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


class PixelRoom:
    """Room for pictures that stay decoded for a while: so many pixels together, or one picture alone.

    Who waits longest is next. All who use it run in one event loop.
    """

    def __init__(self, max_pixels: int):
        self._max_pixels, self._held = max_pixels, 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Holds room for a picture of so many pixels."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, pixels))
        self._let_in()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._held -= pixels
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            turn, pixels = self._waiting[0]
            if not turn.cancelled():
                if self._held and self._held + pixels > self._max_pixels:
                    return
                self._held += pixels
                turn.set_result(None)
            self._waiting.popleft()
