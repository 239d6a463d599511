"""Model cards: sentences from a TOML file, figures from the JSON files that `owl-swin eval` wrote."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from owl_swin.config import read_toml
from owl_swin.errors import DataError
from owl_swin.evaluation.report import read_report


@dataclass(frozen=True, slots=True)
class ResultConfig:
    """One row: ``figure`` is FILE.KEY, the file without its ending; ``command`` is what made it."""

    what: str
    figure: str
    command: str


@dataclass(frozen=True, slots=True)
class CardConfig:
    """What a model card says. Each tuple is a list of sentences."""

    name: str
    description: tuple[str, ...]
    data: tuple[str, ...]
    recipe: tuple[str, ...]
    limits: tuple[str, ...]
    licence: tuple[str, ...]
    results: tuple[ResultConfig, ...] = ()


def build_card(path: str | Path, figures: str | Path) -> dict[str, Any]:
    """The card of ``path`` with every figure filled in from the folder ``figures``; a missing one raises DataError."""
    config = read_toml(path, CardConfig)
    sections = ("description", "data", "recipe", "limits", "licence")
    card: dict[str, Any] = {"name": config.name, **{key: list(getattr(config, key)) for key in sections}}
    card["results"] = [
        {"what": row.what, "value": _figure(Path(figures), row.figure), "command": row.command}
        for row in config.results
    ]
    return card


def _figure(folder: Path, figure: str) -> str:
    """The value as text, with its 95 % interval where the report gives one for it."""
    name, _, key = figure.partition(".")
    path = folder / f"{name}.json"
    report = read_report(path)
    if key not in report.figures:
        raise DataError(f"{path}: holds no figure {key!r}; run the evaluation that writes it")
    value, interval = report.figures[key], report.intervals.get(key)
    if value is None:
        return "none"
    digits = 2 if 0 < value < 1 else 1
    return f"{value:.{digits}f}" + (f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})" if interval else "")
