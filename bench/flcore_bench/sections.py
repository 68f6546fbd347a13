"""Sections of a benchmark that are measured one after the other in a process of their own."""

import json
import sys
from collections.abc import Callable, Mapping

from flcore_bench.report import Row
from flcore_bench.workload import Sizes

Sections = Mapping[str, Callable[[Sizes], list[Row]]]


def print_sections(sections: Sections) -> None:
    """Measure each section at the scale and with the threads of the command line, and print all rows as JSON."""
    sizes = Sizes.of(sys.argv[1], int(sys.argv[2]))
    rows: list[Row] = []
    for name, section in sections.items():
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        rows += section(sizes)
    print(json.dumps([row.to_json() for row in rows]))
