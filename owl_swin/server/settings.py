"""The settings of a server: where it listens, who may ask, and how much of anything it takes."""

import ipaddress
import math
import os
import re
from dataclasses import dataclass

from owl_swin.errors import ConfigError
from owl_swin.image import MAX_PIXELS

MB = 2**20
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._~-]{1,255}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")
URL_HOST = re.compile(r"(?:[a-z0-9._-]{1,255}|[0-9a-f]*:[0-9a-f:.]{2,45})(:[0-9]{1,5})?")
# Ports that browsers leave away.
DEFAULT_PORTS = {"http": ":80", "https": ":443"}
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]*[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")
# A proxy may take the root path away or not; what follows it must therefore not look like it.
OWN_PATHS = ("v1", "docs", "openapi.json", "metrics", "healthz", "readyz", "gradio_api")


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
    max_request_tiles: int = 256  # of all its pictures; each is as much work as a picture
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
    # Origins whose pages may use the API, "https://app.example", or "*" for all.
    allow_origins: tuple[str, ...] = ()
    # Where a proxy shows this server, "/owl"; "" at the top.
    root_path: str = ""

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
        if self.token != self.token.strip():
            raise ConfigError("the token must not begin or end with a blank: no client could send it")
        if self.max_pixels > MAX_PIXELS:
            raise ConfigError(f"max_pixels must be at most {MAX_PIXELS}, the largest picture that is read")
        for place in self.url_hosts:
            check_url_host(place)
        if not self.token and not self.open_to_all and not is_loopback(self.host):
            raise ConfigError(
                f"other machines can reach {self.host}: give the server a token (--token-file, or OWL_SWIN_TOKEN), or "
                "say --insecure if anybody may use it"
            )
        for origin in self.allow_origins:
            check_origin(origin)
        if "*" in self.allow_origins and not self.token and not self.open_to_all:
            raise ConfigError(
                "with --allow-origin '*' every page that you visit could use this server: name the origins, give the "
                "server a token (--token-file, or OWL_SWIN_TOKEN), or say --insecure"
            )
        check_root_path(self.root_path)

    @property
    def max_json_values(self) -> int:
        """Most values, keys and brackets of a JSON body: several times what the largest request of these limits has."""
        return max(20_000, 16 * self.max_queries)

    @property
    def tiles_at_once(self) -> int:
        """Tiles of a request that wait for the model together: they share a pass, and have places in the queue."""
        return max(1, min(8, self.max_batch, self.queue_size - self.max_images))

    @property
    def n_decode_threads(self) -> int:
        """Threads that read pictures."""
        return self.decode_threads or min(4, os.cpu_count() or 1)


def check_url_host(place: str) -> None:
    """Refuses, with ConfigError, what is no host, or host:port, that a URL can have."""
    found = URL_HOST.fullmatch(place.lower())
    if not found or int((found[1] or ":0")[1:]) > 65535:
        raise ConfigError(
            f"a host that pictures may be fetched from is HOST or HOST:PORT, as in images.example:8080, without a "
            f"scheme or a path; got {place[:200]!r}"
        )


def check_origin(origin: str) -> None:
    """Refuses, with ConfigError, what no browser sends as the origin of a page."""
    if origin == "*":
        return
    found = ORIGIN.fullmatch(origin)
    if not found or int((found[2] or ":0")[1:]) > 65535:
        raise ConfigError(
            f"an origin is SCHEME://HOST or SCHEME://HOST:PORT in small letters, without a path, as in "
            f"https://app.example, or '*'; got {origin[:200]!r}"
        )
    scheme = origin.partition(":")[0]
    if found[2] and found[2] == DEFAULT_PORTS.get(scheme):
        raise ConfigError(f"browsers leave the port away that {scheme} has anyway: say {origin.removesuffix(found[2])}")


def check_root_path(path: str) -> None:
    """Refuses, with ConfigError, a path below which no proxy can show this server."""
    if path and not ROOT_PATH.fullmatch(path):
        raise ConfigError(
            f"the root path starts with / and ends without one, as in /owl or /tools/owl; got {path[:200]!r}"
        )
    if path.split("/")[1:2] and path.split("/")[1] in OWN_PATHS:
        raise ConfigError(f"the root path must not start as a path of this server does, got {path!r}; say /owl{path}")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
