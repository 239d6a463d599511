"""`owl-swin train | cutouts | paste | signs | distil-text`: making models."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from owl_swin.cli.evaluation_options import show_progress
from owl_swin.cli.printing import emit_line, note, said_when_stopped, say
from owl_swin.cli.table import table_lines
from owl_swin.errors import OwlSwinError
from owl_swin.files import make_folder
from owl_swin.image import is_picture_name

STOPPED_RUN = "stopped; the same command goes on from the last checkpoint"

if TYPE_CHECKING:
    from owl_swin.data.scene import Scenes
    from owl_swin.training.config import TrainConfig


def train(
    config: Annotated[Path, typer.Argument(metavar="RUN.toml", help="A TOML file, as in configs/train.")],
    stop_after: Annotated[
        int | None, typer.Option(help="Stop after so many steps more; the next call goes on.")
    ] = None,
    blend: Annotated[
        float | None,
        typer.Option(help="Share of the weights that the run started from in the result, 0 to 1: less forgetting."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run, in place of the file's.")] = None,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Go on with other settings than the run began with.")
    ] = False,
) -> None:
    """Train or go on training; the run's folder then holds model.safetensors. Under torchrun, processes share the work.
    With task = "probe", classifiers on frozen features and probe.json.

    Example: owl-swin train configs/train/finetune.toml --blend 0.5
    """
    from owl_swin.config import read_toml
    from owl_swin.training.config import TrainConfig
    from owl_swin.training.loop import train as run

    settings = read_toml(config, TrainConfig)
    if blend is not None:
        settings = replace(settings, blend=blend)
    if output is not None:
        settings = replace(settings, output=str(output))
    if settings.task == "probe":
        _probe(settings, stop_after is not None or blend is not None)
        return
    with said_when_stopped(STOPPED_RUN):
        folder = run(settings, stop_after=stop_after, allow_changes=allow_changes)
    emit_line(str(folder))


def _probe(settings: "TrainConfig", with_steps: bool) -> None:
    """Runs a probe: its table goes to stderr and its folder to stdout, as of every run."""
    from owl_swin.evaluation.probe import run_probe

    if with_steps:
        raise OwlSwinError("--stop-after and --blend are for runs that train a model; task = 'probe' trains none")
    reports = run_probe(settings)
    head = ("set", "classes", "learned from", "tested on", "linear top-1", "top-5", "k-NN top-1")
    rows = [
        (
            report.annotations,
            *(str(report.counts[key]) for key in ("n_classes", "n_train", "n_images")),
            *(f"{report.figures[key]:.1f}" for key in ("top1", "top5", "knn_top1")),
        )
        for report in reports
    ]
    for line in table_lines(head, rows):
        note(line)
    for report in reports:
        for sentence in report.notes:
            say(f"{report.annotations}: {sentence}")
    emit_line(str(settings.output))


def cutouts(
    data: Annotated[str, typer.Argument(metavar="SET", help="A set with boxes, as `owl-swin info` reads it.")],
    to: Annotated[Path, typer.Option(help="Folder to write cutouts.json and images/ to.")],
    images: Annotated[str, typer.Option(help="Folder of the set's pictures.")] = "",
    kind: Annotated[
        str | None, typer.Option(help="Form of the set (coco, voc, yolo, …); guessed if not given.")
    ] = None,
    model: Annotated[str, typer.Option(help='Model that makes masks where the set has none; "" for none.')] = "nano",
    names: Annotated[str | None, typer.Option(help="Only these names, separated by commas.")] = None,
    without: Annotated[str | None, typer.Option(help="Not these names, separated by commas.")] = None,
    least_score: Annotated[float, typer.Option(help="Of boxes that were guessed, the lowest score.")] = 0.6,
    most: Annotated[int, typer.Option(help="At most so many of a name; 0 for all.", min=0)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps or auto.")] = "auto",
    seed: Annotated[int, typer.Option(help="The same seed takes the same things.")] = 0,
) -> None:
    """Cut the things of a set with boxes out of their photographs, for `owl-swin paste`: by their masks, or by those
    that a model makes of what it finds in the same place.

    Example: owl-swin cutouts train.json --images pictures --to things
    """
    from owl_swin.detector import Detector
    from owl_swin.labelling.cutting import cut_out

    scenes = _set_with_boxes(data, images, kind)
    detector = Detector.from_pretrained(model, device=device) if model else None
    if detector is not None and not detector.spec.has_masks:
        raise OwlSwinError(f'{model}: makes no masks; name a model that does, or --model "" for masks of the set alone')
    made = cut_out(
        scenes,
        to,
        detector,
        names=_names(names),
        without=_names(without),
        least_score=least_score,
        most=most,
        seed=seed,
        progress=show_progress,
    )
    left = f"{made.small} boxes too small or cut off, {made.unmasked} without a mask that fits"
    note(f"{made.kept} cut-outs; left: {left}")
    emit_line(str(made.path))


def paste(
    cutouts: Annotated[
        Path,
        typer.Argument(
            metavar="CUTOUTS",
            help="Folder of RGBA pictures called after what they show, or of `owl-swin cutouts`, or a JSON list.",
        ),
    ],
    on: Annotated[
        list[Path],
        typer.Option(help="Folder of photographs to paste on, or file of a set whose boxes stay; repeat it."),
    ],
    to: Annotated[Path, typer.Option(help="Folder to write annotations.json and images/ to.")],
    images: Annotated[
        list[str] | None, typer.Option(help="Folder of the pictures of a set that is pasted on; one each, in order.")
    ] = None,
    pictures: Annotated[int, typer.Option(help="How many scenes.", min=1)] = 100,
    names: Annotated[str | None, typer.Option(help="Only these names, separated by commas.")] = None,
    without: Annotated[str | None, typer.Option(help="Not these names, separated by commas.")] = None,
    most_things: Annotated[int, typer.Option(help="At most so many things in a scene.", min=1)] = 4,
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="LEAST,MOST",
            help="Longer side of a thing as a share of the photograph's, as 0.04,0.4; by default heights of 0.15 to "
            "0.6 of its shorter side.",
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            metavar="LEAST,MOST",
            help="Or how many times its own size a thing becomes, as 0.3,1.6, for cut-outs of photographs; brightness "
            "and shape then vary a little too.",
        ),
    ] = None,
    balance: Annotated[
        float, typer.Option(help="1: all cut-outs as often; 0: all names as often; between them, names by this power.")
    ] = 1.0,
    image_size: Annotated[int, typer.Option(help="Longer side in pixels of pictures, at most.", min=1)] = 320,
    seed: Annotated[int, typer.Option(help="The same seed gives the same scenes.")] = 0,
) -> None:
    """Make a detection set out of cut-outs: paste them on photographs, with boxes; on those of a set, beside its own.

    Example: owl-swin paste cutouts --on photos --to my_set --pictures 200

    Copy and paste: owl-swin paste things --on train.json --images pictures --to more --scales 0.3,1.6 --balance 0.25
    """
    from owl_swin.data.cutouts import find_cutouts
    from owl_swin.data.paste import Ground, Sizes, grounds_of, paste_scenes

    sets, folders = [one for one in on if one.is_file()], [one for one in on if not one.is_file()]
    if images is not None and len(images) != len(sets):
        raise OwlSwinError(f"--images names the pictures of {len(images)} sets, and --on names {len(sets)}")
    photographs: list[Path | Ground] = list(_pictures_of(folders))
    for path, pictures_of_it in zip(sets, images or [""] * len(sets), strict=True):
        photographs += grounds_of(_set_with_boxes(str(path), pictures_of_it, None))
    found = find_cutouts(cutouts, _names(names), without=_names(without))
    chosen = Sizes(_two_numbers("--sizes", sizes), _two_numbers("--scales", scales))
    make_folder(to)
    made = paste_scenes(
        found,
        photographs,
        to,
        pictures=pictures,
        most_things=most_things,
        longer_side_px=image_size,
        sizes=chosen,
        balance=balance,
        seed=seed,
    )
    emit_line(str(made))


def _set_with_boxes(path: str, images: str, kind: str | None) -> "Scenes":
    from owl_swin.data.config import DataConfig
    from owl_swin.data.guess import guess_kind
    from owl_swin.data.scenes import load_scenes

    chosen = kind or guess_kind(path)
    if chosen is None:
        raise OwlSwinError(f"{path}: not a set with boxes of a form that can be told")
    return load_scenes(DataConfig(kind=chosen, path=path, images=images), masks=True)


def _names(given: str | None) -> list[str]:
    return [name.strip() for name in (given or "").split(",") if name.strip()]


def signs(
    to: Annotated[Path, typer.Option(help="Folder to write the cut-outs to, new or without pictures.")],
    count: Annotated[int, typer.Option(help="How many cut-outs.", min=1)] = 1000,
    posters: Annotated[
        list[Path] | None, typer.Option(help="Folder of photographs: each fourth is a part of one of them; repeat it.")
    ] = None,
    fonts: Annotated[Path | None, typer.Option(help="Folder of TrueType fonts; by default Pillow's own font.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same cut-outs.")] = 0,
) -> None:
    """Make cut-outs of signs with writing, and of posters, for `owl-swin paste`.

    Example: owl-swin signs --to signs --count 3000
    """
    from owl_swin.data.signs import make_signs

    letters = [] if fonts is None else sorted(fonts.glob("*.ttf"))
    if fonts is not None and not letters:
        raise OwlSwinError(f"{fonts}: not a folder of TrueType fonts (.ttf)")
    photographs = _pictures_of(posters or [])
    emit_line(str(make_signs(to, count=count, photographs=photographs, fonts=letters, seed=seed)))


def _pictures_of(folders: list[Path]) -> list[Path]:
    """The pictures of all of them, in the order of their names."""
    for folder in folders:
        if not folder.is_dir():
            raise OwlSwinError(f"{folder}: not a folder of photographs")
    return [path for folder in folders for path in sorted(folder.iterdir()) if is_picture_name(path)]


def _two_numbers(option: str, given: str | None) -> tuple[float, float] | None:
    if given is None:
        return None
    try:
        least, most = (float(part) for part in given.split(","))
    except ValueError:
        raise OwlSwinError(f"{option} must be two numbers with a comma, as 0.04,0.4, got {given!r}") from None
    return least, most


def distil_text(
    config: Annotated[Path, typer.Argument(metavar="RUN.toml", help="A TOML file, as configs/train/distil_text.toml.")],
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Go on with other settings than the run began with.")
    ] = False,
) -> None:
    """Distil a sentence encoder into the small text tower.

    Example: owl-swin distil-text configs/train/distil_text.toml
    """
    from owl_swin.config import read_toml
    from owl_swin.training.distil_text import distil as run
    from owl_swin.training.tasks.text import DistilConfig

    settings = read_toml(config, DistilConfig)
    with said_when_stopped(STOPPED_RUN):
        folder = run(settings, allow_changes=allow_changes)
    emit_line(str(folder))
