"""A cache that is bounded by bytes: what was not asked for the longest goes first."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from cachetools import LRUCache

Value = TypeVar("Value")


class ByteCache(Generic[Value]):
    """A cachetools.LRUCache of at most ``max_bytes`` that threads may share, and that counts what was found."""

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]):
        self._values: LRUCache[bytes, Value] = LRUCache(max_bytes, size_of)
        self._lock = threading.Lock()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._values)

    @property
    def n_bytes(self) -> int:
        """Of all values together."""
        return int(self._values.currsize)

    def get(self, key: bytes) -> Value | None:
        """The value, which then counts as the newest, or None."""
        with self._lock:
            value = self._values.get(key)
            self.hits += value is not None
            self.misses += value is None
            return value

    def put(self, key: bytes, value: Value) -> None:
        """Keeps a value; one that is larger than the whole cache is not kept."""
        with self._lock:
            if self._values.getsizeof(value) <= self._values.maxsize:
                self._values[key] = value
