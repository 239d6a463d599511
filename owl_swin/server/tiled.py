"""A picture that is shown to the model in tiles: decoded once, and then a few tiles at a time."""

from functools import partial
from itertools import islice
from typing import Any

from owl_swin.encoded import EncodedImage
from owl_swin.server.pictures import Picture, read_tiles
from owl_swin.server.reading import Blob, all_of
from owl_swin.server.serving import Head, Serving, Work
from owl_swin.server.tasks import Task
from owl_swin.tiling import FoundInView

# To make one answer of thousands of boxes takes the memory of a picture of so many pixels.
JOIN_PIXELS = 2**25


async def find_in_tiles(blob: Blob, head: Head, task: Task, serving: Serving, work: Work) -> Any:
    """What the task finds in a picture and in its tiles, as one answer. Pictures of a request come one after another,
    and so many tiles of one at a time as the request has places in the queue for."""
    assert work.tiles is not None and task.join is not None, "routes that take tiles have a task that joins them"
    settings, cost, found = serving.settings, head.cost, dict[int, FoundInView]()
    async with work.one_in_tiles, serving.tiled.hold(cost.pixels):
        open_tiles = partial(read_tiles, serving.detector, blob.content, blob.where, work.tiles)
        read = partial(open_tiles, max_pixels=settings.max_pixels, key=head.key, masks=work.masks)
        shown = await work.read(read, max(cost.pixels, cost.decoded))
        while batch := await work.read(lambda: list(islice(shown, settings.tiles_at_once))):
            asked = [work.ask_model(picture, partial(_answer, picture, task)) for _, picture in batch]
            found.update(zip((number for number, _ in batch), await all_of(asked), strict=True))
            found = task.keep(found)
    join = partial(task.join, found)
    return await work.read(join, JOIN_PIXELS)


def _answer(picture: Picture, task: Task, encoded: EncodedImage) -> FoundInView:
    (frame,) = picture.prepared.frames
    return FoundInView(task.answer(encoded), frame.crop_xyxy, len(encoded.embeddings.class_embeds))
