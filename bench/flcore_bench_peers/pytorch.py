"""PyTorch: `_foreach_add_` with alpha, one fused multiply and add per client over all tensors of its model."""

import torch
from flcore_bench.timing import Work, interleaved

from flcore_bench_peers.contest import Contender, Models

PACKAGE = "torch"


def contenders(models: Models, weights: list[float], threads: int) -> list[Contender]:
    """Return the call, on tensors that share the models' memory, into preallocated totals."""
    clients = [[torch.from_numpy(array) for array in model.values()] for model in models]
    totals = [torch.zeros_like(tensor) for tensor in clients[0]]
    shares = [weight / sum(weights) for weight in weights]

    def work() -> list[torch.Tensor]:
        torch._foreach_zero_(totals)
        for tensors, share in zip(clients, shares, strict=True):
            torch._foreach_add_(totals, tensors, alpha=share)
        return totals

    best = _best_threads(work, threads)
    torch.set_num_threads(best)
    what = f"PyTorch _foreach_add_ ({best} thread{'s' if best > 1 else ''})"
    return [Contender(what, "PyTorch", work, lambda result: result[0].numpy(), {"flat": 2.3})]


def _best_threads(work: Work, threads: int) -> int:
    """Return the faster number of threads: 1 or `threads`.

    PyTorch's threads synchronize after every tensor. On a busy machine that can cost more than it gains.
    """
    taken = {}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        taken[count] = min(interleaved({"": work}, rounds=3)[""])
    return min(taken, key=lambda count: taken[count])
