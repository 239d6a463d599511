"""What is looked for in pictures to be labelled: names of a list, and of captions."""

import json

import pytest
from scripted_teacher import BOX, ONE_EACH, Scripted, five_pictures, labels_of

from owl_swin.data.config import DataConfig
from owl_swin.data.scenes import load_scenes
from owl_swin.errors import DataError, QueryError
from owl_swin.labelling.captions import captions_of, n_grams
from owl_swin.labelling.names import LabelSpace, label_names, read_label_names
from owl_swin.labelling.run import label_pictures


@pytest.fixture
def photos(tmp_path):
    return five_pictures(tmp_path / "photos")


def test_names_of_a_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeff# Things\ndog\r\n\n  #cat\n traffic_light \ndog\nsofa, couch\nĐèn\n", encoding="utf-8")
    assert [(one.name, one.texts) for one in read_label_names(path)] == [
        ("dog", ("dog",)),
        ("traffic light", ("traffic light",)),
        ("sofa, couch", ("sofa", "couch")),
        ("Đèn", ("Đèn",)),
    ]
    for content, said in (
        (b"\n , \n", "holds no name"),
        (b"# dog", "holds no name"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(QueryError, match=said):
            read_label_names(path)
    with pytest.raises(QueryError, match=r"gone.txt: expected a file with a name on each line \(No such file"):
        read_label_names(tmp_path / "gone.txt")


# --- Names of captions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "captions, names",
    [
        ([], []),
        (["a photo of the"], []),
        (["A red mug"], ["red", "mug", "red mug"]),
        (["The cat on the mat, 2 dogs!"], ["cat", "mat", "dogs", "cat on the mat"]),
        (["see www.shop.com/x?y=1 or me@shop.org: Mütze"], ["see", "mütze"]),
        (["a jack-o'-lantern", "jack-o'-lantern photo"], ["jack-o'-lantern"]),
        (["con mèo\nđen"], ["con", "mèo", "đen", "con mèo"]),
    ],
)
def test_n_grams_name_things(captions, names):
    assert list(n_grams(captions)) == names


def test_n_grams_have_up_to_ten_words_and_are_not_endless():
    words = [f"x{letter}" for letter in "abcdefghijkl"]
    grams = n_grams([" ".join(words)])
    assert len(grams) == sum(12 - n + 1 for n in range(1, 11)) and max(len(gram.split()) for gram in grams) == 10
    assert n_grams([" ".join(words)], most_words=2, most_names=13) == (*words, "xa xb")


def test_captions_are_found_in_every_form(tmp_path, photos):
    texts = {"40.png": "a dog", "süd/44.png": "two cats"}
    rows = [{"path": name, "caption": text} for name, text in texts.items()]
    (tmp_path / "c.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.csv").write_text("path,caption\n" + "".join(f"{name},{text}\n" for name, text in texts.items()))
    coco = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(texts)],
        "annotations": [{"image_id": i, "caption": text} for i, text in enumerate(texts.values())],
    }
    (tmp_path / "c.json").write_text(json.dumps(coco))
    for name, text in texts.items():
        (tmp_path / "photos" / name).with_suffix(".txt").write_text(text + "\n")
    pictures, root = [str(path) for path in photos], str(tmp_path / "photos")
    expected = {pictures[0]: ("a dog",), pictures[4]: ("two cats",)}
    for where in ("c.jsonl", "c.csv", "c.json", "photos"):
        assert captions_of(tmp_path / where, pictures, root) == expected
    (tmp_path / "photos" / "c.csv").write_text((tmp_path / "c.csv").read_text())
    assert captions_of(tmp_path / "photos" / "c.csv", pictures) == expected


def test_text_files_of_a_folder_are_those_at_the_pictures_place_in_it(tmp_path, monkeypatch):
    pictures = [str(tmp_path / "ph" / name) for name in ("a.jpg", "x/y/a.jpg", "x/b.jpg")]
    for name, text in (("a", "a red door"), ("x/b", "a bird"), ("b", "another bird")):
        path = tmp_path / "caps" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "ph").mkdir()
    (tmp_path / "ph" / "a.txt").write_text("0 0.5 0.5 0.2 0.2")  # labels of the picture beside it
    expected = {pictures[0]: ("a red door",), pictures[2]: ("a bird",)}
    for root in (None, str(tmp_path / "ph")):
        assert captions_of(tmp_path / "caps", pictures, root) == expected
    monkeypatch.chdir(tmp_path)
    (tmp_path / "caps" / "ph" / "x").mkdir(parents=True)
    (tmp_path / "caps" / "ph" / "x" / "b.txt").write_text("a mirrored bird")
    assert captions_of("caps", ["ph/x/b.jpg"]) == {"ph/x/b.jpg": ("a mirrored bird",)}
    (tmp_path / "caps" / "x" / "b.txt").unlink()  # the only picture called so
    assert captions_of(tmp_path / "caps", pictures)[pictures[2]] == ("another bird",)


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("c.csv", "path,caption\nother.png,a dog\n", "has a caption of none of 5 pictures"),
        ("c.csv", "a,b\n1,2\n", "names no columns 'path' and 'caption'"),
        ("c.json", '{"images": [{"id": 1}], "annotations": [], "categories": []}', "no captions; expected COCO"),
        ("c.json", "{", "cannot be read as a data set"),
        ("c.xml", "", "no captions; expected COCO captions"),
        ("gone.csv", None, "cannot be read"),
    ],
)
def test_captions_that_cannot_be_used_are_refused(tmp_path, photos, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said):
        captions_of(tmp_path / name, [str(path) for path in photos], str(tmp_path / "photos"))


def test_names_of_captions_are_for_their_own_picture(tmp_path, photos):
    own = {str(photos[0]): ("red dog", "dog"), str(photos[1]): ("bird", "mug")}
    script = {40: [(2, 0.6, BOX), (0, 0.9, BOX)], 41: [(3, 0.8, BOX)], 42: [(0, 0.5, BOX)]}
    teacher, space = Scripted(script), LabelSpace(label_names(["dog", "cat"]), own)
    label_pictures(photos[:3], tmp_path / "l.json", teacher, space)
    assert teacher.asked == [("dog", "cat", "red dog"), ("dog", "cat", "bird", "mug"), ("dog", "cat")]
    made = labels_of(tmp_path / "l.json")
    ids = {category["name"]: category["id"] for category in made["categories"]}
    assert list(ids) == ["dog", "cat", "red dog", "mug"]  # nobody has seen a bird
    found = [(a["image_id"], a["category_id"]) for a in made["annotations"]]
    assert found == [(1, ids["dog"]), (1, ids["red dog"]), (2, ids["mug"]), (3, ids["dog"])]
    negatives = [image["neg_category_ids"] for image in made["images"]]
    assert negatives == [[ids["cat"]], [ids["dog"], ids["cat"]], [ids["cat"]]]
    read = load_scenes(DataConfig("lvis", str(tmp_path / "l.json"), images=str(tmp_path / "photos"), ignore_below=0.7))
    assert [scene.absent(4).tolist() for scene in read.scenes] == [[1], [0, 1], [1]]
    assert [scene.vague_labels.tolist() for scene in read.scenes] == [[2], [], [0]]


def test_captions_alone_and_other_captions_are_asked_again(tmp_path, photos):
    for words, seen in (({0: ("mug",), 1: ("dog",)}, [40, 41]), ({0: ("mug",), 1: ("cat",)}, [41])):
        teacher = Scripted(ONE_EACH)
        space = LabelSpace(own={str(photos[i]): names for i, names in words.items()})
        label_pictures(photos[:3], tmp_path / "l.json", teacher, space)
        assert teacher.seen == seen  # and the third, of which nothing is asked, is not shown
    assert [image["file_name"] for image in labels_of(tmp_path / "l.json")["images"]] == ["40.png", "41.png"]
