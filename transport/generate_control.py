"""Generate control_pb2.py and control_pb2.pyi from control.proto (`make proto`).

The classes are built from the serialized descriptor with protobuf's public API, so that the result runs on every
protobuf from 5.28 on: the code that protoc itself writes refuses runtimes older than it, and newer by two majors.
"""

import tempfile
from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).parent
PROTO = "flcore_transport/control.proto"

TEMPLATE = '''"""Generated from control.proto by `make proto`. Do not edit."""

from google.protobuf import descriptor_pool, message_factory

DESCRIPTOR = descriptor_pool.Default().AddSerializedFile(
{literal}
)

{classes}
'''


def descriptor() -> bytes:
    """Return the serialized FileDescriptorProto of control.proto as it is now."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "control.bin"
        run_protoc(f"--descriptor_set_out={target}")
        files = FileDescriptorSet.FromString(target.read_bytes())
    return files.file[0].SerializeToString(deterministic=True)


def run_protoc(*options: str) -> None:
    """Run protoc on control.proto, or raise."""
    if protoc.main(["protoc", f"--proto_path={ROOT}", *options, PROTO]):
        raise SystemExit(f"protoc failed on {PROTO}")


def main() -> None:
    """Write both files."""
    serialized = descriptor()
    lines = [f"    {serialized[start : start + 64]!r}" for start in range(0, len(serialized), 64)]
    names = [message.name for message in FileDescriptorSet.FromString(_as_set(serialized)).file[0].message_type]
    classes = [
        f'{name} = message_factory.GetMessageClass(DESCRIPTOR.message_types_by_name["{name}"])' for name in names
    ]
    source = TEMPLATE.format(literal="\n".join(lines), classes="\n".join(classes))
    (ROOT / "flcore_transport/control_pb2.py").write_text(source)
    run_protoc(f"--pyi_out={ROOT}")
    stub = ROOT / "flcore_transport/control_pb2.pyi"
    stub.write_text(stub.read_text().replace("_Mapping]", "_Mapping[str, object]]"))  # as strict type checkers want


def _as_set(serialized: bytes) -> bytes:
    files = FileDescriptorSet()
    files.file.add().ParseFromString(serialized)
    return files.SerializeToString()


if __name__ == "__main__":
    main()
