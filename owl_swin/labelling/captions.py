"""Names from what was written beside pictures: the n-grams of their captions, and where captions lie.

After OWL-ST (arXiv:2306.09683): a picture is asked for every run of up to ten words of its own captions, without those
that name nothing.
"""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from owl_swin.data.broken import reading, report_broken
from owl_swin.data.captions import Captioned, coco_caption_entries, csv_entries, jsonl_entries
from owl_swin.data.config import DataConfig
from owl_swin.data.guess import guess_kind
from owl_swin.data.naming import texts_of
from owl_swin.errors import DataError
from owl_swin.files import read_text

MOST_WORDS = 10
# Names of one picture: a text of a hundred words has a thousand runs. Shorter ones, which are likelier to name a thing,
# come first.
MOST_NAMES = 300

# Words that name nothing by themselves.
_FUNCTION_WORDS = """
a about above across after again against all along also although always am among an and another any are around as at
away be because been before behind being below beneath beside between beyond both but by can could did do does doing
down during each either else ever every few for from further get gets getting got had has have having he her here hers
him his how i if in inside into is it its itself just least less let like made make makes many may me might mine more
most much must my near neither never next no nor not now of off often on once one only onto or other our ours out
outside over own per please quite rather really s same several shall she should show shown shows since so some such t
than that the their theirs them then there these they this those three through throughout to together too toward towards
two under until up upon us use used using very via was we were what when where whether which while who whom whose why
will with within without would yes yet you your yours
"""
# Words about a picture or a page and not of what is in it; they are taken out of the text.
_PAGE_WORDS = """
album background blog buy caption clipart com copyright description download facebook file flickr free gallery gif hd
http https image images img instagram isolated jpeg jpg net online org page pdf photo photograph photographs photography
photos pic pics picture pictures pinterest png royalty screenshot stock thumbnail tiff twitter untitled vector view
wallpaper web webp website www youtube
"""
# They choose how the sign before them is drawn, as that of an emoji, and belong to no word.
SELECTORS = frozenset(map(chr, range(0xFE00, 0xFE10)))
STOP_WORDS, PAGE_WORDS = frozenset(_FUNCTION_WORDS.split()), frozenset(_PAGE_WORDS.split())


def n_grams(captions: Iterable[str], *, most_words: int = MOST_WORDS, most_names: int = MOST_NAMES) -> tuple[str, ...]:
    """The names in the captions of one picture: runs of up to ``most_words`` words, each once, shorter ones first.

    Runs end at full stops, commas and the like. A name neither begins nor ends with a stop word, and addresses, digits
    and words about the page are left out.
    """
    runs: list[list[str]] = []
    for caption in captions:
        text = unicodedata.normalize("NFC", caption).lower()
        text = re.sub(r"\S+(?:://|@|\.\w{2,4}/)\S*", " . ", text)
        # Vowels and accents of many scripts are signs of their own, which `re` takes for no letters.
        marks = "".join({sign for sign in text if unicodedata.category(sign) in ("Mn", "Mc") and sign not in SELECTORS})
        letter = rf"[^\W_][{marks}]*" if marks else r"[^\W_]"
        for part in re.split(rf"[^\w\s'’{marks}-]+|[\n\r]", text):
            words = re.findall(rf"(?:{letter})+(?:['’-]+(?:{letter})+)*", part)
            runs.append([word for word in words if word not in PAGE_WORDS])
    names: dict[str, None] = {}
    for length in range(1, most_words + 1):
        for run in runs:
            for start in range(len(run) - length + 1):
                gram = run[start : start + length]
                if not (_names_nothing(gram[0]) or _names_nothing(gram[-1])):
                    names.setdefault(" ".join(gram))
    return tuple(names)[:most_names]


def _names_nothing(word: str) -> bool:
    return word in STOP_WORDS or word.isdigit() or (len(word) == 1 and word.isascii())


def captions_of(where: str | Path, pictures: Sequence[str], root: str | None = None) -> dict[str, tuple[str, ...]]:
    """The captions of the pictures that have some.

    ``where`` is COCO captions, a table (.csv, .tsv, with the columns "path" and "caption"), a .jsonl of these, or a
    folder in which each picture has a text file of its name. Files are named there from ``root`` on, or from the place
    of the file itself. What cannot be read, or speaks of none of the pictures, raises DataError.
    """
    path = Path(where)
    if path.is_dir():
        found = _beside(path, pictures, root)
    else:
        folders = [Path(root)] if root is not None else []
        tried = [(folder, list[str]()) for folder in [*folders, path.parent]]
        matches = [(_matched(_entries(path, folder, broken), pictures), broken) for folder, broken in tried]
        found, broken = max(matches, key=lambda match: len(match[0]))
        report_broken(str(path), broken)
    if not found:
        raise DataError(f"{path}: has a caption of none of {len(pictures)} pictures, the first is {pictures[0]}")
    return found


def _entries(path: Path, folder: Path, broken: list[str]) -> Sequence[Captioned]:
    kind = guess_kind(str(path))
    config = DataConfig("csv" if kind is None else kind, str(path), images=str(folder))
    with reading(path, "a set of captions"):
        if kind == "coco_captions":
            return coco_caption_entries(path, folder, broken)
        if kind in ("csv", "jsonl"):
            return csv_entries(config, broken) if kind == "csv" else jsonl_entries(config, broken)
    raise DataError(
        f"{path}: no captions; expected COCO captions (.json), a table (.csv, .tsv), a .jsonl, or a folder of .txt "
        "files"
    )


def _matched(entries: Sequence[Captioned], pictures: Sequence[str]) -> dict[str, tuple[str, ...]]:
    by_place = {
        os.path.abspath(source): texts  # noqa: PTH100
        for _, source, texts in entries
        if isinstance(source, Path)
    }
    own = {picture: by_place.get(os.path.abspath(picture), ()) for picture in pictures}  # noqa: PTH100
    return {picture: texts for picture, texts in own.items() if texts}


def _beside(folder: Path, pictures: Sequence[str], root: str | None) -> dict[str, tuple[str, ...]]:
    """The lines of the text files of the pictures' names: at the same place below the folder as the picture has here,
    or below ``root`` (None: the folder that holds all of them), or right in it, where one picture alone is called
    so."""
    places = [os.path.abspath(picture) for picture in pictures]  # noqa: PTH100
    above = os.path.abspath(root) if root is not None else os.path.commonpath([os.path.dirname(p) for p in places])  # noqa: PTH100, PTH120
    called = Counter(Path(place).stem for place in dict.fromkeys(places))
    found = {}
    for picture, place in zip(pictures, places, strict=True):
        below = Path(os.path.relpath(place, above))
        names = [folder / below, *([folder / below.name] if called[below.stem] == 1 else [])]
        if not Path(picture).is_absolute():
            names.insert(0, folder / picture)
        texts = next(filter(None, map(_lines, names)), ())
        if texts:
            found[picture] = texts
    return found


def _lines(place: Path) -> tuple[str, ...]:
    try:
        return texts_of(read_text(place.with_suffix(".txt")).splitlines())
    except (OSError, ValueError):
        return ()
