"""Outrider: durable background tasks for AI agents.

Importing this package loads neither pydantic nor an agent engine nor a database driver; each comes with the module
that needs it.
"""

__version__ = "0.1.0"
