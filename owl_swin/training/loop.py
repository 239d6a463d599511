"""The training loop: any task, one process or many; resumable to the bit."""

import time
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from owl_swin.config import ModelConfig, read_toml, to_mapping
from owl_swin.errors import ConfigError, OwlSwinError
from owl_swin.files import make_folder, remove_parts, write_image
from owl_swin.signals import held_signals
from owl_swin.training.batches import prefetched
from owl_swin.training.config import OptimConfig, TrainConfig
from owl_swin.training.distributed import (
    Process,
    largest_of_processes,
    mean_over_processes,
    share,
    share_average,
    started_process,
    whole,
)
from owl_swin.training.initial import blended, digest_of, old_weights
from owl_swin.training.journal import Journal
from owl_swin.training.optim import average_of, build_optimizer, clip_gradients, freeze, set_learning_rate
from owl_swin.training.state import START, RunState, check_settings, check_start, load_state, only_run, save_state
from owl_swin.training.streams import stream_seed
from owl_swin.training.tasks import Task
from owl_swin.training.tasks.build import build_task
from owl_swin.training.tasks.image import start_model

STATE = "state.safetensors"
STOPPING = (
    "owl-swin: stopping after this step, to write a checkpoint; a second Ctrl-C loses the steps since the last one"
)


@dataclass(frozen=True, slots=True)
class LoopConfig:
    """What the loop itself needs to know of a run; TrainConfig says what each means.

    ``evaluate_every`` steps and at the end, the task measures itself on what it keeps back (0: never).
    """

    output: str
    steps: int
    optim: OptimConfig
    seed: int = 0
    accumulate: int = 1
    workers: int = 0
    precision: str = "float32"
    shard: str = "ddp"
    blend: float = 0.0
    tensorboard: bool = False
    preview_every: int = 0
    evaluate_every: int = 0
    log_every: int = 20
    checkpoint_minutes: float = 5.0

    @classmethod
    def of(cls, config: TrainConfig) -> "LoopConfig":
        """The loop's part of a run's settings."""
        own = {field.name: getattr(config, field.name) for field in fields(cls) if hasattr(config, field.name)}
        return cls(**own)


class RunConfig(Protocol):
    """Settings of any run, frozen: those of a task, and these."""

    @property
    def model(self) -> str: ...

    @property
    def output(self) -> str: ...


class TrainStep(nn.Module):
    """Model and task as one module, so that its gradients can be averaged over processes."""

    def __init__(self, task: Task):
        super().__init__()
        self.model, self.extra = task.model, task.extra
        self._task = task

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self._task.step_losses(batch)


def train(config: TrainConfig, *, stop_after: int | None = None, allow_changes: bool = False) -> Path:
    """Runs or resumes a run to its end (or for ``stop_after`` steps more) and returns its folder.

    The folder then holds ``state.safetensors`` (to go on), ``model.safetensors`` (the averaged weights, to use) and
    ``metrics.jsonl`` (a line every ``log_every`` steps). A run goes on with the settings that it began with, or with
    others where ``allow_changes`` says so. Under `torchrun` the processes share the work.

    On Ctrl-C, SIGTERM or SIGHUP it finishes its step and writes all three before the signal takes its course.
    """
    if config.task == "probe":
        raise ConfigError("task = 'probe' trains no model: evaluation.probe.run_probe, or `owl-swin train`, runs it")
    with started_process(config.device) as process:
        settings = begin_run(config, process, allow_changes)
        with only_run(Path(config.output), process):
            model, given = start_model(config, process.device)
            task = build_task(config, model, process)
            settings["sets"] = task.sets_as_read()
            old = old_weights(model, given)
            settings[START] = check_start(Path(config.output) / STATE, digest_of(old), blend=config.blend > 0)
            return run_task(
                task,
                LoopConfig.of(config),
                process,
                settings,
                old=old,
                stop_after=stop_after,
                allow_changes=allow_changes,
            )


def begin_run(config: RunConfig, process: Process, allow_changes: bool) -> dict[str, Any]:
    """Makes a run's folder and returns the settings that its state keeps, with those of its model. What cannot go on
    is refused here, before any data is read."""
    folder = Path(config.output)
    make_folder(folder)
    model = read_toml(config.model, ModelConfig)
    settings = to_mapping(config) | {"model_config": to_mapping(model), "processes": process.world}
    if not allow_changes:
        check_settings(folder / STATE, settings)
    return settings


def run_task(
    task: Task,
    config: LoopConfig,
    process: Process,
    settings: Mapping[str, Any],
    *,
    old: Mapping[str, Tensor] | None = None,
    stop_after: int | None = None,
    allow_changes: bool = False,
) -> Path:
    """Trains a task to its end, from where its folder's state says; ``settings`` are what a later call must repeat.

    The result goes back to ``old``, parameters by name, by the share ``config.blend``; the state does not.
    """
    output, model = Path(config.output), task.model
    old = {name: p.clone() for name, p in (old or {}).items()} if config.blend else {}
    make_folder(output)
    if process.first:
        remove_parts(output)
    task.extra.to(process.device)
    freeze(model, config.optim)
    average = share_average(average_of(model, config.optim.ema_decay), process, config.shard)
    step_module = share(TrainStep(task), process, config.shard)
    optimizer = build_optimizer(model, config.optim, task.extra)
    run = RunState(model, task.extra, average, optimizer)
    state_path = output / STATE
    first = load_state(state_path, run, settings=settings, allow_changes=allow_changes) if state_path.exists() else 0
    last = max(first, config.steps if stop_after is None else min(config.steps, first + stop_after))

    def save(step: int) -> None:
        save_state(state_path, run, step=step, settings=settings, process=process)
        weights = {name: whole(value.detach()) for name, value in average.module.state_dict().items()}
        if process.first:
            task.write_result(output, blended(weights, old, config.blend) if old else weights)

    def journal() -> Journal | nullcontext:
        if not process.first:
            return nullcontext()
        return Journal(output, first=first, steps=config.steps, tensorboard=config.tensorboard)

    model.train()
    saved = time.monotonic()
    # Drawn before the thread that draws the others starts: a set is read by one thread at a time.
    sample = task.batch(0) if config.preview_every else None
    batches = prefetched(task, first * config.accumulate, last * config.accumulate, workers=config.workers)
    done = first
    with held_signals(STOPPING if process.first else "") as held, closing(batches), journal() as book:
        for step in range(first, last):
            torch.manual_seed(stream_seed(config.seed, step, process.rank))
            factor = set_learning_rate(optimizer, config.optim, step, config.steps)
            losses = _gradients(step_module, batches, config, process)
            norm = whole(clip_gradients(model, optimizer, config.optim.clip_norm))
            # Before the weights move: a finite loss may have gradients that are not, and the next checkpoint would be
            # of nothing else.
            if not (losses["loss"].isfinite() and norm.isfinite()):
                begin = f"go on with --allow-changes from the last checkpoint in {output}"
                raise OwlSwinError(
                    f"step {step}: the loss is {losses['loss'].item():.4g} and the length of its gradient "
                    f"{norm.item():.4g}; lower the learning rates and {begin if state_path.exists() else 'begin again'}"
                )
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            if book:
                book.advance(step + 1)
            measured = _is_turn(step + 1, config.evaluate_every) or (config.evaluate_every > 0 and step + 1 == last)
            if measured or step % config.log_every == 0 or step + 1 == last:
                numbers = {k: round(v, 5) for k, v in mean_over_processes(losses, process).items()}
                numbers |= {"grad_norm": round(norm.item(), 4), "lr_factor": round(factor, 5)}
                if book:
                    book.write(step, numbers | (task.evaluate(average.module) if measured else {}))
            if book and _is_turn(step + 1, config.preview_every):
                picture = task.preview(average.module, sample)
                if picture is not None:
                    write_image(output / f"found-{step + 1}.jpg", picture)
                    book.picture(step, picture)
            done = step + 1
            # Any process may be sent a signal to end, and then all end by it, after the same step. When it is time to
            # save, the first process's clock says for all.
            late = process.first and time.monotonic() - saved > 60 * config.checkpoint_minutes
            asked, due = largest_of_processes((held.number, late), process)
            held.number = held.number or asked  # one may have come while the others were waited for
            if asked:
                break
            if due:
                save(done)
                saved = time.monotonic()
        save(done)
    return output


def _gradients(step_module: nn.Module, batches: Iterator[Any], config: LoopConfig, process: Process) -> dict:
    """Adds up the gradients of ``accumulate`` passes; returns the mean of their losses."""
    mean: dict[str, Tensor] = {}
    for turn in range(config.accumulate):
        batch = next(batches)
        together = turn + 1 == config.accumulate or not hasattr(step_module, "no_sync")
        try:
            with nullcontext() if together else step_module.no_sync():  # type: ignore[operator]
                with torch.autocast(process.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
                    losses = step_module(batch)
                (losses["loss"] / config.accumulate).backward()
        except torch.OutOfMemoryError as error:
            reason = str(error).split(". ")[0]
            raise OwlSwinError(
                f"{process.device} has too little memory for this batch ({reason}); lower batch_size or image_size, "
                "and raise accumulate to learn from as many pictures a step"
            ) from None
        for name, value in losses.items():
            mean[name] = mean.get(name, 0.0) + value.detach() / config.accumulate
    return mean


def _is_turn(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
