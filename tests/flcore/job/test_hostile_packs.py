"""Packs of somebody else: each is one clear `PackError`; nothing is written, and time and memory are bounded."""

import json
import os
import random
import time
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from flcore.errors import PackError
from flcore.identity.lead_keys import SigningKey
from flcore.job.pack import open_pack
from flcore.job.pack_manifest import Signature
from tests.flcore.job.forged_packs import (
    CONTRACT,
    DEFLATED,
    DEVICE,
    FILES,
    FOLDER,
    JOB,
    LINK,
    Part,
    canonical,
    changed,
    manifest_of,
    parts_of,
    zipped,
)

ALICE, MALLORY = SigningKey.create("alice"), SigningKey.create("mallory")
MAX_BYTES = 8 << 20
MAX_MEMORY = 48 << 20
MAX_SECONDS = 5.0

GOOD = zipped(parts_of())


@dataclass(frozen=True)
class Case:
    """A hostile pack, and a part of the error."""

    name: str
    make: Callable[[], bytes]
    said: str


def named(name: str) -> Callable[[], bytes]:
    """A pack with one more file, of this name, that its manifest lists."""
    return lambda: zipped(parts_of({**FILES, name: b"x"}, manifest_of({**FILES, name: b"x"})))


def job_of(job: bytes, **contract: object) -> Callable[[], bytes]:
    """A pack with another job.toml, whose manifest fits it as far as possible."""
    files = {**FILES, "job.toml": job}
    return lambda: zipped(parts_of(files, manifest_of(files, contract={**CONTRACT, **contract} if contract else None)))


def says(**changes: object) -> Callable[[], bytes]:
    """A pack whose manifest has other values."""
    return lambda: zipped(parts_of(manifest=manifest_of(FILES, **changes)))


def rows(*, index: int, **changes: object) -> Callable[[], bytes]:
    """A pack whose manifest says something else of one file."""
    found = json.loads(manifest_of(FILES))["files"]
    found[index] |= changes
    return says(files=found)


def entry(index: int, **fields: object) -> Callable[[], bytes]:
    """A pack of which one entry has other fields."""
    return lambda: zipped(changed(parts_of(), index, **fields))


def central(index: int, **fields: object) -> Callable[[], bytes]:
    """A pack whose directory says something else of one entry."""
    return lambda: zipped(parts_of(), changed(parts_of(), index, **fields))


def signed_by(signature: Callable[[bytes], bytes]) -> Callable[[], bytes]:
    return lambda: zipped([*parts_of(), Part("signature.json", signature(parts_of()[0].content))])


def stolen(manifest: bytes) -> bytes:
    """Mallory's signature under Alice's public key."""
    made = Signature.make(MALLORY, manifest)
    return made.model_copy(update={"public_key": ALICE.public.key.hex(), "signer": "alice"}).encoded


def bomb(nbytes: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(nbytes)) + packer.flush()


def model_of(name: str) -> bytes:
    return JOB.replace(b"train.py:initial_model", name.encode())


def many(count: int) -> dict[str, bytes]:
    return {**FILES, **{f"zz/{number:05d}.txt": b"" for number in range(count)}}


ZEROS = bomb(256 << 20)

CASES = [
    # no zip file
    Case("empty", lambda: b"", "file that ends after 0 bytes"),
    Case("text", lambda: b"name = 'small'\n", "expected a zip file"),
    Case("zeros", lambda: bytes(5_000), "expected a zip file"),
    Case("a tar's name", lambda: b"pack.json" + bytes(503), "expected a zip file"),
    Case("an empty zip file", lambda: zipped([]), "expected a zip file"),
    Case("truncated in a header", lambda: GOOD[:20], "file that ends after 20 bytes"),
    Case("truncated in a name", lambda: GOOD[:35], "file that ends after 35 bytes"),
    Case(
        "truncated in the manifest",
        lambda: GOOD[:200],
        "'pack.json': expected 631 bytes, got a file that ends after 161",
    ),
    Case("truncated before the directory", lambda: GOOD[: GOOD.index(b"PK\1\2")], "expected a whole pack"),
    Case("truncated in the directory", lambda: GOOD[:-30], "expected a whole pack"),
    Case("without its last byte", lambda: GOOD[:-1], "expected a whole pack"),
    Case("one byte more", lambda: GOOD + b"\0", "expected the end of the zip file"),
    Case("one byte before", lambda: b"\0" + GOOD, "expected a zip file"),
    Case("a program before", lambda: b"#!/bin/sh\nexit\n" + GOOD, "expected a zip file"),
    Case("a comment", lambda: zipped(parts_of(), comment=b"hello"), "expected the end of the zip file"),
    Case("twice", lambda: GOOD + GOOD, "expected the end of the zip file"),
    Case("larger than the limit", lambda: GOOD + bytes(MAX_BYTES), "expected a pack of at most 8,388,608 bytes"),
    # entries
    Case("no manifest", lambda: zipped(parts_of()[1:]), "expected the file 'pack.json', got 'job.toml'"),
    Case("the manifest last", lambda: zipped([*parts_of()[1:], parts_of()[0]]), "expected the file 'pack.json'"),
    Case("a duplicate entry", lambda: zipped([*parts_of(), parts_of()[-1]]), "expected no other file than pack.json"),
    Case("a second manifest", lambda: zipped([parts_of()[0], *parts_of()]), "expected the file 'job.toml'"),
    Case("an extra entry", lambda: zipped([*parts_of(), Part("more.py", b"x")]), "got 'more.py'"),
    Case("an extra entry outside", lambda: zipped([*parts_of(), Part("../evil.py", b"x")]), "got '../evil.py'"),
    Case("an extra entry with a control", lambda: zipped([*parts_of(), Part("a\33[2J", b"x")]), r"got 'a\\\\x1b\[2J'"),
    Case("a missing entry", lambda: zipped(parts_of()[:-1]), "expected the file 'train.py', got the end"),
    Case("another order", lambda: zipped([*parts_of()[:2], *parts_of()[:1:-1]]), "expected the file 'sub/more.py'"),
    Case("another name", entry(2, name="sub/less.py"), "expected the file 'sub/more.py', got 'sub/less.py'"),
    Case("a name of 60,000 bytes", entry(2, name="a" * 60_000), "expected names of at most 512 bytes"),
    Case("a name in Latin-1", entry(2, name=b"sub/\xe9.py"), "expected names in UTF-8"),
    Case("a zero in a name", entry(2, name=b"sub/more.py\0.txt"), "expected the file 'sub/more.py'"),
    Case("encrypted", entry(3, flags=1), "'train.py': expected an entry that is not encrypted"),
    Case("encrypted in the directory", central(3, flags=1), "'train.py': expected an entry that is not encrypted"),
    Case("a data descriptor", entry(3, flags=8), "got another header"),
    Case("compressed", entry(3, content=bomb(10), method=DEFLATED, nbytes=10), "expected an entry without compression"),
    Case("a bomb", entry(3, content=ZEROS, method=DEFLATED, nbytes=256 << 20), "expected an entry without compression"),
    Case("a bomb as a manifest", entry(0, content=ZEROS, method=DEFLATED, nbytes=256 << 20), "without compression"),
    Case("compressed in the directory", central(3, method=DEFLATED), "expected an entry without compression"),
    Case("a size of 4 GiB", entry(3, nbytes=2**32 - 1), "expected an entry without compression"),
    Case("a checksum of other bytes", entry(3, crc=1), "expected content with its checksum"),
    Case("another time", entry(3, date=0x5921), "got another header"),
    Case("an extra field", entry(3, extra=b"\1\0\0\0"), "got another header"),
    Case("a link", central(3, mode=LINK), "'train.py': expected a file, got a link"),
    Case("a device", central(3, mode=DEVICE), "'train.py': expected a file, got a device"),
    Case("a directory", central(3, mode=FOLDER), "'train.py': expected a file, got a directory"),
    Case("a program", central(3, mode=0o104755), "got another name, size, mode"),
    Case("another place in the directory", central(3, offset=0), "got another name, size, mode"),
    Case("another name in the directory", central(3, name="evil.py!"), "got another name, size, mode"),
    Case("a directory of fewer entries", lambda: zipped(parts_of(), parts_of()[:-1]), "expected a whole pack"),
    Case("a directory of more entries", lambda: zipped(parts_of(), [*parts_of(), parts_of()[0]]), "got other bytes"),
    # names
    Case("an absolute path", named("/etc/cron.d/x.txt"), "expected a path in the job's directory"),
    Case("a path above", named("../x.txt"), "expected a path in the job's directory"),
    Case("a path above, later", named("zz/../../x.txt"), "expected a path in the job's directory"),
    Case("a dot", named("./x.txt"), "expected a path in the job's directory"),
    Case("two slashes", named("zz//x.txt"), "expected a path in the job's directory"),
    Case("a directory's name", named("zz/"), "expected a path in the job's directory"),
    Case("an empty name", named(""), "expected a path in the job's directory"),
    Case("backslashes", named("..\\x.txt"), "control characters, backslashes and colons"),
    Case("a drive letter", named("C:x.txt"), "control characters, backslashes and colons"),
    Case("a stream's name", named("zz.txt:x"), "control characters, backslashes and colons"),
    Case("a zero", named("zz\0.txt"), "control characters, backslashes and colons"),
    Case("a line break", named("zz\n.txt"), "control characters, backslashes and colons"),
    Case("an escape", named("zz\33[2J.txt"), "control characters, backslashes and colons"),
    Case("text from right to left", named("zz\u202etxt.exe"), "control characters, backslashes and colons"),
    Case("a long name", named("z" * 250), "expected a path of at most 240 bytes"),
    Case("a deep path", named("/".join("z" * 17)), "expected a path of at most 16 parts, got 17"),
    Case("a duplicate name", says(files=[*json.loads(manifest_of(FILES))["files"]] * 2), "expected each file once"),
    Case("another case", named("Train.py"), "expected each file once"),
    Case("another case of a directory", named("SUB/x.txt"), "expected one spelling"),
    Case(
        "composed otherwise",
        lambda: zipped(parts_of({"job.toml": JOB, "e\u0301.txt": b"", **FILES, "\u00e9.txt": b""})),
        "expected each file once",
    ),
    Case("a file that is a directory", named("train.py/x.txt"), "expected a file or a directory, got both"),
    Case("a site's settings", named("site.toml"), "expected no site.toml"),
    Case("a site's settings in another case", named("zz/SITE.toml"), "expected no site.toml"),
    Case("an extension module", named("zz.cpython-311-x86_64-linux-gnu.so"), "expected sources, got compiled code"),
    Case("compiled code", named("zz/train.pyc"), "expected sources, got compiled code"),
    Case("an environment", named("zz/pyvenv.cfg"), "expected no environment"),
    Case("the manifest's name", named("pack.json"), "as the pack itself has a file of this name"),
    Case(
        "another order of names", says(files=json.loads(manifest_of(FILES))["files"][::-1]), "expected job.toml first"
    ),
    # the manifest
    Case("no JSON", lambda: zipped(parts_of(manifest=b"{")), "pack.json: expected JSON"),
    Case("a manifest of zeros", lambda: zipped(parts_of(manifest=bytes(99))), "pack.json: expected JSON"),
    Case("a deep manifest", lambda: zipped(parts_of(manifest=b"[" * 1_000_000)), "pack.json: expected JSON"),
    Case("a list", lambda: zipped(parts_of(manifest=b"[]\n")), "expected the format 'flcore-pack-1', got None"),
    Case("another format", says(format="flcore-pack-2"), "expected the format 'flcore-pack-1', got 'flcore-pack-2'"),
    Case("an unknown key", says(more=1), "pack.json: more: Extra inputs"),
    Case("a name that is a path", says(name="../small"), "pack.json: name: String should match"),
    Case("a manifest with other white space", lambda: zipped(parts_of(manifest=manifest_of(FILES) + b" ")), "one form"),
    Case("a key twice", lambda: zipped(parts_of(manifest=b'{"a": 1, "a": 2}')), "'a' appears twice"),
    Case(
        "a manifest of 5 MiB", lambda: zipped(parts_of(manifest=b" " * (5 << 20))), "expected at most 4,194,304 bytes"
    ),
    Case("10,001 files", lambda: zipped(parts_of(many(9_998))), "pack.json: files: List should have at most 10000"),
    Case("no files", says(files=[]), "pack.json: files: List should have at least 1 item"),
    Case("a size below zero", rows(index=1, nbytes=-1), "pack.json: files.1.nbytes"),
    Case("a larger size", rows(index=1, nbytes=7), "sub/more.py: expected 7 bytes, got 6"),
    Case("a smaller size", rows(index=1, nbytes=5), "sub/more.py: expected at most 5 bytes, got 6"),
    Case(
        "a size of 4 GiB in the manifest", rows(index=1, nbytes=2**32 - 1), "sub/more.py: expected 4,294,967,295 bytes"
    ),
    Case("another digest", rows(index=1, sha256="0" * 64), "sub/more.py: expected content with the SHA-256 0000"),
    Case("another code digest", says(code_digest="0" * 64), "expected the code digest 0000"),
    Case("another fingerprint", says(contract_fingerprint="0" * 64), "expected the contract 'small' with the finger"),
    Case("another job's name", says(name="large"), "expected the contract 'large'"),
    # the contract
    Case("a contract that is no TOML", job_of(b"name = \n"), "job.toml: expected TOML"),
    Case("a contract in UTF-16", job_of(JOB.decode().encode("utf-16")), "job.toml: expected TOML: expected UTF-8"),
    Case("a contract of zeros", job_of(bytes(50)), "job.toml: expected TOML"),
    Case("a contract without keys", job_of(b"\n"), "job.toml: expected the keys name, clients"),
    Case("a contract with a date", job_of(JOB.replace(b"0.5", b"2020-01-01")), "expected values that JSON can hold"),
    Case("a contract with 9,000 unknown keys", job_of(b"\n".join(b"a%d = 1" % n for n in range(9_000))), "more errors"),
    Case("a deep contract", job_of(b"a = " + b"[" * 50_000), "job.toml: expected TOML"),
    Case("a contract with a key of 60,000 parts", job_of(b"a." * 60_000 + b"a = 1"), "expected at most 1,000 dots"),
    Case("a contract of 300 KiB", job_of(JOB + b"#" * (300 << 10)), "job.toml: expected at most 262,144 bytes"),
    Case("no contract", lambda: zipped(parts_of({"train.py": b""})), "expected job.toml first"),
    Case("code outside", job_of(model_of("../evil.py:f")), "expected code in the job's directory"),
    Case(
        "code that is absent",
        job_of(model_of("evil.py:f"), server={"model": "evil.py:f", "rounds": 3}),
        "job.toml: expected the files that it names in the pack, got none called 'evil.py'",
    ),
    *(
        Case(
            f"the checkpoint {path}",
            job_of(model_of(path), server={"model": path, "rounds": 3}),
            "job.toml: server.model: expected a checkpoint in the pack",
        )
        for path in ("/etc/model.safetensors", "../model.safetensors", "other.safetensors", ".", "/", "..")
    ),
    # signatures
    Case("a signature of another pack", signed_by(lambda _: Signature.make(ALICE, b"other").encoded), "of this pack"),
    Case("a signature of another key", signed_by(stolen), "expected a signature of this pack"),
    Case("a signature of zeros", signed_by(lambda _: bytes(300)), "signature.json: expected JSON"),
    Case("a signature without a key", signed_by(lambda _: canonical({"signer": "a"})), "signature.json: public_key"),
    Case(
        "a signature by a key of zeros",
        signed_by(lambda _: canonical({"public_key": "0" * 64, "signature": "0" * 128, "signer": "a"})),
        "expected a signature of this pack",
    ),
    Case("a large signature", signed_by(lambda _: b" " * 5_000), "signature.json: expected at most 4,096 bytes"),
    Case(
        "two signatures",
        lambda: zipped([*parts_of(signer=ALICE), parts_of(signer=MALLORY)[-1]]),
        "expected no file after signature.json",
    ),
    Case(
        "a signature first", lambda: zipped([parts_of(signer=ALICE)[-1], *parts_of()]), "expected the file 'pack.json'"
    ),
]


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in sorted(directory.rglob("*"))
    }


def test_the_forger_can_write_a_good_pack(tmp_path: Path) -> None:
    path = tmp_path / "small.flpack"
    path.write_bytes(zipped(parts_of(signer=ALICE)))
    pack = open_pack(path)
    assert pack.signature is not None and pack.signature.verify([ALICE.public]) == "alice"
    assert [file.name for file in pack.manifest.files] == list(FILES)
    assert tree(pack.unpack(tmp_path / "out").directory) == {"sub": b"", **FILES}


def test_there_are_enough_cases_and_each_has_a_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_hostile_pack_is_one_error(case: Case, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    path = place / "small.flpack"
    data = case.make()
    path.write_bytes(GOOD)
    checked = open_pack(path)
    path.write_bytes(data)
    before = tree(tmp_path)
    tracemalloc.start()
    began = time.process_time()
    try:
        with pytest.raises(PackError, match=case.said) as caught:
            open_pack(path, MAX_BYTES)
        taken, peak = time.process_time() - began, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 700, message
    assert taken < MAX_SECONDS and peak < MAX_MEMORY
    with pytest.raises(PackError):  # a pack that was replaced after it was checked
        checked.unpack(place / "out")
    assert tree(tmp_path) == before


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.flpack"
    for size in range(len(GOOD)):
        path.write_bytes(GOOD[:size])
        with pytest.raises(PackError):
            open_pack(path)


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_refused(mask: int, tmp_path: Path) -> None:
    path = tmp_path / "small.flpack"
    whole = zipped(parts_of(signer=ALICE))
    for offset in range(len(whole)):
        data = bytearray(whole)
        data[offset] ^= mask
        path.write_bytes(data)
        with pytest.raises(PackError):
            open_pack(path)


def test_bytes_that_are_moved_doubled_or_dropped_are_refused(tmp_path: Path) -> None:
    draw, path = random.Random(21), tmp_path / "small.flpack"
    whole = zipped(parts_of(signer=ALICE))
    for _ in range(2_000):
        start, stop = sorted(draw.sample(range(len(whole) + 1), 2))
        piece, at = whole[start:stop], draw.randrange(len(whole))
        rest = whole[:start] + whole[stop:]
        data = draw.choice((rest, rest[:at] + piece + rest[at:], whole[:at] + piece + whole[at:]))
        if data != whole:
            path.write_bytes(data)
            with pytest.raises(PackError):
                open_pack(path)


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.flpack")
    for path, said in (
        (tmp_path, "got a directory, a pipe or a device"),
        (tmp_path / "pipe.flpack", "got a directory, a pipe or a device"),
        (Path("/dev/zero"), "got a directory, a pipe or a device"),
        (tmp_path / "absent.flpack", "No such file or directory"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(PackError, match=said):
            open_pack(path)
