"""What tests of training begin with: one process, and the model that a run starts from."""

import torch

from owl_swin.config import ModelConfig, read_toml
from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.distributed import Process
from owl_swin.training.initial import load_init

ALONE = Process(0, 1, torch.device("cpu"))


def model_of(settings):
    """The model that a run starts from."""
    torch.manual_seed(0)
    model = OwlSwin(read_toml(settings["model"], ModelConfig))
    for path in settings["init"]:
        load_init(model, path)
    return model
