"""`owl-swin label`: pictures that nobody labelled in, a data set with scores out."""

from pathlib import Path
from typing import Annotated

import typer

from owl_swin.addresses import is_url
from owl_swin.cli import options
from owl_swin.cli.pictures import STDIN, find_pictures
from owl_swin.cli.printing import Progress, emit_line, note, say
from owl_swin.errors import ImageError, OwlSwinError, QueryError
from owl_swin.files import IMAGE_FORMS, make_folder_of, write_image

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
    queries: Annotated[
        Path | None,
        typer.Option(metavar="NAMES.txt", help='Names to look for, one on each line; "sofa, couch" is one class.'),
    ] = None,
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
    sheet: Annotated[Path | None, typer.Option(help="A picture to write, of sample pictures with their boxes.")] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    image_size: options.ImageSize = None,
) -> None:
    """Label pictures with a model: a data set in COCO's form to train on, whose boxes carry a score.

    It may be stopped at any moment; the same command goes on from there, and afterwards labels only what is new.

    Example: owl-swin label Photos --to labels.json --queries names.txt --sheet labels.jpg
    """
    if sheet is not None:
        if sheet.suffix.lower() not in IMAGE_FORMS:
            raise OwlSwinError(f"{sheet}: the sheet's name must end in {', '.join(IMAGE_FORMS)}")
        make_folder_of(sheet)
    sources = _sources(photos, sheet)

    from owl_swin.labelling.captions import captions_of, n_grams
    from owl_swin.labelling.names import LabelSpace, label_names, read_label_names
    from owl_swin.labelling.run import LabelOptions, label_pictures

    listed = label_names(query or ()) + (read_label_names(queries) if queries is not None else ())
    if not listed and captions is None:
        raise QueryError(
            "there is nothing to look for; give a file of names with --queries, names with --query, or --captions"
        )
    chosen = LabelOptions(threshold, picture_threshold, batch_size)

    root = photos[0] if len(photos) == 1 and Path(photos[0]).is_dir() else None
    own = {} if captions is None else {p: n_grams(texts) for p, texts in captions_of(captions, sources, root).items()}

    from owl_swin.teachers.ensemble import Ensemble
    from owl_swin.teachers.load import load_teacher

    teachers = [load_teacher(one, device=device, dtype=dtype, image_size=image_size) for one in teacher or ("nano",)]
    single = len(teachers) == 1 and not flip and not scale
    model = teachers[0] if single and agree == 1 else Ensemble(teachers, flip=flip, scales=scale or (1,), agree=agree)
    try:
        with Progress(len(sources)) as progress:
            report = label_pictures(
                sources, to, model, LabelSpace(listed, own), chosen, root=root, progress=progress.show
            )
    except KeyboardInterrupt:
        say("stopped; the same command goes on from here")
        raise typer.Exit(130) from None
    for path, reason in report.skipped[:MOST_NOTES]:
        say(f"{path}: {reason}")
    if len(report.skipped) > MOST_NOTES:
        say(f"{len(report.skipped)} of {len(sources)} pictures could not be read")
    known = f", {report.known} labelled before" if report.known else ""
    skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
    emit_line(f"{to}: {report.boxes} boxes in {report.kept} pictures; {report.dropped} left out{skipped}{known}")
    note(f'its pictures are named from {report.root} on: train with kind "coco", path "{to}", images "{report.root}"')
    if sheet is not None:
        _write_sheet(to, report.root, sheet)


def _sources(photos: list[str], sheet: Path | None) -> list[str]:
    for photo in photos:
        if photo == STDIN or is_url(photo):
            raise ImageError(f"{photo}: a data set names its pictures; give files or folders")
    sources = find_pictures(photos)
    own = None if sheet is None or not sheet.exists() else sheet
    return [source for source in sources if own is None or not (Path(source).exists() and own.samefile(source))]


def _write_sheet(labels: Path, root: str, sheet: Path) -> None:
    from owl_swin.data.coco import read_coco
    from owl_swin.data.contact_sheet import sheet_of_scenes

    write_image(sheet, sheet_of_scenes(read_coco(labels, Path(root))), what="the sheet")
    note(f"wrote {sheet}")
