"""What is asked of detections, and how logits and boxes of patches become Detections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor

from owl_swin.boxes import area, pairwise_iou
from owl_swin.detections import Detection, Detections
from owl_swin.errors import QueryError, brief
from owl_swin.frame import HW
from owl_swin.models.network import Spec
from owl_swin.nms import not_suppressed

# Candidates that compete in non-maximum suppression: its cost is quadratic.
NMS_CANDIDATES = 3000
# Logits that no float tells from certainty, and how far rounding may move a score.
MOST_LOGIT, LOGIT_SLACK = 15.0, 1e-3
DEFAULT_THRESHOLD = 0.2

DEFAULT_NMS_IOU = 0.5
# Boxes of one query that overlap a kept one by so much say where its sides are.
VOTERS_IOU = 0.5
# Boxes that overlap by so much are of one thing, which has one of the names that compete for it.
RIVALS_IOU = 0.7
# Answers of which rivals are looked for at a time, at the least.
RIVALS_AT_ONCE = 64
# Pairs of a kept box and a voter or rival that are weighed at a time: some 100 bytes each.
VOTES_AT_ONCE = 2**21

Threshold = float | Sequence[float] | Mapping[str, float]
# An overlap, None (nothing is suppressed), or what the model's own spec says.
NmsIou = float | None | Literal["model"]
# A power in [0, 1], or what the model's own spec says.
Rivals = float | Literal["model"]


@dataclass(frozen=True, slots=True)
class DetectOptions:
    """What is asked of detections beside the queries; a value that means nothing raises QueryError.

    ``threshold``: lowest score, one number in [0, 1], one a query, or {name: number}, where other names have the
    default. ``nms_iou``: of two boxes of one query that overlap by more, only the better stays, and with ``nms_across``
    also of two queries; None keeps all; "model": what suits the model. ``objectness``: lowest objectness in [0, 1]
    of a patch that may answer. ``max_detections`` are the best ones of a picture. ``masks``: also which pixels of its
    box each thing has. ``box_voting``: the boxes around a kept one have a say in where its sides are (None: as suits
    the model; never without queries, nor where nothing is suppressed). ``rivals``: names compete for a thing. An
    answer to a text loses where another text, whether it passes its own threshold or not, scores higher on a box that
    overlaps by 0.7: it has score · (score / higher one) ** rivals; 0 leaves all as they are, 1 is the most, "model": as
    suits the model. A dog of 0.5 that is a cat of 0.9 too comes to 0.28 by 1, and so does "a pet"; it has 0.5 where
    nobody asks for cats. This comes after suppression, and not at all where nothing is suppressed.
    """

    threshold: Threshold = DEFAULT_THRESHOLD
    nms_iou: NmsIou = "model"
    objectness: float | None = None
    max_detections: int = 300
    nms_across: bool = False
    masks: bool = False
    box_voting: bool | None = None
    rivals: Rivals = "model"

    def __post_init__(self) -> None:
        object.__setattr__(self, "threshold", _checked_threshold(self.threshold))
        if self.objectness is not None:
            check_fraction("objectness", self.objectness)
        if self.nms_iou is not None and not (isinstance(self.nms_iou, str) and self.nms_iou == "model"):
            check_fraction("nms_iou", self.nms_iou)
        most = self.max_detections
        if not isinstance(most, Integral) or isinstance(most, bool) or most < 1:
            raise QueryError(f"max_detections or top_k must be a whole number, at least 1, got {brief(most)}")
        for name in ("nms_across", "masks"):
            if not isinstance(getattr(self, name), bool):
                raise QueryError(f"{name} must be True or False, got {brief(getattr(self, name))}")
        if self.box_voting is not None and not isinstance(self.box_voting, bool):
            raise QueryError(f"box_voting must be True, False or None, got {brief(self.box_voting)}")
        if not (isinstance(self.rivals, str) and self.rivals == "model"):
            check_fraction("rivals", self.rivals)

    def of_model(self, spec: Spec) -> "DetectOptions":
        """The same, with the model's own suppression, voting and rivals in place of what is left to it."""
        return replace(
            self,
            nms_iou=spec.nms_iou if self.nms_iou == "model" else self.nms_iou,
            box_voting=spec.box_voting if self.box_voting is None else self.box_voting,
            rivals=spec.rivals if self.rivals == "model" else self.rivals,
        )

    @property
    def suppressing_iou(self) -> float | None:
        """``nms_iou`` as a number, also where no model has been asked; None where nothing is suppressed, as by 1: no
        two boxes overlap by more."""
        iou = DEFAULT_NMS_IOU if isinstance(self.nms_iou, str) else self.nms_iou
        return None if iou is None or iou >= 1 else float(iou)

    @property
    def rival_power(self) -> float:
        """``rivals`` as a number, also where no model has been asked; 0 where nothing is suppressed."""
        return 0.0 if isinstance(self.rivals, str) or self.suppressing_iou is None else float(self.rivals)

    @property
    def n_candidates(self) -> int:
        """So many boxes, the best, compete in non-maximum suppression."""
        return max(NMS_CANDIDATES, 10 * self.max_detections)

    def thresholds(self, names: Sequence[str]) -> Tensor:
        """Thresholds [Q] of queries called so; those that are for other queries, or for more or fewer, raise
        QueryError."""
        if isinstance(self.threshold, Mapping):
            unknown = [name for name in self.threshold if name not in names]
            if unknown:
                raise QueryError(f"threshold names {brief(unknown[0])}, which is none of the queries")
            return torch.tensor([self.threshold.get(name, DEFAULT_THRESHOLD) for name in names], dtype=torch.float32)
        if isinstance(self.threshold, tuple) and len(self.threshold) != len(names):
            raise QueryError(
                f"threshold must be one number, or one for each of the {len(names)} queries, "
                f"got {len(self.threshold)} numbers"
            )
        return torch.tensor(self.threshold, dtype=torch.float32).expand(len(names))


class DetectSettings(TypedDict, total=False):
    """DetectOptions as keyword arguments; ``top_k`` is another name of ``max_detections``."""

    threshold: Threshold
    nms_iou: NmsIou
    objectness: float | None
    max_detections: int
    nms_across: bool
    masks: bool
    box_voting: bool | None
    rivals: Rivals
    top_k: int


def said_suppression(spec: Spec, nms_iou: NmsIou) -> str:
    """What detection with this model and overlap does with boxes that overlap, in words."""
    chosen = DetectOptions(nms_iou=nms_iou).of_model(spec)
    if chosen.suppressing_iou is None:
        return "no NMS"
    voting = " with box voting" if chosen.box_voting else ""
    return f"NMS {chosen.nms_iou}{voting}" + (f", rivals {chosen.rivals}" if chosen.rival_power else "")


def detect_options(options: DetectOptions | None = None, settings: Mapping[str, Any] | None = None) -> DetectOptions:
    """``options`` (None: the defaults) with the keyword arguments ``settings`` in place of its own."""
    if options is not None and not isinstance(options, DetectOptions):
        raise QueryError(f"options must be DetectOptions, got {brief(options)}; a setting has a name, threshold=0.3")
    changed = dict(settings or {})
    if "top_k" in changed:
        changed["max_detections"] = changed.pop("top_k")
    return replace(options or DetectOptions(), **changed)


def options_per_image(options: DetectOptions, names: Sequence[Sequence[str]]) -> list[DetectOptions]:
    """The options of each picture, whose queries are called ``names``; a threshold by name is for the pictures that
    are asked for it. Thresholds that are for none of them, or for more or fewer queries, raise QueryError."""
    if not isinstance(options.threshold, Mapping):
        each = [options] * len(names)
    else:
        options.thresholds([name for own in names for name in own])
        thresholds = options.threshold.items()
        each = [replace(options, threshold={n: t for n, t in thresholds if n in own}) for own in names]
    for chosen, own in zip(each, names, strict=True):
        chosen.thresholds(own)
    return each


def find_detections(
    logits: Tensor,
    boxes_xyxy_px: Tensor,
    names: Sequence[str],
    image_hw: HW,
    options: DetectOptions,
    texts: Sequence[bool] = (),
) -> Detections:
    """The (patch, query) pairs that pass, best first: the score reaches its threshold, nothing suppresses the pair, its
    score after rivals reaches the threshold too, and it is one of the best ``max_detections``.

    ``logits [P, Q]``, and the boxes [P, 4] of the patches, clipped to the picture. A patch may answer several queries;
    a logit of -inf never answers, nor does a box that lies outside the picture. ``texts`` [Q] says which queries are
    texts, which compete for a thing (empty: none does).
    """
    thresholds = options.thresholds(names).to(logits)
    inside = area(boxes_xyxy_px) > 0
    if not inside.all():
        logits = logits.masked_fill(~inside[:, None], -torch.inf)
        boxes_xyxy_px = boxes_xyxy_px.masked_fill(~inside[:, None], 0.0)  # a NaN would reach whom it votes for
    best = _best(logits, boxes_xyxy_px, names)
    # A sigmoid of everything would cost more than the scores that pass: a bound on logits finds those that may.
    bounds = thresholds.logit().clamp(torch.finfo(logits.dtype).min, MOST_LOGIT) - LOGIT_SLACK
    patches, labels = (logits >= bounds).nonzero(as_tuple=True)
    scores = logits[patches, labels].sigmoid()
    passed = scores >= thresholds[labels]
    if not passed.all():
        patches, labels, scores = patches[passed], labels[passed], scores[passed]
    boxes = boxes_xyxy_px[patches]
    # A stable order: equal scores keep the order of patches and queries on every machine.
    order = scores.argsort(descending=True, stable=True)
    if options.suppressing_iou is not None:
        order = order[: options.n_candidates]
        groups = torch.zeros_like(labels) if options.nms_across else labels
        order = order[not_suppressed(boxes[order], scores[order], groups[order], options.suppressing_iou)]
        if options.rival_power and sum(texts) > 1 and len(order):
            answers = (patches, labels, scores)
            order, scores = _against_rivals(logits, boxes_xyxy_px, answers, order, thresholds, texts, options)
    order = order[: options.max_detections]
    boxes, scores, labels, patches = boxes[order], scores[order], labels[order], patches[order]
    if options.box_voting and options.suppressing_iou is not None:
        boxes = voted_boxes(logits, boxes_xyxy_px, patches, labels)
    return Detections(boxes, scores, labels, tuple(names), image_hw, patches, best)


def _against_rivals(
    logits: Tensor,
    boxes: Tensor,
    answers: tuple[Tensor, Tensor, Tensor],
    order: Tensor,
    thresholds: Tensor,
    texts: Sequence[bool],
    options: DetectOptions,
) -> tuple[Tensor, Tensor]:
    """Of ``order``, places of answers (patches, labels, scores [N]) from the best on, those that pass their thresholds
    [Q] with what their rivals leave them, again from the best on, as many as are asked for at the least; and scores
    [N] in which theirs are these."""
    compete = torch.tensor(texts, device=logits.device)
    patches, labels, scores = answers
    lowered, passed = scores.clone(), order[:0]
    for part in order.split(max(RIVALS_AT_ONCE, options.max_detections)):
        # A score only falls: where enough are as high as the next one was, none of the rest gets past them.
        if (lowered[passed] >= scores[part[0]]).sum() >= options.max_detections:
            break
        own, rivals = scores[part], rival_scores(logits, boxes, patches[part], labels[part], compete)
        loses = compete[labels[part]] & (rivals > own)
        lowered[part] = torch.where(loses, own * (own / rivals) ** options.rival_power, own)
        passed = torch.cat([passed, part[lowered[part] >= thresholds[labels[part]]]])
    return passed[lowered[passed].argsort(descending=True, stable=True)], lowered


def rival_scores(logits: Tensor, boxes: Tensor, patches: Tensor, labels: Tensor, compete: Tensor) -> Tensor:
    """Of the answers ``patches [K]`` for the queries ``labels [K]``, the highest score [K] that another of the queries
    which ``compete [Q]`` has for the same thing: of all patches whose boxes [P, 4] overlap the answer's by RIVALS_IOU,
    whether it passed or not (``logits [P, Q]``), so no threshold changes it."""
    step = max(1, VOTES_AT_ONCE // max(1, len(boxes)))
    highest = []
    for patch, label in zip(patches.split(step), labels.split(step), strict=True):
        same = pairwise_iou(boxes[patch], boxes) >= RIVALS_IOU  # [k, P]
        near = same.any(0).nonzero()[:, 0]
        first = logits[near].masked_fill(~compete, -torch.inf).topk(2, dim=1)
        # Of two queries the best that is not the answer's own.
        own = first.indices[None, :, 0] == label[:, None]
        other = torch.where(own, first.values[None, :, 1], first.values[None, :, 0])
        highest.append(other.masked_fill(~same[:, near], -torch.inf).amax(1).sigmoid())
    return torch.cat(highest)


def voted_boxes(logits: Tensor, boxes: Tensor, patches: Tensor, labels: Tensor) -> Tensor:
    """Boxes [K, 4] of the answers ``patches [K]`` for the queries ``labels [K]``, after a vote.

    All patches whose boxes [P, 4] overlap an answer's by VOTERS_IOU vote, whatever their score (``logits [P, Q]``): so
    no threshold changes a box. A vote weighs the score times the square of the overlap (box voting, arXiv:1505.01749).
    """
    voted = []
    step = max(1, VOTES_AT_ONCE // max(1, len(boxes)))
    for patch, label in zip(patches.split(step), labels.split(step), strict=True):
        overlap = pairwise_iou(boxes[patch], boxes)  # [k, P]
        weights = logits[:, label].T.sigmoid() * overlap.square() * (overlap >= VOTERS_IOU)
        total = weights.sum(1, keepdim=True)
        mean = weights @ boxes / total.clamp(min=torch.finfo(total.dtype).tiny)
        voted.append(torch.where(total > 0, mean, boxes[patch]))
    return torch.cat(voted)


def _best(logits: Tensor, boxes: Tensor, names: Sequence[str]) -> Detection | None:
    """The answer of the highest score, whatever the threshold; of equals the first. None where no patch may answer."""
    if not logits.numel():
        return None
    patch, label = divmod(int(logits.argmax()), len(names))
    if logits[patch, label] == -torch.inf:
        return None
    x0, y0, x1, y1 = boxes[patch].tolist()
    return Detection(names[label], float(logits[patch, label].sigmoid()), (x0, y0, x1, y1), label)


def check_fraction(name: str, value: float) -> None:
    """Refuses a setting that is no number in [0, 1]."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= value <= 1:  # NaN fails this too
        raise QueryError(f"{name} must be a number in [0, 1], got {brief(value)}")


def _checked_threshold(threshold: Any) -> float | tuple[float, ...] | dict[str, float]:
    """One number, one a query, or one a name."""
    if isinstance(threshold, Mapping):
        for name, value in threshold.items():
            if not isinstance(name, str):
                raise QueryError(f"threshold must name queries by their texts, got {brief(name)}")
            check_fraction(f"the threshold of {brief(name)}", value)
        return {name: float(value) for name, value in threshold.items()}
    try:
        values = torch.as_tensor(threshold, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        values = torch.zeros(0, 0)
    if values.ndim > 1 or isinstance(threshold, bool):
        raise QueryError(f"threshold must be a number in [0, 1] or one a query, got {brief(threshold)}")
    if not ((values >= 0) & (values <= 1)).all():  # NaN fails this too
        raise QueryError(f"threshold must lie in [0, 1], got {brief(threshold)}")
    return float(values) if values.ndim == 0 else tuple(values.tolist())
