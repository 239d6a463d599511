"""The façade that users hold: the only place where image, tokenizer, model and post-processing meet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from owl_swin.errors import QueryError
from owl_swin.exemplar import (
    Exemplar,
    check_box,
    combine,
    most_object_like,
    patch_of_box,
    picture_of,
)
from owl_swin.families.owl_swin import load_checkpoint
from owl_swin.frame import Frame, SwinPreprocess, check_image_size
from owl_swin.image import ImageSource, open_image
from owl_swin.models.network import Spec
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.postprocess import check_fraction, detections_from_logits
from owl_swin.queries import Query, as_query, encode_queries
from owl_swin.runtime import pick_device
from owl_swin.scoring import score
from owl_swin.tokenizer import clean_text, get_tokenizer
from owl_swin.types import (
    BlockAttention,
    Classification,
    Detections,
    ImageEmbeddings,
    PatchLogitInputs,
    QueryEmbeddings,
)

# The class-free mode gives its boxes this name.
ANYTHING = "object"
# Averaged by classify(); the text encoder knows them from its training.
TEMPLATES = ("{}", "a {}", "a photo of a {}", "a picture of a {}", "a close-up of a {}")

# One query, which a list may be mistaken for.
SINGLE = (Exemplar, Query)
Queries = Sequence[str | Exemplar | Query] | QueryEmbeddings | None


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """A picture after its one pass through the encoder; ask it as many queries as you like."""

    embeddings: ImageEmbeddings
    frame: Frame


class Detector:
    """Finds what you name or show in pictures.

    >>> detector = Detector.from_pretrained()
    >>> found = detector.detect("kitchen.jpg", ["a red mug", "a dog"], threshold=0.3)
    >>> found = detector.detect("kitchen.jpg", [Exemplar("mug.jpg", (40, 60, 210, 300))])
    """

    def __init__(
        self,
        model: OwlSwin,
        *,
        card: dict[str, Any] | None = None,
        device: str | torch.device = "auto",
        image_size: int | None = None,
    ):
        """``image_size``: longer side in pixels that pictures are brought to; None is the size the model was made for.

        Larger finds smaller things and costs in proportion to the pixels.
        """
        self.device = pick_device(device)
        self.model = model.to(self.device).eval()
        self.card = card or {}
        self.image_size = check_image_size(model.config.image_size if image_size is None else image_size)
        self._preprocess = SwinPreprocess(model.config.exemplar_stride)
        text = model.config.text
        self._tokenizer = get_tokenizer(text.context_length, text.open_clip)
        self._spec: Spec | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "nano",
        *,
        device: str | torch.device = "auto",
        image_size: int | None = None,
    ) -> "Detector":
        """The model that ships ("nano"), or one from a .safetensors file or a folder that holds model.safetensors."""
        model, card = load_checkpoint(source)
        return cls(model, card=card, device=device, image_size=image_size)

    @torch.inference_mode()
    def encode_image(self, image: ImageSource) -> EncodedImage:
        """One pass through the image encoder. The result can be given to detect() in place of the picture."""
        return self.encode_images([image])[0]

    @torch.inference_mode()
    def encode_images(self, images: Sequence[ImageSource], *, batch_size: int = 8) -> list[EncodedImage]:
        """As encode_image, several at a time: pictures of one model size share a batch, none is padded to another."""
        if batch_size < 1:
            raise QueryError(f"batch_size must be at least 1, got {batch_size}")
        opened = [open_image(image) for image in images]
        frames = [self._preprocess.frame((image.height, image.width), self.image_size) for image in opened]
        encoded: list[EncodedImage | None] = [None] * len(opened)
        for model_hw in dict.fromkeys(frame.model_hw for frame in frames):
            rows = [i for i, frame in enumerate(frames) if frame.model_hw == model_hw]
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                embeddings = self._encode_pixels([self._preprocess.pixels(opened[i], frames[i]) for i in batch])
                for place, i in enumerate(batch):
                    encoded[i] = EncodedImage(embeddings[place], frames[i])
        return [item for item in encoded if item is not None]

    @property
    def spec(self) -> Spec:
        """What other rooms may know of the model, with its weights as they were when this was first asked for."""
        if self._spec is None:
            self._spec = self.model.spec
        return self._spec

    @property
    def name(self) -> str:
        """What the model card calls the model; without a card, its configuration."""
        return str(self.card.get("name") or self.spec.name)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model's weights as they were when it was first asked for; queries carry it when encoded."""
        return self.spec.fingerprint

    @torch.inference_mode()
    def encode_queries(self, queries: Sequence[str | Exemplar | Query]) -> QueryEmbeddings:
        """Texts, exemplars and queries of both → embeddings for any number of pictures, in the same order.

        Names are kept as given. ``save`` of the result and ``load_queries`` keep it in a file.
        """
        if isinstance(queries, str):
            raise QueryError(f"queries must be a list of texts, got the single text {queries!r}; write [{queries!r}]")
        if isinstance(queries, (Exemplar, Query)):
            kind = "exemplar" if isinstance(queries, Exemplar) else "query"
            raise QueryError(f"queries must be a list, got a single {kind}; write [{kind}]")
        asked = [as_query(query) for query in queries]
        if not asked:
            raise QueryError("the list of queries is empty; leave queries out to find anything that looks like a thing")
        encoded = encode_queries(asked, self._encode_texts, self.encode_exemplars)
        return replace(encoded, fingerprint=self.fingerprint)

    def load_queries(self, path: str | Path) -> QueryEmbeddings:
        """Queries that ``QueryEmbeddings.save`` wrote; a damaged file or another model's queries raise QueryError."""
        queries = QueryEmbeddings.load(path)
        if not queries.fingerprint:
            raise QueryError(f"{path}: says not which model made these queries; encode them with this one")
        try:
            self.check_queries(queries)
        except QueryError as error:
            raise QueryError(f"{path}: {error}") from None
        return queries

    @torch.inference_mode()
    def encode_exemplars(self, exemplars: Sequence[Exemplar]) -> Tensor:
        """One unit embedding [E] of a thing that several exemplars show: the geometric median of theirs."""
        if not exemplars:
            raise QueryError("the list of exemplars is empty")
        return combine(torch.stack([self._encode_exemplar(exemplar) for exemplar in exemplars]))

    @torch.inference_mode()
    def score(self, patches: EncodedImage | PatchLogitInputs, queries: QueryEmbeddings) -> Tensor:
        """Calibrated logits [P, Q] of every patch for every query; their sigmoid is the score.

        ``patches`` are those of an encoded picture or stored regions. ``scoring.score`` says how texts, exemplars and
        negatives of one query are joined.
        """
        self.check_queries(queries)
        if isinstance(patches, EncodedImage):
            patches = patches.embeddings
        return score(patches, queries, self.spec.calibration)

    @torch.inference_mode()
    def similarity(self, image: ImageSource | EncodedImage, queries: Queries = None) -> Tensor:
        """Scores [Q, h, w] in [0, 1] of the grid of patches, which covers the upright picture, for each query.

        Without queries, [1, h, w]: objectness. ``draw_heat_map`` shows one; ``Detections.patches`` index a map's
        patches row by row.
        """
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image)
        logits, _ = self._logits(encoded, queries)
        return logits.sigmoid().T.reshape(-1, *encoded.embeddings.grid_hw)

    @torch.inference_mode()
    def attention(self, image: ImageSource, *, image_size: int | None = None) -> list[BlockAttention]:
        """Inside Swin: what every patch of the picture attends to in each block of the encoder, first to last.

        ``image_size`` as in the constructor, for this look alone: a larger picture has more windows to see.
        """
        picture = open_image(image)
        size = self.image_size if image_size is None else check_image_size(image_size)
        pixels = self._preprocess.pixels(picture, self._preprocess.frame((picture.height, picture.width), size))
        return self.model.image_encoder.attention(self._preprocess.normalise(pixels[None].to(self.device)))

    @torch.inference_mode()
    def detect(
        self,
        image: ImageSource | EncodedImage,
        queries: Queries = None,
        *,
        threshold: float | Sequence[float] = 0.2,
        nms_iou: float | None = 0.5,
        objectness: float | None = None,
        top_k: int = 300,
    ) -> Detections:
        """Boxes of everything in the picture that answers a query; without queries, of all that looks like a thing.

        ``threshold``: lowest score, one number in [0, 1] or one a query. ``nms_iou``: of two boxes of one query that
        overlap by more, only the better stays; None keeps both. ``objectness``: lowest objectness in [0, 1] of a patch
        that may answer. Boxes are xyxy pixels of the upright picture. Nothing found is an empty Detections.
        """
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image)
        embeddings = encoded.embeddings
        logits, names = self._logits(encoded, queries)
        if objectness is not None:
            check_fraction("objectness", objectness)
            keep = embeddings.objectness_logits.sigmoid() >= objectness
            logits = logits.masked_fill(~keep[:, None], -torch.inf)
        return detections_from_logits(
            logits, embeddings.pred_boxes, encoded.frame, names, threshold=threshold, nms_iou=nms_iou, top_k=top_k
        )

    def detect_batch(
        self,
        images: Sequence[ImageSource | EncodedImage],
        queries: Queries | Sequence[Queries] = None,
        *,
        threshold: float | Sequence[float] = 0.2,
        nms_iou: float | None = 0.5,
        objectness: float | None = None,
        top_k: int = 300,
        batch_size: int = 8,
    ) -> list[Detections]:
        """As detect, for many pictures: one Detections a picture, in order.

        ``queries`` is one list for all pictures, or a list of lists, one a picture, of any lengths.
        """
        per_image = self._queries_per_image(queries, len(images))
        places = [i for i, image in enumerate(images) if not isinstance(image, EncodedImage)]
        fresh = self.encode_images([images[i] for i in places], batch_size=batch_size)  # type: ignore[misc]
        encoded: list[Any] = list(images)
        for place, item in zip(places, fresh, strict=True):
            encoded[place] = item
        return [
            self.detect(item, query, threshold=threshold, nms_iou=nms_iou, objectness=objectness, top_k=top_k)
            for item, query in zip(encoded, per_image, strict=True)
        ]

    @torch.inference_mode()
    def classify(
        self,
        image: ImageSource | EncodedImage,
        names: Sequence[str | Exemplar | Query],
        *,
        templates: Sequence[str] = TEMPLATES,
    ) -> Classification:
        """Which of the names fits the whole picture: a probability each, by CLIP's softmax over the names.

        Each name, or every text of a Query, is put in every template in place of ``{}`` and the embeddings are
        averaged. Classes may be shown instead, all of them: an Exemplar, or a Query of several, then stands for its
        whole picture, or for the square around its box. Negatives, and texts beside examples, raise QueryError.
        """
        if isinstance(names, (str, *SINGLE)):
            raise QueryError(f"names must be a list of texts, got the single text {names!r}; write [{names!r}]")
        if not templates or any("{}" not in template for template in templates):
            raise QueryError(f"every template must hold {{}} where the name goes, got {list(templates)}")
        classes = [as_query(name) for name in names]
        embeds = self._classes_shown(classes) if _are_shown(classes) else self._classes_told(classes, templates)
        encoded = image if isinstance(image, EncodedImage) else self.encode_image(image)
        cosine = F.normalize(embeds, dim=-1) @ encoded.embeddings.image_embed
        scale = self.model.alignment_log_scale.exp().clamp(max=100)
        return Classification((scale * cosine).softmax(-1), tuple(one.name for one in classes))

    def _classes_told(self, classes: Sequence[Query], templates: Sequence[str]) -> Tensor:
        """An embedding [N, E] for each class: the mean over its texts in all templates."""
        texts = [[clean_text(text) for text in one.texts] for one in classes]
        prompts = self.encode_queries([t.replace("{}", text) for own in texts for text in own for t in templates])
        parts = prompts.query_embeds.split([len(own) * len(templates) for own in texts])
        return torch.stack([part.mean(0) for part in parts])

    def _classes_shown(self, classes: Sequence[Query]) -> Tensor:
        """An embedding [N, E] for each class: the mean over the pictures of its examples."""
        pictures = [picture_of(example) for one in classes for example in one.exemplars]
        embeds = torch.stack([one.embeddings.image_embed for one in self.encode_images(pictures)])
        return torch.stack([part.mean(0) for part in embeds.split([len(one.exemplars) for one in classes])])

    def _logits(self, encoded: EncodedImage, queries: Queries) -> tuple[Tensor, tuple[str, ...]]:
        """Logits [P, Q] and the names of the queries; without queries, the objectness of every patch."""
        if queries is None:
            return encoded.embeddings.objectness_logits[:, None], (ANYTHING,)
        query = queries if isinstance(queries, QueryEmbeddings) else self.encode_queries(queries)
        return self.score(encoded, query), query.names

    def _encode_texts(self, texts: Sequence[str]) -> Tensor:
        return self.model.encode_text(self._tokenizer(texts).to(self.device))

    def _queries_per_image(self, queries: Queries | Sequence[Queries], n_images: int) -> list[QueryEmbeddings | None]:
        if queries is None or isinstance(queries, QueryEmbeddings):
            return [queries] * n_images
        single = isinstance(queries, (str, *SINGLE))  # which encode_queries refuses
        if not single and len(queries) == n_images == 0:
            return []
        if single or all(isinstance(query, (str, *SINGLE)) for query in queries):
            return [self.encode_queries(queries)] * n_images  # type: ignore[arg-type]
        if len(queries) != n_images:
            raise QueryError(f"got {len(queries)} lists of queries for {n_images} pictures; give one list a picture")
        made: dict[tuple[str | Exemplar | Query, ...], QueryEmbeddings] = {}
        out: list[QueryEmbeddings | None] = []
        for query in queries:
            if query is None or isinstance(query, QueryEmbeddings):
                out.append(query)
            else:
                key = query if isinstance(query, (str, *SINGLE)) else tuple(query)  # type: ignore[assignment]
                if key not in made:
                    made[key] = self.encode_queries(query)  # type: ignore[index, arg-type]
                out.append(made[key])  # type: ignore[index]
        return out

    def _encode_exemplar(self, exemplar: Exemplar) -> Tensor:
        """Unit embedding [E] of one exemplar."""
        picture = open_image(exemplar.image)
        if exemplar.box_xyxy is None:
            embeddings = self.encode_image(picture).embeddings
            everything = torch.arange(len(embeddings.class_embeds), device=self.device)
            return embeddings.class_embeds[most_object_like(embeddings, everything)]
        image_hw = (picture.height, picture.width)
        box = check_box(exemplar.box_xyxy, image_hw)
        frame = self._preprocess.exemplar(image_hw, box.tolist(), self.image_size)
        embeddings = self._encode_pixels([self._preprocess.pixels(picture, frame)])[0]
        return patch_of_box(embeddings, frame.from_image(box))

    def _encode_pixels(self, pixels: Sequence[Tensor]) -> ImageEmbeddings:
        """One batch of pixels in their frames of one size."""
        return self.model.encode_image(self._preprocess.normalise(torch.stack(list(pixels)).to(self.device)))

    def check_queries(self, queries: QueryEmbeddings) -> None:
        """Refuses, with QueryError, queries that another model made."""
        embed_dim = self.model.config.embed_dim
        if queries.query_embeds.shape[1] != embed_dim:
            raise QueryError(
                f"these query embeddings have {queries.query_embeds.shape[1]} dimensions, the model has {embed_dim}; "
                "encode the queries with the same model"
            )
        if queries.fingerprint and queries.fingerprint != self.fingerprint:
            raise QueryError(
                f"these queries were made by another model (weights {queries.fingerprint[:12]}, this model has "
                f"{self.fingerprint[:12]}); encode them with this one"
            )


def _are_shown(classes: Sequence[Query]) -> bool:
    """Whether the classes of classify() are shown; QueryError if only some are, or one has other parts."""
    for one in classes:
        if one.negatives or (one.texts and one.exemplars):
            raise QueryError(
                f"a class of whole pictures is texts or examples alone; the query {one.name!r} has other parts"
            )
    shown = {bool(one.exemplars) for one in classes}
    if len(shown) > 1:
        raise QueryError("pictures are told apart by texts or by examples; these classes are of both kinds")
    return shown == {True}
