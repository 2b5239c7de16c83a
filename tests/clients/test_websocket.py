"""Responses over WebSocket: the real Codex and openai-python, and what Codex does where it is switched off."""

import json

import openai

from codex import FLAGS, Run, overrides
from gateway import CODEX, OLD_CODEX, Gateway, expect, expect_equal

MODEL = "gpt-6.1-sol"


def over_websocket(gateway, prompt, key, program=CODEX):
    """Codex, told that its provider speaks WebSocket."""
    codex = Run(gateway, program=program)
    settings = [part.replace("supports_websockets=false", "supports_websockets=true") for part in overrides(codex.tap.url)]
    return codex._run([program, *settings, "-m", codex.model, "exec", *FLAGS, prompt], codex.env(CODEX_GATEWAY_API_KEY=key))


def opened(codex):
    """Whether Codex had a WebSocket, and nothing else."""
    with codex.tap.lock:
        connections = [(bytes(sent), bytes(got)) for sent, got in codex.tap.connections]
    upgraded = [got for sent, got in connections if b"upgrade: websocket" in sent.lower() and got.startswith(b"HTTP/1.1 101")]
    posted = [sent for sent, _ in connections if sent.startswith(b"POST")]
    expect(upgraded and not posted, f"{len(upgraded)} WebSockets, {len(posted)} requests over HTTP")


def upstream_calls(gateway, run):
    """What `run()` made the gateway send upstream, in the order of its exchanges: the tap tells connection by connection."""
    number = lambda post: post.headers["x-request-id"]
    before = {number(post) for post in gateway.tap.posts()}
    found = run()
    return found, sorted((post for post in gateway.tap.posts() if number(post) not in before), key=number)


def codex_answers(gateway, program=CODEX):
    codex, calls = upstream_calls(gateway, lambda: over_websocket(gateway, "say hello", gateway.alice, program))
    try:
        codex.answered("You said")
        opened(codex)
        expect_equal(len(calls), 1, "calls upstream, the prewarm not among them")
        # What came with the prewarm is in front.
        roles = [item.get("role") for item in json.loads(calls[0].body)["input"]]
        expect(roles[0] == "developer" and roles[-1] == "user", f"roles: {roles}")
    finally:
        codex.close()


def codex_runs_a_tool(gateway):
    prompt = "run a tool: `echo tool-$((40+2))`"
    codex, calls = upstream_calls(gateway, lambda: over_websocket(gateway, prompt, gateway.alice))
    try:
        codex.answered("The tool said")
        expect("tool-42" in codex.stderr, codex.stderr[-800:])
        opened(codex)
        expect_equal(len(calls), 2, "calls upstream")
        first, second = (json.loads(call.body)["input"] for call in calls)
        expect_equal(second[: len(first)], first, "the first input, in front of the second")
        kinds = [item["type"] for item in second[len(first) :]]
        expect(kinds[-1].endswith("_call_output") and any(kind.endswith("_call") for kind in kinds), f"what was added: {kinds}")
    finally:
        codex.close()


def codex_shows_that_the_money_is_gone(gateway):
    key = gateway.user("ws-poor", "0")
    codex, calls = upstream_calls(gateway, lambda: over_websocket(gateway, "say hello", key))
    try:
        shown = codex.stdout + codex.stderr
        expect(codex.code != 0 and "Ask the operator" in shown and "ws-poor" in shown, shown[-900:])
        expect("Reconnecting" not in shown, shown[-900:])
        expect_equal(len(calls), 0, "calls upstream")
    finally:
        codex.close()


def codex_falls_back_at_once(_):
    gateway = Gateway("no-websocket", server="websocket = false")
    try:
        codex = over_websocket(gateway, "say hello", gateway.user("alice"))
        expect(codex.code == 0 and "You said" in codex.stdout, codex.stderr[-500:])
        expect("Reconnecting" not in codex.stderr, codex.stderr[-500:])
        statuses = [exchange.status for exchange in codex.tap.exchanges() if exchange.method == "GET"]
        expect_equal(statuses, [426], "answers to upgrades")
        expect_equal(len(codex.requests()), 1, "requests over HTTP")
    finally:
        gateway.stop()


def answer(connection):
    """The events up to the end of an answer."""
    events = []
    for event in connection:
        events.append(event)
        if event.type in ("response.completed", "response.incomplete", "response.failed", "error"):
            return events
    return events


def openai_python_converses(gateway):
    client = openai.OpenAI(base_url=gateway.url + "/v1", api_key=gateway.alice)

    def converse():
        with client.responses.connect() as connection:
            connection.response.create(model=MODEL, input="one", generate=False, store=False)
            warm = answer(connection)[-1].response
            expect(warm.usage.total_tokens == 0 and warm.output == [], f"{warm}")
            ids = [warm.id]
            for prompt in ("two", "three"):
                connection.response.create(model=MODEL, input=prompt, previous_response_id=ids[-1], store=False)
                events = answer(connection)
                expect_equal(events[-1].type, "response.completed", "the end")
                text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
                expect(prompt in text, text)
                ids.append(events[-1].response.id)
            connection.response.create(model="nobody's", input="four", store=False)
            error = answer(connection)[-1]
            expect_equal((error.type, error.error.code), ("error", "model_not_found"), "a refusal")

    _, calls = upstream_calls(gateway, converse)
    inputs = [[item["content"] for item in json.loads(call.body)["input"] if item["role"] == "user"] for call in calls]
    expect_equal(inputs, [["one", "two"], ["one", "two", "three"]], "what the user said")


CHECKS = [
    ("websocket: codex answers a prompt", codex_answers),
    ("websocket: codex 0.144.3 answers a prompt", lambda gateway: codex_answers(gateway, OLD_CODEX)),
    ("websocket: codex runs a tool", codex_runs_a_tool),
    ("websocket: codex shows that the money is gone", codex_shows_that_the_money_is_gone),
    ("websocket: codex falls back at once where it is switched off", codex_falls_back_at_once),
    ("websocket: openai-python converses", openai_python_converses),
]
