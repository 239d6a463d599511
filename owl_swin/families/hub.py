"""Models of the Hugging Face hub: fetched into its cache through huggingface_hub, or one sentence why not."""

import difflib
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from owl_swin.errors import CheckpointError, first_line
from owl_swin.families.weights import INDEX, PICKLES, WEIGHTS, pickled_weights
from owl_swin.files import near_name

# What a model's folder is read from: weights, configuration, tokenizer. Nothing pickled, and no folder within it,
# where repositories keep the same weights for other programs.
CONFIG_AND_WEIGHTS = ("config.json", WEIGHTS, INDEX, "model-*.safetensors")
WANTED = (*CONFIG_AND_WEIGHTS, "*.json", "*.txt", "*.model")
NOT_WANTED = ("*/*",)
# Published models that a misspelt name may mean.
PUBLISHED = (
    *(f"google/owlvit-{size}" for size in ("base-patch32", "base-patch16", "large-patch14")),
    *(
        f"google/owlv2-{size}{kind}"
        for size in ("base-patch16", "large-patch14")
        for kind in ("", "-ensemble", "-finetuned")
    ),
)
# What paths end in and names of models do not.
FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".onnx", ".toml", ".json")


def is_hub_name(source: str | Path) -> bool:
    """Whether ``source`` is written as "user/model"; a file or folder of that name here comes first."""
    text = str(source)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text, re.ASCII) or text.endswith(FILE_SUFFIXES):
        return False
    return not isinstance(source, Path) and len(text) <= 193 and not _is_here(text)


def local_place(
    source: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    check: Callable[[Path], object] | None = None,
) -> str | Path:
    """Where a model is on this machine: of one on the hub the folder that it is fetched to, else ``source`` itself, in
    which ~ stands for the home of the user. ``check`` is that of ``fetch_snapshot``."""
    if is_hub_name(source):
        return fetch_snapshot(str(source), revision=revision, token=token, check=check)
    if str(source).startswith("~"):
        with suppress(RuntimeError):  # nobody of that name
            return Path(source).expanduser()
    return source


def fetch_snapshot(
    name: str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    wanted: Sequence[str] = WANTED,
    required: Sequence[str] = (),
    check: Callable[[Path], object] | None = None,
) -> Path:
    """The folder in huggingface_hub's cache with the ``wanted`` files of a model "user/model", downloaded if need be.

    ``revision`` is a branch, tag or commit, ``token`` as huggingface_hub takes it; HF_HUB_OFFLINE, HF_HOME and
    HF_ENDPOINT mean what they mean there. ``check`` sees the folder when it holds config.json alone, and may refuse the
    model before its weights are fetched. A model that is not there, not open to the caller, out of reach or not whole
    raises CheckpointError.

    A name that begins as a folder does here is a path that does not exist, and the hub is not asked for it, unless a
    revision says that it is of the hub, or it was fetched before.
    """
    if revision is None:
        _refuse_path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import IncompleteSnapshotError

    asked: dict[str, Any] = {"revision": revision, "token": token, "ignore_patterns": list(NOT_WANTED)}
    try:
        if check is not None:
            check(Path(str(snapshot_download(name, allow_patterns=["config.json"], **asked))))
        try:
            folder = Path(str(snapshot_download(name, allow_patterns=list(wanted), **asked)))
        except IncompleteSnapshotError:
            # Offline, with what another program has fetched: it may have left out files that a model does without.
            needed = [*CONFIG_AND_WEIGHTS, *required]
            folder = Path(str(snapshot_download(name, allow_patterns=needed, local_files_only=True, **asked)))
    except CheckpointError:
        raise
    except Exception as error:  # huggingface_hub's errors and those of its HTTP client have no root in common
        raise CheckpointError(reason_of(error, name, revision), of=name) from None
    if not any((folder / file).is_file() for file in (WEIGHTS, INDEX)):
        pickled = _pickled(name, revision, token)
        said = pickled_weights(name, pickled) if pickled else f"holds no weights{_at(revision)}; a model has {WEIGHTS}"
        raise CheckpointError(said, of=name)
    missing = [file for file in required if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(
            f"holds no {' and no '.join(missing)}{_at(revision)}, so it is no model that can be read here, or its "
            "download was broken off",
            of=name,
        )
    return folder


def reason_of(error: Exception, name: str, revision: str | None = None) -> str:
    """What went wrong between here and the hub, and what to do, as one sentence without the model's name."""
    from huggingface_hub import constants, errors

    chain = [error, error.__cause__]
    local = f"a folder that holds the model can be given instead of its name{_near(name)}"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"its owner gives this model only to who asks: accept the terms at {constants.ENDPOINT}/{name}, then run "
            "`hf auth login` or give a token"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the model has no revision {revision!r}; give one of its branches, tags or commits"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"no such model on the hub, and no such folder here{_near(name)}; where it is private, run `hf auth login` "
            "or give a token"
        )
    if isinstance(error, errors.HFValidationError):
        return f"no possible name of a model on the hub, and no such folder here{_near(name)}"
    if isinstance(error, errors.IncompleteSnapshotError):
        return f"only a part of the model was downloaded, and the hub cannot be reached for the rest; {local}"
    if any(isinstance(one, errors.OfflineModeIsEnabled) for one in chain):
        return f"the model was not downloaded before and HF_HUB_OFFLINE is set; unset it to download the model; {local}"
    if isinstance(error, errors.LocalTokenNotFoundError):
        return "a token was asked for and none is stored; run `hf auth login` or give the token itself"
    if isinstance(error, errors.LocalEntryNotFoundError):
        cause = first_line(error.__cause__ or error)
        return f"the model was not wholly downloaded before and the hub cannot be reached ({cause}); {local}"
    if isinstance(error, errors.HfHubHTTPError) and error.response is not None and error.response.status_code == 401:
        return "the hub refuses the token; run `hf auth login` or give another"
    if isinstance(error, OSError) and error.strerror:  # a full or read-only disk
        where = f"{error.filename}: " if error.filename else ""
        return f"the download cannot be stored ({where}{error.strerror}); HF_HOME says where downloads go"
    return f"cannot be fetched from the hub ({first_line(error)}); {local}"


def _pickled(name: str, revision: str | None, token: str | bool | None) -> str | None:
    """The first file of pickled weights that the model has on the hub, as far as that can be found out."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # it only makes a sentence better
        listed = HfApi().model_info(name, revision=revision, token=token, timeout=10).siblings or []
        return next((file.rfilename for file in listed if file.rfilename.endswith(PICKLES)), None)
    return None


def _refuse_path(name: str) -> None:
    from huggingface_hub import constants

    folder = name.split("/")[0]
    fetched = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    if Path(folder).is_dir() and not fetched.is_dir():
        raise CheckpointError(
            f"no such file or folder in the folder {folder} here{_near(name)}; for a model of this name on the hub, "
            f"run `hf download {name} --local-dir FOLDER` and give that folder",
            of=name,
        )


def _is_here(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):
        return False


def _near(name: str) -> str:
    if near := near_name(name):
        return f" (did you mean the folder {near}?)"
    return f" (did you mean {near}?)" if (near := near_published(name)) else ""


def near_published(text: str) -> str | None:
    """The name on the hub that an address, a name without its owner, or a misspelt one may mean."""
    if address := re.match(
        r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w-][\w.-]*/[\w-][\w.-]*)", text, re.ASCII
    ):
        return address[1]
    names = {published: published for published in PUBLISHED}
    if "/" not in text:
        names = {published.partition("/")[2]: published for published in PUBLISHED}
    near = [names[one] for one in difflib.get_close_matches(text, names, n=1, cutoff=0.8)]
    return near[0] if near and near[0] != text else None


def _at(revision: str | None) -> str:
    return f" at {revision!r}" if revision else ""
