"""Where tasks are kept: one module per store, each an implementation of the seam in `outrider.core`.

A store commits what the reducer decided, in one transaction, and never decides anything itself. What the SQL stores
share lies here: `ledger` is the door, `writer` groups what callers hand over (`operations`) into transactions, `batch`
judges and writes each of them, `views` reads, and `statements` says what both ask of a connection.
"""
