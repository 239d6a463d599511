"""What a run needs to go on: model, average, optimizer, step and settings, in one safetensors file."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from owl_swin.errors import CheckpointError, ConfigError, OwlSwinError
from owl_swin.files import read_safetensors, write_safetensors
from owl_swin.locks import hold_lock
from owl_swin.training.distributed import Process, sliced_like, whole

logger = logging.getLogger("owl_swin")

# In a state's settings, the digest of the weights that the run began with.
START = "start"
# What changes nothing that is learned: where files lie, what is shown and kept, and the arithmetic's place.
FREE_SETTINGS = frozenset(
    {"output", "model", "init", "blend", "device", "compile", "shard", "tensorboard", "preview_every", "log_every"}
    | {"checkpoint_minutes", "cache_gib", "workers", START}
)
# A damaged file may hold anything.
MALFORMED = (RuntimeError, KeyError, TypeError, ValueError, IndexError, AttributeError)


@dataclass(frozen=True, slots=True)
class RunState:
    """The moving parts of a run."""

    model: nn.Module
    extra: nn.Module
    average: AveragedModel
    optimizer: torch.optim.Optimizer

    def parameters(self) -> dict[str, nn.Parameter]:
        """What the optimizer moves, by names that begin with "model." or "extra."."""
        moved = {id(p) for group in self.optimizer.param_groups for p in group["params"]}
        named = [*self.model.named_parameters("model"), *self.extra.named_parameters("extra")]
        return {name: p for name, p in named if id(p) in moved}


@contextmanager
def only_run(folder: Path, process: Process) -> Iterator[None]:
    """Holds a run's folder for this process and those that `torchrun` started with it; if another run has it, raises
    ConfigError."""
    if not process.first:
        yield
        return
    with hold_lock(
        folder / ".run.lock",
        busy=lambda holder: ConfigError(
            f"{folder}: {holder} has a run in this folder; wait for it, or give this run a folder of its own"
        ),
        failed=lambda error: OwlSwinError(f"{folder}: cannot write in this folder ({error.strerror})"),
        remove=True,
    ):
        yield


def save_state(path: Path, run: RunState, *, step: int, settings: Mapping[str, Any], process: Process) -> None:
    """Writes the state after ``step`` finished steps.

    All processes call this together; the first one writes.
    """
    tensors = {f"model.{k}": v for k, v in run.model.state_dict().items()}
    tensors |= {f"extra.{k}": v for k, v in run.extra.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in run.average.module.named_parameters()}
    for name, parameter in run.parameters().items():
        moments = run.optimizer.state.get(parameter, {})
        tensors |= {f"optim.{name}.{k}": v for k, v in moments.items()}
    tensors = {k: whole(v.detach()).cpu().contiguous().clone() for k, v in tensors.items()}
    if process.first:
        metadata = {"step": str(step), "settings": json.dumps(settings)}
        write_safetensors(path, tensors, metadata, what="the state of the run", error=CheckpointError)


def load_state(path: Path, run: RunState, *, settings: Mapping[str, Any], allow_changes: bool = False) -> int:
    """Puts the state back in place and returns the number of finished steps.

    A run that was begun with other settings goes on only with ``allow_changes``; else ConfigError names them.
    """
    step = check_settings(path, settings, allow_changes=allow_changes)
    tensors, _ = read_safetensors(path, error=CheckpointError)
    try:
        for module, prefix in ((run.model, "model."), (run.extra, "extra.")):
            own = module.state_dict()
            given = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            module.load_state_dict({k: sliced_like(v, own[k]) for k, v in given.items()})
        run.average.n_averaged.fill_(step)
        for name, averaged in run.average.module.named_parameters():
            averaged.copy_(sliced_like(tensors[f"ema.{name}"], averaged))
    except MALFORMED:
        raise CheckpointError(
            f"{path}: the state of a run with another model; give this run a folder of its own"
        ) from None
    try:
        _load_moments(run, tensors)
    except MALFORMED as error:
        raise CheckpointError(f"{path}: its optimizer state does not fit this run ({_short(error)})") from None
    return step


def _load_moments(run: RunState, tensors: Mapping[str, Tensor]) -> None:
    """Moments of parameters that the file does not know start anew; those of parameters now frozen are left out."""
    named = run.parameters()
    ordered = [p for group in run.optimizer.param_groups for p in group["params"]]
    place = {id(p): i for i, p in enumerate(ordered)}
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if not key.startswith("optim."):
            continue
        name, _, kind = key.removeprefix("optim.").rpartition(".")
        # Runs of earlier versions have the parameter's place in the optimizer in place of its name.
        owner = ordered[int(name)] if name.isdigit() else named.get(name)
        if owner is not None:
            state.setdefault(place[id(owner)], {})[kind] = value if kind == "step" else sliced_like(value, owner)
    if any(moments.keys() != {"step", "exp_avg", "exp_avg_sq"} for moments in state.values()):
        raise ValueError("a parameter lacks one of its moments")
    run.optimizer.load_state_dict({"state": state, "param_groups": run.optimizer.state_dict()["param_groups"]})


def check_settings(path: Path, settings: Mapping[str, Any], *, allow_changes: bool = False) -> int:
    """Refuses to go on with a state that is damaged, or with other settings than it began with; reads no tensor.

    Returns the number of finished steps, 0 where there is no state yet.
    """
    if not path.exists():
        return 0
    step, begun = _step_and_settings(path)
    changes = list(_changes(begun, settings))
    if step >= max(begun.get("steps", 0), settings.get("steps", 0)):
        # Finished under both, so nothing is learned any more.
        changes = [change for change in changes if change[0].partition("[")[0] not in ("steps", "sets")]
    if not changes:
        return step
    said = ", ".join(f"{key} {old!r:.60} (now {new!r:.60})" for key, old, new in changes)
    if allow_changes:
        logger.warning("%s: goes on with other settings than the run began with: %s", path.parent, said)
        return step
    raise ConfigError(
        f"{path.parent}: this run began with other settings: {said}; set them back, give this run a folder of its own, "
        "or go on with the new ones by --allow-changes"
    )


def check_start(path: Path, start: str, *, blend: bool) -> str:
    """The digest of the weights that a run began with: that of its state, or ``start`` where there is none yet.

    Where other weights have come into their place, they are no longer what ``blend`` goes back to: raises ConfigError.
    """
    begun = str(_step_and_settings(path)[1].get(START, start)) if path.exists() else start
    if blend and begun != start:
        raise ConfigError(
            f"{path.parent}: blend goes back to the weights that the run began with, and init names others now; put "
            "those back, or set blend = 0"
        )
    return begun


def has_blend(path: Path) -> bool:
    """Whether the result of the run with this state was blended, which the state is not; no for a file of others."""
    try:
        return bool(_step_and_settings(path)[1].get("blend"))
    except CheckpointError:
        return False


def _step_and_settings(path: Path) -> tuple[int, dict[str, Any]]:
    """Finished steps, and settings as the run began with; reads no tensor."""
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        step, begun = int(metadata["step"]), json.loads(metadata["settings"])
        if step < 0 or not isinstance(begun, dict):
            raise ValueError(f"step {step}, settings {begun!r:.40}")
    except (*MALFORMED, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not the state of a training run ({_short(error)})") from None
    return step, begun


def _changes(begun: Any, now: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Settings that both hold and that differ, with what they were and are. A later version may know more."""
    if isinstance(begun, Mapping) and isinstance(now, Mapping):
        for name in now:
            if name in begun and (key or name not in FREE_SETTINGS):
                yield from _changes(begun[name], now[name], f"{key}.{name}" if key else name)
    elif isinstance(begun, list) and isinstance(now, list) and len(begun) == len(now):
        for index, (old, new) in enumerate(zip(begun, now, strict=True)):
            yield from _changes(old, new, f"{key}[{index}]")
    elif begun != now:
        yield key, begun, now


def _short(error: BaseException) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
