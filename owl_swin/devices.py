"""Where a model runs, in which precision, and in which process."""

import copy
import functools
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

from owl_swin.errors import ConfigError, first_line
from owl_swin.runtimes.network import GraphNetwork

logger = logging.getLogger("owl_swin")

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "half": torch.float16,
}


Method = TypeVar("Method", bound=Callable[..., Any])


@contextmanager
def undisturbed(device: torch.device | None = None) -> Iterator[None]:
    """Computes without gradients, and as if its caller had set no autocast (on ``device``) and no default device: a
    model has a precision and a place of its own, and what it says must not depend on where it is asked."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for kind in {"cpu", "cpu" if device is None else device.type}:
            if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


def by_itself(method: Method) -> Method:
    """A method of what has a ``device``, called in ``undisturbed``."""

    @functools.wraps(method)
    def called(self: Any, *arguments: Any, **settings: Any) -> Any:
        with undisturbed(self.device):
            return method(self, *arguments, **settings)

    return cast(Method, called)


def pick_device(device: str | torch.device = "auto", network: Any = None) -> torch.device:
    """The device of that name; "auto" is an accelerator where there is one and the network can go there, else the CPU.
    Never a silent fallback."""
    if isinstance(device, str) and device == "auto" and isinstance(network, GraphNetwork):
        device = "cpu"
    elif isinstance(device, str) and device == "auto":
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(f"device {device!r} cannot be used here: {first_line(error)}") from None


def pick_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """float32, bfloat16 or float16 ("half"), by name or as torch has it; None leaves a model as it is."""
    chosen = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if chosen is not None and chosen in DTYPES.values():
        return chosen
    if dtype is None:
        return None
    raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")


def placed(network: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """The network itself if it is in evaluation mode, on the device and of the precision; else a copy that is."""
    if isinstance(network, GraphNetwork):
        return network.placed(device, dtype)
    if not isinstance(network, nn.Module):
        return network
    numbers = [*network.parameters(), *network.buffers()]
    fits = all(
        one.device == device and (dtype is None or not one.is_floating_point() or one.dtype == dtype) for one in numbers
    )
    if fits and not any(module.training for module in network.modules()):
        return network
    return copy.deepcopy(network).to(device=device, dtype=dtype).eval()


class ForkGuard:
    """Lets a model be used in a process that was forked after it was loaded.

    The threads that PyTorch computes with are not there after a fork, and waiting for them never ends; so a process
    that is forked from one with a guard computes with one thread.
    """

    _watching = False
    _threads_before_fork = 1

    def __init__(self) -> None:
        self._process = os.getpid()
        if not ForkGuard._watching and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=ForkGuard._compute_alone)
            ForkGuard._watching = True

    @staticmethod
    def _compute_alone() -> None:
        ForkGuard._threads_before_fork = torch.get_num_threads()
        if ForkGuard._threads_before_fork > 1:
            torch.set_num_threads(1)

    def check(self) -> None:
        """Says once, in a forked process, that it computes with one thread."""
        if os.getpid() != self._process:
            self._process = os.getpid()
            if ForkGuard._threads_before_fork > 1:
                logger.warning(
                    "this process was forked after the model was loaded and computes with one thread; "
                    "start processes with the method 'spawn' to use more"
                )
