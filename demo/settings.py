"""What the tabs that look in one photo let people set: threshold, overlap and detail."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from owl_swin import Detector
from owl_swin.demo.asking import FLOOR
from owl_swin.demo.pieces import BUSY, QUIET

# Where the slider of scores begins.
THRESHOLD = 0.2


@dataclass(frozen=True, slots=True)
class Detail:
    """What stands under "More settings": the overlap of boxes, and the size that photos are looked at in."""

    overlap: gr.Slider
    size: gr.Radio


def slider(least: float, most: float, value: float, **options: Any) -> gr.Slider:
    """A slider whose number may be typed, of which the page tells each key: what it is on the way, as the 0 of 0.3 or
    nothing at all, is the nearest that there is, or as at the start."""
    made = gr.Slider(least, most, value, **options)

    def within(given: Any) -> float:
        return value if given is None else min(max(given, least), most)

    made.preprocess = within  # type: ignore[method-assign]
    return made


def threshold_slider(elem_id: str, *, value: float = THRESHOLD, info: str | None = None) -> gr.Slider:
    """The lowest score that is shown."""
    return slider(FLOOR, 1, value, step=0.01, label="Threshold", info=info, elem_id=elem_id)


def more_settings(sizes: dict[str, Detector], *, explained: bool = False) -> Detail:
    """What few need, folded away; ``explained`` says what each does. Boxes overlap by what suits the first model."""
    names, overlap = list(sizes), next(iter(sizes.values())).spec.nms_iou
    overlap_info = "Of boxes of one name that overlap by more, only the best stays; 1 keeps all."
    size_info = "Finer finds smaller things, slower."
    with gr.Accordion("More settings", open=False):
        return Detail(
            slider(0.1, 1, overlap, step=0.05, label="Overlap", info=overlap_info if explained else None),
            gr.Radio(names, value=names[0], label="Detail", info=size_info if explained else None),
        )


@dataclass(frozen=True, slots=True)
class Outlines:
    """The switch that has things outlined, and why it is not there where a model makes no masks."""

    switch: gr.Checkbox
    why_not: gr.Markdown

    @property
    def pieces(self) -> list[Any]:
        """Both, which another model changes."""
        return [self.switch, self.why_not]


def outlines_switch(detector: Detector, elem_id: str) -> Outlines:
    """The switch, off."""
    there, why_not = _outlines(detector)
    info = "Which pixels of its box each thing has; what leaves the page holds them too."
    return Outlines(
        gr.Checkbox(False, label="Outlines", info=info, elem_id=elem_id, visible=there),
        gr.Markdown(why_not, elem_id=f"{elem_id}-not", elem_classes="owl-small", visible=not there),
    )


def outlines_choice(detector: Detector) -> tuple[Any, Any]:
    """The switch for another model: where that has none, what was chosen comes back with the next."""
    there, why_not = _outlines(detector)
    return gr.update(visible=there), gr.update(value=why_not, visible=not there)


def _outlines(detector: Detector) -> tuple[bool, str]:
    name = detector.name.replace("_", "\\_")  # of Markdown
    return detector.spec.has_masks, f"No outlines: {name} finds boxes and makes no masks; nano makes both."


def moved(*sliders: gr.Slider) -> list[Any]:
    """The events of sliders on their way and at its end."""
    return [event for slider in sliders for event in (slider.input, slider.release)]


def in_turn(name: str) -> dict[str, Any]:
    """Events of one name are worked off in the order in which they came: what a slider said a moment ago must not
    be shown after what a click says now."""
    return {**QUIET, "concurrency_id": name, "concurrency_limit": 1}


@dataclass(frozen=True, slots=True)
class Answers:
    """How a tab asks its photo, which may take long, and then shows the answer as its settings are by then: ``show``
    gets what is ``viewed``, fills what is ``shown``, and runs in turn under a ``name``; ``busy`` says that it works.

    A threshold that is moved meanwhile would else be forgotten: what asks began with the one before. Of events that
    come while the last is at work Gradio would drop all ("once") or do the first again ("always_last", which is right
    where pieces say what is wanted, and not the event): here each is done, unless ``trigger_mode`` says otherwise.
    """

    show: Callable[..., Any]
    viewed: list[Any]
    shown: list[Any]
    busy: gr.HTML
    name: str

    def __call__(self, events: Any, ask: Callable[..., Any], given: list[Any], kept: list[Any], **options: Any) -> Any:
        """``ask`` gets what is ``given`` and fills what is ``kept``, which is no part of the answer; its event."""
        on = partial(gr.on, events) if isinstance(events, list) else events
        options = {"trigger_mode": "multiple", **options}
        asked = on(ask, given, kept, **BUSY, show_progress_on=self.busy, **options)
        self._shown(asked)
        return asked

    def _shown(self, after: Any) -> None:
        after.then(self.show, self.viewed, self.shown, trigger_mode="always_last", **in_turn(self.name))

    def after(self, ask: Callable[..., Any], given: list[Any], kept: list[Any]) -> Callable[[Any], None]:
        """The same following an event that is not there yet."""
        return lambda event: self(event.then, ask, given, kept)

    def again(self, events: list[Any]) -> None:
        """The same answer, shown otherwise."""
        gr.on(events, self.show, self.viewed, self.shown, trigger_mode="always_last", **in_turn(self.name))

    def offered(self, event: Any, threshold: gr.Slider) -> None:
        """The threshold that the note under a photo offers, taken."""
        self._shown(event(offered, None, threshold, trigger_mode="multiple", **QUIET))


def offered(event: gr.EventData) -> float:
    """The threshold that the note under a photo offers."""
    return event.value
