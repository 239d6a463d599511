"""Which files this program made: those it may write over; what another hand made may be all that somebody drew."""

import hashlib
import json
from pathlib import Path
from typing import Any

from owl_swin.errors import OwlSwinError
from owl_swin.files import IMAGE_FORMS, image_comment, read_json

# Stands in each picture as its comment, and in each COCO file as its description.
MADE_HERE = "made by owl-swin"


def made_here(content: dict[str, Any]) -> dict[str, Any]:
    """A COCO file that this program writes: what it holds, and in ``info`` that it was made here, and of what."""
    return {"info": {"description": MADE_HERE, "digest": _digest(content)}, **content}


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _is_ours(content: Any) -> bool:
    """Whether this program made a COCO file, and nobody has changed it since; those of earlier versions do not say."""
    info, rest = content["info"], {key: value for key, value in content.items() if key != "info"}
    return info["description"] == MADE_HERE and info.get("digest", "") in ("", _digest(rest))


def may_be_written(picture: Path) -> bool:
    """Whether no file is lost where a picture is written: none is there, or one of ours."""
    return not picture.is_file() or image_comment(picture) == MADE_HERE.encode()


def check_set_may_be_written(annotations: Path, pictures: Path, *, option: str) -> None:
    """Refuses a folder with a COCO file or pictures of another hand, or that another has corrected; ``option`` is how
    it was named."""
    try:
        ours = _is_ours(read_json(annotations))
    except FileNotFoundError:
        ours = True
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        ours = False
    there = pictures.iterdir() if pictures.is_dir() else ()
    ours = ours and all(may_be_written(path) for path in there if path.suffix.lower() in IMAGE_FORMS)
    if not ours:
        raise OwlSwinError(
            f"{annotations.parent}: {annotations.name} and {pictures.name}/ there are not of this command and could be "
            f"written over; name another folder for {option}"
        )
