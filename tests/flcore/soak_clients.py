"""Several clients of one job over TLS in one process: `python -m tests.flcore.soak_clients JOB ADDRESS KIT...`.

Each has a kit, a connection and threads of its own, as in `flcore client`. The process ends when all of them have
been told that the job is done.
"""

import sys
from pathlib import Path

from flcore_transport import GrpcConnection

from flcore.client.client import Client
from flcore.client.executor import Executor
from flcore.client.task import Site
from flcore.identity.credentials import ClientCertificates
from flcore.identity.tls import client_keys
from flcore.job.job import Job
from flcore.process import keep_freed_memory


def main() -> None:
    """Run the clients to their end."""
    keep_freed_memory()
    directory, address, *kits = sys.argv[1:]
    ended = []
    for kit in kits:
        job = Job.load(directory)
        certificates = ClientCertificates.load(Path(kit))
        site = Site(certificates.identity.name, job.contract.client_names, job.contract.seed, {})
        connection = GrpcConnection(address, keys=client_keys(certificates))
        ended.append(Client(job, Executor(job, site), connection).start())
    for end in ended:
        end.result()


if __name__ == "__main__":
    main()
