"""A fresh process with one real client, whose task returns the model as it came: what flcore itself takes of memory."""

from flcore_transport import GrpcConnection

import flcore
from flcore_bench.inside import Client, Executor, Site
from flcore_bench.machine import peak_bytes
from flcore_bench.process import setup_from_parent, tell_parent


def main() -> None:
    """Take part in the setup's job until its server says goodbye, and tell this process's peak."""
    setup = setup_from_parent()
    job = flcore.Job.load(setup["directory"], **setup["contract"])
    name = job.contract.client_names[0]
    executor = Executor(job, Site(name, (name,), job.contract.seed))
    Client(job, executor, GrpcConnection(setup["address"])).start().result()
    tell_parent({"peak_bytes": peak_bytes()})
