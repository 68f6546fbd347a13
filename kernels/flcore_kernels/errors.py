"""What the kernels refuse.

KernelError
├── UnknownDType          a dtype that no kernel folds
├── BufferMismatch        a buffer of another length, dtype or shape than its neighbours
├── WeightRange           a weight that is negative, not finite, or outside what an accumulator takes
├── NotFinite             a NaN or an infinity in an operand
├── Overflow              a term, a sum or a result that is too large
├── TooManyTerms          more terms than an exact total can count
├── SpoiledTotal          a total that an earlier error left half changed
├── BadState              bytes that are not a saved total, or no longer
├── OutOfDeviceMemory     a device, or the budget for it, that does not hold what is needed
├── DeviceFailed          a device that reports an error of its own
└── BackendUnavailable    a device that this machine or this installation does not have
"""

from flcore_layout import FlcoreError


class KernelError(FlcoreError):
    """The root of everything that the kernels raise on purpose."""


class UnknownDType(KernelError):
    """The dtype has no row in the table of wire dtypes."""


class BufferMismatch(KernelError):
    """Buffers of one call do not fit each other."""


class WeightRange(KernelError):
    """A weight is not one: negative, not finite, or outside what the accumulator takes."""


class NotFinite(KernelError):
    """An operand holds a NaN or an infinity: operand `operand`, at `element` of the total."""

    def __init__(self, operand: int, element: int, value: float) -> None:
        super().__init__(f"operand {operand}: element {element} is {value}")
        self.operand, self.element, self.value = operand, element, value


class Overflow(KernelError):
    """What came out at `element` is too large for `where` it should go; `operand` is to blame, or -1 for their sum."""

    def __init__(self, message: str, element: int, operand: int = -1, where: str = "") -> None:
        super().__init__(message)
        self.element, self.operand, self.where = element, operand, where


class TooManyTerms(KernelError):
    """An exact total has counted as many terms as its digits can hold."""


class SpoiledTotal(KernelError):
    """A total was left half changed by an error, and holds nothing that can be used."""


class BadState(KernelError):
    """Bytes are not a saved total of this version, or were changed since."""


class OutOfDeviceMemory(KernelError):
    """The device's memory, or the budget for it, does not hold `needed_bytes` more."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class DeviceFailed(KernelError):
    """A device reports an error; after some of them, this process can use it no more."""


class BackendUnavailable(KernelError):
    """The named backend does not exist here."""
