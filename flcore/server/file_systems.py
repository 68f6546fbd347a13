"""Whether a directory is on a network file system, which does not promise what a receipt promises."""

import os
import re
from pathlib import Path

from flcore.errors import JobError

MOUNTS = Path("/proc/self/mounts")

NETWORK_TYPES = {
    "9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "glusterfs", "gpfs", "lustre", "ncpfs",
    "nfs", "nfs4", "orangefs", "pvfs2", "smb3", "smbfs", "virtiofs",
}  # fmt: skip
"""Types of file systems, as Linux names them, whose files another machine may change or keep from the disk."""


def require_local_file_system(directory: Path, mounts: Path = MOUNTS) -> None:
    """Raise `JobError` if a directory, or the place where it will be created, is on a network file system.

    On systems without a list of mounts (macOS) nothing is checked.
    """
    found = _file_system(directory, mounts)
    if found in NETWORK_TYPES:
        raise JobError(
            f"expected an output directory on a local file system, got {directory}, which is on {found}: with receipts "
            "for what is on the disk, the disk must be the server's own. Give another directory (--out), receipts for "
            "what is in memory (--durability memory), or --network-file-system"
        )


def _file_system(directory: Path, mounts: Path) -> str:
    """Return the type of the file system with the longest mount point above a directory; empty if it is not known."""
    if not mounts.exists():
        return ""
    path = Path(os.path.realpath(directory))
    best = Path("/"), ""
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, point, kind, *_ = line.split(" ")
        mount = Path(_unescape(point))
        if path.is_relative_to(mount) and len(mount.parts) >= len(best[0].parts):
            best = mount, kind
    return best[1]


def _unescape(point: str) -> str:
    r"""Return a mount point without the octal escapes of the list.

    >>> _unescape("/a\\040b")
    '/a b'
    """
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found.group(1), 8)), point)
