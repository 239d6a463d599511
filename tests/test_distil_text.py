"""Distillation of a sentence encoder into the text tower, with a teacher that knows words by their letters."""

import json
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch.testing import assert_close
from training_data import NAMES, write_captions, write_model

from owl_swin.config import ModelConfig, from_mapping, read_toml
from owl_swin.data.captions import tar_captions
from owl_swin.data.wordnet import wordnet_nouns
from owl_swin.errors import CheckpointError, ConfigError, DataError
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.models.text import TextEncoder
from owl_swin.tokenizer import get_tokenizer
from owl_swin.training import sentences
from owl_swin.training.distil_text import distil
from owl_swin.training.initial import load_init
from owl_swin.training.sentences import principal_directions, teacher_embeddings
from owl_swin.training.tasks.text import DistilConfig, _by_length, distil_loss

DIMENSIONS = 48

# Lines as WordNet writes them: offset, lexicographer file, type, number of words (hex), words, pointers | gloss.
LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by Princeton University under the  \n"
DATA_NOUN = (
    LICENCE
    + "02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 002 @ 02083346 n 0000 ~ 01322604 n 0000 | a pet  \n"
    + "02121620 05 n 02 cat 0 true_cat 0 001 @ 02120997 n 0000 | feline mammal with a | in its gloss  \n"
    + "03147509 06 n 01 cup 0 001 @ 04381994 n 0000 | a small open container  \n"
    + "15113229 28 n 02 time_period 0 period 2 001 @ 00033615 n 0000 | an amount of time  \n"
    + "10023039 18 n 01 dog 1 001 @ 09972010 n 0000 | a dull unattractive person  \n"
    + "00017222 03 n 0a plant 0 b 0 c 0 d 0 e 0 f 0 g 0 h 0 i 0 j 0 000 | ten words, counted in hex  \n"
)
CNTLIST_REV = "dog%1:05:00:: 1 42\ndog%1:18:01:: 4 2\ndog%2:38:00:: 1 500\nperiod%1:28:00:: 1 7\ncat%1:05:00:: 1 18\n"


@pytest.fixture
def wordnet(tmp_path):
    folder = tmp_path / "wordnet"
    folder.mkdir()
    (folder / "data.noun").write_text(DATA_NOUN)
    (folder / "cntlist.rev").write_text(CNTLIST_REV)
    return folder


@cache
def word_vector(word):
    return torch.from_numpy(np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIMENSIONS)).float()


@cache
def text_vector(text):
    return F.normalize(sum(map(word_vector, text.lower().split()), torch.zeros(DIMENSIONS)), dim=0)


def letter_teacher(folder, texts):
    """Unit vectors that depend on nothing but the words of a text."""
    return torch.stack([text_vector(text) for text in texts])


@pytest.fixture
def settings(tmp_path, wordnet, monkeypatch):
    monkeypatch.setattr(sentences, "teacher_embeddings", letter_teacher)
    return {
        "model": write_model(tmp_path)["model"],
        "teacher": "letters",
        "wordnet": str(wordnet),
        "output": str(tmp_path / "out"),
        "phrases": 60,
        "steps": 30,
        "batch_size": 32,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
    }


def run(settings):
    return distil(from_mapping(DistilConfig, settings))


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


# --- What is distilled ---------------------------------------------------------------------------------------------


def test_nouns_and_their_weights(wordnet):
    nouns = wordnet_nouns(wordnet)
    assert list(nouns)[:6] == ["dog", "domestic dog", "Canis familiaris", "cat", "true cat", "cup"]
    assert "time period" in nouns and {"plant", "j"} <= nouns.keys() and len(nouns) == 6 + 2 + 10
    assert nouns["cup"] == 1.0  # visible, never counted
    assert nouns["dog"] == pytest.approx(1 + np.log1p(44))  # its noun senses, not the verb
    assert nouns["period"] == pytest.approx(0.3 * (1 + np.log1p(7)))  # no thing to photograph
    assert nouns["plant"] == 0.3


def test_a_folder_without_wordnet_gets_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no WordNet files here"):
        wordnet_nouns(tmp_path)


def test_captions_of_tars_in_order(tmp_path):
    folder = write_captions(tmp_path / "tars", 2)
    assert list(tar_captions([str(folder / "train-000.tar")])) == [
        f"{NAMES[0]} number 0",
        f"picture 0 of a {NAMES[0]}",
        f"{NAMES[1]} number 1",
        f"picture 1 of a {NAMES[1]}",
    ]
    assert list(tar_captions([])) == []


def test_a_tar_that_cannot_be_read_gets_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"absent\.tar: no shard of captions"):
        list(tar_captions([str(tmp_path / "absent.tar")]))


def test_a_folder_without_a_teacher_gets_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no sentence encoder here") as caught:
        teacher_embeddings(tmp_path, ["a dog"])
    assert "\n" not in str(caught.value)


# --- The space -----------------------------------------------------------------------------------------------------


def test_principal_directions_are_those_that_were_put_in():
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q
    spread = torch.tensor([9.0, 5.0, 3.0, 0.1, 0.1, 0.1])
    embeds = torch.randn(4000, 6, generator=generator) * spread @ axes.T + 7.0
    mean, directions = principal_directions(embeds, 3)
    assert_close(mean, torch.full((1, 6), 7.0), atol=0.5, rtol=0)
    assert directions.shape == (6, 3)
    assert_close((directions.T @ axes[:, :3]).abs(), torch.eye(3), atol=0.05, rtol=0)  # the widest first, any sign


def test_all_directions_keep_every_distance():
    embeds = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    mean, directions = principal_directions(embeds, 5)
    assert_close(torch.pdist((embeds - mean) @ directions), torch.pdist(embeds))


# --- The loss ------------------------------------------------------------------------------------------------------


def test_loss_of_a_perfect_student_is_least():
    target = torch.eye(4)
    perfect, cosine = distil_loss(target, target)
    assert cosine == 1 and perfect < 1e-6
    mixed_up, cosine = distil_loss(target[[1, 0, 3, 2]], target)
    assert cosine == 0 and mixed_up == pytest.approx(2 + 0.2 * 20, abs=1e-3)  # 1 / 0.05 from the wrong one


def test_the_same_name_twice_in_a_batch_is_no_mistake():
    target = torch.eye(3)[[0, 0, 1]]
    loss, _ = distil_loss(target, target)
    assert loss < 1e-6


@pytest.mark.parametrize("count", [1, 3, 4, 11])
def test_texts_by_length_come_back_in_their_order(tmp_path, count):
    config = read_toml(write_model(tmp_path)["model"], ModelConfig)
    student = TextEncoder(config.text, config.embed_dim).eval()
    ids = get_tokenizer(config.text.context_length)(["dog " * (1 + 5 * i % 7) for i in range(count)])
    with torch.no_grad():
        assert_close(_by_length(student, ids), student(ids))


# --- The run -------------------------------------------------------------------------------------------------------


def test_the_student_comes_to_agree_with_the_teacher(settings):
    folder = run(settings)
    first, last = lines(folder)
    assert first["step"] == 0 and last["step"] == 29 and "held_out_cosine" not in first
    assert last["cosine"] > first["cosine"] + 0.3 and last["loss"] < first["loss"]
    assert -1 <= last["held_out_cosine"] <= 1


def test_a_training_run_can_start_from_the_student(settings):
    folder = run(settings | {"steps": 2})
    model = OwlSwin(read_toml(settings["model"], ModelConfig))
    load_init(model, str(folder / "text.safetensors"))
    student = load_file(folder / "text.safetensors")
    assert torch.equal(model.text_encoder.tower.text_projection, student["tower.text_projection"])


def test_the_same_seed_gives_the_same_student(settings, tmp_path):
    one, again, other = (
        load_file(run(settings | {"steps": 2, "output": str(tmp_path / name), "seed": seed}) / "text.safetensors")
        for name, seed in (("one", 0), ("again", 0), ("other", 1))
    )
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert not torch.equal(one["tower.text_projection"], other["tower.text_projection"])


def test_a_student_goes_on_from_an_earlier_one(settings, tmp_path):
    first = run(settings)
    more = run(settings | {"output": str(tmp_path / "more"), "init": str(first / "text.safetensors"), "steps": 1})
    assert lines(more)[0]["cosine"] > lines(first)[0]["cosine"] + 0.2


def test_a_start_of_another_shape_is_refused(settings, tmp_path):
    save_file({"tower.text_projection": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"other\.safetensors: weights do not fit"):
        run(settings | {"init": str(tmp_path / "other.safetensors")})


def test_the_teacher_is_asked_once(settings, monkeypatch):
    run(settings | {"steps": 1})
    monkeypatch.setattr(sentences, "teacher_embeddings", None)
    run(settings | {"steps": 1})


def test_a_distillation_that_is_cut_off_goes_on_to_the_bit(settings, tmp_path):
    straight = run(settings | {"steps": 6, "output": str(tmp_path / "straight")})
    config = from_mapping(DistilConfig, settings | {"steps": 6})
    distil(config, stop_after=2)
    folder = distil(config)
    for file in ("state.safetensors", "text.safetensors"):
        ours, theirs = load_file(folder / file), load_file(straight / file)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in theirs)
    with pytest.raises(ConfigError, match=r"learning_rate 0\.01 \(now 0\.1\)"):
        run(settings | {"steps": 6, "learning_rate": 0.1})


@pytest.mark.parametrize("file", ["teacher.safetensors", "basis.safetensors"])
def test_half_a_cache_is_made_again(settings, file):
    """A kill in the middle of its writing left one, and every later run failed."""
    folder = run(settings | {"steps": 1})
    content = (folder / file).read_bytes()
    (folder / file).write_bytes(content[: len(content) // 2])
    run(settings | {"steps": 1})
    assert (folder / file).read_bytes() == content


def test_a_batch_of_texts_is_a_function_of_its_index_and_shared_by_the_processes(settings):
    from owl_swin.training.distributed import Process
    from owl_swin.training.tasks.text import TextTask

    config = from_mapping(DistilConfig, settings | {"batch_size": 8})
    (Path(settings["output"])).mkdir()
    alone = TextTask(from_mapping(DistilConfig, settings | {"batch_size": 16}), Process(0, 1, torch.device("cpu")))
    pair = [TextTask(config, Process(rank, 2, torch.device("cpu"))) for rank in range(2)]
    for index in (3, 0):
        whole, parts = alone.batch(index), [task.batch(index) for task in pair]
        assert torch.equal(whole.ids, torch.cat([part.ids for part in parts]))
        assert torch.equal(whole.rows, torch.cat([part.rows for part in parts]))
    drawn = torch.cat([alone.batch(index).rows for index in range(200)])
    assert not set(drawn.tolist()) & set(alone.held_out)
    assert set(drawn.tolist()) | set(alone.held_out) == set(range(len(alone.texts)))


def test_what_is_held_out_stands_nowhere_else(settings, tmp_path):
    from owl_swin.training.distributed import Process
    from owl_swin.training.tasks.text import TextTask

    tars = write_captions(tmp_path / "tars", 6)
    (Path(settings["output"])).mkdir()
    config = from_mapping(DistilConfig, settings | {"caption_tars": [str(tars / "*.tar")] * 2, "phrases": 500})
    task = TextTask(config, Process(0, 1, torch.device("cpu")))
    assert len(set(task.texts)) == len(task.texts)


def test_captions_take_part(settings, tmp_path, capsys):
    tar = write_captions(tmp_path / "tars", 3) / "train-000.tar"
    run(settings | {"steps": 1, "caption_tars": [str(tar)]})
    assert "6 captions" in capsys.readouterr().err


def test_a_text_tower_wider_than_the_space_is_filled_in_part(settings, tmp_path):
    wide = Path(settings["model"]).read_text().replace("[text]\nwidth = 32", "[text]\nwidth = 40")
    (tmp_path / "wide.toml").write_text(wide)
    student = load_file(run(settings | {"steps": 1, "model": str(tmp_path / "wide.toml")}) / "text.safetensors")
    assert student["tower.token_embedding.weight"].shape[1] == 40


def test_a_space_larger_than_the_teachers_is_refused(settings, tmp_path):
    large = Path(settings["model"]).read_text().replace("embed_dim = 32", f"embed_dim = {DIMENSIONS + 1}")
    (tmp_path / "large.toml").write_text(large)
    with pytest.raises(ConfigError, match="more than the teacher's"):
        run(settings | {"model": str(tmp_path / "large.toml")})
