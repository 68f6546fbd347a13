"""Metrics of a server for Prometheus, and traces of its rounds by OpenTelemetry.

`server_metrics` and `metrics_server` need the extra `metrics`, `round_traces` needs the extra `traces`: import them by
themselves. `families` needs neither.
"""

from flcore.metrics.families import FAMILIES, Family

__all__ = ["FAMILIES", "Family"]
