"""The real `outrider` executable in an empty folder: run to its end, started beside the test, or on a terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUTRIDER = Path(sys.executable).with_name("outrider")
HERE = Path(__file__).parent
PATIENCE = 60.0
"""Seconds after which something that should have happened counts as never. Not a measure of anything."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def record(self) -> dict[str, Any]:
        (record,) = self.records
        return record

    @property
    def error(self) -> dict[str, Any]:
        (line,) = self.err.splitlines()
        found: dict[str, Any] = json.loads(line)["error"]
        return found


class Terminal:
    """A process on a terminal of its own, and what the terminal was told."""

    def __init__(self, command: list[str], cwd: Path, env: Mapping[str, str], out: int | None = None) -> None:
        self.shown = ""
        self._fd, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))

        def take_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command, cwd=cwd, env=env, stdin=other, stdout=other if out is None else out, stderr=other,
            preexec_fn=take_terminal, close_fds=True,
        )  # fmt: skip
        os.close(other)

    def read_until(self, text: str) -> str:
        until = time.monotonic() + PATIENCE
        while text not in self.shown:
            assert time.monotonic() < until, f"{text!r} was never shown, but:\n{self.shown}"
            if not self._read():
                assert text in self.shown, f"it ended without showing {text!r}, but:\n{self.shown}"
        return self.shown

    def type(self, text: str) -> None:
        os.write(self._fd, text.encode())

    def end(self) -> int:
        while self._read():
            pass
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        """What happens when somebody closes the window."""
        os.close(self._fd)
        self._fd = -1

    def _read(self) -> bool:
        ready, _, _ = select.select([self._fd], [], [], 1)
        if not ready:
            return True
        try:
            raw = os.read(self._fd, 65536)
        except OSError:  # EIO: nobody has the other end open
            return False
        self.shown += raw.decode(errors="replace")
        return bool(raw)


class Cli:
    """The command line in one folder, with one app."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUTRIDER", "NO_COLOR"))}
        self.env = {**kept, "PYTHONPATH": str(HERE), "OUTRIDER_APP": "example_app", "TERM": "xterm-256color"}
        self.env.pop("COLUMNS", None)
        self._started: list[subprocess.Popen[str]] = []
        self._terminals: list[Terminal] = []

    def run(self, *arguments: str, stdin: str | None = None, **env: str) -> Ended:
        done = subprocess.run(
            [OUTRIDER, *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ended(done.returncode, done.stdout, done.stderr)

    def ok(self, *arguments: str, stdin: str | None = None, **env: str) -> Ended:
        done = self.run(*arguments, stdin=stdin, **env)
        assert done.code == 0, f"{arguments} ended with {done.code}:\n{done.err}"
        return done

    def python(self, program: str) -> str:
        """What a program prints, run in the folder."""
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *arguments: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [OUTRIDER, *arguments],
            cwd=self.folder,
            env={**self.env, **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._started.append(process)
        return process

    def worker(self, *arguments: str) -> subprocess.Popen[str]:
        """A worker that others can see already."""
        worker = self.start("worker", *arguments)
        assert worker.stderr is not None
        while "serves" not in (line := worker.stderr.readline()):
            assert line, "the worker ended before it was there"
        return worker

    def terminal(self, *arguments: str, out: int | None = None, **env: str) -> Terminal:
        terminal = Terminal([str(OUTRIDER), *arguments], self.folder, {**self.env, **env}, out)
        self._terminals.append(terminal)
        return terminal

    def shell(self, command: str) -> Terminal:
        """A shell on a terminal, as somebody has who types commands and then closes the window."""
        terminal = Terminal(["/bin/sh", "-c", command], self.folder, {**self.env, "OUTRIDER": str(OUTRIDER)})
        self._terminals.append(terminal)
        return terminal

    def task(self, task_id: str) -> dict[str, Any]:
        return self.ok("show", task_id, "--json").record

    def worker_pids(self) -> list[int]:
        """The workers that commands have started in the background and that still live."""
        log = self.folder / ".outrider" / "outrider.db-worker.log"
        text = log.read_text() if log.exists() else ""
        return [pid for pid in dict.fromkeys(map(int, re.findall(r"pid (\d+)", text))) if is_alive(pid)]

    def clean_up(self) -> None:
        for terminal in self._terminals:
            with suppress(OSError):
                terminal.close()
        processes: list[subprocess.Popen[Any]] = [*self._started, *(terminal.process for terminal in self._terminals)]
        for process in processes:
            process.kill()
            process.communicate()
        for pid in self.worker_pids():
            if str(self.folder) in Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def eventually(fact: Callable[[], Any]) -> Any:
    """Wait until something is true, and return it."""
    until = time.monotonic() + PATIENCE
    while not (found := fact()):
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.05)
    return found
