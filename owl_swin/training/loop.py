"""The training loop: one command, one TOML, one process or many; resumable to the bit."""

import math
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from owl_swin.config import ModelConfig, read_toml, to_mapping
from owl_swin.errors import OwlSwinError
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.files import make_folder, remove_parts
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.align import AlignTask
from owl_swin.training.config import TrainConfig
from owl_swin.training.detect import DetectTask
from owl_swin.training.distributed import Process, mean_over_processes, share, started_process, whole
from owl_swin.training.initial import blended, load_init
from owl_swin.training.journal import Journal
from owl_swin.training.optim import build_optimizer, learning_rates, part_of, set_learning_rate, update_ema
from owl_swin.training.preview import draw_preview
from owl_swin.training.state import RunState, load_state, save_state


class Task(Protocol):
    """What is trained: batches as a function of their index, losses of a batch, and the parameters only these need."""

    @property
    def extra(self) -> nn.Module: ...

    def batch(self, index: int) -> Any: ...

    def losses(self, model: OwlSwin, encode_patches: Callable[[Tensor], Tensor], batch: Any) -> dict[str, Tensor]: ...


class TrainStep(nn.Module):
    """Model and task as one module, so that its gradients can be averaged over processes."""

    def __init__(self, model: OwlSwin, task: Task, encode_patches: Callable[[Tensor], Tensor]):
        super().__init__()
        self.model, self.extra = model, task.extra
        self._task, self._encode_patches = task, encode_patches

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self._task.losses(self.model, self._encode_patches, batch)


def train(config: TrainConfig, *, stop_after: int | None = None, allow_changes: bool = False) -> Path:
    """Runs or resumes a run to its end (or for ``stop_after`` steps more) and returns its folder.

    The folder then holds ``state.safetensors`` (to go on), ``model.safetensors`` (the averaged weights, to use) and
    ``metrics.jsonl`` (a line every ``log_every`` steps). A run goes on with the settings that it began with, or with
    others where ``allow_changes`` says so. Under `torchrun` the processes share the work.
    """
    with started_process(config.device) as process:
        return _train(config, process, stop_after, allow_changes)


def _train(config: TrainConfig, process: Process, stop_after: int | None, allow_changes: bool) -> Path:
    output = Path(config.output)
    make_folder(output)
    if process.first:
        remove_parts(output)
    torch.manual_seed(config.seed)
    model = OwlSwin(read_toml(config.model, ModelConfig)).to(process.device)
    for path in config.init:
        load_init(model, path)
    if config.logit_scale:
        torch.nn.init.constant_(model.alignment_log_scale, math.log(config.logit_scale))
    old = {name: p.detach().clone() for name, p in model.named_parameters()} if config.blend else {}
    if config.task == "detect" and config.detect.fresh_class_head:
        copy_pooled_to_class_head(model)
    task = build_task(config, model, process)
    task.extra.to(process.device)
    freeze(model, config)
    encode_patches = torch.compile(model.encode_patches) if config.compile else model.encode_patches
    step_module = share(TrainStep(model, task, encode_patches), process, config.shard)
    optimizer = build_optimizer(model, config.optim, task.extra)
    ema = {name: p.detach().clone() for name, p in model.named_parameters()}
    run = RunState(model, task.extra, ema, optimizer)
    state_path = output / "state.safetensors"
    settings = to_mapping(config) | {"model_config": to_mapping(model.config), "processes": process.world}
    first = load_state(state_path, run, settings=settings, allow_changes=allow_changes) if state_path.exists() else 0
    last = max(first, config.steps if stop_after is None else min(config.steps, first + stop_after))
    trained = [p for group in optimizer.param_groups for p in group["params"]]

    def save(step: int) -> None:
        save_state(state_path, run, step=step, settings=settings, process=process)
        weights = {name: whole(value) for name, value in ema.items()}
        if process.first:
            save_average(output / "model.safetensors", config, blended(weights, old, config.blend) if old else weights)

    def journal() -> Journal | nullcontext:
        if not process.first:
            return nullcontext()
        return Journal(output, first=first, steps=config.steps, tensorboard=config.tensorboard)

    model.train()
    saved = started = time.monotonic()
    # Drawn before the thread that draws the others starts: a set is read by one thread at a time.
    sample = task.batch(0) if config.preview_every else None
    batches = _prefetched(task, first * config.accumulate, last * config.accumulate)
    with journal() as book:
        for step in range(first, last):
            torch.manual_seed(config.seed * 7_919 + step + 104_729 * process.rank)
            factor = set_learning_rate(optimizer, config.optim, step, config.steps)
            losses = _gradients(step_module, batches, config, process)
            if not losses["loss"].isfinite():
                raise OwlSwinError(
                    f"step {step}: the loss is {losses['loss'].item()}; lower the learning rates and go on from "
                    f"the last checkpoint in {output}"
                )
            norm = whole(torch.nn.utils.clip_grad_norm_(trained, config.optim.clip_norm))
            optimizer.step()
            optimizer.zero_grad()
            update_ema(ema, model, config.optim.ema_decay, step)
            if book:
                book.advance(step + 1)
            if step % config.log_every == 0 or step + 1 == last:
                numbers = {k: round(v, 5) for k, v in mean_over_processes(losses, process).items()}
                numbers |= {"grad_norm": round(norm.item(), 4), "lr_factor": round(factor, 5)}
                if book:
                    rate = (step + 1 - first) / (time.monotonic() - started)
                    book.write(step, numbers | {"steps_per_s": round(rate, 3)})
            if book and isinstance(task, DetectTask) and _is_turn(step + 1, config.preview_every):
                book.picture(step, draw_preview(output / f"found-{step + 1}.jpg", model, ema, task, sample))
            if _due(saved, config.checkpoint_minutes, process):
                save(step + 1)
                saved = time.monotonic()
    save(last)
    return output


def _gradients(step_module: nn.Module, batches: Iterator[Any], config: TrainConfig, process: Process) -> dict:
    """Adds up the gradients of ``accumulate`` passes; returns the mean of their losses."""
    mean: dict[str, Tensor] = {}
    for turn in range(config.accumulate):
        batch = next(batches)
        together = turn + 1 == config.accumulate or not hasattr(step_module, "no_sync")
        with nullcontext() if together else step_module.no_sync():  # type: ignore[operator]
            with torch.autocast(process.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                losses = step_module(batch)
            (losses["loss"] / config.accumulate).backward()
        for name, value in losses.items():
            mean[name] = mean.get(name, 0.0) + value.detach() / config.accumulate
    return mean


def _is_turn(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _due(saved: float, minutes: float, process: Process) -> bool:
    """Whether it is time to save: the first process's clock decides for all."""
    due = time.monotonic() - saved > 60 * minutes
    if process.world == 1:
        return due
    flag = torch.tensor(float(due), device=process.device)
    torch.distributed.broadcast(flag, 0)
    return bool(flag)


def freeze(model: OwlSwin, config: TrainConfig) -> None:
    """Parts whose learning rate is 0 stop requiring gradients."""
    rates = learning_rates(config.optim)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(rates[part_of(name)] > 0)


def save_average(path: Path, config: TrainConfig, weights: dict[str, Tensor]) -> None:
    """Writes averaged weights as a model file; what learned to detect is used at the size it learned at."""
    model_config = read_toml(config.model, ModelConfig)
    if config.task == "detect":
        model_config = replace(model_config, image_size=config.image_size)
    averaged = OwlSwin(model_config)
    averaged.load_state_dict({k: weights[k].cpu().reshape(v.shape) for k, v in averaged.named_parameters()})
    output = Path(config.output)
    save_checkpoint(path, averaged, {"name": output.name, "recipe": f"`owl-swin train` into {output}"})


def copy_pooled_to_class_head(model: OwlSwin) -> None:
    """Lets every patch start from the picture-wide projection that alignment has learned."""
    model.class_head.embed.load_state_dict(model.image_projection.state_dict())


def build_task(config: TrainConfig, model: OwlSwin, process: Process) -> Task:
    """The task that a run's ``task`` names."""
    if config.task == "align":
        return AlignTask(config, model, config.data, config.batch_size, process)
    return DetectTask(config, model, process)


def _prefetched(task: Task, first: int, last: int, *, ahead: int = 3) -> Iterator[Any]:
    """Batches in order, made by a thread while the ones before are learned from."""
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    stop = threading.Event()

    def work() -> None:
        item: tuple[Any, Exception | None]
        for index in range(first, last):
            try:
                item = (task.batch(index), None)
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
