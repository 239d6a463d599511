"""A detector in the shape of transformers' pipeline("zero-shot-object-detection"): same calls, same answers."""

import base64
import binascii
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from PIL import Image

from owl_swin.addresses import is_url
from owl_swin.detections import Detections
from owl_swin.detector import Detector
from owl_swin.encoded import EncodedImage, PreparedImage
from owl_swin.encoder import check_batch_size
from owl_swin.errors import ConfigError, ImageError, QueryError, brief
from owl_swin.fetching import fetch
from owl_swin.formats import CORNERS
from owl_swin.image import MAX_FILE_BYTES
from owl_swin.models.network import Pretrained
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.types import QueryEmbeddings

TASK = "zero-shot-object-detection"
# As in transformers.
THRESHOLD = 0.1
TIMEOUT_S, REDIRECTS = 30.0, 5
# More detections than any picture has patches: all that pass the threshold.
ALL = 10**6
# Lists of labels whose embeddings are kept: a loop over pictures asks for the same again and again.
KEPT_LABELS = 64
# A text as long is no path, and may be a picture in base64; so may one that begins as PNG, JPEG, GIF and WebP do there.
LONGEST_NAME = 4096
IN_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
# What transformers' pipeline() takes to put its models together; ours bring their own.
OWN_PARTS = ("config", "tokenizer", "feature_extractor", "image_processor", "video_processor", "processor")
# What it takes of how transformers loads a model, and what has no meaning here.
OF_TRANSFORMERS = ("use_fast", "trust_remote_code", "framework", "pipeline_class", "num_workers")
OF_LOADING = ("attn_implementation", "low_cpu_mem_usage", "use_safetensors", "trust_remote_code")
MODEL_SETTINGS = ("image_size", "content_only", "runtime")
SETTINGS = (
    "threshold",
    "top_k",
    "timeout",
    "batch_size",
    "nms_iou",
    "box_voting",
    "rivals",
    "nms_across",
    "objectness",
    "image_size",
)


class ZeroShotObjectDetectionPipeline:
    """Called with pictures and labels, gives a list of {"score", "label", "box": {"xmin", "ymin", "xmax", "ymax"}} a
    picture, best first; boxes are whole pixels of the upright picture.

    >>> pipe = owl_swin.pipeline("zero-shot-object-detection")
    >>> pipe("kitchen.jpg", candidate_labels=["a red mug", "a dog"])
    """

    task = TASK

    def __init__(self, detector: Detector, **settings: Any):
        """``settings`` are those of a call, for every one that gives no other."""
        self.detector = detector
        self._settings = _checked(settings)
        self._kept: LRUCache[tuple[str, ...], QueryEmbeddings] = LRUCache(KEPT_LABELS)
        self._lock = Lock()

    @property
    def model(self) -> Any:
        """The network."""
        return self.detector.model

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.detector.device

    def __call__(self, image: Any, candidate_labels: Any = None, **settings: Any) -> Any:
        """What is found in one picture, a list; in a list of pictures, a list of them; in a generator or a data set of
        pictures, an iterator of them, one after another.

        A picture is a path, a URL, a data: URL, or whatever ``detect`` takes; {"image", "candidate_labels"} has labels
        of its own. ``candidate_labels`` are a list, a text with commas, or a list a picture, for all that bring none.
        ``threshold`` (0.1), ``top_k`` (all), ``timeout`` in seconds of a URL, ``batch_size``, and the settings of
        ``detect``. URLs are fetched from the open internet alone.
        """
        if "text_queries" in settings:  # as the labels were called before
            candidate_labels = settings.pop("text_queries")
        chosen = {**self._settings, **_checked(settings)}
        if isinstance(candidate_labels, Iterator):  # which would be spent after the first picture
            candidate_labels = list(candidate_labels)
        if _is_one(image):
            return next(self._answers([(image, candidate_labels)], chosen, 1))
        if not isinstance(image, Iterable) and not hasattr(image, "__getitem__"):
            raise ImageError(f"expected a picture, or several, got {type(image).__name__}")
        if isinstance(image, (list, tuple)):
            labels = _labels_per_image(candidate_labels, len(image))
            return list(self._answers(zip(image, labels, strict=True), chosen, chosen.get("batch_size") or 8))
        items = iter(image) if isinstance(image, Iterable) else (image[i] for i in range(len(image)))
        # One at a time: the next picture of a camera is still to come.
        return self._answers(((one, candidate_labels) for one in items), chosen, chosen.get("batch_size") or 1)

    def __reduce__(self) -> Any:
        """As what it was made of: other processes get it so, and a lock cannot go there."""
        return _remade, (self.detector, self._settings)

    def _answers(
        self, jobs: Iterable[tuple[Any, Any]], settings: Mapping[str, Any], batch_size: int
    ) -> Iterator[list[dict[str, Any]]]:
        jobs = iter(jobs)
        while batch := list(islice(jobs, batch_size)):
            asked = [self._pair(one, labels) for one, labels in batch]
            yield from map(_rows, self._detect(asked, settings, batch_size))

    def _detect(
        self, asked: Sequence[tuple[Any, QueryEmbeddings]], settings: Mapping[str, Any], batch_size: int
    ) -> list[Detections]:
        detector = self.detector
        if settings.get("image_size") is not None:
            detector = detector.with_image_size(settings["image_size"])
        options = {
            key: settings[key]
            for key in ("nms_iou", "box_voting", "rivals", "nms_across", "objectness")
            if key in settings
        }
        return detector.detect_batch(
            [_opened(picture, settings.get("timeout")) for picture, _ in asked],
            [queries for _, queries in asked],
            batch_size=batch_size,
            threshold=settings.get("threshold", THRESHOLD),
            max_detections=settings.get("top_k") or ALL,
            **options,
        )

    def _pair(self, one: Any, labels: Any) -> tuple[Any, QueryEmbeddings]:
        """A picture and what is looked for in it."""
        if isinstance(one, Mapping):
            if "image" not in one:
                raise ImageError(f'expected {{"image": …, "candidate_labels": …}}, got the keys {brief(list(one))}')
            one, labels = one["image"], one.get("candidate_labels", labels)
        labels = labels.split(",") if isinstance(labels, str) else labels
        if not isinstance(labels, Iterable) or not (labels := list(labels)):
            raise QueryError(
                f"candidate_labels must be a list of what to look for, or a text with commas, got {labels}"
            )
        return one, self._encoded(labels)

    def _encoded(self, labels: list[Any]) -> QueryEmbeddings:
        if not all(isinstance(label, str) for label in labels):
            return self.detector.encode_queries(labels)
        key = tuple(labels)
        with self._lock:
            queries = self._kept.get(key)
        if queries is None:
            queries = self.detector.encode_queries(labels)
            with self._lock:
                self._kept[key] = queries
        return queries


def pipeline(
    task: str | None = None,
    model: str | Path | Detector | Pretrained | OwlSwin | None = None,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    device: int | str | torch.device | None = None,
    device_map: str | Mapping[str, int | str | torch.device] | None = None,
    dtype: str | torch.dtype | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **settings: Any,
) -> ZeroShotObjectDetectionPipeline:
    """What takes the place of transformers' pipeline() for the task "zero-shot-object-detection".

    ``model`` is a Detector, or what ``Detector.from_pretrained`` reads; None is the model that ships. ``device`` may be
    a number as there (-1 is the CPU); None takes an accelerator where there is one. ``settings`` are those of a call.
    Parts that transformers puts models together from, as a tokenizer, raise ConfigError: a model here brings its own.
    """
    if task is not None and task != TASK:
        raise ConfigError(f"owl_swin.pipeline does {TASK!r} and nothing else, got {brief(task)}")
    for part in OWN_PARTS:
        # A name beside the model's is how snippets say "the one of the model".
        if not isinstance(settings.pop(part, None), (str, type(None))):
            raise ConfigError(f"a model of owl_swin brings its own {part}; leave it out")
    for key in OF_TRANSFORMERS:
        settings.pop(key, None)
    more = {key: value for key, value in (model_kwargs or {}).items() if key not in OF_LOADING}
    named = (dtype, settings.pop("torch_dtype", None), *(more.pop(key, None) for key in ("dtype", "torch_dtype")))
    given = next((one for one in named if one is not None), None)  # torch_dtype is how dtype was called before
    if unknown := [key for key in more if key not in MODEL_SETTINGS]:
        raise ConfigError(f"unknown setting {brief(unknown[0])} in model_kwargs; there are {', '.join(MODEL_SETTINGS)}")
    precision = None if given == "auto" else given.removeprefix("torch.") if isinstance(given, str) else given
    place = _device(device if device is not None else device_map)
    if isinstance(model, Detector):
        asked = device is not None or device_map is not None
        detector = model.to(place if asked else None, precision) if asked or precision is not None else model
    elif isinstance(model, (Pretrained, OwlSwin)):
        detector = Detector(model, device=place, dtype=precision)
    else:
        source = "nano" if model is None else model
        detector = Detector.from_pretrained(
            source, device=place, dtype=precision, revision=revision, token=token, **more
        )
    return ZeroShotObjectDetectionPipeline(detector, **settings)


def _checked(settings: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in OF_TRANSFORMERS}
    if unknown := [key for key in kept if key not in SETTINGS]:
        raise ConfigError(f"unknown setting {brief(unknown[0])}; there are {', '.join(SETTINGS)}")
    if kept.get("batch_size"):  # 0 and None stand for none that was chosen
        kept["batch_size"] = check_batch_size(kept["batch_size"])
    return kept


def _remade(detector: Detector, settings: Mapping[str, Any]) -> ZeroShotObjectDetectionPipeline:
    return ZeroShotObjectDetectionPipeline(detector, **settings)


def _is_one(image: Any) -> bool:
    """Whether this is a single picture, or one with its labels."""
    if isinstance(image, (list, tuple)):
        return False
    whole = (str, Path, bytes, bytearray, memoryview, Mapping, Image.Image, np.ndarray, torch.Tensor)
    ready = (PreparedImage, EncodedImage)
    return isinstance(image, (*whole, *ready)) or callable(getattr(image, "read", None))


def _labels_per_image(labels: Any, n_images: int) -> list[Any]:
    """One list of labels a picture, of one for all or one each."""
    nested = isinstance(labels, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in labels)
    if not nested:
        return [labels] * n_images
    if not all(isinstance(one, (list, tuple)) for one in labels):
        raise QueryError("candidate_labels must be a text, a list of them, or a list of lists, one a picture")
    if len(labels) != n_images:
        raise QueryError(
            f"got {len(labels)} lists of candidate_labels for {n_images} pictures; give one list a picture"
        )
    return list(labels)


def _opened(image: Any, timeout_s: float | None) -> Any:
    """The picture, or the bytes of one that is an address or written in base64."""
    if not isinstance(image, str):
        return image
    if is_url(image):
        try:
            return fetch(
                image,
                None,
                max_bytes=MAX_FILE_BYTES,
                timeout_s=TIMEOUT_S if timeout_s is None else timeout_s,
                redirects=REDIRECTS,
            )
        except ImageError as error:
            raise type(error)(error.reason, of=image) from None
    head, comma, rest = image.partition(",")
    in_base64 = rest if comma and re.fullmatch(r"data:image/[\w.+-]+;base64", head) else image
    may_be_name = os.path.exists  # which has a no, and no error, for a name that is too long
    if in_base64 is rest or len(image) > LONGEST_NAME or (image.startswith(IN_BASE64) and not may_be_name(image)):
        try:
            return base64.b64decode("".join(in_base64.split()), validate=True)
        except (binascii.Error, ValueError):
            raise ImageError(f"not a picture in base64: {brief(image, 40)}") from None
    return image


def _device(device: Any) -> str | torch.device:
    if isinstance(device, Mapping) and len(device) == 1:  # {"": "cuda:0"}: the whole model there
        device = next(iter(device.values()))
    if device is None or device in ("auto", "balanced", "balanced_low_0", "sequential"):
        return "auto"
    if isinstance(device, bool) or not isinstance(device, (int, str, torch.device)):
        raise ConfigError(f"device must be a number, a name or a torch.device, got {brief(device)}")
    if not isinstance(device, int):
        return device
    accelerator = torch.accelerator.current_accelerator()
    return "cpu" if device < 0 else f"{accelerator.type if accelerator else 'cuda'}:{device}"


def _rows(found: Detections) -> list[dict[str, Any]]:
    return [
        {"score": one.score, "label": one.name, "box": dict(zip(CORNERS, map(int, one.box_xyxy), strict=True))}
        for one in found
    ]
