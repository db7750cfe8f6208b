"""The command line, `outrider`: the same verbs on a local database and on a remote server."""
