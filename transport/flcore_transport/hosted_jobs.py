"""The jobs of one server: for each its endpoint, and for some time the goodbyes of those that are over.

A server has a first service, which takes the calls that name no job. It can host more services, one for each job. They
share its port and its limits, and nothing else: a session belongs to one job, and so does its secret.
"""

import threading
from collections import OrderedDict

from flcore_transport.endpoint import Endpoint, no_such_job
from flcore_transport.errors import Refused
from flcore_transport.service import Service

MAX_GOODBYES = 1_000
"""The most goodbyes that are kept for clients that come back late. The oldest one is forgotten first."""


class HostedJobs:
    """The endpoints of one server. Thread-safe.

    Attributes:
        first: The endpoint of calls that name no job.
    """

    def __init__(self, first: Endpoint) -> None:
        self.first = first
        self._lock = threading.Lock()
        self._by_job: dict[str, Endpoint] = {}
        self._goodbyes: OrderedDict[str, Refused] = OrderedDict()

    def host(self, job: str, service: Service) -> Endpoint:
        """Return the endpoint of a job that is hosted from now on.

        Raises:
            ValueError: The job has no id, or is hosted already.
        """
        with self._lock:
            if not job or job in self._by_job:
                raise ValueError(f"expected the id of a job that is not hosted yet, got {job!r}")
            self._goodbyes.pop(job, None)
            endpoint = self._by_job[job] = Endpoint(service, job)
        return endpoint

    def find(self, job: str) -> Endpoint:
        """Return the endpoint of a job, or raise `Refused`: with its goodbye, or because it is not hosted."""
        if not job:
            return self.first
        with self._lock:
            endpoint, goodbye = self._by_job.get(job), self._goodbyes.get(job)
        if endpoint is None:
            raise no_such_job(job) if goodbye is None else Refused(goodbye.kind, str(goodbye))
        return endpoint

    def remove(self, endpoint: Endpoint) -> None:
        """Host a job no longer. Its goodbye is kept if it has said one."""
        with self._lock:
            if self._by_job.get(endpoint.job) is not endpoint:
                return
            del self._by_job[endpoint.job]
            if farewell := endpoint.farewell:
                self._goodbyes[endpoint.job] = farewell
                if len(self._goodbyes) > MAX_GOODBYES:
                    self._goodbyes.popitem(last=False)

    def hosted(self) -> list[Endpoint]:
        """Return the endpoints of all jobs, without the first one."""
        with self._lock:
            return list(self._by_job.values())

    def endpoints(self) -> list[Endpoint]:
        """Return all endpoints."""
        return [self.first, *self.hosted()]
