"""The answer to a ping: the server's clock, and as many bytes as were asked for."""

import time

from flcore_transport import Ask, Identity, Refused, Reply

from flcore.federation.messages import Ping, Pong, RequestContent
from flcore.job.messages import MalformedMessage, parse_content


def pong(request: Ping) -> tuple[Pong, bytes]:
    """Return the reply to a ping, and its body."""
    return Pong(time_s=time.time()), bytes(request.nbytes)


def answer_pings(_: Identity | None, ask: Ask) -> Reply:
    """Answer an ask at the server of one job, which takes no other requests.

    Raises:
        Refused: It is no ping.
    """
    try:
        request = parse_content(RequestContent, ask.content).request
    except MalformedMessage as error:
        raise Refused(error.kind, str(error)) from error
    if not isinstance(request, Ping):
        raise Refused("no-requests", "this server runs one job and takes no requests; ask a standing federation")
    content, body = pong(request)
    return Reply(content.to_bytes(), body)
