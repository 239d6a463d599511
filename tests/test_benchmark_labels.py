"""The benchmark of labels: both answer the same, and ratios follow from what was measured."""

import json

import pytest
from typer.testing import CliRunner

from owl_swin.bench import labels
from owl_swin.bench.labels import Shape, benchmark_labels
from owl_swin.cli.main import app
from owl_swin.errors import QueryError

pytestmark = pytest.mark.numeric


def test_a_row_for_each_number_of_labels(monkeypatch, tmp_path):
    monkeypatch.setitem(labels.SHAPES, "tiny", Shape("owlv2", 16, 64, 64, 1, 64, 1))
    out = tmp_path / "labels.json"
    ran = CliRunner().invoke(app, ["bench", "labels", "--labels", "1,3", "--rounds", "1", "--json", str(out)])
    assert ran.exit_code == 0, ran.output
    result = json.loads(out.read_text())
    assert result["best_score"]["owl_swin"] == pytest.approx(result["best_score"]["transformers"], abs=2e-5)
    assert 0 < result["best_score"]["owl_swin"] < labels.THRESHOLD
    for n in ("1", "3"):
        ours, theirs = (result["seconds"][n][who] for who in ("owl_swin", "transformers"))
        assert result["ratio"][n] == pytest.approx(theirs / ours, rel=2e-3)
    cut = result["content_only"]
    assert cut["share_of_patches"] == 0.75
    assert 0 < cut["mean_score_change"] <= cut["largest_score_change"] < 1
    assert 0.5 < cut["mean_box_iou"] < 1


@pytest.mark.parametrize(
    "change", [{"labels": []}, {"labels": [0]}, {"rounds": 0}, {"shape": "large"}, {"source": "nano"}]
)
def test_a_measurement_that_means_nothing_is_refused(change):
    with pytest.raises(QueryError):
        benchmark_labels(**change)
