"""Models of ours as strangers find and read them: a folder of config.json, model.safetensors and a card, or the hub."""

import copy
import json
import logging
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from owl_swin.errors import CheckpointError, ConfigError, brief, first_line
from owl_swin.families.owl_swin import save_checkpoint, settings_of
from owl_swin.families.weights import WEIGHTS
from owl_swin.files import make_folder, read_text, write_json, write_text
from owl_swin.models.network import Network
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.runtimes.network import GraphNetwork
from owl_swin.runtimes.torch import CompiledNetwork

logger = logging.getLogger("owl_swin")

CARD = "README.md"
FILES = ("config.json", WEIGHTS, CARD)
LICENCE = r"[A-Za-z0-9][A-Za-z0-9.+-]*"
# The last line of a card that was written here: one without it is somebody's own and stays.
MARK = "<!-- Written by owl_swin; without this line it is never overwritten. -->"
TASK = "zero-shot-object-detection"
TAGS = ["object-detection", "open-vocabulary", "one-shot", "swin", "owl"]
SECTIONS = (("data", "Training data"), ("recipe", "Recipe"), ("limits", "Limits"), ("licence", "Licence"))


class Publishable:
    """What a Detector of our own family can do to be found and read by others."""

    card: dict[str, Any]

    @property
    def model(self) -> Network:
        """The network itself."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Longer side in pixels that pictures are brought to."""
        raise NotImplementedError

    def save_pretrained(
        self, folder: str | Path, *, int8: bool = False, licence: str | None = None, name: str | None = None
    ) -> Path:
        """Writes config.json, model.safetensors and the model card README.md, and gives the folder back.

        Weights are as they are, to the bit, for any reader of safetensors, and the size of pictures is this detector's.
        ``int8`` writes large matrices as int8 rows with a scale each, a quarter of the size. ``licence`` is what the
        hub calls one, as "apache-2.0"; None: what the card says. ``name`` is where the model will be found, as
        "user/name". A card that somebody wrote is kept.
        """
        folder = Path(folder)
        source = name or folder.resolve().name
        _write(folder, _own(self.model, self.image_size), self.card, source, int8=int8, licence=licence)
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        token: str | bool | None = None,
        revision: str | None = None,
        private: bool | None = None,
        commit_message: str = "Model of owl_swin",
        int8: bool = False,
        licence: str | None = None,
    ) -> str:
        """Writes the files of save_pretrained to the model "user/name" on the Hugging Face hub and gives its address.

        The model is made where there is none, ``private`` or not, and so is a branch ``revision``. ``token`` as
        huggingface_hub takes it; None is what `hf auth login` stored. What the hub refuses raises CheckpointError.
        """
        with tempfile.TemporaryDirectory() as kept:
            folder = Path(kept)
            _write(folder, _own(self.model, self.image_size), self.card, repo_id, int8=int8, licence=licence)
            try:
                return _push(folder, repo_id, token, revision, private, commit_message)
            except Exception as error:  # huggingface_hub's errors and those of its HTTP client have no root in common
                raise CheckpointError(_refusal(error), of=repo_id) from None


def model_card(card: Mapping[str, Any], source: str, *, licence: str | None = None) -> str:
    """The text of README.md: the hub's metadata, what ``card`` says, its table of results, and a program to start with.

    ``source`` is what from_pretrained reads. A ``licence`` of more than one word raises ConfigError.
    """
    from huggingface_hub import ModelCardData

    known = licence or _licence_of(card)
    if known is not None and not re.fullmatch(LICENCE, known):
        raise ConfigError(
            f'licence must be what the hub calls one, as "apache-2.0", "mit" or "other", got {brief(known)}'
        )
    metadata = ModelCardData(
        library_name="owl_swin",
        pipeline_tag=TASK,
        tags=TAGS,
        license=known,
        license_name="see-model-card" if known == "other" else None,
        license_link=CARD if known == "other" else None,
    )
    parts = [
        f"---\n{metadata.to_yaml().strip()}\n---",
        f"# {_in_a_line(card.get('name') or source.rpartition('/')[2])}",
        *_sentences(card, "description"),
    ]
    parts += ["## How to use it", _program(source)]
    if card.get("results"):
        parts += ["## Results", markdown_table(card)]
    for key, title in SECTIONS:
        if sentences := _sentences(card, key):
            parts += [f"## {title}", *sentences]
    return "\n\n".join([*parts, MARK]) + "\n"


def markdown_table(card: Mapping[str, Any]) -> str:
    """The card's results as a Markdown table."""
    results = card.get("results")
    stated = [row for row in results if isinstance(row, Mapping)] if isinstance(results, (list, tuple)) else []
    cells = [
        [_in_a_line(row.get(key, "")).replace("|", "\\|") for key in ("what", "value", "command")] for row in stated
    ]
    rows = [f"| {what} | {value} | `{command}` |" for what, value, command in cells]
    return "\n".join(["| what | percent (95 % interval) | command |", "|---|---|---|", *rows])


def _in_a_line(value: Any) -> str:
    return " ".join(str(value).split())


def _own(model: Network, image_size: int) -> OwlSwin:
    """A model of ours, made for pictures of that size."""
    model = model.network if isinstance(model, CompiledNetwork) else model
    if isinstance(model, OwlSwin):
        sized = copy.copy(model)
        sized.config = replace(model.config, image_size=image_size)
        return sized
    if isinstance(model, GraphNetwork):
        raise CheckpointError("an exported model cannot be saved as weights; save the model that it was made from")
    raise CheckpointError(
        f"a model of the family {model.spec.family!r} cannot be saved by owl_swin; it came from transformers, whose "
        "save_pretrained and push_to_hub write it"
    )


def _write(
    folder: Path,
    model: OwlSwin,
    card: Mapping[str, Any],
    source: str,
    *,
    int8: bool,
    licence: str | None,
) -> None:
    text = model_card(card, source, licence=licence)
    make_folder(folder)
    save_checkpoint(folder / WEIGHTS, model, card, int8=int8, exact=not int8)
    write_json(folder / "config.json", settings_of(model.config, card), what="the model's settings")
    if _somebodys_own(folder / CARD):
        logger.warning("%s: kept as it is, for it was written by somebody", folder / CARD)
    else:
        write_text(folder / CARD, text, what="the model card")


def _somebodys_own(path: Path) -> bool:
    try:
        return path.is_file() and MARK not in read_text(path)
    except (OSError, ValueError):
        return True


def _push(
    folder: Path, repo_id: str, token: str | bool | None, revision: str | None, private: bool | None, message: str
) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="owl_swin")
    made = api.create_repo(repo_id, private=private, exist_ok=True)
    if revision is not None:
        api.create_branch(made.repo_id, branch=revision, exist_ok=True)
    files = list(FILES)
    if api.file_exists(made.repo_id, CARD, revision=revision):
        there = Path(api.hf_hub_download(made.repo_id, CARD, revision=revision))
        if _somebodys_own(there):
            files.remove(CARD)
            logger.warning("%s: the model card is kept as it is, for it was written by somebody", made.repo_id)
    api.upload_folder(
        repo_id=made.repo_id, folder_path=folder, revision=revision, commit_message=message, allow_patterns=files
    )
    return str(made)


def _refusal(error: Exception) -> str:
    """Why a model could not be pushed, and what to do."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.LocalTokenNotFoundError) or status == 401:
        return "the hub does not know who writes there; run `hf auth login` or give a token that is valid"
    if status == 403:
        return "the token may not write there; give one with the right to write to this model"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be sent to the hub; unset it"
    if isinstance(error, errors.HFValidationError):
        return 'no possible name of a model on the hub; give one as "user/name"'
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such user or organisation, or does not show it to this token"
    return f"cannot be sent to the hub ({first_line(error)})"


def _licence_of(card: Mapping[str, Any]) -> str | None:
    """What the hub calls the licence of the card, where it is one word; "other" where there is more to say."""
    sentences = _sentences(card, "licence")
    if not sentences:
        return None
    word = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*?\.?", sentences[0].strip())
    return sentences[0].strip().rstrip(".").lower() if word and len(sentences) == 1 else "other"


def _sentences(card: Mapping[str, Any], key: str) -> list[str]:
    value = card.get(key) or []
    return [str(one) for one in ([value] if isinstance(value, str) else value)]


def _program(source: str) -> str:
    return (
        "```python\n"
        "from owl_swin import Detector, Exemplar\n\n"
        f"detector = Detector.from_pretrained({json.dumps(source, ensure_ascii=False)})\n"
        'found = detector.detect("kitchen.jpg", ["a red mug", "a dog"])              # by name\n'
        'found = detector.detect("kitchen.jpg", [Exemplar("mug.jpg", (40, 60, 210, 300))])  # by example\n'
        "```\n\n"
        "Code that was written for transformers' pipeline needs one other line:\n\n"
        "```python\n"
        "import owl_swin\n\n"
        f'pipe = owl_swin.pipeline("{TASK}", model={json.dumps(source, ensure_ascii=False)})\n'
        "```"
    )
