"""`owl-swin detect`: pictures in, boxes out."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from owl_swin.addresses import is_url
from owl_swin.cli import options
from owl_swin.cli.pictures import (
    STDIN,
    check_apart,
    find_pictures,
    named,
    open_picture,
    picture_file,
    reduced,
    without_drawings,
)
from owl_swin.cli.printing import Progress, note, say
from owl_swin.cli.query_options import QueryOptions, add_saved, check_query_file, make_queries, path_of
from owl_swin.cli.results import PER_PICTURE, WITH_MASKS, Drawings, Format, Results, Streamed, make_results
from owl_swin.cli.thresholds import nothing_sentence, read_thresholds
from owl_swin.cli.video import VideoOptions, VideoRun
from owl_swin.errors import ImageError, MissingExtraError, OwlSwinError
from owl_swin.files import make_folder_of
from owl_swin.image import is_picture_name
from owl_swin.label_studio import label_studio_address, label_studio_interface
from owl_swin.signals import STOPPED

if TYPE_CHECKING:
    from PIL import Image

    from owl_swin.detections import Detections
    from owl_swin.detector import Detector
    from owl_swin.postprocess import DetectOptions
    from owl_swin.tiling import Tiles
    from owl_swin.types import QueryEmbeddings

# Pictures that are decoded and encoded together.
BATCH = 8
# Notes on pictures without detections, one a picture; more are counted.
MOST_NOTES = 10


def detect(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE...",
            help="Pictures; folders, with all folders in them, or patterns such as '2024/**/*.jpg', each in order of "
            "name; - reads one picture from stdin. Or videos, a camera such as /dev/video0, or rtsp:// addresses.",
        ),
    ],
    query: options.Texts = None,
    queries: options.TextList = None,
    like: options.Like = None,
    negative: options.Negative = None,
    join: options.Join = False,
    weight: options.Weight = 0.5,
    name: options.Name = None,
    query_file: options.QueryFiles = None,
    save_query: Annotated[
        Path | None, typer.Option(help="A .safetensors file to keep the queries of this call in.")
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SCORE|NAME=SCORE",
            help="Lowest score, 0 to 1, of all queries or of those of one name, as in --threshold 0.3 --threshold "
            "'a dog=0.1'; repeat it.",
            show_default="0.2",
        ),
    ] = None,
    nms_iou: Annotated[
        float | None,
        typer.Option(
            help="Of boxes of one query that overlap by more, keep the best; 1 keeps all.",
            show_default="what suits the model",
        ),
    ] = None,
    box_voting: Annotated[
        bool | None,
        typer.Option(
            help="Boxes that a better one suppresses have a say in where its sides are.",
            show_default="what suits the model",
        ),
    ] = None,
    rivals: Annotated[
        float | None,
        typer.Option(
            help="0 to 1: where another text scores higher for the same thing (boxes overlap by 0.7), an answer to a "
            "text has score · (score / higher one) ** rivals; 0 leaves all as they are.",
            show_default="what suits the model",
        ),
    ] = None,
    nms_across: Annotated[
        bool, typer.Option("--nms-across", help="Boxes of different queries compete too: one thing, one box.")
    ] = False,
    objectness: Annotated[
        float | None, typer.Option(help="Lowest objectness of a patch that may answer, 0 to 1.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Most boxes of a picture.")] = 300,
    model: options.Model = "nano",
    device: options.Device = "auto",
    dtype: options.Dtype = None,
    runtime: options.Runtime = "auto",
    image_size: options.ImageSize = None,
    content_only: options.ContentOnly = False,
    fps: Annotated[float | None, typer.Option("--fps", help="Of a video, so many frames a second at most.")] = None,
    every: Annotated[int | None, typer.Option("--every", metavar="N", help="Of a video, each Nth frame.")] = None,
    track: Annotated[
        bool, typer.Option("--track/--no-track", help="Number the things in a video, the same one the same.")
    ] = True,
    tile: options.Tile = None,
    overlap: options.Overlap = None,
    allow_url: options.AllowUrl = False,
    format: Annotated[
        Format, typer.Option(help="Form of the output; yolo and voc are a file a picture, in the folder of --to.")
    ] = Format.TABLE,
    to: Annotated[Path | None, typer.Option(help="File, or folder, for the output in place of stdout.")] = None,
    label_studio_root: Annotated[
        Path | None,
        typer.Option(
            help="Label Studio's LOCAL_FILES_DOCUMENT_ROOT, above the pictures: its tasks then show them as imported."
        ),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Folder for pictures with the boxes drawn in.")] = None,
    masks: Annotated[
        bool,
        typer.Option(
            "--masks",
            help="Also which pixels each thing has: drawn with --save, and written as jsonl, coco, label-studio or "
            "yolo. For models that have masks.",
        ),
    ] = False,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say which patch of the picture answered (table, jsonl), and with --save draw where each query fits.",
        ),
    ] = False,
) -> None:
    """Find things in pictures by name or by example.

    Example: owl-swin detect kitchen.jpg --query "a red mug" --query "a dog" --format jsonl

    By example: owl-swin detect *.jpg --like mug.jpg@40,60,210,300 --like mug2.jpg --not cup.jpg --not "a blue cup"

    A video: owl-swin detect street.mp4 --query "a car" --fps 5 --format jsonl --save drawn

    A folder: owl-swin detect Photos --queries "a dog, a cat" --threshold 0.3 --threshold "a cat=0.1" --format csv
    """
    _check_output(format, to, label_studio_root, explain and save is None)
    _check_places(format, to, save, save_query)
    if masks:
        _check_masks(format, drawn=save is not None)
    if explain and tile is not None:
        raise OwlSwinError("--explain shows the patches of the whole picture; give it without --tile")
    asked = make_queries(
        QueryOptions(query or (), queries, like or (), negative or (), name, join, weight),
        beside=images,
        allow_url=allow_url,
    )
    if save_query is not None:
        check_query_file(save_query, asked)
    sources = without_drawings(find_pictures(images, allow_url=allow_url), images, save)
    wanted = VideoOptions(fps, every, track)
    of_videos = wanted.of_videos(sources, format, explain)
    if label_studio_root is not None:
        _check_below(sources, label_studio_root)
    shown = [path_of(one) for one in (*(like or ()), *(negative or ()))]
    if save is not None:
        check_apart([*sources, *shown], save)
    if to is not None and format not in PER_PICTURE:
        make_folder_of(to, apart_from=[*sources, *shown, *(query_file or ()), queries or "", model])
    if save_query is not None:
        make_folder_of(save_query, apart_from=[*sources, *shown, *(query_file or ()), queries or "", model])

    from owl_swin.detector import Detector
    from owl_swin.encoder import check_has_masks
    from owl_swin.postprocess import DetectOptions
    from owl_swin.scoring import names_of

    tiles = options.make_tiles(tile, overlap)
    limits = DetectOptions(
        nms_iou="model" if nms_iou is None else nms_iou,
        box_voting=box_voting,
        rivals="model" if rivals is None else rivals,
        nms_across=nms_across,
        objectness=objectness,
        max_detections=top_k,
        masks=masks,
    )
    detector = Detector.from_pretrained(
        model, device=device, dtype=dtype, image_size=image_size, runtime=runtime, content_only=content_only
    )
    if masks:
        check_has_masks(detector.spec)
    own = detector.encode_queries(asked) if asked else None
    encoded = add_saved(detector, own, query_file or ())
    names = names_of(encoded)
    thresholds = read_thresholds(threshold or (), names)

    def nothing(found: "Detections") -> str:
        return nothing_sentence(found.best, thresholds)

    if of_videos:
        _keep_queries(save_query, own)
        say_nothing = partial(nothing_sentence, thresholds=thresholds)
        videos = VideoRun(detector, encoded, replace(limits, threshold=thresholds), tiles, wanted, format, say_nothing)
        if videos.over(sources, to, save):
            raise typer.Exit(2)
        return
    results = make_results(
        format,
        to,
        names,
        explain=explain,
        nothing=nothing,
        model_version=detector.name,
        label_studio_root=label_studio_root,
    )
    drawings = Drawings(save) if save is not None else None
    _keep_queries(save_query, own)
    run = _Run(
        detector,
        encoded,
        replace(limits, threshold=thresholds),
        results,
        drawings,
        explain,
        allow_url,
        None if format is Format.TABLE else nothing,
        tiles,
    )
    failed = run.over(sources)
    if label_studio_root is not None:
        note(f"labelling interface for these tasks: {label_studio_interface(names, masks=masks)}")
    if failed:
        raise typer.Exit(2)


def _keep_queries(path: Path | None, queries: "QueryEmbeddings | None") -> None:
    """Writes the queries of this call."""
    if path is not None and queries is not None:
        queries.save(path)
        note(f"wrote {path}")


@dataclass
class _Run:
    """One call over its pictures."""

    detector: "Detector"
    queries: "QueryEmbeddings | None"
    options: "DetectOptions"
    results: Results
    drawings: Drawings | None
    explain: bool
    allow_url: bool
    nothing: Callable[["Detections"], str] | None  # what to say beside the output of a picture without detections
    tiles: "Tiles | None" = None
    done: int = 0
    failed: int = 0
    without: int = 0

    def over(self, sources: Sequence[str]) -> int:
        """Detects in all pictures and says how many could not be read; Ctrl-C ends it with what is finished."""
        try:
            # A bar and results that come one after another would write into one another's lines on a terminal.
            with_bar = len(sources) > BATCH and not (sys.stdout.isatty() and isinstance(self.results, Streamed))
            with Progress(len(sources), with_bar=with_bar) as progress:
                step = BATCH if self.tiles is None else 1
                for start in range(0, len(sources), step):
                    if self.tiles is None:
                        self._batch(list(self._opened(sources[start : start + step])))
                    else:
                        self._tiled(sources[start], self.tiles)
                    progress.show(self.done + self.failed)
        except STOPPED:
            self.results.close()
            say(f"stopped after {self.done} of {len(sources)} pictures")
            raise
        # As of a full disk, too little memory, or a closed pipe: what was found before is kept, where that can be.
        except (OwlSwinError, OSError, RuntimeError, MemoryError, SystemExit):
            if self.done:
                with suppress(OwlSwinError, OSError):
                    self.results.close()
            if self.done and len(sources) > 1:
                say(f"stopped after {self.done} of {len(sources)} pictures")
            raise
        self.results.close()
        if self.without > MOST_NOTES:
            say(f"nothing in {self.without - MOST_NOTES} more pictures")
        if self.failed and len(sources) > 1:
            say(f"{self.failed} of {len(sources)} pictures could not be read")
        return self.failed

    def _opened(self, sources: Sequence[str]) -> Iterator[tuple[str, "Image.Image"]]:
        for source in sources:
            try:
                yield source, open_picture(source, allow_url=self.allow_url)
            except ImageError as error:
                say(str(error))
                self.failed += 1

    def _batch(self, opened: Sequence[tuple[str, "Image.Image"]]) -> None:
        pictures, masks = [image for _, image in opened], self.options.masks
        encoded = self.detector.encode_images(pictures, batch_size=BATCH, masks=masks)
        found = self.detector.detect_batch(encoded, self.queries, options=self.options)
        for (source, image), patches, one in zip(opened, encoded, found, strict=True):
            self.results.add(source, one, patches.embeddings.grid_hw if self.explain else None)
            self.done += 1
            if self.drawings is not None:
                maps = self.detector.similarity(patches, self.queries) if self.explain else None
                self.drawings.save(source, image, one, maps)
            self._note(source, one)

    def _tiled(self, source: str, tiles: "Tiles") -> None:
        """One picture of any size, which is never whole in memory where its file can be read in parts."""
        try:
            content = picture_file(source, allow_url=self.allow_url)
            found = self.detector.detect(content, self.queries, options=self.options, tiles=tiles)
        except (ImageError, MissingExtraError) as error:
            say(str(named(error, source)) if isinstance(error, ImageError) else f"{source}: {error}")
            self.failed += 1
            return
        self.results.add(source, found, None)
        self.done += 1
        if self.drawings is not None:
            self.drawings.save(source, *reduced(content, found), None)
        self._note(source, found)

    def _note(self, source: str, found: "Detections") -> None:
        if len(found) or self.nothing is None:
            return
        self.without += 1
        if self.without <= MOST_NOTES:
            say(f"{source}: {self.nothing(found)}")


def _check_output(form: Format, to: Path | None, root: Path | None, only_text: bool) -> None:
    """Refuses options of the output that contradict one another."""
    if only_text and form not in (Format.TABLE, Format.JSONL):
        raise OwlSwinError(f"--explain adds nothing to --format {form.value}; give it --save, or jsonl or table")
    if root is not None and form is not Format.LABEL_STUDIO:
        raise OwlSwinError(f"--label-studio-root is for --format label-studio, not {form.value}")
    if root is not None and not root.is_dir():
        raise OwlSwinError(f"{root}: --label-studio-root must be the folder that Label Studio serves; there is none")
    if form in PER_PICTURE and to is None:
        raise OwlSwinError(f"--format {form.value} is a file a picture; say with --to in which folder")


def _check_places(form: Format, to: Path | None, save: Path | None, save_query: Path | None) -> None:
    """Refuses outputs that would take one another's place, or that of a picture."""
    if to is not None and form not in PER_PICTURE and is_picture_name(to):
        raise OwlSwinError(f"{to}: --to is for the output as text; --save names a folder for pictures with the boxes")
    named = {"--to": None if form in PER_PICTURE else to, "--save": save, "--save-query": save_query}
    taken: dict[Path, str] = {}
    for option, path in named.items():
        if path is not None and (other := taken.setdefault(path.absolute(), option)) != option:
            raise OwlSwinError(f"{path}: is named by {other} and by {option}; give each its own place")


def _check_masks(form: Format, *, drawn: bool) -> None:
    """Refuses masks that would go nowhere, and says where they do not go."""
    if form in WITH_MASKS:
        return
    if not drawn:
        forms = ", ".join(one.value for one in WITH_MASKS)
        raise OwlSwinError(
            f"--format {form.value} holds boxes and no masks; give --save to draw them, or one of {forms}"
        )
    if form is not Format.TABLE:
        note(f"{form.value} holds boxes; the masks are in the drawings only")


def _check_below(sources: Sequence[str], root: Path) -> None:
    for source in sources:
        if source == STDIN:
            raise OwlSwinError("-: a picture on stdin has no address that Label Studio could serve; name its file")
        if not is_url(source):
            label_studio_address(source, root)
