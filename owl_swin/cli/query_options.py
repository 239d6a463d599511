"""What `owl-swin detect` is asked for: texts, examples, what it is not, and saved queries, from its options."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from owl_swin.addresses import is_url
from owl_swin.cli.pictures import check_stdin_once, open_picture
from owl_swin.cli.results import stem_of
from owl_swin.errors import OwlSwinError, QueryError
from owl_swin.files import is_special
from owl_swin.image import is_picture_name

if TYPE_CHECKING:
    from owl_swin.exemplar import Exemplar
    from owl_swin.queries import Query
    from owl_swin.types import QueryEmbeddings


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """The options that say what to find, as they were written."""

    query: Sequence[str] = ()
    queries: str | None = None
    like: Sequence[str] = ()
    negative: Sequence[str] = ()
    name: str | None = None
    join: bool = False
    weight: float = 0.5


def make_queries(asked: QueryOptions, *, beside: Sequence[str] = (), allow_url: bool = False) -> "list[str | Query]":
    """The queries in the order in which they are asked; options that contradict one another raise QueryError.

    Every text is a query of its own. All of ``like`` are one more, after the texts, to which ``negative`` belongs;
    with ``join`` the texts belong to it too. Without ``like``, a single text is what ``negative`` belongs to. With
    ``allow_url`` pictures may be http(s) addresses. ``beside`` are the other pictures of the command line: of all
    together one may come on stdin.
    """
    check_stdin_once([*beside, *map(path_of, (*asked.like, *asked.negative))])
    from owl_swin.queries import Query

    texts: list[str | Query] = [*asked.query]
    for line in listed_names(asked.queries):
        names = split_commas(line)
        texts.append(names[0] if len(names) == 1 else Query(line, names))
    if not (asked.like or asked.negative or asked.join):
        if asked.name is not None:
            raise QueryError("--name is for the query of --like, --join or --not; there is none of these")
        return texts
    if asked.join and not texts:
        raise QueryError("--join makes the texts of --query part of the query of --like; there is no text")
    if asked.negative and not asked.like and not texts:
        raise QueryError("--not says what a thing is not; say with --query or --like what it is")
    if asked.negative and not asked.like and not asked.join and len(texts) > 1:
        raise QueryError(
            f"--not belongs to one query, and there are {len(texts)} texts; give it one --query, or --join if all of "
            "them mean the same thing"
        )
    joined = [text for one in texts for text in _texts_of(one)] if asked.join or not asked.like else []
    exemplars = [_exemplar("--like", argument, allow_url) for argument in asked.like]
    negatives = [_negative(argument, allow_url) for argument in asked.negative]
    name = asked.name or (joined[0] if joined else stem_of(path_of(asked.like[0])))
    query = Query(name, joined, exemplars, negatives, asked.weight)
    return [*([] if joined else texts), query]


def _texts_of(query: "str | Query") -> Sequence[str]:
    return [query] if isinstance(query, str) else query.texts


def split_commas(queries: str | None) -> list[str]:
    """The names in one text, between commas; a text without any raises QueryError."""
    if queries is None:
        return []
    names = [name.strip() for name in queries.split(",") if name.strip()]
    if not names:
        raise QueryError(f"--queries names nothing: {queries!r}; separate the names with commas")
    return names


def listed_names(queries: str | None) -> list[str]:
    """The names of --queries: between commas, or the lines of a file, where "sofa, couch" is one class of two texts."""
    from owl_swin.labelling.names import read_name_lines

    if queries is not None and (queries.endswith(".txt") or is_file(queries) or is_special(Path(queries))):
        return read_name_lines(queries)
    return split_commas(queries)


def add_saved(detector, queries: "QueryEmbeddings | None", files: Sequence[Path]) -> "QueryEmbeddings | None":
    """The queries and, after them, those of the files."""
    for path in files:
        saved = detector.load_queries(path)
        queries = saved if queries is None else queries + saved
    return queries


def check_query_file(path: Path, queries: Sequence[object]) -> None:
    """Refuses what --save-query cannot write, before any work."""
    if not queries:
        raise QueryError("--save-query keeps what --query, --like and --not ask for; there is none of these")
    if path.suffix != ".safetensors":
        raise OwlSwinError(f"{path}: the file of --save-query must end in .safetensors")


def _exemplar(option: str, argument: str, allow_url: bool) -> "Exemplar":
    """The exemplar of PHOTO or PHOTO@xmin,ymin,xmax,ymax; what is wrong with it is said with the argument."""
    from owl_swin.exemplar import Exemplar, check_box

    path, box = _split_box(argument)
    picture = open_picture(path, allow_url=allow_url)
    try:
        if box is not None:
            check_box(box, (picture.height, picture.width))
    except QueryError as error:
        raise QueryError(f"{option} {argument}: {error}") from None
    return Exemplar(picture, box, name=stem_of(path))


def _negative(argument: str, allow_url: bool) -> "str | Exemplar":
    """A picture, when a file of that name is there, or the argument has a box or ends as pictures do; else a text."""
    path, box = _split_box(argument)
    shown = box is not None or is_picture_name(path) or is_file(path) or (allow_url and is_url(path))
    return _exemplar("--not", argument, allow_url) if shown else argument


def _split_box(argument: str) -> tuple[str, tuple[float, ...] | None]:
    """The path, which may hold @ itself, and the numbers after the last @, if that is what stands there.

    The name of a file that is there is taken as it is.
    """
    path, at, tail = argument.rpartition("@")
    if not at or is_file(argument):
        return argument, None
    try:
        box = tuple(float(number) for number in tail.split(","))
    except ValueError:
        if is_file(path):
            raise QueryError(
                f"{argument}: after @ stand four numbers, xmin,ymin,xmax,ymax in pixels, got {tail!r}"
            ) from None
        return argument, None
    return (path, box) if path and (len(box) > 1 or is_file(path)) else (argument, None)


def path_of(argument: str) -> str:
    """What PHOTO[@BOX] names."""
    return _split_box(argument)[0]


def is_file(path: str) -> bool:
    """Whether a text that may be anything names a file."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or with a null in it
        return False
