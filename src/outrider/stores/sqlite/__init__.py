"""The embedded store: one SQLite file, a writing thread, readers beside it.

`ledger` is the door; `writer` commits what callers hand over; `views` says where a read runs; `file` opens, locks and
explains. What it shares with the other SQL store lies beside this package.
"""

from outrider.stores.sqlite.ledger import SqliteLedger

__all__ = ["SqliteLedger"]
