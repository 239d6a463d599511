"""Processes that tests start often: forked from a server that has the imports behind it, but no threads yet."""

import multiprocessing

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(
    ["owl_swin.detector", "owl_swin.training.loop", "open_clip", "pytest", "pyarrow.dataset", "pydantic"]
)
