"""`owl-swin serve`: the HTTP API and the demo, until somebody stops it."""

import importlib
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from owl_swin.cli import options
from owl_swin.errors import ConfigError, MissingExtraError
from owl_swin.files import read_text


class Engine(StrEnum):
    """What runs the application."""

    UVICORN = "uvicorn"
    RAY = "ray"


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on; others than 127.0.0.1 want a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 picks a free one.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="OWL_SWIN_TOKEN",
            help="Secret that every request must carry. Others see it in the process list: "
            "better set the variable, or --token-file.",
            show_default=False,
        ),
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="File whose first line is the token.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let anybody who reaches the address use it.")] = False,
    model: Annotated[str, typer.Option(help="A name that ships, a .safetensors file, or a folder.")] = "nano",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, or auto.")] = "auto",
    runtime: options.Runtime = "auto",
    image_size: Annotated[int | None, typer.Option(help="Longer side in pixels; larger finds smaller things.")] = None,
    index: Annotated[
        str | None,
        typer.Option(metavar="ARCHIVE", help="Archive to search: archive.lance, or milvus://host:port/name."),
    ] = None,
    demo: Annotated[bool, typer.Option(help="Serve the demo's pages at /.")] = True,
    max_batch: Annotated[int, typer.Option(help="Most pictures in one pass through the model.")] = 16,
    max_wait_ms: Annotated[float, typer.Option(help="How long a picture waits for others to join it.")] = 5.0,
    queue: Annotated[int, typer.Option(help="Works that may wait; beyond that, requests get 503.")] = 256,
    cache_mb: Annotated[int, typer.Option(help="Memory for what pictures and queries became; 0 keeps nothing.")] = 256,
    max_body_mb: Annotated[int, typer.Option(help="Largest body of a request.")] = 32,
    max_pixels: Annotated[int, typer.Option(help="Largest picture.")] = 50_000_000,
    max_request_pixels: Annotated[int, typer.Option(help="Most pixels of all pictures of a request.")] = 250_000_000,
    max_images: Annotated[int, typer.Option(help="Most pictures of a request.")] = 16,
    max_tiles: Annotated[int, typer.Option(help="Most tiles of all pictures of a request.")] = 256,
    max_queries: Annotated[int, typer.Option(help="Most queries, and most texts, of a request.")] = 1500,
    timeout_s: Annotated[float, typer.Option(help="Seconds from a whole request to its answer; then 504.")] = 60.0,
    allow_url_host: Annotated[
        list[str] | None, typer.Option(metavar="HOST[:PORT]", help="Fetch pictures by URL from this host; repeat it.")
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this origin use the API, as https://app.example; repeat it."),
    ] = None,
    root_path: Annotated[
        str, typer.Option(metavar="PATH", help="Where a proxy shows this server, as in /owl.", show_default=False)
    ] = "",
    max_uploads_mb: Annotated[int, typer.Option(help="Disk for what visitors of the demo send, all together.")] = 8192,
    engine: Annotated[Engine, typer.Option(help="One process, or replicas on Ray.")] = Engine.UVICORN,
    replicas: Annotated[int, typer.Option(help="With --engine ray, how many.")] = 1,
    access_log: Annotated[bool, typer.Option("--access-log", help="A line on stderr for each request.")] = False,
) -> None:
    """Serve detection and search over HTTP, with the demo's pages.

    Example: owl-swin serve --port 8000 --index archive.lance

    Then: curl -F images=@kitchen.jpg -F query="a red mug" http://127.0.0.1:8000/v1/detect
    """
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "cachetools"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise MissingExtraError("the server", "serve") from None
    from owl_swin.server.cluster import Recipe, serve_on_ray
    from owl_swin.server.run import serve as run
    from owl_swin.server.settings import MB, ServerSettings

    if token is not None and token_file is not None:
        raise ConfigError("the token comes from --token-file, or from --token or OWL_SWIN_TOKEN, not from both")
    settings = ServerSettings(
        host=host,
        port=port,
        token=read_token(token_file) if token_file is not None else token or "",
        open_to_all=insecure,
        max_batch=max_batch,
        max_wait_s=max_wait_ms / 1000,
        queue_size=queue,
        cache_bytes=cache_mb * MB,
        max_body_bytes=max_body_mb * MB,
        max_pixels=max_pixels,
        max_request_pixels=max_request_pixels,
        timeout_s=timeout_s,
        max_images=max_images,
        max_request_tiles=max_tiles,
        max_queries=max_queries,
        max_upload_bytes=min(max_uploads_mb, 4096) * MB,
        max_uploads_bytes=max_uploads_mb * MB,
        url_hosts=tuple(allow_url_host or ()),
        allow_origins=tuple(allow_origin or ()),
        root_path=root_path,
    )
    recipe = Recipe(model, device, image_size, index, demo, settings, runtime)
    if engine is Engine.RAY:
        serve_on_ray(recipe, replicas=replicas, access_log=access_log)
    elif replicas != 1:
        raise ConfigError("--replicas needs --engine ray")
    else:
        run(recipe.make, settings, what=recipe.title, access_log=access_log)


def read_token(path: Path) -> str:
    """The first line of a file; one that cannot be read, or is empty, raises ConfigError."""
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot read the token ({getattr(error, 'strerror', None) or error})") from None
    if not lines or not lines[0].strip():
        raise ConfigError(f"{path}: the first line must be the token, it is empty")
    return lines[0].strip()
