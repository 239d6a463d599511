"""The house stands as it was drawn: imports point down, files are short, the public face is what it says."""

import ast
import inspect
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

import owl_swin

PACKAGE = Path(owl_swin.__file__).parent
FILES = {
    ".".join(("owl_swin", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
# From the ground up; rooms of one floor may know one another, but not in a circle.
FLOORS = [
    {"errors", "types", "detections", "masks", "query_file", "attention", "formats", "label_studio", "boxes", "nms"}
    | {"files", "frame", "orientation", "addresses", "tiff", "locks", "signals", "video_source"}
    | {"semantic_map", "map_formats", "rle", "made_here"},
    {"config", "image", "picture_files", "tokenizer", "scoring", "fetching", "encoded", "huge", "text_cache"},
    {"models"},
    {
        "families",
        "exemplar",
        "queries",
        "postprocess",
        "render",
        "devices",
        "encoder",
        "embedder",
        "mask_sampling",
        "classification",
    }
    | {"publishing", "runtimes", "tiling", "tracking", "video_output", "closed_set", "segmentation"},
    {"data"},
    {"detector"},
    {"index", "teachers", "pipelines", "video"},
    {"labelling"},
    {"training"},
    {"evaluation"},
    {"distillation"},
    {"server"},
    {"bench"},
    {"cli", "__main__"},
]
# The public face stands outside the house.
ROOMS = sorted(FILES.keys() - {"owl_swin"})


def floor(module: str) -> int:
    """Floor of a module, counted from 0."""
    room = module.split(".")[1]
    floors = [i for i, rooms in enumerate(FLOORS) if room in rooms]
    assert floors, f"{module}: no floor of test_layout.py holds {room!r}"
    return floors[0]


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


def imports(tree: ast.Module) -> set[str]:
    """Modules of owl_swin that a source imports, anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written in full"
            # `from owl_swin.cli import detect` imports the module detect.
            below = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= below or {str(node.module)}
    return {name for name in found if name.split(".")[0] == "owl_swin"}


def test_imports_are_found_wherever_they_are():
    inside = "def f():\n    from owl_swin.cli import detect\n    from owl_swin.types import X"
    assert imports(ast.parse(f"import torch\nimport owl_swin.boxes\n{inside}")) == {
        "owl_swin.boxes",
        "owl_swin.cli.detect",
        "owl_swin.types",
    }
    assert imports(ast.parse("from owl_swin import Detector")) == {"owl_swin"}


@cache
def imports_of_rooms() -> dict[str, set[str]]:
    return {module: imports(tree_of(module)) for module in ROOMS}


def test_imports_point_down():
    pairs = [(module, other) for module, others in imports_of_rooms().items() for other in others]
    assert [f"{module} imports {other}, which is not there" for module, other in pairs if other not in FILES] == []
    assert [module for module, other in pairs if other == "owl_swin"] == []  # the public face
    upward = [(module, other) for module, other in pairs if floor(other) > floor(module)]
    assert [f"{module} imports {other}, which lives above it" for module, other in upward] == []


def test_no_modules_import_one_another_in_a_circle():
    left = imports_of_rooms()
    while left:
        free = {module for module, others in left.items() if not others & left.keys() - {module}}
        assert free, f"in a circle: {sorted(left)}"
        left = {module: others for module, others in left.items() if module not in free}


def test_no_file_is_above_400_lines():
    lines = {module: len(path.read_text().splitlines()) for module, path in FILES.items()}
    assert len(lines) > 200
    assert {module: many for module, many in lines.items() if many > 400} == {}


def test_everything_public_says_what_it_is():
    silent = {}
    for module, path in FILES.items():
        if path.stat().st_size:  # an empty one is the mark of a package
            own = [] if ast.get_docstring(tree_of(module)) else ["the file itself"]
            silent[module] = [*own, *undocumented(tree_of(module))]
    assert {module: names for module, names in silent.items() if names} == {}


def undocumented(node: ast.Module | ast.ClassDef):
    for child in node.body:
        if not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or child.name.startswith("_"):
            continue
        # The class says what its forward does, and its protocol what its stubs must do.
        stub = isinstance(child.body[0], ast.Expr) and getattr(child.body[0].value, "value", None) is Ellipsis
        said_by_class = isinstance(node, ast.ClassDef) and (child.name == "forward" or stub)
        if not ast.get_docstring(child) and not said_by_class:
            yield child.name
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child)


def test_every_package_is_installed():
    listed = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")}
    assert listed == sorted({".".join(folder.parts) for folder in folders} | {"owl_swin.demo"})


def test_the_public_names_are_sorted_complete_and_there():
    said = {}  # what a type checker reads
    for node in ast.walk(tree_of("owl_swin")):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("owl_swin."):
            said |= {alias.name: node.module for alias in node.names}
    assert owl_swin.__all__ == sorted(said)
    assert said == owl_swin._MODULES
    assert set(owl_swin.__all__) <= set(dir(owl_swin))
    for name in owl_swin.__all__:
        value = getattr(owl_swin, name)
        assert inspect.isclass(value) or inspect.isfunction(value)
        assert value.__module__.split(".")[0] == "owl_swin"
    scope = {}
    exec("from owl_swin import *", scope)
    assert said.keys() <= scope.keys()
    with pytest.raises(AttributeError, match="no attribute 'Detecter'"):
        _ = owl_swin.Detecter


HEAVY = (
    "torchvision",
    "torch._dynamo",
    "transformers",
    "open_clip",
    "timm",
    "scipy",
    "gradio",
    "faster_coco_eval",
    "matplotlib",
    "pandas",
    "lancedb",
    "ray",
    "fastapi",
    "rasterio",
    "av",
    "cv2",
    "trackers",
)


# In this order in one process: what a later one does not import, no earlier one did.
NARROW = [
    ("import owl_swin", (*HEAVY, "torch", "numpy")),
    ("import owl_swin.cli.main", (*HEAVY, "torch", "safetensors.torch")),
    ("from owl_swin import *", HEAVY),
    ("from owl_swin import Detector; Detector.from_pretrained().detect(PICTURE, ['a cat'], image_size=64)", HEAVY),
]


def test_importing_does_not_import_what_only_a_part_needs():
    lines = ["import sys", "from PIL import Image", "PICTURE = Image.new('RGB', (64, 64))"]
    for program, heavy in NARROW:
        lines += [program, f"print([name for name in {heavy!r} if name in sys.modules])"]
    run = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert dict(zip([program for program, _ in NARROW], run.stdout.splitlines(), strict=True)) == {
        program: "[]" for program, _ in NARROW
    }
