"""`owl-swin distil`: pictures that nobody labelled and a teacher in, a fast Swin in its text space out."""

from pathlib import Path
from typing import Annotated, Any

import typer

from owl_swin.cli import options
from owl_swin.cli.evaluation_options import show_progress
from owl_swin.cli.pictures import find_picture_files
from owl_swin.cli.printing import emit_line, said_when_stopped, say
from owl_swin.cli.query_options import listed_names
from owl_swin.errors import OwlSwinError, QueryError

# Notes on pictures that could not be read, one a picture; more are counted.
MOST_NOTES = 10


def distil(
    photos: Annotated[
        list[str],
        typer.Argument(metavar="PHOTOS...", help="Folders, with all folders in them, patterns, or picture files."),
    ],
    student: Annotated[
        Path | None, typer.Option(metavar="MODEL.toml", help="The student's sizes, as in configs/model.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run; model.safetensors in it is the student.")
    ] = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="The model to learn from: a name that ships, a .safetensors file, a folder, or one of the hub."
        ),
    ] = "nano",
    queries: options.NameList = None,
    query: Annotated[list[str] | None, typer.Option(help="A name to label with; repeat it.")] = None,
    unlabelled: Annotated[
        Path | None,
        typer.Option(metavar="NAMES.txt", help="Names that both are asked for at the end alone: does any text work?"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of training; by default 2000.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Scenes of a step; by default 16.")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="The student's longer side in pixels; by default its file's.")
    ] = None,
    init: Annotated[
        list[str] | None, typer.Option(help="Weights that the image side starts from, as in a training run; repeat it.")
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="A text tower that `owl-swin distil-text` taught, in place of the teacher's own."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="RUN.toml", help="All other settings, as in configs/train/distil.toml.")
    ] = None,
    held_out: Annotated[
        float | None, typer.Option(help="Share of the pictures to compare the two on; by default 0.1.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same student; by default 0.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, or auto; by default auto.")] = None,
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after so many steps more; the next call goes on.")
    ] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Go on with other settings than the run began with.")
    ] = False,
) -> None:
    """Make a fast Swin out of a teacher: label pictures with it, train on its boxes, scores and embeddings, compare.

    The student keeps the teacher's text space, so any text works. The same command goes on after whatever stopped it.

    Example: owl-swin distil Photos --student configs/model/tiny.toml --queries names.txt --output runs/small
    """
    if len(photos) == 1 and photos[0].endswith(".toml"):
        raise OwlSwinError(
            f"{photos[0]}: expected pictures; a text tower is distilled by `owl-swin distil-text {photos[0]}`"
        )
    if student is None or output is None:
        raise OwlSwinError("say with --student what is to be made (a file as in configs/model), with --output where")

    from owl_swin.config import from_mapping, read_mapping
    from owl_swin.labelling.names import label_names, read_label_names

    names = label_names(query or ()) + label_names(listed_names(queries))
    if not names:
        raise QueryError("there is nothing to look for; give names with --query or --queries")
    others = read_label_names(unlabelled) if unlabelled is not None else ()
    own = output.resolve()  # what the run draws is no picture to learn from
    sources = [path for path in find_picture_files(photos) if not Path(path).resolve().is_relative_to(own)]

    from owl_swin.distillation.run import Distillation
    from owl_swin.distillation.run import distil as run
    from owl_swin.training.tasks.student import StudentConfig

    given: dict[str, Any] = {
        "student": str(student),
        "output": str(output),
        "text": None if text is None else str(text),
    }
    given |= {"steps": steps, "batch_size": batch_size, "image_size": image_size, "init": init or None}
    given |= {"held_out": held_out, "seed": seed, "device": device}
    settings = read_mapping(recipe) if recipe is not None else {}
    settings |= {key: value for key, value in given.items() if value is not None}
    config = from_mapping(StudentConfig, settings, where="the settings" if recipe is None else str(recipe))
    what = Distillation(tuple(sources), teacher, tuple(dict.fromkeys(names)), others)
    with said_when_stopped("stopped; the same command goes on from here"):
        done = run(what, config, stop_after=stop_after, allow_changes=allow_changes, progress=show_progress)
    if not done.first:
        return
    for sentence in done.broken[:MOST_NOTES]:
        say(f"left out: {sentence}")
    if len(done.broken) > MOST_NOTES:
        say(f"{len(done.broken)} of {len(sources)} pictures could not be read")
    if done.comparison is None:
        emit_line(f"{done.folder}: {done.steps} of {config.steps} steps are done; the same command goes on")
        return
    emit_line(f"{'student':<26} {done.folder / 'model.safetensors'}")
    for line in done.comparison.lines():
        emit_line(line)
