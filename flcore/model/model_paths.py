"""Paths of models: names of files, the target of a write, and descriptions of files that are no models.

A file is described only after its header was refused. So a wrong description never refuses a valid model.
"""

import os
from pathlib import Path

from flcore.errors import SpecError

MODEL_SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"

PathLike = str | os.PathLike[str]


def split_model_path(path: PathLike) -> tuple[Path, str]:
    """Return the directory and the name, without suffix, of a model that is to be written to a path.

    Args:
        path: A file if it ends in `.safetensors` and is no existing directory. Any other path is a directory, in which
            the model is `model.safetensors`.

    Returns:
        The directory and the name.

    Raises:
        SpecError: The path is empty, `.safetensors` without a name, or that of an index.

    Example:
        >>> split_model_path("runs/best.safetensors"), split_model_path("Qwen2.5-merged")
        ((PosixPath('runs'), 'best'), (PosixPath('Qwen2.5-merged'), 'model'))
    """
    target = Path(path)
    if _is_file_path(path):
        return target.parent, target.name.removesuffix(MODEL_SUFFIX)
    if not os.fspath(path) or target.name == MODEL_SUFFIX or target.name.endswith(INDEX_SUFFIX):
        raise SpecError(f"expected NAME{MODEL_SUFFIX} or a directory to write a model to, got {os.fspath(path)!r}")
    return target, "model"


def require_directory(path: PathLike) -> Path:
    """Return `path` as a directory. Raises `SpecError` if it means a file (see `split_model_path`) or is one."""
    if _is_file_path(path):
        raise SpecError(f"expected a directory for several files, got {os.fspath(path)!r}: leave {MODEL_SUFFIX} out")
    if Path(path).exists() and not Path(path).is_dir():
        raise SpecError(f"expected a directory, got the file {os.fspath(path)!r}: choose another place")
    return Path(path)


def _is_file_path(path: PathLike) -> bool:
    """Whether a path means a file."""
    name = os.path.basename(path)  # noqa: PTH119 - `Path` drops a final slash, which means a directory
    return name.endswith(MODEL_SUFFIX) and name != MODEL_SUFFIX and not Path(path).is_dir()


HEAD_BYTES = 512
"""The bytes that identify a file's format. The last signature, a tar archive's, ends at byte 262."""

_CONVERT = "read it with the library that wrote it, and write its tensors with flcore.save"
_DOWNLOAD_AGAIN = "download it again, logged in if its server requires it"
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
"""A file's first bytes, the format that they identify, and advice."""

_PYTORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_OTHER_SUFFIXES = (".h5", ".msgpack", ".gguf", ".npz", ".npy", ".onnx", ".pkl")


def identify_signature(head: bytes) -> str | None:
    """Describe a binary file by its first bytes.

    Args:
        head: The first `HEAD_BYTES` of the file, or all of them.

    Returns:
        The format and advice, for an error; None if the format is unknown.

    >>> identify_signature(b"GGUF...")
    'a GGUF file, as llama.cpp reads: give the safetensors files that it was made from'
    """
    if not head:
        return f"empty: {_DOWNLOAD_AGAIN}"
    if not any(head):
        return f"nothing but zeros, as an interrupted download leaves: {_DOWNLOAD_AGAIN}"
    for signature, kind, remedy in _SIGNATURES:
        if head.startswith(signature):
            return f"{kind}: {remedy}"
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:  # the opcode PROTO and a protocol's number
        return f"a pickle, as old versions of torch.save write: {_CONVERT}"
    if head[257:262] == b"ustar":
        return f"a tar archive: {_UNPACK}"
    if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        return f"an HTML or XML page, as a server sends in place of a file: {_DOWNLOAD_AGAIN}"
    return None


def identify_content(head: bytes) -> str | None:
    """Describe a file by its first bytes, also if it is JSON or other text (see `identify_signature`)."""
    description = identify_signature(head)
    if description is not None:
        return description
    if head.lstrip().startswith(b"{"):
        return f"JSON: an index is called NAME{INDEX_SUFFIX}"
    text = _text(head).strip()
    if not text or not all(character.isprintable() or character.isspace() for character in text):
        return None
    first = text.splitlines()[0]
    shown = first if len(first) <= 40 else first[:37] + "..."
    return f"text, {shown!r}: give NAME{MODEL_SUFFIX}, its index or a directory"


def _text(head: bytes) -> str:
    """Return the head as text, without a character that its end cuts; "" if it is not UTF-8."""
    try:
        return head.decode()
    except UnicodeDecodeError as error:
        return head[: error.start].decode() if error.start > len(head) - 4 else ""


def describe_directory(directory: Path) -> str:
    """Describe a directory without a model, with advice, as the end of an error."""
    names = sorted(entry.name for entry in directory.iterdir())
    if not names:
        return "it is empty"
    adapter = f"adapter_model{MODEL_SUFFIX}"
    if adapter in names:
        return f"it holds a PEFT adapter: give the file {directory / adapter} itself"
    models = [name for name in names if name.endswith(INDEX_SUFFIX)] or [
        name for name in names if name.endswith(MODEL_SUFFIX)
    ]
    if any("-00001-of-" in name for name in models):
        return f"it holds files of a model ({models[0]}) without their index: copy model{INDEX_SUFFIX} there too"
    if models:
        return f"it holds {_first_and_count(models)}: give the file {directory / models[0]} itself"
    pickled = [name for name in names if name.endswith(_PYTORCH_SUFFIXES)]
    weights = [name for name in pickled if "model" in name] or pickled  # a trainer also writes optimizer.pt and others
    if weights:
        return f"it holds {_first_and_count(weights)}, which PyTorch writes: {_CONVERT}"
    others = [name for name in names if name.endswith(_OTHER_SUFFIXES)]
    if others:
        return f"it holds {_first_and_count(others)}, which is not safetensors: {_CONVERT}"
    nested = sorted([*directory.glob(f"*/model{MODEL_SUFFIX}"), *directory.glob(f"*/model{INDEX_SUFFIX}")])
    if nested:
        return f"its subdirectories do: give one of them, such as {nested[0].parent}"
    return f"it holds {_first_and_count(names)}"


def _first_and_count(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
