"""Seeds for all that a run draws: each purpose, step and process has a stream of its own."""

import numpy as np


def stream_seed(seed: int, *key: int) -> int:
    """A seed [0, 2**63) for the stream ``key`` of a run with ``seed``.

    Sums of seed and step meet again: seed 1 at step 0 would draw as seed 0 at a later step. Keys of different lengths
    are different keys, as they are not for ``np.random.default_rng((seed, *key))``, to which an end of zeros says
    nothing.
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1))
