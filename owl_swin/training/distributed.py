"""One process or many: what `torchrun` says about this one, and how the parts of a run are shared between them."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import AveragedModel

from owl_swin.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Process:
    """This process among ``world`` ones, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes the files."""
        return self.rank == 0


@contextmanager
def started_process(device: str = "auto") -> Iterator[Process]:
    """Joins the processes that `torchrun` started, if it did: nccl on GPUs, gloo on CPUs.

    ``device`` is "auto" (a GPU if there is one), "cpu" or "cuda".
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device is 'cuda', but PyTorch finds no GPU here; use 'cpu' or 'auto'")
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(place)
    if world == 1:
        yield Process(0, 1, place)
        return
    dist.init_process_group("nccl" if on_gpu else "gloo")
    try:
        yield Process(rank, world, place)
    finally:
        dist.destroy_process_group()


def share(step: nn.Module, process: Process, how: str) -> nn.Module:
    """``step`` (a module whose forward gives the losses) so that its gradients are means over all processes.

    "ddp" keeps the whole model in every process; "fsdp" (FSDP2) a slice of it, and gathers each block when its turn
    comes: for models that do not fit.
    """
    if how == "fsdp" and dist.is_initialized():
        _slice(step, process)
        return step
    if process.world == 1:
        return step
    on_gpu = process.device.type == "cuda"
    return nn.parallel.DistributedDataParallel(
        step, device_ids=[process.device.index] if on_gpu else None, find_unused_parameters=True
    )


def share_average(average: AveragedModel, process: Process, how: str) -> AveragedModel:
    """The average, sliced as ``share`` slices the model that it follows."""
    if how == "fsdp" and dist.is_initialized():
        _slice(average.module, process)
    return average


def _slice(module: nn.Module, process: Process) -> None:
    from torch.distributed.fsdp import fully_shard

    for part in module.modules():  # FSDP slices no numbers without an axis
        for name, parameter in list(part.named_parameters(recurse=False)):
            if parameter.ndim == 0:
                setattr(part, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
    mesh = dist.init_device_mesh(process.device.type, (process.world,))
    for name, part in module.named_modules():
        if type(part).__name__ in ("SwinBlock", "ResidualAttentionBlock") and name:
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def mean_over_processes(values: dict[str, Tensor], process: Process) -> dict[str, float]:
    """Numbers of this process → their means over all of them."""
    if process.world == 1:
        return {name: float(value) for name, value in values.items()}
    names = sorted(values)
    flat = torch.stack([values[name].detach().float() for name in names])
    dist.all_reduce(flat)
    return dict(zip(names, (flat / process.world).tolist(), strict=True))


def largest_of_processes(values: Sequence[int], process: Process) -> list[int]:
    """Of each of ``values``, whole numbers, the largest that any process has; all must ask at once."""
    if process.world == 1:
        return list(values)
    largest = torch.tensor([int(value) for value in values], device=process.device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest.tolist()


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is sliced over processes, put together; all processes must ask at once. Others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sliced_like(tensor: Tensor, other: Tensor) -> Tensor:
    """The whole ``tensor`` as ``other`` is kept: its shape, its device, and sliced over processes if that is."""
    tensor = tensor.reshape(other.shape)
    if isinstance(other, DTensor):
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor.to(other.device)


def wait_for_all(process: Process) -> None:
    """Goes on when all processes have come to here."""
    if process.world > 1:
        dist.barrier()
