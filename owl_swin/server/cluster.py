"""The same application as a deployment of Ray Serve: replicas that hold no state of their own."""

import signal
import threading
from dataclasses import dataclass, field
from typing import Any

from owl_swin.errors import ConfigError, MissingExtraError
from owl_swin.server.settings import ServerSettings


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a replica needs to make its application: the model by name or path, and the archive by URI."""

    model: str = "nano"
    device: str = "auto"
    image_size: int | None = None
    index: str | None = None
    demo: bool = False
    settings: ServerSettings = field(default_factory=ServerSettings)

    def make(self) -> Any:
        """The application, with a detector and an open archive of its own."""
        from owl_swin.detector import Detector
        from owl_swin.server.app import build_demo, create_app

        detector = Detector.from_pretrained(self.model, device=self.device, image_size=self.image_size)
        index = open_index(self.index, detector)
        return create_app(detector, self.settings, index=index, demo=build_demo if self.demo else None)


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
        name="owl_swin",
        num_replicas=replicas,
        max_ongoing_requests=recipe.settings.queue_size,
        max_queued_requests=recipe.settings.queue_size,
        graceful_shutdown_timeout_s=recipe.settings.stop_timeout_s,
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
    )

    def application() -> Any:  # Ray asks for a plain function, which each replica calls
        return recipe.make()

    return deployment(serve.ingress(application)()).bind()


def serve_on_ray(recipe: Recipe, *, replicas: int, cpus: float = 1.0, gpus: float = 0.0) -> None:
    """Answers until SIGTERM or SIGINT, on the Ray that is running or on a local one."""
    application = make_deployment(recipe, replicas=replicas, cpus=cpus, gpus=gpus)
    import ray
    from ray import serve

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False)
    told = threading.Event()
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: told.set())
    serve.start(http_options={"host": recipe.settings.host, "port": recipe.settings.port})
    serve.run(application, name="owl_swin", route_prefix="/")
    print(f"owl-swin: {replicas} replicas on http://{recipe.settings.host}:{recipe.settings.port}", flush=True)
    told.wait()
    serve.shutdown()
    ray.shutdown()
