"""Scores of patches for queries, with numbers that can be followed by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from owl_swin.config import CalibrationConfig
from owl_swin.scoring import score
from owl_swin.types import ExtraEmbeddings, PatchLogitInputs, QueryEmbeddings

pytestmark = pytest.mark.numeric

AS_IT_IS = CalibrationConfig()


def one_patch(axis: int) -> PatchLogitInputs:
    """One patch that lies on an axis: its raw logit is 4 for a query on the axis, 0 for one across."""
    zero = torch.zeros(1)
    return PatchLogitInputs(torch.eye(3)[[axis]], zero, zero + 4)


def queries_of_axes(first: int, *extras: tuple[int, float]) -> QueryEmbeddings:
    """One text query on an axis, with exemplars on others."""
    axes, shares = [axis for axis, _ in extras], [share for _, share in extras]
    owners = torch.zeros(len(axes), dtype=torch.long)
    extra = ExtraEmbeddings(torch.eye(3)[axes], owners, torch.tensor(shares), ("exemplar",) * len(axes))
    return QueryEmbeddings(torch.eye(3)[[first]], ("thing",), (), extra)


@pytest.mark.parametrize("share, axis, expected", [(0.25, 0, 3.0), (0.25, 1, 1.0), (0.25, 2, 0.0), (0.5, 1, 2.0)])
def test_the_logit_of_text_and_exemplar_is_their_weighted_mean(share, axis, expected):
    logits = score(one_patch(axis), queries_of_axes(0, (1, share)), AS_IT_IS)
    assert_close(logits, torch.tensor([[expected]]))


def test_each_part_is_calibrated_by_its_own_route():
    calibration = CalibrationConfig(text_scale=2, text_bias=1, exemplar_scale=0.5, exemplar_bias=-1)
    logits = score(one_patch(0), queries_of_axes(0, (0, 0.25)), calibration)
    assert_close(logits, torch.tensor([[0.75 * (4 * 2 + 1) + 0.25 * (4 * 0.5 - 1)]]))


@pytest.mark.parametrize(
    "axis, own, negative",
    [(0, 4.0, 0.0), (1, 0.0, 4.0), (2, 0.0, 0.0)],
)
def test_a_negative_multiplies_the_score_by_the_chance_that_it_is_not_meant(axis, own, negative):
    found = score(one_patch(axis), queries_of_axes(0, (1, 0.0)), AS_IT_IS).sigmoid()
    expected = 1 / (1 + math.exp(-own)) * 1 / (1 + math.exp(negative - own))
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_of_several_negatives_the_one_that_fits_best_counts():
    for axis in range(3):
        one, both = (
            score(one_patch(axis), queries_of_axes(0, *negatives), AS_IT_IS)
            for negatives in ([(1, 0.0)] if axis == 1 else [(2, 0.0)], [(1, 0.0), (2, 0.0), (2, 0.0)])
        )
        assert_close(one, both)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 3), max_size=6), st.floats(-30, 30))
def test_negatives_only_lower_the_scores_of_their_owners(seed, owners, shift):
    torch.manual_seed(seed)
    unit = torch.nn.functional.normalize(torch.randn(20 + 4 + len(owners), 8), dim=1)
    patches, own, extra = unit.split([20, 4, len(owners)])
    zeros = torch.zeros(20)
    image = PatchLogitInputs(patches, zeros + shift, zeros + 5)
    plain = QueryEmbeddings(own, tuple("abcd"))
    negatives = ExtraEmbeddings(
        extra, torch.tensor(owners, dtype=torch.long), torch.zeros(len(owners)), ("text",) * len(owners)
    )
    before = score(image, plain, AS_IT_IS)
    after = score(image, replace(plain, extras=negatives), AS_IT_IS)
    assert after.shape == (20, 4)
    assert after.isfinite().all()
    assert (after <= before + 1e-4).all()
    untouched = [i for i in range(4) if i not in owners]
    assert_close(after[:, untouched], before[:, untouched], atol=1e-4, rtol=0)


def test_stored_patches_have_the_scores_of_their_picture(detector, picture):
    encoded = detector.encode_image(picture)
    queries = detector.encode_queries(["cat", "a red mug"])
    rows, found = torch.tensor([3, 0, 17]), encoded.embeddings
    stored = PatchLogitInputs(found.class_embeds[rows], found.logit_shift[rows], found.logit_scale[rows])
    assert_close(detector.score(stored, queries), detector.score(encoded, queries)[rows])


def test_one_query_taken_out_scores_as_it_did_among_the_others():
    unit = torch.nn.functional.normalize(torch.randn(9, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    patches, own, extra = unit.split([3, 3, 3])
    owners, shares = torch.tensor([2, 0, 2]), torch.tensor([0.5, 0.0, 0.0])
    extras = ExtraEmbeddings(extra, owners, shares, ("exemplar", "text", "text"))
    queries = QueryEmbeddings(own, tuple("abc"), ("text", "exemplar", "text"), extras, "mark")
    patches = PatchLogitInputs(patches, torch.zeros(3), torch.full((3,), 5.0))
    together = score(patches, queries, CalibrationConfig(exemplar_scale=0.5, exemplar_bias=1.0))
    for i, one in enumerate(queries):
        assert (one.names, one.routes, one.fingerprint) == ((queries.names[i],), (queries.routes[i],), "mark")
        assert_close(score(patches, one, CalibrationConfig(exemplar_scale=0.5, exemplar_bias=1.0)), together[:, [i]])
    assert queries[1].extras is None and queries[-1].names == ("c",)
    with pytest.raises(IndexError):
        queries[3]
