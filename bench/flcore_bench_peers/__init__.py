"""The code of `flcore bench peers` and `round-peers` that runs in the other frameworks' environments.

Each peer has a module of its own: `flower`, `nvidia_flare`, `pytorch`, `plain_numpy`. It has `PACKAGE`, the name of the
distribution, and `contenders(models, weights, threads)`, its ways to average. Frameworks with an adapter in flcore also
have `drop_ins(models, weights)`. Three modules measure, each in one process of the peer's environment:

- `contest`: a peer's means next to `flcore.aggregate`;
- `drop_in`: a framework's aggregation with its own mean and with flcore's adapter;
- `round_flower`, `round_nvflare`: whole rounds of a framework, as it runs them by itself.

This package is part of a source checkout, and of no wheel: `make bench-peers` creates the environments.
"""

__all__: list[str] = []
