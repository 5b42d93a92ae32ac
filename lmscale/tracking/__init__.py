"""Curves of runs in TensorBoard, Weights & Biases, or a function of one's own, while they train."""

from lmscale.tracking.follow import follow
from lmscale.tracking.trackers import TrackedRun, TrackingError, make_tracker, scalars

__all__ = ["TrackedRun", "TrackingError", "follow", "make_tracker", "scalars"]
