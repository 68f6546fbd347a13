"""The header `Host` of a request to a server of this process.

A page of elsewhere may let a name of its own point to 127.0.0.1, and its scripts would read what a server on loopback
replies (DNS rebinding). So such a server answers only requests that call it by a name of its own.
"""

import re

HOST = re.compile(r"(?:\[(?P<ipv6>[^\]]*)\]|(?P<name>[^:]*))(?::\d+)?")


def host_name(header: str) -> str:
    """Return the name or address of a header `Host`, without port and brackets; empty for a malformed one.

    >>> host_name("localhost:8480"), host_name("[::1]:8480"), host_name("FL.example.org"), host_name("[::1")
    ('localhost', '::1', 'fl.example.org', '')
    """
    found = HOST.fullmatch(header)
    return "" if found is None else (found["ipv6"] or found["name"] or "").lower()
