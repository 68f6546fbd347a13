"""The transport benchmark with other sizes of pieces and windows, over several connections.

`python bench/transport_trial.py --help` lists the options.
"""

import argparse

from flcore_bench.machine import available_cores
from flcore_bench.transport import measured_rows
from flcore_bench.transport_tuning import Tuning


def main() -> None:
    """Measure with the options of the command line, and print a line for each stream."""
    parser = argparse.ArgumentParser(
        description="Measure flcore's streams next to bare gRPC streams.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=256, help="MB to send")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to measure")
    parser.add_argument("--piece", type=int, default=Tuning.piece, help="bytes of a full piece, less than 4 MiB")
    parser.add_argument("--window", type=int, default=Tuning.window, help="pieces in flight")
    parser.add_argument("--connections", type=int, default=Tuning.connections, help="parallel connections")
    given = parser.parse_args()
    tuning = Tuning(given.piece, given.window, given.connections)
    for row in measured_rows(given.size * 1_000_000, given.rounds, tuning, available_cores()):
        print(f"{(row.bytes_per_s or 0) / 1e9:6.2f} GB/s  {row.what}  {'; '.join(map(str, row.goals))}")


if __name__ == "__main__":
    main()
