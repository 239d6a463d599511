"""The façade that users hold: the only place where image, tokenizer, model and post-processing meet."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import Any, Literal, Unpack, overload

from torch import Tensor

from owl_swin.classification import TEMPLATES, check_classes, check_sees_whole, class_means, class_probabilities
from owl_swin.detections import Detections
from owl_swin.devices import by_itself
from owl_swin.embedder import Embedder
from owl_swin.encoded import EncodedImage, View
from owl_swin.encoder import Picture, check_batch_size, check_has_masks, check_many
from owl_swin.errors import OwlSwinError, QueryError, brief
from owl_swin.exemplar import Exemplar
from owl_swin.postprocess import (
    DEFAULT_THRESHOLD,
    DetectOptions,
    DetectSettings,
    Threshold,
    detect_options,
    options_per_image,
)
from owl_swin.queries import Queries, Query, queries_per_image
from owl_swin.scoring import names_of, score
from owl_swin.segmentation import check_named, crops_of, map_thresholds, segment_views
from owl_swin.semantic_map import SemanticMap
from owl_swin.tiling import TilesLike, find_in_views
from owl_swin.types import Classification, ImageEmbeddings, PatchLogitInputs, QueryEmbeddings

# Without queries, whatever looks like a thing.
_Asked = tuple[QueryEmbeddings | None, DetectOptions]


class Detector(Embedder):
    """Finds what you name or show in pictures.

    >>> detector = Detector.from_pretrained()
    >>> found = detector.detect("kitchen.jpg", ["a red mug", "a dog"], threshold=0.3)
    >>> found = detector.detect("kitchen.jpg", [Exemplar("mug.jpg", (40, 60, 210, 300))])
    """

    @by_itself
    def score(self, patches: EncodedImage | PatchLogitInputs, queries: QueryEmbeddings) -> Tensor:
        """Calibrated logits [P, Q] of every patch for every query; their sigmoid is the score before rivals.

        ``patches`` are those of an encoded picture or stored regions. ``scoring.score`` says how texts, exemplars and
        negatives of one query are joined.
        """
        queries.check_model(self.spec.embed_dim, self.fingerprint)
        if isinstance(patches, EncodedImage):
            patches.check_model(self.fingerprint)
            patches = patches.patches()
        return score(patches, queries, self.spec.calibration)

    @by_itself
    def similarity(self, image: Picture, queries: Queries = None) -> Tensor:
        """Scores [Q, h, w] in [0, 1] of the grid of patches, which covers the upright picture, for each query.

        Without queries, [1, h, w]: objectness. ``draw_heat_map`` shows one; ``Detections.patches`` index a map's
        patches row by row, unless pictures are padded: then maps are interpolated to what shows the picture.
        """
        whole = self._encoded(image).views[0]
        return whole.maps(self._logits(whole.embeddings, self._as_embeddings(queries)).sigmoid())

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
        ``nms_across``, ``box_voting``, ``rivals``, ``objectness``, ``max_detections`` (or ``top_k``), ``masks``.
        ``image_size`` is that of the constructor and ``tiles`` those of prepare(), for this picture alone: then it may
        be huge, and a thing that a seam cuts is one.
        """
        if isinstance(image, (list, tuple)):
            raise QueryError(f"detect takes one picture, got a list of {len(image)}; call detect_batch for several")
        chosen, asked = self._options(options, settings), self._as_embeddings(queries)
        views = self.views(image, image_size=image_size, tiles=tiles, masks=chosen.masks)
        return self._detect(views, (asked, chosen))

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
        common = self._options(options, settings)
        chosen = options_per_image(common, [names_of(asked) for asked in per_image])
        asked, step = zip(per_image, chosen, strict=True), check_batch_size(batch_size)
        return list(self._answers(many, asked, step, tiles, masks=common.masks))

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
        chosen, asked = self._options(options, settings), self._as_embeddings(queries)
        chosen.thresholds(names_of(asked))  # what is for other queries is refused here, not at the first picture
        step = check_batch_size(batch_size)
        return self._answers(images, repeat((asked, chosen)), step, tiles, on_error, masks=chosen.masks)

    @by_itself
    def segment(
        self,
        image: Picture,
        queries: Queries,
        *,
        threshold: Threshold = DEFAULT_THRESHOLD,
        image_size: int | None = None,
        tiles: TilesLike | None = None,
    ) -> SemanticMap:
        """What each pixel of the picture shows: the query of the highest score, or nothing where none is likely enough.

        ``threshold``: the lowest score of all queries, one a query, or {name: number}, as in detect. Queries of one
        name are one in the map. ``tiles``: where they show a place they say what it is, and the picture may be huge. A
        model without masks, or a picture that was encoded without, raises QueryError.

        >>> found = detector.segment("street.jpg", ["sky", "road", "a dog"])
        >>> found.mask("a dog").sum(), found.shares()
        """
        check_has_masks(self.spec)
        check_named(queries)
        if isinstance(image, (list, tuple)):
            raise QueryError(f"segment takes one picture, got a list of {len(image)}; call it for each")
        asked = queries if isinstance(queries, QueryEmbeddings) else self.encode_queries(queries or ())
        asked.check_model(self.spec.embed_dim, self.fingerprint)
        calibration, thresholds = self.spec.calibration.of_maps, map_thresholds(asked.names, threshold)
        views = self.views(image, image_size=image_size, tiles=tiles, masks=True)
        crops = partial(crops_of, image, tiles)
        return segment_views(views, crops, lambda dense: score(dense, asked, calibration), asked.names, thresholds)

    @by_itself
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

    def _options(self, options: DetectOptions | None, settings: Mapping[str, Any]) -> DetectOptions:
        chosen = detect_options(options, settings).of_model(self.spec)
        if chosen.masks:
            check_has_masks(self.spec)
        return chosen

    def _answers(
        self,
        images: Iterable[Picture],
        asked: Iterable[_Asked],
        batch_size: int,
        tiles: TilesLike | None,
        on_error: Literal["raise", "return"] = "raise",
        *,
        masks: bool,
    ) -> Iterator[Any]:
        if tiles is None:
            encoded = self._encoder.stream(images, self.image_size, batch_size, on_error, masks=masks)
            for one, what in zip(encoded, asked, strict=False):
                yield self._detect(enumerate(one.views), what) if isinstance(one, EncodedImage) else one
            return
        for image, what in zip(images, asked, strict=False):
            try:
                views = self.views(image, tiles=tiles, batch_size=batch_size, masks=masks)
                yield self._detect(views, what)
            except OwlSwinError as error:
                if on_error == "raise":
                    raise
                yield error

    @by_itself
    def _detect(self, views: Iterable[tuple[int, View]], asked: _Asked) -> Detections:
        queries, options = asked
        if queries is None:  # boxes of any two things would vote
            options = replace(options, box_voting=False)
        texts = [] if queries is None else [route == "text" for route in queries.routes]
        return find_in_views(views, lambda patches: self._logits(patches, queries), names_of(queries), options, texts)

    def _logits(self, patches: ImageEmbeddings, queries: QueryEmbeddings | None) -> Tensor:
        """Logits [P, Q]; without queries, [P, 1]: the objectness of every patch."""
        return patches.objectness_logits[:, None] if queries is None else self.score(patches, queries)

    def _as_embeddings(self, queries: Queries) -> QueryEmbeddings | None:
        return queries if queries is None or isinstance(queries, QueryEmbeddings) else self.encode_queries(queries)
