"""Mutants: small faults in the sources, each of which the test suite must find.

A mutant is a copy of the repository with one subtle mistake in it, such as a lost check or a wrong comparison. The
tests that guard this code run on the copy. If one fails, the mutant is killed. If all pass, it survives: the suite has
a hole. Run this after tests were removed, merged or made faster. It takes many minutes, so no test runs it:

    python -m tests.mutants --sound      # the same tests on a copy without a fault; all must pass
    python -m tests.mutants              # all mutants
    python -m tests.mutants NAME ...     # some of them

Run `--sound` first: a test that fails without a fault would kill every mutant.

Faults in the rules of exact sums are in `tests/kernels/test_mutations.py` and `test_cuda_mutations.py`.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SOURCE_ROOTS = ("kernels", "transport", "bench", "")
MARKERS = "not serial and not device and not gpu and not stress and not large and not browser"
LIMIT_S = 600.0
TESTS_FAILED = 1
"""The exit code of pytest where tests ran and some failed; all other errors have another one."""


class Mutant(NamedTuple):
    """One fault: in `file`, `old`, which must occur exactly once, becomes `new`. `tests` guard this code."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


class Broken(Exception):
    """A mutant could not be made, or its tests could not run."""


KERNELS, TRANSPORT = ("tests/kernels",), ("tests/transport",)
STAGING = ("tests/flcore/aggregation", "tests/flcore/server")
FEDERATION = "tests/flcore/federation"

MUTANTS = [
    Mutant(
        "uint32-read-as-int32", "kernels/flcore_kernels/cpu/decode.py", "memory.load_u32)", "memory.load_i32)", KERNELS
    ),
    Mutant(  # only the last part's digits tell whether the level of a step that is not whole was right
        "tail-marked-once",
        "kernels/flcore_kernels/cpu/exact.py",
        "                mark(seen, whole, now)",
        "            mark(seen, whole, now)",
        KERNELS,
    ),
    Mutant("merge-keeps-far-digits", "kernels/flcore_kernels/cpu/digits.py", "== level + 1", ">= level + 1", KERNELS),
    Mutant("scale-unbounded", "kernels/flcore_kernels/cpu/scan.py", "min(scale, LARGEST_SCALE)", "scale", KERNELS),
    Mutant(
        "spill-keeps-its-reservation",
        "flcore/aggregation/staged_chunks.py",
        "                self._release_chunks(self._acquired_bytes)\n"
        "                self._release_reservation()\n                return False\n",
        "                self._release_chunks(self._acquired_bytes)\n                return False\n",
        STAGING,
    ),
    Mutant("reservation-jumps-the-queue", "flcore/aggregation/memory_quota.py", " and not self.queue\n", "\n", STAGING),
    Mutant(
        "torn-fold-unnoticed",
        "flcore/aggregation/incremental.py",
        "            self._is_partially_folded = True  # until the whole group is in\n"
        "            total.fold(self._pending)\n",
        "            total.fold(self._pending)\n            self._is_partially_folded = True\n",
        STAGING,
    ),
    Mutant(
        "window-too-cheap",
        "transport/flcore_transport/flow_control.py",
        "transfer.window + 1",
        "transfer.window",
        TRANSPORT,
    ),
    Mutant(
        "metadata-compared-in-part",
        "transport/flcore_transport/framing.py",
        "if view[HEADER_BYTES:body_at] != message:",
        "if view[HEADER_BYTES : body_at - 8] != message[:-8]:",
        TRANSPORT,
    ),
    Mutant(
        "unknown-fields-accepted",
        "transport/flcore_transport/control.py",
        "    message.DiscardUnknownFields()\n",
        "",
        ("tests/transport/test_control.py",),
    ),
    Mutant(
        "a-key-twice-accepted",
        "flcore/strict_json.py",
        "if len(content) < len(pairs):",
        "if len(content) > len(pairs):",
        ("tests/flcore/job/test_contract.py",),
    ),
    Mutant(
        "old-stream-ends-session",
        "transport/flcore_transport/endpoint.py",
        "if session.link is not link:",
        "if session.link is None:",
        TRANSPORT,
    ),
    Mutant(
        "any-role-calls",
        "transport/flcore_transport/grpc_calls.py",
        "if identity.role not in roles:",
        "if not identity.role:",
        ("tests/transport/test_asks.py",),
    ),
    Mutant(
        "left-job-takes-joins",
        "transport/flcore_transport/endpoint.py",
        "        if self._has_left:\n            raise no_such_job(self.job)\n        session = self._by_client",
        "        session = self._by_client",
        ("tests/transport/test_hosted_jobs.py",),
    ),
    Mutant(
        "anybody-asks",
        "flcore/federation/requests.py",
        'if not (caller.role == "admin" or (is_site if is_of_a_site else caller.role == "lead")):',
        'if caller.role == "none":',
        (f"{FEDERATION}/test_requests.py",),
    ),
    Mutant(
        "jobs-of-others-are-own",
        "flcore/federation/told_state.py",
        'return caller.role == "admin" or caller.owner == row.owner',
        'return caller.role in ("admin", "lead")',
        (f"{FEDERATION}/test_requests.py",),
    ),
    Mutant(
        "packs-of-others-are-own",
        "flcore/federation/requests.py",
        "            self._require_own_pack(caller, digest)\n",
        "",
        (f"{FEDERATION}/test_pack_senders.py",),
    ),
    Mutant(
        "pack-digest-unchecked",
        "flcore/federation/pack_store.py",
        "if (found := file_digest(partial)) != digest:",
        "if not (found := file_digest(partial)):",
        (f"{FEDERATION}/test_pack_store.py",),
    ),
    Mutant(
        "unknown-signer-runs",
        "flcore/agent/site_policy.py",
        "if pack.signer is None:",
        'if pack.signer == "":',
        ("tests/flcore/agent/test_site_policy.py",),
    ),
    Mutant(
        "offered-contract-unchecked",
        "flcore/agent/job_admission.py",
        "if pack.contract_with(offer.changes).fingerprint != contract.fingerprint:",
        "if not pack.contract_with(offer.changes).fingerprint:",
        ("tests/flcore/agent/test_site_policy.py", "tests/flcore/agent/test_agent.py"),
    ),
    Mutant(
        "queue-begins-with-the-last",
        "flcore/federation/job_queue.py",
        "sorted(waiting, key=lambda job: job.number)",
        "sorted(waiting, key=lambda job: -job.number)",
        (f"{FEDERATION}/test_job_queue.py",),
    ),
    Mutant(
        "queue-gives-memory-twice",
        "flcore/federation/job_queue.py",
        "job.resident_bytes > free_bytes",
        "job.resident_bytes > capacity.free_bytes",
        (f"{FEDERATION}/test_job_queue.py",),
    ),
    Mutant(
        "ids-given-again",
        "flcore/federation/job_database.py",
        "PRIMARY KEY AUTOINCREMENT",
        "PRIMARY KEY",
        (f"{FEDERATION}/test_job_database.py",),
    ),
    Mutant(
        "running-job-deleted",
        "flcore/federation/job_database.py",
        "AND state NOT IN ('queued', 'running')\"",
        "AND state NOT IN ('queued')\"",
        (f"{FEDERATION}/test_job_database.py",),
    ),
    Mutant(
        "aborted-job-starts",
        "flcore/federation/job_database.py",
        "(utc_time(),), number, \"state = 'queued'\")",
        "(utc_time(),), number, \"state <> 'running'\")",
        (f"{FEDERATION}/test_job_database.py",),
    ),
    Mutant(
        "role-none-joins",
        "flcore/federation/members.py",
        'if self._roles.caller(client, "client", "").role == "none":',
        'if not self._roles.caller(client, "client", "").role:',
        (f"{FEDERATION}/test_standing_server.py",),
    ),
    Mutant(
        "role-none-stays",
        "flcore/federation/members.py",
        "if identity.role == Role.CLIENT and self._roles.is_barred(identity.name):",
        "if identity.role == Role.LEAD and self._roles.is_barred(identity.name):",
        (f"{FEDERATION}/test_members.py",),
    ),
    Mutant(
        "broken-roles-are-the-last-ones",
        "flcore/federation/roles.py",
        "        except CertificateError as error:\n            table = error\n",
        "        except CertificateError:\n            pass\n",
        (f"{FEDERATION}/test_roles.py",),
    ),
]


@contextmanager
def copied(mutant: Mutant | None) -> Iterator[Path]:
    """Copy the files that git tracks or would add to a temporary directory, and put the fault in."""
    command = ["git", "ls-files", "-co", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory(prefix="flcore-mutant-", ignore_cleanup_errors=True) as directory:
        copy = Path(directory) / "flcore"
        for name in listed.split("\0"):
            if (ROOT / name).is_file():  # git also lists a file whose removal is not committed yet
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
        if mutant is not None:
            text = (copy / mutant.file).read_text()
            if (count := text.count(mutant.old)) != 1:
                raise Broken(f"{mutant.file}: expected {mutant.old!r} once, found it {count} times; update the mutant")
            (copy / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        yield copy


def run_pytest(copy: Path, tests: tuple[str, ...], extra: dict[str, str]) -> tuple[int | None, str]:
    """Run tests in a copy until one fails. Return pytest's exit code (None: out of time) and its output."""
    sources = os.pathsep.join(str(copy / root) for root in SOURCE_ROOTS)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", MARKERS, *tests]
    with (copy.parent / "output").open("w+") as output:
        process = subprocess.Popen(
            command,
            cwd=copy,
            env={**os.environ, "PYTHONPATH": sources, **extra},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        code: int | None = None
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(LIMIT_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and the servers and clients that its tests left behind
            process.wait()
        output.seek(0)
        return code, output.read()


def verdict(code: int | None, output: str) -> str:
    """Return how a mutant was killed, or "" if it survived. Raises `Broken` where pytest ended for another reason."""
    if code == 0:
        return ""
    if code is None:
        raise Broken(f"no test failed within {LIMIT_S:.0f} s: try it again on an idle machine")
    failed = [line for line in output.splitlines() if line.startswith("FAILED ")]
    if code != TESTS_FAILED or not failed:  # with -x, an error while a test file is imported also exits with 1
        raise Broken(f"pytest ended with exit code {code} and no failed test:\n{output[-3000:]}")
    return failed[0].removeprefix("FAILED ").split(" - ")[0]


def is_killed(mutant: Mutant) -> bool:
    """Run the tests on a mutant and print what became of it. An error does not count as killed."""
    began, is_good = time.monotonic(), False
    try:
        with copied(mutant) as copy:
            # Mutated kernels are compiled anew, beside the copy: the user's cache would keep them for ever.
            extra = {"FLCORE_CACHE_DIR": str(copy.parent / "cache")} if mutant.tests == KERNELS else {}
            killer = verdict(*run_pytest(copy, mutant.tests, extra))
        told, is_good = f"killed by {killer}" if killer else "SURVIVED", bool(killer)
    except Broken as broken:
        told = f"ERROR: {broken}"
    print(f"{mutant.name}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return is_good


def is_sound(tests: tuple[str, ...]) -> bool:
    """Run tests on a copy without a fault and print whether they pass."""
    began = time.monotonic()
    with copied(None) as copy:
        code, output = run_pytest(copy, tests, {})
    told = "passed" if code == 0 else f"FAILED with exit code {code}:\n{output[-3000:]}"
    print(f"{' '.join(tests)}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return code == 0


def main(arguments: list[str]) -> int:
    """Return 0 if every mutant named (none: every mutant) is killed or, with `--sound`, if its tests pass; else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="See that the tests find faults.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="a mutant (default: all of them)")
    parser.add_argument("--sound", action="store_true", help="run the same tests on a copy without a fault")
    options = parser.parse_args(arguments)
    known = {mutant.name: mutant for mutant in MUTANTS}
    if unknown := set(options.names) - set(known):
        parser.error(f"no mutant is named {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.names or known]
    if options.sound:
        outcomes = [is_sound(tests) for tests in dict.fromkeys(mutant.tests for mutant in chosen)]
    else:
        outcomes = [is_killed(mutant) for mutant in chosen]
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
