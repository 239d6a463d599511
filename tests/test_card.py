"""The model card: sentences and figures, and the README that repeats them."""

import json
from pathlib import Path

import pytest

from owl_swin.cli.info import card_lines
from owl_swin.errors import DataError
from owl_swin.evaluation.card import build_card
from owl_swin.families.owl_swin import checkpoint_path, load_checkpoint
from owl_swin.publishing import markdown_table

ROOT = Path(__file__).parent.parent
CARD = """
name = "m"
description = ["D."]
data = []
recipe = []
limits = []
licence = ["L."]

[[results]]
what = "AP50 on a"
figure = "a.AP50"
command = "owl-swin eval detect"
"""


def write_figures(folder, **result):
    (folder / "a.json").write_text(json.dumps(result))
    (folder / "card.toml").write_text(CARD)
    return folder / "card.toml"


@pytest.mark.parametrize(
    "result, value",
    [
        ({"AP50": None, "ci95": None}, "none"),
        ({"AP50": 0.0, "ci95": None}, "0.0"),
        ({"AP50": 0.034, "ci95": [0.0, 0.071]}, "0.03 (0.00 to 0.07)"),
        ({"AP50": 12.34, "ci95": [10.0, 15.06]}, "12.3 (10.0 to 15.1)"),
    ],
)
def test_figures_come_from_the_result_files(tmp_path, result, value):
    card = build_card(write_figures(tmp_path, **result), tmp_path)
    assert card["results"] == [{"what": "AP50 on a", "value": value, "command": "owl-swin eval detect"}]
    assert markdown_table(card).splitlines()[-1] == f"| AP50 on a | {value} | `owl-swin eval detect` |"


def test_a_figure_that_nobody_measured_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no figure 'AP50'"):
        build_card(write_figures(tmp_path, AP=1.0), tmp_path)


def test_a_card_without_results_prints_its_sentences_only():
    assert card_lines({"description": ["One.", "Two."], "results": []}) == ["", "description", "  One.", "  Two."]


def test_the_readme_holds_the_table_of_the_shipped_model():
    _, card = load_checkpoint("nano")
    assert len(card["results"]) >= 9
    assert markdown_table(card) in (ROOT / "README.md").read_text()


def test_the_shipped_model_is_small_and_says_what_it_is():
    assert checkpoint_path("nano").stat().st_size < 32e6
    _, card = load_checkpoint("nano")
    assert all(card[section] for section in ("name", "description", "data", "recipe", "limits", "licence"))
