"""The table of dtypes: the representation of each on the wire, in memory and in files. A new dtype is a new row.

Other packages derive their tables from it: `flcore_kernels.STORAGE` (how kernels see the bits),
`flcore.model.dtypes.DTYPES` (NumPy's dtypes) and the names in safetensors headers. Only the kernels' functions that
read and write an element are written for each dtype.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from flcore_layout.errors import FlcoreError


class UnknownDtypeName(FlcoreError):
    """A name is neither a dtype's nor an alias of one."""


@dataclass(frozen=True, slots=True)
class Dtype:
    """One dtype.

    The body of a piece contains the scales, if any, then zeros up to a multiple of 8 bytes, then the elements.

    Attributes:
        name: The dtype's name in specs, jobs, pieces and kernel calls.
        itemsize: Bytes of an element.
        storage: NumPy's name of the buffers' dtype. 16-bit floats are the uint16 of their bits, a bool is a uint8.
        safetensors: The name in a safetensors header; "" for a dtype that no file holds.
        arrow: Arrow's name of the column's type on the wire; "" for a quantized one, which has two columns.
        exponent_bits: Bits of a float's exponent; 0 for other dtypes.
        mantissa_bits: Bits of a float's mantissa, without the implicit one; 0 for other dtypes.
        block: Elements that share one float32 scale; 0 where there are no scales.
        aliases: Short names that users may write, such as "bf16".
    """

    name: str
    itemsize: int
    storage: str
    safetensors: str = ""
    arrow: str = ""
    exponent_bits: int = 0
    mantissa_bits: int = 0
    block: int = 0
    aliases: tuple[str, ...] = ()

    @property
    def is_float(self) -> bool:
        """Whether the dtype holds floats, and with them NaN and infinity."""
        return self.exponent_bits > 0

    @property
    def is_boolean(self) -> bool:
        """Whether an element is the number 0 or 1."""
        return self.name == "bool"

    @property
    def is_quantized(self) -> bool:
        """Whether an element is an int8 code that is multiplied by its block's scale."""
        return self.block > 0

    @property
    def compresses_float32(self) -> bool:
        """Whether float32 values can be encoded as this dtype: narrower floats and quantized int8."""
        return self.is_quantized or (self.is_float and self.itemsize < 4)

    def scale_bytes(self, elements: int) -> int:
        """Return the bytes of the scales of `elements` elements (whole blocks), 4 for each block.

        >>> DTYPES["int8[64]"].scale_bytes(256)
        16
        """
        return elements // self.block * 4 if self.block else 0

    def elements_at(self, elements: int) -> int:
        """Return the offset of the elements in a body of `elements` elements, after the scales and padding.

        >>> DTYPES["int8[256]"].elements_at(256)
        8
        """
        return -(-self.scale_bytes(elements) // 8) * 8


def _float(
    name: str, bits: int, exponent: int, mantissa: int, storage: str, file_and_wire: tuple[str, str], alias: str
) -> Dtype:
    return Dtype(name, bits // 8, storage, *file_and_wire, exponent, mantissa, aliases=(alias,))


def _integer(name: str, safetensors: str, alias: str) -> Dtype:
    return Dtype(name, int(name.lstrip("uint")) // 8, name, safetensors, name, aliases=(alias,))


def _quantized(block: int) -> Dtype:
    return Dtype(f"int8[{block}]", 1, "int8", block=block)


_ROWS: Iterable[Dtype] = (
    _float("float64", 64, 11, 52, "float64", ("F64", "double"), "f64"),
    _float("float32", 32, 8, 23, "float32", ("F32", "float"), "f32"),
    _float("float16", 16, 5, 10, "uint16", ("F16", "halffloat"), "f16"),
    _float("bfloat16", 16, 8, 7, "uint16", ("BF16", "uint16"), "bf16"),  # Arrow has no bfloat16
    _integer("int64", "I64", "i64"),
    _integer("int32", "I32", "i32"),
    _integer("int16", "I16", "i16"),
    _integer("int8", "I8", "i8"),
    _integer("uint64", "U64", "u64"),
    _integer("uint32", "U32", "u32"),
    _integer("uint16", "U16", "u16"),
    _integer("uint8", "U8", "u8"),
    Dtype("bool", 1, "uint8", "BOOL", "uint8"),  # Arrow's booleans are bits
    *(_quantized(block) for block in (32, 64, 128, 256)),
)

DTYPES: dict[str, Dtype] = {row.name: row for row in _ROWS}
"""All dtypes by name. `int8[64]` are int8 codes with one float32 scale for each block of 64."""

ALIASES = {alias: row.name for row in DTYPES.values() for alias in row.aliases}
"""The names of dtypes by their aliases: "bf16" is "bfloat16"."""


def canonical_name(name: str) -> str:
    """Return the name of a dtype that is written as its name or as an alias.

    Args:
        name: A name such as "bfloat16", or an alias such as "bf16".

    Returns:
        A key of `DTYPES`.

    Raises:
        UnknownDtypeName: No dtype has this name or alias.

    Example:
        >>> canonical_name("bf16"), canonical_name("int8[64]")
        ('bfloat16', 'int8[64]')
    """
    canonical = ALIASES.get(name, name)
    if canonical not in DTYPES:
        raise UnknownDtypeName(f"expected a dtype, got {name!r}; use one of {', '.join(DTYPES)}")
    return canonical
