"""`flcore certs`: the certificates of a federation, made and revoked by its operator."""

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from flcore_transport import join_address

from flcore.cli.addresses import DEFAULT_PORT
from flcore.identity.authority import Authority
from flcore.identity.certificate import format_time, utc_now
from flcore.identity.issued import IssuedCertificate
from flcore.identity.kit import kit_path, public_key_path, require_server_address, write_kit
from flcore.identity.lead_keys import PUBLIC_KEY_SUFFIX, SigningKey
from flcore.identity.names import Role
from flcore.identity.signing import AUTHORITY_DAYS, CLIENT_DAYS, MAX_DAYS, SERVER_DAYS, KeyPair

certs_app = typer.Typer(help="Make, renew and revoke the certificates of a federation.", no_args_is_help=True)

Directory = Annotated[Path, typer.Option("--dir", help="Directory of the federation's certificate authority.")]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT", help="The server's address in the kit. (default: the server's first host, port 8470)"
    ),
]
Out = Annotated[Path | None, typer.Option(help="Directory for kits; created if missing. (default: DIR/kits)")]
DEFAULT_DIRECTORY = Path("certs")


class KitRole(StrEnum):
    """The role that a kit's certificate has."""

    CLIENT = "client"
    LEAD = "lead"
    ADMIN = "admin"


def init(
    federation: Annotated[str, typer.Argument(help="The federation's name.")],
    host: Annotated[
        list[str],
        typer.Option(
            help="DNS name or IP address that clients connect to; repeat it for more. The first goes into kits."
        ),
    ],
    directory: Directory = DEFAULT_DIRECTORY,
    days: Annotated[
        int, typer.Option(min=1, max=MAX_DAYS, help="Lifetime of the server's certificate in days.")
    ] = SERVER_DAYS,
    ca_days: Annotated[
        int, typer.Option(min=1, max=MAX_DAYS, help="Lifetime of the certificate authority in days.")
    ] = AUTHORITY_DAYS,
) -> None:
    """Make a federation's certificate authority and its server's certificate."""
    authority = Authority.create(directory, federation, host, now=utc_now(), authority_days=ca_days, server_days=days)
    print(f"{directory}: the authority of the federation {federation}; keep {directory}/authority on this machine")
    print(f"{authority.server_directory}: the server's files, for {', '.join(authority.server_hosts)}")


def issue(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of the holders.")],
    role: Annotated[KitRole, typer.Option(help="Role of the holders. Only clients join jobs.")] = KitRole.CLIENT,
    lead_name: Annotated[
        str | None, typer.Option("--lead", metavar="LEAD", help="Also issue a lead's kit, as `flcore certs lead` does.")
    ] = None,
    address: Address = None,
    out: Out = None,
    directory: Directory = DEFAULT_DIRECTORY,
    days: Annotated[int, typer.Option(min=1, max=MAX_DAYS, help="Lifetime in days.")] = CLIENT_DAYS,
) -> None:
    """Issue certificates for new names: a kit for each, NAME.zip. A kit has a private key: let nobody else read it."""
    leads = [] if lead_name is None else [lead_name]
    authority, shown, kits = _place_of_new([*names, *leads], directory, address, out)
    for name in leads:
        public_key_path(kits, name)  # refused before the first certificate is issued
    for name in names:
        _write(authority, authority.issue(name, Role(role), now=utc_now(), days=days), kits, shown)
    _issue_leads(leads, authority, kits, shown, days)


def lead(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of leads, who submit jobs.")],
    address: Address = None,
    out: Out = None,
    directory: Directory = DEFAULT_DIRECTORY,
    days: Annotated[int, typer.Option(min=1, max=MAX_DAYS, help="Lifetime of the certificate in days.")] = CLIENT_DAYS,
) -> None:
    """Issue certificates for new leads, and keys that sign packs: a kit for each, NAME.zip, and NAME.pub for sites."""
    authority, shown, kits = _place_of_new(names, directory, address, out)
    for name in names:
        public_key_path(kits, name)  # refused before the first certificate is issued
    _issue_leads(names, authority, kits, shown, days)


def _issue_leads(names: Sequence[str], authority: Authority, kits: Path, address: str, days: int) -> None:
    for name in names:
        pair = authority.issue(name, Role.LEAD, now=utc_now(), days=days)
        _write(authority, pair, kits, address, SigningKey.create(name))


def revoke(
    name: Annotated[str, typer.Argument(help="Name of a client, lead or admin.")],
    directory: Directory = DEFAULT_DIRECTORY,
) -> None:
    """Revoke a name's certificates, in DIR/server/revoked.txt. A running server that reads it ends their sessions."""
    authority = Authority(directory)
    for row in authority.revoke(name, now=utc_now()):
        print(f"revoked {name}: {row.identity.fingerprint}")
    print(f"{authority.server_directory}/revoked.txt: copy it to the server, if that is another machine")


def renew(
    name: Annotated[str | None, typer.Argument(help="Name of a client, lead or admin.")] = None,
    server: Annotated[bool, typer.Option("--server", help="Renew the server's certificate instead.")] = False,
    host: Annotated[
        list[str] | None,
        typer.Option(help="With --server: DNS name or IP address that clients connect to. (default: unchanged)"),
    ] = None,
    address: Address = None,
    out: Out = None,
    directory: Directory = DEFAULT_DIRECTORY,
    days: Annotated[int, typer.Option(min=1, max=MAX_DAYS, help="Lifetime in days.")] = CLIENT_DAYS,
) -> None:
    """Issue another certificate, with a new key, for a name or for the server. Old ones stay valid until they expire.

    A running server takes up its new certificate by itself. A client gets a new kit.
    """
    if (name is None) != server:
        raise typer.BadParameter("give the name of a client or a lead, or --server, and not both", param_hint="NAME")
    if (host and not server) or (server and (address or out)):
        raise typer.BadParameter("--host goes with --server; --address and --out go with a name", param_hint="--server")
    authority = Authority(directory)
    if name is None:
        pair = authority.renew_server(now=utc_now(), days=days, hosts=host or ())
        print(
            f"{authority.server_directory}/server.pem: for {', '.join(pair.certificate.hosts)}, expires "
            f"{format_time(pair.certificate.expires)}; copy it to the server, if that is another machine"
        )
        return
    shown, kits = _address(authority, address), _kits(directory, out)
    authority.require_renewable(name)
    kit_path(kits, name)
    _write(authority, authority.renew(name, now=utc_now(), days=days), kits, shown)


def list_certificates(
    directory: Directory = DEFAULT_DIRECTORY,
    as_json: Annotated[bool, typer.Option("--json", help="Print one line of JSON.")] = False,
) -> None:
    """List all certificates that were issued: name, role, expiry, state and SHA-256 fingerprint."""
    authority = Authority(directory)
    rows, now = authority.issued(), utc_now()
    if as_json:
        report = {
            "federation": authority.federation,
            "expires": format_time(authority.certificate.expires),
            "fingerprint": authority.certificate.fingerprint,
            "certificates": [
                {
                    "name": row.identity.name,
                    "role": row.identity.role,
                    "expires": format_time(row.certificate.expires),
                    "state": row.state(now),
                    "fingerprint": row.identity.fingerprint,
                }
                for row in rows
            ],
        }
        print(json.dumps(report))
        return
    cells = [
        (authority.federation, "ca", format_time(authority.certificate.expires), "", authority.certificate.fingerprint)
    ]
    cells += [_cells(row, row.state(now)) for row in rows]
    _print_table([("name", "role", "expires", "state", "fingerprint"), *cells])


def _cells(row: IssuedCertificate, state: str) -> tuple[str, str, str, str, str]:
    return row.identity.name, row.identity.role, format_time(row.certificate.expires), state, row.identity.fingerprint


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _place_of_new(
    names: Sequence[str], directory: Path, address: str | None, out: Path | None
) -> tuple[Authority, str, Path]:
    """Return the authority, the server's address and the directory of kits, if all names can have new kits there."""
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise typer.BadParameter(f"expected each name once, got {', '.join(repeated)} again", param_hint="NAME")
    authority = Authority(directory)
    shown, kits = _address(authority, address), _kits(directory, out)
    authority.require_new(names, now=utc_now())
    for name in names:
        kit_path(kits, name)  # refused before the first certificate is issued
    return authority, shown, kits


def _address(authority: Authority, given: str | None) -> str:
    return require_server_address(given or join_address(authority.server_hosts[0], DEFAULT_PORT))


def _kits(directory: Path, out: Path | None) -> Path:
    """Return the directory of kits, which is made before anything is issued."""
    kits = directory / "kits" if out is None else out
    kits.mkdir(parents=True, exist_ok=True)
    return kits


def _write(
    authority: Authority, pair: KeyPair, kits: Path, address: str, signing_key: SigningKey | None = None
) -> None:
    path = write_kit(kits, pair, authority.certificate, address, signing_key)
    print(f"{path}: expires {format_time(pair.certificate.expires)}, server {address}")
    if signing_key is not None:
        print(f"{kits / signing_key.name}{PUBLIC_KEY_SUFFIX}: the public key, which sites list in `signers`")


certs_app.command("init")(init)
certs_app.command("issue")(issue)
certs_app.command("lead")(lead)
certs_app.command("revoke")(revoke)
certs_app.command("renew")(renew)
certs_app.command("list")(list_certificates)
