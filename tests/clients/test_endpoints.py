"""openai-python's other endpoints against the gateway: uploads, images, sound, conversations, stored answers."""

import io

import openai

from gateway import Gateway, expect, expect_equal
from test_node import check as node
from test_openai import MODEL, client


def refused(call, status):
    try:
        call()
    except openai.APIStatusError as error:
        expect_equal(error.status_code, status, "status")
        return error
    raise AssertionError(f"nothing was refused, where {status} was expected")


def files(gateway):
    alice, bob = client(gateway), client(gateway, gateway.user("bob", "1000"))
    content = bytes(range(256)) * 4096
    made = alice.files.create(file=("a.bin", io.BytesIO(content)), purpose="user_data")
    expect_equal(made.bytes, len(content), "bytes")
    expect_equal(alice.files.content(made.id).read(), content, "content")
    expect(made.id in [file.id for file in alice.files.list()], "the list lacks the file")
    expect_equal([file.id for file in bob.files.list()], [], "another user's list")
    for call in (bob.files.retrieve, bob.files.delete, bob.files.content):
        refused(lambda: call(made.id), 404)
    parts = [{"type": "input_text", "text": "What is in it?"}, {"type": "input_file", "file_id": made.id}]
    ask = {"model": MODEL, "input": [{"role": "user", "content": parts}], "max_output_tokens": 100}
    expect(alice.responses.create(**ask).output_text, "no answer")
    refused(lambda: bob.responses.create(**ask), 400)
    expect(alice.files.delete(made.id).deleted, "not deleted")
    refused(lambda: alice.files.retrieve(made.id), 404)


def uploads(gateway):
    alice, content = client(gateway), bytes(range(256)) * 4096
    done = alice.uploads.upload_file_chunked(
        file=content, filename="a.bin", bytes=len(content), mime_type="application/octet-stream", purpose="user_data", part_size=300_000
    )
    expect_equal(done.status, "completed", "status")
    expect_equal(alice.files.content(done.file.id).read(), content, "content")


def stored(gateway):
    alice = client(gateway)
    answer = alice.responses.create(model=MODEL, input="hello")
    expect_equal(alice.responses.retrieve(answer.id).id, answer.id, "id")
    list(alice.responses.input_items.list(answer.id))
    alice.responses.delete(answer.id)
    refused(lambda: alice.responses.retrieve(answer.id), 404)
    expect(alice.responses.input_tokens.count(model=MODEL, input="hello").input_tokens > 0, "no count")
    compacted = alice.responses.compact(model=MODEL, input=[{"role": "user", "content": "hello"}])
    expect(compacted.usage.output_tokens > 0, compacted)


def background(gateway):
    alice, bob = client(gateway), client(gateway, gateway.user("robert", "1000"))
    made = alice.responses.create(model=MODEL, input="hello", background=True)
    expect_equal((made.status, made.usage), ("queued", None), "what runs")
    refused(lambda: bob.responses.retrieve(made.id), 404)
    refused(lambda: alice.responses.delete(made.id), 400)
    while (over := alice.responses.retrieve(made.id)).status in ("queued", "in_progress"):
        pass
    expect_equal((over.status, over.usage.output_tokens > 0), ("completed", True), "what is over")
    receipt = alice.get(f"/gateway/requests/{made.id}", cast_to=dict)
    tokens = (receipt["usage"]["input_tokens"], receipt["usage"]["output_tokens"])
    expect_equal(tokens, (over.usage.input_tokens, over.usage.output_tokens), "what is charged for")
    expect_equal(receipt["estimated"], False, "estimated")
    alice.responses.delete(made.id)
    endless = alice.responses.create(model=MODEL, input="sim:endless", background=True)
    expect_equal(alice.responses.cancel(endless.id).status, "cancelled", "what is cancelled")
    expect_equal(alice.get(f"/gateway/requests/{endless.id}", cast_to=dict)["state"], "cancelled", "state")
    # A stream that is left runs on, and is read on from there.
    with alice.responses.create(model=MODEL, input="sim:slow", background=True, stream=True) as stream:
        first = next(iter(stream))
    rest = alice.responses.retrieve(first.response.id, stream=True, starting_after=first.sequence_number)
    expect_equal([event.type for event in rest][-1], "response.completed", "the last event")
    receipt = alice.get(f"/gateway/requests/{first.response.id}", cast_to=dict)
    expect_equal((receipt["state"], receipt["estimated"]), ("completed", False), "the receipt of the stream")


def conversations(gateway):
    alice = client(gateway)
    made = alice.conversations.create(metadata={"topic": "x"})
    alice.conversations.items.create(made.id, items=[{"type": "message", "role": "user", "content": "hello"}])
    expect_equal(alice.conversations.retrieve(made.id).id, made.id, "id")
    ask = {"model": MODEL, "input": "hello", "conversation": made.id, "max_output_tokens": 100}
    expect(alice.responses.create(**ask).output_text, "no answer")
    alice.conversations.delete(made.id)
    refused(lambda: alice.conversations.retrieve(made.id), 404)


def moderations(gateway):
    answer = client(gateway).moderations.create(input="hello", model="omni-moderation-latest")
    expect(not answer.results[0].flagged, answer)


def images(gateway):
    alice = client(gateway)
    draw = {"model": "gpt-image-2", "prompt": "A cat", "size": "1024x1024", "quality": "low"}
    raw = alice.images.with_raw_response.generate(**draw)
    expect(raw.headers.get("x-gateway-cost"), "no cost")
    expect(raw.parse().data[0].b64_json, "no image")
    events = [event.type for event in alice.images.generate(**draw, stream=True)]
    expect_equal(events[-1], "image_generation.completed", "the last event")
    edited = alice.images.edit(**draw, image=[("a.png", bytes(200_000)), ("b.png", b"png")])
    expect_equal(edited.usage.input_tokens_details.image_tokens, 2 * 388, "image tokens")


def sound(gateway):
    alice = client(gateway)
    spoken = alice.audio.speech.create(model="tts-1", voice="alloy", input="hello")
    expect(spoken.read().startswith(b"ID3"), "no sound")
    recording = {"file": ("a.mp3", bytes(300_000))}  # long enough to go on while it comes
    heard = alice.audio.transcriptions.create(model="whisper-1", **recording)
    expect_equal((heard.text, heard.usage.seconds), ("Hello from afar.", 7), "what was heard")
    events = list(alice.audio.transcriptions.create(model="gpt-4o-transcribe", stream=True, **recording))
    expect_equal(events[-1].usage.output_tokens, 12, "tokens")
    translated = alice.audio.translations.create(model="whisper-1", response_format="verbose_json", **recording)
    expect_equal((translated.text, translated.duration), ("Hello from afar.", 6.25), "what was translated")
    refused(lambda: alice.audio.translations.create(model="whisper-1", **recording), 400)
    error = refused(lambda: alice.audio.transcriptions.create(model="whisper-1", response_format="srt", **recording), 400)
    expect_equal(error.param, "response_format", "param")
    refused(lambda: alice.images.create_variation(image=b"png"), 403)


CHECKS = [
    (f"openai-python: {check.__name__}", check)
    for check in (files, uploads, stored, background, conversations, moderations, images, sound)
] + [("openai-node: uploads", node("uploads"))]


def run(report, wanted):
    """With a gateway of its own: what is free has no row in the books that the other checks are held against."""
    checks = [(name, check) for name, check in CHECKS if wanted(name)]
    if not checks:
        return
    gateway = Gateway("endpoints")
    try:
        gateway.alice = gateway.user("alice", "1000")
        for name, check in checks:
            report.run(name, check, gateway)
        report.run("openai-python: other endpoints, ledger verify", lambda gateway: gateway.cli("ledger", "verify"), gateway)
    finally:
        gateway.stop()
