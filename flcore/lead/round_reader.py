"""A job's rounds as its lead reads them: each once, from the history at the server. Only new bytes are sent."""

from flcore.errors import HistoryError
from flcore.federation.messages import FileList, FilePart, ReadFile
from flcore.lead.file_download import list_files, main_file
from flcore.lead.server_calls import TRANSFER_TIMEOUT_S, ServerCalls
from flcore.server.history import RoundRecord
from flcore.server.history_table import parse_history
from flcore.server.run_directory import HISTORY_FILE


class RoundReader:
    """Reads the records of a job's finished rounds as they come. It waits for a server that is away.

    Args:
        calls: The calls to the server.
        job: The job's id.
    """

    def __init__(self, calls: ServerCalls, job: str) -> None:
        self._calls, self._job = calls, job
        self._name = ""
        self._last_round = self._offset = 0

    def read(self) -> list[RoundRecord]:
        """Return the records of the rounds that have finished since the last call, in order."""
        if not self._name:
            files = list_files(self._job, lambda request: self._calls.call_until_answered(request, FileList)[0])
            found = main_file(files, HISTORY_FILE)
            if found is None:
                return []
            self._name = found.name
        offset = self._offset
        try:
            return self._read_on()
        except HistoryError:
            if offset == 0:
                raise
            # After a restart the server may have cut off, and written again, the record of a round that was not over.
            self._offset = 0
            return self._read_on()

    def _read_on(self) -> list[RoundRecord]:
        content = self._new_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        records = parse_history(whole, f"the history of {self._job}")
        new = [record for record in records if record.round > self._last_round]
        if [record.round for record in new] != list(range(self._last_round + 1, self._last_round + 1 + len(new))):
            raise HistoryError(
                f"the history of {self._job}: expected round {self._last_round + 1} next, got rounds "
                f"{', '.join(str(record.round) for record in new[:5])}; see the server's disk"
            )
        self._offset += len(whole)
        self._last_round += len(new)
        return new

    def _new_bytes(self) -> bytes:
        found = bytearray()
        while True:
            request = ReadFile(id=self._job, name=self._name, offset=self._offset + len(found))
            part, body = self._calls.call_until_answered(request, FilePart, timeout_s=TRANSFER_TIMEOUT_S)
            if request.offset > part.nbytes:
                raise HistoryError(f"the history of {self._job} is shorter than before; read it again")
            found += body
            if not body or request.offset + len(body) >= part.nbytes:
                return bytes(found)
