"""The HTTP edge. Nothing here is imported before somebody serves (extra `serve`)."""
