"""A pretrained model in its place: pictures, texts and exemplars go in, embeddings come out."""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from numbers import Integral
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from owl_swin.attention import BlockAttention
from owl_swin.devices import ForkGuard, placed, undisturbed
from owl_swin.encoded import EncodedImage, PreparedImage, View
from owl_swin.errors import OwlSwinError, QueryError, brief
from owl_swin.exemplar import Exemplar, check_box, most_object_like, patch_of_box
from owl_swin.frame import HW, Frame, check_image_size
from owl_swin.huge import open_parts
from owl_swin.image import ImageSource, open_image
from owl_swin.models.network import MaskNetwork, Pretrained, Spec
from owl_swin.text_cache import LEAST_TEXTS, TextCache, computed_by
from owl_swin.tiling import TilesLike, tile_crops
from owl_swin.types import ImageEmbeddings

# Pixels of tiles that a CPU encodes at a time.
CPU_PIXELS = 2**19

Picture = ImageSource | PreparedImage | EncodedImage

# Texts that go through the text encoder together.
TEXTS_AT_ONCE = 256


class Encoder:
    """A network on one device, in one precision, in evaluation mode. What comes out are ordinary tensors."""

    def __init__(
        self,
        pretrained: Pretrained,
        device: torch.device,
        dtype: torch.dtype | None = None,
        spec: Spec | None = None,
        *,
        rounded: bool = False,
    ):
        """``spec`` is that of the network before it was ``rounded`` to another ``dtype``, where it was."""
        network = placed(pretrained.network, device, dtype)
        if spec is None and network is not pretrained.network and dtype is not None:
            spec = pretrained.network.spec
        self.pretrained, self.device, self._spec = replace(pretrained, network=network), device, spec
        self.dtype = _dtype_of(network)
        self._rounded = rounded or self.dtype != _dtype_of(pretrained.network)
        self._versions = _versions(network)
        self._fork = ForkGuard()

    @property
    def spec(self) -> Spec:
        """The network's, with its weights as they were when this was first asked for."""
        if self._spec is None:
            self._spec = self.pretrained.network.spec
        return self._spec

    def moved(self, device: torch.device, dtype: torch.dtype | None) -> "Encoder":
        """The same network on another device or in another precision."""
        pretrained = self.pretrained
        # A number that was rounded does not come back, and what is kept is known by the weights before that.
        if self._text_cache is None or (self._rounded and dtype not in (None, self.dtype)):
            pretrained = replace(pretrained, text_cache=None)
        return Encoder(pretrained, device, dtype, self.spec, rounded=self._rounded)

    def prepare(self, image: Picture, image_size: int, tiles: TilesLike | None = None) -> PreparedImage | EncodedImage:
        """The picture, and parts of it, read and brought to the size of the model; what was is given back."""
        if isinstance(image, EncodedImage):
            image.check_model(self.spec.fingerprint)
        if isinstance(image, (PreparedImage, EncodedImage)):
            return image
        with open_parts(image, large=tiles is not None, side=self._enough(image_size, tiles)) as parts:
            frames = self._frames(parts.image_hw, image_size, tiles)
            pixels = dict(parts.shown(frames, self.pretrained.preprocess.pixels))
        return PreparedImage(tuple(frames), tuple(pixels[i] for i in range(len(frames))))

    def views(
        self,
        image: Picture,
        image_size: int,
        tiles: TilesLike | None = None,
        batch_size: int = 8,
        *,
        masks: bool = False,
    ) -> Iterator[tuple[int, View]]:
        """The whole picture, numbered 0, and parts of it, in the order in which they are read; at most ``batch_size``
        of them, on a CPU fewer where they are large, are in memory at a time."""
        if isinstance(image, (PreparedImage, EncodedImage)):
            one = self.prepare(image, image_size)
            one = one if isinstance(one, EncodedImage) else self.encode([one], batch_size, masks=masks)[0]
            yield from enumerate(one.views)
            return
        if self.device.type == "cpu":  # it is no faster with more, and they take memory for each pixel
            batch_size = min(batch_size, max(1, CPU_PIXELS // image_size**2))
        shown = self.prepare_views(image, image_size, tiles)
        while batch := list(islice(shown, batch_size)):
            encoded = self.encode([prepared for _, prepared in batch], batch_size, masks=masks)
            yield from ((i, one.views[0]) for (i, _), one in zip(batch, encoded, strict=True))

    def prepare_views(
        self, image: ImageSource, image_size: int, tiles: TilesLike | None = None
    ) -> Iterator[tuple[int, PreparedImage]]:
        """The whole picture, numbered 0, and parts of it, each read when it is its turn, in the order of the file."""
        with open_parts(image, large=tiles is not None, side=self._enough(image_size, tiles)) as parts:
            frames = self._frames(parts.image_hw, image_size, tiles)
            for i, pixels in parts.shown(frames, self.pretrained.preprocess.pixels):
                yield i, PreparedImage((frames[i],), (pixels,))

    def encode(
        self, images: Sequence[PreparedImage], batch_size: int = 8, *, masks: bool = False
    ) -> list[EncodedImage]:
        """Pictures in order; frames of one size share a batch, none is padded to another."""
        jobs = [(i, k) for i, image in enumerate(images) for k in range(len(image.frames))]
        views: dict[tuple[int, int], View] = {}
        for model_hw in dict.fromkeys(images[i].frames[k].model_hw for i, k in jobs):
            same = [(i, k) for i, k in jobs if images[i].frames[k].model_hw == model_hw]
            for start in range(0, len(same), batch_size):
                batch = same[start : start + batch_size]
                embeddings = self.encode_pixels([images[i].pixels[k] for i, k in batch], masks=masks)
                for (i, k), one in zip(batch, embeddings, strict=True):
                    views[i, k] = View(one, images[i].frames[k])
        own = self.spec.fingerprint
        return [EncodedImage(tuple(views[i, k] for k in range(len(one.frames))), own) for i, one in enumerate(images)]

    def stream(
        self,
        images: Iterable[Picture],
        image_size: int,
        batch_size: int,
        on_error: Literal["raise", "return"] = "raise",
        *,
        masks: bool = False,
    ) -> Iterator[EncodedImage | OwlSwinError]:
        """Pictures in order, of which at most ``batch_size`` are read ahead.

        Of a list or another sequence the next batch is read while the model works on one. A picture that cannot be read
        is raised in its turn, or with ``on_error="return"`` its error stands in its place.
        """
        rest, failure = iter(images), None
        with ThreadPoolExecutor(1, thread_name_prefix="owl_swin_read") as reader:
            # What else makes pictures may wait for each result before it makes the next.
            ahead = self._reading(images, image_size, batch_size, reader) if isinstance(images, Sequence) else None
            while failure is None:
                read: list[PreparedImage | EncodedImage | OwlSwinError] = []
                try:
                    if ahead is not None:
                        read = next(ahead, [])
                    else:
                        for image in islice(rest, batch_size):
                            read.append(self._read(image, image_size))
                except Exception as error:  # of the caller's own iterator: what came before it is still answered
                    failure = error
                if not read:
                    break
                prepared = [one for one in read if isinstance(one, PreparedImage)]
                encoded = iter(self.encode(prepared, batch_size, masks=masks))
                for one in read:
                    if isinstance(one, OwlSwinError) and on_error == "raise":
                        raise one
                    yield next(encoded) if isinstance(one, PreparedImage) else one
        if failure is not None:
            raise failure

    def _reading(
        self, images: Sequence[Picture], image_size: int, batch_size: int, reader: Executor
    ) -> Iterator[list[PreparedImage | EncodedImage | OwlSwinError]]:
        """Batches of pictures that were read; the one after it is being read when one is given out."""

        def read(start: int) -> list[PreparedImage | EncodedImage | OwlSwinError]:
            return [self._read(image, image_size) for image in images[start : start + batch_size]]

        reading = reader.submit(read, 0)
        for start in range(batch_size, len(images) + batch_size, batch_size):
            batch = reading.result()
            if start < len(images):
                reading = reader.submit(read, start)
            yield batch

    def encode_pixels(self, pixels: Sequence[Tensor], *, masks: bool = False) -> list[ImageEmbeddings]:
        """One batch of frames of one size, taken apart into tensors that do not keep the batch alive."""
        self._fork.check()
        network = self.pretrained.network
        if masks:
            check_has_masks(self.spec)
        with undisturbed(self.device), torch.inference_mode():
            inputs = self._network_input(pixels)
            embeddings = cast(MaskNetwork, network).encode_with_masks(inputs) if masks else network.encode_image(inputs)
        return [embeddings[i].clone() for i in range(len(pixels))]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings [N, E]."""
        self._fork.check()
        with undisturbed(self.device), torch.inference_mode():
            # Thousands at once would leave the processor's cache, and need memory for each.
            batches = self.pretrained.tokenize(texts).split(TEXTS_AT_ONCE)
            cache = self._text_cache if len(texts) >= LEAST_TEXTS else None
            if cache is None:
                embeds = torch.cat([self._batch_of_texts(ids) for ids in batches])
            else:
                kept = cache.embeddings(batches, self._made_by(), self._batch_of_texts)
                embeds = torch.cat([some.to(self.device) for some in kept])
        return embeds.clone()

    def _batch_of_texts(self, ids: Tensor) -> Tensor:
        return self.pretrained.network.encode_text(ids.to(self.device))

    @property
    def _text_cache(self) -> TextCache | None:
        """What keeps embeddings of texts; None where nobody knows by which weights they are made."""
        network = self.pretrained.network
        is_known = isinstance(network, nn.Module) and self._versions and self._versions == _versions(network)
        return self.pretrained.text_cache if is_known else None

    def _made_by(self) -> list[str]:
        """All that decides the embedding of a text beside its ids."""
        network: Any = self.pretrained.network
        settings = repr(getattr(getattr(network, "network", network), "config", None))
        of_network = [type(network).__name__, self.spec.fingerprint, settings, str(self.dtype)]
        return [*of_network, *computed_by(self.device)]

    def exemplar(self, exemplar: Exemplar, image_size: int) -> Tensor:
        """Unit embedding [E] of one exemplar: of its box, or of the most object-like thing in its picture.

        To a model without objectness of its own, a picture without a box shows the thing that fills it.
        """
        picture, preprocess = open_image(exemplar.image), self.pretrained.preprocess
        image_hw, by_objectness = (picture.height, picture.width), self.spec.has_objectness
        box = None if exemplar.box_xyxy is None else check_box(exemplar.box_xyxy, image_hw)
        if box is None and not by_objectness:
            box = torch.tensor([0.0, 0.0, picture.width, picture.height])
        if box is None:
            frame = preprocess.frame(image_hw, image_size)
        else:
            frame = preprocess.exemplar(image_hw, box.tolist(), image_size)
        embeddings = self.encode_pixels([preprocess.pixels(picture, frame)])[0]
        if box is not None:
            return patch_of_box(embeddings, frame.from_image(box), by_objectness=by_objectness)
        everything = torch.arange(len(embeddings.class_embeds), device=self.device)
        return embeddings.class_embeds[most_object_like(embeddings, everything)]

    def attention(self, image: PreparedImage) -> list[BlockAttention]:
        """What every patch of the picture attends to in each block of the encoder, first to last."""
        if self.pretrained.look_inside is None:
            raise QueryError(f"a model of the family {self.spec.family!r} has no attention to show")
        self._fork.check()
        with undisturbed(self.device):
            return self.pretrained.look_inside(self.pretrained.network, self._network_input(image.pixels[:1]))

    def _frames(self, image_hw: HW, image_size: int, tiles: TilesLike | None) -> list[Frame]:
        """Those of the whole picture and of its tiles."""
        crops = (None, *tile_crops(tiles, image_hw))
        return [self.pretrained.preprocess.frame(image_hw, image_size, crop) for crop in crops]

    def _network_input(self, pixels: Sequence[Tensor]) -> Tensor:
        """Pixels of frames of one size → what the network reads [B, 3, H, W]."""
        return self.pretrained.preprocess.normalise(torch.stack(list(pixels)).to(self.device)).to(self.dtype)

    def _enough(self, image_size: int, tiles: TilesLike | None) -> int | None:
        """Pixels that the longer side of a picture needs, of which the whole is shown in this size."""
        oversampling = self.pretrained.preprocess.oversampling
        return None if tiles is not None or oversampling is None else image_size * oversampling

    def _read(self, image: Picture, image_size: int) -> PreparedImage | EncodedImage | OwlSwinError:
        try:
            return self.prepare(image, image_size)
        except OwlSwinError as error:
            return error


def check_has_masks(spec: Spec) -> None:
    """Refuses masks of a model that makes none."""
    if not spec.has_masks:
        raise QueryError(
            f"the model {spec.name!r} finds boxes and makes no masks; train one that does, with [masks] in its "
            "configuration, or, of an export, write it again from such a model"
        )


def _dtype_of(network: Any) -> torch.dtype:
    parameter = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return torch.float32 if parameter is None else parameter.dtype


def _versions(network: Any) -> tuple[tuple[int, int], ...]:
    """Changes when something is written to the network's weights; () where that cannot be seen."""
    if not isinstance(network, nn.Module):
        return ()
    try:
        return tuple((id(one), one._version) for one in (*network.parameters(), *network.buffers()))
    except RuntimeError:  # tensors of inference mode keep no count
        return ()


def chosen_size(image: Picture, image_size: int | None, tiles: TilesLike | None, default: int) -> int:
    """The size that a picture is brought to; of one that was prepared or encoded, neither it nor tiles can change."""
    if isinstance(image, (PreparedImage, EncodedImage)) and not (image_size is None and tiles is None):
        raise QueryError("this picture was prepared or encoded already; give image_size and tiles there")
    return default if image_size is None else check_image_size(image_size)


def check_many(images: Any, called: str, single: str) -> Iterable[Any]:
    """Refuses one picture where several are asked for."""
    one = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor, PreparedImage, EncodedImage)
    is_file = callable(getattr(images, "read", None))  # whose iterator gives lines
    if isinstance(images, one) or is_file or not isinstance(images, Iterable):
        kind = type(images).__name__
        if getattr(images, "ndim", 0) == 4:
            raise QueryError(f"{called} takes a list of pictures, got a single {kind} of {len(images)}; write list(…)")
        raise QueryError(f"{called} takes a list of pictures, got a single {kind}; call {single}, or write [picture]")
    return images


def check_batch_size(batch_size: int) -> int:
    """At least one picture, in whole numbers."""
    if not isinstance(batch_size, Integral) or batch_size < 1:
        raise QueryError(f"batch_size must be at least 1, got {brief(batch_size)}")
    return int(batch_size)
