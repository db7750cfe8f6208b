"""`Client`: the verbs of the façade over HTTP, with the same handles, records and errors as a `Runtime`."""

from outrider.client.client import Client as Client
