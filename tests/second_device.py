"""A second device that any machine has: the rules of a GPU about where tensors are, on the CPU's numbers.

Nothing else runs on it: an operation that joins tensors of two devices, that indexes a tensor of the CPU by one that is
not there, that reads a tensor elsewhere as an array, or (on "mps") that makes a float64 is refused as PyTorch refuses
it. Kernels, their rounding and their speed are those of the CPU. A model that is laid out on "meta" before its
weights are there is loaded first, and then moved.
"""

from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# Copies between devices are what these are for.
COPIES = {aten.copy_.default, aten._to_copy.default, *(getattr(aten.to, name) for name in aten.to.overloads())}
# Indices may lie on the CPU.
INDEXED = {
    *(aten.index.Tensor, aten._unsafe_index.Tensor, aten.index_put.default, aten.index_put_.default),
    *(aten._index_put_impl_.default, aten._unsafe_index_put.default),
}
# A number of the CPU, a tensor without axes, may stand beside tensors of any device; not in these.
JOINED = {aten.cat.default, aten.stack.default}


class Elsewhere(torch.Tensor):
    """A tensor of the second device; its numbers are those of ``here``, on the CPU.

    To PyTorch's own C++ it is of the device "meta", whose gradients need no driver.
    """

    here: torch.Tensor
    kind: str

    @staticmethod
    def __new__(cls, here: torch.Tensor, kind: str) -> "Elsewhere":
        made = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, here.stride(), here.storage_offset(), dtype=here.dtype, device="meta"
        )
        made.here, made.kind = here, kind
        return made

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.here!r}, {self.kind!r})"

    def __tensor_flatten__(self) -> tuple[list[str], str]:
        return ["here"], self.kind

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, torch.Tensor], kind: str, size: Any, stride: Any) -> "Elsewhere":
        return Elsewhere(parts["here"], kind)

    # Else what comes back to the CPU would be made one of these.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind, 0)

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.here.detach().numpy()
        raise TypeError(f"can't convert {self.device} device type tensor to numpy; use Tensor.cpu()")

    def __array__(self, *_: Any, **__: Any) -> Any:
        return self.numpy()

    @property
    def is_meta(self) -> bool:
        return False

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None) -> torch.Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(device or self.device)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(_without_lists(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(_without_lists(key), value)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func}: a tensor of the second device is used when there is none")


class _Device(TorchDispatchMode):
    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings, leaves = dict(kwargs or {}), tree_leaves((args, kwargs))
        tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
        elsewhere = any(isinstance(x, Elsewhere) for x in tensors)
        for place in (x for x in leaves if isinstance(x, torch.device)):  # where the result is to be
            elsewhere = place.type in (self.kind, "meta")
        # Attention asks for a kernel by the name of a device; this is the form that is written out.
        if func is aten._fused_sdp_choice.default:
            return 0
        self._check(func, args, tensors)
        if not elsewhere and not any(isinstance(x, Elsewhere) for x in tensors):
            return func(*args, **settings)
        with torch.inference_mode(False), torch.no_grad():  # of a parameter, views of inference could not be wrapped
            out = func(*tree_map(_here, args), **tree_map(_here, settings))
            written = _written(func, args, settings)
            if written is not None:
                return written
            return tree_map(self._there, out) if elsewhere else out

    def _check(self, func: Any, args: Any, tensors: list[torch.Tensor]) -> None:
        """Refuses tensors of two devices."""
        if func in COPIES:
            return
        if func in INDEXED:
            if not isinstance(args[0], Elsewhere) and any(isinstance(x, Elsewhere) for x in tensors):
                raise RuntimeError(f"{func}: indices should be on the device of the indexed tensor, the cpu")
            tensors = [x for x in tree_leaves([args[0], args[2:]]) if isinstance(x, torch.Tensor)]
        placed = [x for x in tensors if x.ndim or isinstance(x, Elsewhere) or func in JOINED]
        if len({isinstance(x, Elsewhere) for x in placed}) > 1:
            shapes = ", ".join(f"{self.kind if isinstance(x, Elsewhere) else 'cpu'} {list(x.shape)}" for x in tensors)
            raise RuntimeError(f"{func}: expected all tensors to be on the same device, got {shapes}")

    def _there(self, out: Any) -> Any:
        if not isinstance(out, torch.Tensor) or isinstance(out, Elsewhere):
            return out
        if self.kind == "mps" and out.dtype in (torch.float64, torch.complex128):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64")
        return Elsewhere(out, self.kind)


class _Data(TorchFunctionMode):
    """Numbers of Python become a tensor of the CPU, and then one of the second device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and settings.get("device") is not None:
            return func(*args, **settings | {"device": "cpu"}).to(settings["device"])
        return func(*args, **settings)


def _without_lists(key: Any) -> Any:
    """Lists of indices as tensors: those that PyTorch makes of them on the device "meta" hold nothing."""
    if isinstance(key, tuple):
        return tuple(map(_without_lists, key))
    return torch.tensor(key) if isinstance(key, list) else key


def _here(x: Any) -> Any:
    if isinstance(x, torch.device):
        return torch.device("cpu")
    return x.here if isinstance(x, Elsewhere) else x


def _written(func: Any, args: Any, settings: dict[str, Any]) -> Any:
    """The tensors that an operation writes in place, which it gives back; None where it makes new ones."""
    names = [one.name for one in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | settings
    targets = [
        given[one.name]
        for one in func._schema.arguments
        if one.alias_info is not None and one.alias_info.is_write and isinstance(given.get(one.name), torch.Tensor)
    ]
    if not targets or not any(one.alias_info is not None for one in func._schema.returns):
        return None
    return targets[0] if len(targets) == 1 else tuple(targets)


@contextmanager
def second_device(kind: str, monkeypatch: Any) -> Any:
    """There is a device of this kind, "cuda" or "mps", as far as the tensors of this thread go."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    with _Device(kind), _Data():
        yield torch.device(kind, 0)
