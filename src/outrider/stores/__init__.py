"""Where tasks are kept: one module per store, each an implementation of the seam in `outrider.core`.

A store commits what the reducer decided, in one transaction, and never decides anything itself.
"""
