"""The best of many regions: how often the index is asked, and what it may not leave out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from owl_swin.index import ranking
from owl_swin.index.paths import glob_pattern
from owl_swin.index.ranking import Choice, best_of_all, best_of_nearest, one_query, score_rows
from owl_swin.index.store import Regions, Where
from owl_swin.queries import Query
from owl_swin.types import ExtraEmbeddings, QueryEmbeddings

DIM = 16
QUERY = QueryEmbeddings(torch.eye(DIM)[:1], ("x",))


class Held:
    """A store whose index brings the nearest exactly; ``fetched`` says how many it was asked for each time."""

    def __init__(self, rows: Regions):
        self.rows, self.fetched = rows, []

    def nearest(self, vector, k, where, probes=None):
        self.fetched.append(k)
        return self.rows[np.argsort(-(self.rows.vectors @ vector), kind="stable")[:k]]

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


def falling(n: int) -> np.ndarray:
    return np.linspace(0.9, 0.0, n)


def answers(store, detector, choice, wanted, query=QUERY) -> list[str]:
    return list(best_of_nearest(store, detector, query, Where(), choice, wanted)[1].path)


def test_the_usual_search_asks_the_index_once(detector):
    store = Held(regions(falling(1000)))
    assert answers(store, detector, Choice(), 20) == [f"/{i:05d}.jpg" for i in range(20)]
    assert store.fetched == [64]


def test_paths_that_the_store_cannot_tell_apart_are_found_behind_many_others(detector):
    """A glob's character class is more than LIKE can say."""
    paths = [f"/{'a' if i < 1400 else 'b'}{i}.jpg" for i in range(1440)]
    store = Held(regions(falling(1440), paths=paths))
    assert answers(store, detector, Choice(path=glob_pattern("/[b-z]*.jpg")), 20) == paths[1400:1420]


def test_copies_of_one_picture_do_not_hide_the_others(detector):
    names = ["copy"] * 300 + [f"{i:05d}" for i in range(600)]
    store = Held(regions(falling(900), image_ids=names))
    assert len(answers(store, detector, Choice(), 20)) == 20


def test_below_the_threshold_no_more_is_fetched(detector):
    store = Held(regions(np.concatenate([np.full(5, 0.9), np.full(5000, -0.5)])))
    assert len(answers(store, detector, Choice(0.5), 20)) == 5
    assert store.fetched == [64]


@pytest.mark.parametrize("n_against", [100, 1000])
def test_regions_that_a_negative_rules_out_do_not_end_the_search(detector, n_against):
    against, good = regions(np.full(n_against, 0.6), second=0.7), regions(np.full(30, 0.5))
    store = Held(Regions.join([against, replace(good, image_id=good.image_id + "b", path=good.path + "b")]))
    negative = ExtraEmbeddings(torch.eye(DIM)[1:2], torch.tensor([0]), torch.zeros(1), ("text",))
    query = replace(QUERY, extras=negative)
    threshold = float(best_of_all(store, detector, query, Where(), Choice(), 30)[0][0][-1]) - 0.01
    found = answers(store, detector, Choice(threshold), 30, query)
    assert len(found) == 30 and all(path.endswith("b") for path in found)


def test_more_answers_than_the_index_gives_are_all_there(detector, monkeypatch):
    monkeypatch.setattr(ranking, "MOST_FETCH", 128)
    store = Held(regions(falling(500)))
    assert answers(store, detector, Choice(), 300) == [f"/{i:05d}.jpg" for i in range(300)]
    assert store.fetched == [128]


@pytest.mark.parametrize("n_queries", [1, 2, 17])
def test_a_region_has_one_score_whatever_is_scored_beside_it(detector, n_queries):
    rng = np.random.default_rng(0)
    rows = regions(np.zeros(129))
    embeds = rng.normal(size=(129, DIM))
    rows = replace(
        rows,
        embeds=(embeds / np.linalg.norm(embeds, axis=1, keepdims=True)).astype(np.float32),
        shift=rng.normal(-0.4, 0.1, 129).astype(np.float32),
        scale=rng.normal(8, 1, 129).astype(np.float32),
    )
    asked = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(n_queries, DIM))).float(), dim=-1)
    negatives = ExtraEmbeddings(asked[:1].flip(-1), torch.tensor([0]), torch.zeros(1), ("exemplar",))
    queries = QueryEmbeddings(asked, tuple(map(str, range(n_queries))), extras=negatives)
    together = score_rows(detector, rows, queries)
    for n in (1, 2, 3, 7, 64, 128):
        for first in range(0, 129 - n, n):
            part = slice(first, first + n)
            assert np.array_equal(score_rows(detector, rows[part], queries), together[part])
    for q in range(n_queries):
        assert np.array_equal(score_rows(detector, rows, one_query(queries, q))[:, 0], together[:, q])
    shuffled = rng.permutation(129)
    assert np.array_equal(score_rows(detector, rows[shuffled], queries), together[shuffled])


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
    assert score_rows(detector, rows, queries) == pytest.approx(expected, abs=1e-6)
