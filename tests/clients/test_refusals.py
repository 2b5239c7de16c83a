"""Every refusal of the gateway as the real Codex shows it: a row for each code, with how often Codex asks and what its user
reads, to the letter. A code without a row fails."""

import contextlib
import re
import signal
import threading
import time

from codex import FLAGS, Run, error
from gateway import Gateway, expect, expect_equal
from meddle import meddler, of_body, written
from tap import Tap, wait_for

CAPACITY = "Selected model is at capacity. Please try a different model."
BROKEN = "stream disconnected before completion: "
FEW = ",request_max_retries=1,stream_max_retries=1"

# Codes that Codex never meets, and why.
NEVER = {
    "request_not_found": "only of a payer's own requests",
    "report_too_large": "only of a payer's own reports",
    "code_not_found": "only of redemption codes",
    "previous_response_not_found": "only of a WebSocket's own earlier answers, which Codex names as it was told them",
    "response_in_progress": "only of a second call on a WebSocket, on which Codex makes one after another",
    "internal_error": "a fault of the gateway's own, which nothing a client sends may cause",
}


def matches(sentence, pattern):
    """Whether it is the sentence; `*` stands for what differs from run to run."""
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), sentence, re.DOTALL) is not None


def codes(codex):
    """What the gateway called its refusals."""
    found = set()
    for exchange in codex.tap.exchanges():
        for event in exchange.events():
            told = event.get("error") or (event.get("response") or {}).get("error") or {}
            found |= {told.get("code"), (told.get("gateway") or {}).get("code")}
    return found


def raw(code, message, param=None):
    """What Codex shows of a 400 whose code it does not know: the answer as it is."""
    param = f'"{param}"' if param else "null"
    told = f'"code":"{code}","gateway":{{"code":"{code}","exchange":"*"}},"message":"{message}","param":{param},"type":"invalid_request_error"'
    return f'{{"error":{{{told}}}}}'


class Row:
    """A refusal: its code, requests (at most so many; 1 is exactly one), the sentence, and how it comes about."""

    def __init__(self, name, code, requests, sentence, prompt="hi", key=None, model=None, change=None, gateway=None, spoil=None, **provider):
        self.name, self.code, self.requests, self.sentence = f"refusal: {name}", code, requests, sentence
        self.prompt, self.key, self.model, self.change = prompt, key or (lambda gateway: gateway.alice), model, change
        self.settings, self.spoil, self.provider = gateway, spoil, provider

    def __call__(self, shared):
        """On the gateway of all checks, unless it takes settings of its own."""
        gateway = shared
        if self.settings is not None:
            gateway = Gateway(re.sub(r"\W+", "-", self.name), **self.settings)
            gateway.alice = gateway.user("alice")
        codex = Run(gateway, tap=meddler(self.change) if self.change else Tap)
        try:
            if self.spoil:
                self.spoil(gateway)
            codex.directly(self.prompt, key=self.key(gateway), model=self.model, **self.provider)
            if gateway is not shared:
                gateway.cli("ledger", "verify")
            return self.judge(codex)
        finally:
            codex.close()
            if gateway is not shared:
                gateway.stop()

    def judge(self, codex):
        asked = [exchange for exchange in codex.tap.exchanges() if exchange.method != "GET"]
        expect(codex.code != 0, "Codex took it for an answer")
        counted = len(asked) == 1 if self.requests == 1 else 1 <= len(asked) <= self.requests
        expect(counted, f"{len(asked)} requests, wanted {self.requests}")
        expect(matches(error(codex), self.sentence), f"Codex says {error(codex)!r}, wanted {self.sentence!r}")
        expect(self.code is None or self.code in codes(codex), f"codes {codes(codex)}, wanted {self.code}")
        return f"requests: {len(asked)}, {codex.seconds:.1f} s: {error(codex)}"


def suspended(gateway):
    key = gateway.user("carol")
    gateway.cli("user", "suspend", "carol")
    return key


def stop_upstream(gateway):
    gateway.tap.close()
    gateway.upstream.stop()


def with_header(name, value):
    return lambda first, headers, body: (first, [*headers, (name, value)], body)


def with_path(path):
    return lambda first, headers, body: (first.replace("/v1/responses", path), headers, body)


def missing_end(first, headers, body):
    return [written(first, headers, body[:-10], len(body))]


def once(name, body_of_first):
    """Names the call, and sends what the first one said."""
    kept = []

    def change(first, headers, body):
        kept.append(body)
        return first, [*headers, ("idempotency-key", name)], kept[0] if body_of_first else body

    return change


class Named(Row):
    """A call by a name that an earlier one had: of the same text, or not."""

    def __init__(self, name, code, requests, sentence, same, first="hi", waits=True):
        super().__init__(name, code, requests, sentence)
        self.same, self.first, self.waits = same, first, waits

    def __call__(self, gateway):
        change = once(self.code, self.same)
        first, second = (Run(gateway, tap=meddler(change)) for _ in range(2))
        try:
            running = threading.Thread(target=lambda: first.directly(self.first, key=gateway.alice))
            running.start()
            if self.waits:
                running.join()
            else:
                expect(wait_for(lambda: first.tap.posts(), 30), "the first did not ask")
            second.directly("another", key=gateway.alice)
            running.join()
            return self.judge(second)
        finally:
            first.close()
            second.close()


def only_held(gateway):
    """The money is there, but a running call holds it: Codex waits, asks again, and gets its answer."""
    codex, first = Run(gateway), Run(gateway)
    try:
        key = gateway.user("busy", "0.2")
        waiting = threading.Thread(target=lambda: first.directly("sim:slow " + "word " * 40, key=key))
        waiting.start()
        expect(wait_for(lambda: float(gateway.json("user", "show", "busy")["held"]) > 0, 20), "nothing is held")
        codex.directly("hello", key=key)
        waiting.join()
        statuses = [exchange.status for exchange in codex.requests()]
        expect(429 in statuses and len(statuses) <= 6, f"statuses {statuses}")
        refused = next(exchange for exchange in codex.requests() if exchange.status == 429)
        expect(int(refused.answer_headers.get("retry-after", 0)) >= 1, refused.answer_headers)
        expect(codex.code == 0 and "You said" in codex.stdout, codex.stderr[-500:])
    finally:
        codex.close()
        first.close()


def restarted(_):
    """A server that stops refuses what it has not taken; Codex waits for the next one, and gets its answer."""
    gateway = Gateway("restarted", server='drain_timeout = "1s"')
    stopped = threading.Event()

    def change(first, headers, body):
        whole = written(first, headers, body)
        if stopped.is_set():
            yield whole
            return
        stopped.set()
        yield whole[:-10]
        gateway.server.process.send_signal(signal.SIGTERM)
        gateway.server.process.wait(20)
        gateway.serve()

    codex = Run(gateway, tap=meddler(change))
    try:
        codex.directly("hello", key=gateway.user("alice"))
        statuses = [exchange.status for exchange in codex.requests()]
        expect("shutting_down" in codes(codex), f"codes {codes(codex)}, statuses {statuses}")
        expect(codex.code == 0 and "You said" in codex.stdout, codex.stderr[-500:])
        gateway.cli("ledger", "verify")
    finally:
        codex.close()
        gateway.stop()


ROWS = [
    Row("balance used up", "insufficient_quota", 1, "You’ve hit your usage limit. The balance of poor does not pay for this call: it needs up to $*, $0.000001 is available and $0.00 is held by running calls. Ask the operator of this gateway for credit for poor, or try again later.", key=lambda g: g.poor),
    Row("suspended user", "user_suspended", 1, "The user carol is suspended. Ask the operator of this gateway to run: gateway user activate carol", key=suspended),
    Row("what Codex shows of a policy", "invalid_prompt", 1, "This key may not be used from this address. Ask the operator of this gateway to allow it.", key=lambda g: g.key("alice", "--ip", "10.9.8.7")),
    Row("address not allowed", "ip_not_allowed", 1, "This key may not be used from this address. Ask the operator of this gateway to allow it.", key=lambda g: g.key("alice", "--ip", "10.9.8.7")),
    Row("request too large", "request_too_large", 1, "The request is larger than this gateway takes (10000 bytes decompressed). Send less, or ask its operator to raise [server] max_body.", gateway={"server": "max_body = 10000"}),
    Row("model without a price", "model_not_found", 1, "The model 'what-model' has no price here, so it is not offered; nothing was charged. The operator of this gateway can run: gateway price set what-model --list openai --input USD --output USD", model="what-model"),
    Row("model not for this key", "model_not_found", 1, "The model 'gpt-6.1-sol' is not offered here to this key. The nearest that it may use is 'gpt-5.6-sol'; GET /v1/models lists all.", key=lambda g: g.key("alice", "--model", "gpt-5*")),
    Row("bad key", "invalid_api_key", 6, "unexpected status 401 Unauthorized: This is not a valid key of this gateway. Send 'Authorization: Bearer sk-gw-…' with a key that its operator issued to you (gateway key issue)., url: *", key=lambda g: "sk-gw-nonsense"),
    Row("another service's key", "invalid_api_key", 6, "unexpected status 401 Unauthorized: This looks like an OpenAI key. This gateway takes its own keys, which start with sk-gw-: ask its operator for one., url: *", key=lambda g: "sk-proj-abcdefghijkl"),
    Row("two ways to read it", "malformed_request", 1, raw("malformed_request", 'This request is not taken: its path has // (does the base URL end in a slash?). Nothing was sent.'), change=with_path("/v1//responses")),
    Row("no JSON", "invalid_json", 1, raw("invalid_json", 'The request body is not valid JSON (line 1, column 1). Send one JSON object, in UTF-8.'), change=of_body(lambda body: b"{")),
    Row("no model", "missing_required_parameter", 1, raw("missing_required_parameter", 'The request names no model. Set `model`; GET /v1/models lists what this key may use.', 'model'), change=of_body(lambda body: body.pop("model") and None)),
    Row("a parameter miswritten", "unknown_parameter", 1, raw("unknown_parameter", 'A parameter is `model` but for the case of its letters. Write `model`.', 'model'), change=of_body(lambda body: body.update(Model="x"))),
    Row("a parameter twice", "duplicate_parameter", 1, raw("duplicate_parameter", '`model` appears more than once. Send it once.', 'model'), change=lambda f, h, b: (f, h, b'{"model":"gpt-5.5",' + b[1:])),
    Row("a parameter of another type", "invalid_type", 1, raw("invalid_type", '`stream` must be true or false.', 'stream'), change=of_body(lambda body: body.update(stream="yes"))),
    Row("a value that does not go", "invalid_value", 1, raw("invalid_value", '`max_output_tokens` must be at least 1.', 'max_output_tokens'), change=of_body(lambda body: body.update(max_output_tokens=0))),
    Row("a parameter that is not served", "unsupported_parameter", 1, raw("unsupported_parameter", '`plugins` is not supported by this gateway. A call is priced by one model and its tools: name the model in `model`.', 'plugins'), change=of_body(lambda body: body.update(plugins=[{"id": "web"}]))),
    Row("a body that does not come", "incomplete_body", 1, raw("incomplete_body", 'The request body did not arrive whole and in time. Send it again.'), change=missing_end, gateway={"server": 'body_timeout = "1s"'}),
    Row("a coding that is none", "unsupported_encoding", 1, raw("unsupported_encoding", 'The request cannot be read: the content coding of the body is not understood; send it as zstd, gzip, deflate, br, or not encoded.'), change=with_header("content-encoding", "lzma")),
    Row("endpoint not supported", "endpoint_not_supported", 6, "unexpected status 403 Forbidden: POST /v1/fine_tuning/jobs is not offered by this gateway: what it costs, or whose answers and files it touches, cannot be metered here. Nothing was sent., url: *", change=with_path("/v1/fine_tuning/jobs")),
    Row("no such path", "not_found", 6, "unexpected status 404 Not Found: There is no POST /v2/responses here. *, url: *", base="/v2"),
    Row("another method", "method_not_allowed", 6, "unexpected status 405 Method Not Allowed: This path takes POST here., url: *", change=lambda f, h, b: (f.replace("POST", "PUT", 1), h, b)),
    Named("a name that another call has", "idempotency_mismatch", 1, "This Idempotency-Key came with another call before. Nothing was sent. Another call needs another Idempotency-Key.", same=False),
    Named("the same call again", "already_done", 1, "The call with this Idempotency-Key is done and was charged $*. Nothing was sent or charged again. GET /v1/gateway/requests/* is its receipt; another call needs another Idempotency-Key.", same=True),
    Named("the same call while it runs", "idempotency_in_progress", 6, "The call with this Idempotency-Key is done and was charged $*. Nothing was sent or charged again. GET /v1/gateway/requests/* is its receipt; another call needs another Idempotency-Key.", same=True, first="sim:slow " + "word " * 40, waits=False),
    Row("books that cannot be written", "storage_unavailable", 6, "unexpected status 503 Service Unavailable: The gateway cannot write its books at the moment, so it takes no calls. Nothing was charged. Please try again., url: *", gateway={"environment": {"GATEWAY_DATABASE__MIN_FREE": "1024GiB"}}, more=FEW),
    Row("upstream 400", None, 1, "{\"error\":{\"code\":\"invalid_value\",\"message\":\"Simulated: the request is wrong.\",\"param\":null,\"type\":\"invalid_request_error\"}}", prompt="sim:400"),
    Row("upstream 429", None, 6, "exceeded retry limit, last status: 429 Too Many Requests, request id: *", prompt="sim:429"),
    Row("upstream 500", "upstream_error", 6, CAPACITY, prompt="sim:500"),
    Row("upstream 502", "upstream_error", 6, CAPACITY, prompt="sim:502"),
    Row("upstream 503", "server_is_overloaded", 6, CAPACITY, prompt="sim:503"),
    Row("upstream hangs up", "upstream_error", 6, CAPACITY, prompt="sim:refuse"),
    Row("upstream cannot be reached", "upstream_error", 6, CAPACITY, gateway={}, spoil=stop_upstream),
    Row("upstream answers too late", "upstream_timeout", 6, CAPACITY, prompt="sim:hang", gateway={"upstream": 'first_byte_timeout = "1s"'}),
    Row("upstream falls silent", "server_error", 6, BROKEN + "The upstream's answer broke off. What was delivered is charged.", prompt="sim:stall", gateway={"upstream": 'idle_timeout = "1s"'}),
    Row("upstream refuses the gateway's key", "upstream_error", 6, CAPACITY, prompt="sim:401"),
    Row("the operator's account is empty", "server_is_overloaded", 6, CAPACITY, prompt="sim:quota"),
    Row("upstream breaks off", "server_error", 6, BROKEN + "The upstream's answer broke off. What was delivered is charged.", prompt="sim:break"),
    Row("upstream sends an error event", None, 6, BROKEN + "stream closed before response.completed", prompt="sim:error"),
]

# Refusals that Codex gets over: it waits, or goes another way.
GOT_OVER = {
    "rate_limit_exceeded": ("refusal: held by running calls", only_held),
    "shutting_down": ("refusal: a server that stops", restarted),
}

# Elsewhere, because it is about more than a refusal.
IN_OTHER_FILES = {"upgrade_required": "websocket: codex falls back at once where it is switched off"}


def every_code_has_a_row(gateway):
    there = {item["code"] for item in gateway.json("explain")["items"]}
    rows = {row.code for row in ROWS if row.code} | GOT_OVER.keys() | NEVER.keys() | IN_OTHER_FILES.keys()
    expect_equal(rows - there, set(), "rows of codes that are none")
    expect_equal(there - rows, set(), "codes without a row")


CHECKS = [("refusal: every code has a row", every_code_has_a_row), *GOT_OVER.values(), *((row.name, row) for row in ROWS)]
