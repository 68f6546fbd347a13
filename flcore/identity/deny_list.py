"""The deny list: certificates that are revoked, by fingerprint, in a text file that is read again when it changes.

A line has one SHA-256 fingerprint, of a certificate or of its public key, and after `#` a comment. Empty lines are
skipped. The list has both, because ECDSA signatures are malleable: the holder of a certificate can change its
fingerprint, but not that of its public key. gRPC's Python API knows no revocation lists, so the server compares each
call's certificate with this list.
"""

import logging
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from flcore.errors import CertificateError
from flcore.identity.files import FileStamp, file_stamp, read_file, replace_file
from flcore.identity.names import require_fingerprint
from flcore.text import decode_text, printable

HEADER = (
    "# Revoked certificates and their public keys: one SHA-256 fingerprint a line.\n"
    "# flcore reads this file again when it changes.\n"
)

MAX_LIST_BYTES = 4 << 20
"""The largest list. A revoked certificate has two lines of some 100 bytes, so it holds 20,000 certificates."""

RETRY_S = 1.0
"""Seconds after which a list that could not be read is read again, even if its file is the same."""

logger = logging.getLogger(__name__)


class DenyList:
    """A deny list that is in use. Safe to use from any thread.

    If the file is damaged or removed while it is in use, the fingerprints that it denied stay denied, those in its
    valid lines are added, and the log says so once. A fingerprint that is taken out of a valid file is admitted again.
    An empty file counts as damaged: a copy over the list begins with one.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "revoked.txt"
        >>> create_deny_list(path)
        >>> "ab" * 32 in DenyList(path)
        False
    """

    def __init__(self, path: Path) -> None:
        """Read the list. Raises `CertificateError` where there is none, or it is malformed."""
        self.path = path
        self._lock = threading.Lock()
        self._retry_at = math.inf
        self._stamp = file_stamp(path)
        self._denied, malformed = _parse(path)
        if malformed:
            raise CertificateError(malformed)

    def __contains__(self, fingerprint: str) -> bool:
        if self._is_outdated(file_stamp(self.path)):
            self._read_again()
        return fingerprint in self._denied

    def _is_outdated(self, stamp: FileStamp | None) -> bool:
        return stamp != self._stamp or time.monotonic() >= self._retry_at

    def _read_again(self) -> None:
        with self._lock:
            # Taken before the content is read: a change in between is seen at the next call.
            stamp = file_stamp(self.path)
            if not self._is_outdated(stamp):
                return
            retry_at = math.inf
            try:
                denied, malformed = _parse(self.path)
                if stamp is not None and not stamp.nbytes:
                    malformed = f"{self.path}: expected the header or an entry, got an empty file; copy it again"
            except CertificateError as error:
                denied, malformed = frozenset(), str(error)
                # Too many open files, for one: the stamp does not change when the cause has gone.
                retry_at = time.monotonic() + RETRY_S
            if malformed and stamp != self._stamp:
                logger.warning("%s (the certificates denied before stay denied)", malformed)
            if malformed or file_stamp(self.path) != stamp:  # damaged, or written at this moment
                denied |= self._denied
            self._denied, self._stamp, self._retry_at = denied, stamp, retry_at


def create_deny_list(path: Path) -> None:
    """Write an empty list."""
    replace_file(path, HEADER.encode())


def read_deny_list(path: Path) -> frozenset[str]:
    """Return the fingerprints of a list, or raise `CertificateError`."""
    denied, malformed = _parse(path)
    if malformed:
        raise CertificateError(malformed)
    return denied


def deny(path: Path, fingerprints: Mapping[str, str]) -> None:
    """Add fingerprints to a list, each with its comment, in one atomic step. Lines that are there stay as they are.

    Raises `CertificateError`, and leaves the list as it was, if the result were larger than a server reads.
    """
    denied = read_deny_list(path)
    text = decode_text(read_file(path, MAX_LIST_BYTES))
    lines = [
        f"{require_fingerprint(fingerprint)}  # {printable(comment, 200)}\n"
        for fingerprint, comment in fingerprints.items()
        if fingerprint not in denied
    ]
    if lines:
        before = text if not text or text.endswith("\n") else f"{text}\n"
        content = (before + "".join(lines)).encode()
        if len(content) > MAX_LIST_BYTES:
            raise CertificateError(
                f"{path}: expected a list of at most {MAX_LIST_BYTES} bytes, got {len(content)} with the new entries, "
                "which are not written; take out the lines of certificates that have expired, and revoke again"
            )
        replace_file(path, content)


def _parse(path: Path) -> tuple[frozenset[str], str]:
    """Return the fingerprints of the valid lines, and an error about the first other line; "" if all are valid."""
    try:
        text = decode_text(read_file(path, MAX_LIST_BYTES))
    except ValueError as error:
        return frozenset(), f"{path}: {error}"
    denied, malformed = set(), ""
    for number, line in enumerate(text.split("\n"), 1):
        entry = line.partition("#")[0].strip()
        try:
            if entry:
                denied.add(require_fingerprint(entry))
        except ValueError as error:
            malformed = malformed or f"{path}, line {number}: {error}; correct the line"
    return frozenset(denied), malformed
