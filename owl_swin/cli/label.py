"""`owl-swin label`: pictures that nobody labelled in, a data set with scores out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from owl_swin.addresses import is_url
from owl_swin.cli import options
from owl_swin.cli.pictures import STDIN, find_picture_files
from owl_swin.cli.printing import Progress, emit_line, note, said_when_stopped, say
from owl_swin.cli.query_options import listed_names
from owl_swin.errors import ImageError, OwlSwinError, QueryError
from owl_swin.files import IMAGE_FORMS, make_folder_of, write_image, write_text
from owl_swin.label_studio import label_studio_address, label_studio_interface

if TYPE_CHECKING:
    from owl_swin.labelling.names import LabelSpace
    from owl_swin.labelling.run import LabelReport
    from owl_swin.teachers.teacher import Teacher

# Notes on pictures that could not be read, one a picture; more are counted.
MOST_NOTES = 10


def label(
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTOS...", help="Folders, with all folders in them, patterns, or picture files."),
    ],
    to: Annotated[Path, typer.Option(metavar="LABELS.json", help="The data set to write, in COCO's form with scores.")],
    teacher: Annotated[
        list[str] | None,
        typer.Option(
            help="The model that labels: a name that ships, a file, a folder, or one of the Hugging Face hub (ours, "
            "OWL-ViT, OWLv2, GroundingDINO, MM-GroundingDINO, LLMDet, OmDet-Turbo, SAM 3). Repeated: fused.",
            show_default="nano",
        ),
    ] = None,
    queries: options.NameList = None,
    query: Annotated[list[str] | None, typer.Option(help="A name to look for; repeat it.")] = None,
    captions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|FOLDER",
            help="Look in each picture for what its captions name too: COCO captions, a .csv, .tsv or .jsonl with path "
            "and caption, or a folder with a .txt for each picture.",
        ),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Lowest score of a box.")] = 0.1,
    picture_threshold: Annotated[float, typer.Option(help="A picture stays if its best box has this score.")] = 0.3,
    batch_size: Annotated[int, typer.Option(help="Pictures that the teacher is shown together.")] = 8,
    agree: Annotated[int, typer.Option(help="Of several teachers, how many must have found a thing.")] = 1,
    flip: Annotated[bool, typer.Option("--flip", help="Show each picture mirrored too, and fuse the answers.")] = False,
    scale: Annotated[
        list[float] | None,
        typer.Option(help="Size at which pictures are shown, against the teacher's own; repeat it.", show_default="1"),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            help="Show the teacher each picture in tiles of so many pixels a side too, which finds small things."
        ),
    ] = None,
    overlap: options.Overlap = None,
    sheet: Annotated[Path | None, typer.Option(help="A picture to write, of sample pictures with their boxes.")] = None,
    label_studio: Annotated[
        Path | None,
        typer.Option(metavar="TASKS.json", help="The same as tasks of Label Studio, to be corrected there."),
    ] = None,
    label_studio_root: Annotated[
        Path | None,
        typer.Option(help="Label Studio's LOCAL_FILES_DOCUMENT_ROOT, above the pictures: its tasks then show them."),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    image_size: options.ImageSize = None,
) -> None:
    """Label pictures with a model: a data set in COCO's form to train on, whose boxes carry a score.

    It may be stopped at any moment; the same command goes on from there, and afterwards labels only what is new.

    Example: owl-swin label Photos --to labels.json --queries names.txt --sheet labels.jpg

    With an open model: owl-swin label Photos --to labels.json --queries names.txt --teacher
    google/owlv2-base-patch16-ensemble

    By several, as they agree: owl-swin label Photos --to labels.json --captions captions.csv --teacher
    IDEA-Research/grounding-dino-tiny --teacher google/owlv2-base-patch16-ensemble --agree 2
    """
    sources = _sources(photos, sheet)
    read = [path for path in (queries, captions) if path is not None]
    _check_outputs(to, sheet, label_studio, label_studio_root, read=[*sources, *read])
    if label_studio_root is not None:
        for source in sources:
            label_studio_address(source, label_studio_root)
    root = photos[0] if len(photos) == 1 and Path(photos[0]).is_dir() else None
    space = _label_space(queries, query or (), captions, sources, root)

    from owl_swin.labelling.label_set import label_studio_tasks
    from owl_swin.labelling.run import LabelOptions, label_pictures
    from owl_swin.teachers.load import load_teacher

    chosen, tiles = LabelOptions(threshold, picture_threshold, batch_size), options.make_tiles(tile, overlap)
    placed: dict[str, Any] = {"device": device, "dtype": dtype, "image_size": image_size}
    # Names out of one caption lie within one another, as "tabby" in "tabby cat": both are there.
    placed |= {} if captions is None else {"rivals": 0.0}
    teachers = [load_teacher(one, tiles=tiles, **placed) for one in teacher or ("nano",)]
    model = _joined(teachers, flip, scale, agree)
    with said_when_stopped("stopped; the same command goes on from here"), Progress(len(sources)) as progress:
        report = label_pictures(sources, to, model, space, chosen, root=root, progress=progress.show)
    if label_studio is not None:
        tasks = label_studio_tasks(report.pictures, made_by=model.name, root=label_studio_root)
        write_text(label_studio, json.dumps(tasks) + "\n", what="the tasks")
        names = [one.name for one in space.listed] + [name for row in report.pictures for name in row.names]
        note(f"wrote {label_studio}; labelling interface for these tasks: {label_studio_interface(names)}")
    if sheet is not None:
        _write_sheet(to, report.root, sheet)
    _say_report(to, report, len(sources))  # after what a closed pipe would keep from being written


def _check_outputs(
    to: Path, sheet: Path | None, tasks: Path | None, root: Path | None, *, read: Sequence[str | Path]
) -> None:
    """Refuses, before any work, what cannot be written after it."""
    if str(to) == STDIN:
        raise OwlSwinError(f"{to}: the labels and their journal need a file; name one that ends in .json")
    if sheet is not None and sheet.suffix.lower() not in IMAGE_FORMS:
        raise OwlSwinError(f"{sheet}: the sheet's name must end in {', '.join(IMAGE_FORMS)}")
    if root is not None and tasks is None:
        raise OwlSwinError("--label-studio-root is for the tasks of --label-studio; give that too")
    if root is not None and not root.is_dir():
        raise OwlSwinError(f"{root}: --label-studio-root must be the folder that Label Studio serves; there is none")
    if tasks is not None and tasks.absolute() == to.absolute():
        raise OwlSwinError(f"{to}: is named for the labels and for the tasks of Label Studio; give each its own file")
    for path in (sheet, tasks):
        if path is not None:
            make_folder_of(path, apart_from=read)


def _sources(photos: Sequence[str], sheet: Path | None) -> list[str]:
    """The pictures; a sheet among them, which would be labelled by the next run or take a picture's place, is
    refused."""
    for photo in photos:
        if photo == STDIN or is_url(photo):
            raise ImageError(f"{photo}: a data set names its pictures; give files or folders")
    sources = find_picture_files(photos)
    if sheet is not None and sheet.parent.is_dir():
        for folder in {Path(source).parent for source in sources}:
            if folder.is_dir() and folder.samefile(sheet.parent):
                raise OwlSwinError(f"{sheet}: lies among the pictures; name another folder for the sheet")
    return sources


def _label_space(
    queries: str | None, query: Sequence[str], captions: Path | None, sources: Sequence[str], root: str | None
) -> "LabelSpace":
    """The names to look for, of all options that give some."""
    from owl_swin.labelling.captions import captions_of, n_grams
    from owl_swin.labelling.names import LabelSpace, label_names

    listed = label_names(query) + label_names(listed_names(queries))
    if not listed and captions is None:
        raise QueryError("there is nothing to look for; give names with --query or --queries, or --captions")
    own = {} if captions is None else {p: n_grams(texts) for p, texts in captions_of(captions, sources, root).items()}
    if captions is not None and len(own) < len(sources):
        note(f"captions of {len(own)} of {len(sources)} pictures")
    return LabelSpace(listed, own)


def _joined(teachers: "Sequence[Teacher]", flip: bool, scales: Sequence[float] | None, agree: int) -> "Teacher":
    """One teacher of all that was asked for."""
    if len(teachers) == 1 and not flip and not scales and agree == 1:
        return teachers[0]
    from owl_swin.teachers.ensemble import Ensemble

    return Ensemble(teachers, flip=flip, scales=scales or (1.0,), agree=agree)


def _say_report(to: Path, report: "LabelReport", n_sources: int) -> None:
    for path, reason in report.skipped[:MOST_NOTES]:
        say(f"{path}: {reason}")
    if len(report.skipped) > MOST_NOTES:
        say(f"{len(report.skipped)} of {n_sources} pictures could not be read")
    known = f", {report.known} labelled before" if report.known else ""
    skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
    emit_line(f"{to}: {report.boxes} boxes in {report.kept} pictures; {report.dropped} left out{skipped}{known}")
    kind = "lvis" if any(row.asked for row in report.pictures) else "coco"
    note(f'to train on it: kind = "{kind}", path = "{to}", images = "{report.root}"')


def _write_sheet(labels: Path, root: str, sheet: Path) -> None:
    from owl_swin.data.coco import read_coco
    from owl_swin.data.contact_sheet import sheet_of_scenes

    write_image(sheet, sheet_of_scenes(read_coco(labels, Path(root))), what="the sheet")
    note(f"wrote {sheet}")
