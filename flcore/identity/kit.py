"""Kits: all that a client or a lead needs to connect, in one zip file; and the table `[identity]` of its site.toml.

The zip has one directory, named like its holder:

    client.pem     the certificate
    client.key     its key, 0600
    ca.pem         the authority's certificate, by which the holder knows the server
    site.toml      the server's address and the names of these files
    README.txt     five lines
    signing.key    for a lead: the key that signs packs, 0600
    NAME.pub       for a lead: its public key, which sites list
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
from flcore.identity.lead_keys import PUBLIC_KEY_SUFFIX, SIGNING_KEY_FILE, SigningKey
from flcore.identity.names import Role, require_hosts
from flcore.identity.signing import KeyPair, identity_of
from flcore.job.site import read_site

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
    return _new_path(out / f"{name}.zip", "that kit")


def public_key_path(out: Path, name: str) -> Path:
    """Return the path of a lead's new public key. Raises `CertificateError` if there is a file."""
    return _new_path(out / f"{name}{PUBLIC_KEY_SUFFIX}", "that public key")


def _new_path(path: Path, found: str) -> Path:
    if path.exists() or path.is_symlink():
        raise CertificateError(
            f"{path}: expected no file, got one; deliver {found} and delete it (only delete it if this one replaces "
            f"it), or choose another directory (--out)"
        )
    return path


def write_kit(
    out: Path, pair: KeyPair, authority: Certificate, server: str, signing_key: SigningKey | None = None
) -> Path:
    """Write a kit; return its path. It appears whole, or not at all, and overwrites nothing.

    Args:
        out: The directory, which is made if there is none.
        pair: The holder's certificate and key.
        authority: The authority's certificate; its key is in no kit.
        server: The server's address, HOST:PORT.
        signing_key: A lead's key for packs. Its public key is written beside the kit, too, for the sites.
    """
    data = kit_bytes(pair, authority, require_server_address(server), signing_key)
    out.mkdir(parents=True, exist_ok=True)
    name = identity_of(pair).name
    path = kit_path(out, name)
    try:
        create_file(path, data, mode=PRIVATE)
        if signing_key is not None:
            create_file(public_key_path(out, name), signing_key.public.pem, mode=PUBLIC)
    except FileExistsError:
        kit_path(out, name)  # raises the error that says what to do
        raise
    return path


def kit_bytes(pair: KeyPair, authority: Certificate, server: str, signing_key: SigningKey | None = None) -> bytes:
    """Return the zip file of a kit. The same arguments give the same bytes."""
    name = identity_of(pair).name
    files = {
        "README.txt": (_readme(pair, server).encode(), PUBLIC),
        "ca.pem": (authority.pem, PUBLIC),
        "client.key": (pair.key_pem, PRIVATE),
        "client.pem": (pair.certificate.pem, PUBLIC),
        "site.toml": (_site(name, server).encode(), PUBLIC),
    }
    if signing_key is not None:
        files[SIGNING_KEY_FILE] = (signing_key.pem, PRIVATE)
        files[f"{name}{PUBLIC_KEY_SUFFIX}"] = (signing_key.public.pem, PUBLIC)
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


def load_signing_key(kit: Path) -> SigningKey:
    """Return the key by which the holder of an unpacked kit signs packs.

    Raises:
        CertificateError: The kit has no such key, or its files cannot be used.
    """
    site, path = kit / "site.toml", kit / SIGNING_KEY_FILE
    table = identity_table(read_site(site, kit) if site.exists() else {}, str(site))
    if table is None:
        raise CertificateError(f"{kit}: expected the directory of an unpacked kit, got none; give another (--sign KIT)")
    if not path.exists():
        raise CertificateError(
            f"{path}: expected the key that signs packs, got none; have a lead's kit made (flcore certs lead NAME), or "
            f"copy the file from the kit that was renewed"
        )
    return SigningKey.load(path, table.name)


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
    if identity.role == Role.CLIENT:
        steps = (
            "Install flcore on this machine, and copy the job's directory to it.\n"
            f"Join with: flcore client --kit {identity.name} --jobs-dir JOB (a server of one job: flcore client JOB "
            f"--kit {identity.name})\n"
        )
    else:
        steps = (
            "Install flcore on this machine. A renewed kit has no signing.key: keep the one of the first kit.\n"
            f"Submit a job with: flcore submit JOB --kit {identity.name}\n"
        )
    return (
        f"This is the identity of the {identity.role} {identity.name} in the federation {identity.federation}, whose "
        f"server is {server}.\n"
        f"Files that end in .key are secret: keep them where only you can read them (chmod 600), and delete the zip "
        f"file.\n"
        f"{steps}"
        f"The certificate expires on {_day(pair.certificate.expires)}: ask the federation's operator for a renewed kit "
        f"before that day.\n"
    )


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d")
