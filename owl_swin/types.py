"""The dataclasses that travel between the rooms, and the legend of their shapes.

B pictures, P patches of one picture's grid, Q queries, X extra embeddings of queries, E embedding dimensions,
K mask dimensions, N detections.
Boxes inside the network are cxcywh in [0, 1] of the model frame; boxes that a caller sees are xyxy pixels of the
caller's picture.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from owl_swin.errors import QueryError
from owl_swin.files import write_bytes
from owl_swin.query_file import QueryFile, read_query_file

# Where a query comes from.
ROUTES = ("text", "exemplar")


@dataclass(frozen=True, slots=True)
class PatchLogitInputs:
    """What scoring reads of patches: those of a picture, or the stored regions of an archive."""

    class_embeds: Tensor  # [..., P, E], unit length
    logit_shift: Tensor  # [..., P]
    logit_scale: Tensor  # [..., P], positive


@dataclass(frozen=True, slots=True)
class MaskEmbeddings:
    """What masks are made of; ``models.masks.mask_logits`` makes them.

    ``mask_embeds`` are what a patch asks of each pixel for the mask of its box, ``pixel_embeds`` what the pixels of the
    model frame answer, at a stride of 4, and ``dense`` what each patch's own place shows, scored as ``class_embeds``
    are, where those score what its box holds.
    """

    mask_embeds: Tensor  # [..., P, K + 5]
    pixel_embeds: Tensor  # [..., K, h, w]
    dense: PatchLogitInputs

    def map(self, change: Callable[[Tensor], Tensor]) -> "MaskEmbeddings":
        """The same of changed tensors."""
        dense = PatchLogitInputs(
            change(self.dense.class_embeds), change(self.dense.logit_shift), change(self.dense.logit_scale)
        )
        return MaskEmbeddings(change(self.mask_embeds), change(self.pixel_embeds), dense)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEmbeddings(PatchLogitInputs):
    """Everything about pictures that no query touches; it can be kept and asked again.

    A leading batch axis B is there when the pictures were encoded together. ``masks`` is there where it was asked for.
    """

    image_embed: Tensor  # [..., E], unit length: the whole picture
    pred_boxes: Tensor  # [..., P, 4], cxcywh in the model frame
    objectness_logits: Tensor  # [..., P]
    grid_hw: tuple[int, int]  # P = grid_hw[0] * grid_hw[1], row by row
    masks: MaskEmbeddings | None = None

    def __getitem__(self, index: int) -> "ImageEmbeddings":
        """One picture out of a batch."""
        return self._map(lambda tensor: tensor[index])

    def clone(self) -> "ImageEmbeddings":
        """A copy that keeps no batch alive."""
        return self._map(Tensor.clone)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "ImageEmbeddings":
        return ImageEmbeddings(
            change(self.class_embeds),
            change(self.logit_shift),
            change(self.logit_scale),
            image_embed=change(self.image_embed),
            pred_boxes=change(self.pred_boxes),
            objectness_logits=change(self.objectness_logits),
            grid_hw=self.grid_hw,
            masks=None if self.masks is None else self.masks.map(change),
        )

    def tensors(self) -> list[Tensor]:
        """All of its tensors."""
        held: list[Tensor] = []

        def keep(tensor: Tensor) -> Tensor:
            held.append(tensor)
            return tensor

        self._map(keep)
        return held


@dataclass(frozen=True, slots=True)
class ExtraEmbeddings:
    """What queries hold beside their first embedding: ``embeds [X, E]``, unit length, each of one query.

    ``owners [X]`` is the index of that query. ``shares [X]`` lie in [0, 1): the part that an embedding has in the score
    of its query, of which the first embedding has the rest; 0 marks a negative, which can only lower the score. A
    query has any number of negatives and at most one share.
    """

    embeds: Tensor
    owners: Tensor
    shares: Tensor
    routes: tuple[str, ...]

    def __post_init__(self) -> None:
        x = len(self.routes)
        shapes = [list(t.shape) for t in (self.owners, self.shares)]
        if self.embeds.ndim != 2 or len(self.embeds) != x or shapes != [[x], [x]]:
            raise QueryError(
                f"expected {x} extra embeddings [X, E] with owners [X] and shares [X], got {list(self.embeds.shape)}, "
                f"{shapes[0]} and {shapes[1]}"
            )
        if not set(self.routes) <= set(ROUTES):
            raise QueryError(f"expected one of {', '.join(ROUTES)} for each extra embedding")
        if not self.embeds.isfinite().all():
            raise QueryError("a query embedding holds NaN or infinity")
        if not ((self.shares >= 0) & (self.shares < 1)).all():  # NaN fails this too
            raise QueryError("the share of an extra embedding must lie in [0, 1)")
        shared = self.owners[self.shares > 0].tolist()
        if len(set(shared)) < len(shared):
            raise QueryError("a query has at most one extra embedding with a share in its score")

    def __len__(self) -> int:
        return len(self.routes)


@dataclass(frozen=True, slots=True)
class QueryEmbeddings:
    """Queries ready to be scored: ``query_embeds [Q, E]``, unit length, and the caller's own name of each.

    ``routes`` says of each where it came from, "text" or "exemplar", because their scores are calibrated apart; left
    out, all are texts. ``extras`` holds what a query has beside that one embedding: the exemplars of a query that has
    texts too, and negatives. ``fingerprint`` names the weights that made them; "" is unknown.
    """

    query_embeds: Tensor
    names: tuple[str, ...]
    routes: tuple[str, ...] = ()
    extras: ExtraEmbeddings | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        if not self.routes:
            object.__setattr__(self, "routes", ("text",) * len(self.names))
        if len(self.routes) != len(self.names) or not set(self.routes) <= set(ROUTES):
            raise QueryError(f"expected one of {', '.join(ROUTES)} for each of {len(self.names)} names")
        if self.query_embeds.ndim != 2 or len(self.query_embeds) != len(self.names):
            raise QueryError(
                f"expected one embedding for each of {len(self.names)} names, got {list(self.query_embeds.shape)}"
            )
        if not self.query_embeds.isfinite().all():
            raise QueryError("a query embedding holds NaN or infinity")
        if self.extras is not None:
            owners = self.extras.owners
            if owners.is_floating_point() or not ((owners >= 0) & (owners < len(self))).all():
                raise QueryError(f"the owner of an extra embedding must be the index of one of {len(self)} queries")
            if self.extras.embeds.shape[1] != self.query_embeds.shape[1]:
                raise QueryError(
                    f"extra embeddings have {self.extras.embeds.shape[1]} dimensions, those of the queries have "
                    f"{self.query_embeds.shape[1]}"
                )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> "QueryEmbeddings":
        """One query with all that belongs to it."""
        index = range(len(self))[index]
        extras = self.extras
        if extras is not None:
            own = extras.owners == index
            routes = tuple(route for route, keep in zip(extras.routes, own.tolist(), strict=True) if keep)
            extras = ExtraEmbeddings(
                extras.embeds[own], torch.zeros_like(extras.owners[own]), extras.shares[own], routes
            )
        return replace(
            self,
            query_embeds=self.query_embeds[index : index + 1],
            names=self.names[index : index + 1],
            routes=self.routes[index : index + 1],
            extras=extras if extras is not None and len(extras) else None,
        )

    def check_model(self, embed_dim: int, fingerprint: str) -> None:
        """Refuses, with QueryError, to be scored by a model of other dimensions or weights."""
        if self.query_embeds.shape[1] != embed_dim:
            raise QueryError(
                f"these query embeddings have {self.query_embeds.shape[1]} dimensions, the model has {embed_dim}; "
                "encode the queries with the same model"
            )
        if self.fingerprint and self.fingerprint != fingerprint:
            raise QueryError(
                f"these queries were made by another model (weights {self.fingerprint[:12]}, this model has "
                f"{fingerprint[:12]}); encode them with this one"
            )

    def __add__(self, other: "QueryEmbeddings") -> "QueryEmbeddings":
        """These queries and then the others; those of two models, or of two sizes, raise QueryError."""
        if self.fingerprint and other.fingerprint and self.fingerprint != other.fingerprint:
            raise QueryError("queries of two models cannot be asked together; encode them with one model")
        if self.query_embeds.shape[1] != other.query_embeds.shape[1]:
            sizes = f"{self.query_embeds.shape[1]} and {other.query_embeds.shape[1]}"
            raise QueryError(f"queries of {sizes} dimensions cannot be asked together; encode them with one model")
        place = self.query_embeds
        extras = [
            ExtraEmbeddings(x.embeds.to(place), x.owners.to(place.device) + first, x.shares.to(place), x.routes)
            for x, first in ((self.extras, 0), (other.extras, len(self)))
            if x is not None
        ]
        return QueryEmbeddings(
            torch.cat([place, other.query_embeds.to(place)]),
            self.names + other.names,
            self.routes + other.routes,
            ExtraEmbeddings(
                torch.cat([x.embeds for x in extras]),
                torch.cat([x.owners for x in extras]),
                torch.cat([x.shares for x in extras]),
                sum((x.routes for x in extras), ()),
            )
            if extras
            else None,
            self.fingerprint if self.fingerprint == other.fingerprint else "",
        )

    def to_bytes(self) -> bytes:
        """The content of the file that save() writes."""
        extras = self.extras
        parts = None if extras is None else (extras.embeds, extras.owners, extras.shares, extras.routes)
        return QueryFile(self.query_embeds, self.names, self.routes, parts, self.fingerprint).to_bytes()

    def save(self, path: str | Path) -> None:
        """Writes the queries to one small safetensors file, whole or not at all; load() gives them back to the bit."""
        write_bytes(Path(path), self.to_bytes(), what="the queries", error=QueryError)

    @classmethod
    def load(cls, path: str | Path | bytes | bytearray | memoryview) -> "QueryEmbeddings":
        """Queries of a file that save() wrote, or of its bytes, on the CPU.

        A file that is damaged, cut off, of another kind, or whose embeddings are not finite and of unit length raises
        QueryError. ``Detector.load_queries`` also checks that they are of its model.
        """
        if isinstance(path, (bytearray, memoryview)):
            path = bytes(path)
        where = "saved queries" if isinstance(path, bytes) else str(path)
        try:
            held = read_query_file(path, where)
            extras = None if held.extras is None else ExtraEmbeddings(*held.extras)
            return cls(held.embeds, held.names, held.routes, extras, held.fingerprint)
        except QueryError as error:
            if error.of:  # it says of which file already
                raise
            raise QueryError(f"damaged queries: {error.reason}", of=where) from None
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise QueryError(f"damaged queries ({type(error).__name__}: {error})", of=where) from None


@dataclass(frozen=True, slots=True)
class Classification:
    """Probabilities [N] of a picture's names, in the caller's order; they add up to 1."""

    probabilities: Tensor
    names: tuple[str, ...]

    def ranked(self) -> list[tuple[str, float]]:
        """(name, probability), the likeliest first."""
        order = self.probabilities.argsort(descending=True, stable=True).tolist()
        return [(self.names[i], float(self.probabilities[i])) for i in order]
