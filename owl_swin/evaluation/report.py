"""What every protocol returns: figures with their intervals, and what has to be said with them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from owl_swin.errors import DataError
from owl_swin.files import read_json

# The figure that stands for a whole report, the first that it has; its interval is called "ci95" in JSON.
MAIN = ("AP50", "top1", "image_to_text_r1", "mIoU")

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Report:
    """A measurement. In JSON it is one flat object, which ``report["AP50"]`` reads too.

    - ``protocol``: what was asked and how, in words; ``annotations``: the name of the file or folder;
    - ``counts``: n_images, n_boxes, …;
    - ``figures``: name → percent, None where the set cannot give it; ``intervals``: figure → 95 % interval;
    - ``per_class``: name → figure;
    - ``details``: what else the protocol states;
    - ``notes``: what a reader of the figures has to know; ``broken``: pictures that could not be read. With any of
      these the figures are not those of the set.
    """

    protocol: str
    annotations: str
    counts: Mapping[str, int]
    figures: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None] = field(default_factory=dict)
    per_class: Mapping[str, float | None] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as one flat object."""
        intervals = {
            interval_key(name): list(value) if value else None
            for name, value in sorted(self.intervals.items(), key=lambda item: interval_key(item[0]) != "ci95")
        }
        return {
            "protocol": self.protocol,
            "annotations": self.annotations,
            **self.counts,
            **self.figures,
            "per_class": dict(self.per_class),
            **intervals,
            **self.details,
            "notes": list(self.notes),
            "broken": list(self.broken),
        }

    def __getitem__(self, key: str) -> Any:
        return self.to_json()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_json())

    def __contains__(self, key: object) -> bool:
        return key in self.to_json()

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "Report":
        """A report out of the object that ``to_json`` made."""
        rest = dict(content)
        words = {key: str(rest.pop(key, "")) for key in ("protocol", "annotations")}
        per_class = rest.pop("per_class", {})
        notes, broken = tuple(rest.pop("notes", ())), tuple(rest.pop("broken", ()))
        spans = {key: rest.pop(key) for key in list(rest) if key == "ci95" or key.startswith("ci95_")}
        counts = {key: value for key, value in rest.items() if isinstance(value, int)}
        figures = {key: value for key, value in rest.items() if value is None or isinstance(value, float)}
        details = {key: value for key, value in rest.items() if key not in counts and key not in figures}
        intervals = {name: _pair(spans[interval_key(name)]) for name in figures if interval_key(name) in spans}
        return Report(**words, counts=counts, figures=figures, intervals=intervals, per_class=per_class,
                      details=details, notes=notes, broken=broken)  # fmt: skip


def interval_key(figure: str) -> str:
    """What the interval of a figure is called in JSON."""
    return "ci95" if figure in MAIN else f"ci95_{figure.removeprefix('AP50_')}"


def read_report(path: Path) -> Report:
    """The report in a file that `owl-swin eval --json` wrote."""
    try:
        return Report.from_json(read_json(path))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: holds no result of an evaluation ({error})") from None


def _pair(values: Any) -> Interval | None:
    return (float(values[0]), float(values[1])) if values else None
