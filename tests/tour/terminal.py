"""One terminal of the tour: an interactive bash, as a reader has it, whose output is kept.

`walk` types into terminals and reads them. Knows nothing of READMEs.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import termios
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

_LOOK_AGAIN_S = 0.05  # what is waited for need not be something printed
SIZE = (24, 80)  # lines, columns

# The mark is printed in place of a prompt: it goes the way of the output, so it cannot overtake it.
_SET_UP = r"""unset HISTFILE; PS1= PS2= PROMPT_COMMAND='printf "\036%s:%d:\n" MARK $?'"""

_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\^_])")


class Terminal:
    """A bash in a terminal of its own; it is idle between commands."""

    def __init__(self, *, env: dict[str, str], folder: Path) -> None:
        self.status: int | None = None  # of the last command, once it has ended
        self._busy = False
        self._text = ""  # what was printed and not yet compared
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        mark = uuid.uuid4().hex
        self._end = re.compile(rf"\x1e{mark}:(\d+):\n")
        self._is_set_up = False
        self._master, slave = os.openpty()
        _set_plain(slave)
        self._shell = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "--noediting", "-i"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=env,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.type(_SET_UP.replace("MARK", mark))

    def fileno(self) -> int:
        return self._master

    def is_idle(self) -> bool:
        return not self._busy

    def is_open(self) -> bool:
        """False after a command such as `exit`."""
        return self._shell.returncode is None

    def type(self, command: str) -> None:
        self._busy, self.status = True, None
        data = command.encode() + b"\n"
        while data:
            data = data[os.write(self._master, data) :]

    def has_foreground(self) -> bool:
        """Whether a program has the keyboard; not so while the shell is between two commands."""
        return os.tcgetpgrp(self._master) != self._shell.pid

    def interrupt(self) -> None:
        """Press ^C. The shell itself may miss it, a program in the foreground gets it."""
        os.write(self._master, b"\x03")

    def read(self) -> None:
        """Take what was printed; call it only when there is something."""
        try:
            data = os.read(self._master, 65536)
        except OSError:  # nobody has the terminal open any more
            data = b""
        if not data:
            self._busy = False
            self.status = self._shell.wait()
            return
        self._text += self._decoder.decode(data)
        end = self._end.search(self._text)
        if end:
            before = self._text[: end.start()] if self._is_set_up else ""
            line_end = "\n" if before and not before.endswith("\n") else ""
            self._text = before + line_end + self._text[end.end() :]
            self._busy, self._is_set_up, self.status = False, True, int(end[1])

    def lines(self) -> list[str]:
        """The whole lines not yet compared, as a person sees them."""
        whole = self._text[: self._text.rfind("\n") + 1]
        plain = _ESCAPES.sub("", whole).replace("\r\n", "\n")
        return [line.rsplit("\r", 1)[-1].rstrip() for line in plain.split("\n")[:-1]]

    def forget(self, count: int) -> None:
        """The first `count` lines have been compared."""
        self._text = self._text.split("\n", count)[count]

    def close(self, *, limit_s: float) -> bool:
        """End the shell and what runs in it; whether it went in time, without being killed."""
        # As if the window were closed: the shell passes it on to all that it has started.
        for signal_number in (signal.SIGHUP, signal.SIGKILL):
            self._shell.send_signal(signal_number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._shell.wait(limit_s)
                break
        os.close(self._master)
        return self._shell.returncode != -signal.SIGKILL


def pump(terminals: Sequence[Terminal], done: Callable[[], bool], limit_s: float) -> bool:
    """Read all terminals until `done()` or the limit; whether it was done."""
    deadline = time.monotonic() + limit_s
    while not done():
        left_s = min(deadline - time.monotonic(), _LOOK_AGAIN_S)
        open_ones = [terminal for terminal in terminals if terminal.is_open()]
        ready, _, _ = select.select(open_ones, [], [], max(left_s, 0))
        for terminal in ready:
            terminal.read()
        if time.monotonic() >= deadline:
            return done()
    return True


def _set_plain(descriptor: int) -> None:
    """No echo of what is typed, no carriage returns, and a size that programs can rely on."""
    attributes = termios.tcgetattr(descriptor)
    attributes[1] &= ~termios.OPOST
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(descriptor, termios.TCSANOW, attributes)
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", *SIZE, 0, 0))


def _take_terminal() -> None:
    """In the child: make standard input the controlling terminal, so that ^C means something."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
