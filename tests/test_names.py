"""None of the names of the first releases is left: modules, classes and functions have the field's terms."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = [
    path
    for root in ("flcore", "kernels", "transport", "bench", "tests", "docs")
    for path in sorted((ROOT / root).rglob("*.py"))
    if path != Path(__file__)
]
PAGES = [path for path in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]) if path.name != "CHANGELOG.md"]

MODULES = """
    flcore.adapters.flower.npy flcore.aggregation.ahead flcore.aggregation.checkpoints
    flcore.aggregation.gather flcore.aggregation.given_rules flcore.aggregation.in_memory
    flcore.aggregation.known flcore.aggregation.limits flcore.aggregation.results flcore.aggregation.room
    flcore.aggregation.running flcore.aggregation.update flcore.cli.rounds flcore.client.answer
    flcore.client.mailbox flcore.model.beside flcore.model.descriptors flcore.model.foreign flcore.model.form
    flcore.model.header flcore.model.index flcore.model.names flcore.model.narrow flcore.model.opening
    flcore.model.recast flcore.model.reused flcore.model.shards flcore.model.stored flcore.model.temporary
    flcore.model.file_types
    flcore.model.strict_json
    flcore.model.safetensors_index
    flcore.model.checkpoint_reader
    flcore.model.publish
    flcore.model.temporary_models
    flcore.model.model_pool
    flcore.model.dtype_conversion
    flcore.model.open_file_limit
    flcore.model.writer flcore.server.asking flcore.server.playbooks flcore.server.rounds
    flcore.server.task_round flcore.server.open_round flcore.server.round_registry
    flcore.server.uploading flcore.simulation.workers flcore_kernels.admission flcore_kernels.cpu_cache
    flcore_kernels.cpu_decode flcore_kernels.cpu_digits flcore_kernels.cpu_encode flcore_kernels.cpu_exact
    flcore_kernels.cpu_finish flcore_kernels.cpu_float flcore_kernels.cpu_kernels
    flcore_kernels.cpu_long_division flcore_kernels.cpu_memory flcore_kernels.cpu_observe
    flcore_kernels.cpu_part flcore_kernels.cpu_quotient flcore_kernels.cpu_settle flcore_kernels.cpu_warm
    flcore_kernels.cuda_cubins flcore_kernels.cuda_device flcore_kernels.cuda_kernels
    flcore_kernels.cuda_memory flcore_kernels.cuda_observe flcore_kernels.cuda_pieces flcore_kernels.cuda_ring
    flcore_kernels.diagnosis flcore_kernels.kept flcore_transport.grpc_loop flcore_transport.grpc_turns
    flcore_transport.grpc_work flcore_transport.in_process_turns flcore_transport.windows
"""
NAMES = """
    Asking AskingAgain AtClose Averaged Background Batch Beside BlankRecord Cubins Delivery Departed Feedback Fetch
    Gather Give Grant Kind Known Later Likeness Limits Logged Mailbox Metadata Mover Narrowed NoBest
    OddMetrics Offer OnDisk Order PieceRange PLAYBOOKS Playbook Ranges Recast ReusedModels Room RoundDone RoundRules
    Rounds Running Settings Shards SharedPieces Singles Totals TurnedAway Turns UploadStream Uploading WIRE_DTYPES
    TaskRound OpenRound Release RoundPolicy RoundRegistry JoinMessage WelcomeMessage TaskMessage UpdateMessage
    start_round require_round rerun_lost parse_message check_message untimely_refusal is_given_up
    PiecePlan Widened WireDType Windows _Credit _Crowded doubts largest_kernel part_of_kernel settle settle_kernel
    constant_mask constants_reference has_constants has_no_constants shared_constants _Twice
"""
OLD_MODULES, OLD_NAMES = MODULES.split(), set(NAMES.split())


def names_in(source: str) -> set[str]:
    """Return the names that a file defines or imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_no_old_module_is_left() -> None:
    roots = [ROOT, ROOT / "kernels", ROOT / "transport", ROOT / "bench"]
    left = {old for old in OLD_MODULES for root in roots if (root / (old.replace(".", "/") + ".py")).exists()}
    imported = {old for path in SOURCES for old in OLD_MODULES if re.search(rf"\b{re.escape(old)}\b", path.read_text())}
    assert left | imported == set()


def test_no_old_name_is_left_in_the_sources() -> None:
    left = {path.name: sorted(found) for path in SOURCES if (found := names_in(path.read_text()) & OLD_NAMES)}
    assert left == {}


def test_no_old_name_is_left_in_the_pages() -> None:
    left = {
        path.name: sorted(found)
        for path in PAGES
        if (found := set(re.findall(r"`(\w+)(?:\(\))?`", path.read_text())) & OLD_NAMES)
    }
    assert left == {}
