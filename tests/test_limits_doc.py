"""docs/limits.md is true: each row has the value of the constant that it names, and gRPC is told the same."""

import importlib
import re
from pathlib import Path

import pytest
from flcore_transport import framing, grpc_channel, grpc_client, grpc_server

ROWS = re.findall(
    r"^\| [^|]+ \| ([^|]+) \| `([\w.]+)\.(\w+)` \|",
    (Path(__file__).parents[1] / "docs/limits.md").read_text(),
    re.MULTILINE,
)
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "s": 1}


@pytest.mark.parametrize(("text", "module", "name"), ROWS, ids=[name for _, _, name in ROWS])
def test_a_row_has_the_value_of_its_constant(text: str, module: str, name: str) -> None:
    number, _, unit = text.replace(",", "").partition(" ")
    home = importlib.import_module(module if module.startswith("flcore.") else f"flcore_transport.{module}")
    value = float(number) * UNITS.get(unit, 1) * (1000 if name.endswith("_MS") else 1)
    assert getattr(home, name) == value


def test_the_table_has_all_limits_of_the_server() -> None:
    named = {f"{module}.{name}" for _, module, name in ROWS}
    assert len(named) >= 31 and len(ROWS) == len(named) + 1, "metadata has two rows: its size, and what it bounds"
    pattern = re.compile(r"(MAX|MIN)_\w+|\w+_(TIMEOUT|INTERVAL)_M?S|\w+_BURST|\w+_PER_S")
    modules = ("grpc_channel", "grpc_server", "grpc_sessions", "grpc_joins", "grpc_asks", "grpc_workers")
    for module in (*modules, "client_limits", "control", "endpoint", "hosted_jobs", "messages"):
        home = importlib.import_module(f"flcore_transport.{module}")
        lines = Path(str(home.__file__)).read_text()
        for name in re.findall(r"^([A-Z][A-Z_]+) = ", lines, re.MULTILINE):
            if pattern.fullmatch(name) and name not in ("HANG_UP_TIMEOUT_S", "STOP_TIMEOUT_S"):
                assert f"{module}.{name}" in named


def test_grpc_is_told_the_limits() -> None:
    both = {
        "grpc.max_receive_message_length": framing.MAX_PIECE_BYTES,
        "grpc.max_concurrent_streams": grpc_channel.MAX_STREAMS,
        "grpc.max_metadata_size": grpc_channel.MAX_METADATA_BYTES,
        "grpc.absolute_max_metadata_size": grpc_channel.MAX_METADATA_BYTES,
        "grpc.keepalive_time_ms": grpc_channel.KEEPALIVE_MS,
        "grpc.keepalive_timeout_ms": grpc_channel.KEEPALIVE_TIMEOUT_MS,
    }
    server = {
        "grpc.server_handshake_timeout_ms": grpc_server.HANDSHAKE_TIMEOUT_S * 1000,
        "grpc.max_connection_idle_ms": grpc_server.IDLE_TIMEOUT_S * 1000,
        "grpc.http2.min_ping_interval_without_data_ms": grpc_server.MIN_PING_INTERVAL_MS,
        "grpc.http2.max_ping_strikes": grpc_server.MAX_PING_STRIKES,
    }
    assert both.items() <= dict(grpc_client.CHANNEL_OPTIONS).items()
    assert (both | server).items() <= dict(grpc_server.SERVER_OPTIONS).items()
