"""The points of a run at which tests kill the server: before and after named functions, at a given call of a round.

Rounds are numbered as in the table's job of three rounds, with `train`, `validate`, a best model and checkpoints every
second round; three clients answer one after the other, each with an update of three pieces. Round 0 is the time before
the first round. Longer jobs take a point of round 2 in any later round (`killed_server`).
"""

from dataclasses import dataclass
from typing import Literal

ROUNDS = 3
CLIENTS = ("a", "b", "c")
PIECES = 3

BOTH, BATCH, STREAMING = ("batch", "streaming"), ("batch",), ("streaming",)


@dataclass(frozen=True)
class KillPoint:
    """A moment in the server's process.

    Attributes:
        when: "before" the function, or "after" it has returned.
        target: The function, as "module:name" or "module:Class.name".
        round: The number of the round. 0: before the first one.
        hit: Which call of the function in this round, from 1.
        within: Only calls below a function of this name count. Empty: all calls.
        plans: The plans in which the point exists.
        keeps_updates: Whether the point exists with `durability = "disk"` only.
    """

    when: Literal["before", "after"]
    target: str
    round: int
    hit: int = 1
    within: str = ""
    plans: tuple[str, ...] = BOTH
    keeps_updates: bool = False

    @property
    def name(self) -> str:
        """The name of the point in reports."""
        module, _, function = self.target.partition(":")
        function = function if "." in function else f"{module.rpartition('.')[2]}.{function}"
        within = f" in {self.within}" if self.within else ""
        hit = f", call {self.hit}" if self.hit > 1 else ""
        return f"{self.when} {function}{within}, round {self.round}{hit}"


_RECORDED, _CONTROLLER, _RUN = (
    "flcore.server.recorded_run",
    "flcore.server.controller:Controller",
    "flcore.server.run_directory",
)
_STATE, _RESULTS, _FEDERATION = "flcore.server.run_state:RunState", "flcore.server.results", "flcore.server.federation"
_UPLOADS, _ATTEMPTS = "flcore.server.uploads", "flcore.server.federation_state:FederationState"
_KEPT, _STORE = "flcore.aggregation.kept_staging", "flcore.aggregation.staging:DiskStore"
_REPLACE, _AGGREGATOR = "flcore.model.atomic_replace", "flcore.aggregation.aggregator:Aggregator"
_COMMIT = "tests.faults.hooks:WatchedConnection.commit_changes"
"""The COMMIT of a transaction of the run's record."""


def _around(target: str, round_: int, hit: int = 1, within: str = "", plans: tuple[str, ...] = BOTH) -> list[KillPoint]:
    """The points before and after a function."""
    return [KillPoint(when, target, round_, hit, within, plans) for when in ("before", "after")]


def _kept(*points: KillPoint) -> list[KillPoint]:
    """Points that exist where updates are kept."""
    return [KillPoint(**{**vars(point), "keeps_updates": True}) for point in points]


BEGIN = [
    KillPoint("before", "pathlib:Path.write_text", 0, within="_open"),
    *_around(f"{_RECORDED}:open_record", 0),
    *_around(_COMMIT, 0, within="add_facts"),
    KillPoint("before", f"{_FEDERATION}:Federation.admit", 0),
    KillPoint("after", f"{_FEDERATION}:Federation.client_connected", 0, hit=3),
]
"""The run has a directory, and no call of its workflow is over."""

SAMPLE = [
    KillPoint("before", f"{_CONTROLLER}.sample", 1),
    *_around(_COMMIT, 1, within="sample"),
    *_around(f"{_CONTROLLER}.sample", 2),
    KillPoint("after", f"{_CONTROLLER}.sample", 3),
]

ASK = [
    *_around(f"{_CONTROLLER}.train", 1),
    *_around(f"{_CONTROLLER}.train", 2),
    KillPoint("after", f"{_RESULTS}:Results.reserve", 2),
    KillPoint("after", f"{_FEDERATION}:Federation.open_attempt", 1),
    KillPoint("before", f"{_FEDERATION}:Federation.begin_download", 1),
    KillPoint("after", "flcore.server.downloads:ModelDownload.piece", 1),
    KillPoint("after", "flcore.server.downloads:ModelDownload.piece", 2, hit=2),
    KillPoint("after", "flcore.server.downloads:ModelDownload.piece", 3, hit=PIECES),
]

RECEIVE = [
    *_around(f"{_FEDERATION}:Federation.begin_upload", 1),
    *_around(f"{_FEDERATION}:Federation.begin_upload", 2, hit=2),
    *_kept(*_around(f"{_STORE}.create", 1), *_around(f"{_STORE}.create", 2, hit=2)),
    KillPoint("before", f"{_UPLOADS}:PendingUpload.accept", 1),
    *_kept(
        *_around(f"{_KEPT}:KeptStore.append", 1, hit=1),
        *_around(f"{_KEPT}:KeptStore.append", 1, hit=2),
        *_around(f"{_KEPT}:KeptStore.append", 1, hit=PIECES),
        *_around(f"{_KEPT}:KeptStore.append", 2, hit=PIECES + 2),
        KillPoint("after", f"{_KEPT}:KeptStore.append", 3, hit=3 * PIECES),
        *_around("os:pwritev", 2, hit=2, within="append"),  # a piece without its checksum
        *_around("os:pwrite", 2, hit=2, within="append"),
    ),
    KillPoint("after", f"{_UPLOADS}:PendingUpload.accept", 2, hit=PIECES),
]

COMMIT = [
    *_around(f"{_ATTEMPTS}.commit", 1),
    *_around(f"{_ATTEMPTS}.commit", 2, hit=2),
    *_around(f"{_ATTEMPTS}.commit", 3, hit=3),
    *_kept(
        *_around(f"{_KEPT}:KeptStore.seal", 1),
        *_around(f"{_KEPT}:KeptStore.seal", 2, hit=3),
        KillPoint("before", f"{_KEPT}:sync_file", 1),
        KillPoint("after", f"{_KEPT}:sync_file", 2, hit=PIECES + 2),
        *_around(f"{_KEPT}:KeptStore._rename_description", 1),
        *_around(f"{_KEPT}:KeptStore._rename_description", 3, hit=2),
        *_around(f"{_KEPT}:sync_directory", 2, hit=1),
        *_around(f"{_KEPT}:sync_directory", 2, hit=2),
        *_around(f"{_STATE}.add_answer", 1),
        *_around(_COMMIT, 1, within="add_answer"),
        *_around(_COMMIT, 2, hit=2, within="add_answer"),
        *_around(_COMMIT, 3, hit=3, within="add_answer"),
    ),
    *_around(f"{_AGGREGATOR}.commit", 1),
    *_around(f"{_AGGREGATOR}.commit", 2, hit=3),
    *_around("flcore.server.task_attempt:TaskAttempt.committed", 1, hit=2),
    *_around("flcore.aggregation.plans:StreamingPlan._fold", 1, plans=STREAMING),
    *_around("flcore.aggregation.plans:StreamingPlan._fold", 2, hit=2, plans=STREAMING),
    *_around("flcore.aggregation.plans:StreamingPlan._fold", 3, hit=3, plans=STREAMING),
]

COMBINE = [
    *_around(f"{_ATTEMPTS}._close", 1),
    KillPoint("after", "flcore.server.task_runner:TaskRequest.record_attempt", 2),
    *_around(_COMMIT, 1, within="train"),
    *_around(_COMMIT, 3, within="train"),
    *_around(f"{_AGGREGATOR}.finish", 1),
    *_around(f"{_AGGREGATOR}.finish", 2),
    *_around("flcore.model.model_writer:TemporaryWriter.commit", 2, plans=BATCH),
    *_around("flcore.server.updates:StagedUpdates.aggregate", 3),
]

VALIDATE = [
    *_around(f"{_CONTROLLER}.validate", 1),
    *_around(f"{_CONTROLLER}.validate", 3),
    *_kept(*_around(_COMMIT, 2, hit=4, within="add_answer"), *_around(_COMMIT, 2, hit=6, within="add_answer")),
    *_around(f"{_ATTEMPTS}._close", 2, hit=2),
    *_around(_COMMIT, 2, within="validate"),
]

PUBLISH = [
    *_around(f"{_CONTROLLER}.publish", 1),
    *_around(f"{_CONTROLLER}.publish", 2),
    *_around(f"{_CONTROLLER}.publish", 3),
    *_around(f"{_RESULTS}:Results.publish", 1),
    *_around(f"{_RESULTS}:publish", 1, plans=BATCH),
    *_around(f"{_RESULTS}:publish", 2, plans=BATCH),
    *_around(f"{_RESULTS}:save", 2, plans=STREAMING),
    *_around(f"{_REPLACE}:AtomicReplace.commit", 1),
    *_around(f"{_REPLACE}:AtomicReplace.commit", 2, hit=2),
    *_around("os:fsync", 2, within="publish", hit=3),
    *_around("os:link", 2, within="publish"),
    *_around("os:replace", 1, within="publish"),
    *_around("os:replace", 2, within="_replace_models"),
    *_around("os:replace", 2, within="_replace_models", hit=2),
    *_around(f"{_REPLACE}:sync_directory", 2, hit=2),
    *_around(_COMMIT, 1, within="decide"),
    *_around(_COMMIT, 2, within="decide"),
    *_around(_COMMIT, 3, within="decide"),
    *_around(f"{_RESULTS}:Results._replace_models", 2),
    *_around(f"{_RESULTS}:publish", 2, hit=1, within="_replace_models"),  # model
    *_around(f"{_RESULTS}:publish", 2, hit=2, within="_replace_models"),  # best
    *_around(f"{_RESULTS}:publish", 2, hit=3, within="_replace_models"),  # checkpoint
    *_around("flcore.server.published_models:PublishedModels.remove_others", 2),
    *_kept(
        *_around("flcore.server.training:remove_kept_updates", 1),
        *_around("flcore.server.training:remove_kept_updates", 2),
        *_around("shutil:rmtree", 2, within="remove_kept_updates"),
        KillPoint("after", "shutil:rmtree", 3, hit=2, within="remove_kept_updates"),
    ),
]

END = [
    *_around(_COMMIT, 1, within="end_round"),
    *_around(_COMMIT, 2, within="end_round"),
    *_around(_COMMIT, 3, within="end_round"),
    *_around(f"{_RESULTS}:Results.add", 2),
    *_around(f"{_RUN}:RunDirectory.append", 1),
    *_around(f"{_RUN}:RunDirectory.append", 3),
    *_around(_COMMIT, 3, within="add_facts"),
    *_around(f"{_RUN}:RunDirectory.finish", 3),
    KillPoint("after", "flcore.server.run_directory:_remove", 3, within="finish"),
]

POINTS = [*BEGIN, *SAMPLE, *ASK, *RECEIVE, *COMMIT, *COMBINE, *VALIDATE, *PUBLISH, *END]
"""Every point of a run that was not killed before."""

AFTER_RESTART = [
    *_around(f"{_RUN}:RunDirectory._open", 0),
    *_around(f"{_RESULTS}:Results.restore", 0),
    *_around("os:replace", 0, within="restore"),
    *_around("os:replace", 0, hit=2, within="restore"),
    *_around(f"{_RUN}:RunDirectory.restore_history", 0),
    *_around("os:ftruncate", 0, within="restore_history"),
    *_around(f"{_RUN}:RunDirectory.append", 0, hit=2),
    *_around(f"{_RECORDED}:remove_kept_updates", 0),
    *_around(f"{_CONTROLLER}.sample", 1),
    *_around(f"{_CONTROLLER}.publish", 2),
    *_around(f"{_AGGREGATOR}.restore", 3),
    *_around(f"{_KEPT}:KeptStore.recover", 3, hit=2),
    *_around(f"{_KEPT}:KeptStore.append", 3),
    *_around(f"{_STATE}.add_answer", 3),
    *_around(_COMMIT, 3, within="train"),
]
"""Points of a server that goes on in round 3, where one client has a receipt and another one's update is cut."""


def points_of(plan: str, durability: str, points: list[KillPoint] = POINTS) -> list[KillPoint]:
    """Return the points that exist with a plan and a durability."""
    return [point for point in points if plan in point.plans and (durability == "disk" or not point.keeps_updates)]
