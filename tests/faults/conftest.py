"""What tests of faults share with those of flcore."""

from tests.flcore.conftest import kernels

__all__ = ["kernels"]
