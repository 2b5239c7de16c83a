"""The real Codex CLI through the gateway, and every refusal as its user sees it."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

from codex import FLAGS, NOISE, Run
from gateway import BIN, CODEX, Gateway, expect, expect_equal
from tap import wait_for


def with_run(check):
    def run(gateway):
        codex = Run(gateway)
        try:
            check(gateway, codex)
        finally:
            codex.close()

    return run


def codex_keys(gateway):
    """Keys issued for a run of Codex: (id, still valid)."""
    keys = gateway.json("key", "list", "alice")["items"]
    return {key["id"]: key.get("revoked_at") is None for key in keys if key["name"].startswith("codex@")}


@with_run
def answers(gateway, codex):
    codex.through_gateway(*FLAGS, "say hello", flags=["--user", "alice"]).answered("You said")
    expect_equal(codex.files(), [], "settings files written")
    keys = codex_keys(gateway)
    expect(keys and not any(keys.values()), f"keys of runs that ended: {keys}")
    (request,) = codex.requests()
    expect_equal(request.model, "gpt-6.1-sol", "Codex's own model")


@with_run
def declares_tools(gateway, codex):
    codex.through_gateway(*FLAGS, "say hello", key=gateway.alice).answered("You said")
    body = json.loads(codex.requests()[0].body)
    tools = {(tool["type"], tool.get("name")) for tool in body["tools"]}
    expect(("function", "exec_command") in tools and ("custom", "apply_patch") in tools, f"tools: {tools}")
    expect({kind for kind, _ in tools} <= {"function", "custom"}, f"tools: {tools}")
    first = body["input"][0]
    expect(first["role"] == "developer" and len(first["content"][0]["text"]) > 1000, "an agent without instructions")


@with_run
def runs_a_tool(gateway, codex):
    codex.through_gateway(*FLAGS, "run a tool: `echo tool-$((40+2)); env`", key=gateway.alice).answered("The tool said")
    expect("tool-42" in codex.stderr, codex.stderr[-800:])
    expect(gateway.alice not in codex.stdout + codex.stderr, "the agent's commands see the key")
    expect_equal(len(codex.requests()), 2, "requests")


@with_run
def applies_a_patch(gateway, codex):
    codex.through_gateway(*FLAGS, "create hello.txt with apply_patch: `hello\n  wörld`", key=gateway.alice).answered("Done.")
    made = pathlib.Path(codex.work, "hello.txt").read_bytes()
    expect_equal(made, "hello\n  wörld\n".encode(), "bytes of hello.txt")


@with_run
def passes_arguments_and_exit_codes(gateway, codex):
    codex.through_gateway("exec", *FLAGS, "--json", "hi", key=gateway.alice)
    expect(codex.code == 0 and '"type":"turn.completed"' in codex.stdout, codex.stdout[-500:] + codex.stderr[-500:])
    codex.through_gateway("exec", "--no-such-flag", key=gateway.alice)
    expect_equal(codex.code, 2, "Codex's exit code")
    codex.through_gateway("--version", key=gateway.alice)
    expect(codex.code == 0 and "codex" in codex.stdout, codex.stdout)


@with_run
def names_a_model_that_is_offered(gateway, codex):
    key = gateway.key("alice", "--model", "gpt-5.5")
    codex.through_gateway(*FLAGS, "say hello", key=key).answered("You said")
    expect("gpt-6.1-sol is not offered" in codex.stderr, codex.stderr[-500:])
    expect_equal(codex.requests()[0].model, "gpt-5.5", "model")
    codex.through_gateway(*FLAGS, "-m", "gpt-6.1-sol", "say hello", key=key)
    expect(codex.code == 5 and "not offered" in codex.stderr, codex.stderr)


@with_run
def says_what_is_missing(gateway, codex):
    config = ["--config", str(gateway.config)]

    def run(*args, env=None):
        done = subprocess.run([BIN, *config, "codex", *args], env=env or codex.env(), capture_output=True, text=True, timeout=30)
        return done.returncode, done.stderr

    code, stderr = run("hi")
    expect(code == 2 and "alice" in stderr and "--user" in stderr, f"{code} {stderr}")
    code, stderr = run("--user", "nobody", "hi")
    expect(code == 5 and "nobody" in stderr, f"{code} {stderr}")
    code, stderr = run("--url", "http://127.0.0.1:9", "--user", "alice", "hi")
    expect(code == 7 and "gateway serve" in stderr, f"{code} {stderr}")
    code, stderr = run("--url", "https://gateway.invalid", "hi")
    expect(code == 4 and "CODEX_GATEWAY_API_KEY" in stderr, f"{code} {stderr}")
    code, stderr = run("hi", env=codex.env(PATH="/nowhere"))
    expect(code == 5 and "npm install" in stderr, f"{code} {stderr}")


@with_run
def revokes_when_stopped(gateway, codex):
    before = codex_keys(gateway)
    command = [BIN, "--config", str(gateway.config), "codex", "--user", "alice", "exec", *FLAGS, "sim:slow " + "word " * 20]
    for stop in (signal.SIGINT, signal.SIGTERM):
        child = subprocess.Popen(
            command, cwd=codex.work, env=codex.env(), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        expect(wait_for(lambda: any(codex_keys(gateway).values()), 20), "no key was issued")
        seen = len(gateway.tap.posts())
        wait_for(lambda: len(gateway.tap.posts()) > seen, 15)
        # As a terminal does it for Ctrl-C: to everyone in the foreground. SIGTERM goes to the gateway alone.
        os.killpg(child.pid, stop) if stop == signal.SIGINT else child.send_signal(stop)
        code = child.wait(20)
        child.stderr.close()
        keys = codex_keys(gateway)
        expect(code != 0 and len(keys) > len(before) and not any(keys.values()), f"{stop!r}: exit {code}, keys {keys}")


@with_run
def doctor_is_content(gateway, codex):
    codex.through_gateway("doctor", "--network-only", key=gateway.alice)
    expect(codex.code == 0 and "0 warn" in codex.stdout and "0 fail" in codex.stdout, codex.stdout)
    expect("reachable over HTTP" in codex.stdout, codex.stdout)


@with_run
def connects_with_a_profile(gateway, codex):
    home = pathlib.Path(codex.home)
    (home / "config.toml").write_text('model_reasoning_effort = "low"\n')
    own = hashlib.sha256((home / "config.toml").read_bytes()).digest()
    connect = ["connect", "codex", "--url", codex.tap.url]
    printed = gateway.cli(*connect, "--key-stdin", "--print", stdin=gateway.alice, env=codex.env())
    expect("model_providers.gateway" in printed.stdout, printed.stdout)
    expect_equal(codex.files(), ["config.toml"], "files after --print")
    written = gateway.cli(*connect, "--key-stdin", stdin=gateway.alice, env=codex.env())
    expect(gateway.alice not in written.stderr and "gateway.config.toml" in written.stderr, written.stderr)
    profile = home / "gateway.config.toml"
    expect_equal(profile.stat().st_mode & 0o777, 0o600, "mode of the profile")
    codex._run([CODEX, "-p", "gateway", "exec", *FLAGS, "say hello"], codex.env()).answered("You said")
    expect_equal(hashlib.sha256((home / "config.toml").read_bytes()).digest(), own, "config.toml")
    gateway.cli("connect", "codex", "--undo", env=codex.env())
    expect_equal(codex.files(), ["config.toml"], "files after --undo")


@with_run
def takes_a_limited_answer(gateway, codex):
    key = gateway.user("frugal", "0.2")
    codex.directly("sim:overrun", key=key)
    shown = codex.stdout + codex.stderr
    expect("max_output_tokens" in shown and len(codex.requests()) == 1, f"{len(codex.requests())} requests: {shown[-600:]}")


def run_line(line, gateway, env):
    """Runs a line of a shell; who asks for no prompt on the line gets one on stdin."""
    return subprocess.run(
        ["bash", "-c", line], cwd=gateway.home, env=env, input="say hello\n", capture_output=True, text=True, timeout=60
    )


def demo_lines_run_as_printed(gateway):
    """`demo --serve` leaves a note by which `gateway codex` finds it, and prints lines that run."""
    env = gateway.env(CODEX_HOME=str(gateway.dir / "demo-codex"), PATH=f"{CODEX.parent}:{pathlib.Path(BIN).parent}:{os.environ['PATH']}")
    pathlib.Path(env["CODEX_HOME"]).mkdir(exist_ok=True)
    note = gateway.runtime / "codex-gateway" / "demo.json"
    log = open(gateway.dir / "demo.log", "w+")
    demo = subprocess.Popen([BIN, "demo", "--serve"], env=env, cwd=gateway.dir, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        expect(wait_for(note.exists, 60), f"no note: {pathlib.Path(log.name).read_text()}")
        time.sleep(0.5)
        text = pathlib.Path(log.name).read_text()
        lines = [line.strip() for line in text.splitlines() if re.search(r"gateway['\"]? +codex\b", line)]
        expect(lines, f"no line with `gateway codex`: {text}")
        for line in lines:
            done = run_line(line, gateway, env)
            if "trusted directory" in done.stderr:
                # A person would be in a project of theirs.
                done = run_line(line.replace(" codex", " codex --skip-git-repo-check", 1), gateway, env)
            expect(done.returncode == 0 and done.stdout, f"{line}: {done.returncode} {done.stderr[-600:]}")
            expect(not NOISE.search(done.stderr), done.stderr)
    finally:
        demo.send_signal(signal.SIGTERM)
        demo.wait(20)
        log.close()
    expect(not note.exists(), "the note outlives the demo")


CHECKS = [
    ("codex: answers a prompt", answers),
    ("codex: ordinary tools and instructions", declares_tools),
    ("codex: runs a tool", runs_a_tool),
    ("codex: creates a file with apply_patch", applies_a_patch),
    ("codex: arguments and exit codes pass", passes_arguments_and_exit_codes),
    ("codex: a model that is offered", names_a_model_that_is_offered),
    ("codex: says what is missing", says_what_is_missing),
    ("codex: the key is revoked when it is stopped", revokes_when_stopped),
    ("codex: doctor", doctor_is_content),
    ("codex: connect, use, undo", connects_with_a_profile),
    ("codex: takes a limited answer", takes_a_limited_answer),
    ("codex: demo's lines run as printed", demo_lines_run_as_printed),
]
