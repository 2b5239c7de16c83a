"""The gateway under test: one server on a database of its own, before it a simulated upstream."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import threading

from tap import Tap, wait_for

BIN = os.environ["GATEWAY_BIN"]
CLIENTS = pathlib.Path(os.environ["CLIENTS"])
# The current Codex, and the one of which many have not moved on.
CODEX = CLIENTS / "node_modules" / ".bin" / "codex"
OLD_CODEX = CLIENTS / "old" / "node_modules" / ".bin" / "codex"


class Failed(Exception):
    """A check did not hold."""


def expect(condition, why):
    if not condition:
        raise Failed(why)


def expect_equal(found, wanted, what):
    if found != wanted:
        raise Failed(f"{what}: found {found!r}, wanted {wanted!r}")


class Server:
    """A process that prints `listening on http://ADDR` and is stopped at the end."""

    def __init__(self, args, env, log):
        self.log = open(log, "w+")
        self.process = subprocess.Popen(
            [BIN, *args], env=env, stdout=subprocess.PIPE, stderr=self.log, text=True, stdin=subprocess.DEVNULL
        )
        self.lines, self.url = [], None
        threading.Thread(target=self._read, daemon=True).start()
        if not wait_for(lambda: self.address() or self.process.poll() is not None, 30) or not self.address():
            raise Failed(f"{args} did not start: {pathlib.Path(log).read_text()} {self.lines}")

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    def address(self):
        text = "\n".join(self.lines) + "\n" + pathlib.Path(self.log.name).read_text()
        found = re.search(r"listening on (http://[\d.:]+)", text)
        self.url = found.group(1) if found else None
        return self.url

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        if self.process.poll() is None:
            self.process.kill()
        return self.process.wait()


class Gateway:
    """A home directory, a simulated upstream, a server, and the command line for it."""

    def __init__(self, name, server="", upstream="", environment=None):
        self.environment = environment or {}
        # Not below /tmp: Codex makes no helper programs in a temporary directory, and says so on stderr.
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix=f"run-{name}-", dir=CLIENTS))
        self.home = self.dir / "home"
        self.runtime = self.dir / "runtime"
        for path in (self.home, self.runtime):
            path.mkdir(mode=0o700)
        self.config = self.dir / "gateway.toml"
        self.upstream = Server(["upstream", "simulate", "--listen", "127.0.0.1:0"], self.env(), self.dir / "upstream.log")
        self.tap = Tap(("127.0.0.1", int(self.upstream.url.rsplit(":", 1)[1])))
        self.settings = f"""[server]\nlisten = "LISTEN"\n{server}\n
[database]\npath = "{self.dir / 'gateway.db'}"\n
[[upstream]]\nname = "simulated"\nbase_url = "{self.tap.url}/v1"\napi_key = "sk-upstream"\nprices = "openai"\n{upstream}\n"""
        self.config.write_text(self.settings.replace("LISTEN", "127.0.0.1:0"))
        self.serve()
        self.url = self.server.url
        # What a machine's own settings say when the server listens on a port that is known.
        self.config.write_text(self.settings.replace("LISTEN", self.url.removeprefix("http://")))

    def serve(self):
        """Starts the server; where it was started before, once it listens on a port that is known."""
        self.server = Server(["serve", "--config", str(self.config)], self.env() | self.environment, self.dir / "server.log")

    def env(self, **more):
        env = {"PATH": f"{CODEX.parent}:{os.environ['PATH']}", "HOME": str(self.home), "LANG": "C.UTF-8"}
        env |= {"XDG_RUNTIME_DIR": str(self.runtime), "CODEX_HOME": str(self.home / ".codex"), "NO_PROXY": "*"}
        (self.home / ".codex").mkdir(exist_ok=True)
        return env | more

    def cli(self, *args, check=True, stdin=None, env=None):
        done = subprocess.run(
            [BIN, "--config", str(self.config), *args],
            env=env or self.env(), input=stdin, capture_output=True, text=True, timeout=60,
        )
        if check and done.returncode != 0:
            raise Failed(f"gateway {' '.join(args)}: exit {done.returncode}: {done.stderr}")
        return done

    def json(self, *args):
        return json.loads(self.cli(*args, "--json").stdout)

    def user(self, name, balance="5"):
        self.cli("user", "add", name, "--balance", balance)
        return self.key(name)

    def key(self, name, *flags):
        return self.json("key", "issue", name, *flags)["key"]

    def receipts(self):
        return self.json("request", "list", "--limit", "1000")["items"]

    def stop(self):
        self.server.stop()
        self.upstream.stop()
        self.tap.close()
        if not os.environ.get("KEEP"):
            shutil.rmtree(self.dir, ignore_errors=True)
