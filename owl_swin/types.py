"""The dataclasses that travel between the rooms, and the legend of their shapes.

B pictures, P patches of one picture's grid, Q queries, X extra embeddings of queries, E embedding dimensions,
K mask dimensions, N detections.
Boxes inside the network are cxcywh in [0, 1] of the model frame; boxes that a caller sees are xyxy pixels of the
caller's picture.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from owl_swin.errors import QueryError, brief
from owl_swin.files import write_bytes
from owl_swin.formats import to_dicts, to_pandas, to_supervision
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
    def load(cls, path: str | Path | bytes) -> "QueryEmbeddings":
        """Queries of a file that save() wrote, or of its bytes, on the CPU.

        A file that is damaged, cut off, of another kind, or whose embeddings are not finite and of unit length raises
        QueryError. ``Detector.load_queries`` also checks that they are of its model.
        """
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


# What Detections has a row of for each detection.
COLUMNS = ("boxes", "scores", "labels", "patches")


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one picture, best score first. Nothing found is an empty Detections.

    ``boxes [N, 4]`` are xyxy pixels of the caller's picture, clipped to it; ``scores [N]`` lie in [0, 1];
    ``labels [N]`` index the caller's queries, whose own strings are ``names``; ``patches [N]`` is the patch that
    answered. ``best`` is the answer of the highest score, also where that is below its threshold: what an empty result
    would have shown at a lower one. None: nothing can answer, or the maker of these detections did not say.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...]
    image_hw: tuple[int, int]
    patches: Tensor
    best: "Detection | None" = None

    def __post_init__(self) -> None:
        n = len(self.scores)
        shapes = [list(t.shape) for t in (self.boxes, self.scores, self.labels, self.patches)]
        if shapes != [[n, 4], [n], [n], [n]]:
            raise QueryError(f"expected boxes [N, 4], scores [N], labels [N] and patches [N], got {shapes}")

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator["Detection"]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        for box, score, label in rows:
            yield Detection(self.names[label], score, (box[0], box[1], box[2], box[3]), label)

    @overload
    def __getitem__(self, keep: int) -> "Detection": ...

    @overload
    def __getitem__(self, keep: Tensor | slice | Sequence[int]) -> "Detections": ...

    def __getitem__(self, keep: Any) -> "Detection | Detections":
        """One detection by its number, or a part of them by mask, indices or slice; TypeError for what is none."""
        if getattr(keep, "ndim", None) == 0:  # found[found.scores.argmax()]
            keep = keep.item()
        if isinstance(keep, Integral) and not isinstance(keep, bool):
            row = range(len(self))[int(keep)]  # IndexError past the end, from the end where negative
            return next(iter(self[row : row + 1]))
        rows = _rows(keep, len(self)).to(self.boxes.device)
        return replace(self, **{name: getattr(self, name)[rows] for name in COLUMNS})

    def __eq__(self, other: object) -> bool:
        """Whether all that was found is the same, to the bit."""
        if not isinstance(other, Detections):
            return NotImplemented
        same = (self.names, self.image_hw, self.best) == (other.names, other.image_hw, other.best)
        return same and all(torch.equal(getattr(self, name), getattr(other, name)) for name in COLUMNS)

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def empty(cls, names: Sequence[str] = (), image_hw: tuple[int, int] = (0, 0)) -> "Detections":
        """Nothing found in a picture of that size, asked for these names."""
        rows = torch.zeros(0, dtype=torch.long)
        return cls(torch.zeros(0, 4), torch.zeros(0), rows, tuple(names), tuple(image_hw), rows)  # type: ignore[arg-type]

    @classmethod
    def merge(cls, parts: "Iterable[Detections]") -> "Detections":
        """Several results for one picture as one, best score first; nothing is suppressed.

        Where the parts have the same names, labels stay; else the names of all stand one after another. Parts of
        pictures of different sizes, or none at all, raise QueryError.
        """
        single, parts = isinstance(parts, Detections), list(parts)
        if single or not all(isinstance(part, Detections) for part in parts):
            raise QueryError("merge takes a list of Detections, as in Detections.merge([one, other])")
        sizes = {part.image_hw for part in parts}
        if len(sizes) != 1:
            shown = ", ".join(f"{width}x{height}" for height, width in sorted(sizes)) or "nothing"
            raise QueryError(f"only results for one picture can be merged, got {shown}")
        alike = len({part.names for part in parts}) == 1
        names = parts[0].names if alike else sum((part.names for part in parts), ())
        starts = [0 if alike else sum(len(part.names) for part in parts[:i]) for i in range(len(parts))]
        place = parts[0].boxes.device
        labels = torch.cat([part.labels.to(place) + start for part, start in zip(parts, starts, strict=True)])
        rows = {name: torch.cat([getattr(part, name).to(place) for part in parts]) for name in COLUMNS}
        bests = [
            replace(part.best, query=part.best.query + start)
            for part, start in zip(parts, starts, strict=True)
            if part.best is not None
        ]
        best = max(bests, key=lambda one: one.score, default=None)
        order = rows["scores"].argsort(descending=True, stable=True)
        return cls(names=names, image_hw=parts[0].image_hw, best=best, **(rows | {"labels": labels}))[order]

    def to(self, device: str | torch.device) -> "Detections":
        """The same with its tensors on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in COLUMNS})

    def to_dicts(self) -> list[dict[str, Any]]:
        """The shape of transformers' zero-shot-object-detection pipeline, with boxes to a hundredth of a pixel and the
        index of the query beside it."""
        return to_dicts(self)

    def to_supervision(self) -> Any:
        """The same as supervision.Detections: class_id is the index of the query, data["class_name"] its name."""
        return to_supervision(self)

    def to_pandas(self) -> Any:
        """A pandas.DataFrame, one row a detection: label, score, xmin, ymin, xmax, ymax in pixels, query, patch."""
        return to_pandas(self)


@dataclass(frozen=True, slots=True)
class Detection:
    """One row of Detections: the caller's name, the score, the box in xyxy pixels, and the index of the query."""

    name: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    query: int


@dataclass(frozen=True, slots=True)
class Classification:
    """Probabilities [N] of a picture's names, in the caller's order; they add up to 1."""

    probabilities: Tensor
    names: tuple[str, ...]

    def ranked(self) -> list[tuple[str, float]]:
        """(name, probability), the likeliest first."""
        order = self.probabilities.argsort(descending=True, stable=True).tolist()
        return [(self.names[i], float(self.probabilities[i])) for i in order]


def _rows(keep: Any, n: int) -> Tensor:
    """What a part of ``n`` rows is called by: indices [K], or a mask [n]."""
    if isinstance(keep, slice):
        return torch.tensor(range(n)[keep], dtype=torch.long)
    try:
        rows = torch.as_tensor(keep if hasattr(keep, "ndim") else list(keep))
    except (TypeError, ValueError, RuntimeError):
        rows = torch.zeros(())
    if rows.numel() == 0 and rows.dtype != torch.bool:  # an empty list has no dtype of its own
        rows = rows.long()
    if isinstance(keep, str) or rows.ndim != 1 or rows.is_floating_point() or rows.is_complex():
        raise TypeError(f"detections are called by a number, a slice, a list of numbers or a mask, got {brief(keep)}")
    return rows
