"""Kits: all that a client needs to join, in one zip file; and the table `[identity]` of its site.toml.

The zip has one directory, named like the client:

    client.pem     the certificate
    client.key     its key, 0600
    ca.pem         the authority's certificate, by which the client knows the server
    site.toml      the server's address and the names of these files
    README.txt     five lines
"""

import io
import zipfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from flcore_transport import split_address
from pydantic import BaseModel, ConfigDict, ValidationError

from flcore.errors import CertificateError
from flcore.identity.certificate import Certificate
from flcore.identity.files import PRIVATE, PUBLIC, create_file
from flcore.identity.names import require_hosts
from flcore.identity.signing import KeyPair, identity_of

ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""The time of every file in a kit: the same content is the same zip."""


class IdentityTable(BaseModel):
    """The table `[identity]` of a site.toml. Paths are relative to the file's directory.

    Attributes:
        name: The client's name.
        server: The server's address, HOST:PORT.
        certificate: The file with the client's certificate, and its chain if there is one.
        key: The file with the certificate's private key.
        ca: The file with the certificate of the server's authority.
        mapped: Whether the certificate is of another authority, so that the server's mapping.toml gives it its name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    server: str
    certificate: str = "client.pem"
    key: str = "client.key"
    ca: str = "ca.pem"
    mapped: bool = False


def identity_table(content: Mapping[str, Any], where: str) -> IdentityTable | None:
    """Return the table `[identity]` of a site.toml's content; None where there is none; or raise `CertificateError`."""
    if "identity" not in content:
        return None
    try:
        table = IdentityTable.model_validate(content["identity"])
        split_address(table.server)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(["identity", *(str(part) for part in problem["loc"])])
        raise CertificateError(
            f"{where}: {place}: expected the keys {', '.join(IdentityTable.model_fields)}, all strings except mapped, "
            f"got: {problem['msg']}; correct it, or unpack the kit again"
        ) from error
    except ValueError as error:
        raise CertificateError(f"{where}: identity.server: {error}; correct it") from error
    return table


def require_server_address(address: str) -> str:
    """Return the address of a server for a kit, or raise `CertificateError`."""
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise CertificateError(f"the server's address: {error}; give the one that clients type (--address)") from error
    require_hosts([host])
    if not port:
        raise CertificateError(
            f"the server's address: expected a port of 1 to 65535, got {address!r}; name it (--address)"
        )
    return address


def kit_path(out: Path, name: str) -> Path:
    """Return the path of a new kit. Raises `CertificateError` if there is a file."""
    path = out / f"{name}.zip"
    if path.exists() or path.is_symlink():
        raise CertificateError(
            f"{path}: expected no file, got one; deliver that kit and delete it (only delete it if this one replaces "
            f"it), or choose another directory (--out)"
        )
    return path


def write_kit(out: Path, pair: KeyPair, authority: Certificate, server: str) -> Path:
    """Write the kit of a client; return its path. It appears whole, or not at all, and overwrites nothing.

    Args:
        out: The directory, which is made if there is none.
        pair: The client's certificate and key.
        authority: The authority's certificate; its key is in no kit.
        server: The server's address, HOST:PORT.
    """
    data = kit_bytes(pair, authority, require_server_address(server))
    out.mkdir(parents=True, exist_ok=True)
    path = kit_path(out, identity_of(pair).name)
    try:
        create_file(path, data, mode=PRIVATE)
    except FileExistsError:
        kit_path(out, identity_of(pair).name)  # raises the error that says what to do
        raise
    return path


def kit_bytes(pair: KeyPair, authority: Certificate, server: str) -> bytes:
    """Return the zip file of a kit. The same arguments give the same bytes."""
    name = identity_of(pair).name
    files = {
        "README.txt": (_readme(pair, server).encode(), PUBLIC),
        "ca.pem": (authority.pem, PUBLIC),
        "client.key": (pair.key_pem, PRIVATE),
        "client.pem": (pair.certificate.pem, PUBLIC),
        "site.toml": (_site(name, server).encode(), PUBLIC),
    }
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        directory = zipfile.ZipInfo(f"{name}/", ZIP_EPOCH)
        directory.create_system = 3  # the attributes are those of Unix
        directory.external_attr = 0o40700 << 16 | 0x10
        archive.writestr(directory, b"")
        for file, (data, mode) in files.items():
            entry = zipfile.ZipInfo(f"{name}/{file}", ZIP_EPOCH)
            entry.create_system = 3
            entry.external_attr = (0o100000 | mode) << 16
            archive.writestr(entry, data)
    return packed.getvalue()


def _site(name: str, server: str) -> str:
    return (
        "# Add what your own code reads, such as paths, above this table.\n"
        "[identity]\n"
        f'name = "{name}"\n'
        f'server = "{server}"\n'
        'certificate = "client.pem"  # paths are relative to this file\n'
        'key = "client.key"\n'
        'ca = "ca.pem"\n'
    )


def _readme(pair: KeyPair, server: str) -> str:
    identity = identity_of(pair)
    return (
        f"This is the identity of the {identity.role} {identity.name} in the federation {identity.federation}, whose "
        f"server is {server}.\n"
        f"client.key is secret: keep it where only you can read it (chmod 600 client.key), and delete the zip file.\n"
        f"Install flcore on this machine, and copy the job's directory to it.\n"
        f"Join with: flcore client JOB --kit {identity.name}\n"
        f"The certificate expires on {_day(pair.certificate.expires)}: ask the federation's operator for a renewed kit "
        f"before that day.\n"
    )


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")
