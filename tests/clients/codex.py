"""Runs the real Codex, and reads what it leaves behind."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import time

from gateway import BIN, CODEX, OLD_CODEX, Failed, expect
from tap import Tap

# What a run through the gateway must never say on stderr.
NOISE = re.compile(r"Reconnecting|metadata|WebSocket", re.IGNORECASE)

# The commands come from the simulator; a sandbox is not there on every machine.
FLAGS = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]


# Version, as the checks name it, and program.
VERSIONS = {"0.169.0": CODEX, "0.144.3": OLD_CODEX}


class Run:
    """One run of Codex in an empty directory with a CODEX_HOME of its own, its requests counted on the way."""

    def __init__(self, gateway, timeout=90, program=CODEX, tap=Tap):
        self.gateway, self.timeout, self.program = gateway, timeout, program
        self.model = "gpt-6.1-sol" if program == CODEX else "gpt-5.5" # what its version knows of
        self.dir = tempfile.mkdtemp(prefix="codex-", dir=gateway.dir)
        self.work, self.home = os.path.join(self.dir, "work"), os.path.join(self.dir, "codex")
        os.mkdir(self.work)
        os.mkdir(self.home)
        self.tap = tap(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])))
        # More settings of the provider; and whether the upstream encrypts its reasoning.
        self.more, self.encrypts = "", True
        self.stdout = self.stderr = ""
        self.code = None

    def env(self, **more):
        path = f"{self.program.parent}:{os.environ['PATH']}"
        return self.gateway.env(**({"CODEX_HOME": self.home, "PATH": path} | more))

    def _run(self, command, env):
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=self.work, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.timeout
        )
        self.code, self.stdout, self.stderr = done.returncode, done.stdout, done.stderr
        self.seconds = time.monotonic() - begun
        return self

    def through_gateway(self, *args, key=None, flags=()):
        """`gateway codex`: with a key from the environment, else one issued from the database."""
        env = self.env(**({"CODEX_GATEWAY_API_KEY": key} if key else {}))
        config = ["--config", str(self.gateway.config)]
        return self._run([BIN, *config, "codex", "--url", self.tap.url, *flags, *args], env)

    def directly(self, *args, key, model=None, settings=(), **provider):
        """Codex with the overrides that the documentation shows, so that every refusal reaches it."""
        flags = [word for setting in settings for word in ("-c", setting)]
        provider.setdefault("more", self.more)
        words = [self.program, *overrides(self.tap.url, **provider), *flags, "-m", model or self.model, "exec", *FLAGS, *args]
        return self._run(words, self.env(CODEX_GATEWAY_API_KEY=key))

    def requests(self):
        return [exchange for exchange in self.tap.posts() if exchange.path.endswith("/responses")]

    def answered(self, text):
        expect(self.code == 0, f"exit {self.code}: {self.stderr[-800:]}")
        expect(text in self.stdout, f"stdout {self.stdout!r} lacks {text!r}; stderr {self.stderr[-800:]}")
        return self.quiet()

    def quiet(self):
        noise = [line for line in self.stderr.splitlines() if NOISE.search(line)]
        expect(not noise, f"stderr says {noise}")
        return self

    def refused(self, requests, *words):
        """Ended with our words on the terminal, after at most so many requests (exactly one when it says one)."""
        count, shown = len(self.requests()), self.stdout + self.stderr
        expect(self.code != 0, "Codex took it for an answer")
        expect(count == 1 if requests == 1 else 1 <= count <= requests, f"{count} requests, wanted {requests}")
        for word in words:
            expect(word in shown, f"the terminal lacks {word!r}: {shown[-900:]}")
        return self

    def files(self):
        """Configuration files in CODEX_HOME."""
        return sorted(name for name in os.listdir(self.home) if name.endswith(".toml"))

    def close(self):
        self.tap.close()
        shutil.rmtree(self.dir, ignore_errors=True)


def overrides(url, name="Codex Gateway", base="/v1", more=""):
    provider = (
        f'{{name="{name}",base_url="{url}{base}",env_key="CODEX_GATEWAY_API_KEY",wire_api="responses",'
        f"supports_websockets=false{more}}}"
    )
    return ["-c", 'model_provider="codex-gateway"', "-c", f"model_providers.codex-gateway={provider}"]


def error(run):
    """The last thing that Codex says of what went wrong, without its own mark."""
    lines = [line for line in run.stderr.splitlines() if line.startswith("ERROR: ")]
    return lines[-1].removeprefix("ERROR: ") if lines else ""


def last_json(text):
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failed(f"no JSON: {text[:300]!r}") from error
