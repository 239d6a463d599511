"""Map it: what each place of a photo shows, of all that was named, or nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from owl_swin import Detector, EncodedImage, QueryEmbeddings, SemanticMap
from owl_swin.demo import zoom
from owl_swin.demo.asking import split_names
from owl_swin.demo.photos import SHOWN_PX, Photo, data_uri, sample_items, samples, take_photo
from owl_swin.demo.pieces import HEAD, HOW, Upload, no_photo, stage_value, strip, upload_button
from owl_swin.demo.refusals import errors_shown, pick
from owl_swin.demo.session import Session
from owl_swin.demo.settings import Answers, moved, threshold_slider

NO_PHOTO = ("Drop a photo here", HOW)
UNNAMED = "Name what may be seen in it, then each place shows what it is."
# Names to begin with, for a photo of which nobody said what it shows.
FIRST = "sky, grass, water, road, wall, floor, a person"


@dataclass(frozen=True, slots=True)
class Mapped:
    """What stands in the tab: a photo, what it may show, and both as the model has them, as soon as it has."""

    photo: Photo | None = None
    names: tuple[str, ...] = ()
    queries: QueryEmbeddings | None = None
    encoded: EncodedImage | None = None

    def of(self, detector: Detector, photo: Photo) -> "Mapped":
        """The same names for another photo, in the size that the page shows."""
        shown = photo.open().copy()
        shown.thumbnail((SHOWN_PX, SHOWN_PX))
        return replace(self, photo=photo, encoded=detector.encode_image(shown, masks=True))

    def named(self, detector: Detector, text: str) -> "Mapped":
        """The same photo with the names in a text."""
        names = tuple(split_names(text))
        if names == self.names:
            return self
        return replace(self, names=names, queries=detector.encode_queries(names) if names else None)


def map_value(found: SemanticMap) -> dict[str, Any]:
    """A map for the page: a picture whose red says which name, counted from 1, and whose green says how sure; and the
    names that it shows, the largest area first."""
    labels, scores = found.labels.numpy(), found.scores.numpy()
    channels = [labels + 1, np.round(255 * scores), np.zeros_like(labels)]
    picture = Image.fromarray(np.stack([one.astype(np.uint8) for one in channels], -1))
    areas = [
        {"id": label, "name": found.names[label], "share": share, "score": float(scores[labels == label].mean())}
        for label, share in found.shares().items()
        if label >= 0
    ]
    return {"src": data_uri(picture, max(picture.size), crisp=True), "areas": areas}


def show(detector: Detector, mapped: Mapped, threshold: float) -> dict[str, Any]:
    """The photo under its map."""
    if mapped.photo is None or mapped.encoded is None:
        return no_photo(*NO_PHOTO)
    if mapped.queries is None:
        return stage_value(mapped.photo, note={"text": UNNAMED})
    found = detector.segment(mapped.encoded, mapped.queries, threshold=threshold)
    value, note = map_value(found), None
    if not value["areas"]:
        note = {"text": f"Nothing reaches the threshold of {threshold:.2f}. Lower it, or name something else."}
    return stage_value(mapped.photo, note=note, map=value)


def map_stage(upload: str, **options: Any) -> gr.HTML:
    """A place for one photo under its map; the mouse over an area says what it is."""
    return gr.HTML(
        value=no_photo(*NO_PHOTO),
        html_template='<div class="owl-stage"></div>',
        js_on_load='owlMap(element, props, trigger, watch); // "zoomed"',
        head=HEAD,
        apply_default_css=False,
        mode="look",
        part={},
        upload=upload,
        **options,
    )


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click."""

    detector: Detector

    def ask(self, session: Session[Mapped], step: Callable[[Mapped], Mapped]) -> Session[Mapped]:
        """A step that may take long."""
        session.change(step)
        return session

    @errors_shown
    def on_upload(self, upload: Upload, session: Session[Mapped], text: str):
        """Another photo."""
        photo = take_photo(*upload)
        text = text.strip() or FIRST
        return self.ask(session, lambda mapped: mapped.named(self.detector, text).of(self.detector, photo)), text

    @errors_shown
    def on_sample(self, event: gr.EventData, session: Session[Mapped]):
        """A sample, with names of what may be in it."""
        sample = pick(samples(), event.index)
        photo, text = take_photo(sample.path), sample.queries
        return self.ask(session, lambda mapped: mapped.named(self.detector, text).of(self.detector, photo)), text

    @errors_shown
    def on_names(self, session: Session[Mapped], text: str):
        """Other names."""
        return self.ask(session, lambda mapped: mapped.named(self.detector, text))

    @errors_shown
    def on_view(self, session: Session[Mapped], threshold: float):
        """The map as the settings are now."""
        return show(self.detector, session.value, threshold)


def build(detector: Detector) -> None:
    """The tab."""
    state, on, samples_ = gr.State(Session(Mapped())), Handlers(detector), None
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=3, min_width=300):
            photo = map_stage("map-upload", elem_id="map-stage")
        with gr.Column(scale=2, min_width=280):
            names = gr.Textbox(
                "",
                label="What may be seen",
                info="Commas part them. Each place of the photo shows one of these, or nothing.",
                placeholder=FIRST,
                lines=1,
                max_lines=1,
                elem_id="map-text",
            )
            find = gr.Button("Map the photo", variant="primary", elem_id="map-find")
            threshold = threshold_slider("map-threshold", info="Lowest score; below it a place shows nothing.")
            upload = upload_button("Choose a photo", file_types=["image"], elem_id="map-upload", size="md")
            if samples():
                gr.Markdown("Or map one of these", elem_classes="owl-small")
                samples_ = strip(items=sample_items(), elem_id="map-samples", elem_classes="owl-samples")
    look = Answers(on.on_view, [state, threshold], [photo], photo, "map-view")
    look(upload.upload, on.on_upload, [upload, state, names], [state, names])
    look([find.click, names.submit], on.on_names, [state, names], [state])
    if samples_ is not None:
        look(samples_.picked, on.on_sample, [state], [state, names])
    look.again(moved(threshold))
    zoom.wire(photo, state, lambda mapped: mapped.photo)
