"""The HTTP API: every verb of the façade under `/v1`, as OpenAPI 3.1 describes it.

It translates values and errors, and holds no policy. `create_api` makes the ASGI application of an open `Runtime`;
`serving` runs it, with a graceful end.
"""

from outrider.api.app import create_api as create_api
