"""The rules: what a task is and how it moves.

No I/O, clock, randomness or logging in here: time and chance are arguments, and what must happen is returned as a
value.
"""
