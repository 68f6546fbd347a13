"""The event loop of this process's gRPC servers.

gRPC's asyncio layer has one completion queue per process. When a loop that uses it is closed, an exception in gRPC's
poller loses events of all other loops. So all servers of a process share one loop, which is never closed.
"""

import asyncio
import threading
from functools import cache


@cache
def server_event_loop() -> asyncio.AbstractEventLoop:
    """Return the loop; the first call starts it, in a daemon thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="flcore-grpc", daemon=True).start()
    return loop
