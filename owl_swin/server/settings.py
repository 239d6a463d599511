"""The settings of a server: where it listens, who may ask, and how much of anything it takes."""

import ipaddress
import math
import os
from dataclasses import dataclass

from owl_swin.errors import ConfigError

MB = 2**20


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """One choice for a server; values that make no sense raise ConfigError.

    ``token`` is the secret that every request must carry; "" asks for none. ``open_to_all`` answers without a token
    also on addresses that other machines reach.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str = ""
    open_to_all: bool = False
    # Work: pictures that share a pass through the model, how long one waits for company, how many works may wait.
    max_batch: int = 16
    max_wait_s: float = 0.005
    queue_size: int = 256
    decode_threads: int = 0  # 0: as many as there are cores, at most 4
    # Passes at the same time: on a CPU two small ones, a core each, are faster than one after the other on two cores.
    model_threads: int = 0  # 0: one on an accelerator, on a CPU as many as there are cores, at most 4
    cache_bytes: int = 256 * MB
    # Limits of one request.
    max_body_bytes: int = 32 * MB
    max_pixels: int = 50_000_000
    max_request_pixels: int = 250_000_000  # of all its pictures and exemplars
    max_images: int = 16
    max_queries: int = 1500
    max_exemplars: int = 16
    max_query_chars: int = 1000
    max_top_k: int = 1000
    # Pages of the demo send a whole folder of photos as one request, of which each is at most max_body_bytes.
    max_upload_bytes: int = 4096 * MB
    # All that the pages of the demo keep on disk, of all visitors; the oldest goes first.
    max_uploads_bytes: int = 8192 * MB
    # Limits of all requests together.
    max_held_bytes: int = 512 * MB
    max_connections: int = 1024
    # Time: from a whole body to its answer, for the head of a request, between two parts of a body, for what runs when
    # the server is told to stop.
    timeout_s: float = 60.0
    head_timeout_s: float = 10.0
    body_timeout_s: float = 10.0
    stop_timeout_s: float = 30.0
    # For so long a server that is to stop still says so, instead of closing its door at once.
    drain_s: float = 1.0
    # Hosts, or host:port, that pictures may be fetched from.
    url_hosts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # What may be 0; all other numbers are at least 1, and times more than 0.
        lowest = {"port": 0, "cache_bytes": 0, "decode_threads": 0, "model_threads": 0, "max_wait_s": 0, "drain_s": 0}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            bound = lowest.get(name, 1 if isinstance(value, int) else 1e-3)
            if not bound <= value < math.inf:
                raise ConfigError(f"{name} must be a number, at least {bound}, got {value!r}")
        if self.port > 65535:
            raise ConfigError(f"port must lie in 0 to 65535, got {self.port}")
        if self.max_images >= self.queue_size:
            raise ConfigError(
                f"queue_size ({self.queue_size}) must be more than max_images ({self.max_images}), which wait together"
            )
        if self.max_upload_bytes > self.max_uploads_bytes:
            raise ConfigError(
                f"max_uploads_bytes ({self.max_uploads_bytes}) must be at least max_upload_bytes "
                f"({self.max_upload_bytes}), one of which must have room"
            )
        if self.token and (len(self.token) < 8 or not self.token.isprintable() or not self.token.isascii()):
            raise ConfigError("the token must have at least 8 characters, all of them printable ASCII")
        if not self.token and not self.open_to_all and not is_loopback(self.host):
            raise ConfigError(
                f"other machines can reach {self.host}: give the server a token (--token-file, or OWL_SWIN_TOKEN), or "
                "say --insecure if anybody may use it"
            )

    @property
    def max_json_values(self) -> int:
        """Most values, keys and brackets of a JSON body: several times what the largest request of these limits has."""
        return max(20_000, 16 * self.max_queries)

    @property
    def n_decode_threads(self) -> int:
        """Threads that read pictures."""
        return self.decode_threads or min(4, os.cpu_count() or 1)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
