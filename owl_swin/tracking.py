"""Which detections of one frame of a video are of the same thing as those of the frames before: ByteTrack
(arXiv:2110.06864) of the library trackers."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from owl_swin.detections import Detections
from owl_swin.errors import MissingExtraError

# A thing that is not found keeps its number for so long, in seconds, or for so many frames if these take longer.
MEMORY_S, MEMORY_FRAMES = 1.0, 2.5


class Tracker:
    """Numbers things from 1 on. A thing has its number from the second frame on in which it is found.

    ``thresholds [Q]`` of the queries: a detection below that of its query continues a track but begins none.
    ``frame_s``: seconds from one frame to the next, where they come evenly.
    """

    def __init__(self, thresholds: Sequence[float], frame_s: float):
        try:
            from trackers import ByteTrackTracker
        except ImportError:
            raise MissingExtraError("numbering the things in a video", "video") from None

        def tracker(threshold: float) -> Any:
            return ByteTrackTracker(
                lost_track_buffer=round(30 * max(MEMORY_S, MEMORY_FRAMES * frame_s)),  # in thirtieths of a second
                frame_rate=1 / frame_s,
                track_activation_threshold=threshold,
                high_conf_det_threshold=threshold,
                minimum_consecutive_frames=1,
            )

        # Things of two queries never change places.
        self._trackers = [tracker(threshold) for threshold in thresholds]
        self._numbers: dict[tuple[int, int], int] = {}

    def update(self, found: Detections, time_s: float) -> list[int | None]:
        """The number of each detection of the next frame; None where it has none yet."""
        from supervision import Detections as Boxes

        numbers: list[int | None] = [None] * len(found)
        labels = found.labels.cpu().numpy()
        boxes, scores = found.boxes.cpu().float().numpy(), found.scores.cpu().float().numpy()
        for label, tracker in enumerate(self._trackers):
            rows = np.flatnonzero(labels == label)
            given = Boxes(xyxy=boxes[rows], confidence=scores[rows], data={"row": rows})
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of two frames at one time
                tracked = tracker.update(given, timestamp=time_s)
            if not len(tracked):
                continue
            for row, own in zip(tracked.data["row"].tolist(), tracked.tracker_id.tolist(), strict=True):
                if own >= 0:
                    numbers[row] = self._numbers.setdefault((label, own), len(self._numbers) + 1)
        return numbers
