"""The same application as a deployment of Ray Serve: replicas that hold no state of their own."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from owl_swin.errors import ConfigError, MissingExtraError
from owl_swin.server.run import bind
from owl_swin.server.settings import ServerSettings, is_loopback
from owl_swin.signals import kept_signals

# Of the application and its deployment on Ray.
NAME = "owl_swin"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a replica needs to make its application: the model by name or path, and the archive by URI."""

    model: str = "nano"
    device: str = "auto"
    image_size: int | None = None
    index: str | None = None
    demo: bool = False
    settings: ServerSettings = field(default_factory=ServerSettings)
    runtime: str = "auto"

    @property
    def title(self) -> str:
        """What takes a while to load, for people."""
        parts = [self.model, *(["the archive"] if self.index else []), *(["the demo"] if self.demo else [])]
        return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"

    def make(self) -> Any:
        """The application, with a detector and an open archive of its own."""
        from owl_swin.server.app import build_demo, create_app

        detector = self._detector(self.device)
        index = open_index(self.index, detector)
        demo = partial(build_demo, source=self.model)
        return create_app(detector, self.settings, index=index, demo=demo if self.demo else None)

    def check(self) -> None:
        """A model or an archive that a replica could not open raises what it would raise there."""
        detector = self._detector("cpu")
        index = open_index(self.index, detector)
        if index is not None:
            index.close()

    def _detector(self, device: str) -> Any:
        from owl_swin.detector import Detector

        # What clients ask for is kept in memory alone, not on the disk.
        return Detector.from_pretrained(
            self.model, device=device, image_size=self.image_size, runtime=self.runtime, text_cache=False
        )


def open_index(uri: str | None, detector: Any) -> Any:
    """The archive at ``uri``, or None for None."""
    if uri is None:
        return None
    from owl_swin.index.region_index import RegionIndex

    return RegionIndex.open(uri, detector)


def make_deployment(recipe: Recipe, *, replicas: int = 1, cpus: float = 1.0, gpus: float = 0.0) -> Any:
    """A Ray Serve application of ``replicas`` equal replicas; ``serve.run`` starts it.

    A replica keeps nothing that another lacks, so any of them may answer any request. An archive must therefore be one
    that they share: a Milvus server, not a folder of one machine.
    """
    if replicas < 1:
        raise ConfigError(f"replicas must be at least 1, got {replicas}")
    if recipe.demo and replicas > 1:
        raise ConfigError("the pages of the demo remember their visitors, so they need one replica; say --no-demo")
    if recipe.index is not None and replicas > 1 and not recipe.index.startswith("milvus://"):
        raise ConfigError(
            f"{recipe.index}: several replicas share an archive on a Milvus server, milvus://host:port/name"
        )
    try:
        from ray import serve
    except ImportError:
        raise MissingExtraError("--engine ray", "cluster") from None
    deployment = serve.deployment(
        name=NAME,
        num_replicas=replicas,
        max_ongoing_requests=recipe.settings.queue_size,
        max_queued_requests=recipe.settings.queue_size,
        graceful_shutdown_timeout_s=recipe.settings.stop_timeout_s,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )

    def application() -> Any:  # Ray asks for a plain function, which each replica calls
        return recipe.make()

    return deployment(serve.ingress(application)()).bind()


def serve_on_ray(recipe: Recipe, *, replicas: int, access_log: bool = False) -> None:
    """Answers until SIGTERM or SIGINT, on the Ray that is running or on a local one. Where it listens goes to stderr.

    On a Ray that others use too, nothing is deleted but this one application.
    """
    application = make_deployment(recipe, replicas=replicas)
    print(f"owl-swin: loading {recipe.title} on Ray", file=sys.stderr, flush=True)
    # Replicas fail out of sight and are tried again; what is wrong is said here, before anything is started.
    recipe.check()
    from ray import serve

    stopping = threading.Event()
    with _on_ray(access_log) as own:
        for sig in (signal.SIGTERM, signal.SIGINT):  # after Ray, whose own handler aborts the process
            signal.signal(sig, lambda *_: stopping.set())
        where = _start_serve(recipe.settings, access_log)
        try:
            serve.run(application, name=NAME, route_prefix="/", logging_config={"enable_access_log": access_log})
            print(
                f"owl-swin: listening on http://{where} ({replicas} replicas; API: /docs)", file=sys.stderr, flush=True
            )
            stopping.wait()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"Ray could not start the application: {reason}") from None
        finally:
            if own:
                serve.shutdown()
            else:
                serve.delete(NAME)


@contextlib.contextmanager
def _on_ray(log_to_driver: bool) -> Iterator[bool]:
    """A connection to Ray; says whether that Ray is this process's own, started and ended here."""
    import ray

    if ray.is_initialized():
        yield False
        return
    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": "warning"}
    with kept_signals():
        try:
            ray.init(address="auto", **options)
            own = False
        except ConnectionError:  # none runs here
            ray.init(address="local", include_dashboard=False, **options)
            own = True
    try:
        yield own
    finally:
        ray.shutdown()  # of a Ray that others use, this ends only the connection


def _start_serve(settings: ServerSettings, access_log: bool) -> str:
    """Ray Serve, and HOST:PORT where its proxy listens: where asked, or as it was started before."""
    from ray import serve
    from ray.serve.context import _get_global_client

    client = _get_global_client(raise_if_no_controller_running=False)
    if client is None:
        with bind(settings.host, settings.port) as free:  # also says whether the address can be had
            port = free.getsockname()[1]
        options: dict[str, Any] = {"host": settings.host, "port": port}
        serve.start(http_options=options, logging_config={"enable_access_log": access_log})
        return f"{settings.host}:{port}"
    host = client.http_config.host
    if not settings.token and not settings.open_to_all and not is_loopback(host):
        raise ConfigError(
            f"the Ray Serve that runs here answers on {host}, which other machines can reach: give the server a token "
            "(--token-file, or OWL_SWIN_TOKEN), or say --insecure if anybody may use it"
        )
    return f"{host}:{client.http_config.port}"
