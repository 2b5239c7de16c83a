"""Clients of the Responses API at upstreams that only have chat completions."""

import http.server
import json
import os
import pathlib
import re
import threading

from openai import OpenAI
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from codex import FLAGS, Run
from gateway import Gateway, expect, expect_equal

FIXTURES = pathlib.Path(__file__).resolve().parents[3] / "shared" / "fixtures"
RECORDED = pathlib.Path(os.environ.get("GATEWAY_FIXTURES", FIXTURES)) / "wire"
OTHER = re.compile("completions|images|responses|transcription|xai-responses")


def recordings():
    """Recorded chat streams, by the names of their files."""
    files = RECORDED.glob("*.sse")
    return {file.name: file.read_bytes() for file in files if not OTHER.match(file.name)}


class Recordings(http.server.ThreadingHTTPServer):
    """An upstream that answers with the recording that the model names."""

    def __init__(self, streams):
        class Answer(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                stream = streams[body["model"]]
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("content-length", str(len(stream)))
                self.end_headers()
                self.wfile.write(stream)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Answer)
        threading.Thread(target=self.serve_forever, daemon=True).start()


def codex_over_chat(_):
    gateway = Gateway("chat-only", upstream='wire = "chat"')
    try:
        alice = gateway.user("alice")
        for prompt, answer in [
            ("say hello", "You said"),
            ("run a tool: `echo tool-$((40+2))`", "The tool said"),
            ("create hello.txt with apply_patch: `hello\n  wörld`", "Success"),
        ]:
            codex = Run(gateway)
            try:
                codex.through_gateway(*FLAGS, prompt, key=alice).answered(answer)
                if "apply_patch" in prompt:
                    made = pathlib.Path(codex.work, "hello.txt").read_bytes()
                    expect_equal(made, "hello\n  wörld\n".encode(), "bytes of hello.txt")
            finally:
                codex.close()
        posts = gateway.tap.posts()
        expect(all(post.path.endswith("/chat/completions") for post in posts), [post.path for post in posts])
        receipts = gateway.receipts()
        expect_equal(len(receipts), len(posts), "receipts")
        expect({receipt["state"] for receipt in receipts} == {"completed"}, receipts)
    finally:
        gateway.stop()


def typed_streams(_):
    streams = recordings()
    if not streams:
        print("        recorded streams are absent", flush=True)
        return
    upstream = Recordings(streams)
    recorded = f"""wire = "chat"\n[[upstream]]\nname = "recorded"\nbase_url = "http://127.0.0.1:{upstream.server_port}/v1"
prices = "free"\nwire = "chat"\nmodels = ["*.sse"]"""
    gateway = Gateway("recorded", upstream=recorded)
    try:
        client = OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.user("alice"), max_retries=0)
        parser = TypeAdapter(ResponseStreamEvent)
        for name in streams:
            create = client.responses.with_streaming_response.create
            with create(model=name, input="Hi", stream=True) as answer:
                lines = [line for line in answer.iter_lines() if line.startswith("data: ")]
            kinds = [parser.validate_python(json.loads(line[6:])).type for line in lines]
            expect(kinds[-1] in ("response.completed", "response.incomplete", "response.failed"), f"{name}: {kinds}")
            with client.responses.stream(model=name, input="Hi") as helper:
                expect_equal([event.type for event in helper if event.type in kinds][-1], kinds[-1], name)
    finally:
        gateway.stop()
        upstream.shutdown()


CHECKS = [
    ("codex: any model, over chat completions", codex_over_chat),
    ("openai-python: recorded chat streams as typed events", typed_streams),
]
