"""A directory in which a killed process has left files, some of which are not on the disk yet.

A power loss after the restart of a killed process is a case of its own: the new process finds in memory what the disk
may still lose.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.faults.disk_model import Disk
from tests.faults.disk_recorder import ROOT_INODE, DiskRecorder
from tests.faults.operations import NameChange, Operation, Resize, Write


def recorder_after_kill(root: Path, log: Sequence[Operation]) -> DiskRecorder:
    """Return a recorder of an empty directory, after it was filled with what a killed process has left.

    Args:
        root: The directory.
        log: What the process did. The recorder's log begins with it: what it did not sync, nobody has.
    """
    recorder, disk = DiskRecorder(root, max(_numbers(log), default=ROOT_INODE)), Disk()
    for operation in log:
        disk.do(operation)
    content, written = disk.all_content(), dict[int, Path]()
    for name, inode in disk.inodes().items():
        path, data = root / name, content[name]
        if inode in written:
            os.link(written[inode], path)
        elif data is None:
            path.mkdir()
        else:
            path.write_bytes(data)
        written[inode] = path
        recorder.adopt(path.stat(), inode)
    recorder.log.extend(log)
    return recorder


def _numbers(log: Sequence[Operation]) -> Iterator[int]:
    """Yield the numbers of a log's files and directories, also of those that are gone, or have no name yet."""
    for operation in log:
        match operation:
            case NameChange(changes):
                yield from (number for _, _, number in changes if number is not None)
            case Write(number) | Resize(number):
                yield number
