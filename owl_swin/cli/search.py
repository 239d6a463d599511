"""`owl-swin search`: where in an archive is the thing that is named or shown?"""

import json
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_swin.cli import options
from owl_swin.cli.printing import emit, note, printable
from owl_swin.cli.query_options import QueryOptions, add_saved, make_queries, path_of
from owl_swin.cli.table import table_lines
from owl_swin.cli.thresholds import reached_threshold
from owl_swin.errors import OwlSwinError, QueryError
from owl_swin.files import make_folder_of, write_image
from owl_swin.index.match import Match
from owl_swin.index.store import NoArchiveError
from owl_swin.index.times import seconds_of

if TYPE_CHECKING:
    from owl_swin.detector import Detector
    from owl_swin.index.region_index import RegionIndex
    from owl_swin.types import QueryEmbeddings

# The best answer, whatever its score.
LOWEST = {"threshold": 0.0, "limit": 1, "offset": 0}


class Format(StrEnum):
    """What goes to stdout."""

    TABLE = "table"
    JSONL = "jsonl"


def search(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="What `owl-swin index --to` made.")],
    query: Annotated[list[str] | None, typer.Option(help="What to find; repeat it.")] = None,
    queries: options.TextList = None,
    like: options.Like = None,
    negative: options.Negative = None,
    join: options.Join = False,
    weight: options.Weight = 0.5,
    name: options.Name = None,
    query_file: options.QueryFiles = None,
    more_like: Annotated[
        list[str] | None, typer.Option(metavar="REGION", help="A region of the archive, by its id; repeat it.")
    ] = None,
    limit: Annotated[int, typer.Option(help="Most answers to a query.")] = 20,
    offset: Annotated[int, typer.Option(help="Leave out so many of the best, for the next page.")] = 0,
    threshold: Annotated[float, typer.Option(help="Lowest score, 0 to 1, as in `owl-swin detect --rivals 0`.")] = 0.0,
    per_image: Annotated[int | None, typer.Option(help="Most answers of one picture.")] = None,
    path_glob: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only these paths, as in '2024/*.jpg' or '*/holiday/*'.")
    ] = None,
    newer_than: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only files changed since, as in 2024-05-31, or 12h, 7d, 3w, 1y.")
    ] = None,
    older_than: Annotated[str | None, typer.Option(metavar="TIME", help="Only files last changed before.")] = None,
    min_size: Annotated[float | None, typer.Option(help="Shortest side of a box in pixels.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Score every region, not only what the index brings.")] = False,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--eval",
            help="Instead of answers: how many of the 10 best regions the index brings, and how long that takes. "
            "Without queries, for regions of the archive.",
        ),
    ] = False,
    model: Annotated[str, typer.Option(help="The model that the archive was made with.")] = "nano",
    device: options.Device = "auto",
    format: Annotated[Format, typer.Option(help="Form of the output.")] = Format.TABLE,
    save: Annotated[
        Path | None, typer.Option(metavar="SHEET.jpg", help="A sheet of the pictures with their boxes.")
    ] = None,
) -> None:
    """Find things in an archive by name or by example.

    Example: owl-swin search photos.lance --query "a red mug" --limit 10 --save mugs.jpg

    By example: owl-swin search photos.lance --like mug.jpg@40,60,210,300 --not "a cup" --newer-than 2024-01-01
    """
    asked = make_queries(QueryOptions(query or (), queries, like or (), negative or (), name, join, weight))
    if not (asked or query_file or more_like or evaluate):
        raise QueryError("say with --query or --like what to find")
    if evaluate and (save is not None or format is not Format.TABLE):
        raise QueryError("--eval gives figures instead of answers; leave --save and --format out")
    if evaluate and (path_glob or newer_than or older_than or min_size is not None or exact or offset):
        raise QueryError("--eval asks the whole archive; leave out what filters or pages answers, and --exact")
    if save is not None:
        _check_sheet(
            save,
            read=[
                *(path_of(shown) for shown in (*(like or ()), *(negative or ()))),
                *(query_file or ()),
                queries or "",
            ],
        )
    settings: dict[str, Any] = {
        "limit": limit,
        "offset": offset,
        "threshold": threshold,
        "per_image": per_image,
        "path_glob": path_glob,
        "newer_than": newer_than and seconds_of("--newer-than", newer_than),
        "older_than": older_than and seconds_of("--older-than", older_than),
        "min_side_px": min_size,
        "exact": exact,
    }
    detector = _detector_of(archive, model, device)
    from owl_swin.index.region_index import RegionIndex

    with RegionIndex.open(archive, detector) as index:
        encoded = add_saved(detector, detector.encode_queries(asked) if asked else None, query_file or ())
        for region in more_like or ():
            one = index.more_like(region)
            encoded = one if encoded is None else encoded + one
        if evaluate:
            from owl_swin.index.recall import measure_recall

            emit(json.dumps(measure_recall(index, encoded), indent=2) + "\n")
            return
        assert encoded is not None
        found = _answer(index, encoded, settings, format)
        if save is not None:
            _save_sheet(index, found, save)


def _detector_of(archive: str, model: str, device: str) -> "Detector":
    """The detector at the size at which the archive's pictures were encoded."""
    from owl_swin.detector import Detector
    from owl_swin.index.region_index import read_card

    card = read_card(archive)
    if card is None:
        raise NoArchiveError(archive)
    return Detector.from_pretrained(model, device=device, image_size=card.image_size)


def _answer(
    index: "RegionIndex", encoded: "QueryEmbeddings", settings: dict[str, Any], format: Format
) -> list[list[Match]]:
    """Prints what each query finds, and returns it."""
    from owl_swin.index.ranking import one_query

    found: list[list[Match]] = []
    best: list[Match | None] = []  # of queries that nothing answers, what would with a lower threshold
    for i, name in enumerate(encoded.names):
        query = one_query(encoded, i)
        found.append(index.search(query, **settings))
        lower = [] if found[-1] else index.search(query, **settings | LOWEST)
        best.append(lower[0] if lower and lower[0].score < settings["threshold"] else None)
        if format is Format.JSONL:
            emit("".join(line + "\n" for line in _json_lines(i, name, found[-1], settings["offset"])))
    if format is Format.TABLE:
        emit("".join(line + "\n" for line in _table(encoded.names, found, best, settings["offset"])))
    return found


def _save_sheet(index: "RegionIndex", found: list[list[Match]], path: Path) -> None:
    from owl_swin.index.sheet import sheet_of_matches

    if not any(found):
        note(f"nothing was found, so {path} is not written")
        return
    matches = [match for one in found for match in one]
    sheet = sheet_of_matches(index, matches, [number for number, one in enumerate(found) for _ in one])
    write_image(path, sheet, what="the sheet")
    note(f"wrote {path}")


def _json_lines(query_index: int, name: str, matches: list[Match], offset: int) -> Iterator[str]:
    from owl_swin.formats import CORNERS

    for place, match in enumerate(matches, start=offset + 1):
        yield json.dumps(
            {
                "query": name,
                "query_index": query_index,
                "place": place,
                "score": round(match.score, 6),
                "image": match.path,
                "box": {c: round(v, 2) for c, v in zip(CORNERS, match.box_xyxy, strict=True)},
                "width": match.width,
                "height": match.height,
                "objectness": round(match.objectness, 6),
                "modified": match.modified,
                "image_id": match.image_id,
                "region": match.region,
            }
        )


def _table(names: tuple[str, ...], found: list[list[Match]], best: list[Match | None], offset: int) -> Iterator[str]:
    head = ("query", "place", "score", "xmin", "ymin", "xmax", "ymax", "picture")
    rows = [
        (name, str(place), f"{match.score:.3f}", *(f"{value:.0f}" for value in match.box_xyxy), match.path)
        for name, matches in zip(names, found, strict=True)
        for place, match in enumerate(matches, start=offset + 1)
    ]
    if rows:
        yield from table_lines(head, rows, left=(0, 7))
    for name, matches, lower in zip(names, found, best, strict=True):
        if not matches:
            hint = ""
            if lower is not None:
                score = reached_threshold(lower.score)
                hint = f"; best: {score} (use --threshold {score})"
            yield f"{printable(name)}: nothing found{hint}"


def _check_sheet(path: Path, *, read: Sequence[str | Path]) -> None:
    if path.suffix.lower() not in (".jpg", ".jpeg", ".png"):
        raise OwlSwinError(f"{path}: the sheet of --save must end in .jpg or .png")
    make_folder_of(path, apart_from=read)
