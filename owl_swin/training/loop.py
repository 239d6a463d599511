"""The training loop: one command, one TOML; resumable to the bit, with a metrics file and a progress bar."""

import json
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor, nn

from owl_swin.checkpoint import checkpoint_path, dequantise, read_tensors, save_checkpoint
from owl_swin.config import ModelConfig, read_toml, to_mapping
from owl_swin.errors import CheckpointError, OwlSwinError
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.config import TrainConfig
from owl_swin.training.optim import build_optimizer, set_learning_rate, update_ema
from owl_swin.training.state import load_state, save_state


class Task(Protocol):
    """What is trained: batches as a function of the step, losses of a batch, and the parameters only these need."""

    extra: nn.Module

    def batch(self, step: int) -> Any: ...

    def losses(self, model: OwlSwin, encode_patches: Callable[[Tensor], Tensor], batch: Any) -> dict[str, Tensor]: ...


def train(config: TrainConfig, *, stop_after: int | None = None) -> Path:
    """Runs or resumes a run to its end (or for ``stop_after`` steps more) and returns its folder.

    The folder then holds ``state.safetensors`` (to go on), ``model.safetensors`` (the averaged weights, to use) and
    ``metrics.jsonl`` (a line every ``log_every`` steps).
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    model = OwlSwin(read_toml(config.model, ModelConfig))
    for path in config.init:
        load_init(model, path)
    if config.task == "detect" and config.detect.fresh_class_head:
        copy_pooled_to_class_head(model)
    task = build_task(config, model)
    optimizer = build_optimizer(model, config.optim, task.extra)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    state_path = output / "state.safetensors"
    parts: dict[str, Any] = {"model": model, "extra": task.extra, "ema": ema, "optimizer": optimizer}
    first = load_state(state_path, **parts) if state_path.exists() else 0
    last = max(first, config.steps if stop_after is None else min(config.steps, first + stop_after))
    encode_patches = torch.compile(model.encode_patches) if config.compile else model.encode_patches

    def save(step: int) -> None:
        save_state(state_path, **parts, step=step, settings=to_mapping(config))
        save_average(
            output / "model.safetensors", model, ema, {"name": output.name, "recipe": f"{step} steps of {output}"}
        )

    model.train()
    saved, started = time.monotonic(), time.monotonic()
    with open(output / "metrics.jsonl", "a") as metrics, _progress_bar() as bar:
        shown = bar.add_task("", total=config.steps, completed=first)
        for step, batch in zip(range(first, last), _prefetched(task, first, last), strict=True):
            torch.manual_seed(config.seed * 7_919 + step)
            factor = set_learning_rate(optimizer, config.optim, step, config.steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses = task.losses(model, encode_patches, batch)
            if not losses["loss"].isfinite():
                raise OwlSwinError(
                    f"step {step}: the loss is {losses['loss'].item()}; lower the learning rates and go on from "
                    f"the last checkpoint in {output}"
                )
            losses["loss"].backward()
            norm = torch.nn.utils.clip_grad_norm_(
                [*model.parameters(), *task.extra.parameters()], config.optim.clip_norm
            )
            optimizer.step()
            optimizer.zero_grad()
            update_ema(ema, model, config.optim.ema_decay, step)
            bar.update(shown, completed=step + 1)
            if step % config.log_every == 0 or step + 1 == last:
                rate = (step + 1 - first) / (time.monotonic() - started)
                line = {k: round(v.item(), 5) for k, v in losses.items()}
                line |= {"grad_norm": round(norm.item(), 4), "lr_factor": round(factor, 5)}
                print(json.dumps({"step": step, **line, "steps_per_s": round(rate, 3)}), file=metrics, flush=True)
                bar.update(shown, description=f"loss {line['loss']:.4f}")
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                save(step + 1)
                saved = time.monotonic()
    save(last)
    return output


def save_average(path: Path, model: OwlSwin, ema: dict[str, Tensor], card: dict[str, Any]) -> None:
    """Writes the averaged weights as a model file."""
    averaged = OwlSwin(model.config)
    averaged.load_state_dict({**model.state_dict(), **ema})
    save_checkpoint(path, averaged, card)


def copy_pooled_to_class_head(model: OwlSwin) -> None:
    """Lets every patch start from the picture-wide projection that alignment has learned."""
    model.class_head.embed.load_state_dict(model.image_projection.state_dict())


def build_task(config: TrainConfig, model: OwlSwin) -> Task:
    """The task that a run's ``task`` names."""
    if config.task == "align":
        from owl_swin.training.align import AlignTask

        return AlignTask(config, model, config.data, config.batch_size)
    from owl_swin.training.detect import DetectTask

    return DetectTask(config, model)


def load_init(model: OwlSwin, path: str) -> None:
    """Starts from weights: of a whole model, of the text encoder alone, or the average of an earlier run's state.

    Parts that the file does not hold stay as they are; a tensor of another shape, or a file without any, is refused.
    """
    tensors = dequantise(read_tensors(checkpoint_path(path))[0], path)
    own = model.state_dict()
    if any(key.startswith("ema.") for key in tensors):
        tensors = {k.removeprefix("ema."): v for k, v in tensors.items() if k.startswith("ema.")}
    elif any(key.startswith("tower.") for key in tensors):
        tensors = {f"text_encoder.{k}": v for k, v in tensors.items()}
    wrong = [k for k, v in tensors.items() if k not in own or own[k].shape != v.shape]
    if wrong or not tensors:
        raise CheckpointError(f"{path}: does not fit this model; first misfit: {wrong[:3] or 'no tensors'}")
    model.load_state_dict(tensors, strict=False)


def _prefetched(task: Task, first: int, last: int, *, ahead: int = 3) -> Iterator[Any]:
    """Batches of the steps, made by a thread while the step before runs."""
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def work() -> None:
        item: tuple[Any, Exception | None]
        for step in range(first, last):
            try:
                item = (task.batch(step), None)
            except Exception as error:  # raised again where the batch is asked for
                item = (None, error)
            while not stop.is_set():
                try:
                    ready.put(item, timeout=1)
                    break
                except queue.Full:
                    continue
            if stop.is_set() or item[1] is not None:
                return

    threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(first, last):
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch
    finally:
        stop.set()


def _progress_bar() -> Progress:
    """A bar on stderr with loss, steps and time left; silent where stderr is no terminal."""
    return Progress(
        "{task.description}",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )
