"""openai-node against the gateway: node.mjs does it, and says what held."""

import pathlib
import shutil
import subprocess

from gateway import CLIENTS, Failed

SCRIPT = pathlib.Path(__file__).with_name("node.mjs")
NAMES = ["chat", "chat stream", "tools", "structured output", "embeddings", "responses", "responses stream", "errors"]
NAMES += ["chat stream helper", "tool runner", "structured response", "websocket", "error classes"]


def check(name):
    def run(gateway):
        # Node looks for packages beside the script.
        script = CLIENTS / SCRIPT.name
        shutil.copy(SCRIPT, script)
        keys = {"KEY": "alice", "POOR_KEY": "poor", "SUSPENDED_KEY": "suspended"}
        keys = {variable: getattr(gateway, user) for variable, user in keys.items() if hasattr(gateway, user)}
        env = gateway.env(GATEWAY_URL=gateway.url, **keys)
        done = subprocess.run(["node", script, name], env=env, capture_output=True, text=True, timeout=60)
        if done.returncode != 0:
            raise Failed((done.stderr or done.stdout)[-1500:])

    return run


CHECKS = [(f"openai-node: {name}", check(name)) for name in NAMES]
