"""What each version of the real Codex CLI does through the gateway: one list of checks, driven by every version."""

import json
import pathlib

import test_books
from codex import VERSIONS, Run
from gateway import Gateway, expect, expect_equal

# Beyond so many tokens of a conversation Codex compacts it.
COMPACT = "model_auto_compact_token_limit=500"


def of_codex(exchange):
    """What Codex says a request is for."""
    return json.loads(exchange.headers.get("x-codex-turn-metadata", "{}")).get("request_kind", "turn")


def prompt(gateway, codex):
    codex.directly("say hello", key=gateway.alice).answered("You said")
    (request,) = codex.requests()
    expect(request.usage()[0] > 0 and request.answer_headers.get("x-request-id"), request.answer_headers)


def tool(gateway, codex):
    codex.directly("run a tool: `echo tool-$((40+2))`", key=gateway.alice).answered("The tool said")
    expect("tool-42" in codex.stderr, codex.stderr[-800:])
    expect_equal(len(codex.requests()), 2, "requests")


def patch(gateway, codex):
    codex.directly("create hello.txt with apply_patch: `hello\n  wörld`", key=gateway.alice).answered("Done.")
    made = pathlib.Path(codex.work, "hello.txt").read_bytes()
    expect_equal(made, "hello\n  wörld\n".encode(), "bytes of hello.txt")


def resume(gateway, codex):
    """The whole conversation is sent again, with what was encrypted for the upstream."""
    codex.directly("sim:reasoning and remember: blue", key=gateway.alice).answered("You said")
    codex.directly("resume", "--last", "and again", key=gateway.alice).answered("and again")
    first, second = codex.requests()
    expect_equal(first.headers["session-id"], second.headers["session-id"], "session")
    sent = json.loads(second.body)["input"]
    expect(not codex.encrypts or any(item.get("type") == "reasoning" and item.get("encrypted_content") for item in sent), "no reasoning is sent again")
    expect("remember: blue" in second.body.decode(), "the first prompt is not sent again")


def compaction_local(gateway, codex):
    """A provider of any other name than OpenAI is asked for a summary in words."""
    codex.directly("run a tool: `seq 1 400`", key=gateway.alice, settings=[COMPACT])
    expect(codex.code == 0 and codex.stdout.strip(), codex.stderr[-800:])
    requests = codex.requests()
    kinds = [of_codex(request) for request in requests]
    expect("compaction" in kinds or any(b"CONTEXT CHECKPOINT COMPACTION" in request.body for request in requests), f"kinds {kinds}")
    expect(all(request.status == 200 for request in requests), [request.status for request in requests])


def compaction_remote(gateway, codex):
    """A provider named OpenAI is asked for an item that only it can read."""
    codex.directly("run a tool: `seq 1 400`", key=gateway.alice, settings=[COMPACT], name="OpenAI")
    expect(codex.code == 0 and codex.stdout.strip(), codex.stderr[-800:])
    requests = codex.requests()
    bodies = [json.loads(request.body) for request in requests]
    triggered = [body for body in bodies if body["input"][-1].get("type") == "compaction_trigger"]
    expect(len(triggered) >= 1, [body["input"][-1].get("type") for body in bodies])
    compacted = [item for body in bodies for item in body["input"] if item.get("type") == "compaction"]
    expect(compacted and compacted[0]["encrypted_content"].startswith("simulated-"), "the item is not sent again")


def doctor(gateway, codex):
    codex.through_gateway("doctor", "--network-only", key=gateway.alice)
    expect(codex.code == 0 and "0 warn" in codex.stdout and "0 fail" in codex.stdout, codex.stdout + codex.stderr)


def doctor_of_old(gateway, codex):
    """Its doctor has no --network-only: it also looks at how it was installed, which is not the gateway's."""
    codex.through_gateway("doctor", key=gateway.alice)
    for line in ("✓ network", "✓ websocket", "✓ reachability", "✓ auth", "· 0 warn ·"):
        expect(line in codex.stdout, codex.stdout + codex.stderr)


def driven_by_doctor(gateway, codex):
    """`gateway doctor --client codex`: what its user reads, and whether that is as it is known."""
    done = gateway.cli("doctor", "--client", "codex", "--json", "--program", str(codex.program), check=False, env=codex.env())
    report = json.loads(done.stdout)
    scenes = {scene["scene"]: scene for scene in report["scenes"]}
    # Older ones do not wait for a rate limit, whatever Retry-After says.
    state = "ok" if codex.program == VERSIONS["0.169.0"] else "warning"
    expect_equal((done.returncode, report["state"]), (0, state), f"doctor: {scenes}")
    expect_equal(list(scenes), ["answer", "balance_out", "rate_limit", "cut_stream"], "scenes")
    expect(any("doctor-poor does not pay" in line for line in scenes["balance_out"]["reads"]), scenes["balance_out"])
    silent = pathlib.Path(codex.work, "silent")
    silent.write_text("#!/bin/sh\necho codex 0\n")
    silent.chmod(0o755)
    done = gateway.cli("doctor", "--client", "codex", "--program", str(silent), check=False, env=codex.env())
    expect_equal(done.returncode, 1, "exit code of a program that does not ask")


def models(gateway, codex):
    """What the version asks the list of models for, and that it can read it."""
    catalogue = f',model_catalog_url="{codex.tap.url}/v1/models"'
    codex.directly("say hello", key=gateway.alice, more=catalogue).answered("You said")
    lists = [exchange for exchange in codex.tap.exchanges() if exchange.method == "GET" and "/models" in exchange.path]
    expect(all(exchange.status == 200 for exchange in lists), [exchange.status for exchange in lists])
    return lists


def models_current(gateway, codex):
    lists = models(gateway, codex)
    expect(lists and all("client_version=" in exchange.path for exchange in lists), "the list was not asked for")
    tag = lists[-1].answer_headers["etag"]
    told = [request.answer_headers.get("x-models-etag") for request in codex.requests()]
    expect_equal(told, [tag], "x-models-etag")
    expect_equal(json.loads(codex.requests()[0].body)["model"], "gpt-6.1-sol", "model")


CHECKS_OF = {
    "0.169.0": [
        ("prompt", prompt),
        ("tool call", tool),
        ("apply_patch", patch),
        ("resume", resume),
        ("local compaction", compaction_local),
        ("remote compaction", compaction_remote),
        ("doctor", doctor),
        ("driven by the gateway's doctor", driven_by_doctor),
        ("models", models_current),
    ],
    "0.144.3": [
        ("prompt", prompt),
        ("tool call", tool),
        ("apply_patch", patch),
        ("resume", resume),
        ("local compaction", compaction_local),
        ("remote compaction", compaction_remote),
        ("doctor", doctor_of_old),
        ("driven by the gateway's doctor", driven_by_doctor),
        ("models", models),
    ],
}


def of_version(check, version):
    def run(gateway):
        codex = Run(gateway, program=VERSIONS[version])
        try:
            check(gateway, codex)
        finally:
            codex.close()

    return run


CHECKS = [(f"codex {version}: {name}", of_version(check, version)) for version, checks in CHECKS_OF.items() for name, check in checks]


# The same where the upstream only has chat completions: nothing else is asked of it, and each call is charged as it counted.
OVER_CHAT = ["prompt", "tool call", "apply_patch", "resume", "local compaction"]


def over_chat(check, version):
    def run(_):
        gateway = Gateway(f"chat-{version}", upstream='wire = "chat"')
        try:
            test_books.prepare(gateway)

            def with_catalogue(gateway, codex):
                # As `gateway codex` and the profile do it: ordinary tools, in place of those that only OpenAI has.
                codex.more, codex.encrypts = f',model_catalog_url="{codex.tap.url}/v1/models"', False
                check(gateway, codex)

            of_version(with_catalogue, version)(gateway)
            receipts = test_books.settled(gateway)
            posts = gateway.tap.posts()
            paths = {exchange.path for exchange in posts}
            expect_equal(paths, {"/v1/chat/completions"}, "paths at the upstream")
            counted = sum(test_books.charge(exchange.model, exchange.usage()) for exchange in posts)
            expect_equal(sum(test_books.nanos(receipt["charge"]) for receipt in receipts), counted, "charges")
            gateway.cli("ledger", "verify")
        finally:
            gateway.stop()

    return run


CHECKS += [
    (f"codex {version} over chat: {name}", over_chat(check, version))
    for version, checks in CHECKS_OF.items() for name, check in checks if name in OVER_CHAT
]
