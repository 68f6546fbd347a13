"""Arrays on a device, of other libraries: what they are, in which order they are read, and what is refused."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flcore_kernels import BufferMismatch, described, device_of
from flcore_kernels.device_arrays import LEGACY_STREAM, on_device

from tests.kernels.exporters import Exporter, Interfaced
from tests.kernels.shim.device import ShimDevice

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def played() -> ShimDevice:
    return ShimDevice()


class Ours:
    """Our stream, and those that it was told to come after."""

    pointer = 77

    def __init__(self) -> None:
        self.followed: list[int] = []

    def follow(self, pointer: int) -> None:
        self.followed.append(pointer)


def seen(thing: Any) -> tuple[Any, list[int]]:
    ours = Ours()
    return on_device(thing, ShimDevice(), ours, set()), ours.followed


@pytest.mark.parametrize("is_versioned", [False, True])
def test_a_capsule_is_read_and_its_exporter_keeps_our_stream_waiting(played: ShimDevice, is_versioned: bool) -> None:
    array = played.resident(VALUES)
    exporter = Exporter(array, is_versioned=is_versioned, offset=4)
    found, followed = seen(exporter)
    assert (found.address, found.shape, found.dtype, found.name) == (array.address, (2, 3), np.float32, "float32")
    assert found.flags.c_contiguous and found.flags.writeable and found.size == 6 and found.nbytes == 24
    assert exporter.streams == [77] and followed == []


def test_what_is_only_described_is_asked_again_when_it_is_read(played: ShimDevice) -> None:
    exporter = Exporter(played.resident(VALUES))
    told = described(exporter)
    assert exporter.streams == [LEGACY_STREAM] and told.is_described and told.owner is exporter
    found, _ = seen(told)
    assert exporter.streams == [LEGACY_STREAM, 77] and not found.is_described and found.address == told.address
    assert described(found) is found


@pytest.mark.parametrize(
    ("dtype", "code", "bits", "name", "storage"),
    [
        ("uint16", 4, 16, "bfloat16", "uint16"),
        ("float16", 2, 16, "float16", "uint16"),
        ("uint8", 6, 8, "bool", "uint8"),
        ("int64", 0, 64, "int64", "int64"),
        ("uint16", 1, 16, "uint16", "uint16"),
    ],
)
def test_dtypes_are_told_by_name_and_by_storage(
    played: ShimDevice, dtype: str, code: int, bits: int, name: str, storage: str
) -> None:
    found, _ = seen(Exporter(played.resident(np.zeros(3, dtype)), code=code, bits=bits))
    assert (found.name, found.dtype) == (name, np.dtype(storage))


@pytest.mark.parametrize(
    ("shape", "strides", "is_contiguous"),
    [
        ((2, 3), (3, 1), True),
        ((2, 3), (1, 2), False),
        ((2, 3), (4, 1), False),
        ((1, 3), (99, 1), True),
        ((2, 0), (7, 7), True),
        ((), (), True),
    ],
)
def test_strides_say_whether_elements_lie_together(
    played: ShimDevice, shape: Any, strides: Any, is_contiguous: bool
) -> None:
    array = played.resident(VALUES)
    found, _ = seen(Exporter(array, shape=shape, strides=strides))
    assert found.flags.c_contiguous is is_contiguous
    steps = tuple(4 * step for step in strides)
    other, _ = seen(Interfaced(array, strides=steps, shape=shape))
    assert other.flags.c_contiguous is is_contiguous


def test_the_older_interface_names_a_stream_or_means_the_default_one(played: ShimDevice) -> None:
    array = played.resident(VALUES)
    for thing, expected in (
        (Interfaced(array, stream=5), [5]),
        (Interfaced(array, stream=None), []),
        (Interfaced(array), []),
        (Interfaced(array, version=2), [LEGACY_STREAM]),
    ):
        found, followed = seen(thing)
        assert (found.address, found.shape, found.dtype, found.name) == (array.address, (2, 3), np.float32, "float32")
        assert followed == expected


def test_read_only_arrays_say_so(played: ShimDevice) -> None:
    array = played.resident(VALUES)
    assert not seen(Interfaced(array, is_read_only=True))[0].flags.writeable
    assert not seen(Exporter(array, is_versioned=True, is_read_only=True))[0].flags.writeable


def test_where_something_is_shows_without_reading_it(played: ShimDevice) -> None:
    array = played.resident(VALUES)
    assert device_of(array) == 0 == device_of(Interfaced(array))
    assert device_of(Exporter(array, device=3)) == 3
    assert device_of(Exporter(array, kind=1)) is None
    for nothing in (VALUES, np.float32(1), None, 3.0, [VALUES], "cuda"):
        assert device_of(nothing) is None

    class Broken:
        def __dlpack_device__(self) -> Any:
            raise RuntimeError("no such device")

    assert device_of(Broken()) is None


def test_what_is_elsewhere_is_refused_before_its_exporter_is_asked(played: ShimDevice) -> None:
    exporter = Exporter(played.resident(VALUES), device=2)
    with pytest.raises(BufferMismatch, match=r"it is on device 2, .* works on device 0: ask for backend\('cuda:2'\)"):
        seen(exporter)
    assert exporter.streams == []


def test_a_library_that_waits_for_its_threads_stream_is_asked_once_for_all_that_is_read(played: ShimDevice) -> None:
    class Threads(Exporter):
        __module__ = "torch"

    for kind, expected in ((Threads, 1), (Exporter, 3)):
        exporters = [kind(played.resident(VALUES)) for _ in range(3)]
        waited: set[str] = set()
        read = [on_device(described(each), ShimDevice(), Ours(), waited) for each in exporters]
        assert [each.streams.count(77) for each in exporters].count(1) == expected
        assert [each.address for each in read] == [each.array.address for each in exporters]
        assert not any(each.is_described for each in read)


def changed(array: Any, **told: Any) -> Interfaced:
    thing = Interfaced(array)
    thing.__cuda_array_interface__.update(told)
    return thing


def test_what_cannot_be_read_there_is_refused_by_name(played: ShimDevice) -> None:
    array = played.resident(VALUES)
    nowhere, null = Interfaced(array), replace(array, address=0)
    del nowhere.__cuda_array_interface__["data"]
    for thing, words in (
        (Exporter(array, kind=1), "memory of DLPack's kind 1"),
        (Exporter(array, code=5, bits=64), "DLPack's kind 5"),
        (Exporter(array, code=2, bits=8), "float8"),
        (Exporter(array, shape=(-5,)), r"its shape is \(-5,\)"),
        (Exporter(array, shape=(-10, -10)), "its shape is"),
        (Exporter(array, shape=(2**40, 2**40)), "its shape is"),
        (Exporter(array, rank=2_000_000_000), "its number of dimensions is 2000000000; expected 0 to 64"),
        (Exporter(array, rank=-1), "its number of dimensions is -1"),
        (Exporter(null), "its address is 0"),
        (Exporter(replace(array, address=array.address + 1)), "expected a multiple of 4 bytes"),
        (Interfaced(null), "its address is 0"),
        (changed(array, data=(-8, False)), "its address is -8"),
        (changed(array, data=(2**70, False)), "its address is"),
        (changed(array, typestr=">f4"), "'>f4'; expected numbers in native byte order"),
        (changed(array, typestr="|V0", strides=(1,)), "'|V0'; expected numbers"),
        (changed(array, typestr="?!"), "data type"),
        (changed(array, strides=(5,), shape=(20,)), r"its strides are \(5,\); expected multiples of 4 bytes"),
        (changed(array, shape=(None,)), "NoneType"),
        (changed(array, shape=("a",)), "invalid literal"),
        (changed(array, mask=array), "it has a mask"),
        (nowhere, "data"),
        (object(), "cuda_array_interface"),
    ):
        with pytest.raises(BufferMismatch, match=f"a {type(thing).__name__} cannot be read on its device: .*{words}"):
            described(thing)


def test_arrays_of_a_library_that_never_writes_to_them_are_read_only(played: ShimDevice) -> None:
    class Frozen(Exporter):
        __module__ = "jaxlib.xla_extension"

    assert not seen(Frozen(played.resident(VALUES)))[0].flags.writeable
