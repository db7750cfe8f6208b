"""One round of one benchmark, in a process of its own: `python -m benchmarks.round ORDER`.

The harness starts it; a profiler can too. ORDER is what the harness wrote; the last line printed is the answer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.harness import Lost, Settings, play


def main(order: str) -> int:
    """Play the ordered round and print its figures, or why there are none."""
    told = json.loads(order)
    try:
        figures = play(Settings(**told["settings"]), told["number"], told["tasks"], Path(told["root"]))
    except Lost as lost:
        print(json.dumps({"failed": str(lost)}))
        return 1
    print(json.dumps({"figures": dict(figures)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
