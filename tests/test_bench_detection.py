"""The detection benchmark: it runs as a user runs it, and what it reports follows from what it measured."""

import json
from itertools import chain

import pytest
from typer.testing import CliRunner

from owl_swin.bench.detection import exponent, ratios
from owl_swin.bench.processes import Job, Workers
from owl_swin.bench.systems import SYSTEMS, build
from owl_swin.cli.main import app
from owl_swin.errors import ConfigError

SYSTEMS_HERE = "Swin-T owl_swin,Swin-T torchvision,Swin-T owl_swin (OpenVINO),owl_swin T"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    command = ["bench", "detect", "--quick", "--tiny", "--sizes", "64x96", "--systems", SYSTEMS_HERE]
    ran = CliRunner().invoke(
        app, [*command, "--json", str(folder / "out.json"), "--plot", str(folder), "--device", "cpu"]
    )
    assert ran.exit_code == 0, ran.output
    return ran.output, json.loads((folder / "out.json").read_text()), folder


def test_every_table_has_rows(run):
    output, result, folder = run
    rows = [*chain(*result["encoders"], *result["sizes"]), *result["peers"], *result["pixels"]]
    assert {row["system"] for row in rows} == set(SYSTEMS_HERE.split(","))
    for row in rows:
        assert row["ms_low"] <= row["ms"] <= row["ms_high"]
        assert sum(row["parts_ms"].values()) == pytest.approx(row["ms"], rel=1e-6)  # of one round
        assert row["peak_mib"] > 50
    assert [row["queries"] for row in result["queries"]] == [1, 10, 80]
    for heading in ("Image encoder, 224x224, batch 8", "Beside other detectors", "What its time goes to", "Ratios"):
        assert heading in output
    for name in ("pixels", "queries", "roofline"):
        assert (folder / f"{name}.png").stat().st_size > 10_000


def test_shares_and_ratios_follow_from_the_times(run):
    _, result, _ = run
    roof = result["roofline"]
    assert roof["gflops"] == pytest.approx(roof["gflop"] / roof["ms"] * 1e3)
    assert roof["share_of_matrix_rate"] == pytest.approx(roof["gflops"] / roof["matrix_gflops"]["float32"])
    (graph,) = [row for row in result["encoders"][1] if "OpenVINO" in row["system"]]
    assert graph["hw"] == roof["hw"]
    rate = roof["gflop"] / graph["ms"] * 1e3
    assert roof["share_in_openvino"] == pytest.approx(rate / roof["matrix_gflops"]["float32"])
    assert 0.5 < sum(row["share_of_time"] for row in roof["operations"]) <= 1  # small ones are left out
    first = result["encoders"][0]
    ours, theirs = (
        next(r["ms"] for r in first if r["system"] == f"Swin-T {name}") for name in ("owl_swin", "torchvision")
    )
    assert result["ratios"]["Swin-T encoder, 224x224, batch 8, best of others / ours"] == pytest.approx(theirs / ours)
    assert result["startup"]["peak_mib"] > result["startup"]["torch_alone_mib"] > 100


def test_ratios_take_the_best_of_the_others_and_the_size_of_the_peer():
    def row(system, ms, hw=(960, 960)):
        return {"system": system, "ms": ms, "hw": hw, "batch": 1}

    found = ratios(
        {
            "encoders": [
                [
                    row("Swin-T owl_swin", 10),
                    row("Swin-T owl_swin (OpenVINO)", 5),
                    row("Swin-T timm", 30),
                    row("Swin-T torchvision", 20),
                ],
                [],
            ],
            "peers": [
                row("owl_swin T", 100),
                row("owl_swin T", 80, (800, 1066)),
                row("owl_swin T (OpenVINO int8)", 40),
                row("OWLv2 B/16", 600, [960, 960]),  # as it comes from its process
                row("GroundingDINO-T", 960, (800, 1066)),
                {"system": "OmDet-Turbo-T", "error": "no"},
            ],
            "queries": [{"queries": 1, "ms": 50}, {"queries": 1203, "ms": 52}],
        }
    )
    assert found == {
        "Swin-T encoder, 960x960, batch 1, best of others / ours": 2.0,
        "OWLv2 B/16 at 960x960 / owl_swin T at 960x960": 6.0,
        "OWLv2 B/16 / owl_swin T (OpenVINO int8), both at 960x960": 15.0,
        "GroundingDINO-T at 800x1066 / owl_swin T at 800x1066": 12.0,
        "1203 names / 1 name, embeddings kept": 1.04,
    }


@pytest.mark.parametrize("power", [0.5, 1, 2])
def test_the_exponent_is_the_slope(power):
    rows = [{"hw": (side, side), "ms": 3 * side ** (2 * power)} for side in (512, 1024, 2048)]
    assert exponent(rows) == pytest.approx(power)
    assert exponent(rows[:1]) is None


def test_a_system_that_cannot_run_is_said_and_the_others_go_on():
    with Workers(rounds=1, device="cpu", tiny=True, progress=lambda _: None) as workers:
        rows = workers.measure([Job("no such system"), Job("Swin-T timm", (-1, 64)), Job("OWLv2 B/16")])
    assert "no system is called 'no such system'" in rows[0]["error"]
    assert "error" in rows[1] and "ms" not in rows[1]
    assert rows[2]["ms"] > 0 and rows[2]["hw"][0] == rows[2]["hw"][1] > 0  # its own size


# OmDet has no small form, and int8 is the graph of OpenVINO with pictures to calibrate on, which takes long.
@pytest.mark.parametrize("name", [name for name in SYSTEMS if "OmDet" not in name and "int8" not in name])
def test_every_system_gives_something(name):
    import torch

    one = build(name, tiny=True).begin((224, 224), 2, torch.float32)
    assert one.after(one.network(one.before())) is not None


@pytest.mark.parametrize("sizes", ["", "640", "640x", "16x640", "640x5000", "axb"])
def test_sizes_that_mean_nothing_are_refused(sizes):
    ran = CliRunner().invoke(app, ["bench", "detect", "--sizes", sizes])
    assert isinstance(ran.exception, ConfigError) or ran.exit_code == 2


def test_a_part_that_fails_leaves_what_was_measured_before(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise ConfigError("no names to ask")

    monkeypatch.setattr("owl_swin.bench.detection.cost_of_queries", fails)
    monkeypatch.setattr(Workers, "measure", lambda self, jobs: [{"system": job.system} for job in jobs])
    monkeypatch.setattr("owl_swin.bench.detection.exponent", lambda rows: None)
    out = tmp_path / "out.json"
    ran = CliRunner().invoke(app, ["bench", "detect", "--quick", "--device", "cpu", "--json", str(out)])
    assert ran.exit_code != 0
    assert [row["system"] for row in json.loads(out.read_text())["peers"]][:1] == ["owl_swin T"]
