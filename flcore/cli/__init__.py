"""The command line: what people type, see and get."""

import os

# gRPC's core reads this when it is imported, so it stands here. Else each TLS handshake that fails writes a line to
# stderr: strangers could fill the server's log.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
