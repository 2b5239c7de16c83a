"""Schemathesis against /openapi.json: no 5xx, and no answer that is not in the document."""

import os
import subprocess
import sys

from gateway import Gateway, expect
from test_openai import client

SECONDS = os.environ.get("OPENAPI_SECONDS", "120")
RULES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemathesis.toml")


def conformance(_):
    """On a gateway of its own: what it makes up would be in the books of the other checks."""
    gateway = Gateway("openapi", server='trusted_proxies = ["127.0.0.1"]')
    try:
        key = gateway.user("payer", "1000000")
        for _ in range(3):
            client(gateway, key).responses.create(model="gpt-6.1-sol", input="hello")
        words = [sys.executable, "-m", "schemathesis.cli", "--config-file", RULES, "--no-color", "run"]
        words += [gateway.url + "/openapi.json", "-H", f"Authorization: Bearer {key}", "--max-time", SECONDS, "--continue-on-failure"]
        done = subprocess.run(words, cwd=gateway.dir, env=gateway.env(PYTHONPATH=os.environ["PYTHONPATH"], PYTHONDONTWRITEBYTECODE="1", SCHEMATHESIS_HOOKS="openapi_hooks"),
                              capture_output=True, text=True, timeout=int(SECONDS) + 60)
        found = done.stdout[done.stdout.find("= FAILURES"):] + done.stderr
        expect(done.returncode == 0, found)
        gateway.cli("ledger", "verify")
    finally:
        gateway.stop()


CHECKS = [("openapi: no 5xx and no undocumented answer, by schemathesis", conformance)]
