"""Names, URIs and hosts: one form of each, and nothing else."""

from collections.abc import Callable

import pytest

from flcore.errors import CertificateError
from flcore.identity.names import (
    Identity,
    Role,
    build_uri,
    parse_uri,
    require_fingerprint,
    require_hosts,
    require_name,
)
from flcore.job.contract import Contract

DIGEST = "0f" * 32

BAD_NAMES = [
    "",
    ".",
    "..",
    "../north",
    "north/..",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "-north",
    ".north",
    "_north",
    "north ",
    "north\n",
    "no\0rth",
    "no\x1b[2Jrth",
    "nörth",
    "nоrth",  # noqa: RUF001 - a Cyrillic letter
    "北",
    "a" * 65,
    "a:b",
    "a%2fb",
    "north\u202e",
    "①",
    "٣",
]


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("name", ["north", "a", "0", "Site-1.example_org", "a" * 64])
def test_a_uri_comes_back(role: Role, name: str) -> None:
    identity = Identity("hospitals", role, name, DIGEST)
    assert identity.uri == f"flcore://hospitals/{role.value}/{name}"
    assert parse_uri(identity.uri, DIGEST) == identity


@pytest.mark.parametrize("name", BAD_NAMES)
def test_other_names_are_refused_everywhere_in_one_line(name: str) -> None:
    refusals: list[Callable[[], object]] = [
        lambda: require_name(name, "a client"),
        lambda: build_uri(name, Role.CLIENT, "north"),
        lambda: build_uri("hospitals", Role.CLIENT, name),
        lambda: parse_uri(f"flcore://{name}/client/north", DIGEST),
        lambda: parse_uri(f"flcore://hospitals/client/{name}", DIGEST),
    ]
    for refusal in refusals:
        with pytest.raises(CertificateError, match=r"expected .*, got .*; ") as caught:
            refusal()
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_the_names_are_the_contracts() -> None:
    schema = Contract.model_json_schema()["properties"]["clients"]
    assert "^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$" in str(schema)
    with pytest.raises(CertificateError):
        require_name("a" * 65, "a client")


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "flcore://",
        "flcore://hospitals",
        "flcore://hospitals/client",
        "flcore://hospitals/client/",
        "flcore://hospitals/client/north/",
        "flcore://hospitals/client/north/x",
        "flcore://hospitals/Client/north",
        "flcore://hospitals/owner/north",
        "flcore://hospitals/superuser/north",
        "flcore://hospitals//north",
        "FLCORE://hospitals/client/north",
        "Flcore://hospitals/client/north",
        " flcore://hospitals/client/north",
        "flcore://hospitals/client/north\n",
        "flcore://hospitals/client/north?x",
        "flcore://hospitals/client/north#x",
        "flcore://user@hospitals/client/north",
        "flcore://hospitals:1/client/north",
        "flcore://hospitals/client/n%6frth",
        "http://hospitals/client/north",
        "flcore://hospitals/client/" + "a" * 100_000,
    ],
)
def test_only_the_canonical_uri_is_read(uri: str) -> None:
    with pytest.raises(CertificateError, match="expected flcore://FEDERATION/ROLE/NAME") as caught:
        parse_uri(uri, DIGEST)
    assert len(str(caught.value)) < 500


def test_hosts_have_one_form() -> None:
    assert require_hosts(["FL.Example.org.", "fl.example.org", "10.0.0.7", "[2001:DB8::0001]"]) == (
        "fl.example.org",
        "10.0.0.7",
        "2001:db8::1",
    )
    assert require_hosts(["localhost"]) == ("localhost", "127.0.0.1", "::1")


@pytest.mark.parametrize(
    "host",
    [
        "",
        ".",
        "*",
        "*.example.org",
        "0.0.0.0",
        "::",
        "224.0.0.1",
        "fe80::1%eth0",
        "example.org:8470",
        "https://example.org",
        "a b",
        "a\nb",
        "bücher.example",
        "-a.example",
        "a-.example",
        "a..example",
        "a_b",
        "1.2.3",
        "256.1.1.1",
        "a" * 64,
        ".".join(["a" * 60] * 5),
    ],
)
def test_other_hosts_are_refused(host: str) -> None:
    with pytest.raises(CertificateError, match="expected a DNS name in ASCII or an IP address") as caught:
        require_hosts(["fl.example.org", host])
    assert str(caught.value).isprintable()


def test_a_server_has_a_host() -> None:
    with pytest.raises(CertificateError, match="expected one or more, got none"):
        require_hosts([])


def test_fingerprints_as_openssl_prints_them_are_read() -> None:
    assert require_fingerprint(":".join(["AB"] * 32)) == "ab" * 32
    for text in ("", "ab", "g" * 64, "ab" * 33, "ab" * 32 + "\n"):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            require_fingerprint(text)
