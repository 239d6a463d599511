"""The best of many regions: how often the index is asked, and what it may not leave out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from owl_swin.config import CalibrationConfig
from owl_swin.index import ranking
from owl_swin.index.paths import glob_pattern
from owl_swin.index.ranking import Choice, best_of_all, best_of_nearest, one_query, score_rows, search_vector
from owl_swin.index.store import RegionFilter, Regions
from owl_swin.queries import Query
from owl_swin.types import ExtraEmbeddings, QueryEmbeddings

pytestmark = pytest.mark.numeric

DIM = 16
CALIBRATION = CalibrationConfig(text_scale=0.8, text_bias=0.1, exemplar_scale=1.3, exemplar_bias=-0.2)
QUERY = QueryEmbeddings(torch.eye(DIM)[:1], ("x",))


class Held:
    """A store whose index brings the nearest exactly; ``fetched`` says how many it was asked for each time."""

    def __init__(self, rows: Regions):
        self.rows, self.fetched = rows, []

    def nearest(self, vector, k, where, probes=None):
        self.fetched.append(k)
        return self.rows[np.argsort(-(self.rows.vectors(16.0) @ vector), kind="stable")[:k]]

    def scan(self, where):
        yield self.rows


def regions(cosines, *, image_ids=None, paths=None, second=0.0) -> Regions:
    """Regions of one picture each, at cosines to the query; ``second`` is the cosine to the second axis."""
    n = len(cosines)
    names = np.array(image_ids if image_ids is not None else [f"{i:05d}" for i in range(n)], object)
    embeds = np.zeros((n, DIM), np.float32)
    embeds[:, 0], embeds[:, 1] = cosines, second
    embeds[:, 2] = np.sqrt(1 - embeds[:, 0] ** 2 - embeds[:, 1] ** 2)
    return Regions(
        picture=np.array([f"{i:05d}" for i in range(n)], object),
        number=np.zeros(n, np.int32),
        image_id=names,
        path=np.array(paths if paths is not None else [f"/{name}.jpg" for name in names], object),
        modified=np.zeros(n),
        width=np.full(n, 9, np.int32),
        height=np.full(n, 9, np.int32),
        boxes=np.zeros((n, 4), np.float32),
        objectness=np.zeros(n, np.float32),
        shift=np.zeros(n, np.float32),
        scale=np.full(n, 8, np.float32),
        embeds=embeds,
    )


def unit(n: int, rng: np.random.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n, DIM))).float(), dim=-1)


def drawn(n: int, rng: np.random.Generator) -> Regions:
    """Regions with embeddings, shifts and scales of their own."""
    return replace(
        regions(np.zeros(n)),
        embeds=unit(n, rng).numpy(),
        shift=rng.normal(-0.4, 0.1, n).astype(np.float32),
        scale=rng.normal(8, 1, n).astype(np.float32),
    )


def falling(n: int) -> np.ndarray:
    return np.linspace(0.9, 0.0, n)


def answers(store, choice, wanted, query=QUERY) -> list[str]:
    return list(best_of_nearest(store, CALIBRATION, query, RegionFilter(), choice, wanted)[1].path)


def test_the_usual_search_asks_the_index_once():
    store = Held(regions(falling(1000)))
    assert answers(store, Choice(), 20) == [f"/{i:05d}.jpg" for i in range(20)]
    assert store.fetched == [64]


def test_paths_that_the_store_cannot_tell_apart_are_found_behind_many_others():
    """A glob's character class is more than LIKE can say."""
    paths = [f"/{'a' if i < 1400 else 'b'}{i}.jpg" for i in range(1440)]
    store = Held(regions(falling(1440), paths=paths))
    assert answers(store, Choice(path=glob_pattern("/[b-z]*.jpg")), 20) == paths[1400:1420]


def test_copies_of_one_picture_do_not_hide_the_others():
    names = ["copy"] * 300 + [f"{i:05d}" for i in range(600)]
    store = Held(regions(falling(900), image_ids=names))
    assert len(answers(store, Choice(), 20)) == 20


def test_below_the_threshold_no_more_is_fetched():
    store = Held(regions(np.concatenate([np.full(5, 0.9), np.full(5000, -0.5)])))
    assert len(answers(store, Choice(0.5), 20)) == 5
    assert store.fetched == [64]


@pytest.mark.parametrize("n_against", [100, 1000])
def test_regions_that_a_negative_rules_out_do_not_end_the_search(n_against):
    against, good = regions(np.full(n_against, 0.6), second=0.7), regions(np.full(30, 0.5))
    store = Held(Regions.join([against, replace(good, image_id=good.image_id + "b", path=good.path + "b")]))
    negative = ExtraEmbeddings(torch.eye(DIM)[1:2], torch.tensor([0]), torch.zeros(1), ("text",))
    query = replace(QUERY, extras=negative)
    threshold = float(best_of_all(store, CALIBRATION, query, RegionFilter(), Choice(), 30)[0][0][-1]) - 0.01
    found = answers(store, Choice(threshold), 30, query)
    assert len(found) == 30 and all(path.endswith("b") for path in found)


def test_more_answers_than_the_index_gives_are_all_there(monkeypatch):
    monkeypatch.setattr(ranking, "MOST_FETCH", 128)
    store = Held(regions(falling(500)))
    assert answers(store, Choice(), 300) == [f"/{i:05d}.jpg" for i in range(300)]
    assert store.fetched == [128]


@pytest.mark.parametrize("n_queries", [1, 2, 17])
def test_a_region_has_one_score_whatever_is_scored_beside_it(n_queries):
    rng = np.random.default_rng(0)
    rows = drawn(129, rng)
    asked = unit(n_queries, rng)
    negatives = ExtraEmbeddings(asked[:1].flip(-1), torch.tensor([0]), torch.zeros(1), ("exemplar",))
    queries = QueryEmbeddings(asked, tuple(map(str, range(n_queries))), extras=negatives)
    together = score_rows(rows, queries, CALIBRATION)
    for n in (1, 2, 3, 7, 64, 128):
        for first in range(0, 129 - n, n):
            part = slice(first, first + n)
            assert np.array_equal(score_rows(rows[part], queries, CALIBRATION), together[part])
    for q in range(n_queries):
        assert np.array_equal(score_rows(rows, one_query(queries, q), CALIBRATION)[:, 0], together[:, q])
    shuffled = rng.permutation(129)
    assert np.array_equal(score_rows(rows[shuffled], queries, CALIBRATION), together[shuffled])


def test_a_stored_region_has_the_score_that_a_picture_gives_it(detector, picture):
    queries = detector.encode_queries(["x", Query("y", texts=["y"], negatives=["z"])])
    encoded = detector.encode_image(picture)
    patches = encoded.embeddings
    rows = replace(
        regions(np.zeros(len(patches.class_embeds))),
        embeds=patches.class_embeds.numpy(),
        shift=patches.logit_shift.numpy(),
        scale=patches.logit_scale.numpy(),
    )
    expected = detector.score(encoded, queries).sigmoid().numpy()
    assert score_rows(rows, queries, detector.spec.calibration) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("routes", "share", "bias"),
    [(("text",), None, 0.1), (("exemplar",), None, -0.2), (("text", "exemplar"), 0.25, 0.75 * 0.1 - 0.25 * 0.2)],
)
def test_the_index_orders_by_calibrated_logits(routes, share, bias):
    """The inner product of both vectors is the logit, but for the bias that all regions have."""
    rng = np.random.default_rng(1)
    rows, embeds = drawn(50, rng), unit(2, rng)
    extras = share and ExtraEmbeddings(embeds[1:], torch.tensor([0]), torch.tensor([share]), routes[1:])
    query = QueryEmbeddings(embeds[:1], ("x",), routes[:1], extras)
    products = rows.vectors(search_norm=16.0) @ search_vector(query, CALIBRATION)
    scores = score_rows(rows, query, CALIBRATION)[:, 0].astype(float)
    assert products + bias == pytest.approx(np.log(scores / (1 - scores)), abs=1e-4)


def test_negatives_have_no_part_in_what_the_index_is_asked():
    embeds = unit(2, np.random.default_rng(1))
    negative = ExtraEmbeddings(embeds[1:], torch.tensor([0]), torch.zeros(1), ("exemplar",))
    alone = QueryEmbeddings(embeds[:1], ("x",))
    asked = [search_vector(query, CALIBRATION) for query in (alone, replace(alone, extras=negative))]
    assert np.array_equal(*asked)


@pytest.mark.parametrize("search_norm", [16.0, 40.0])
def test_the_nearest_by_cosine_are_the_best_where_no_vector_is_longer_than_the_norm(search_norm):
    rng = np.random.default_rng(2)
    rows = drawn(400, rng)
    rows = replace(rows, scale=rows.scale * np.float32(search_norm / 16))
    vectors = rows.vectors(search_norm)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(search_norm, rel=1e-4)
    asked = search_vector(QueryEmbeddings(unit(1, rng), ("x",)), CALIBRATION)
    cosines = vectors @ asked / np.linalg.norm(vectors, axis=1)
    logits = (rows.embeds @ asked[:DIM] / asked[DIM] + rows.shift) * rows.scale
    assert np.argsort(-cosines)[:20].tolist() == np.argsort(-logits)[:20].tolist()
