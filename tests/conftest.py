"""Fixtures that many tests share: a model of a few thousand parameters, and a picture made on the spot."""

import gc
import os
import signal
from dataclasses import replace

import pytest
import torch
from picture_files import noise
from PIL import Image

from owl_swin.config import HeadsConfig, MasksConfig, ModelConfig, SwinConfig, TextConfig
from owl_swin.detector import Detector
from owl_swin.families.owl_swin import save_checkpoint
from owl_swin.models.owl_swin import OwlSwin

torch.set_num_threads(1)
# Shells start jobs in the background with Ctrl-C ignored, `nohup` ignores SIGHUP; tests, and programs that they start,
# are asked to end by these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.environ["OWL_SWIN_TEXT_CACHE"] = "off"  # also of programs that tests start: nothing of a test stays on the machine

TINY = ModelConfig(
    name="tiny_for_tests",
    embed_dim=16,
    image_size=96,
    image=SwinConfig(embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 4), window_size=4),
    text=TextConfig(width=16, layers=1, heads=2, context_length=12),
    heads=HeadsConfig(width=32, stride=16, stages=(3, 4)),
)


def make_tiny_model(seed: int = 0, config: ModelConfig = TINY) -> OwlSwin:
    """A model with weights large enough that different inputs give clearly different outputs."""
    torch.manual_seed(seed)
    model = OwlSwin(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embedding" not in name:
            parameter.normal_(std=0.5 / parameter.shape[1] ** 0.5)
    model.class_head.shift_scale.bias.copy_(torch.tensor([0.0, 3.0]))
    return model


@pytest.fixture(autouse=True)
def own_signals():
    """What a library has taken of the signals in one test, as Ray does, is nothing that the next one finds."""
    ending = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)
    before = {one: signal.getsignal(one) for one in ending}
    yield
    for one, handler in before.items():
        if handler is not None and signal.getsignal(one) is not handler:
            signal.signal(one, handler)


@pytest.fixture(scope="session")
def tiny_model() -> OwlSwin:
    return make_tiny_model()


@pytest.fixture(scope="session")
def detector(tiny_model) -> Detector:
    return Detector(tiny_model, card={"name": "tiny_for_tests"}, device="cpu")


@pytest.fixture(scope="session")
def competing_detector() -> Detector:
    """As ``detector``, whose names compete for a thing."""
    return Detector(make_tiny_model(config=replace(TINY, rivals=1.0)), device="cpu")


@pytest.fixture(scope="session")
def masked_detector() -> Detector:
    """As ``detector``, with a mask branch."""
    return Detector(make_tiny_model(config=replace(TINY, masks=MasksConfig(dim=8, width=16))), device="cpu")


@pytest.fixture(scope="session")
def model_file(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save_checkpoint(path, tiny_model, {"name": "tiny_for_tests"})
    return path


@pytest.fixture
def picture() -> Image.Image:
    return noise(60, 90)


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests of a file; not for longer: while it runs, no other test can start an event loop."""
    from demo_pages import chromium

    with chromium() as one:
        yield one


# Files that take longest. They begin first, so that no worker is left with one while the others have nothing to do.
LONG = (
    "demo_browser",
    "ray",
    "distributed",
    "bench_detection",
    "training",
    "index",
    "demo_media",
    "demo_editing",
    "serve",
)


def pytest_collection_modifyitems(items):
    order = {f"test_{name}": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Garbage is not sought among the tests while they are collected, nor later: none of them goes before the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_sessionfinish():
    gc.unfreeze()  # or libraries complain at the end that something of theirs is left
