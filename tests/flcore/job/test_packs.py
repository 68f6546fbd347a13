"""Packs: what goes in, the same bytes for the same job, and what comes out again."""

import os
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flcore import Job, JobError, run, save
from flcore.errors import PackError
from flcore.identity.lead_keys import SigningKey
from flcore.job import tree_sync
from flcore.job.changes import change_contract
from flcore.job.code import code_digest, code_names
from flcore.job.pack import Packed, open_pack, pack_job
from flcore.job.pack_archive import MAX_PACK_BYTES, Entry, archive_bytes
from flcore.job.pack_contract import contract_toml
from flcore.job.pack_manifest import MAX_DEPTH, MAX_FILES, MAX_FOLDERS, explain_names, in_order
from flcore.job.parsing import parse_contract
from flcore.model.atomic_replace import sync_file
from tests.flcore.job.forged_packs import FILES, JOB, TRAIN

ALICE = SigningKey.create("alice")


def write(directory: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return directory


def tree(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def names(packed: Packed) -> list[str]:
    return [file.name for file in packed.files]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return write(tmp_path / "small", FILES)


def test_the_bytes_depend_on_the_job_alone(tmp_path: Path) -> None:
    packs: list[tuple[str, bytes]] = []
    for place, order, mode, when in (("one", 1, 0o600, 1_000_000_000), ("deep/two", -1, 0o755, 1_700_000_000)):
        directory = write(tmp_path / place, dict(list(FILES.items())[::order]))
        for path in directory.rglob("*.*"):
            path.chmod(mode)
            os.utime(path, (when, when))
        packed = pack_job(Job.load(directory), tmp_path / f"{len(packs)}.flpack", ALICE)
        packs.append((packed.digest, packed.path.read_bytes()))
    assert packs[0] == packs[1]


def test_another_process_makes_the_same_bytes(small: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from flcore import Job; from flcore.job.pack import pack_job;"
        "print(pack_job(Job.load(sys.argv[1]), Path(sys.argv[2])).digest)"
    )
    found = {pack_job(Job.load(small), tmp_path / "here.flpack").digest}
    for seed, zone in (("1", "UTC"), ("2", "Asia/Tokyo")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone}
        command = [sys.executable, "-c", script, str(small), str(tmp_path / "there.flpack")]
        found.add(subprocess.check_output(command, env=environment, text=True).strip())
    assert len(found) == 1


names_of_files = st.from_regex(
    r"([a-zA-Z_ä-]{1,6}/){0,2}[a-zA-Z_ö-]{1,6}\.(py|toml|json|txt|md|yaml|csv)", fullmatch=True
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names_of_files, st.binary(max_size=40), max_size=8), st.booleans())
def test_pack_unpack_pack_gives_the_same_bytes(tmp_path: Path, more: dict[str, bytes], is_signed: bool) -> None:
    place = tmp_path / "place"
    shutil.rmtree(place, ignore_errors=True)
    directory, signer = place / "job", ALICE if is_signed else None
    try:
        write(directory, {**more, **FILES})
    except OSError:  # a file in the place of a directory
        return
    texts = [name for name in {**more, **FILES} if not name.endswith(".csv")]
    if explain_names(in_order(texts)) is not None:  # names that differ in case only
        with pytest.raises(PackError, match=r"expected one spelling|expected each file once"):
            pack_job(Job.load(directory), place / "first.flpack", signer)
        return
    first = pack_job(Job.load(directory), place / "first.flpack", signer)
    job = open_pack(first.path).unpack(place / "unpacked")
    second = pack_job(job, place / "second.flpack", signer)
    assert second.path.read_bytes() == first.path.read_bytes() and second.digest == first.digest
    assert job.code_digest == Job.load(directory).code_digest == open_pack(first.path).manifest.code_digest
    assert second.left_out == []
    left = {entry.name for entry in first.left_out}
    assert {name for name in tree(directory) if not any(name.startswith(each) for each in left)} == set(names(first))


@pytest.mark.parametrize("named", [(), ("train.py",), ("my-code/main.py",), ("a/b/c.py", "train.py"), ("./a/b.py",)])
def test_code_is_found_among_names_as_among_files(named: tuple[str, ...], tmp_path: Path) -> None:
    listed = """train.py a/b.py a/b/c.py a/b-c/d.py my-code/main.py my-code/flcore/x.py my-code/sub/y.py flcore/z.py
        flcore_bench/z.py sub/flcore/z.py no-module.py a/x.y.py data/load.py a.txt 1/x.py ä/ö.py __init__.py
        my-code/x-y.py"""
    content = {name: f"# {name}".encode() for name in listed.split()}
    with_paths = write(tmp_path / "all", content)
    counted = code_names(list(content), named)
    kept = write(tmp_path / "kept", {name: content[name] for name in counted})
    expected = code_digest(with_paths, named)
    assert code_digest(kept, named) == expected
    for name in counted:
        (kept / name).rename(kept / "moved")
        assert code_digest(kept, named) != expected
        (kept / "moved").rename(kept / name)


def test_what_goes_in_and_what_is_left_out(small: Path, tmp_path: Path) -> None:
    write(
        small,
        {
            "notes.md": b"n",
            "settings.yaml": b"y",
            "vocabulary.txt": b"v",
            "big.py": b"#" * (1 << 20) + b"#",
            "big.json": b"1" * (1 << 20) + b"1",
            "table.csv": b"1,2",
            "weights.safetensors": b"w",
            "site.toml": b"",
            "sub/Site.toml": b"",
            ".env": b"TOKEN=1",
            ".git/config.txt": b"",
            ".venv/lib/x.py": b"",
            "env/pyvenv.cfg": b"",
            "env/lib/x.py": b"",
            "conda/conda-meta/x.json": b"",
            "__pycache__/train.txt": b"",
            "runs/small/history.json": b"",
            "Data/north.json": b"1",
            "Data/load.py": b"",
            "kit/ca.pem": b"",
            "kit/README.txt": b"",
            "old/run.json": b"",
            "flcore/readme.md": b"",
            "sub/deep/more.txt": b"",
        },
    )
    (small / "linked.txt").symlink_to(small / "notes.md")
    (small / "broken.txt").symlink_to(small / "absent")
    write(tmp_path / "elsewhere", {"notes.txt": b""})
    (small / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(small / "pipe.txt")
    (small / "line\nbreak.txt").write_bytes(b"")
    packed = pack_job(Job.load(small), tmp_path / "small.flpack")
    assert names(packed) == [
        "job.toml",
        "Data/load.py",
        "big.py",
        "linked.txt",
        "notes.md",
        "settings.yaml",
        "sub/deep/more.txt",
        "sub/more.py",
        "train.py",
        "vocabulary.txt",
    ]
    kinds = "not of the kinds .py .toml .json .txt .md .yaml"
    assert [(entry.name, entry.reason) for entry in packed.left_out] == [
        (".env", "hidden"),
        (".git/", "hidden"),
        (".venv/", "hidden"),
        ("Data/", "data"),
        ("__pycache__/", "a cache"),
        ("big.json", "over 1 MiB"),
        ("broken.txt", "a broken link"),
        ("conda/", "an environment"),
        ("env/", "an environment"),
        ("flcore/", "flcore itself"),
        ("kit/", "certificates"),
        ("line\nbreak.txt", "its name has characters that are no text"),
        ("linked/", "a link to a directory"),
        ("old/", "results of a run"),
        ("pipe.txt", "no regular file"),
        ("runs/", "results of runs"),
        ("site.toml", "each site has its own"),
        ("sub/Site.toml", "each site has its own"),
        ("table.csv", kinds),
        ("weights.safetensors", kinds),
    ]
    unpacked = open_pack(packed.path).unpack(tmp_path / "out")
    assert unpacked.code_digest == Job.load(small).code_digest
    assert tree(tmp_path / "out") == {name: (small / name).read_bytes() for name in names(packed)}


@pytest.mark.parametrize("shard_bytes", [1 << 20, 64])
@pytest.mark.parametrize("model", ["base.safetensors", "models/base", "."])
def test_a_checkpoint_that_the_contract_names_goes_in(
    model: str, shard_bytes: int, small: Path, tmp_path: Path
) -> None:
    save({"a": np.zeros(16), "b": np.ones(16)}, small / model, {"format": "pt"}, shard_bytes=shard_bytes)
    (small / "job.toml").write_bytes(JOB.replace(b"train.py:initial_model", model.encode()))
    (small / "other.safetensors").write_bytes(b"x")
    packed = pack_job(Job.load(small), tmp_path / "small.flpack")
    assert sum(".safetensors" in name for name in names(packed)) == (1 if shard_bytes > 64 else 3)
    assert "other.safetensors" not in names(packed)
    assert open_pack(packed.path).unpack(tmp_path / "out").initial_metadata() == {"format": "pt"}


@pytest.mark.parametrize(
    ("files", "job", "said"),
    [
        ({}, JOB.replace(b"train.py:initial", b"absent.py:initial"), "it names absent.py, and there is no file"),
        ({}, JOB.replace(b"train.py:initial_model", b"/x.safetensors"), "expected a checkpoint in the job's directory"),
        (
            {},
            JOB.replace(b"train.py:initial_model", b"../x.safetensors"),
            "expected a checkpoint in the job's directory",
        ),
        ({}, JOB.replace(b"train.py:initial_model", b"x.safetensors"), "server.model: there is no file"),
        ({"fast.abi3.so": b""}, JOB, "fast.abi3.so: expected sources, got an extension module"),
        ({"a:b.txt": b""}, JOB, "control characters, backslashes and colons"),
        ({"a\\b.txt": b""}, JOB, "control characters, backslashes and colons"),
        ({"pack.json": b""}, JOB, "expected another name, as the pack itself has a file of this name"),
        ({"signature.json": b""}, JOB, "expected another name, as the pack itself has a file of this name"),
        ({"Train.py": b""}, JOB, "expected each file once"),
        ({"Sub/x.py": b""}, JOB, "expected one spelling"),
        ({}, JOB + b"#" * (256 << 10), "job.toml: expected at most 262,144 bytes"),
        ({f"{number}.txt": b"" for number in range(MAX_FILES)}, JOB, "List should have at most 10000 items"),
        ({f"{number}/a.txt": b"" for number in range(MAX_FOLDERS + 1)}, JOB, "expected at most 1,000 directories"),
        ({f"{'a/' * MAX_DEPTH}a.txt": b""}, JOB, "expected a path of at most 16 parts, got 17"),
    ],
)
def test_a_job_that_cannot_be_packed(
    files: dict[str, bytes], job: bytes, said: str, small: Path, tmp_path: Path
) -> None:
    write(small, {**files, "job.toml": job})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(PackError, match=said):
        pack_job(Job.load(small), out / "small.flpack")
    assert list(out.iterdir()) == []


def test_a_job_without_its_code_cannot_be_packed_and_the_old_pack_stays(small: Path, tmp_path: Path) -> None:
    job, out = Job.load(small), tmp_path / "small.flpack"
    before = pack_job(job, out).digest
    (small / "train.py").unlink()
    with pytest.raises(PackError, match=r"it names train\.py"):
        pack_job(job, out)
    assert open_pack(out).digest == before
    (small / "train.py").write_bytes(TRAIN + b"# more\n")
    assert pack_job(job, out).digest != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small", "small.flpack"]


def test_a_file_that_changes_while_it_is_packed(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flcore.job import pack

    write_archive = pack._write

    def meanwhile(*arguments: Any) -> str:
        (small / "train.py").write_bytes(TRAIN[:-1] + b"#")
        return write_archive(*arguments)

    monkeypatch.setattr(pack, "_write", meanwhile)
    with pytest.raises(PackError, match=r"train\.py: expected a file at rest, got one that changed"):
        pack_job(Job.load(small), tmp_path / "small.flpack")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_the_size_of_a_pack_is_known_before_it_is_written(small: Path, tmp_path: Path) -> None:
    packed = pack_job(Job.load(small), tmp_path / "small.flpack", ALICE)
    with zipfile.ZipFile(packed.path) as archive:
        entries = [Entry(row.filename, row.file_size, row.CRC) for row in archive.infolist()]
    assert archive_bytes(entries) == packed.path.stat().st_size
    assert archive_bytes([Entry("a", MAX_PACK_BYTES, 0)]) > MAX_PACK_BYTES


def test_a_job_of_more_than_a_pack_takes_is_refused_before_it_is_read(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save({"a": np.zeros(16)}, small / "base.safetensors")
    os.truncate(small / "base.safetensors", MAX_PACK_BYTES)  # a sparse file: it takes no space
    (small / "job.toml").write_bytes(JOB.replace(b"train.py:initial_model", b"base.safetensors"))
    monkeypatch.setattr("flcore.job.pack._scan", lambda *_: pytest.fail("a file was read"))
    told = (
        r"expected a job of less than 4 GiB, got 4,294,.* files, 4,294,967,295 of them in base\.safetensors; take large"
    )
    with pytest.raises(PackError, match=told):
        pack_job(Job.load(small), tmp_path / "small.flpack")


def test_a_pack_is_the_zip_file_that_python_writes(small: Path, tmp_path: Path) -> None:
    write(small, {"ä.txt": b"a"})
    packed = pack_job(Job.load(small), tmp_path / "small.flpack", ALICE)
    with zipfile.ZipFile(packed.path) as archive, zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        assert archive.testzip() is None
        assert archive.namelist() == ["pack.json", *names(packed), "signature.json"]
        for name in archive.namelist():
            row = zipfile.ZipInfo(name)
            row.create_system, row.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            other.writestr(row, archive.read(name))
    assert (tmp_path / "other.zip").read_bytes() == packed.path.read_bytes()


def test_signatures(small: Path, tmp_path: Path) -> None:
    bob = SigningKey.create("bob")
    plain = open_pack(pack_job(Job.load(small), tmp_path / "plain.flpack").path)
    signed = open_pack(pack_job(Job.load(small), tmp_path / "signed.flpack", ALICE).path)
    assert plain.signature is None and signed.signature is not None
    assert signed.signature.signer == "alice" and signed.digest != plain.digest
    assert signed.signature.verify([bob.public, ALICE.public]) == "alice"
    assert signed.signature.verify([bob.public]) is signed.signature.verify([]) is None
    named_by_the_site = type(bob.public)("the-hospital", ALICE.public.key)
    assert signed.signature.verify([named_by_the_site]) == "the-hospital"


def test_unpacking(small: Path, tmp_path: Path) -> None:
    pack = open_pack(pack_job(Job.load(small), tmp_path / "small.flpack").path)
    (tmp_path / "empty").mkdir()
    for place in ("new/deep", "empty"):
        job = pack.unpack(tmp_path / place)
        assert job.directory == tmp_path / place and job.contract == Job.load(tmp_path / place).contract
        assert tree(job.directory) == FILES
        assert {path.stat().st_mode & 0o133 for path in job.directory.rglob("*.*")} == {0}
    (tmp_path / "file").write_bytes(b"mine")
    (tmp_path / "linked").symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path)
    for place in ("new/deep", "file", "linked", "small"):
        with pytest.raises(PackError, match="expected a path where there is nothing, or an empty directory"):
            pack.unpack(tmp_path / place)
    assert tree(tmp_path) == before and not (tmp_path / "elsewhere").exists()


def test_another_sound_pack_in_the_place_of_the_checked_one(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "small.flpack"
    pack = open_pack(pack_job(Job.load(small), path).path)
    (small / "train.py").write_bytes(TRAIN[:-1] + b"#")
    pack_job(Job.load(small), path)
    with pytest.raises(PackError, match="expected the pack that was checked, got another file"):
        pack.unpack(tmp_path / "out")
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 2


def test_a_changed_job_is_packed_with_its_contract(small: Path, tmp_path: Path) -> None:
    changed = Job.load(small).with_changes({"server.rounds": 20, "tasks.train.hyperparameters.rate": 1.5})
    pack = open_pack(pack_job(changed, tmp_path / "changed.flpack").path)
    assert pack.contract.fingerprint == changed.contract.fingerprint != Job.load(small).contract.fingerprint
    assert pack.unpack(tmp_path / "out").contract == Job.load(tmp_path / "out").contract == changed.contract
    other = write(tmp_path / "other", {"quick.toml": JOB.replace(b"rounds = 3", b"rounds = 1"), "train.py": TRAIN})
    assert open_pack(pack_job(Job.load(other / "quick.toml"), tmp_path / "q.flpack").path).contract.server.rounds == 1


def test_a_pack_with_changes_has_the_fingerprint_of_the_changed_contract(small: Path, tmp_path: Path) -> None:
    job = Job.load(small)
    pack = open_pack(pack_job(job, tmp_path / "small.flpack").path)
    changes: dict[str, Any] = {"server.rounds": 20, "clients": ["north"]}
    assert pack.contract_with({}) == job.contract
    assert pack.contract_with(changes).fingerprint == job.with_changes(changes).contract.fingerprint
    for refused, said in (
        ({"name": "other"}, "name: expected a key other than name, client.executor; change job.toml, and pack it"),
        ({"client.executor": "sub/more.py"}, "client.executor: expected a key other than"),
        ({"client": {}}, "client: expected a key other than"),
        ({"server.model": "/etc/x.safetensors"}, "the changed contract: job.toml: server.model: expected a checkpoint"),
        ({"server.workflow": "absent.py:f"}, "none called 'absent.py'"),
        ({"server.round": 20}, "the nearest one is server.rounds"),
    ):
        with pytest.raises(JobError, match=said):
            pack.contract_with(refused)


texts = st.text(st.characters(codec="utf-8"), max_size=12)
values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(texts, values, max_size=4), st.dictionaries(texts, values, max_size=3))
def test_a_contract_as_toml_is_the_same_contract(client: dict[str, Any], step: dict[str, Any]) -> None:
    schedule = [{"from_round": 2, "hyperparameters": step}]
    changes = {"client.hyperparameters": client, "tasks.train.schedule": schedule, "server.close_at": 3}
    contract = change_contract(Job.load("digits").contract, changes)
    assert parse_contract(tomllib.loads(contract_toml(contract)), "it").fingerprint == contract.fingerprint


def test_a_null_is_no_toml() -> None:
    contract = change_contract(Job.load("digits").contract, {"client.hyperparameters": {"x": [None]}})
    with pytest.raises(PackError, match="x: expected a value that TOML can hold, got null"):
        contract_toml(contract)


def test_a_packed_job_runs_with_the_same_bits(tmp_path: Path) -> None:
    job = Job.load("digits", rounds=1)
    unpacked = open_pack(pack_job(job, tmp_path / "digits.flpack").path).unpack(tmp_path / "digits")
    assert unpacked.code_digest == job.code_digest
    models = [run(each, workers=0)[1].arrays() for each in (job, unpacked)]
    assert all(np.array_equal(models[0][name], models[1][name]) for name in models[0])


def test_a_pack_is_no_jobs_directory(small: Path, tmp_path: Path) -> None:
    packed = pack_job(Job.load(small), tmp_path / "small.flpack")
    with pytest.raises(JobError, match="expected a job's directory, got a pack; unpack it"):
        Job.load(packed.path)


def test_a_pack_of_many_files_is_unpacked_with_one_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = list[str]()
    flush_all, flush = tree_sync._sync_file_system, sync_file

    def sync_all(path: Path) -> None:
        flushed.append("all")
        flush_all(path)

    def sync_one(path: Path) -> None:
        flushed.append(path.name)
        flush(path)

    monkeypatch.setattr(tree_sync, "_sync_file_system", sync_all)
    monkeypatch.setattr(tree_sync, "sync_file", sync_one)
    for count in (3, 500):
        more = {f"{number}.txt": str(number).encode() for number in range(count)}
        directory = write(tmp_path / str(count), {"job.toml": JOB, "train.py": TRAIN} | more)
        pack_job(Job.load(directory), tmp_path / f"{count}.flpack")
        open_pack(tmp_path / f"{count}.flpack").unpack(tmp_path / f"unpacked-{count}")
        assert (tmp_path / f"unpacked-{count}/2.txt").read_text() == "2"
        few = {"job.toml", "train.py", "0.txt", "1.txt", "2.txt"}
        assert set(flushed) == (few if count == 3 or sys.platform != "linux" else few | {"all"})
