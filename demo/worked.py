"""Examples to follow with a pencil: the formula of attention on two patches, and what windows save."""

import torch
from torch import Tensor

QUERIES, KEYS, VALUES = [[1, 2], [3, 4]], [[2, 1], [0, 1]], [[0, 2], [1, 3]]
# Sides of two photos and of the patches, in pixels; the paper's windows have so many patches a side.
SIDES_PX, PATCH_PX, WINDOW = (256, 1920), 16, 7


def matrix(values: Tensor) -> str:
    """A matrix as TeX: whole numbers as they are, others to three decimals."""
    rows = [" & ".join(f"{n:.0f}" if n == round(n) else f"{n:.3f}" for n in row) for row in values.tolist()]
    return r"\begin{pmatrix} " + r" \\ ".join(rows) + r" \end{pmatrix}"


def attention_example(queries: list = QUERIES, keys: list = KEYS, values: list = VALUES) -> str:
    """softmax(Q Kᵀ / √d) V, step by step."""
    q, k, v = (torch.tensor(rows, dtype=torch.float64) for rows in (queries, keys, values))
    products = q @ k.T
    scaled = products / q.shape[1] ** 0.5
    weights = scaled.softmax(-1)
    parts = zip(weights[-1].tolist(), v.tolist(), strict=True)
    mixed = " + ".join(f"{share:.3f} · ({', '.join(f'{n:g}' for n in row)})" for share, row in parts)
    steps = [
        "### Attention of two patches, by hand",
        "Every patch asks with its row of $Q$, is asked for by its row of $K$, and gives its row of $V$:",
        f"$$Q = {matrix(q)} \\quad K = {matrix(k)} \\quad V = {matrix(v)}$$",
        "**1.** Each question meets each key: how well do they fit?",
        f"$$Q K^T = {matrix(products)}$$",
        f"**2.** By $\\sqrt{{d}} = \\sqrt{{{q.shape[1]}}}$, so that long vectors do not decide alone:",
        f"$$Q K^T / \\sqrt{{{q.shape[1]}}} = {matrix(scaled)}$$",
        "**3.** Softmax makes shares of each row, which add up to 1. These are what the light shows above:",
        f"$$\\mathrm{{softmax}} = {matrix(weights)}$$",
        f"**4.** Each patch takes the values in these shares; the last one {mixed}:",
        f"$$\\mathrm{{softmax}}(Q K^T / \\sqrt{{{q.shape[1]}}})\\, V = {matrix(weights @ v)}$$",
    ]
    return "\n\n".join(steps)


def patches_example(sides_px: tuple[int, int] = SIDES_PX, patch_px: int = PATCH_PX, window: int = WINDOW) -> str:
    """How the pairs of patches that are compared grow with the photo, with and without windows."""
    counts = [(side // patch_px) ** 2 for side in sides_px]
    pairs = [n**2 for n in counts]
    windowed = [n * window**2 for n in counts]
    rows = [
        f"| {side:,} × {side:,} px | {n:,} | {all_pairs:,} | {own:,} |"
        for side, n, all_pairs, own in zip(sides_px, counts, pairs, windowed, strict=True)
    ]
    times = [f"**{round(column[1] / column[0]):,} times**" for column in (counts, pairs, windowed)]
    return "\n\n".join(
        [
            f"### What windows save, with patches of {patch_px} × {patch_px} px",
            "\n".join(
                [
                    f"| photo | patches | pairs, each with all | pairs in windows of {window} × {window} |",
                    "| --- | ---: | ---: | ---: |",
                    *rows,
                    f"| | {' | '.join(times)} |",
                ]
            ),
            "If every patch looked at all others, the larger photo would be as much work as the last but one column "
            "says; in windows the work grows as the patches do.",
        ]
    )
