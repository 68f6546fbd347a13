"""Tokens of task assignments: they bind a client's calls to one assignment of one run.

A session's secret tells which client makes a call. A token tells which assignment the call belongs to, so that an
answer cannot be replayed into another run, round, task, attempt or client. The tag is HMAC-SHA256 (RFC 2104).
"""

import hmac
import secrets

from flcore_transport import Refused, TaskAssignment

KEY_BYTES = 32
"""The bytes of a key: as many as the hash's output, which RFC 2104 recommends as the least."""

LABEL = b"flcore task assignment 1"
"""The first field of each message, so that no other use of the key gives the same tag."""


class TokenKey:
    """The key of one run's tokens.

    Args:
        key: The secret, at least 32 random bytes. A resumed run passes the key that it began with.
        run_id: The id of the run.

    Raises:
        ValueError: The key has less than 32 bytes.

    Example:
        >>> key = TokenKey(bytes(32), "run-1")
        >>> token = key.token_of(1, "train", 7, "alice", "model-1")
        >>> len(token), token == key.token_of(2, "train", 7, "alice", "model-1")
        (32, False)
    """

    def __init__(self, key: bytes, run_id: str) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"a token key has at least {KEY_BYTES} bytes, not {len(key)}")
        self._key, self._run_id = key, run_id

    @classmethod
    def random(cls, run_id: str) -> "TokenKey":
        """Return a new key."""
        return cls(secrets.token_bytes(KEY_BYTES), run_id)

    def token_of(self, round_number: int, task: str, assignment_id: int, client: str, payload_id: str) -> bytes:
        """Return the token of one client's assignment.

        Args:
            round_number: The number of the round.
            task: The name of the task.
            assignment_id: The number of the attempt. A retry of the task has another one.
            client: The client's name.
            payload_id: The id of the model that the client is sent.
        """
        fields = [self._run_id, str(round_number), task, str(assignment_id), client, payload_id]
        # Each field has its length before it: without, ("ab", "c") and ("a", "bc") would be the same message.
        parts = [LABEL, *(field.encode() for field in fields)]
        message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, message, "sha256")


def require_token(assignment: TaskAssignment, client: str, token: bytes) -> None:
    """Raise `Refused` unless a client's call carries the token of its assignment.

    The comparison takes the same time wherever the first difference is.
    """
    if not hmac.compare_digest(token, assignment.token):
        raise Refused(
            "wrong-token",
            f"client {client!r}: expected the token of assignment {assignment.assignment_id}, got that of another run, "
            "round, task, attempt or client; send the answer with the token of its own assignment",
        )
