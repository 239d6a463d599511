"""Tables as text: columns as wide as their cells look on a terminal, where a Chinese letter takes two places."""

import sys
from collections.abc import Collection, Iterator, Sequence

from rich.cells import cell_len

from owl_swin.cli.printing import printable


def table_lines(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> Iterator[str]:
    """The head and the rows, one line each; the columns of ``left`` are flush left, the others right. Never cut off."""
    encoding = sys.stdout.encoding or "utf-8"  # letters that it lacks are printed as escapes, which are wider
    lines = [
        [printable(cell).encode(encoding, "backslashreplace").decode(encoding) for cell in row] for row in (head, *rows)
    ]
    sizes = [[cell_len(cell) for cell in row] for row in lines]
    widths = [max(column) for column in zip(*sizes, strict=True)]
    for cells, lengths in zip(lines, sizes, strict=True):
        padded = [
            cell + " " * (width - length) if i in left else " " * (width - length) + cell
            for i, (cell, length, width) in enumerate(zip(cells, lengths, widths, strict=True))
        ]
        yield "  ".join(padded).rstrip()
