"""`flcore doctor`: what usually goes wrong on this machine and on the way to a server, checked."""

import json
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from flcore_transport import GrpcConnection, split_address
from rich.console import Console
from rich.table import Table

from flcore.cli.addresses import DEFAULT_PORT
from flcore.cli.federation_options import JsonOption
from flcore.doctor import CheckResult, run_checks

STYLES = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def doctor(
    kit: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory of an unpacked kit: it is checked, and so is the way to its server."
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="A server, to which the way is checked; over TCP alone without --kit and --insecure. (default: the "
            "kit's)",
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="With --server: plaintext without TLS, to a server on this machine.")
    ] = False,
    certs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Directory of a server's certificates, which is checked, such as certs/server."
        ),
    ] = None,
    directory: Annotated[
        Path,
        typer.Option(
            "--dir",
            "--run",
            metavar="DIR",
            help="Directory whose disk is checked, such as that of a run.",
        ),
    ] = Path(),
    clients: Annotated[
        int, typer.Option(min=1, metavar="N", help="The number of clients for which open files must suffice.")
    ] = 100,
    port: Annotated[
        int,
        typer.Option(
            min=1, max=65535, help="Without --kit and --server: the port on which a server must be able to listen."
        ),
    ] = DEFAULT_PORT,
    as_json: JsonOption = False,
) -> None:
    """Check this machine, its certificates and the way to a server, and say what to do. Exit code 1 if a check failed.

    Checks versions, compiled kernels, open files, memory, the disk (it writes up to 256 MiB, for a second), ports,
    certificates, and with a server the clock, the round trip and the rate to it.
    """
    if insecure and (server is None or kit is not None):
        raise typer.BadParameter("it goes with --server, without --kit", param_hint="--insecure")
    if server is not None:
        try:
            split_address(server)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--server") from error
    results = _check_machine(directory, clients)
    if certs is not None:
        from flcore.doctor.certificates import check_server_directory

        results += run_checks([("certificate", partial(check_server_directory, certs))])
    if kit is None and server is None:
        from flcore.doctor.port import check_port_free

        results += run_checks([("port", partial(check_port_free, "0.0.0.0", port))])  # noqa: S104 - is not opened
    else:
        results += _check_way(kit, server, insecure)
    failed = sum(result.outcome == "failed" for result in results)
    if as_json:
        print(json.dumps({"checks": [result.to_json() for result in results], "failed": failed}))
    else:
        _print(results)
    if failed:
        raise typer.Exit(1)


def _check_machine(directory: Path, clients: int) -> list[CheckResult]:
    from flcore.doctor import disk, machine
    from flcore.doctor.kernel_cache import check_kernel_cache
    from flcore.doctor.versions import check_packages, check_python

    return run_checks(
        [
            ("python", check_python),
            ("packages", check_packages),
            ("kernel cache", check_kernel_cache),
            ("open files", partial(machine.check_descriptors, clients)),
            ("memory", machine.check_memory),
            ("overcommit", machine.check_overcommit),
            ("huge pages", machine.check_huge_pages),
            ("disk space", partial(disk.check_space, directory)),
            ("file system", partial(disk.check_file_system, directory)),
            ("disk rate", partial(disk.check_write_rate, directory)),
        ]
    )


def _check_way(kit: Path | None, server: str | None, insecure: bool) -> list[CheckResult]:
    """Check a kit, and the way to a server: over TLS with the kit, in plaintext, or over TCP alone."""
    from flcore.doctor.certificates import check_kit
    from flcore.doctor.server import check_port_reachable, check_server
    from flcore.identity.credentials import ClientCertificates
    from flcore.identity.tls import client_keys

    results, connect = list[CheckResult](), None
    if kit is not None:
        results += run_checks([("certificate", partial(check_kit, kit))])
        if results[0].outcome == "failed":
            return results
        certificates = ClientCertificates.load(kit)
        server = server or certificates.server
        connect = partial(GrpcConnection, server, keys=client_keys(certificates))
    elif insecure and server is not None:
        connect = partial(GrpcConnection, server)
    if server is not None:
        results += run_checks([("port", partial(check_port_reachable, server))])
    if connect is not None and results[-1].outcome == "ok":
        with closing(connect()) as connection:
            results += check_server(connection)
    return results


def _print(results: list[CheckResult]) -> None:
    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        table = Table("", "check", "found", "what to do", box=None, pad_edge=False)
        for result in results:
            table.add_row(result.outcome, result.name, result.found, result.advice, style=STYLES[result.outcome])
        console.print(table)
        return
    for result in results:
        advice = f"; {result.advice}" if result.advice else ""
        print(f"{result.outcome:<8} {result.name}: {result.found}{advice}")
