"""A conversation of the real Codex is one session, its turns told apart, and its money what the upstream counted."""

from codex import Run
from gateway import expect_equal
from tap import wait_for
from test_books import charge, nanos


def a_prompt_and_its_resume_are_one_session(gateway):
    key = gateway.user("speaker")
    codex = Run(gateway)
    try:
        codex.directly("run a tool: `echo tool`", key=key).answered("The tool said")
        codex.directly("resume", "--last", "say hello", key=key).answered("You said")
        requests = len(codex.requests())
    finally:
        codex.close()
    wait_for(lambda: nanos(gateway.json("user", "show", "speaker")["held"]) == 0, 20)
    (listed,) = gateway.json("session", "list", "--user", "speaker")["items"]
    expect_equal((listed["turns"], listed["exchanges"]), (2, requests), "turns and requests of the session")
    expect_equal(listed["client"].split("/")[0], "codex_exec", "client")
    session = gateway.json("session", "show", listed["id"], "--user", "speaker")
    expect_equal([turn["exchanges"] for turn in session["turns"]], [2, 1], "requests by turn")
    expect_equal([kind["kind"] for kind in session["kinds"]], ["turn"], "kinds")
    receipts = gateway.json("request", "list", "--session", listed["id"], "--user", "speaker")["items"]
    answers = {receipt["response_id"] for receipt in receipts}
    counted = [exchange for exchange in gateway.tap.posts() if exchange.response_id() in answers]
    expect_equal(len(counted), requests, "answers of the upstream")
    total = sum(charge(exchange.model, exchange.usage()) for exchange in counted)
    expect_equal(nanos(session["total"]["charge"]), total, "charge, against the upstream's count")
    expect_equal(sum(nanos(turn["charge"]) for turn in session["turns"]), total, "charges of the turns")


def each_prompt_is_a_session_of_its_own(gateway):
    key = gateway.user("brief")
    for _ in range(2):
        codex = Run(gateway)
        try:
            codex.directly("say hello", key=key).answered("You said")
        finally:
            codex.close()
    sessions = gateway.json("session", "list", "--user", "brief")["items"]
    expect_equal([session["turns"] for session in sessions], [1, 1], "turns of two sessions")
    by = gateway.json("usage", "--by", "client", "--user", "brief")["items"]
    expect_equal([group["client"] for group in by], ["codex_exec"], "clients")


CHECKS = [
    ("sessions: a prompt and its resume are one", a_prompt_and_its_resume_are_one_session),
    ("sessions: each prompt is one of its own", each_prompt_is_a_session_of_its_own),
]
