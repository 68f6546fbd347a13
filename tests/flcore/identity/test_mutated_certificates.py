"""Certificates with changed bytes: each is read or refused, by nothing but our own errors."""

import random
from datetime import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from flcore.errors import CertificateError, IdentityRefused
from flcore.identity.authority import Authority
from flcore.identity.certificate import parse_certificates
from flcore.identity.deny_list import DenyList
from flcore.identity.mapping import CertificateMapping
from flcore.identity.names import Role
from flcore.identity.peers import PeerVerifier
from tests.flcore.identity.certificates import signed_by, to_pem, uri

SEED, CASES = 20, 3000


def mutated(der: bytes, draw: random.Random) -> bytes:
    changed = bytearray(der)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(changed))
        kind = draw.randrange(4)
        if kind == 0:
            changed[at] = draw.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            del changed[at : at + draw.randint(1, 8)]
        else:
            changed[at:at] = draw.randbytes(draw.randint(1, 8))
    return bytes(changed)


@pytest.mark.parametrize("is_ours", [True, False])
def test_no_mutant_gets_in_and_none_raises_anything_else(
    authority: Authority, other: Authority, now: datetime, is_ours: bool
) -> None:
    mapping = CertificateMapping({"DNS:fl.south": (Role.CLIENT, "south")})
    peers = PeerVerifier(
        "hospitals", authority.certificate, DenyList(authority.server_directory / "revoked.txt"), mapping
    )
    if is_ours:
        certificate = authority.issue("north", now=now).certificate
    else:
        names: list[x509.GeneralName] = [uri("spiffe://x/y"), x509.DNSName("fl.west"), x509.RFC822Name("a@b.example")]
        certificate = signed_by(other, names, now=now).certificate
    der, draw = certificate.parsed.public_bytes(Encoding.DER), random.Random(SEED)
    parsed = 0
    for _ in range(CASES):
        pem = to_pem(mutated(der, draw))
        try:
            (found,) = parse_certificates(pem, "the mutant")
        except CertificateError:
            pass
        else:
            parsed += 1
            if found.parsed.tbs_certificate_bytes == certificate.parsed.tbs_certificate_bytes:
                continue  # a signature may be written in several ways; what it signs is the same
        with pytest.raises(IdentityRefused) as caught:
            peers.identify(pem, now=now)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 800
    assert parsed > CASES // 20
