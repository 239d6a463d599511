"""Name it: words in, boxes out."""

from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from owl_swin import Detections, Detector
from owl_swin.demo.asking import Question, note_of_nothing, scales, split_names
from owl_swin.demo.examples import Example
from owl_swin.demo.exports import TOP_K, Call, copies, downloads, query_file, stage_files
from owl_swin.demo.photos import Photo, sample_items, samples, take_photo
from owl_swin.demo.pieces import (
    BUSY,
    QUIET,
    Upload,
    chips_piece,
    files,
    rows,
    stage,
    stage_value,
    strip,
    upload_button,
)
from owl_swin.demo.refusals import Refused, errors_shown, pick
from owl_swin.demo.settings import Detail, in_turn, more_settings, moved, offered, threshold_slider
from owl_swin.demo.terms import (
    Term,
    chips,
    queries_of,
    thresholds_of,
    with_example,
    with_file,
    with_names,
)

INSTEAD = "use a plainer word, or show the thing in “Show it”"
HELP = "Enter adds a name, commas part several. No name at all finds anything that looks like a thing."
HIDDEN = {"text": "All names are hidden; click one to see it again."}


@dataclass(frozen=True, slots=True)
class Named:
    """What stands in the tab: the photo with what is asked of it, and the names that ask it."""

    asked: Question = field(default_factory=Question)
    terms: tuple[Term, ...] = ()

    def of(self, photo: Photo | None) -> "Named":
        """The same names, asked of another photo."""
        return replace(self, asked=self.asked.of(photo))


def ask(detector: Detector, named: Named) -> Named:
    """The question with its photo encoded; one that was encoded already is not looked at again."""
    asked = replace(named.asked, queries=queries_of(named.terms))
    if asked.photo is not None:
        asked = replace(asked, encoded=asked.encoded or detector.encode_image(asked.photo.open()), done=True)
    return replace(named, asked=asked)


def find(detector: Detector, named: Named, threshold: float, overlap: float) -> Detections | None:
    """What answers, without another look at the photo; None before anything was asked."""
    asked = named.asked
    if not asked.done or asked.encoded is None:
        return None
    limits = thresholds_of(named.terms, threshold)
    return detector.detect(asked.encoded, asked.queries, threshold=limits, nms_iou=overlap, top_k=TOP_K)


def show(detector: Detector, named: Named, threshold: float, overlap: float, size: int | None = None) -> tuple:
    """What the stage, the names and the downloads hold for an answer."""
    asked, terms = named.asked, named.terms
    found = find(detector, named, threshold, overlap)
    if asked.photo is None or asked.encoded is None or found is None:
        return stage_value(asked.photo), chips(terms, None, (), threshold), stage_files([])
    best = detector.score(asked.encoded, asked.queries).sigmoid().amax(0).tolist() if asked.queries is not None else []
    shown = [term for term in terms if not term.hidden]
    visible = found[[not terms or not terms[label].hidden for label in found.labels.tolist()]]
    note = None
    if terms and not shown:
        note = HIDDEN
    elif not len(visible):
        note = note_of_nothing(detector, replace(asked, queries=queries_of(shown)), threshold, instead=INSTEAD)
    call = Call(
        detector.name.removeprefix("owl_swin_"),
        [term.name for term in shown],
        thresholds_of(shown, threshold),
        overlap,
        size,
        from_file=not all(term.plain for term in shown),
    )
    saved = query_file(asked.photo, queries_of(shown))
    written = [] if terms and not shown else copies(asked.photo, call)
    given = stage_files([*downloads(asked.photo, visible, "name-stage"), *saved], written)
    return stage_value(asked.photo, boxes=rows(visible), note=note), chips(terms, found, best, threshold), given


def build(detector: Detector) -> None:
    """The tab."""
    sizes = scales(detector)
    wire(layout(sizes), Handlers(sizes))


@dataclass(frozen=True, slots=True)
class Page:
    """What the tab is made of."""

    state: gr.State
    photo: gr.HTML
    downloads: gr.HTML
    upload: gr.UploadButton
    names: gr.Textbox
    find: gr.Button
    chips: gr.HTML
    load: gr.UploadButton
    threshold: gr.Slider
    detail: Detail
    samples: gr.HTML | None


def layout(sizes: dict[str, Detector]) -> Page:
    """The pieces, where they stand."""
    state = gr.State(Named())
    with gr.Row(elem_classes="owl-columns"):
        with gr.Column(scale=3, min_width=300):
            photo = stage("look", upload="name-upload", table=True, likes=True, elem_id="name-stage")
            downloads_ = files(elem_id="name-files")
        with gr.Column(scale=2, min_width=280):
            upload = upload_button("Choose a photo", file_types=["image"], elem_id="name-upload")
            names = gr.Textbox(
                "",
                label="What to find",
                info=HELP,
                placeholder="a person, a red mug, a dog",
                lines=1,
                max_lines=1,
                elem_id="name-text",
            )
            find_ = gr.Button("Find", variant="primary", elem_id="name-find")
            chips_ = chips_piece(elem_id="name-chips")
            threshold = threshold_slider("name-threshold", info="Lowest score that is shown.")
            detail = more_settings(sizes, explained=True)
            load = upload_button("Load a query", elem_id="name-load", size="md")
            samples_ = None
            if samples():
                gr.Markdown("Or try one of these", elem_classes="owl-small")
                samples_ = strip(items=sample_items(), elem_id="name-samples", elem_classes="owl-samples")
    return Page(state, photo, downloads_, upload, names, find_, chips_, load, threshold, detail, samples_)


@dataclass(frozen=True, slots=True)
class Handlers:
    """What the tab does on each click; ``sizes`` as ``scales`` gives them.

    ``settings`` are the size, the threshold and the overlap.
    """

    sizes: dict[str, Detector]

    def answer(self, named: Named, size: str, threshold: float, overlap: float) -> tuple:
        """The state, and what is shown of it; any of the sizes reads it alike, as nothing is looked at again."""
        normal, chosen = next(iter(self.sizes.values())), self.sizes[size]
        px = None if chosen.image_size == normal.image_size else chosen.image_size
        return named, *show(normal, named, threshold, overlap, px)

    def ask(self, named: Named, size: str, *cut: float) -> tuple:
        """As ``answer``, after a look at what was not looked at yet."""
        return self.answer(ask(self.sizes[size], named), size, *cut)

    @errors_shown
    def on_upload(self, upload: Upload, named: Named, *settings: Any):
        """Another photo, of which the same is asked."""
        return self.ask(named.of(take_photo(*upload)), *settings)

    @errors_shown
    def on_find(self, text: str, named: Named, size: str, *cut: float):
        """The names in the field join those that are there."""
        terms = with_names(self.sizes[size], named.terms, split_names(text))
        named = replace(named, terms=terms)
        if named.asked.photo is None and not text.strip():
            raise Refused("No photo yet", "First choose a photo: drop one, click to choose one, or paste one.")
        return "", *self.ask(named, size, *cut)

    @errors_shown
    def on_sample(self, event: gr.EventData, named: Named, size: str, *cut: float):
        """A sample, with names that may be in it in place of those that were there."""
        one = samples()[event.index]
        named = replace(
            named.of(take_photo(one.path)), terms=with_names(self.sizes[size], (), split_names(one.queries))
        )
        return self.ask(named, size, *cut)

    @errors_shown
    def on_load(self, upload: Upload, named: Named, size: str, *cut: float):
        """The queries of a file join the names that are there."""
        with open(upload.path, "rb") as file:
            terms = with_file(self.sizes[size], named.terms, file.read())
        return self.ask(replace(named, terms=terms), size, *cut)

    @errors_shown
    def on_link(self, event: gr.EventData, named: Named, size: str, threshold: float, overlap: float):
        """What a link to the page asks for: its names, their thresholds, and that of all."""
        limits = [_share(limit) for limit in event.thresholds]
        terms = with_names(self.sizes[size], (), [str(name) for name in event.names])
        terms = tuple(replace(t, threshold=limit) for t, limit in zip(terms, limits, strict=False))
        common = _share(event.threshold)
        threshold = threshold if common is None else common
        return threshold, *self.ask(replace(named, terms=terms), size, threshold, overlap)

    @errors_shown
    def on_tuned(self, event: gr.EventData, named: Named, *settings: Any):
        """A name hidden or shown, or with another threshold."""
        term = pick(named.terms, event.index)
        if event.hidden is not None:
            term = replace(term, hidden=bool(event.hidden))
        else:
            term = replace(term, threshold=_share(event.threshold))
        return self.answer(_with_term(named, event.index, term), *settings)

    @errors_shown
    def on_removed(self, event: gr.EventData, named: Named, *settings: Any):
        """A name less."""
        pick(named.terms, event.index)
        return self.ask(_with_term(named, event.index, None), *settings)

    @errors_shown
    def on_liked(self, event: gr.EventData, named: Named, size: str, *cut: float):
        """A found box as an example of its name, or as what it is not."""
        photo = named.asked.photo
        if photo is None:
            raise Refused("No photo yet", "First choose a photo.")
        x0, y0, x1, y1 = (float(value) for value in event.box)
        example = Example.of(photo, (x0, y0, x1, y1), bool(event.wanted))
        if named.terms:
            pick(named.terms, event.query)
        terms = with_example(self.sizes[size], named.terms, event.query, example)
        return self.ask(replace(named, terms=terms), size, *cut)

    @errors_shown
    def on_size(self, named: Named, *settings: Any):
        """The same again at another size."""
        return self.ask(named.of(named.asked.photo), *settings) if named.asked.done else self.answer(named, *settings)

    @errors_shown
    def on_slider(self, named: Named, *settings: Any):
        """The same answer cut elsewhere."""
        return self.answer(named, *settings)[1:]


def _with_term(named: Named, place: int, term: Term | None) -> Named:
    return replace(named, terms=(*named.terms[:place], *([term] if term else []), *named.terms[place + 1 :]))


def _share(value: Any) -> float | None:
    """A threshold that the page sent; what is none is None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= 1 else None


def wire(page: Page, on: Handlers) -> None:
    """Which event calls which handler."""
    state, detail = page.state, page.detail
    shown = [page.photo, page.chips, page.downloads]
    asks, answered = [state, detail.size, page.threshold, detail.overlap], [state, *shown]
    busy = {**BUSY, "show_progress_on": page.photo}
    page.upload.upload(on.on_upload, [page.upload, *asks], answered, **busy)
    gr.on([page.find.click, page.names.submit], on.on_find, [page.names, *asks], [page.names, *answered], **busy)
    page.load.upload(on.on_load, [page.load, *asks], answered, **busy)
    page.chips.linked(on.on_link, asks, [page.threshold, *answered], **busy)
    page.photo.liked(on.on_liked, asks, answered, **busy)
    detail.size.input(on.on_size, asks, answered, **busy)
    turn = in_turn("name-view")
    page.chips.tuned(on.on_tuned, asks, answered, trigger_mode="multiple", **turn)
    page.chips.removed(on.on_removed, asks, answered, trigger_mode="multiple", **turn)
    gr.on(moved(page.threshold, detail.overlap), on.on_slider, asks, shown, trigger_mode="always_last", **turn)
    page.photo.asked(offered, None, page.threshold, **QUIET).then(on.on_slider, asks, shown, **turn)
    if page.samples is not None:
        page.samples.picked(on.on_sample, asks, answered, **busy)
