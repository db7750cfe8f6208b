"""The embedded store: one SQLite file, a writing thread, readers beside it.

`ledger` is the door; `writer` groups what callers hand over (`operations`) into transactions, and `batch`
judges and writes each of them; `views` reads; `file` opens, locks and explains.
"""

from outrider.stores.sqlite.ledger import SqliteLedger

__all__ = ["SqliteLedger"]
