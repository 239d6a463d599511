"""In which form a client wants its answer (RFC 9110, section 12)."""

from collections.abc import Sequence

from owl_swin.server.problems import Problem

JSON, LINES, BYTES = "application/json", "application/x-ndjson", "application/octet-stream"
PNG, JPEG = "image/png", "image/jpeg"


def choose(accept: Sequence[str], offered: Sequence[str]) -> str:
    """The form that the values of Accept like best; none of those that are offered raises Problem.

    Of forms that they like equally the one that they name most exactly is chosen, then the first.
    """
    wanted = [one for value in accept for one in map(_entry, value.split(",")) if one is not None]
    if not wanted:
        return offered[0]
    liked = [(*_liking(form, wanted), -place) for place, form in enumerate(offered)]
    share, _, place = max(liked)
    if share <= 0:
        raise Problem("not_acceptable", f"this path answers {', '.join(offered)}; send one of them, or */*, as Accept")
    return offered[-place]


def _entry(text: str) -> tuple[str, float] | None:
    """A range of forms and how much it is liked, in [0, 1]; None for what is none."""
    form, *parameters = (part.strip().lower() for part in text.split(";"))
    if form.count("/") != 1:
        return None
    share = 1.0
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                share = float(value)
            except ValueError:
                return None
    return (form, share) if 0 <= share <= 1 else None


def _liking(form: str, wanted: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """How much a form is liked by the entry that names it most exactly, and how exactly that is."""
    ranges = {form: 3, f"{form.partition('/')[0]}/*": 2, "*/*": 1}
    found = [(ranges[name], share) for name, share in wanted if name in ranges]
    exact, share = max(found, default=(0, 0.0))
    return share, exact
