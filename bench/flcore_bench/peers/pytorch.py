"""PyTorch: `_foreach_add_` with alpha, one fused multiply and add per client over all tensors of its model."""

import torch

from flcore_bench.peers.contender import Contender, Models
from flcore_bench.timing import Work, interleaved

PACKAGE = "torch"


def contenders(models: Models, weights: list[float], threads: int) -> list[Contender]:
    """Return the call, on tensors that share the models' memory, into totals that are kept."""
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
    """Return how many threads serve PyTorch best: its threads wait for each other after every tensor, which can cost
    more than they gain where something else runs too."""
    taken = {}
    for count in sorted({1, threads}):
        torch.set_num_threads(count)
        taken[count] = min(interleaved({"": work}, rounds=3)[""])
    return min(taken, key=lambda count: taken[count])
