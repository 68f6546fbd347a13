"""NVRTC, which compiles CUDA without a driver, and what its cubins say of each kernel's registers and stack."""

import ctypes
import importlib.util
import struct
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from flcore_kernels.cuda.kernels import OPTIONS, source

REGISTERS, FRAME = 0x2F, 0x11
"""Attributes of a function in `.nv.info`: its registers, and the bytes of its stack, where spilled registers go too."""

TWO_WORDS = 4
"""The form of an attribute with a size of its own."""

SYMBOLS = 2
"""ELF's number of a section with symbols."""


class Resources(NamedTuple):
    """What a thread of a kernel, or of a function that it calls, needs."""

    registers: int
    stack_bytes: int


@cache
def nvrtc() -> Any:
    """Return the library, from its wheel; None where that is not installed."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(place).glob("*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    return None


def compiled(kernels: Sequence[str], architecture: str, form: str = "CUBIN", text: str | None = None) -> bytes:
    """Return the cubin (or the "PTX") of some kernels, by their names, for "sm_90" and the like."""
    library, program = nvrtc(), ctypes.c_void_p()
    library.nvrtcCreateProgram(ctypes.byref(program), (text or source()).encode(), b"flcore.cu", 0, None, None)
    for kernel in kernels:
        assert library.nvrtcAddNameExpression(program, kernel.encode()) == 0
    options = [option.encode() for option in (*OPTIONS, f"--gpu-architecture={architecture}")]
    failed = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    log = _told(library.nvrtcGetProgramLogSize, library.nvrtcGetProgramLog, program)
    assert not failed, log.decode()[:4000]
    result = _told(getattr(library, f"nvrtcGet{form}Size"), getattr(library, f"nvrtcGet{form}"), program)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    return result


def _told(size_of: Any, get: Any, program: Any) -> bytes:
    size = ctypes.c_size_t()
    assert size_of(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert get(program, buffer) == 0
    return buffer.raw


def resources(cubin: bytes) -> dict[str, Resources]:
    """Return what the functions of a cubin need, by their mangled names."""
    sections = list(_sections(cubin))
    names = next(_symbols(cubin, each, sections) for each in sections if each.kind == SYMBOLS)
    found: dict[int, dict[str, int]] = {}
    for section in sections:
        if section.name != ".nv.info":
            continue
        for attribute, symbol, value in _attributes(cubin[section.offset : section.offset + section.size]):
            found.setdefault(attribute, {})[names[symbol]] = value
    return {name: Resources(count, found[FRAME][name]) for name, count in found[REGISTERS].items()}


class _Section(NamedTuple):
    name: str
    kind: int
    offset: int
    size: int
    link: int


def _sections(cubin: bytes) -> Iterator[_Section]:
    offset = struct.unpack_from("<Q", cubin, 40)[0]
    width, count, strings = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQII", cubin, offset + number * width) for number in range(count)]
    for name, kind, _, _, start, size, link, _ in headers:
        yield _Section(_string(cubin, headers[strings][4] + name), kind, start, size, link)


def _symbols(cubin: bytes, section: _Section, sections: list[_Section]) -> list[str]:
    strings = sections[section.link].offset
    places = range(section.offset, section.offset + section.size, 24)
    return [_string(cubin, strings + struct.unpack_from("<I", cubin, place)[0]) for place in places]


def _string(cubin: bytes, offset: int) -> str:
    return cubin[offset : cubin.index(b"\0", offset)].decode()


def _attributes(info: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (attribute, symbol, value) of the attributes that have these two."""
    offset = 0
    while offset + 4 <= len(info):
        form, attribute, size = struct.unpack_from("<BBH", info, offset)
        offset += 4
        if form == TWO_WORDS:
            if size == 8:
                yield attribute, *struct.unpack_from("<II", info, offset)
            offset += size
