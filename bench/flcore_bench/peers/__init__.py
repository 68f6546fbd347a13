"""The peers: others who average models, each in a file of its own, the only one that imports it.

A peer's file has `PACKAGE`, the distribution whose version is shown, and `contenders(models, weights, threads)`, which
returns its ways to average. `contest.py` measures them in turn with flcore, in one process of the peer's own
environment (flwr and nvflare cannot share one). `round_*.py` measure whole rounds, as each peer runs them by itself.
"""
