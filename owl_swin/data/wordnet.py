"""Names of things from WordNet's files, as Debian's wordnet-base holds them."""

import math
from pathlib import Path

from owl_swin.errors import DataError

# Lexicographer files of WordNet that hold things one can photograph.
VISIBLE = {5: "animal", 6: "artifact", 8: "body", 13: "food", 15: "location", 17: "object", 18: "person", 20: "plant"}


def wordnet_nouns(folder: str | Path) -> dict[str, float]:
    """Noun lemmas of WordNet → sampling weight: visible things first, and common senses more often."""
    counts: dict[str, int] = {}
    weights: dict[str, float] = {}
    folder = Path(folder)
    try:
        for line in (folder / "cntlist.rev").read_text().splitlines():
            sense, _, count = line.split()
            lemma, kind = sense.split("%")
            if kind.startswith("1:"):
                counts[lemma.lower()] = counts.get(lemma.lower(), 0) + int(count)
        lines = (folder / "data.noun").read_text().splitlines()
    except OSError as error:
        raise DataError(f"{folder}: no WordNet files here ({error})") from None
    for line in lines:
        if line.startswith(" "):
            continue
        head = line.split(" | ")[0].split()
        visible = int(head[1]) in VISIBLE
        for i in range(int(head[3], 16)):
            lemma = head[4 + 2 * i]
            weight = (1.0 if visible else 0.3) * (1 + math.log1p(counts.get(lemma.lower(), 0)))
            name = lemma.replace("_", " ")
            weights[name] = max(weights.get(name, 0.0), weight)
    return weights
