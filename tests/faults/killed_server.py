"""`flcore server` that kills itself at a point: `python -m tests.faults.killed_server NUMBER ROUND CALL ...`.

NUMBER is the place of the point in `POINTS`. It is reached in round ROUND, in the CALLth call of its function; or in a
later round, if this one has no such call any more. Arguments of `flcore` follow.
"""

import os
import signal
import sys
from dataclasses import replace

from flcore.cli.main import main
from tests.faults.hooks import Hooks
from tests.faults.kill_points import POINTS, KillPoint


def kill(point: KillPoint) -> None:
    """End this process at once."""
    print(f"killed {point.name}", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    number, round_, hit, *arguments = sys.argv[1:]
    sys.argv = ["flcore", *arguments]
    with Hooks([replace(POINTS[int(number)], round=int(round_), hit=int(hit))], kill, any_later_round=True).installed():
        main()
