"""Which files this program made: those it may write over; what another hand made may be all that somebody drew."""

from pathlib import Path
from typing import Any

from owl_swin.errors import OwlSwinError
from owl_swin.files import image_comment, read_json

# Stands in each picture as its comment, and in each COCO file as its description.
MADE_HERE = "made by owl-swin"


def coco_info() -> dict[str, str]:
    """``info`` of a COCO file that this program writes."""
    return {"description": MADE_HERE}


def may_be_written(picture: Path) -> bool:
    """Whether no file is lost where a picture is written: none is there, or one of ours."""
    return not picture.is_file() or image_comment(picture) == MADE_HERE.encode()


def check_set_may_be_written(annotations: Path, pictures: Path, *, option: str) -> None:
    """Refuses a folder with a COCO file, or pictures without one, of another hand; ``option`` is how it was named."""
    try:
        content: Any = read_json(annotations)
        ours = content["info"]["description"] == MADE_HERE
    except FileNotFoundError:
        ours = not pictures.is_dir() or all(may_be_written(path) for path in pictures.iterdir())
    except (OSError, ValueError, LookupError, TypeError):
        ours = False
    if not ours:
        raise OwlSwinError(
            f"{annotations.parent}: {annotations.name} and {pictures.name}/ there are not of this command and could be "
            f"written over; name another folder for {option}"
        )
