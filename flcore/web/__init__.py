"""A read-only web page of running jobs, on the server. Needs the extra `web` (Starlette and uvicorn)."""

from flcore.web.access import Token
from flcore.web.federation_source import FederationSource
from flcore.web.server import WebServer
from flcore.web.sources import RunSource, Source

__all__ = ["FederationSource", "RunSource", "Source", "Token", "WebServer"]
