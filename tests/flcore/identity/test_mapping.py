"""The mapping: names for certificates of another authority."""

import ipaddress
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509

from flcore.errors import CertificateError
from flcore.identity.authority import Authority
from flcore.identity.certificate import parse_certificates
from flcore.identity.mapping import CertificateMapping
from flcore.identity.names import Role
from tests.flcore.identity.certificates import signed_by, uri
from tests.flcore.identity.forged import sign


def load(tmp_path: Path, text: str | bytes) -> CertificateMapping:
    path = tmp_path / "mapping.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return CertificateMapping.load(path)


def row(**keys: str) -> str:
    return "[[certificate]]\n" + "".join(f"{key} = '{value}'\n" for key, value in keys.items())


def test_subjects_and_alternative_names_are_found(tmp_path: Path, other: Authority, now: datetime) -> None:
    mapping = load(
        tmp_path,
        row(subject=r"CN=fl\, north", name="x")
        + row(san="DNS:fl.south.example", name="south")
        + row(san="URI:spiffe://x/y", name="boss", role="lead")
        + row(san="IP:10.1.2.3", name="east")
        + row(san="email:fl@west.example", name="west"),
    )
    assert len(mapping) == 5
    cases: list[tuple[str, x509.GeneralName | None, tuple[Role, str] | None]] = [
        ("fl, north", None, (Role.CLIENT, "x")),
        ("fl", x509.DNSName("fl.south.example"), (Role.CLIENT, "south")),
        ("fl", uri("spiffe://x/y"), (Role.LEAD, "boss")),
        ("fl", x509.IPAddress(ipaddress.ip_address("10.1.2.3")), (Role.CLIENT, "east")),
        ("fl", x509.RFC822Name("fl@west.example"), (Role.CLIENT, "west")),
        ("fl", x509.DNSName("south.example"), None),
        ("DNS:fl.south.example", None, None),
        ("fl, north", x509.DNSName("fl.south.example"), None),  # two rows: neither counts
    ]
    for common_name, name, expected in cases:
        pair = signed_by(other, [] if name is None else [name], now=now, common_name=common_name)
        assert mapping.find(pair.certificate) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected tables .* got an empty file"),
        ("certificate = 3", "expected tables"),
        ("[certificate]\nname = 'a'", "expected tables"),
        (row(san="DNS:a", name="a") + "[more]\n", "expected tables"),
        ("certificate = [3]", "certificate 1: expected a table of strings"),
        ("[[certificate]]\nsan = 'DNS:a'\nname = 3", "certificate 1: expected a table of strings"),
        ("[[certificate]]\nsan = ['DNS:a']\nname = 'a'", "certificate 1: expected a table of strings"),
        (row(san="DNS:a", name="a", color="red"), "got 'color'"),
        (row(san="DNS:a"), "expected name, and one of"),
        (row(name="a"), "expected name, and one of"),
        (row(san="DNS:a", subject="CN=a", name="a"), "expected name, and one of"),
        (row(san="DNS:a", name="../a"), r"certificate 1\): expected 1 to 64"),
        (row(san="DNS:a", name="a", role="server"), "expected client, lead or admin, got 'server'"),
        (row(san="a", name="a"), "expected KIND:VALUE"),
        (row(san="DNS:", name="a"), "expected KIND:VALUE"),
        (row(san="dns:a", name="a"), "expected KIND:VALUE"),
        (row(subject="", name="a"), "RFC 4514"),
        (row(subject="north", name="a"), "RFC 4514"),
        (row(subject="CN=", name="a"), "RFC 4514"),
        (row(san="DNS:a", name="a") + row(san="DNS:a", name="b"), "certificate 2: .* got DNS:a again"),
        (row(san="DNS:a", name="a") + row(san="DNS:b", name="a"), "certificate 2: .* got the client a again"),
        (row(subject="CN=a,O=b", name="a") + row(subject="CN=a, O=b", name="b"), "certificate 2|RFC 4514"),
        ("[[certificate", "expected TOML"),
        (b"\xff\xfe[\0", "expected UTF-8, got UTF-16"),
        (b"certificate = " + b"[" * 100_000, "expected TOML"),
    ],
)
def test_a_table_that_is_not_sound_is_refused_with_its_row(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(CertificateError, match=said) as caught:
        load(tmp_path, text)
    assert "mapping.toml" in str(caught.value) and str(caught.value).isprintable()


def test_a_row_belongs_to_one_authority(tmp_path: Path) -> None:
    path = tmp_path / "mapping.toml"
    path.write_text(row(subject="CN=fl", name="x"))
    issuers = [sign(None, x509.Name.from_rfc4514_string(f"CN={name}"), is_ca=True) for name in ("north", "south")]
    north, south = (parse_certificates(issuer.pem, "the test's")[0] for issuer in issuers)
    with pytest.raises(CertificateError, match=r"ca: expected the subject of one authority .* got ''"):
        CertificateMapping.load(path, [north, south])
    path.write_text(row(subject="CN=fl", name="x", ca="CN=east"))
    with pytest.raises(CertificateError, match=r"one of 'CN=north, CN=south', got 'CN=east'"):
        CertificateMapping.load(path, [north, south])
    path.write_text(row(subject="CN=fl", name="x", ca="CN=north"))
    mapping = CertificateMapping.load(path, [north, south])
    leaves = [sign(issuer, x509.Name.from_rfc4514_string("CN=fl")) for issuer in issuers]
    found = [mapping.find(parse_certificates(leaf.pem, "the test's")[0]) for leaf in leaves]
    assert found == [(Role.CLIENT, "x"), None]
