"""Several teachers and views as one: fused boxes and scores, agreement, and the way back from a mirror."""

import json

import pytest
import torch
from picture_files import encode, noise
from scripted_teacher import BOX, DOG_AND_CAT, Scripted, five_pictures, labels_of

from owl_swin.detections import Detections
from owl_swin.errors import DataError, QueryError
from owl_swin.labelling.run import LabelOptions, label_pictures
from owl_swin.teachers.detector import DetectorTeacher
from owl_swin.teachers.ensemble import Ensemble
from owl_swin.teachers.fusing import fuse


def found(*rows) -> Detections:
    """Of rows (label, score, box)."""
    boxes = torch.tensor([box for _, _, box in rows], dtype=torch.float32).reshape(-1, 4)
    labels = torch.tensor([label for label, _, _ in rows], dtype=torch.long)
    scores = torch.tensor([score for _, score, _ in rows])
    return Detections(boxes, scores, labels, ("dog", "cat"), (50, 50), torch.zeros(len(rows), dtype=torch.long))


def rows(answer: Detections):
    return [(one.query, round(one.score, 4), [round(side, 3) for side in one.box_xyxy]) for one in answer]


A, NEAR, FAR = [0, 0, 10, 10], [1, 0, 11, 10], [30, 30, 40, 40]


@pytest.mark.parametrize(
    "answers, expected",
    [
        ([found(), found()], []),
        ([found((0, 0.8, A)), found()], [(0, 0.4, A)]),
        ([found((0, 0.8, A)), found((0, 0.4, A))], [(0, 0.6, A)]),
        # (0.75 * 0 + 0.25 * 1) / 1 = 0.25
        ([found((0, 0.75, A)), found((0, 0.25, NEAR))], [(0, 0.5, [0.25, 0, 10.25, 10])]),
        ([found((0, 0.8, A)), found((1, 0.4, A))], [(0, 0.4, A), (1, 0.2, A)]),
        ([found((0, 0.8, A)), found((0, 0.6, FAR))], [(0, 0.4, A), (0, 0.3, FAR)]),
        # two of one answer are one thing, found by one of two
        ([found((0, 0.8, A), (0, 0.4, A)), found()], [(0, 0.3, A)]),
        ([found((0, 0.0, A)), found((0, 0.0, A))], [(0, 0.0, A)]),
    ],
)
def test_boxes_of_one_thing_are_fused(answers, expected):
    assert rows(fuse(answers, [0, 1])) == expected


def test_what_too_few_teachers_have_found_is_left_out():
    answers = [found((0, 0.8, A), (1, 0.9, FAR)), found((0, 0.4, NEAR)), found((1, 0.9, FAR))]
    assert [row[0] for row in rows(fuse(answers, [0, 1, 2], agree=2))] == [1, 0]
    # the third answer is the first teacher's too, of another view
    assert [row[0] for row in rows(fuse(answers, [0, 1, 0], agree=2))] == [0]
    assert rows(fuse(answers, [0, 1, 2], agree=3)) == []


def test_teachers_that_agree_label_pictures(tmp_path):
    photos = five_pictures(tmp_path / "photos")
    one = Scripted({40: [(0, 0.9, BOX), (1, 0.8, (20, 20, 30, 30))], 41: [(0, 0.9, BOX)]}, "one")
    other = Scripted({40: [(0, 0.7, BOX)], 42: [(0, 0.9, BOX)]}, "other")
    report = label_pictures(photos, tmp_path / "l.json", Ensemble([one, other], agree=2), DOG_AND_CAT)
    assert (report.kept, report.boxes) == (1, 1)
    made = labels_of(tmp_path / "l.json")
    assert [(a["category_id"], a["bbox"], a["score"]) for a in made["annotations"]] == [(1, [2, 3, 10, 20], 0.8)]
    assert made["info"]["teacher"]["teachers"] == [{"name": "one"}, {"name": "other"}]
    # Any of them: a thing that one of two has found has half its score, which has to reach the threshold.
    label_pictures(photos, tmp_path / "any.json", Ensemble([one, other]), DOG_AND_CAT, LabelOptions(0.42, 0.42))
    scores = [(a["image_id"], a["score"]) for a in labels_of(tmp_path / "any.json")["annotations"]]
    assert scores == [(1, 0.8), (2, 0.45), (3, 0.45)]


def test_a_mirrored_view_comes_back_the_right_way_round():
    class Left:
        """Finds the left quarter of whatever it is shown."""

        name, identity = "left", {}

        def find(self, pictures, texts, threshold):
            return [found((0, 0.5, (0, 0, p.width / 4, p.height)))[:1] for p in pictures]

        def at_scale(self, scale):
            return self

    (answer,) = Ensemble([Left()], flip=True).find([noise(50, 50)], [("dog", "cat")], 0.0)
    assert rows(answer) == [(0, 0.25, [0, 0, 12.5, 50]), (0, 0.25, [37.5, 0, 50, 50])]


def test_views_of_a_detector_are_its_own_answers_fused(detector):
    picture, texts = noise(60, 90), ("a dog", "a cat")
    teacher = DetectorTeacher(detector)
    (answer,) = Ensemble([teacher], scales=[1, 1.5]).find([picture], [texts], 0.3)
    large = detector.with_image_size(144)
    parts = [one.detect(picture, list(texts), threshold=0.3) for one in (detector, large)]
    expected = fuse(parts, [0, 0])
    expected = expected[expected.scores >= 0.3]
    assert len(answer) > 0
    assert torch.equal(answer.labels, expected.labels) and torch.allclose(answer.boxes, expected.boxes, atol=1e-3)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"agree": 3}, "must agree, from 1 to the 2 given, got 3"),
        ({"agree": 0}, "must agree, from 1 to the 2 given, got 0"),
        ({"scales": []}, "scales must be different numbers"),
        ({"scales": [1, 1]}, "scales must be different numbers"),
        ({"scales": [float("nan")]}, "scales must be different numbers"),
    ],
)
def test_an_ensemble_that_means_nothing_is_refused(settings, said):
    with pytest.raises(QueryError, match=said):
        Ensemble([Scripted({}), Scripted({})], **settings)


def test_the_teacher_that_is_wrong_is_named(tmp_path):
    photo = tmp_path / "p.png"
    photo.write_bytes(encode(noise(30, 40)))
    wrong = Scripted({40: [(0, float("nan"), BOX)]})
    wrong.name = "the wrong one"
    with pytest.raises(DataError, match=r"p\.png: the teacher the wrong one gave a score of nan"):
        label_pictures([photo], tmp_path / "l.json", Ensemble([Scripted({}), wrong]), DOG_AND_CAT)
    assert json.loads((tmp_path / "l.json.journal").read_text().splitlines()[0])["settings"]["threshold"] == 0.1
