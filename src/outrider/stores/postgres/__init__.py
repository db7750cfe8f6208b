"""The store for many machines: one PostgreSQL database, any number of processes on any number of hosts.

`database` connects, brings the schema up to date and gives errors their names; `writer` commits what callers hand over,
with `batch` for what other writers may do meanwhile; `news` tells the other processes; `views` says where a read runs;
`clock` knows the server's time.
"""

from outrider.stores.postgres.ledger import PostgresLedger

__all__ = ["PostgresLedger"]
