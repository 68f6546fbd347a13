"""Paths of models: how files are named, where a path writes to, and what lies at a path instead of a model.

A path is described only after it is known to hold no model, so a wrong guess never refuses a good file.
"""

import os
from pathlib import Path

from flcore.errors import SpecError

MODEL_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"

PathLike = str | os.PathLike[str]


def split_model_path(path: PathLike) -> tuple[Path, str]:
    """Return the directory of a model that is to be written to `path`, and its name there, without suffix.

    A name that ends in `.safetensors` means a file. All others, and directories that are there, mean a directory, in
    which the model is `model.safetensors`. Raises `SpecError` for a name that can be neither.

    >>> split_model_path("runs/best.safetensors"), split_model_path("Qwen2.5-merged")
    ((PosixPath('runs'), 'best'), (PosixPath('Qwen2.5-merged'), 'model'))
    """
    directory = Path(path)
    if _is_file_path(path):
        return directory.parent, directory.name.removesuffix(MODEL_SUFFIX)
    if not os.fspath(path) or directory.name == MODEL_SUFFIX or directory.name.endswith(INDEX_SUFFIX):
        raise SpecError(f"expected NAME{MODEL_SUFFIX} or a directory to write a model to, got {os.fspath(path)!r}")
    return directory, "model"


def require_directory(path: PathLike) -> Path:
    """Return the directory that `path` means, by the same rule; raise `SpecError` if it means a file."""
    if _is_file_path(path):
        raise SpecError(f"expected a directory, for several files, got {os.fspath(path)!r}: leave {MODEL_SUFFIX} out")
    if Path(path).exists() and not Path(path).is_dir():
        raise SpecError(f"expected a directory, got the file {os.fspath(path)!r}: choose another place")
    return Path(path)


def _is_file_path(path: PathLike) -> bool:
    """Whether a path means a file. A slash at its end means a directory, which `Path` would not keep."""
    name = os.path.basename(path)  # noqa: PTH119 - see above
    return name.endswith(MODEL_SUFFIX) and name != MODEL_SUFFIX and not Path(path).is_dir()


HEAD_BYTES = 512
"""How much of a file tells its kind; a tar archive's mark ends at byte 262."""

_CONVERT = "read it with the library that wrote it, and write its tensors with flcore.save"
_AGAIN = "download it again, signed in where its server asks for it"
_UNPACK = "unpack it first"

_SIGNATURES = (
    (
        b"version https://git-lfs.github.com/",
        "a Git LFS pointer, which stands for the file",
        "run `git lfs pull` in its repository",
    ),
    (b"/annex/objects/", "a git-annex pointer, which stands for the file", "run `git annex get` on it"),
    (b"PK\3\4", "a zip archive, as torch.save (.bin, .pt) and numpy.savez write", _CONVERT),
    (b"\x93NUMPY", "a NumPy array (.npy)", _CONVERT),
    (b"\x89HDF", "an HDF5 file, as Keras writes (.h5)", _CONVERT),
    (b"GGUF", "a GGUF file, as llama.cpp reads", "give the safetensors files that it was made from"),
    (b"\x1f\x8b", "compressed by gzip", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", _UNPACK),
    (b"\xfd7zXZ\0", "compressed by xz", _UNPACK),
    (b"BZh", "compressed by bzip2", _UNPACK),
)
"""First bytes, what a file is that begins with them, and what to do."""

_PYTORCH = (".bin", ".pt", ".pth", ".ckpt")
_OTHERS = (".h5", ".msgpack", ".gguf", ".npz", ".npy", ".onnx", ".pkl")


def identify_signature(head: bytes) -> str | None:
    """Return what a file with these first bytes is, and what to do; None if they tell nothing.

    >>> identify_signature(b"GGUF...")
    'a GGUF file, as llama.cpp reads: give the safetensors files that it was made from'
    """
    if not head:
        return f"empty: {_AGAIN}"
    if not any(head):
        return f"nothing but zeros, as a download that broke off leaves: {_AGAIN}"
    for begin, what, remedy in _SIGNATURES:
        if head.startswith(begin):
            return f"{what}: {remedy}"
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        return f"a pickle, as old versions of torch.save write: {_CONVERT}"
    if head[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return f"an HTML or XML page, as a server sends in place of a file: {_AGAIN}"
    return None


def identify_content(head: bytes) -> str | None:
    """Return the same, and tell JSON and other text too."""
    known = identify_signature(head)
    if known is not None:
        return known
    if head.lstrip().startswith(b"{"):
        return f"JSON: an index is called NAME{INDEX_SUFFIX}"
    text = _text(head).strip()
    if not text or not all(character.isprintable() or character.isspace() for character in text):
        return None
    first = text.splitlines()[0]
    shown = first if len(first) <= 40 else first[:37] + "..."
    return f"text, {shown!r}: give NAME{MODEL_SUFFIX}, its index or a directory"


def _text(head: bytes) -> str:
    """Return what a file begins with as text, up to a character that the head's end cuts; "" if it is none."""
    try:
        return head.decode()
    except UnicodeDecodeError as error:
        return head[: error.start].decode() if error.start > len(head) - 4 else ""


def describe_directory(directory: Path) -> str:
    """Return what a directory holds in place of a model, and what to do: the end of a message."""
    names = sorted(entry.name for entry in directory.iterdir())
    if not names:
        return "it is empty"
    adapter = f"adapter_model{MODEL_SUFFIX}"
    if adapter in names:
        return f"it holds a PEFT adapter: give the file {directory / adapter} itself"
    ours = [name for name in names if name.endswith(INDEX_SUFFIX)] or [
        name for name in names if name.endswith(MODEL_SUFFIX)
    ]
    if any("-00001-of-" in name for name in ours):
        return f"it holds files of a model ({ours[0]}) without their index: copy model{INDEX_SUFFIX} there too"
    if ours:
        return f"it holds {_first_and_count(ours)}: give the file {directory / ours[0]} itself"
    found = [name for name in names if name.endswith(_PYTORCH)]
    weights = [name for name in found if "model" in name] or found  # a trainer writes optimizer.pt and others too
    if weights:
        return f"it holds {_first_and_count(weights)}, which PyTorch writes: {_CONVERT}"
    others = [name for name in names if name.endswith(_OTHERS)]
    if others:
        return f"it holds {_first_and_count(others)}, which is not safetensors: {_CONVERT}"
    below = sorted([*directory.glob(f"*/model{MODEL_SUFFIX}"), *directory.glob(f"*/model{INDEX_SUFFIX}")])
    if below:
        return f"directories in it do: give one, such as {below[0].parent}"
    return f"it holds {_first_and_count(names)}"


def _first_and_count(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
