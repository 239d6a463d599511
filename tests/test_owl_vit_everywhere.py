"""What is built on a Detector does the same with OWL-ViT and OWLv2: queries, archives, commands, server and demo."""

import json
import sys

import numpy as np
import pytest
import torch
from http_client import ask
from owl_checkpoints import save_owl
from picture_files import encode, noise
from PIL import Image
from training_data import write_labelled, write_shapes

from owl_swin import Detector, Exemplar, Query, RegionIndex
from owl_swin.cli.main import main
from owl_swin.errors import ArchiveError, QueryError
from owl_swin.exemplar import combine
from owl_swin.formats import to_record
from owl_swin.index.store import RegionFilter

WIDE = (48, 96)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A checkpoint of each family."""
    root = tmp_path_factory.mktemp("models")
    for family in ("owlvit", "owlv2"):
        save_owl(root / family, family)
    return {family: root / family for family in ("owlvit", "owlv2")}


@pytest.fixture(scope="module", params=["owlvit", "owlv2"])
def detector(request, folders):
    return Detector.from_pretrained(folders[request.param])


@pytest.fixture
def owl_swin(monkeypatch, capsys):
    """Runs the command in this process: exit code, stdout, stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["owl-swin", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code or 0, *capsys.readouterr()

    return run


# --- Queries -------------------------------------------------------------------------------------------------------


def test_exemplars_texts_and_negatives_are_asked_together_and_across_pictures(detector, tmp_path):
    shown, other, picture = noise(60, 80), noise(40, 40, seed=2), noise(*WIDE, seed=3)
    boxes = [(10, 10, 50, 50), (0, 0, 30, 60), (40, 5, 79, 58)]
    exemplars = [Exemplar(shown, box) for box in boxes]
    one_by_one = torch.cat([detector.encode_queries([one]).query_embeds for one in exemplars])
    several = detector.encode_queries([Query("thing", exemplars=exemplars)])
    torch.testing.assert_close(several.query_embeds[0], combine(one_by_one))

    asked = detector.encode_queries(
        [
            Query("alone", exemplars=exemplars),
            Query("with text", texts=["a red mug"], exemplars=exemplars),
            Query("without", exemplars=exemplars, negatives=["a dog", Exemplar(other)]),
            "a red mug",
        ]
    )
    alone, joined, without, text = detector.score(detector.encode_image(picture), asked).T
    torch.testing.assert_close(joined, (alone + text) / 2)
    assert (without < alone).all()
    asked.save(tmp_path / "asked.safetensors")
    again = detector.load_queries(tmp_path / "asked.safetensors")
    assert detector.detect(picture, again, threshold=0.1) == detector.detect(picture, asked, threshold=0.1)


def test_an_owlv2_exemplar_is_the_most_object_like_patch_that_fits(folders):
    detector, picture, box = Detector.from_pretrained(folders["owlv2"]), noise(60, 80), (5.0, 5.0, 75.0, 55.0)
    embeddings = detector.encode_image(picture).embeddings
    boxes = detector.encode_image(picture).views[0].frame.from_image(torch.tensor(box))
    x, y, w, h = embeddings.pred_boxes.unbind(-1)
    bx, by, bw, bh = boxes.tolist()
    wide = ((x + w / 2).clamp(max=bx + bw / 2) - (x - w / 2).clamp(min=bx - bw / 2)).clamp(min=0)
    high = ((y + h / 2).clamp(max=by + bh / 2) - (y - h / 2).clamp(min=by - bh / 2)).clamp(min=0)
    iou = wide * high / (w * h + bw * bh - wide * high)
    fits = (iou >= 0.8 * iou.max()).nonzero()[:, 0]
    assert len(fits) > 1
    best = fits[embeddings.objectness_logits[fits].argmax()]
    made = detector.encode_queries([Exemplar(picture, box)]).query_embeds[0]
    torch.testing.assert_close(made, embeddings.class_embeds[best])
    # Without a box: the most object-like of all, as transformers does it.
    whole = detector.encode_queries([Exemplar(picture)]).query_embeds[0]
    torch.testing.assert_close(whole, embeddings.class_embeds[embeddings.objectness_logits.argmax()])


def test_without_objectness_and_a_box_an_exemplar_is_what_fills_its_picture(folders):
    detector, picture = Detector.from_pretrained(folders["owlvit"]), noise(60, 80)
    framed = detector.encode_queries([Exemplar(picture, (0, 0, 80, 60))])
    assert torch.equal(detector.encode_queries([Exemplar(picture)]).query_embeds, framed.query_embeds)


def test_queries_of_another_checkpoint_are_refused(folders, tmp_path):
    v1, v2 = (Detector.from_pretrained(folder) for folder in folders.values())
    v1.encode_queries(["a dog"]).save(tmp_path / "queries.safetensors")
    with pytest.raises(QueryError, match="made by another model"):
        v2.load_queries(tmp_path / "queries.safetensors")


# --- Maps ----------------------------------------------------------------------------------------------------------


def test_a_map_covers_the_picture_and_no_padding(folders):
    """Of a square of 4 x 4 patches, a picture of 2:1 fills the two upper rows; one of 8:5 two and a half."""
    v1, v2 = (Detector.from_pretrained(folder) for folder in folders.values())
    for image_hw, grid_hw in [((48, 96), (2, 4)), ((96, 48), (4, 2)), ((50, 80), (3, 4)), ((64, 64), (4, 4))]:
        picture = noise(*image_hw)
        assert v1.similarity(picture, ["a dog"]).shape == (1, 4, 4)
        seen = v2.similarity(picture, ["a dog", "a cat"])
        assert seen.shape == (2, *grid_hw)
        if 50 not in image_hw:
            encoded = v2.encode_image(picture)
            scores = v2.score(encoded, v2.encode_queries(["a dog", "a cat"])).sigmoid().T.view(2, 4, 4)
            torch.testing.assert_close(seen, scores[:, : grid_hw[0], : grid_hw[1]])
    assert v2.similarity(noise(50, 80)).shape == (1, 3, 4)
    assert v2.encode_image(noise(50, 80)).views[0].patches_px(torch.tensor([0, 9, 15])).tolist() == [
        pytest.approx([0, 0, 20, 20]),
        pytest.approx([20, 40, 40, 50]),
        pytest.approx([60, 50, 80, 50]),
    ]


def test_tiles_are_frames_of_the_family_too(folders):
    picture, crops = noise(100, 150), [(10, 20, 80, 60), (90, 0, 150, 90)]
    for detector in [
        *(Detector.from_pretrained(folder) for folder in folders.values()),
        Detector.from_pretrained(folders["owlv2"], content_only=True),
    ]:
        encoded = detector.encode_image(picture, tiles=crops)
        queries = detector.encode_queries(["a dog"])
        for view, crop in zip(encoded.views[1:], crops, strict=True):
            alone = detector.encode_image(picture.crop(crop))
            torch.testing.assert_close(view.embeddings.class_embeds, alone.embeddings.class_embeds)
            boxes = view.frame.to_image(view.embeddings.pred_boxes)
            shift = torch.tensor([crop[0], crop[1]] * 2)
            if detector.spec.family == "owlvit":  # whose frames have no padding, so that boxes may reach past a seam
                boxes = boxes.clamp(min=torch.tensor(crop[:2] * 2)).minimum(torch.tensor(crop[2:] * 2))
            torch.testing.assert_close(boxes, alone.boxes_px() + shift, atol=0.01, rtol=0)
        found = detector.detect(picture, queries, threshold=0.0, tiles=crops)
        assert len(found) > 0


# --- Archives ------------------------------------------------------------------------------------------------------


def test_an_archive_is_searched_by_the_norm_of_its_model_and_answers_as_detect(detector, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(4):
        noise(40 + 16 * i, 80, seed=i).save(photos / f"{i}.png")
    uri, spec = tmp_path / "photos.lance", detector.spec
    with RegionIndex.open(uri, detector, create=True) as index:
        index.add_folder(photos)
        card = index._store.card()
        assert card.search_norm == spec.search_norm
        regions = next(iter(index._store.scan(RegionFilter())))
        lengths = np.linalg.norm(regions.vectors(card.search_norm), axis=1)
        assert (lengths < 1.01 * card.search_norm).mean() > 0.95
        found = index.search("a red mug", limit=4)
        assert len(found) == 4
        for match in found:
            seen = detector.detect(photos / match.path.rpartition("/")[2], ["a red mug"], threshold=0.0, nms_iou=None)
            assert (seen.scores - match.score).abs().min() < 1e-3
        shown = index.search(Exemplar(photos / "2.png", (5, 5, 60, 60)), limit=3)
        assert len(shown) == 3


def test_an_archive_of_one_family_is_refused_for_another(folders, tmp_path):
    v1, v2 = (Detector.from_pretrained(folder) for folder in folders.values())
    RegionIndex.open(tmp_path / "a.lance", v1, create=True).close()
    with pytest.raises(ArchiveError, match=r"its regions are of the model 'owlvit' .*, not of 'owlv2'"):
        RegionIndex.open(tmp_path / "a.lance", v2)


# --- Programs ------------------------------------------------------------------------------------------------------


def test_every_command_takes_the_folder(owl_swin, folders, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    noise(*WIDE).save(photos / "wide.png")
    for family, folder in folders.items():
        model = ("--model", folder)
        code, out, err = owl_swin(
            "detect", photos / "wide.png", "--query", "a dog", "--threshold", 0.1, "--format", "jsonl", *model
        )
        assert code == 0, err
        assert json.loads(out.splitlines()[0])["width"] == WIDE[1]
        code, cut, err = owl_swin("detect", photos / "wide.png", "--query", "a dog", "--content-only", *model)
        assert code == 0, err
        whole = owl_swin("detect", photos / "wide.png", "--query", "a dog", *model)[1]
        assert (cut == whole) == (family == "owlvit")  # which pads nothing
        archive = tmp_path / f"{family}.lance"
        assert owl_swin("index", photos, "--to", archive, "--content-only", *model)[0] == 0
        code, out, err = owl_swin("search", archive, "--query", "a dog", "--format", "jsonl", *model)
        assert code == 0, err
        assert "wide.png" in out
        code, out, err = owl_swin("info", folder, "--format", "json")
        assert code == 0, err
        about = json.loads(out)
        assert (about["name"], about["config"]["family"]) == (family, family)
        assert about["bytes"] == (folder / "model.safetensors").stat().st_size
        assert f"{family}: ViT 32 channels" in owl_swin("info", folder)[1]
        drawn = tmp_path / family
        code, _, err = owl_swin("detect", photos / "wide.png", "--explain", "--save", drawn, "--threshold", 0.1, *model)
        assert code == 0, err
        assert Image.open(next(drawn.iterdir())).size


def test_evaluations_take_the_folder(owl_swin, folders, tmp_path):
    shapes = write_shapes(tmp_path / "shapes", 3)
    given = ("--annotations", shapes, "--images", shapes.parent / "images")
    labelled = write_labelled(tmp_path / "labelled")
    for family, folder in folders.items():
        code, out, err = owl_swin("eval", "detect", *given, "--model", folder)
        assert code == 0, err
        assert 0 <= json.loads(out)["AP50"] <= 100
        code, out, err = owl_swin(
            "eval", "classify", "--annotations", labelled, "--images", labelled.parent / "images", "--model", folder
        )
        if family == "owlvit":
            assert code == 0, err
            assert 0 <= json.loads(out)["top1"] <= 100
        else:
            assert (code, err.count("\n")) == (2, 1)
            assert "never trained to compare whole pictures" in err


@pytest.mark.parametrize("content_only", [False, True])
def test_a_photo_that_the_server_decodes_at_a_part_of_its_size_keeps_its_pixels(folders, content_only):
    from owl_swin.server.pictures import read_picture

    detector = Detector.from_pretrained(folders["owlv2"], content_only=content_only)
    file = encode(noise(901, 1603), "JPEG")
    (frame,) = read_picture(detector, file, "a.jpg", max_pixels=10**7, key=b"").prepared.frames
    (whole,) = detector.prepare(file).frames
    everything = torch.tensor([[0.5, 0.25, 1.0, 0.5], [0.1, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(frame.to_image(everything), whole.to_image(everything))


def test_the_server_answers_as_the_detector_and_has_the_demo(detector):
    from owl_swin.server.app import build_demo, create_app
    from owl_swin.server.settings import ServerSettings

    app = create_app(detector, ServerSettings(max_batch=1), demo=build_demo)
    try:
        file = encode(noise(*WIDE))
        answer = ask(
            app, "POST", "/v1/detect", files=[("images", ("a.png", file))], data={"query": ["dog"], "threshold": "0.1"}
        )
        assert answer.status_code == 200, answer.text
        found = detector.detect(file, ["dog"], threshold=0.1)
        assert len(found) > 0
        assert answer.json() == {"results": [to_record("a.png", found)]}
        page = ask(app, "GET", "/")
        assert page.status_code == 200
        assert "Inside Swin" not in page.text
    finally:
        app.state.serving.close()
