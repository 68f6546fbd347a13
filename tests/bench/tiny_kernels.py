"""`flcore bench kernels` at a size that measures nothing: the process that a test has the command start."""

from unittest import mock

from flcore_bench import Sizes, kernels

TINY = Sizes("small", 2, 2, 1 << 14, 20, (2, 5), (1_000, 5_000), 1)


def main() -> None:
    """Measure all sections."""
    with mock.patch.object(Sizes, "of", return_value=TINY):
        kernels.main()
