"""The plots of the detection benchmark."""

import itertools
from pathlib import Path
from typing import Any

from owl_swin.errors import MissingExtraError


def save_plots(result: dict[str, Any], folder: Path) -> list[Path]:
    """Time over pixels, time over names, and the roofline, as PNG in ``folder``; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("bench detect --plot draws with matplotlib and", "bench") from None
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in (("pixels", _pixels), ("queries", _queries), ("roofline", _roofline)):
        figure = Figure(figsize=(7, 4.5), dpi=120, layout="constrained")
        axes = figure.add_subplot()
        if draw(axes, result):
            axes.grid(alpha=0.3, which="both")
            axes.set_title(f"{axes.get_title()}\n{result['machine']}, {result['date']}", fontsize=9)
            figure.savefig(folder / f"{name}.png")
            drawn.append(folder / f"{name}.png")
    return drawn


def _pixels(axes: Any, result: dict[str, Any]) -> bool:
    rows = [row for row in result["pixels"] if "ms" in row]
    if not rows:
        return False
    axes.loglog([_megapixels(row) for row in rows], [row["ms"] for row in rows], "o-", label="owl_swin T")
    nano = sorted((_megapixels(r), r["ms"]) for rows in result["sizes"] for r in rows if _is_nano(r))
    if nano:
        axes.loglog(*zip(*nano, strict=True), "o-", label="owl_swin nano")
    others = [row for row in result["peers"] if "ms" in row and "owl_swin" not in row["system"]]
    for marker, row in zip(itertools.cycle("svD^P*X"), others, strict=False):
        axes.loglog([_megapixels(row)], [row["ms"]], marker, ms=8, label=row["system"])
    axes.set(xlabel="megapixels", ylabel="milliseconds", title="One picture, one name, from picture to boxes (fp32)")
    axes.legend(fontsize=8)
    return True


def _queries(axes: Any, result: dict[str, Any]) -> bool:
    rows = result["queries"]
    counts = [row["queries"] for row in rows]
    axes.loglog(counts, [row["ms"] for row in rows], "o-", label="embeddings kept")
    axes.loglog(counts, [row["ms"] + row["text_ms"] for row in rows], "o--", label="texts encoded each time")
    axes.set(xlabel="names", ylabel="milliseconds", title="owl_swin nano, one picture")
    axes.legend(fontsize=8)
    return True


def _roofline(axes: Any, result: dict[str, Any]) -> bool:
    roof = result["roofline"]
    rows = [row for row in roof["operations"] if "gflops" in row]
    top, slope = roof["matrix_gflops"]["float32"], roof["copy_gb_s"]
    span = [0.1, 1000.0]
    knee = top / slope
    axes.loglog([span[0], knee, span[1]], [span[0] * slope, top, top], "k-", label="matrix product and memory")
    for row in rows:
        axes.loglog([row["flops_per_byte"]], [row["gflops"]], "o", ms=4 + 20 * row["share_of_time"])
        axes.annotate(
            f"{row['operation']} {row['share_of_time']:.0%}", (row["flops_per_byte"], row["gflops"]), fontsize=7
        )
    axes.axhline(roof["gflops"], ls=":", label=f"the whole encoder: {roof['share_of_matrix_rate']:.0%} of the product")
    axes.set(xlabel="operations a byte", ylabel="GFLOP/s", title=f"Swin-T, {roof['hw'][0]}x{roof['hw'][1]}, fp32")
    axes.legend(fontsize=8)
    return bool(rows)


def _megapixels(row: dict[str, Any]) -> float:
    return row["hw"][0] * row["hw"][1] / 1e6


def _is_nano(row: dict[str, Any]) -> bool:
    return row["system"] == "owl_swin nano" and row["batch"] == 1 and "ms" in row
