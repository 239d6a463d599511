"""How fast detection goes beside the systems that people would take instead, all on this machine in one run."""

import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from owl_swin.bench.processes import Job, Progress, Workers
from owl_swin.bench.roofline import roofline
from owl_swin.errors import ConfigError

ENCODER_GRAPH = "Swin-T owl_swin (OpenVINO)"
ENCODERS = ("Swin-T owl_swin", "Swin-T timm", "Swin-T torchvision", "Swin-T transformers")
# Our Swin-T without PyTorch; a runtime that is not installed is said in its row.
RUNTIMES = ("owl_swin T (ONNX Runtime)", "owl_swin T (OpenVINO)", "owl_swin T (OpenVINO int8)")
PEERS = ("OWL-ViT B/32", "OWL-ViT B/16", "OWLv2 B/16", "GroundingDINO-T", "OmDet-Turbo-T")
SIZES = ((224, 224), (384, 384), (640, 640), (768, 1024), (960, 960), (2048, 2048))
# Squares of a quarter to four megapixels, through which the cost of a pixel is fitted.
PIXELS = ((512, 512), (736, 736), (1024, 1024), (1440, 1440), (2048, 2048))
# A batch of more pixels needs more memory than many machines have.
MOST_PIXELS = 8 * 960 * 960
QUERIES = (1, 10, 80, 1203, 10_000)


def benchmark_detection(
    *,
    quick: bool = False,
    sizes: Sequence[tuple[int, int]] | None = None,
    systems: Sequence[str] | None = None,
    rounds: int | None = None,
    device: str = "cpu",
    tiny: bool = False,
    progress: Progress = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Latency beside other systems, cost of pixels and of queries, share of the machine's arithmetic, and start-up.

    ``quick`` measures fewer sizes, peers and rounds. ``sizes`` (height, width) replace those of the table, ``systems``
    (names of bench.systems) restrict what is compared. ``tiny``: small networks, to try the benchmark itself. ``keep``
    is given what there is after each part, so that a part that fails takes no other with it.
    """
    from owl_swin.bench.systems import SYSTEMS

    rounds = rounds or (1 if quick else 3)
    if rounds < 1:
        raise ConfigError(f"rounds must be at least 1, got {rounds}")
    if unknown := [name for name in systems or () if name not in SYSTEMS]:
        raise ConfigError(f"no system is called {unknown[0]!r}; known are {', '.join(SYSTEMS)}")
    wanted = lambda names: [name for name in names if systems is None or name in systems]  # noqa: E731
    peers = wanted(("OWLv2 B/16", "GroundingDINO-T") if quick else PEERS)
    table = tuple(sizes or (((224, 224), (640, 640)) if quick else SIZES))
    curve: Sequence[tuple[int, int]] = PIXELS[::2] if quick else PIXELS
    curve = table if tiny else curve
    place = torch.device(device)
    result: dict[str, Any] = {
        "protocol": f"a process a system, {rounds} alternating rounds after one to warm up, medians; random weights "
        f"but for nano{', small networks' if tiny else ''}; one picture and one name unless said",
        "machine": machine(place),
        "date": time.strftime("%Y-%m-%d"),
    }
    small, square, wide = (128, 128), (960, 960), (800, 1066)
    own = wanted(("owl_swin nano", "owl_swin T") if quick else ("owl_swin nano", "owl_swin T", "owl_swin B"))
    mine = wanted(["owl_swin T"])
    with Workers(rounds=rounds, device=device, tiny=tiny, progress=progress) as workers:
        without_torch = place.type != "cuda" and (systems is not None or not quick)
        encoders = wanted((*ENCODERS, ENCODER_GRAPH) if without_torch else ENCODERS)
        first, second = ((224, 224), 8), ((256, 256) if tiny else (768, 768), 1)
        result["encoders"] = [workers.measure([Job(name, hw, n) for name in encoders]) for hw, n in (first, second)]
        workers.release(encoders)
        keep(result)
        result["sizes"] = [
            workers.measure([Job(name, hw, n) for name in own])
            for n in ((1,) if quick else (1, 8))
            for hw in table
            if n * hw[0] * hw[1] <= MOST_PIXELS
        ]
        result["pixels"] = workers.measure([Job(name, hw) for name in mine for hw in curve])
        result["exponent"] = exponent(result["pixels"])
        against = [Job(name, small if tiny else hw) for name in mine for hw in (square, wide)]
        graphs = wanted(RUNTIMES if without_torch else ())
        against += [Job(name, small if tiny else square) for name in graphs]
        result["peers"] = workers.measure([*against, *(Job(peer) for peer in peers)])
        workers.release(peers)
        if place.type == "cuda":
            batches = [(n, dtype) for n in (1, 8, 32) for dtype in ("float32", "bfloat16")]
            result["cuda"] = workers.measure([Job("owl_swin T", (640, 640), n, dtype) for n, dtype in batches])
    keep(result)
    progress("queries")
    result["queries"] = cost_of_queries(QUERIES[:3] if tiny else QUERIES, rounds=max(3, rounds), device=device)
    keep(result)
    progress("share of the machine's arithmetic")
    result["roofline"] = roofline(place, tiny=tiny)
    result["roofline"]["share_in_openvino"] = share_of_graph(result)
    keep(result)
    progress("start-up")
    result["startup"] = start_up(1 if quick else 3)
    result["ratios"] = ratios(result)
    return result


def machine(place: torch.device) -> str:
    """Processor, threads and PyTorch in a line."""
    name = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    gpu = f", {torch.cuda.get_device_name(place)}" if place.type == "cuda" else ""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({capability}), {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def exponent(rows: Sequence[dict[str, Any]]) -> float | None:
    """Slope of the logarithm of time over that of pixels, by least squares; 1 where a pixel always costs the same."""
    points = [(math.log(row["hw"][0] * row["hw"][1]), math.log(row["ms"])) for row in rows if "ms" in row]
    if len({x for x, _ in points}) < 2:
        return None
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def cost_of_queries(counts: Sequence[int], *, rounds: int, device: str = "cpu") -> list[dict[str, Any]]:
    """Milliseconds of one picture that was opened before, asked for so many names: with their embeddings kept, and with
    the texts encoded each time."""
    from owl_swin.bench.systems import pictures
    from owl_swin.detector import Detector

    detector = Detector.from_pretrained("nano", device=device, text_cache=False)
    picture = pictures((480, 640), 1)[0]
    names = [f"a thing of kind {i}" for i in range(max(counts))]
    kept = {count: detector.encode_queries(names[:count]) for count in counts}
    seconds: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(rounds + 1):
        for count in counts:
            start = time.perf_counter()
            detector.detect(picture, kept[count])
            if turn:
                seconds[count].append(time.perf_counter() - start)
    texts = {}
    for count in counts:
        start = time.perf_counter()
        detector.encode_queries([f"{name}, once" for name in names[:count]])
        texts[count] = time.perf_counter() - start
    return [
        {"queries": count, "ms": 1e3 * statistics.median(seconds[count]), "text_ms": 1e3 * texts[count]}
        for count in counts
    ]


def start_up(rounds: int) -> dict[str, Any]:
    """Of a new process with the model that ships: seconds to import, to load, to the first result, and memory."""
    program = (
        "import time; a = time.perf_counter(); from owl_swin import Detector; from PIL import Image; "
        "b = time.perf_counter(); d = Detector.from_pretrained('nano'); c = time.perf_counter(); "
        "d.detect(Image.new('RGB', (640, 480)), ['a cat', 'a dog']); e = time.perf_counter(); "
        "from owl_swin.bench.memory import peak_mib; print(b - a, c - b, e - c, peak_mib())"
    )
    empty = "import torch; from owl_swin.bench.memory import peak_mib; print(peak_mib())"
    rows, walls = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        walls.append(time.perf_counter() - start)
        rows.append([float(value) for value in ran.stdout.split()])
    bare = subprocess.run([sys.executable, "-c", empty], capture_output=True, text=True, check=True)
    imported, loaded, first, peak = (statistics.median(column) for column in zip(*rows, strict=True))
    package = Path(str(files("owl_swin")))
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {
        "import_s": imported,
        "load_s": loaded,
        "first_result_s": first,
        "whole_process_s": statistics.median(walls),
        "peak_mib": peak,
        "torch_alone_mib": float(bare.stdout),
        "package_mib": size / 2**20,
    }


def share_of_graph(result: dict[str, Any]) -> float | None:
    """What the encoder as a graph of OpenVINO reaches of the machine's rate of matrix products; None where it did not
    run in the frame of the roofline."""
    roof = result["roofline"]
    for row in (row for rows in result["encoders"] for row in rows):
        if row["system"] == ENCODER_GRAPH and tuple(row["hw"]) == tuple(roof["hw"]) and "ms" in row:
            return roof["gflop"] / row["ms"] * 1e3 / roof["matrix_gflops"]["float32"]
    return None


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """How many times faster we are, each from one group of alternating rounds."""
    out: dict[str, float] = {}
    for rows in result["encoders"]:
        times = {row["system"]: row["ms"] for row in rows if "ms" in row}
        ours = times.pop("Swin-T owl_swin", None)
        times.pop(ENCODER_GRAPH, None)
        if ours and times:
            hw = rows[0]["hw"]
            out[f"Swin-T encoder, {hw[0]}x{hw[1]}, batch {rows[0]['batch']}, best of others / ours"] = (
                min(times.values()) / ours
            )
    rows = [row for row in result["peers"] if "ms" in row]
    own = [row for row in rows if row["system"] == "owl_swin T"]
    graphs = [row for row in rows if row["system"] in RUNTIMES]
    for row in rows:
        if row in own or row in graphs or not own:
            continue
        # Of our two sizes, the one whose shape is the peer's.
        square = row["hw"][0] == row["hw"][1]
        ours = next((o for o in own if (o["hw"][0] == o["hw"][1]) == square), own[0])
        label = f"{row['system']} at {row['hw'][0]}x{row['hw'][1]} / owl_swin T at {ours['hw'][0]}x{ours['hw'][1]}"
        out[label] = row["ms"] / ours["ms"]
        for graph in graphs:
            if tuple(graph["hw"]) == tuple(row["hw"]):
                out[f"{row['system']} / {graph['system']}, both at {row['hw'][0]}x{row['hw'][1]}"] = (
                    row["ms"] / graph["ms"]
                )
    cost = {row["queries"]: row["ms"] for row in result["queries"]}
    if 1 in cost and len(cost) > 1:
        out |= {f"{count} names / 1 name, embeddings kept": ms / cost[1] for count, ms in cost.items() if count > 1}
    return out
