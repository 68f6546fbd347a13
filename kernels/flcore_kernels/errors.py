"""The errors of the kernels.

KernelError
├── UnknownDType          no kernel folds this dtype
├── BufferMismatch        a buffer has another size, dtype or place than expected
├── WeightRange           a weight is negative, not finite, or outside the accumulator's range
├── OptimizerRange        a number of a server optimizer is outside its range
├── NotFinite             an operand has a NaN or an infinity
├── Overflow              a term, a sum or a result is too large
├── TooManyTerms          an exact total would have more terms than its digits can hold
├── SpoiledTotal          an earlier error left the total half changed
├── BadState              bytes are not a saved total, or are damaged; an optimizer's state is none
├── OutOfDeviceMemory     the device's memory, or its budget, is used up
├── DeviceFailed          the device reports an error
└── BackendUnavailable    there is no such backend on this machine or in this installation
"""

from flcore_layout import FlcoreError


class KernelError(FlcoreError):
    """The root of the errors that kernels raise."""


class UnknownDType(KernelError):
    """The dtype is no key of `STORAGE`."""


class BufferMismatch(KernelError):
    """A buffer has another size, dtype, layout or place than the call expects."""


class WeightRange(KernelError):
    """A weight is negative, not finite, or outside the accumulator's range, or the sum of weights is 0."""


class OptimizerRange(KernelError):
    """A number of a server optimizer, such as its learning rate, is not finite or outside its range."""


class NotFinite(KernelError):
    """Operand number `operand` has a NaN or an infinity, `value`, at `element` of the total."""

    def __init__(self, operand: int, element: int, value: float, name: str = "") -> None:
        super().__init__(f"{name or f'operand {operand}'}: element {element} is {value}")
        self.operand, self.element, self.value = operand, element, value


class Overflow(KernelError):
    """A term, a sum or a result at `element` is too large.

    `operand` is the number of the operand with a term that is too large, or -1 if a sum is. `where` names what a sum
    does not fit into.
    """

    def __init__(self, message: str, element: int, operand: int = -1, where: str = "") -> None:
        super().__init__(message)
        self.element, self.operand, self.where = element, operand, where


class TooManyTerms(KernelError):
    """An exact total would have more than `MAX_TERMS` terms."""


class SpoiledTotal(KernelError):
    """An earlier error left the total half changed. Clear it, or use a new one."""


class BadState(KernelError):
    """Bytes are not a saved total of this version, or are damaged. Or an optimizer's state is no state."""


class OutOfDeviceMemory(KernelError):
    """`needed_bytes` more do not fit into the device's memory, or into the budget for it."""

    def __init__(self, message: str, needed_bytes: int) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes


class DeviceFailed(KernelError):
    """The device reports an error. After some errors, this process cannot use the device any more."""


class BackendUnavailable(KernelError):
    """There is no such backend on this machine or in this installation."""
