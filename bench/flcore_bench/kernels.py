"""`flcore bench kernels`: all its sections, measured in one fresh process."""

from flcore_bench.aggregate_calls import flat_mean_rows, many_tensor_rows
from flcore_bench.cold_start import cold_start_rows
from flcore_bench.kernel_means import exact_rows, grid_rows, narrow_dtype_rows
from flcore_bench.process import run_in_process
from flcore_bench.report import Row
from flcore_bench.sections import Sections, print_sections

SECTIONS: Sections = {
    "float32 mean": flat_mean_rows,
    "narrow dtypes": narrow_dtype_rows,
    "exact sums": exact_rows,
    "many small tensors": many_tensor_rows,
    "clients and sizes": grid_rows,
    "start": cold_start_rows,
}


def kernel_rows(scale: str, threads: int) -> list[Row]:
    """Measure in a new process (see `benchmark_environment`)."""
    return [Row.from_json(row) for row in run_in_process("flcore_bench.kernels", scale, threads=threads)]


def main() -> None:
    """In that process: measure each section, and print the rows as JSON."""
    print_sections(SECTIONS)
