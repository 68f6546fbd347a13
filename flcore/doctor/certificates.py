"""Certificates of a kit and of a server's directory: usable, not about to expire, not revoked."""

from datetime import datetime
from pathlib import Path

from flcore.doctor.result import CheckResult, of_error
from flcore.errors import CertificateError, JobError
from flcore.identity.certificate import parse_certificates, utc_now
from flcore.identity.credentials import RENEW_CLIENT, RENEW_SERVER, ClientCertificates, ServerCertificates
from flcore.identity.deny_list import read_deny_list
from flcore.text import printable

SOON_DAYS = 30
"""A certificate that expires within so many days is a warning."""

NAME, SITE_FILE = "certificate", "site.toml"


def check_kit(kit: Path, now: datetime | None = None) -> CheckResult:
    """Check an unpacked kit: its files, the key's mode, authority, role and validity. The server knows what is revoked.

    Args:
        kit: The kit's directory.
        now: The present time. Default: None, this machine's clock.
    """
    moment = now or utc_now()
    if not (kit / SITE_FILE if kit.is_dir() else kit).is_file():
        found = f"{printable(str(kit))}: expected the directory of an unpacked kit, with the file {SITE_FILE}"
        return CheckResult(NAME, "failed", found, "unpack the kit (unzip KIT.zip -d DIR), and give its directory")
    try:
        certificates = ClientCertificates.load(kit, moment)
    except CertificateError as error:
        return of_error(NAME, error)
    except JobError as error:  # of its site.toml
        return CheckResult(NAME, "failed", printable(str(error)), f"unpack the kit again, or correct its {SITE_FILE}")
    identity = certificates.identity
    who = f"{identity.name}, {identity.role} of {identity.federation}"
    return _check_expiry(who, certificates.chain_pem + certificates.root_pem, moment, RENEW_CLIENT)


def check_server_directory(directory: Path, now: datetime | None = None) -> CheckResult:
    """Check a server's directory: its files, the key's mode, authority, role, validity, and that it is not revoked.

    Args:
        directory: The directory `server` of the federation's authority, or a copy of it.
        now: The present time. Default: None, this machine's clock.
    """
    moment = now or utc_now()
    try:
        certificates = ServerCertificates.load(directory, moment)
        own = parse_certificates(certificates.chain_pem, "server.pem")[0]
        if {own.fingerprint, own.key_fingerprint} & read_deny_list(directory / "revoked.txt"):
            return CheckResult(
                NAME, "failed", f"the server's certificate in {directory} is revoked", f"{RENEW_SERVER}, with a new key"
            )
    except CertificateError as error:
        return of_error(NAME, error)
    who = f"the server of {certificates.identity.federation}, for {', '.join(certificates.hosts)}"
    return _check_expiry(who, certificates.chain_pem + certificates.root_pem, moment, RENEW_SERVER)


def _check_expiry(who: str, pem: bytes, now: datetime, advice: str) -> CheckResult:
    """Return the result on certificates that are valid now: which of them expires first, and when."""
    first = min(parse_certificates(pem, "certificates"), key=lambda each: each.expires)
    days = (first.expires - now).days
    whose = "the authority's certificate" if first.is_authority else "its certificate"
    found = f"{who}; {whose} expires in {days:,} days, on {first.expires:%Y-%m-%d}"
    if days >= SOON_DAYS:
        return CheckResult(NAME, "ok", found)
    if first.is_authority:
        advice = "make a new authority (flcore certs init), a new server's directory and new kits"
    return CheckResult(NAME, "warning", found, advice)
