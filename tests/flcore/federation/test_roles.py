"""roles.toml: it overrides the certificates' roles, is read again when it changes, and a broken one gives no role."""

from pathlib import Path

import pytest
from flcore_transport import Refused

from flcore.errors import CertificateError
from flcore.federation.roles import Roles


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roles.toml"


def role_of(roles: Roles, certificate_role: str, name: str) -> str:
    return roles.caller(name, certificate_role, "f" * 64).role


def test_without_a_table_the_certificates_roles_hold(path: Path) -> None:
    roles = Roles(path)
    roles.check()
    assert [role_of(roles, role, "alice") for role in ("lead", "admin", "client")] == ["lead", "admin", "client"]


def test_the_table_overrides_and_is_read_again_when_it_changes(path: Path) -> None:
    path.write_text('[lead]\nalice = "admin"\nbob = "none"\n[client]\nnorth = "lead"\n')
    roles = Roles(path)
    assert role_of(roles, "lead", "alice") == "admin" and role_of(roles, "client", "alice") == "client"
    assert role_of(roles, "lead", "bob") == "none" and role_of(roles, "client", "north") == "lead"
    path.write_text('[lead]\nalice = "none"\n')
    assert role_of(roles, "lead", "alice") == "none" and role_of(roles, "lead", "bob") == "lead"
    path.unlink()
    assert role_of(roles, "lead", "alice") == "lead"


def test_jobs_belong_to_the_certificate_and_not_to_a_name(path: Path) -> None:
    roles = Roles(path)
    assert roles.caller("alice", "lead", "").owner != roles.caller("alice", "client", "").owner


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[lead", "expected TOML"),
        ('alice = "admin"', r"expected the tables \[client\], \[lead\] and \[admin\], got 'alice'"),
        ('[server]\nx = "admin"', "got 'server'"),
        ('[lead]\nalice = "root"', "lead.alice: expected one of client, lead, admin, none, got 'root'"),
        ("[lead]\nalice = 3", "got '3'"),
        ('[lead]\n"../x" = "admin"', "the name of a lead"),
    ],
)
def test_a_table_that_cannot_be_read_gives_nobody_a_role(path: Path, text: str, reason: str) -> None:
    path.write_text('[lead]\nalice = "admin"\n')
    roles = Roles(path)
    assert role_of(roles, "lead", "alice") == "admin"
    path.write_text(text)
    with pytest.raises(Refused, match=f"nobody has a role: .*{reason}") as refused:
        role_of(roles, "lead", "alice")
    assert refused.value.kind == "roles"
    with pytest.raises(CertificateError, match=reason):
        Roles(path).check()
    path.write_text('[lead]\nalice = "lead"\n')
    assert role_of(roles, "lead", "alice") == "lead"
