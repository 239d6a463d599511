"""Which model looks: those that the starter of the demo listed, loaded when somebody chooses them."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from owl_swin import Detector
from owl_swin.demo.asking import scales
from owl_swin.demo.pieces import QUIET
from owl_swin.demo.refusals import Refused, errors_shown
from owl_swin.demo.session import Session

# Of the family that the detector loads by name, one of each size that a laptop bears.
PUBLISHED = ("google/owlvit-base-patch32", "google/owlv2-base-patch16-ensemble", "google/owlv2-large-patch14-ensemble")
# What a folder holds that is one model, of transformers, of ours, or exported; else it is a folder of models.
MODEL_FILES = ("config.json", "spec.json")
WEIGHTS = "*.safetensors"
# Models in memory beside the one that the demo was started with.
MOST_LOADED = 1


def listed(sources: Iterable[str | Path]) -> list[str]:
    """The models among sources, of which each is a model or a folder of models."""
    found: dict[str, None] = {}
    for source in sources:
        inside = [] if not Path(source).is_dir() else sorted(filter(_is_model, Path(source).iterdir()))
        alone = not inside or any(Path(source, name).is_file() for name in MODEL_FILES)
        found |= dict.fromkeys([str(source)] if alone else [str(path) for path in inside])
    return list(found)


def _is_model(path: Path) -> bool:
    if path.is_dir():
        return any((path / name).is_file() for name in MODEL_FILES) or len(list(path.glob(WEIGHTS))) == 1
    return path.match(WEIGHTS)


class Models:
    """Models to choose among, called by their labels: files and folders by the last part of their paths. The first is
    loaded and stays; of the others MOST_LOADED stay in memory, whoever chose them."""

    def __init__(
        self,
        first: Detector,
        sources: Sequence[str] = (),
        load: Callable[[str], Detector] | None = None,
        *,
        served: bool = True,
    ):
        """``sources`` are what ``load`` takes, the first where ``first`` came from; with none there is no choice.
        ``served``: beside the pages the server's calls answer."""
        self.served = served
        own = first.name.removeprefix("owl_swin_")
        self._sources = dict(zip(_labels(sources), sources, strict=True)) or {own: own}
        self._load = load or Detector.from_pretrained
        self._first = scales(first)
        self._loaded: OrderedDict[str, dict[str, Detector]] = OrderedDict()
        self._lock = threading.Lock()
        self.labels = tuple(self._sources)

    def sizes(self, label: str = "") -> dict[str, Detector]:
        """The model in the sizes that ``scales`` gives, loaded if need be; "" is the first. One that is not listed
        raises Refused, and one that cannot be had CheckpointError."""
        if label in ("", self.labels[0]):
            return self._first
        if label not in self._sources:
            raise Refused("No such model", f"choose one of {', '.join(self.labels)}.")
        with self._lock:  # two at once would need the memory of both
            if label not in self._loaded:
                while len(self._loaded) >= MOST_LOADED:
                    self._loaded.popitem(last=False)
                self._loaded[label] = scales(self._load(self._sources[label]))
            self._loaded.move_to_end(label)
            return self._loaded[label]

    def detector(self, label: str = "", size: str = "") -> Detector:
        """The model in one of its sizes, the first where it has no such."""
        sizes = self.sizes(label)
        return sizes.get(size) or next(iter(sizes.values()))

    def source(self, label: str = "") -> str:
        """What `Detector.from_pretrained` takes for it."""
        return self._sources.get(label) or self._sources[self.labels[0]]


def _labels(sources: Sequence[str]) -> list[str]:
    """Names as short as they can be told apart by; names of the hub are as they are."""
    short = [Path(source).name if Path(source).exists() else source for source in sources]
    return [source if short.count(label) > 1 else label for label, source in zip(short, sources, strict=True)]


def about(detector: Detector) -> str:
    """A model in a line."""
    return f"{detector.name} · {detector.image_size} px · {detector.device.type}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The models, which of them a visitor chose, and where: nowhere where there is no choice."""

    models: Models
    chosen: gr.State  # of Session[str]; "" is the first
    field: gr.Dropdown | None
    said: gr.Markdown | None


def build(models: Models) -> Choice:
    """The field to choose in; none where there is no choice."""
    chosen = gr.State(Session(""))
    if len(models.labels) < 2:
        return Choice(models, chosen, None, None)
    with gr.Row(elem_id="owl-models"):
        field = gr.Dropdown(
            list(models.labels), value=models.labels[0], label="Model", elem_id="owl-model", scale=1, min_width=220
        )
        said = gr.Markdown(about(models.detector()), elem_id="owl-model-said", elem_classes="owl-small")
    return Choice(models, chosen, field, said)


def wire(choice: Choice, tabs: Sequence[Callable[[Any], None]]) -> None:
    """What follows a choice: the model is loaded, then each tab asks it again; ``tabs`` get the event to follow."""
    if choice.field is None or choice.said is None:
        return
    models, field, said = choice.models, choice.field, choice.said

    def on_choice(label: str, session: Session[str]):
        """The model, loaded with a message meanwhile; where that fails, the one before stays."""
        if label != (session.value or models.labels[0]):
            yield f"Loading {label} …", gr.skip(), session
            loaded = errors_shown(models.detector)(label)
            if isinstance(loaded, Detector):
                session.change(lambda _: "" if label == models.labels[0] else label)
        yield about(models.detector(session.value)), session.value or models.labels[0], session

    # "change" comes once, from mouse and keys alike, and once more when the field is set back, which asks for nothing;
    # "input" comes twice from a mouse, and "select" not at all from keys.
    loading = field.change(on_choice, [field, choice.chosen], [said, field, choice.chosen], **QUIET)
    for follow in tabs:
        follow(loading)


def follow_link(choice: Choice, chips: gr.HTML) -> None:
    """Chooses the model that a link to the page asks for; one that is not on offer is told, and nothing changes."""

    @errors_shown
    def on_link(event: gr.EventData):
        label, labels = str(event.model), choice.models.labels
        if not label and event.again:  # in an open window; a link says nothing of the first
            label = labels[0]
        if label and label not in labels:
            raise Refused("No such model", f"The link asks for {label[:100]!r}, and here there is {', '.join(labels)}.")
        return label if label and choice.field is not None else gr.skip()

    chosen = choice.chosen if choice.field is None else choice.field
    chips.linked(on_link, None, chosen, trigger_mode="multiple", **QUIET)


def size_choices(sizes: dict[str, Detector]) -> Any:
    """The field "Detail" for another model."""
    return gr.update(choices=list(sizes), value=next(iter(sizes)))
