"""The façade that users hold: the only place where image, tokenizer, model and post-processing meet."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor

from owl_swin.attention import BlockAttention
from owl_swin.classification import TEMPLATES, check_classes, check_sees_whole, class_means, class_probabilities
from owl_swin.detections import Detections
from owl_swin.devices import pick_device, pick_dtype
from owl_swin.encoded import EncodedImage, PreparedImage, View
from owl_swin.encoder import Encoder, Picture, check_batch_size, check_many, chosen_size
from owl_swin.errors import OwlSwinError, QueryError, brief
from owl_swin.exemplar import Exemplar, combine
from owl_swin.families import LoadSettings, load, of_module
from owl_swin.frame import check_image_size
from owl_swin.image import ImageSource
from owl_swin.models.network import Network, Pretrained, Spec
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.postprocess import DetectOptions, DetectSettings, detect_options, options_per_image
from owl_swin.publishing import Publishable
from owl_swin.queries import Queries, Query, as_queries, encode_queries, load_queries, queries_per_image
from owl_swin.scoring import names_of, score
from owl_swin.tiling import TilesLike, find_in_views
from owl_swin.types import Classification, ImageEmbeddings, PatchLogitInputs, QueryEmbeddings

# Without queries, whatever looks like a thing.
_Asked = tuple[QueryEmbeddings | None, DetectOptions]


class Detector(Publishable):
    """Finds what you name or show in pictures.

    >>> detector = Detector.from_pretrained()
    >>> found = detector.detect("kitchen.jpg", ["a red mug", "a dog"], threshold=0.3)
    >>> found = detector.detect("kitchen.jpg", [Exemplar("mug.jpg", (40, 60, 210, 300))])
    """

    def __init__(
        self,
        source: Pretrained | OwlSwin,
        *,
        card: dict[str, Any] | None = None,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        image_size: int | None = None,
    ):
        """``source`` stays as it is: where it is in training mode, elsewhere, or of another ``dtype``, a copy is used.

        ``image_size``: longer side in pixels that pictures are brought to; None is the size the model was made for.
        Larger finds smaller things and costs in proportion to the pixels. ``dtype``: "float32", "bfloat16" or "half".
        """
        pretrained = source if isinstance(source, Pretrained) else of_module(source)
        self.card: dict[str, Any] = dict(pretrained.card if card is None else card)
        self._image_size = None if image_size is None else check_image_size(image_size)
        self._encoder = Encoder(pretrained, pick_device(device, pretrained.network), pick_dtype(dtype))

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "nano",
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        image_size: int | None = None,
        **settings: Unpack[LoadSettings],
    ) -> "Detector":
        """The model that ships ("nano"), or one of ours, OWL-ViT or OWLv2 by its file, folder or name on the hub.

        ``content_only``: OWLv2 pads pictures to squares; patches that show nothing else are left out, which is faster
        and not the same to the digit. ``revision`` and ``token`` are of a model on the Hugging Face hub.
        ``runtime``: "torch", "compile" (torch.compile), or for a folder that `owl-swin export` wrote "onnx" or
        "openvino"; "auto" is torch for weights, and for such a folder what it was written for.
        """
        return cls(load(source, **settings), device=device, dtype=dtype, image_size=image_size)

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: str | torch.dtype | None = None
    ) -> "Detector":
        """A detector of the same model on another device or of another precision; this one stays as it is.

        As in torch, a dtype may stand first: ``to(torch.bfloat16)``.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device if dtype is None else dtype
        moved = copy.copy(self)
        place = self.device if device is None else pick_device(device, self.model)
        moved._encoder = Encoder(self._encoder.pretrained, place, pick_dtype(dtype), self.spec)
        return moved

    def with_image_size(self, image_size: int) -> "Detector":
        """A detector of the same model that brings pictures to another size."""
        other = copy.copy(self)
        other._image_size = check_image_size(image_size)
        return other

    @property
    def model(self) -> Network:
        """The network itself; ``spec`` says what other code should know of it."""
        return self._encoder.pretrained.network

    @property
    def spec(self) -> Spec:
        """What there is to know of the model, with its weights as they were when this was first asked for."""
        return self._encoder.spec

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self._encoder.device

    @property
    def has_attention(self) -> bool:
        """Whether attention() has something to show."""
        return self._encoder.pretrained.look_inside is not None

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the model's weights; embeddings and scores are float32."""
        return self._encoder.dtype

    @property
    def image_size(self) -> int:
        """Longer side in pixels that pictures are brought to."""
        return self.spec.image_size if self._image_size is None else self._image_size

    @property
    def name(self) -> str:
        """What the model card calls the model; without a card, its configuration."""
        return str(self.card.get("name") or self.spec.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's weights as they were when it was first asked for; queries carry it when encoded."""
        return self.spec.fingerprint

    # --- Encoding --------------------------------------------------------------------------------------------------

    def prepare(
        self, image: ImageSource, *, image_size: int | None = None, tiles: TilesLike | None = None
    ) -> PreparedImage:
        """The picture read and brought to the size of the model: the part of encoding that other threads can do.

        ``tiles`` are shown to the model beside the whole picture: small things are found there. A number is their side
        in pixels, ``Tiles(640, overlap=0.2)`` says more, and a list of boxes, xyxy in whole pixels, names them. The
        result can stand in for the picture everywhere.
        """
        prepared = self._prepared(image, image_size, tiles)
        assert isinstance(prepared, PreparedImage)
        return prepared

    def encode_image(
        self,
        image: ImageSource | PreparedImage,
        *,
        image_size: int | None = None,
        tiles: TilesLike | None = None,
    ) -> EncodedImage:
        """One pass through the image encoder. The result can be given to detect() in place of the picture."""
        return self._encoded(image, image_size, tiles)

    def encode_images(
        self, images: Iterable[ImageSource | PreparedImage], *, batch_size: int = 8
    ) -> list[EncodedImage]:
        """As encode_image, several at a time: pictures of one model size share a batch, none is padded to another.

        At most ``batch_size`` pictures are read before they are encoded.
        """
        check_many(images, "encode_images", "encode_image")
        encoded = self._encoder.stream(images, self.image_size, check_batch_size(batch_size))
        return [one for one in encoded if isinstance(one, EncodedImage)]

    def views(
        self, image: Picture, *, image_size: int | None = None, tiles: TilesLike | None = None, batch_size: int = 8
    ) -> Iterator[tuple[int, View]]:
        """As encode_image, but one view after another, with its number, as they are read: of a huge picture at most
        ``batch_size`` tiles are in memory at a time."""
        size = chosen_size(image, image_size, tiles, self.image_size)
        return self._encoder.views(image, size, tiles, batch_size)

    def encode_queries(self, queries: Sequence[str | Exemplar | Query]) -> QueryEmbeddings:
        """Texts, exemplars and queries of both → embeddings for any number of pictures, in the same order.

        Names are kept as given. ``save`` of the result and ``load_queries`` keep it in a file.
        """
        asked = as_queries(queries)
        with torch.no_grad():
            encoded = encode_queries(asked, self._encoder.texts, self.encode_exemplars)
        return replace(encoded, fingerprint=self.fingerprint)

    def load_queries(self, path: str | Path | bytes) -> QueryEmbeddings:
        """Queries that ``QueryEmbeddings.save`` wrote, or the bytes of such a file; a damaged one or another model's
        queries raise QueryError."""
        return load_queries(path, self.spec)

    @torch.no_grad()
    def encode_exemplars(self, exemplars: Sequence[Exemplar]) -> Tensor:
        """One unit embedding [E] of a thing that several exemplars show: the geometric median of theirs."""
        if not exemplars:
            raise QueryError("the list of exemplars is empty")
        return combine(torch.stack([self._encoder.exemplar(one, self.image_size) for one in exemplars]))

    # --- Finding ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def score(self, patches: EncodedImage | PatchLogitInputs, queries: QueryEmbeddings) -> Tensor:
        """Calibrated logits [P, Q] of every patch for every query; their sigmoid is the score.

        ``patches`` are those of an encoded picture or stored regions. ``scoring.score`` says how texts, exemplars and
        negatives of one query are joined.
        """
        queries.check_model(self.spec.embed_dim, self.fingerprint)
        if isinstance(patches, EncodedImage):
            patches = patches.patches()
        return score(patches, queries, self.spec.calibration)

    @torch.no_grad()
    def similarity(self, image: Picture, queries: Queries = None) -> Tensor:
        """Scores [Q, h, w] in [0, 1] of the grid of patches, which covers the upright picture, for each query.

        Without queries, [1, h, w]: objectness. ``draw_heat_map`` shows one; ``Detections.patches`` index a map's
        patches row by row, unless pictures are padded: then maps are interpolated to what shows the picture.
        """
        whole = self._encoded(image).views[0]
        return whole.maps(self._logits(whole.embeddings, self._as_embeddings(queries)).sigmoid())

    def attention(self, image: ImageSource | PreparedImage, *, image_size: int | None = None) -> list[BlockAttention]:
        """What every patch of the picture attends to in each block of the encoder, first to last.

        ``image_size`` as in the constructor, for this picture alone: a larger one has more windows.
        """
        prepared = self._prepared(image, image_size, None)
        if isinstance(prepared, EncodedImage):
            raise QueryError("attention takes the picture itself, and not what was encoded of it")
        return self._encoder.attention(prepared)

    def detect(
        self,
        image: Picture,
        queries: Queries = None,
        *,
        options: DetectOptions | None = None,
        image_size: int | None = None,
        tiles: TilesLike | None = None,
        **settings: Unpack[DetectSettings],
    ) -> Detections:
        """Boxes of everything in the picture that answers a query; without queries, of all that looks like a thing.

        Boxes are xyxy pixels of the upright picture. Nothing found is an empty Detections, whose ``best`` says what a
        lower threshold would show. What DetectOptions holds can be given here too: ``threshold``, ``nms_iou``,
        ``nms_across``, ``objectness``, ``max_detections`` (or ``top_k``). ``image_size`` is that of the constructor and
        ``tiles`` those of prepare(), for this picture alone: then it may be huge, and a thing that a seam cuts is one.
        """
        if isinstance(image, (list, tuple)):
            raise QueryError(f"detect takes one picture, got a list of {len(image)}; call detect_batch for several")
        chosen, asked = detect_options(options, settings), self._as_embeddings(queries)
        return self._detect(self.views(image, image_size=image_size, tiles=tiles), (asked, chosen))

    def detect_batch(
        self,
        images: Iterable[Picture],
        queries: Queries | Sequence[Queries] = None,
        *,
        options: DetectOptions | None = None,
        batch_size: int = 8,
        tiles: TilesLike | None = None,
        **settings: Unpack[DetectSettings],
    ) -> list[Detections]:
        """As detect, for many pictures: one Detections a picture, in order.

        ``queries`` is one list for all pictures, or a list of lists, one a picture, of any lengths. At most
        ``batch_size`` pictures, or ``tiles``, are read before they are encoded; one that cannot be raises ImageError.
        """
        many = list(check_many(images, "detect_batch", "detect"))
        per_image = queries_per_image(queries, len(many), self.encode_queries)
        chosen = options_per_image(detect_options(options, settings), [names_of(asked) for asked in per_image])
        return list(self._answers(many, zip(per_image, chosen, strict=True), check_batch_size(batch_size), tiles))

    @overload
    def stream(
        self,
        images: Iterable[Picture],
        queries: Queries = None,
        *,
        options: DetectOptions | None = None,
        batch_size: int = 8,
        tiles: TilesLike | None = None,
        on_error: Literal["raise"] = "raise",
        **settings: Unpack[DetectSettings],
    ) -> Iterator[Detections]: ...

    @overload
    def stream(
        self,
        images: Iterable[Picture],
        queries: Queries = None,
        *,
        options: DetectOptions | None = None,
        batch_size: int = 8,
        tiles: TilesLike | None = None,
        on_error: Literal["return"],
        **settings: Unpack[DetectSettings],
    ) -> Iterator[Detections | OwlSwinError]: ...

    def stream(
        self,
        images: Iterable[Picture],
        queries: Queries = None,
        *,
        options: DetectOptions | None = None,
        batch_size: int = 8,
        tiles: TilesLike | None = None,
        on_error: Literal["raise", "return"] = "raise",
        **settings: Unpack[DetectSettings],
    ) -> Iterator[Any]:
        """As detect_batch with one list of queries, but one result after another and for any number of pictures.

        ``images`` may be endless: at most ``batch_size`` of them are read ahead, and kept in the size of the model.
        ``on_error``: "return" gives the error in the place of a picture that cannot be read, and goes on.

        >>> for found in detector.stream(Path("photos").glob("*.jpg"), ["a dog"]):
        ...     print(found.to_dicts())
        """
        if on_error not in ("raise", "return"):
            raise QueryError(f'on_error must be "raise" or "return", got {brief(on_error)}')
        check_many(images, "stream", "detect")
        chosen, asked = detect_options(options, settings), self._as_embeddings(queries)
        chosen.thresholds(names_of(asked))  # what is for other queries is refused here, not at the first picture
        return self._answers(images, repeat((asked, chosen)), check_batch_size(batch_size), tiles, on_error)

    @torch.no_grad()
    def classify(
        self,
        image: Picture,
        names: Sequence[str | Exemplar | Query],
        *,
        templates: Sequence[str] = TEMPLATES,
    ) -> Classification:
        """Which of the names fits the whole picture: a probability each, by CLIP's softmax over the names.

        Each name, or every text of a Query, is put in every template in place of ``{}`` and the embeddings are
        averaged. Classes may be shown instead, all of them: an Exemplar, or a Query of several, then stands for its
        whole picture, or for the square around its box. Negatives, and texts beside examples, raise QueryError, and
        so does a model that was not trained for it.
        """
        check_sees_whole(self.spec)
        classes = check_classes(names, templates)
        means = class_means(classes, templates, self.encode_images, self.encode_queries)
        shares = class_probabilities(means, self._encoded(image).embeddings.image_embed, self.spec)
        return Classification(shares, tuple(one.name for one in classes))

    # --- Inside ----------------------------------------------------------------------------------------------------

    def _prepared(self, image: Picture, size: int | None, tiles: TilesLike | None) -> PreparedImage | EncodedImage:
        return self._encoder.prepare(image, chosen_size(image, size, tiles, self.image_size), tiles)

    def _encoded(self, image: Picture, image_size: int | None = None, tiles: TilesLike | None = None) -> EncodedImage:
        prepared = self._prepared(image, image_size, tiles)
        return prepared if isinstance(prepared, EncodedImage) else self._encoder.encode([prepared], 1)[0]

    def _answers(
        self,
        images: Iterable[Picture],
        asked: Iterable[_Asked],
        batch_size: int,
        tiles: TilesLike | None,
        on_error: Literal["raise", "return"] = "raise",
    ) -> Iterator[Any]:
        if tiles is None:
            encoded = self._encoder.stream(images, self.image_size, batch_size, on_error)
            for one, what in zip(encoded, asked, strict=False):
                yield self._detect(enumerate(one.views), what) if isinstance(one, EncodedImage) else one
            return
        for image, what in zip(images, asked, strict=False):
            try:
                yield self._detect(self.views(image, tiles=tiles, batch_size=batch_size), what)
            except OwlSwinError as error:
                if on_error == "raise":
                    raise
                yield error

    @torch.no_grad()
    def _detect(self, views: Iterable[tuple[int, View]], asked: _Asked) -> Detections:
        queries, options = asked
        return find_in_views(views, lambda patches: self._logits(patches, queries), names_of(queries), options)

    def _logits(self, patches: ImageEmbeddings, queries: QueryEmbeddings | None) -> Tensor:
        """Logits [P, Q]; without queries, [P, 1]: the objectness of every patch."""
        return patches.objectness_logits[:, None] if queries is None else self.score(patches, queries)

    def _as_embeddings(self, queries: Queries) -> QueryEmbeddings | None:
        return queries if queries is None or isinstance(queries, QueryEmbeddings) else self.encode_queries(queries)
