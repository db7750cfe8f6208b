"""How often the interpreter's collector looks for garbage in circles, and through how much.

What runs here leaves next to none, and a look takes time in which nothing else happens.
"""

from __future__ import annotations

import gc

YOUNG = 10_000
"""How many new objects the collector waits for before it looks at them."""


def collect_less_often() -> None:
    """Raise the collector's first threshold; it is never lowered, nor set where the program has switched it off.

    The objects of a hundred tasks in flight are more than the usual 700, so it looked at living ones again and again:
    a sixth of a busy worker's time.
    """
    young, *older = gc.get_threshold()
    if 0 < young < YOUNG:
        gc.set_threshold(YOUNG, *older)


def leave_program_alone() -> None:
    """Have the collector never again look at what is there now. For a process that is ours, once it has started.

    That is the program itself: 130,000 objects, through which each full collection went for 25 to 55 ms.
    """
    gc.collect()
    gc.freeze()
