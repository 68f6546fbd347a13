"""Identities, and their URIs `flcore://FEDERATION/ROLE/NAME`, which stand in the certificates' alternative names."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from flcore.errors import CertificateError
from flcore.text import NAME_PATTERN, printable

SCHEME = "flcore://"

_NAME = re.compile(NAME_PATTERN)
_HOST_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class Role(StrEnum):
    """The role of a certificate's holder: clients join jobs, leads submit their own, admins manage all of them."""

    CLIENT = "client"
    SERVER = "server"
    LEAD = "lead"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Identity:
    """The holder of one certificate.

    Attributes:
        federation: The federation's name.
        role: The holder's role in it.
        name: The holder's name; a client's name in the protocol is equal to it.
        fingerprint: The SHA-256 digest of the certificate's DER encoding, 64 hexadecimal digits.
    """

    federation: str
    role: Role
    name: str
    fingerprint: str

    @property
    def uri(self) -> str:
        """The URI that the certificate carries."""
        return build_uri(self.federation, self.role, self.name)


def build_uri(federation: str, role: Role, name: str) -> str:
    """Return the URI of an identity, or raise `CertificateError`.

    >>> build_uri("hospitals", Role.CLIENT, "north")
    'flcore://hospitals/client/north'
    """
    return f"{SCHEME}{require_name(federation, 'a federation')}/{Role(role)}/{require_name(name, f'a {Role(role)}')}"


def parse_uri(uri: str, fingerprint: str) -> Identity:
    """Return the identity in a URI, or raise `CertificateError`. Only the one canonical form is read.

    >>> parse_uri("flcore://hospitals/client/north", "00" * 32).name
    'north'
    """
    parts = uri.removeprefix(SCHEME).split("/")
    is_sound = uri.startswith(SCHEME) and len(parts) == 3 and parts[1] in set(Role)
    if not (is_sound and _NAME.fullmatch(parts[0]) and _NAME.fullmatch(parts[2])):
        raise CertificateError(
            f"a certificate's URI: expected flcore://FEDERATION/ROLE/NAME with a role of {', '.join(Role)}, "
            f"got {printable(uri, 200)!r}; have the certificate issued again (flcore certs issue)"
        )
    return Identity(parts[0], Role(parts[1]), parts[2], fingerprint)


def require_name(name: str, owner: str) -> str:
    """Return a name of a federation or of one of its members, or raise `CertificateError`.

    The rule is the contract's for clients: names are also names of files in kits, so other characters are refused.
    """
    if not _NAME.fullmatch(name):
        raise CertificateError(
            f"the name of {owner}: expected 1 to 64 letters, digits, dots, underscores and hyphens of ASCII, the first "
            f"one a letter or a digit, got {printable(name, 100)!r}; choose another name"
        )
    return name


def require_fingerprint(text: str) -> str:
    """Return a fingerprint in lower case without colons, or raise `ValueError`. Reads the form of OpenSSL, too.

    >>> require_fingerprint("AB:" * 31 + "AB") == "ab" * 32
    True
    """
    found = text.lower().replace(":", "")
    if not re.fullmatch(r"[0-9a-f]{64}", found):
        raise ValueError(f"expected a SHA-256 fingerprint of 64 hexadecimal digits, got {printable(text, 100)!r}")
    return found


def require_hosts(hosts: Iterable[str]) -> tuple[str, ...]:
    """Return the DNS names and IP addresses of a server, in canonical form, each once; or raise `CertificateError`.

    `localhost` stands for its two addresses, too. A wildcard or an unspecified address is refused: a client compares
    the certificate with the address that it connects to.
    """
    found: dict[str, None] = {}
    for host in hosts:
        found[_require_host(host)] = None
        if host.lower() == "localhost":
            found |= dict.fromkeys(("127.0.0.1", "::1"))
    if not found:
        raise CertificateError("the server's hosts: expected one or more, got none; name those that clients type")
    return tuple(found)


def _require_host(host: str) -> str:
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        labels = host.removesuffix(".").split(".")
        is_name = all(_HOST_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdecimal()
        if is_name and len(host) <= 253:
            return host.removesuffix(".").lower()
    else:
        if not (address.is_unspecified or address.is_multicast or "%" in host):
            return str(address)
    raise CertificateError(
        f"the server's host: expected a DNS name in ASCII or an IP address, without a port, that clients connect to, "
        f"got {printable(host, 300)!r}; name it as clients type it (--host)"
    )
