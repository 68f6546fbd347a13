"""How large a run is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """Sizes and repeats of one run. `grid_*` are MetisFL's grid, `tensors` the small tensors of one model."""

    scale: str
    threads: int
    rounds: int
    elements: int
    tensors: int
    grid_clients: tuple[int, ...]
    grid_elements: tuple[int, ...]
    first_uses: int

    @classmethod
    def of(cls, scale: str, threads: int) -> "Setup":
        """Return the sizes of `small` (seconds, 200 MB) or `full` (minutes, 16 GB)."""
        if scale == "small":
            return cls(scale, threads, 3, 1 << 20, 500, (10, 20), (100_000, 500_000), 1)
        grid = (10, 50, 100, 200), (100_000, 1_000_000, 10_000_000)
        return cls(scale, threads, 7, 1 << 26, 10_000, *grid, 3)


def count_of(elements: int) -> str:
    """Return a number of parameters in short.

    >>> count_of(67_108_864), count_of(100_000)
    ('67.1 M', '0.1 M')
    """
    return f"{elements / 1e6:.1f} M"
