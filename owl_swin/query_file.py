"""The file of queries: one small safetensors file, as bytes or on the disk."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from owl_swin.errors import QueryError
from owl_swin.files import parse_safetensors, read_safetensors

FORMAT = "owl_swin-queries-1"


@dataclass(frozen=True, slots=True)
class QueryFile:
    """What the file holds, as ``types.QueryEmbeddings`` has it; ``extras`` are embeds, owners, shares and routes."""

    embeds: Tensor
    names: tuple[str, ...]
    routes: tuple[str, ...]
    extras: tuple[Tensor, Tensor, Tensor, tuple[str, ...]] | None
    fingerprint: str

    def to_bytes(self) -> bytes:
        """The content of the file."""
        tensors = {"query_embeds": self.embeds}
        if self.extras is not None:
            tensors |= dict(zip(("extra_embeds", "extra_owners", "extra_shares"), self.extras[:3], strict=True))
        fields = {
            "names": self.names,
            "routes": self.routes,
            "extra_routes": self.extras[3] if self.extras is not None else (),
            "fingerprint": self.fingerprint,
        }
        return save(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            {"format": FORMAT, "queries": json.dumps(fields)},
        )


def read_query_file(source: str | Path | bytes, where: str) -> QueryFile:
    """A file's content, from its path or its bytes; one that is damaged, cut off or of another kind raises QueryError,
    as does one whose embeddings are not finite and of unit length."""
    if isinstance(source, bytes):
        tensors, metadata = parse_safetensors(source, where, error=QueryError)
    else:
        tensors, metadata = read_safetensors(Path(source), error=QueryError)
    if metadata.get("format") != FORMAT:
        raise QueryError(
            f"holds no queries (format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "QueryEmbeddings.save and --save-query write such files",
            of=where,
        )
    return _from_tensors(tensors, json.loads(metadata["queries"]))


def _from_tensors(tensors: dict[str, Tensor], fields: Mapping[str, Any]) -> QueryFile:
    names, routes, extra_routes = (_strings(fields[key]) for key in ("names", "routes", "extra_routes"))
    (mark,) = _strings([fields["fingerprint"]])
    embeds = _unit_rows(tensors.pop("query_embeds"))
    extras = None
    if extra_routes or "extra_embeds" in tensors:
        owners, shares = tensors.pop("extra_owners"), tensors.pop("extra_shares")
        if owners.dtype != torch.int64 or shares.dtype != torch.float32:
            raise QueryError(f"expected int64 owners and float32 shares, got {owners.dtype} and {shares.dtype}")
        extras = (_unit_rows(tensors.pop("extra_embeds")), owners, shares, extra_routes)
    if tensors:
        raise QueryError(f"unexpected {', '.join(sorted(tensors)[:3])}")
    if len(routes) != len(names):
        raise QueryError(f"{len(names)} names have {len(routes)} routes")
    return QueryFile(embeds, names, routes, extras, mark)


def _strings(values: Sequence[Any]) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise QueryError("names, routes and fingerprint must be texts")
    return tuple(values)


def _unit_rows(embeds: Tensor) -> Tensor:
    if embeds.dtype != torch.float32 or embeds.ndim != 2:
        raise QueryError(f"expected float32 embeddings [rows, E], got {embeds.dtype} {list(embeds.shape)}")
    if not embeds.isfinite().all():
        raise QueryError("a query embedding holds NaN or infinity")
    if not ((embeds.norm(dim=1) - 1).abs() < 1e-3).all():
        raise QueryError("a query embedding is not of unit length")
    return embeds
