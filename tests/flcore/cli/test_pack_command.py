"""`flcore job pack`, `flcore job check PACK` and `flcore certs lead`: what they print, and the page docs/packs.md."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flcore.identity.lead_keys import PublicKey
from flcore.job.pack import open_pack
from flcore.job.pack_files import MAX_TEXT_BYTES, TEXT_SUFFIXES
from flcore.job.pack_manifest import MAX_DEPTH, MAX_FILES, MAX_FOLDERS
from tests.flcore.command import flcore, said
from tests.flcore.job.forged_packs import FILES
from tests.test_readme import blocks, commands, shell

PAGE = (Path(__file__).parents[3] / "docs/packs.md").read_text()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        path = tmp_path / "small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


@pytest.fixture
def lead(place: Path) -> Path:
    said("certs", "init", "hospitals", "--host", "localhost", cwd=place)
    printed = said("certs", "lead", "alice", "bob", cwd=place)
    assert "certs/kits/alice.zip: expires 20" in printed
    assert "certs/kits/alice.pub: the public key, which sites list in `signers`" in printed
    subprocess.run(["unzip", "-q", "certs/kits/alice.zip"], cwd=place, check=True)
    return place / "alice"


def test_the_list_of_a_pack(place: Path) -> None:
    (place / "small/table.csv").write_text("1,2")
    (place / "small/.env").write_text("TOKEN=1")
    printed = flcore("job", "pack", "small", cwd=place).splitlines()
    digest = open_pack(place / "small.flpack").digest
    size = (place / "small.flpack").stat().st_size
    assert printed == [
        f"packed    job.toml, {len(FILES['job.toml'])} bytes",
        "packed    sub/more.py, 6 bytes",
        f"packed    train.py, {len(FILES['train.py'])} bytes",
        "left out  .env: hidden",
        f"left out  table.csv: not of the kinds {' '.join(TEXT_SUFFIXES)}",
        f"small.flpack: 3 files, {size:,} bytes, not signed, SHA-256 {digest}",
    ]
    said("job", "pack", "small", "--out", "other.flpack", cwd=place)
    assert (place / "other.flpack").read_bytes() == (place / "small.flpack").read_bytes()


def test_thousands_of_files_that_are_left_out_are_a_few_lines(place: Path) -> None:
    for number in range(100):
        (place / f"small/{number:03d}.csv").write_text("")
    printed = said("job", "pack", "small", cwd=place).splitlines()
    assert len(printed) == 45 and printed[-2] == "left out  60 more"


def test_a_name_cannot_write_lines_of_its_own(place: Path) -> None:
    (place / "small/a\n\33[2J.csv").write_text("")
    assert "left out  a\\n\\x1b[2J.csv: " in said("job", "pack", "small", cwd=place)


def test_a_check_of_a_pack_says_what_is_in_it_and_who_has_signed_it(place: Path, lead: Path) -> None:
    said("job", "pack", "small", "--sign", "alice", cwd=place)
    pack, key = open_pack(place / "small.flpack"), PublicKey.load(place / "certs/kits/alice.pub")
    assert pack.signature is not None and pack.signature.verify([key]) == "alice"
    printed = said("job", "check", "small.flpack", cwd=place)
    for line in (
        "job          small, seed 0",
        "file         sub/more.py, 6 bytes",
        f"fingerprint  {pack.contract.fingerprint}",
        f"code         {pack.manifest.code_digest}",
        f"pack         {pack.digest}, {pack.nbytes:,} bytes",
        f"signed by    the key {key.key.hex()}, as alice",
    ):
        assert f"{line}\n" in printed
    assert printed.endswith("\nThe pack is sound.\n")
    said("job", "pack", "small", cwd=place)
    assert "signed by    nobody\n" in said("job", "check", "small.flpack", cwd=place)


def test_a_check_runs_no_code_of_a_pack(place: Path) -> None:
    code = FILES["train.py"].decode()
    (place / "small/train.py").write_text(f"raise SystemExit('code was run')\n{code}")
    said("job", "pack", "small", cwd=place)
    assert "The pack is sound." in said("job", "check", "small.flpack", cwd=place)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pack", "absent"], "there is no job at absent"),
        (["pack", "small", "--sign", "absent"], "absent: expected the directory of an unpacked kit, got none"),
        (["pack", "small", "--out", "absent/small.flpack"], "No such file or directory"),
        (["pack", "small", "--out", "small"], "Is a directory"),
        (["check", "bad.flpack"], "bad.flpack: expected a zip file, got other bytes; get the file again"),
        (["check", "absent.flpack"], "there is no job at absent.flpack"),
    ],
)
def test_an_error_is_one_line(place: Path, arguments: list[str], message: str) -> None:
    (place / "bad.flpack").write_bytes(bytes(100))
    before = sorted(path.name for path in place.iterdir())
    printed = said("job", *arguments, cwd=place, code=1)
    assert message in printed and printed.count("\n") == 1
    assert sorted(path.name for path in place.iterdir()) == before


def test_a_lead_whose_public_key_is_there_already_gets_no_certificate(place: Path) -> None:
    said("certs", "init", "hospitals", "--host", "localhost", cwd=place)
    (place / "certs/kits").mkdir()
    (place / "certs/kits/bob.pub").write_text("mine")
    assert "bob.pub: expected no file, got one" in said("certs", "lead", "alice", "bob", cwd=place, code=1)
    said("certs", "lead", "alice", "alice", cwd=place, code=2)
    assert [path.name for path in (place / "certs/kits").iterdir()] == ["bob.pub"]
    assert "alice" not in said("certs", "list", cwd=place)


def test_a_renewed_kit_leaves_the_signing_key(place: Path, lead: Path) -> None:
    key = (lead / "signing.key").read_bytes()
    said("certs", "renew", "alice", "--out", "renewed", cwd=place)
    subprocess.run(["unzip", "-qo", "renewed/alice.zip"], cwd=place, check=True)
    assert (lead / "signing.key").read_bytes() == key
    said("job", "pack", "small", "--sign", "alice", cwd=place)


def test_admins_have_kits(place: Path, lead: Path) -> None:
    said("certs", "issue", "root", "--role", "admin", cwd=place)
    assert "root" in said("certs", "list", cwd=place)
    assert "flcore submit JOB --kit root" in subprocess.check_output(
        ["unzip", "-p", "certs/kits/root.zip", "root/README.txt"], cwd=place, text=True
    )


def test_the_page_as_printed(tmp_path: Path) -> None:
    # docs/packs.md: the federation's authority is there already, as docs/certificates.md makes it.
    said("certs", "init", "hospitals", "--host", "localhost", cwd=tmp_path)
    scripts = blocks("sh", PAGE)
    assert [len(commands(script)) for script in scripts] == [2, 1, 2]
    printed = "".join(shell(script, tmp_path) for script in scripts)
    assert "The pack is sound." in printed and "signed by alice" in printed
    (snippet,) = blocks("python", PAGE)
    done = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == re.findall(r"print\(.*\)  # (.*)", snippet)


def test_the_limits_of_the_page() -> None:
    folders = f"{MAX_FILES:,} files in {MAX_FOLDERS:,} directories, paths of up to {MAX_DEPTH} parts, and 4 GiB"
    assert f"at most {folders}" in PAGE and MAX_TEXT_BYTES == 1 << 20
    row = re.search(r"^\| other (.*) files \| yes, up to 1 MiB each \|$", PAGE, re.MULTILINE)
    assert row is not None and tuple(re.findall(r"`(\.\w+)`", row[1])) == TEXT_SUFFIXES


def test_code_that_cannot_run_is_not_packed(place: Path) -> None:
    (place / "small/sub/more.py").write_text("x = 1\ny = (\n")
    printed = said("job", "pack", "small", cwd=place, code=1)
    assert printed.startswith("flcore: sub/more.py, line 2: expected Python 3.") and printed.count("\n") == 1
    assert not (place / "small.flpack").exists()
