"""Recall of pictures and captions on cases whose order is known, and the forms that captions come in."""

import json
from types import SimpleNamespace

import pytest
import torch
from training_data import COLOURS, NAMES, one_shape, write_captions, write_json

from owl_swin.errors import DataError
from owl_swin.evaluation.retrieval import evaluate_retrieval, retrieval_ranks
from owl_swin.image import open_image


@pytest.mark.parametrize(
    "similarity, owner, to_text, to_image",
    [
        ([[3, 1], [1, 3]], [0, 1], [0, 0], [0, 0]),
        ([[1, 3], [3, 1]], [0, 1], [1, 1], [1, 1]),
        ([[2, 2], [2, 2]], [0, 1], [0.5, 0.5], [0.5, 0.5]),  # nobody wins by saying the same of everything
        ([[1, 5, 9], [4, 4, 4]], [0, 0, 1], [1, 1], [1, 0, 1]),
        ([[1], [5]], [0], [0], [1]),  # the second picture has no caption
    ],
)
def test_ranks_of_known_cases(similarity, owner, to_text, to_image):
    ranks = retrieval_ranks(torch.tensor(similarity, dtype=torch.float), torch.tensor(owner))
    assert ranks["text_to_image"].tolist() == to_image
    if similarity != [[1, 5, 9], [4, 4, 4]]:
        assert ranks["image_to_text"].tolist() == to_text
    else:  # the second picture's caption ties with both of the first's
        assert ranks["image_to_text"].tolist() == [1, 1]


class FakeAligner:
    """Texts and pictures by their colour."""

    spec = SimpleNamespace(has_image_embed=True)

    def encode_queries(self, texts):
        return SimpleNamespace(
            query_embeds=torch.tensor([[float(colour in text) for colour in COLOURS] for text in texts])
        )

    def encode_images(self, images, *, batch_size, masks=False):
        return [self.encode_image(image) for image in images]

    def encode_image(self, image):
        picture = open_image(image)
        middle = torch.tensor(picture.getpixel((picture.width // 2, picture.height // 2)), dtype=torch.float)
        away = torch.tensor([float((middle - torch.tensor(c)).abs().sum()) for c in COLOURS.values()])
        embed = torch.nn.functional.one_hot(away.argmin(), len(COLOURS)).float()
        return SimpleNamespace(embeddings=SimpleNamespace(image_embed=embed))


def test_pictures_and_captions_of_four_colours_find_one_another(tmp_path):
    result = evaluate_retrieval(FakeAligner(), write_captions(tmp_path / "tars", 4, split="test"))
    assert result["n_images"] == 4 and result["n_captions"] == 8
    # Of two captions of a picture that tie for the best, either will do; a caption has one picture.
    assert result["image_to_text_r1"] == result["text_to_image_r1"] == result["image_to_text_r10"] == 100
    assert result["ci95_image_to_text_r1"] == result["ci95_text_to_image_r10"] == [100.0, 100.0]


def test_of_two_pictures_alike_half_is_lost(tmp_path):
    result = evaluate_retrieval(FakeAligner(), write_captions(tmp_path / "tars", 8, split="test"))
    assert result["text_to_image_r1"] == 100  # a tie of two counts half a place: within the first
    assert result["image_to_text_r1"] == 0 and result["image_to_text_r5"] == 100  # a tie with two captions: one place


def test_a_captions_file_with_a_folder(tmp_path):
    for i, name in enumerate(NAMES):
        one_shape(name).save(tmp_path / f"{i}.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    path = write_json(
        tmp_path / "captions.json",
        {
            "images": [{"id": 10 + i, "file_name": f"{i}.png"} for i in range(4)],
            "annotations": [{"image_id": 10 + i, "caption": f"a {name}"} for i, name in enumerate(NAMES)],
        },
    )
    result = evaluate_retrieval(FakeAligner(), path, tmp_path)
    assert result["n_images"] == result["n_captions"] == 3 and result["text_to_image_r1"] == 100
    assert len(result["broken"]) == 1 and "2.png" in result["broken"][0]
    with pytest.raises(DataError, match="--images"):
        evaluate_retrieval(FakeAligner(), path)


def test_a_picture_without_captions_is_there_to_be_mistaken(tmp_path):
    for i in range(2):
        one_shape(NAMES[0]).save(tmp_path / f"{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(2)],
        "annotations": [{"image_id": 1, "caption": NAMES[0]}],
    }
    result = evaluate_retrieval(FakeAligner(), write_json(tmp_path / "c.json", content), tmp_path)
    assert result["n_images"] == 2 and result["n_captions"] == 1
    assert result["image_to_text_r1"] == result["text_to_image_r1"] == 100


@pytest.mark.parametrize("n", [0, 1])
def test_sets_of_no_and_one_picture(tmp_path, n):
    result = evaluate_retrieval(FakeAligner(), write_captions(tmp_path / "tars", n, split="test"))
    assert result["n_images"] == n and result["text_to_image_r1"] == (100 if n else None)
    assert result["ci95_image_to_text_r1"] == ([100.0, 100.0] if n else None)


def test_a_split_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no test\*\.tar"):
        evaluate_retrieval(FakeAligner(), write_captions(tmp_path / "tars", 1))


def test_a_damaged_tar_gets_one_sentence(tmp_path):
    (tmp_path / "test-0.tar").write_bytes(b"no tar" * 100)
    with pytest.raises(DataError, match=r"test-0\.tar: not a whole tar file"):
        evaluate_retrieval(FakeAligner(), tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"images": [], "annotations": [{}]}', '{"annotations": [{"image_id": 1, "caption": 3}]}'],
)
def test_a_file_of_another_form_gets_one_sentence(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"c\.json: not a"):
        evaluate_retrieval(FakeAligner(), path, tmp_path)


def test_a_real_detector_is_asked(tmp_path, detector):
    result = evaluate_retrieval(detector, write_captions(tmp_path / "tars", 6, split="val"), split="val", draws=5)
    assert 0 <= result["text_to_image_r5"] <= 100
    json.dumps(result.to_json())
