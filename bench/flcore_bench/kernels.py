"""`flcore bench kernels`: every line of the table, measured in one fresh process."""

import json
import sys
from collections.abc import Callable

from flcore_bench.child import answer_of
from flcore_bench.exact_sums import exact_rows
from flcore_bench.flat_mean import flat_mean_rows
from flcore_bench.grid import grid_rows
from flcore_bench.many_tensors import many_tensor_rows
from flcore_bench.narrow_dtypes import narrow_dtype_rows
from flcore_bench.row import Row
from flcore_bench.setup import Setup
from flcore_bench.start import start_rows

SECTIONS: dict[str, Callable[[Setup], list[Row]]] = {
    "float32 mean": flat_mean_rows,
    "narrow dtypes": narrow_dtype_rows,
    "exact sums": exact_rows,
    "many small tensors": many_tensor_rows,
    "clients and sizes": grid_rows,
    "start": start_rows,
}


def kernel_rows(scale: str, threads: int) -> list[Row]:
    """Measure in a process of its own, whose memory is fresh and whose environment sets nothing for other libraries."""
    return [Row.from_json(row) for row in answer_of("flcore_bench.kernels", scale, threads=threads)]


def main() -> None:
    """Be that process: measure each section, say so on standard error, and print the rows as JSON."""
    setup = Setup.of(sys.argv[1], int(sys.argv[2]))
    rows: list[Row] = []
    for name, section in SECTIONS.items():
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        rows += section(setup)
    print(json.dumps([row.to_json() for row in rows]))
