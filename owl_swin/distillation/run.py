"""A fast Swin out of a teacher and unlabelled pictures: label, train on it, compare; resumable at every moment.

The student lives in its teacher's text space. Its text encoder is the teacher's own, kept as it is (or one that learned
to say the same), and its patches learn the directions of the teacher's: so whatever the teacher can be asked for, the
student can be asked for too, and not only the names that the pictures were labelled with.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from owl_swin.config import ModelConfig, read_toml, to_mapping
from owl_swin.data.scene import PictureCache
from owl_swin.detector import Detector
from owl_swin.distillation.agreement import (
    Comparison,
    parameters_of,
    patch_cosine,
    result_rows,
    seconds_a_picture,
)
from owl_swin.distillation.card import student_card
from owl_swin.distillation.scenes import held_out, labels_of, scenes_of, worth_learning
from owl_swin.distillation.seen import Progress, SeenPicture, see_pictures
from owl_swin.errors import CheckpointError, DataError, QueryError
from owl_swin.evaluation.detection import evaluate_detection
from owl_swin.evaluation.precision import check_can_measure
from owl_swin.evaluation.report import Report
from owl_swin.families.hub import is_hub_name
from owl_swin.families.owl_swin import load_checkpoint, replace_card
from owl_swin.files import make_folder, remove_parts, write_json
from owl_swin.labelling.names import LabelName
from owl_swin.labelling.run import common_folder, stamp_of
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.teachers.load import KINDS, kind_of
from owl_swin.training.distributed import Process, started_process, wait_for_all
from owl_swin.training.loop import STATE, LoopConfig, run_task
from owl_swin.training.state import check_settings, only_run
from owl_swin.training.student import build_student, check_texts, student_config, text_cosines
from owl_swin.training.tasks.student import StudentConfig, StudentTask

# Settings that name files: what these hold counts, and not where they lie.
PATHS = ("student", "text", "init", "output")
MODEL = "model.safetensors"


@dataclass(frozen=True, slots=True)
class Distillation:
    """What is distilled from what: pictures, and the teacher's source, asked for ``names``.

    ``unlabelled`` are further names, which teacher and student are asked for at the end alone.
    """

    photos: tuple[str, ...]
    teacher: str
    names: tuple[LabelName, ...]
    unlabelled: tuple[LabelName, ...] = ()


@dataclass(frozen=True, slots=True)
class Distilled:
    """What a call came to: ``steps`` of the run are done; at its end the first of several processes (``first``) has a
    ``comparison``. ``broken`` pictures could not be read."""

    folder: Path
    steps: int
    comparison: Comparison | None
    broken: tuple[str, ...]
    first: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """What all parts of one call need."""

    what: Distillation
    config: StudentConfig
    process: Process
    teacher: Detector
    root: str
    progress: Progress | None
    broken: list[str]

    @property
    def folder(self) -> Path:
        return Path(self.config.output)

    def see(self, photos: Sequence[str], names: Sequence[LabelName], kept: str) -> list[SeenPicture]:
        """What the teacher sees, kept in a folder of the run's."""
        folder = self.folder / kept
        make_folder(folder)
        if self.process.first:
            remove_parts(folder)
        return see_pictures(
            photos,
            self.teacher,
            names,
            folder,
            root=self.root,
            threshold=self.config.threshold,
            process=self.process,
            broken=self.broken,
            progress=self.progress,
        )

    def write_labels(self, file: str, seen: Sequence[SeenPicture], names: Sequence[LabelName]) -> Path:
        """The pictures as a data set in the run's folder."""
        content = labels_of(seen, names, self.root, self.teacher.name)
        write_json(self.folder / file, content, what="the labels", indent=None)
        return self.folder / file


def distil(
    what: Distillation,
    config: StudentConfig,
    *,
    stop_after: int | None = None,
    allow_changes: bool = False,
    progress: Progress | None = None,
) -> Distilled:
    """Makes a student in ``config.output``, or goes on with it; the same call goes on after whatever stopped it.

    The folder then holds ``teacher/`` (what the teacher saw), ``labels.json`` and ``held_out.json`` (the same as data
    sets in COCO's form), ``state.safetensors`` and ``metrics.jsonl`` as of every run, ``model.safetensors`` and
    ``comparison.json``. Under `torchrun` the processes share the work. A second run in the folder at the same time, or
    settings other than it began with, are refused.
    """
    what = _checked(what)
    base = read_toml(config.student, ModelConfig)
    with started_process(config.device) as process:
        teacher = _teacher(what.teacher, process.device)
        model_config = student_config(base, teacher.model, config.text, config.student)
        run = _Run(what, config, process, teacher, common_folder(what.photos), progress, [])
        make_folder(run.folder)
        with only_run(run.folder, process):
            settings = _settings(run, model_config)
            if not allow_changes:
                check_settings(run.folder / STATE, settings)
            model = _student(run, model_config)
            seen = run.see(what.photos, what.names, "teacher")
            if not seen:
                raise DataError(f"none of {len(what.photos)} pictures can be read; the first: {run.broken[0]}")
            learned, kept_back = held_out(seen, config.held_out, run.root)
            learned = worth_learning(learned, config.picture_threshold, what.names)
            counts = {"learned from": len(learned), "held out": len(kept_back)}
            counts["without a sure box, left out"] = len(seen) - len(learned) - len(kept_back)
            card = student_card(run.folder.name, teacher, what.teacher, what.names, counts, config)
            if process.first:
                run.write_labels("held_out.json", kept_back, what.names)
                run.write_labels("labels.json", learned, what.names)
            _train(run, model, learned, card, settings, stop_after=stop_after, allow_changes=allow_changes)
            wait_for_all(process)  # the first one writes the state
            steps, comparison = check_settings(run.folder / STATE, settings, allow_changes=True), None
            if steps >= config.steps and process.first:
                comparison = _compare(run, kept_back, counts)
                run.broken.extend(comparison.agreement.broken)
                write_json(run.folder / "comparison.json", comparison.to_json(), what="the comparison")
                replace_card(run.folder / MODEL, card | {"results": result_rows(comparison, "owl-swin distil")})
    return Distilled(run.folder, steps, comparison, tuple(dict.fromkeys(run.broken)), process.first)


def _checked(what: Distillation) -> Distillation:
    """With each picture and name once; nothing to look at or to look for is refused."""
    check_can_measure()  # which is done at the end of it all
    photos = tuple(dict.fromkeys(what.photos))
    if not photos:
        raise DataError("there is no picture to learn from")
    if not what.names:
        raise QueryError("there is nothing to look for; give the names that the teacher is asked for")
    known = {name.name for name in what.names}
    unlabelled = tuple(name for name in what.unlabelled if name.name not in known)
    if what.unlabelled and not unlabelled:
        raise QueryError("all names that were not to be labelled are among those that are")
    return replace(what, photos=photos, unlabelled=unlabelled)


def _teacher(source: str, device: torch.device) -> Detector:
    """The teacher; one that reads names and pictures together has nothing that a student of ours could learn from but
    labels."""
    if not is_hub_name(source) and kind_of(Path(source)) in KINDS:
        raise CheckpointError(
            "reads names and pictures together, so it has no embeddings that a student could learn; label pictures "
            "with it by `owl-swin label`, and train on these by `owl-swin train`",
            of=source,
        )
    return Detector.from_pretrained(source, device=device)


def _settings(run: _Run, model_config: ModelConfig) -> dict[str, Any]:
    """What a later call must repeat."""
    own = {key: value for key, value in to_mapping(run.config).items() if key not in PATHS}
    photos = [[os.path.relpath(path, run.root), stamp_of(path)] for path in run.what.photos]
    digest = hashlib.sha256(repr(photos).encode("utf-8", "surrogatepass")).hexdigest()
    return own | {
        "model_config": to_mapping(model_config),
        "processes": run.process.world,
        "teacher": f"{run.teacher.name} {run.teacher.fingerprint[:12]} at {run.teacher.image_size} px",
        "names": [name.name for name in run.what.names],
        "pictures": f"{len(photos)} pictures, {digest[:12]}",
    }


def _student(run: _Run, model_config: ModelConfig) -> OwlSwin:
    config = run.config
    model = build_student(model_config, run.teacher, text=config.text, init=config.init, seed=config.seed)
    if not config.text:
        check_texts(model, run.teacher, [text for name in run.what.names for text in name.texts])
    return model.to(run.process.device)


def _train(
    run: _Run,
    model: OwlSwin,
    learned: Sequence[SeenPicture],
    card: dict[str, Any],
    settings: dict[str, Any],
    *,
    stop_after: int | None,
    allow_changes: bool,
) -> None:
    config = run.config
    train = config.train_config(str(run.folder / "labels.json"), config.image_size or model.config.image_size)
    scenes = scenes_of(learned, run.what.names, PictureCache(int(config.cache_gib * 2**30)))
    task = StudentTask(config, train, model, run.process, scenes, card)
    loop = LoopConfig.of(train)
    run_task(task, loop, run.process, settings, stop_after=stop_after, allow_changes=allow_changes)


def _compare(run: _Run, kept_back: Sequence[SeenPicture], counts: dict[str, int]) -> Comparison:
    """The student of the finished run beside its teacher, on the pictures that were held out."""
    network, card = load_checkpoint(run.folder / MODEL)
    student, names = Detector(network, card=card, device=run.process.device), run.what.names
    paths = [one.path for one in kept_back]

    def agreement(file: str) -> Report:
        least = run.config.picture_threshold
        return evaluate_detection(student, run.folder / file, run.root, ignore_below=least)

    unlabelled = None
    if run.what.unlabelled:
        alone = replace(run, process=replace(run.process, rank=0, world=1))  # the other processes are done
        seen = alone.see(paths, run.what.unlabelled, "teacher_unlabelled")
        run.write_labels("held_out_unlabelled.json", seen, run.what.unlabelled)
        unlabelled = agreement("held_out_unlabelled.json")
    teacher_s, student_s = seconds_a_picture((run.teacher, student), paths, names)
    texts = [text for name in (*names, *run.what.unlabelled) for text in name.texts]
    return Comparison(
        agreement=agreement("held_out.json"),
        unlabelled=unlabelled,
        patch_cosine=patch_cosine(student, kept_back),
        text_cosine=float(text_cosines(network.to(run.process.device), run.teacher, texts).mean()),
        seconds=(teacher_s, student_s),
        image_sizes=(run.teacher.image_size, student.image_size),
        parameters=(parameters_of(run.teacher), parameters_of(student)),
        file_bytes=(run.folder / MODEL).stat().st_size,
        counts=counts,
    )
