"""Inside Swin: a photo cut in windows, windows that shift, and where one patch looks, block after block."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from owl_swin import BlockAttention, Detector
from owl_swin.demo.models import Choice, Models
from owl_swin.demo.photos import SHOWN_PX, Photo, data_uri, sample_items, samples, take_photo
from owl_swin.demo.pieces import (
    Upload,
    cell_box,
    no_photo,
    stage,
    stage_value,
    strip,
    strip_value,
    upload_button,
)
from owl_swin.demo.refusals import Refused, errors_shown, pick
from owl_swin.demo.session import Session
from owl_swin.demo.settings import Answers, in_turn, slider
from owl_swin.demo.worked import attention_example, patches_example

# The longer side at which this tab looks: enough windows to see, small enough to count patches and to keep what every
# visitor's photo attends to (7 MB at 256 px with the nano model, and in proportion to the pixels).
SIDES_PX = (256, 512)
BLOCK, REACH = "This block", "All blocks so far"
STARTS = ((0, 0, 0), (232, 93, 4), (255, 196, 61), (255, 246, 214))
THUMBNAIL_PX = 132


def _light() -> tuple[np.ndarray, np.ndarray]:
    """Of each of 256 steps, the light that is laid over a photo [256, 3], and what of its grey is left [256, 1]."""
    steps = np.arange(256, dtype=np.float32)
    places = np.linspace(0, 255, len(STARTS))
    colours = np.stack([np.interp(steps, places, [start[i] for start in STARTS]) for i in range(3)], -1)
    opacity = ((0.8 * steps / 255) ** 0.9)[:, None]
    return (colours * opacity).astype(np.float32), (0.72 * (1 - opacity)).astype(np.float32)


LIGHT = _light()


@dataclass(frozen=True, slots=True)
class Looked:
    """What stands in the tab: the photo, its attention, the block that is shown and the chosen point in [0, 1]."""

    photo: Photo | None = None
    blocks: tuple[BlockAttention, ...] = ()
    chosen: int = 0
    point_xy: tuple[float, float] = (0.5, 0.5)

    def cell(self, block: BlockAttention) -> tuple[int, int]:
        """Row and column of the patch of a block's map that the point lies in."""
        (height, width), (x, y) = block.grid_hw, self.point_xy
        return min(height - 1, int(y * height)), min(width - 1, int(x * width))


def look(detector: Detector, photo: Photo) -> Looked:
    """One pass through the encoder, with everything that was attended to."""
    side = min(max(SIDES_PX[0], detector.image_size), SIDES_PX[1])
    return Looked(photo, tuple(detector.attention(photo.open(), image_size=side)))


def reach(blocks: tuple[BlockAttention, ...], last: int, cell: tuple[int, int]) -> Tensor:
    """How much of every patch of the first map has come to one patch of block ``last``: [h, w], adding up to 1.

    Attention rollout (arXiv:2005.00928): half of a patch stays what it was, half comes from where it looks; merged
    patches share their part evenly.
    """
    share = torch.zeros(blocks[last].grid_hw)
    share[cell] = 1
    for block in reversed(blocks[: last + 1]):
        if share.shape != block.grid_hw:  # patches were merged two by two after this block
            height, width = block.grid_hw
            share = share.repeat_interleave(2, 0).repeat_interleave(2, 1)[:height, :width]
            share = share / share.sum()
        flat, there = share.flatten(), block.patches >= 0
        windows = torch.where(there, flat[block.patches.clamp(min=0)], 0.0)
        looked = torch.einsum("wn,wnm->wm", windows, block.weights.float().mean(1).cpu())
        share = (0.5 * flat).index_add(0, block.patches[there], 0.5 * looked[there]).view(share.shape)
    return share


def borders(block: BlockAttention, photo: Photo) -> list[list[float]]:
    """Lines between the windows of a block, xyxy pixels of the photo."""
    lines = []
    for axis, length, across in ((0, photo.height, photo.width), (1, photo.width, photo.height)):
        step, cells = block.window_hw[axis], block.grid_hw[axis]
        for place in range(block.shift_hw[axis] or step, cells, step):
            here = place * length / cells
            lines.append([0, here, across, here] if axis == 0 else [here, 0, here, across])
    return lines


def window_parts(block: BlockAttention, photo: Photo, cell: tuple[int, int]) -> list[tuple[float, float, float, float]]:
    """The window of a patch, in as many parts as the cyclic shift put it together from, xyxy pixels of the photo."""
    width = block.grid_hw[1]
    window = int((block.patches == cell[0] * width + cell[1]).nonzero()[0, 0])
    patches = block.patches[window]
    patches = patches[patches >= 0]
    parts = []
    for top, bottom in _runs(torch.div(patches, width, rounding_mode="floor")):
        for left, right in _runs(patches % width):
            x0, y0, _, _ = cell_box((top, left), block.grid_hw, (photo.height, photo.width))
            _, _, x1, y1 = cell_box((bottom, right), block.grid_hw, (photo.height, photo.width))
            parts.append((x0, y0, x1, y1))
    return parts


def _runs(numbers: Tensor) -> list[tuple[int, int]]:
    """First and last of each run of neighbouring numbers."""
    there = sorted(set(numbers.tolist()))
    starts = [n for n in there if n - 1 not in there]
    ends = [n for n in there if n + 1 not in there]
    return list(zip(starts, ends, strict=True))


def paint(picture: Image.Image, values: Tensor, side: int, *, power: float = 0.5) -> str:
    """The picture in grey, with the values [h, w] as light on their patches; a low ``power`` shows faint ones too."""
    grey = picture.convert("L")
    grey.thumbnail((side, side))
    shares = (values / values.max().clamp(min=1e-9)).pow(power).cpu().numpy()
    patches = Image.fromarray((255 * shares).round().astype(np.uint8)).resize(grey.size, Image.Resampling.NEAREST)
    steps, (light, left) = np.asarray(patches), LIGHT
    painted = np.asarray(grey, dtype=np.float32)[..., None] * left[steps] + light[steps]
    return data_uri(Image.fromarray(painted.astype(np.uint8)), side)


def values_of(looked: Looked, place: int, view: str, head: int) -> Tensor:
    """What is painted for one block: [h, w]."""
    block = looked.blocks[place]
    if view == REACH:
        return reach(looked.blocks, place, looked.cell(block))
    heads = block.of_patch(*looked.cell(block))
    return heads.mean(0) if head == 0 else heads[min(head, len(heads)) - 1]


def show(looked: Looked, view: str, head: int) -> tuple[dict, dict, str]:
    """The photo with its windows, the strip of all blocks, and the words for the one that is shown."""
    if looked.photo is None:
        return no_photo(), strip_value([]), INTRODUCTION
    photo, block = looked.photo, looked.blocks[looked.chosen]
    picture = photo.preview()
    small = picture.copy()
    small.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    cell = looked.cell(block)
    power = 0.3 if view == REACH else 0.5
    src = paint(picture, values_of(looked, looked.chosen, view, head), SHOWN_PX, power=power)
    marks = {
        "lines": borders(block, photo),
        "parts": window_parts(block, photo, cell) if view == BLOCK else [],
        "cell": cell_box(cell, block.grid_hw, (photo.height, photo.width)),
    }
    items = [
        {
            "src": paint(small, values_of(looked, i, view, head), THUMBNAIL_PX, power=power),
            "title": f"stage {one.stage + 1}, block {one.block + 1}, {kind(one)}",
            "caption": f"{one.stage + 1}.{one.block + 1} {kind(one)}",
        }
        for i, one in enumerate(looked.blocks)
    ]
    return stage_value(photo, src=src, **marks), strip_value(items, chosen=looked.chosen), words(looked, view)


def kind(block: BlockAttention) -> str:
    """The paper's name of a block: windows, or shifted windows."""
    return "SW-MSA" if block.block % 2 else "W-MSA"


INTRODUCTION = """A **Swin Transformer** reads a photo in small patches. A patch does not look at the whole photo, which
would cost the *square* of the pixels, but only at the patches of its own **window**.

Choose a photo, then click any place in it."""


def words(looked: Looked, view: str) -> str:
    """What happens in the block that is shown, with its own numbers."""
    assert looked.photo is not None
    block = looked.blocks[looked.chosen]
    (height, width), (m, n) = block.grid_hw, block.window_hw
    px = 4 * 2**block.stage
    count = len(block.patches)
    pairs, everything = count * (m * n) ** 2, (height * width) ** 2
    lines = [f"## Stage {block.stage + 1}, block {block.block + 1}: {kind(block)}"]
    if view == REACH:
        lines.append(
            "The light shows **how much of each place has reached the chosen patch** through all blocks up to here. "
            "Go on block by block: within a window at first, across its borders as soon as the windows shift, and over "
            "the photo as patches merge."
        )
        return "\n\n".join(lines)
    if block.stage and looked.chosen == 0:
        lines.append(
            "Stages 1 and 2 are not Swin's here: a **stem**, a published convolutional network, has read the photo so "
            f"far. Its maps become patches of {px} px."
        )
    elif block.stage and block.block == 0:
        lines.append(
            f"Before this stage, each 2 × 2 neighbours were **merged** into one: patches are now {px} px wide, with "
            "twice the channels, and the same window covers four times the area."
        )
    lines.append(
        f"The map has {height} × {width} patches of {px} px, in {count} window{'s' * (count > 1)} of {m} × {n}."
    )
    if any(block.shift_hw):
        lines.append(
            f"The windows have **shifted** by {block.shift_hw[0]} × {block.shift_hw[1]} patches, so that neighbours "
            "which a border had parted now meet. At the rim a window is put together from parts of opposite sides (the "
            "*cyclic shift*); a **mask** keeps these parts from seeing one another. Click near the rim: all parts of "
            "the window are framed, but only the patch's own part is lit."
        )
    elif block.block % 2:
        lines.append("One window covers the map, so there is nothing to shift: every patch sees all others.")
    elif count > 1:
        lines.append(
            "The framed window is **all that the chosen patch sees**; the light is how much it attends to each."
        )
    if count > 1:
        lines.append(
            f"That makes {pairs:,} pairs of patches to compare; without windows it would be {everything:,}, "
            f"{everything / pairs:.0f} times as many. Twice the pixels cost twice as much here, not four times."
        )
    return "\n\n".join(lines)


def build(choice: Choice) -> Callable[[Any], None]:
    """The tab; what it gives back looks again when another model is chosen."""
    return wire(layout(), Handlers(choice.models), choice.chosen)


@dataclass(frozen=True, slots=True)
class Page:
    """What the tab is made of."""

    looked: gr.State
    photo: gr.HTML
    blocks: gr.HTML
    text: gr.Markdown
    before: gr.Button
    after: gr.Button
    view: gr.Radio
    head: gr.Slider
    upload: gr.UploadButton
    samples: gr.HTML | None


def layout() -> Page:
    """The pieces, where they stand."""
    looked = gr.State(Session(Looked()))
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=3, min_width=300):
            photo = stage("point", upload="inside-upload", elem_id="inside-stage")
            blocks = strip(elem_id="inside-blocks")
        with gr.Column(scale=2, min_width=280):
            text = gr.Markdown(INTRODUCTION, elem_id="inside-text", elem_classes="owl-step")
            with gr.Row(elem_classes="owl-buttons"):
                before = gr.Button("‹ Block before", size="md", elem_id="inside-before", min_width=110)
                after = gr.Button("Next block ›", variant="primary", size="md", elem_id="inside-next", min_width=110)
            view = gr.Radio([BLOCK, REACH], value=BLOCK, label="What the light shows", elem_id="inside-view")
            head = slider(
                0, 16, 0, step=1, label="Head", info="0 is the mean of all; a block with fewer shows its last."
            )
            upload = upload_button("Choose a photo", file_types=["image"], elem_id="inside-upload", size="md")
            samples_ = None
            if samples():
                gr.Markdown("Or look into one of these", elem_classes="owl-small")
                samples_ = strip(items=sample_items(), elem_id="inside-samples", elem_classes="owl-samples")
    with gr.Accordion("The formula, with numbers", open=False, elem_id="inside-worked"):
        tex = [{"left": "$$", "right": "$$", "display": True}, {"left": "$", "right": "$", "display": False}]
        gr.Markdown(attention_example(), latex_delimiters=tex, elem_classes="owl-step")
        gr.Markdown(patches_example(), elem_classes="owl-step")
    return Page(looked, photo, blocks, text, before, after, view, head, upload, samples_)


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click."""

    models: Models

    @errors_shown
    def on_upload(self, upload: Upload, session: Session[Looked], chosen: Session[str]):
        """Another photo."""
        return self.look(session, take_photo(*upload), chosen)

    @errors_shown
    def on_sample(self, event: gr.EventData, session: Session[Looked], chosen: Session[str]):
        """A sample."""
        return self.look(session, take_photo(pick(samples(), event.index).path), chosen)

    @errors_shown
    def on_model(self, session: Session[Looked], chosen: Session[str]):
        """The same photo in another model: nothing of the one before stays."""
        photo = session.value.photo
        if photo is None:
            return session
        session.change(lambda _: Looked())
        return self.look(session, photo, chosen)

    def look(self, session: Session[Looked], photo: Photo, chosen: Session[str]) -> Session[Looked]:
        """The tab turned to a photo, which takes long."""
        detector = self.models.detector(chosen.value)
        if not detector.has_attention:
            raise Refused("No windows to look into", f"{detector.name} is no Swin Transformer that shows its windows.")
        looked = look(detector, photo)
        session.change(lambda _: looked)
        return session

    @errors_shown
    def on_pointed(self, event: gr.EventData, session: Session[Looked], view: str, head: float):
        """Another patch."""
        point = (float(event.x), float(event.y))
        session.change(lambda looked: replace(looked, point_xy=point))
        return session, *self.on_view(session, view, head)

    @errors_shown
    def on_block(self, event: gr.EventData, session: Session[Looked], view: str, head: float):
        """The block that was clicked."""
        return self.turn(session, lambda _: int(event.index), view, head)

    def on_before(self, session: Session[Looked], view: str, head: float):
        """The block before."""
        return self.turn(session, lambda chosen: chosen - 1, view, head)

    def on_after(self, session: Session[Looked], view: str, head: float):
        """The next block."""
        return self.turn(session, lambda chosen: chosen + 1, view, head)

    def turn(self, session: Session[Looked], place: Callable[[int], int], view: str, head: float) -> tuple:
        """Another block, as far as there are any."""
        session.change(lambda looked: replace(looked, chosen=max(0, min(len(looked.blocks) - 1, place(looked.chosen)))))
        return session, *self.on_view(session, view, head)

    def on_view(self, session: Session[Looked], view: str, head: float):
        """What stands in the tab as the settings are now."""
        return show(session.value, view, int(head))


def wire(page: Page, on: Handlers, chosen: gr.State) -> Callable[[Any], None]:
    """Which event calls which handler, and what follows the choice of another model."""
    shown = [page.photo, page.blocks, page.text]
    asks, changed = [page.looked, page.view, page.head], [page.looked, *shown]
    look_at = Answers(on.on_view, asks, shown, page.photo, "inside-view")
    look_at(page.upload.upload, on.on_upload, [page.upload, page.looked, chosen], [page.looked])
    if page.samples is not None:
        look_at(page.samples.picked, on.on_sample, [page.looked, chosen], [page.looked])
    each = {"trigger_mode": "multiple", **in_turn("inside-view")}
    page.photo.pointed(on.on_pointed, asks, changed, **each)
    page.blocks.picked(on.on_block, asks, changed, **each)
    page.before.click(on.on_before, asks, changed, **each)
    page.after.click(on.on_after, asks, changed, **each)
    look_at.again([page.view.change, page.head.release])
    return look_at.after(on.on_model, [page.looked, chosen], [page.looked])
