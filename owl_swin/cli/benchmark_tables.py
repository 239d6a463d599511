"""What the detection benchmark found, as tables."""

from collections.abc import Sequence
from typing import Any

from owl_swin.cli.printing import emit
from owl_swin.cli.table import table_lines


def print_detection(result: dict[str, Any]) -> None:
    """Prints the tables of bench.detection.benchmark_detection."""
    emit(f"{result['machine']}, {result['date']}\n{result['protocol']}\n")
    for rows in result["encoders"]:
        if rows:
            _print(f"Image encoder, {_size(rows[0]['hw'])}, batch {rows[0]['batch']}", _times(rows))
    _print("From picture to boxes", _times([row for rows in result["sizes"] for row in rows]))
    _print("Beside other detectors, each at its own size", _times(result["peers"]))
    if result.get("cuda"):
        _print("On the GPU", _times(result["cuda"]))
    if result["exponent"] is not None:
        emit(f"\nTime of owl_swin T grows with pixels to the power of {result['exponent']:.2f}.\n")
    head = ("names", "ms, embeddings kept", "ms of encoding the texts")
    rows = [(str(row["queries"]), f"{row['ms']:.1f}", f"{row['text_ms']:.1f}") for row in result["queries"]]
    _print("Names asked of one picture, owl_swin nano", [head, *rows])
    roof = result["roofline"]
    rates = ", ".join(f"{dtype} {rate:.0f}" for dtype, rate in roof["matrix_gflops"].items())
    emit(
        f"\nSwin-T at {_size(roof['hw'])}: {roof['gflop']:.1f} GFLOP in {roof['ms']:.0f} ms are {roof['gflops']:.0f} "
        f"GFLOP/s, {roof['share_of_matrix_rate']:.0%} of a float32 matrix product (GFLOP/s: {rates}); memory is copied "
        f"at {roof['copy_gb_s']:.1f} GB/s.\n"
    )
    if roof["share_in_openvino"] is not None:
        emit(f"As a graph of OpenVINO it reaches {roof['share_in_openvino']:.0%}.\n")
    rows = [
        (
            row["operation"],
            f"{row['share_of_time']:.0%}",
            f"{row['gflops']:.0f}" if "gflops" in row else "",
            f"{row['flops_per_byte']:.1f}" if "gflops" in row else "",
        )
        for row in roof["operations"]
    ]
    _print("What its time goes to", [("operation", "share", "GFLOP/s", "operations a byte"), *rows])
    start = result["startup"]
    emit(
        f"\nStart-up of nano: import {start['import_s']:.2f} s, load {start['load_s']:.2f} s, first result "
        f"{start['first_result_s']:.2f} s, whole process {start['whole_process_s']:.2f} s; memory "
        f"{start['peak_mib']:.0f} MiB, of which importing torch {start['torch_alone_mib']:.0f}; "
        f"the package has {start['package_mib']:.1f} MiB.\n"
    )
    _print("Ratios", [("", ""), *((name, f"{value:.2f}") for name, value in result["ratios"].items())])


def _times(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    head = ("system", "size", "batch", "ms", "from", "to", "before", "network", "after", "pictures/s", "peak MiB")
    lines: list[tuple[str, ...]] = [head]
    for row in rows:
        name = row["system"] if row["dtype"] == "float32" else f"{row['system']}, {row['dtype']}"
        if "error" in row:
            lines.append((f"{name}: {row['error'][:60]}", "", "", *[""] * 8))
            continue
        times = [row["ms"], row["ms_low"], row["ms_high"], *row["parts_ms"].values()]
        rate = row["batch"] / row["ms"] * 1e3
        values = (*(f"{ms:.1f}" for ms in times), f"{rate:.2f}", f"{row['peak_mib']:.0f}")
        lines.append((name, _size(row["hw"]), str(row["batch"]), *values))
    return lines


def _print(title: str, rows: Sequence[Sequence[str]]) -> None:
    if len(rows) > 1:
        emit(f"\n{title}\n" + "".join(f"  {line}\n" for line in table_lines(rows[0], rows[1:])))


def _size(hw: Sequence[int]) -> str:
    return f"{hw[0]}x{hw[1]}"
