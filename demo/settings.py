"""What the tabs that look in one photo let people set: threshold, overlap and detail."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from owl_swin.demo.asking import FLOOR
from owl_swin.demo.pieces import QUIET


@dataclass(frozen=True, slots=True)
class Detail:
    """What stands under "More settings": the overlap of boxes, and the size that photos are looked at in."""

    overlap: gr.Slider
    size: gr.Radio


def threshold_slider(elem_id: str, *, value: float = 0.2, info: str | None = None) -> gr.Slider:
    """The lowest score that is shown."""
    return gr.Slider(FLOOR, 1, value, step=0.01, label="Threshold", info=info, elem_id=elem_id)


def more_settings(sizes: Iterable[str], *, explained: bool = False) -> Detail:
    """What few need, folded away; ``explained`` says what each does."""
    names = list(sizes)
    overlap_info = "Of boxes of one name that overlap by more, only the best stays; 1 keeps all."
    size_info = "Finer finds smaller things, slower."
    with gr.Accordion("More settings", open=False):
        return Detail(
            gr.Slider(0.1, 1, 0.5, step=0.05, label="Overlap", info=overlap_info if explained else None),
            gr.Radio(names, value=names[0], label="Detail", info=size_info if explained else None),
        )


def moved(*sliders: gr.Slider) -> list[Any]:
    """The events of sliders on their way and at its end."""
    return [event for slider in sliders for event in (slider.input, slider.release)]


def in_turn(name: str) -> dict[str, Any]:
    """Events of one name are worked off in the order in which they came: what a slider said a moment ago must not
    be shown after what a click says now."""
    return {**QUIET, "concurrency_id": name, "concurrency_limit": 1}


def offered(event: gr.EventData) -> float:
    """The threshold that the note under a photo offers."""
    return event.value
