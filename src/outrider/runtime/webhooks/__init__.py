"""Webhooks: others are told what happens here, by signed requests to their servers.

`following` makes deliveries of the log's entries, `lanes` sends them with `sending`, past the `guard`; `duty` is the
part of a worker that does both. `endpoints` is the noun of the façade. Nothing here is in the transaction of a task.
"""
