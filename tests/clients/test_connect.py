"""What `gateway connect` prints and writes for clients, read as they read it; and the bill inside Codex."""

import json
import os
import pathlib
import re
import subprocess
import sys

import yaml

from codex import Run
from gateway import expect, expect_equal
from terminal import Terminal

# What reads each client's settings.
APPS = {"aider": "yaml", "continue": "yaml", "cline": "sh", "open-webui": "env", "opencode": "json", "claude-code": "json", "env": "sh"}


def printed(gateway, app, *flags):
    done = gateway.cli("connect", app, "--url", gateway.url, "--key-stdin", *flags, stdin=gateway.alice)
    expect(gateway.alice not in done.stderr, "the key is on the terminal")
    return done.stdout


def shell(lines, show):
    done = subprocess.run(["bash", "-euc", lines + show], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


def settings_are_read(gateway):
    """Each by a parser of its format, with the address and the key in it."""
    base, key, model = gateway.url + "/v1", gateway.alice, "gpt-6.1-sol"
    for app, form in APPS.items():
        document = json.loads(printed(gateway, app, "--json"))
        expect_equal((document["app"], document["format"], document["settings"]), (app, form, printed(gateway, app)), app)
    aider = yaml.safe_load(printed(gateway, "aider"))
    expect_equal(aider, {"openai-api-base": base, "openai-api-key": key, "model": f"openai/{model}"}, "aider")
    first = yaml.safe_load(printed(gateway, "continue"))["models"][0]
    expect_equal((first["apiBase"], first["apiKey"], first["model"], first["roles"]), (base, key, model, ["chat", "edit", "apply"]), "continue")
    words = shell('cline() { printf "%s\\n" "$@"; }\n' + printed(gateway, "cline"), "")
    expect_equal(words[:-1], ["auth", "--provider", "openai", "--apikey", key, "--modelid", model, "--baseurl", base], "cline")
    lines = dict(line.split("=", 1) for line in printed(gateway, "open-webui").splitlines())
    expect_equal(lines, {"OPENAI_API_BASE_URL": base, "OPENAI_API_KEY": key}, "open-webui")
    opencode = json.loads(printed(gateway, "opencode"))
    expect_equal(opencode["provider"]["codex-gateway"]["options"], {"baseURL": base, "apiKey": key}, "opencode")
    expect(model in opencode["provider"]["codex-gateway"]["models"], "opencode has no models")
    router = json.loads(printed(gateway, "claude-code"))
    expect_equal((router["Providers"][0]["api_base_url"], router["Providers"][0]["api_key"]), (base + "/chat/completions", key), "claude-code")
    found = shell(printed(gateway, "env"), 'printf "%s\\n" "$OPENAI_BASE_URL" "$OPENAI_API_BASE" "$OPENAI_API_KEY"')
    expect_equal(found[:3], [base, base, key], "env")


def settings_are_used(gateway):
    """openai-python with nothing but the lines of `connect env`."""
    program = "import openai; print(openai.OpenAI().responses.create(model='gpt-6.1-sol', input='hello').output_text)"
    lines = printed(gateway, "env") + f"exec '{sys.executable}' -c \"{program}\""
    env = gateway.env(PYTHONPATH=os.environ["PYTHONPATH"])
    done = subprocess.run(["bash", "-euc", lines], capture_output=True, text=True, timeout=60, env=env)
    expect("You said" in done.stdout, done.stderr)


def the_bill_is_inside_codex(gateway):
    """On a terminal: the picker's words and, under the answer, what its turn was charged, as the receipts have it."""
    codex = Run(gateway)
    key = gateway.user("billed")
    terminal = None
    try:
        own = pathlib.Path(codex.home, "config.toml")
        own.write_text(f'[projects."{codex.work}"]\ntrust_level = "trusted"\n')
        gateway.cli("connect", "codex", "--url", codex.tap.url, "--key-stdin", "--turn-cost", stdin=key, env=codex.env())
        profile = pathlib.Path(codex.home, "gateway.config.toml").read_text()
        expect("turn-cost" in profile and key not in re.search("command = .*", profile).group(), profile)
        expect("turn-cost" not in own.read_text(), "config.toml was changed")
        command = [codex.program, "-p", "gateway", "--dangerously-bypass-hook-trust", "--dangerously-bypass-approvals-and-sandbox", "say hello"]
        terminal = Terminal(command, codex.work, codex.env())
        expect(terminal.wait_for("This turn: $"), f"no bill: {terminal.text[-1500:]}")
        expect(terminal.wait_for("Balance $"), terminal.text[-500:])
        shown = re.search(r"This turn: \$([\d.]+) ", terminal.text).group(1)
        turns = {}
        for receipt in gateway.json("request", "list", "--user", "billed")["items"]:
            turns[receipt["turn"]] = turns.get(receipt["turn"], 0) + nanos(receipt["charge"])
        expect(nanos(shown) in turns.values(), f"shown {shown}, charged {turns}")
        # What comes in one piece is taken for something pasted.
        for letter in "/model":
            terminal.type(letter)
            terminal.wait_for("nothing that it writes", 0.3)
        expect(terminal.wait_for("choose what model"), f"no command: {terminal.text[-500:]}")
        terminal.type("\r")
        expect(terminal.wait_for("per 1M tokens"), f"no prices in the picker: {terminal.text[-1500:]}")
        expect("Balance $5.00" in terminal.text or "Balance $4.9" in terminal.text, terminal.text[-1500:])
        gateway.cli("connect", "codex", "--undo", env=codex.env())
        expect_equal(codex.files(), ["config.toml"], "files after --undo")
    finally:
        if terminal:
            terminal.close()
        codex.close()


def nanos(text):
    whole, _, part = text.partition(".")
    return int(whole) * 10**9 + int(part.ljust(9, "0"))


CHECKS = [
    ("connect: settings are read by parsers of their formats", settings_are_read),
    ("connect: settings are used", settings_are_used),
    ("codex: the bill and the prices are inside it", the_bill_is_inside_codex),
]
