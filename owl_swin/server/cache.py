"""A cache that is bounded by bytes: what was not asked for the longest goes first."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """Values by content hash, of at most ``max_bytes`` together; safe to share between threads."""

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]):
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.n_bytes = 0
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Value | None:
        """The value, which then counts as the newest, or None."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                self.misses += 1
                return None
            self.hits += 1
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: bytes, value: Value) -> None:
        """Keeps a value; one that is larger than the whole cache is not kept."""
        size = self._size_of(value)
        with self._lock:
            if key in self._entries or size > self._max_bytes:
                return
            self._entries[key] = (value, size)
            self.n_bytes += size
            while self.n_bytes > self._max_bytes:
                _, (_, gone) = self._entries.popitem(last=False)
                self.n_bytes -= gone
