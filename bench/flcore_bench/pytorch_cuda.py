"""PyTorch on a device: `_foreach_add_` with alpha, one fused multiply and add per client, into a preallocated total."""

from typing import Any

import torch

from flcore_bench.timing import Work

if not torch.cuda.is_available():
    raise ImportError("this PyTorch has no CUDA device")


def foreach_add(parts: list[Any], weights: list[float]) -> Work:
    """Return the call, on tensors that share the memory of arrays on the device."""
    tensors = [torch.from_dlpack(part) for part in parts]
    total = torch.zeros_like(tensors[0])
    shares = [weight / sum(weights) for weight in weights]

    def work() -> Any:
        total.zero_()
        for tensor, share in zip(tensors, shares, strict=True):
            torch._foreach_add_([total], [tensor], alpha=share)
        torch.cuda.synchronize()
        return total

    return work
