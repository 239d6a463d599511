"""The task that a run's settings name."""

from owl_swin.errors import ConfigError
from owl_swin.training.config import TrainConfig
from owl_swin.training.distributed import Process
from owl_swin.training.tasks import Task
from owl_swin.training.tasks.align import AlignTask
from owl_swin.training.tasks.detect import DetectTask
from owl_swin.training.tasks.image import start_model


def build_task(config: TrainConfig, process: Process) -> Task:
    """The task of a run, with the model that it starts from."""
    if config.task == "probe":
        raise ConfigError("task = 'probe' trains no model: evaluation.probe.run_probe, or `owl-swin train`, runs it")
    model = start_model(config, process.device)
    if config.task == "align":
        return AlignTask(config, model, config.data, config.batch_size, process)
    return DetectTask(config, model, process)
