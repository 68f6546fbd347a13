"""Tracking of runs by TensorBoard, MLflow and Weights & Biases: the table `[tracking]` of a server's site.toml.

Each tracker needs an extra of its name, and is imported when the table names it.
"""

from flcore.tracking.settings import MlflowSettings, TrackingSettings, WandbSettings, tracking_settings
from flcore.tracking.tracker import TrackedRun, Tracker
from flcore.tracking.trackers import Trackers

__all__ = [
    "MlflowSettings",
    "TrackedRun",
    "Tracker",
    "Trackers",
    "TrackingSettings",
    "WandbSettings",
    "tracking_settings",
]
