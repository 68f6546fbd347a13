"""What the kernels refuse.

KernelError
├── UnknownDType          a dtype that no kernel folds
├── BufferMismatch        a buffer of another length, dtype or shape than its neighbours
└── BackendUnavailable    a device that this machine or this installation does not have
"""


class KernelError(Exception):
    """The root of everything that the kernels raise on purpose."""


class UnknownDType(KernelError):
    """The dtype has no row in the table of wire dtypes."""


class BufferMismatch(KernelError):
    """Buffers of one call do not fit each other."""


class BackendUnavailable(KernelError):
    """The named backend does not exist here."""
