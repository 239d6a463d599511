"""Distils a sentence encoder into the small text tower, by the loop that trains everything else."""

from pathlib import Path

from owl_swin.training.config import OptimConfig
from owl_swin.training.distributed import started_process
from owl_swin.training.loop import LoopConfig, begin_run, run_task
from owl_swin.training.state import only_run
from owl_swin.training.tasks.text import DistilConfig, TextTask


def distil(config: DistilConfig, *, stop_after: int | None = None, allow_changes: bool = False) -> Path:
    """Runs or resumes a distillation and returns its folder, which then holds ``text.safetensors``.

    Beside it lie ``state.safetensors`` (to go on) and ``metrics.jsonl``, as of every run; ``stop_after`` and
    ``allow_changes`` are as in ``loop.train``.
    """
    optim = OptimConfig(
        image_lr=0.0,
        heads_lr=0.0,
        text_lr=config.learning_rate,
        warmup_steps=config.warmup_steps,
        ema_decay=0.0,  # the cosine's end averages enough
    )
    loop = LoopConfig(
        config.output,
        config.steps,
        optim,
        seed=config.seed,
        precision="bfloat16",
        log_every=50,
        evaluate_every=500,
    )
    with started_process(config.device) as process:
        settings = begin_run(config, process, allow_changes)
        with only_run(Path(config.output), process):
            task = TextTask(config, process)
            return run_task(task, loop, process, settings, stop_after=stop_after, allow_changes=allow_changes)
