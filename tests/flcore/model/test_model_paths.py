"""Where a path writes a model to, and how errors name files and directories that hold no model."""

import gzip
import io
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from flcore import SpecError, load, open_model, save
from flcore.model.model_paths import require_directory, split_model_path


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("x.safetensors", ("", "x")),
        ("runs/v1.0.safetensors", ("runs", "v1.0")),
        ("v1.0", ("v1.0", "model")),
        ("v1.0/", ("v1.0", "model")),
        ("x.safetensors/", ("x.safetensors", "model")),
        ("there.safetensors", ("there.safetensors", "model")),
        ("model.bin", ("model.bin", "model")),
        (".", ("", "model")),
    ],
)
def test_only_a_name_with_the_suffix_means_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, place: tuple[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.safetensors").mkdir()
    assert split_model_path(path) == (Path(place[0]), place[1])
    save({"w": np.ones(3)}, path)
    assert (tmp_path / place[0] / f"{place[1]}.safetensors").is_file()
    assert load(path)["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("path", ["", ".safetensors", "deep/.safetensors", "model.safetensors.index.json"])
def test_a_name_that_is_neither_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"expected NAME\.safetensors or a directory"):
        save({"w": np.ones(3)}, path)
    assert not list(tmp_path.iterdir())


def test_a_run_writes_to_a_directory(tmp_path: Path) -> None:
    (tmp_path / "notes").touch()
    assert require_directory(tmp_path / "v1.0") == tmp_path / "v1.0"
    with pytest.raises(SpecError, match=r"expected a directory for several files, got '.*x\.safetensors'"):
        require_directory(tmp_path / "x.safetensors")
    with pytest.raises(SpecError, match=r"got the file .*notes': choose another place"):
        require_directory(tmp_path / "notes")


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 988097824\n"


def tarred(name: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return data.getvalue()


def written(kind: str) -> bytes:
    """Return a file that Python itself writes."""
    data = io.BytesIO()
    if kind == "npz":
        np.savez(data, w=np.ones(3))
    else:
        np.save(data, np.ones(3))
    return data.getvalue()


FILES = {
    "empty": (b"", "empty: download it again"),
    "short": (b"short", "text, 'short': give NAME.safetensors, its index or a directory"),
    "zeros": (bytes(4096), "nothing but zeros, as an interrupted download leaves"),
    "pointer": (POINTER, "a Git LFS pointer, which stands for the file: run `git lfs pull` in its repository"),
    "annex": (b"/annex/objects/MD5-s3--0", "a git-annex pointer"),
    "page": (b"<!DOCTYPE html><html>sign in</html>" * 9, "an HTML or XML page, as a server sends in place of a file"),
    "marked page": (b"\xef\xbb\xbf\r\n<html>" + bytes(9), "an HTML or XML page"),
    "error": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an HTML or XML page"),
    "torch": (
        b"PK\3\4" + bytes(99),
        r"a zip archive, as torch\.save \(\.bin, \.pt\) and numpy.savez write: .*flcore\.save",
    ),
    "npz": (written("npz"), "a zip archive"),
    "npy": (written("npy"), "a NumPy array"),
    "tar": (tarred("model.safetensors"), "a tar archive: unpack it first"),
    "tar of one letter": (tarred("w"), "a tar archive"),
    "gzip -n": (gzip.compress(b"x", mtime=0), "compressed by gzip"),
    "gzip": (gzip.compress(b"x"), "compressed by gzip: unpack it first"),
    "pickle": (pickle.dumps({"w": [1.0] * 9}), "a pickle, as old versions of torch.save write"),
    "torch before 1.6": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "a pickle"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "gguf": (b"GGUF\3\0\0\0" + bytes(99), "a GGUF file"),
    "json": (json.dumps({"error": "not found"}).encode(), r"JSON: an index is called NAME\.safetensors\.index\.json"),
    "text": (b"Entry not found", "text, 'Entry not found'"),
    "long text": ("é".encode() * 999, "text, 'é{37}\\.\\.\\.'"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_called_what_it_is(tmp_path: Path, kind: str) -> None:
    content, words = FILES[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=rf"x\.safetensors is no safetensors file, but {words}") as caught:
        open_model(path)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_model_whose_first_bytes_are_those_of_a_pickle_is_a_model(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).ljust(0x80 + (protocol << 8))
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    assert path.read_bytes()[:2] == bytes([0x80, protocol])
    assert open_model(path).spec.parameters == 4
    path.write_bytes(path.read_bytes()[:99])
    with pytest.raises(SpecError, match="no safetensors file, or a truncated one"):
        open_model(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "it is empty"),
        (
            ["adapter_model.safetensors", "adapter_config.json"],
            "it holds a PEFT adapter: give the file .*adapter_model.s",
        ),
        (
            ["pytorch_model.bin", "training_args.bin", "optimizer.pt"],
            "it holds pytorch_model.bin, which PyTorch writes",
        ),
        (["a.pt", "b.pt"], "it holds a.pt and 1 more, which PyTorch writes: .*flcore.save"),
        (["tf_model.h5"], "it holds tf_model.h5, which is not safetensors"),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            r"it holds files of a model \(model-00001-of-00002\.safetensors\) without their index: copy model\.s",
        ),
        (
            ["unet.safetensors", "vae.safetensors"],
            "it holds unet.safetensors and 1 more: give the file .*unet.safetensors",
        ),
        (
            ["x-00001-of-00002.safetensors", "x.safetensors.index.json"],
            "it holds x.safetensors.index.json: give the file .*x.safetensors.index.json itself",
        ),
        (["checkpoint-5/model.safetensors"], "its subdirectories do: give one of them, such as .*checkpoint-5"),
        (["config.json"], "it holds config.json"),
    ],
)
def test_a_directory_without_a_model_says_what_it_holds(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(SpecError, match=rf"holds neither model\.s.* nor model\.safetensors\.index\.json; {words}"):
        open_model(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save({name: np.ones(9) for name in "ab"}, tmp_path, shard_bytes=1)
    return tmp_path / "model.safetensors.index.json"


def test_an_index_may_begin_with_a_byte_order_mark(sharded: Path) -> None:
    sharded.write_bytes(b"\xef\xbb\xbf" + sharded.read_bytes())
    assert len(open_model(sharded).files) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "is no index, but a Git LFS pointer"),
        (b"", "is no index, but empty"),
        (b"<html>", "is no index, but an HTML or XML page"),
        ("{}".encode("utf-16"), "expected JSON: expected UTF-8, got UTF-16"),
        (b"{", "expected JSON: "),
    ],
)
def test_an_index_that_is_another_file_is_called_what_it_is(sharded: Path, content: bytes, words: str) -> None:
    sharded.write_bytes(content)
    with pytest.raises(SpecError, match=rf"model\.safetensors\.index\.json:? {words}"):
        open_model(sharded)


def test_an_index_whose_file_is_a_pointer_names_the_file(sharded: Path) -> None:
    second = next(sharded.parent.glob("*-00002-of-00002.safetensors"))
    second.write_bytes(POINTER)
    with pytest.raises(SpecError, match=f"{second.name} is no safetensors file, but a Git LFS pointer"):
        open_model(sharded.parent)
    second.unlink()
    second.mkdir()
    with pytest.raises(SpecError, match=f"{second.name}: expected a regular file, got a directory"):
        open_model(sharded.parent)
    shutil.rmtree(second)
