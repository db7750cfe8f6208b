"""Paths of a session's files: absolute, normal, and never out of the session."""

from __future__ import annotations

from outrider.core.errors import InvalidArguments, InvalidPath, TooLarge

TASKS = "/.tasks/"
MAX_PATH = 512


def clean_path(path: object, *, task_id: str | None = None) -> str:
    """Return a path in its one normal form, with a leading slash.

    Raises InvalidPath for an empty path, `.` and `..` parts, control characters, backslashes, more than 512
    characters, and for the folder of another task where `task_id` says whose code is writing.
    """
    if not isinstance(path, str):
        raise InvalidPath(f"a path is text, not {path!r:.100}")
    if not path.strip("/"):
        raise InvalidPath(f"{path!r} does not name a file")
    if len(path) > MAX_PATH:
        raise InvalidPath(f"a path has {len(path)} characters, more than {MAX_PATH}")
    if any(ord(char) < 32 or char in "\\\x7f" or 0xD800 <= ord(char) <= 0xDFFF for char in path):
        raise InvalidPath(f"{path!r} has control characters, backslashes or halves of characters")
    parts = path.strip("/").split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise InvalidPath(f"{path!r} is not a plain path within the session's files")
    clean = "/" + "/".join(parts)
    if clean.startswith(TASKS) and (task_id is None or not clean.startswith(f"{TASKS}{task_id}/")):
        raise InvalidPath(f"{clean!r} belongs to a task; write elsewhere")
    return clean


def task_of(path: object) -> str | None:
    """The task in whose folder a path lies, None for one elsewhere."""
    parts = path.strip("/").split("/") if isinstance(path, str) else []
    return parts[1] if len(parts) > 2 and parts[0] == ".tasks" else None


def file_content(path: str, content: bytes | str, media_type: object, limit: int) -> tuple[bytes, str]:
    """Return the bytes of a file and its media type: the one given, that of the path's ending, or plain text or bytes.

    Raises InvalidArguments for what is neither text nor bytes, TooLarge for more than `limit` bytes.
    """
    import mimetypes

    if not isinstance(content, str | bytes | bytearray | memoryview):
        raise InvalidArguments(f"the content of {path!r} is text or bytes, not {type(content).__name__}")
    if media_type is not None and (not isinstance(media_type, str) or not media_type.isprintable()):
        raise InvalidArguments(f"media_type is short plain text such as text/csv, not {media_type!r:.100}")
    try:
        raw = content.encode() if isinstance(content, str) else bytes(content)
    except UnicodeEncodeError as error:
        raise InvalidArguments(f"the content of {path!r} is not Unicode text: {error}") from None
    if len(raw) > limit:
        raise TooLarge.of(f"the file {path!r}", len(raw), limit)
    plain = "text/plain" if isinstance(content, str) else "application/octet-stream"
    return raw, media_type or mimetypes.guess_type(path)[0] or plain
