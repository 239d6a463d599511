"""A pretrained model in its place, and what it makes of pictures, texts and exemplars before anything is asked."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, Unpack

import torch
from torch import Tensor

from owl_swin.attention import BlockAttention
from owl_swin.devices import by_itself, pick_device, pick_dtype, undisturbed
from owl_swin.encoded import EncodedImage, PreparedImage, View
from owl_swin.encoder import Encoder, Picture, check_batch_size, check_has_masks, check_many, chosen_size
from owl_swin.errors import QueryError
from owl_swin.exemplar import Exemplar, combine
from owl_swin.families import LoadSettings, load, of_module
from owl_swin.frame import check_image_size
from owl_swin.image import ImageSource
from owl_swin.models.network import Network, Pretrained, Spec
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.publishing import Publishable
from owl_swin.queries import Query, as_queries, encode_queries, load_queries
from owl_swin.tiling import TilesLike
from owl_swin.types import QueryEmbeddings


class Embedder(Publishable):
    """The part of a Detector that makes embeddings."""

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
    ) -> Self:
        """The model that ships ("nano"), or one of ours, OWL-ViT or OWLv2 by its file, folder or name on the hub.

        ``content_only``: OWLv2 pads pictures to squares; patches that show nothing else are left out, which is faster
        and not the same to the digit. ``revision`` and ``token`` are of a model on the Hugging Face hub.
        ``runtime``: "torch", "compile" (torch.compile), or for a folder that `owl-swin export` wrote "onnx" or
        "openvino"; "auto" is torch for weights, and for such a folder what it was written for. ``text_cache``: the
        folder in which embeddings of 64 texts and more are kept for the next process, or False; without it that of
        the variable OWL_SWIN_TEXT_CACHE ("off" for none), or ~/.cache/owl_swin/texts.
        """
        with undisturbed():
            return cls(load(source, **settings), device=device, dtype=dtype, image_size=image_size)

    def to(
        self, device: str | torch.device | torch.dtype | None = None, dtype: str | torch.dtype | None = None
    ) -> Self:
        """A detector of the same model on another device or of another precision; this one stays as it is.

        As in torch, a dtype may stand first: ``to(torch.bfloat16)``.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device if dtype is None else dtype
        moved = copy.copy(self)
        place = self.device if device is None else pick_device(device, self.model)
        moved._encoder = self._encoder.moved(place, pick_dtype(dtype))
        return moved

    def with_image_size(self, image_size: int) -> Self:
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

    def prepare_views(
        self, image: ImageSource, *, image_size: int | None = None, tiles: TilesLike | None = None
    ) -> Iterator[tuple[int, PreparedImage]]:
        """As prepare, but the whole and each tile apart, numbered as views() numbers them, each when it is its turn."""
        return self._encoder.prepare_views(image, chosen_size(image, image_size, tiles, self.image_size), tiles)

    def encode_image(
        self,
        image: ImageSource | PreparedImage,
        *,
        image_size: int | None = None,
        tiles: TilesLike | None = None,
        masks: bool = False,
    ) -> EncodedImage:
        """One pass through the image encoder. The result can be given to detect() in place of the picture.

        ``masks``: also what masks are made of, which only a model with ``spec.has_masks`` has.
        """
        return self._encoded(image, image_size, tiles, masks=masks)

    def encode_images(
        self, images: Iterable[ImageSource | PreparedImage], *, batch_size: int = 8, masks: bool = False
    ) -> list[EncodedImage]:
        """As encode_image, several at a time: pictures of one model size share a batch, none is padded to another.

        At most ``batch_size`` pictures are read before they are encoded.
        """
        check_many(images, "encode_images", "encode_image")
        if masks:
            check_has_masks(self.spec)
        encoded = self._encoder.stream(images, self.image_size, check_batch_size(batch_size), masks=masks)
        return [one for one in encoded if isinstance(one, EncodedImage)]

    def views(
        self,
        image: Picture,
        *,
        image_size: int | None = None,
        tiles: TilesLike | None = None,
        batch_size: int = 8,
        masks: bool = False,
    ) -> Iterator[tuple[int, View]]:
        """As encode_image, but one view after another, with its number, as they are read: of a huge picture at most
        ``batch_size`` tiles are in memory at a time."""
        size = chosen_size(image, image_size, tiles, self.image_size)
        return self._encoder.views(image, size, tiles, batch_size, masks=masks)

    def encode_queries(self, queries: Sequence[str | Exemplar | Query]) -> QueryEmbeddings:
        """Texts, exemplars and queries of both → embeddings for any number of pictures, in the same order.

        Names are kept as given. ``save`` of the result and ``load_queries`` keep it in a file.
        """
        asked = as_queries(queries)
        with undisturbed(self.device):
            encoded = encode_queries(asked, self._encoder.texts, self.encode_exemplars)
        return replace(encoded, fingerprint=self.fingerprint)

    def load_queries(self, path: str | Path | bytes) -> QueryEmbeddings:
        """Queries that ``QueryEmbeddings.save`` wrote, or the bytes of such a file; a damaged one or another model's
        queries raise QueryError."""
        return load_queries(path, self.spec)

    @by_itself
    def encode_exemplars(self, exemplars: Sequence[Exemplar]) -> Tensor:
        """One unit embedding [E] of a thing that several exemplars show: the geometric median of theirs."""
        if not exemplars:
            raise QueryError("the list of exemplars is empty")
        return combine(torch.stack([self._encoder.exemplar(one, self.image_size) for one in exemplars]))

    def attention(self, image: ImageSource | PreparedImage, *, image_size: int | None = None) -> list[BlockAttention]:
        """What every patch of the picture attends to in each block of the encoder, first to last.

        ``image_size`` as in the constructor, for this picture alone: a larger one has more windows.
        """
        prepared = self._prepared(image, image_size, None)
        if isinstance(prepared, EncodedImage):
            raise QueryError("attention takes the picture itself, and not what was encoded of it")
        return self._encoder.attention(prepared)

    def _prepared(self, image: Picture, size: int | None, tiles: TilesLike | None) -> PreparedImage | EncodedImage:
        return self._encoder.prepare(image, chosen_size(image, size, tiles, self.image_size), tiles)

    def _encoded(
        self,
        image: Picture,
        image_size: int | None = None,
        tiles: TilesLike | None = None,
        *,
        masks: bool = False,
    ) -> EncodedImage:
        if masks:
            check_has_masks(self.spec)
        prepared = self._prepared(image, image_size, tiles)
        return prepared if isinstance(prepared, EncodedImage) else self._encoder.encode([prepared], 1, masks=masks)[0]
