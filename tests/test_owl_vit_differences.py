"""Where transformers is wrong about OWL-ViT and OWLv2, and what a Detector answers there."""

from types import SimpleNamespace

import pytest
import torch
from owl_checkpoints import save_clip_tokenizer, save_owl
from picture_files import noise

from owl_swin.boxes import cxcywh_to_xyxy
from owl_swin.detector import Detector
from owl_swin.exemplar import Exemplar

WIDE = (40, 90)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Our detector, transformers' model and its processor, of one OWLv2 checkpoint."""
    import transformers

    folder = tmp_path_factory.mktemp("owl")
    theirs = save_owl(folder, "owlv2")
    save_clip_tokenizer(folder)
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, pad_token="!", model_max_length=16)
    images = transformers.Owlv2ImageProcessor(size={"height": 64, "width": 64})
    return Detector.from_pretrained(folder), theirs, transformers.Owlv2Processor(images, tokenizer)


def test_a_query_that_only_fills_up_a_ragged_list_never_answers(both):
    detector, theirs, processor = both
    pictures = [noise(*WIDE, seed=seed) for seed in range(2)]
    ragged = [["a red mug", "a dog", "a cat", "a lamp"], ["a red mug"]]
    inputs = processor(text=ragged, images=pictures, return_tensors="pt")
    answers = processor.image_processor.post_process_object_detection(theirs(**inputs), 0.0)
    assert (answers[1]["labels"] > 0).any()  # of a list that has one query

    found = detector.detect_batch(pictures, ragged, threshold=0.0, nms_iou=None)
    assert found[1].names == ("a red mug",)
    assert set(found[1].labels.tolist()) == {0}
    alone = detector.detect(pictures[1], ragged[1], threshold=0.0, nms_iou=None)
    torch.testing.assert_close(found[1].scores, alone.scores)
    torch.testing.assert_close(found[1].boxes, alone.boxes)


def test_a_patch_may_carry_several_labels(both):
    detector, theirs, processor = both
    picture, texts = noise(*WIDE), ["a dog", "an animal"]
    outputs = theirs(**processor(text=[texts], images=picture, return_tensors="pt"))
    scores = outputs.logits[0].sigmoid()
    threshold = float(scores.median())
    answers = processor.image_processor.post_process_object_detection(outputs, threshold)[0]
    assert len(answers["labels"]) == (scores > threshold).any(1).sum() < (scores > threshold).sum()

    found = detector.detect(picture, texts, threshold=threshold, nms_iou=None)
    assert len(found) > len(found.patches.unique())


def test_boxes_stay_in_the_picture(both):
    detector, theirs, processor = both
    picture = noise(*WIDE)
    outputs = theirs(**processor(text=[["a dog"]], images=picture, return_tensors="pt"))
    boxes = processor.image_processor.post_process_object_detection(outputs, 0.0, [WIDE])[0]["boxes"]
    assert boxes[:, 3].max() > WIDE[0]
    assert boxes[:, 2].max() > WIDE[1]

    found = detector.detect(picture, ["a dog"], threshold=0.0, nms_iou=None)
    assert found.boxes.min() >= 0
    assert found.boxes[:, 3].max() <= WIDE[0]
    assert found.boxes[:, 2].max() <= WIDE[1]


def test_scores_of_an_exemplar_are_absolute(both):
    detector, theirs, processor = both
    shown, picture = noise(50, 70, seed=5), noise(*WIDE, seed=6)
    inputs = processor(query_images=shown, images=picture, return_tensors="pt")
    outputs = theirs.image_guided_detection(**inputs)
    theirs_best = processor.image_processor.post_process_image_guided_detection(outputs, 0.0)[0]["scores"].max()
    truly_best = outputs.logits.sigmoid().max()
    assert theirs_best > 0.99 > truly_best + 0.05

    encoded = detector.encode_image(picture)
    scores = detector.score(encoded, detector.encode_queries([Exemplar(shown)])).sigmoid()
    torch.testing.assert_close(scores, outputs.logits[0].sigmoid(), atol=1e-4, rtol=0)


def test_a_picture_without_an_answer_has_an_empty_one(both):
    detector, _, processor = both
    boxes = torch.full((2, 3, 4), 0.5)
    logits = torch.tensor([[[-200.0]] * 3, [[2.0]] * 3])
    outputs = SimpleNamespace(logits=logits, target_pred_boxes=boxes)
    answers = processor.image_processor.post_process_image_guided_detection(outputs, 0.5)
    assert len(answers) == 1  # for two pictures, and which of them nobody knows

    pictures = [noise(30, 30, seed=seed) for seed in range(3)]
    found = detector.detect_batch(pictures, [Exemplar(noise(50, 70))], threshold=1.0)
    assert [len(one) for one in found] == [0, 0, 0]


def test_a_text_of_more_than_16_tokens_is_cut_and_not_refused(both, caplog):
    detector, theirs, processor = both
    picture, text = noise(*WIDE), "a very long text " * 10
    with pytest.raises((RuntimeError, ValueError, IndexError)):
        theirs(**processor(text=[[text]], images=picture, return_tensors="pt"))

    assert len(detector.detect(picture, [text], threshold=0.0)) > 0
    assert "longer than 16 tokens and was cut" in caplog.text


def test_an_exemplar_is_the_patch_whose_box_fits_and_that_is_least_like_the_rest(tmp_path):
    theirs = save_owl(tmp_path, "owlvit")
    detector = Detector.from_pretrained(tmp_path)
    picture, box = noise(60, 80), (10.0, 15.0, 50.0, 55.0)
    embeddings = detector.encode_image(picture).embeddings
    boxes = cxcywh_to_xyxy(embeddings.pred_boxes).clamp(0, 1) * torch.tensor([80, 60, 80, 60])
    x0, y0, x1, y1 = boxes.unbind(-1)
    overlap = (x1.clamp(max=50) - x0.clamp(min=10)).clamp(min=0) * (y1.clamp(max=55) - y0.clamp(min=15)).clamp(min=0)
    iou = overlap / ((x1 - x0) * (y1 - y0) + 1600 - overlap)
    candidates = (iou >= 0.8 * iou.max()).nonzero()[:, 0]
    embeds = embeddings.class_embeds
    expected = embeds[candidates[(embeds[candidates] @ embeds.mean(0)).argmin()]]
    made = detector.encode_queries([Exemplar(picture, box)])
    torch.testing.assert_close(made.query_embeds[0], expected)
    assert theirs.config.model_type == "owlvit"
