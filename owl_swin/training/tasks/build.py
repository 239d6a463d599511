"""The task that a run's settings name."""

from owl_swin.models.owl_swin import OwlSwin
from owl_swin.training.config import TrainConfig
from owl_swin.training.distributed import Process
from owl_swin.training.tasks.align import AlignTask
from owl_swin.training.tasks.detect import DetectTask


def build_task(config: TrainConfig, model: OwlSwin, process: Process) -> AlignTask | DetectTask:
    """The task of a run; ``model`` is what it starts from."""
    if config.task == "align":
        return AlignTask(config, model, config.data, config.batch_size, process)
    return DetectTask(config, model, process)
