"""Kits of leads and clients, made and unpacked as people do."""

import zipfile
from pathlib import Path

from flcore.identity.authority import Authority
from flcore.identity.certificate import utc_now
from flcore.identity.kit import write_kit
from flcore.identity.lead_keys import SigningKey
from flcore.identity.names import Role

SERVER = "localhost:8470"


def federation_authority(directory: Path) -> Authority:
    return Authority.create(directory / "certs", "hospitals", ["localhost"], now=utc_now())


def unpacked_kit(authority: Authority, directory: Path, name: str = "alice", role: Role = Role.LEAD) -> Path:
    """Issue a kit and unpack it as `unzip` does, with the modes that the zip names."""
    key = SigningKey.create(name) if role is Role.LEAD else None
    pair = authority.issue(name, role, now=utc_now())
    kit = write_kit(directory / "kits", pair, authority.certificate, SERVER, key)
    with zipfile.ZipFile(kit) as archive:
        for entry in archive.infolist():
            Path(archive.extract(entry, directory)).chmod(entry.external_attr >> 16 & 0o777)
    return directory / name
