"""openai-python against the gateway."""

import time

import openai
import pydantic

import test_books
from gateway import Gateway, expect, expect_equal
from tap import Tap

MODEL = "gpt-6.1-sol"
WEATHER = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}


def client(gateway, key=None, url=None, **more):
    return openai.OpenAI(base_url=(url or gateway.url) + "/v1", api_key=key or gateway.alice, **more)


def says(text, **more):
    return {"model": MODEL, "messages": [{"role": "user", "content": text}], **more}


def chat(gateway):
    raw = client(gateway).chat.completions.with_raw_response.create(**says("hello"))
    answer = raw.parse()
    expect("You said" in answer.choices[0].message.content, answer)
    expect(answer.usage.total_tokens > 0, "no usage")
    for header in ("x-request-id", "x-gateway-cost", "x-gateway-balance"):
        expect(raw.headers.get(header), f"no {header}")


def chat_stream(gateway):
    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client(gateway).chat.completions.create(**says("hello", **with_usage)))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    expect("You said" in text, text)
    expect(chunks[-1].usage.completion_tokens > 0, "the last chunk has no usage")
    chunks = list(client(gateway).chat.completions.create(**says("hello", stream=True)))
    expect(all(chunk.choices and chunk.usage is None for chunk in chunks), "a usage chunk that was not asked for")


def chat_tools(gateway):
    tools = [{"type": "function", "function": {"name": "weather", "parameters": WEATHER}}]
    create = client(gateway).chat.completions.create
    answer = create(**says("sim:tools what is the weather?", tools=tools)).choices[0]
    expect_equal(answer.finish_reason, "tool_calls", "finish_reason")
    call = answer.message.tool_calls[0]
    expect_equal(call.function.name, "weather", "tool")
    messages = says("sim:tools what is the weather?")["messages"] + [
        answer.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny-42"},
    ]
    answer = create(model=MODEL, messages=messages, tools=tools).choices[0]
    expect("sunny-42" in answer.message.content, answer)


def chat_helper(gateway):
    """The SDK's own accumulator: it checks indices, roles and finish reasons, and parses what has a schema."""
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER, "strict": True}}
    for more in ({"response_format": Answer}, {"tools": [tool]}):
        text = "sim:tools weather?" if "tools" in more else "sim:reasoning weather?"
        with client(gateway).chat.completions.stream(**says(text), **more) as stream:
            events = [event.type for event in stream]
            final = stream.get_final_completion()
        choice = final.choices[0]
        if "tools" in more:
            expect_equal(choice.finish_reason, "tool_calls", "finish_reason")
            expect("city" in choice.message.tool_calls[0].function.parsed_arguments, choice)
            expect("tool_calls.function.arguments.done" in events, events)
        else:
            expect_equal(choice.finish_reason, "stop", "finish_reason")
            expect(isinstance(choice.message.parsed, Answer), choice)
            expect("content.done" in events, events)


def chat_over_responses(_gateway):
    """All of chat through an upstream that speaks only the Responses API, charged as it counts."""
    gateway = Gateway("responses", upstream='wire = "responses"')
    try:
        test_books.prepare(gateway)
        for check in (chat, chat_stream, chat_tools, structured, chat_helper):
            check(gateway)
        paths = {exchange.path for exchange in gateway.tap.posts()}
        expect_equal(paths, {"/v1/responses"}, "paths at the upstream")
        test_books.every_charge_is_what_the_upstream_counted(gateway, least=8)
        refused(gateway, openai.BadRequestError, gateway.alice, MODEL, "unsupported_parameter", 1, stop=["END"])
        gateway.cli("ledger", "verify")
    finally:
        gateway.stop()


def organization(gateway):
    """What an operator's tools ask of OpenAI: usage and costs by time, through the SDK's own pages."""
    client(gateway).chat.completions.create(**says("hello"))
    usage = client(gateway, admin_api_key=gateway.alice).admin.organization.usage
    day = int(time.time()) // 86_400 * 86_400 - 86_400
    page = usage.completions(start_time=day, group_by=["model", "api_key_id"], bucket_width="1h", limit=168)
    results = [result for bucket in page.data for result in bucket.results]
    expect(MODEL in [result.model for result in results], results)
    expect(all(result.input_tokens and result.num_model_requests and result.api_key_id for result in results), results)
    first = usage.costs(start_time=day, limit=1)
    expect(first.has_more and first.next_page, first)
    page = usage.costs(start_time=day, group_by=["line_item"], page=first.next_page)
    results = [result for bucket in page.data for result in bucket.results]
    expect(any(result.line_item == MODEL and result.amount.value > 0 for result in results), results)


class Answer(pydantic.BaseModel):
    city: str
    degrees: int


def structured(gateway):
    answer = client(gateway).chat.completions.parse(**says("weather?"), response_format=Answer).choices[0]
    expect(isinstance(answer.message.parsed, Answer), answer)
    answer = client(gateway).responses.parse(model=MODEL, input="weather?", text_format=Answer)
    expect(isinstance(answer.output_parsed, Answer), answer)


def embeddings(gateway):
    answer = client(gateway).embeddings.create(model="text-embedding-3-small", input=["a", "b c"])
    expect_equal(len(answer.data), 2, "vectors")
    expect(len(answer.data[0].embedding) > 1 and answer.usage.prompt_tokens > 0, answer.usage)


def responses(gateway):
    answer = client(gateway).responses.create(model=MODEL, input="hello")
    expect("You said" in answer.output_text and answer.usage.total_tokens > 0, answer)
    answer = client(gateway).responses.create(model=MODEL, input="sim:reasoning hello")
    expect(answer.usage.output_tokens_details.reasoning_tokens > 0, answer.usage)


def responses_stream(gateway):
    with client(gateway).responses.stream(model=MODEL, input="hello") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    expect(text and text == final.output_text, (text, final))
    expect(final.usage.output_tokens > 0, "no usage")


def chat_stream_helper(gateway):
    with client(gateway).chat.completions.stream(**says("hello")) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    expect("You said" in text and final.choices[0].message.content == text, (text, final))


def structured_streams(gateway):
    """The typed helpers of both endpoints, on a stream."""
    with client(gateway).chat.completions.stream(**says("weather?"), response_format=Answer) as stream:
        expect(isinstance(stream.get_final_completion().choices[0].message.parsed, Answer), "chat")
    with client(gateway).responses.stream(model=MODEL, input="weather?", text_format=Answer) as stream:
        expect(isinstance(stream.get_final_response().output_parsed, Answer), "responses")


def function_stream(gateway):
    """The events of a call's arguments add up to the call."""
    tools = [{"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}]
    with client(gateway).responses.stream(model=MODEL, input="sim:tools what is the weather?", tools=tools) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.function_call_arguments.delta")
        (call,) = stream.get_final_response().output
    expect_equal((call.name, call.arguments), ("weather", text), "call")


def error_classes(gateway):
    """Each status by its class; those that may pass are tried again as often as the client does, no other is."""
    for error, key, model, code in [
        (openai.BadRequestError, gateway.alice, 5, "invalid_type"),
        (openai.PermissionDeniedError, gateway.suspended, MODEL, "user_suspended"),
        (openai.NotFoundError, gateway.alice, "gpt-0-nonsense", "model_not_found"),
    ]:
        refused(gateway, error, key, model, code, 1)
    try:
        client(gateway, max_retries=0).chat.completions.create(**says("sim:500"))
    except openai.InternalServerError as raised:
        expect_equal(raised.code, "upstream_error", "code")
    else:
        expect(False, "it was answered")


def models(gateway):
    names = [model.id for model in client(gateway).models.list()]
    expect(MODEL in names and "text-embedding-3-small" in names, names)
    expect_equal(client(gateway).models.retrieve(MODEL).id, MODEL, "model")


def refused(gateway, error, key, model, code, requests, call="chat", **more):
    """The class that the client raises, the code in it, and how often it asked."""
    tap = Tap(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])))
    api = client(gateway, key, tap.url)
    try:
        if call == "chat":
            api.chat.completions.create(**{**says("hello", **more), "model": model})
        else:
            api.responses.create(model=model, input="hello")
    except openai.APIStatusError as raised:
        expect(type(raised) is error, f"{type(raised).__name__}: {raised}")
        expect_equal(raised.code, code, "code")
        expect(raised.request_id, "no request id")
    else:
        expect(False, "it was answered")
    finally:
        tap.close()
    expect_equal(len(tap.posts()), requests, "requests")


def out_of_money(gateway):
    for call in ("chat", "responses"):
        refused(gateway, openai.RateLimitError, gateway.poor, MODEL, "insufficient_quota", 1, call)


def bad_key(gateway):
    for key in ("sk-gw-nonsense", gateway.alice[:-1] + ("a" if gateway.alice[-1] != "a" else "b"), "sk-proj-abc"):
        refused(gateway, openai.AuthenticationError, key, MODEL, "invalid_api_key", 1)


def rate_limited(gateway):
    """Beyond a limit the client waits as long as it is told, once, and its own second try succeeds."""
    tap = Tap(("127.0.0.1", int(gateway.url.rsplit(":", 1)[1])))
    api = client(gateway, gateway.key("alice", "--rpm", "20"), tap.url, max_retries=1)
    try:
        # On a slow machine some come back meanwhile: one every three seconds.
        while not (limited := [post for post in tap.posts() if post.status == 429]) and len(tap.posts()) < 100:
            headers = api.chat.completions.with_raw_response.create(**says("hello")).headers
            expect_equal(headers.get("x-ratelimit-limit-requests"), "20", "limit")
    finally:
        tap.close()
    expect_equal([post.status for post in tap.posts()[-2:]], [429, 200], "the last two answers")
    wait = limited[0].answer_headers.get("retry-after")
    expect(wait in ("1", "2", "3"), f"Retry-After: {wait}")


def unknown_model(gateway):
    for call in ("chat", "responses"):
        refused(gateway, openai.NotFoundError, gateway.alice, "gpt-0-nonsense", "model_not_found", 1, call)


def limited_chat(gateway):
    """The simulated model ignores its limit; the gateway ends the stream, and the client takes it for an end."""
    chunks = list(client(gateway).chat.completions.create(**says("sim:overrun", stream=True, max_completion_tokens=200)))
    chunks = [chunk for chunk in chunks if chunk.choices]
    expect_equal(chunks[-1].choices[0].finish_reason, "length", "finish_reason")
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks).split()
    expect(200 <= len(words) <= 200 + 64, f"{len(words)} words for a limit of 200")


def limited_responses(gateway):
    stream = client(gateway).responses.create(model=MODEL, input="sim:overrun", stream=True, max_output_tokens=200)
    events = list(stream)
    expect_equal(events[-1].type, "response.incomplete", "last event")
    expect_equal(events[-1].response.incomplete_details.reason, "max_output_tokens", "reason")
    words = "".join(event.delta for event in events if event.type == "response.output_text.delta").split()
    expect(200 <= len(words) <= 200 + 64, f"{len(words)} words for a limit of 200")


CHECKS = [
    ("openai-python: chat", chat),
    ("openai-python: chat, streamed", chat_stream),
    ("openai-python: chat with tools", chat_tools),
    ("openai-python: structured output", structured),
    ("openai-python: chat, by the streaming helper", chat_helper),
    ("openai-python: chat over an upstream with responses only", chat_over_responses),
    ("openai-python: embeddings", embeddings),
    ("openai-python: responses", responses),
    ("openai-python: responses, streamed", responses_stream),
    ("openai-python: chat, streamed by its helper", chat_stream_helper),
    ("openai-python: structured output, streamed", structured_streams),
    ("openai-python: a function call, streamed", function_stream),
    ("openai-python: error classes", error_classes),
    ("openai-python: models", models),
    ("openai-python: an organization's usage and costs", organization),
    ("openai-python: out of money is one request", out_of_money),
    ("openai-python: a bad key", bad_key),
    ("openai-python: beyond a rate limit it tries again, and succeeds", rate_limited),
    ("openai-python: an unknown model", unknown_model),
    ("openai-python: a chat stream beyond its limit", limited_chat),
    ("openai-python: a responses stream beyond its limit", limited_responses),
]
