"""A program on a terminal: what it writes, and answers to what it asks of the terminal."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time

# What programs ask a terminal, and what one says: where the cursor is, what it can do, its colours.
ASKED = [
    (re.compile(rb"\x1b\[6n"), b"\x1b[1;1R"),
    (re.compile(rb"\x1b\[c"), b"\x1b[?62;c"),
    (re.compile(rb"\x1b\[\?u"), b"\x1b[?0u"),
    (re.compile(rb"\x1b\]10;\?(\x07|\x1b\\)"), b"\x1b]10;rgb:ffff/ffff/ffff\x1b\\"),
    (re.compile(rb"\x1b\]11;\?(\x07|\x1b\\)"), b"\x1b]11;rgb:0000/0000/0000\x1b\\"),
]


class Terminal:
    """Runs a command on a terminal of its own; `text` is what it wrote, without what moves the cursor."""

    def __init__(self, command, cwd, env):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
        self.process = subprocess.Popen(
            [str(word) for word in command], cwd=cwd, env=env | {"TERM": "xterm-256color"}, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.written = b""

    @property
    def text(self):
        plain = re.sub(rb"\x1b\][^\x07\x1b]*(\x07|\x1b\\)|\x1b\[[0-9;?<>=]*[ -/]*[@-~]|\x1b[=>()][0-9A-B]?", b" ", self.written)
        return re.sub(r"\s+", " ", plain.decode("utf-8", "replace"))

    def wait_for(self, words, seconds=60):
        """Reads until the program has written this, and says whether it did."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and words not in self.text:
            ready, _, _ = select.select([self.master], [], [], 0.2)
            if not ready:
                if self.process.poll() is not None:
                    break
                continue
            try:
                data = os.read(self.master, 65536)
            except OSError:
                break
            self.written += data
            for asked, answer in ASKED:
                for _ in asked.findall(data):
                    os.write(self.master, answer)
        return words in self.text

    def type(self, text):
        os.write(self.master, text.encode())

    def close(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)
