//! Upstreams that speak one of the two wire formats: clients of the other one get an answer of theirs, and pay what the
//! upstream counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use codex_gateway::simulator::{Playwright, Request, Script, Step, always};
use codex_gateway::store::usage_log::{Basis, State};
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL, chat, drain, events, exchange_of, response};
use crate::harness::{Builder, Harness};
use crate::price::{catalogue, expected_charge};
use crate::replay::{Recorded, recordings};

/// An upstream that only has chat completions.
fn chat_only() -> Builder {
    Harness::builder().upstream("wire = \"chat\"")
}

/// A chat stream of these deltas, which finishes for this reason, with its usage.
fn stream_of(deltas: &[Value], reason: &str) -> Script {
    let chunk = |delta: &Value| json!({"id": "chatcmpl-1", "model": MODEL, "choices": [{"index": 0, "delta": delta}]});
    let mut steps: Vec<Step> = deltas.iter().map(|delta| Step::data(&chunk(delta), 1)).collect();
    let finish =
        json!({"id": "chatcmpl-1", "model": MODEL, "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]});
    let usage = json!({"prompt_tokens": 1200, "completion_tokens": 34, "total_tokens": 1234,
        "prompt_tokens_details": {"cached_tokens": 1000}, "completion_tokens_details": {"reasoning_tokens": 12}});
    steps.push(Step::data(&finish, 0));
    steps.push(Step::data(
        &json!({"id": "chatcmpl-1", "model": MODEL, "choices": [], "usage": usage}),
        0,
    ));
    steps.push(Step::send("data: [DONE]\n\n"));
    Script::sse(steps)
}

/// A stream of the Responses API is as it has to be: numbered without a gap, each item added before anything is said of it,
/// done once, with the text that its pieces make; and one end, which repeats the items.
fn well_formed(what: &str, events: &[Value]) {
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap_or_default())
        .collect();
    for (number, event) in (0_u64..).zip(events) {
        assert_eq!(event["sequence_number"], number, "{what}: {event}");
    }
    assert_eq!(kinds[..2], ["response.created", "response.in_progress"], "{what}");
    let ends = ["response.completed", "response.incomplete", "response.failed"];
    let place = kinds.iter().position(|kind| ends.contains(kind));
    assert_eq!(
        place,
        Some(kinds.len() - 1),
        "{what}: one end, and nothing behind it: {kinds:?}"
    );
    let (mut added, mut done) = (Vec::new(), Vec::new());
    for (kind, event) in kinds.iter().zip(events) {
        let index = || usize::try_from(event["output_index"].as_u64().expect("an index")).expect("a place");
        match *kind {
            "response.output_item.added" => {
                assert_eq!(index(), added.len(), "{what}: {event}");
                added.push((event["item"]["id"].clone(), String::new()));
                done.push(Value::Null);
            }
            "response.output_item.done" => {
                let item = &event["item"];
                let (id, told) = &added[index()];
                assert_eq!((id, &done[index()]), (&item["id"], &Value::Null), "{what}: {event}");
                let part = &item["content"][0];
                let texts = [&item["arguments"], &item["input"], &part["text"], &part["refusal"]];
                let whole = texts.into_iter().find_map(Value::as_str).unwrap_or_default();
                assert_eq!(whole, told, "{what}: {event}");
                done[index()] = item.clone();
            }
            kind if kind.ends_with(".delta") => {
                let (id, told) = &mut added[index()];
                assert_eq!(*id, event["item_id"], "{what}: {event}");
                told.push_str(event["delta"].as_str().expect("text"));
            }
            _ => {}
        }
    }
    let (end, response) = (kinds[kinds.len() - 1], &events[events.len() - 1]["response"]);
    assert_eq!(
        format!("response.{}", response["status"].as_str().unwrap_or_default()),
        end,
        "{what}"
    );
    if end != "response.failed" {
        assert_eq!(response["output"], json!(done), "{what}");
    }
}

/// Asks for a stream, and gives its events and the exchange.
async fn streamed(client: &Client, body: &Value) -> (Vec<Value>, String) {
    let answer = client.send("/v1/responses", body).await;
    assert_eq!(answer.status(), 200, "{body}");
    let exchange = exchange_of(&answer);
    let (arrived, end) = drain(answer).await;
    end.expect("a clean end");
    (events(&arrived), exchange)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responses_call_at_a_chat_upstream_costs_what_that_counted() {
    let harness = chat_only().start().await;
    let price = catalogue("openai", MODEL);
    let (streamed, of_stream) = streamed(&harness.client, &response("Hello there", &json!({"stream": true}))).await;
    well_formed("stream", &streamed);
    let whole = harness.client.respond("Hello there").await.expect(200);
    let response = whole.json();
    assert_eq!(
        (&response["object"], &response["status"]),
        (&json!("response"), &json!("completed"))
    );
    let text = |response: &Value| response["output"][0]["content"][0]["text"].clone();
    assert_eq!(text(&streamed[streamed.len() - 1]["response"]), text(&response));
    let served = harness.served();
    assert!(
        served.iter().all(|served| served.path == "/v1/chat/completions"),
        "{served:?}"
    );
    for (served, exchange) in served.iter().zip([of_stream.as_str(), whole.exchange()]) {
        let used = served.usage.as_ref().expect("a usage");
        let row = harness.receipt(exchange);
        assert_eq!((row.state, row.basis), (State::Completed, Basis::Reported));
        assert_eq!(
            i128::from(row.charge.nanos()),
            expected_charge(used, &price, "1"),
            "{used:?}"
        );
        assert_eq!(row.endpoint.path(), "/responses");
    }
    let used = served[1].usage.as_ref().expect("a usage");
    assert_eq!(
        (&response["usage"]["input_tokens"], &response["usage"]["output_tokens"]),
        (&json!(used.input), &json!(used.output))
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_of_codex_gets_its_tools_back_as_they_were() {
    let call = |index: u64, name: &str, arguments: &str| json!({"index": index, "id": format!("call_{index}"), "type": "function", "function": {"name": name, "arguments": arguments}});
    let more =
        |index: u64, arguments: &str| json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]});
    let deltas = [
        json!({"role": "assistant", "reasoning_content": "Think"}),
        json!({"content": "I'll "}),
        json!({"content": "edit."}),
        json!({"tool_calls": [call(0, "apply_patch", "{\"input\":\"*** Begin")]}),
        more(0, " Patch\\n*** End Patch\"}"),
        json!({"tool_calls": [call(1, "clock__curr_time", "{}")]}),
    ];
    let harness = chat_only()
        .playwright(always(stream_of(&deltas, "tool_calls")))
        .start()
        .await;
    let body = json!({
        "model": MODEL, "stream": true, "store": false, "include": ["reasoning.encrypted_content"], "tool_choice": "auto",
        "parallel_tool_calls": true, "prompt_cache_key": "thread", "client_metadata": {"session_id": "s"},
        "input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Edit"}]}],
        "tools": [
            {"type": "custom", "name": "apply_patch", "description": "Edits.", "format": {"type": "text"}},
            {"type": "namespace", "name": "clock", "description": "Time.", "tools": [
                {"type": "function", "name": "curr_time", "strict": false, "parameters": {"type": "object", "properties": {}}}]},
            {"type": "web_search", "external_web_access": true},
        ],
    });
    let request = harness.client.request(reqwest::Method::POST, "/v1/responses");
    let answer = request
        .header("originator", "codex_exec")
        .body(body.to_string())
        .send()
        .await
        .expect("an answer");
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["x-gateway-left-out"], "web_search");
    let (arrived, end) = drain(answer).await;
    end.expect("a clean end");
    let events = events(&arrived);
    well_formed("codex", &events);
    let response = &events[events.len() - 1]["response"];
    let told: Vec<(&Value, &Value, &Value, &Value)> = response["output"]
        .as_array()
        .expect("items")
        .iter()
        .map(|item| (&item["type"], &item["name"], &item["namespace"], &item["call_id"]))
        .collect();
    let none = &Value::Null;
    assert_eq!(
        told,
        [
            (&json!("reasoning"), none, none, none),
            (&json!("message"), none, none, none),
            (
                &json!("custom_tool_call"),
                &json!("apply_patch"),
                none,
                &json!("call_0")
            ),
            (
                &json!("function_call"),
                &json!("curr_time"),
                &json!("clock"),
                &json!("call_1")
            ),
        ]
    );
    assert_eq!(response["output"][2]["input"], "*** Begin Patch\n*** End Patch");
    assert_eq!(
        response["usage"],
        json!({"input_tokens": 1200, "output_tokens": 34, "total_tokens": 1234,
        "input_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 12}})
    );
    let sent: Value = serde_json::from_slice(&harness.served()[0].body).expect("JSON");
    assert_eq!(sent["stream_options"], json!({"include_usage": true}), "{sent}");
    assert_eq!(sent["tools"].as_array().map(Vec::len), Some(2), "{sent}");

    // Any other client means the search that it offers.
    let refused = harness.client.post("/v1/responses", &body).await.expect(400);
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["param"], &error["code"]),
        (&json!("tools[2]"), &json!("unsupported_parameter"))
    );
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.contains("`web_search`")),
        "{error}"
    );
    assert_eq!(harness.served().len(), 1, "it was not sent");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_upstream_that_has_the_endpoint_takes_what_cannot_be_translated() {
    let harness = Harness::builder()
        .second(codex_gateway::simulator::playwright::standard(Default::default()))
        .upstream("wire = \"chat\"")
        .of_second("wire = \"responses\"")
        .start()
        .await;
    let grammar = json!({"text": {"format": {"type": "grammar", "definition": "x"}}});
    harness
        .client
        .post("/v1/responses", &response("Hello", &grammar))
        .await
        .expect(200);
    harness.client.respond("Hello").await.expect(200);
    let second = harness.second.as_ref().expect("a second upstream").served();
    assert_eq!((second.len(), &*second[0].path), (1, "/v1/responses"));
    assert_eq!(harness.served()[0].path, "/v1/chat/completions");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_is_made_short_by_a_summary_of_the_models() {
    let harness = chat_only().start().await;
    let user = json!({"type": "message", "role": "user", "content": "Hello"});
    let body = json!({"model": MODEL, "input": [user]});
    let document = harness.client.post("/v1/responses/compact", &body).await.expect(200);
    let row = harness.receipt(document.exchange());
    assert_eq!(
        (row.endpoint.path(), row.state),
        ("/responses/compact", State::Completed)
    );
    let document = document.json();
    assert_eq!(
        (&document["object"], &document["output"][0]),
        (&json!("response.compaction"), &user)
    );

    let triggered = json!({"model": MODEL, "stream": true, "input": [user, {"type": "compaction_trigger"}]});
    let (events, _) = streamed(&harness.client, &triggered).await;
    let output = &events[events.len() - 1]["response"]["output"];
    assert_eq!(output.as_array().map(Vec::len), Some(1), "{output}");
    for item in [&document["output"][1], &output[0]] {
        assert_eq!(item["type"], "compaction");
        let next = json!({"model": MODEL, "input": [user, item, user]});
        harness.client.post("/v1/responses", &next).await.expect(200);
        let sent: Value = serde_json::from_slice(&harness.served().last().expect("a call").body).expect("JSON");
        let told = sent["messages"][1]["content"].as_str().expect("text");
        assert!(told.contains("This is a simulated answer"), "{told}");
    }
    let price = catalogue("openai", MODEL);
    let served = harness.served();
    let expected = served.iter().filter_map(|served| served.usage.as_ref());
    let expected: i128 = expected.map(|usage| expected_charge(usage, &price, "1")).sum();
    let books = harness.finish().await;
    assert_eq!((served.len(), books.charged()), (4, expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_stream_that_breaks_off_fails_the_response() {
    let deltas = [
        json!({"content": "One "}),
        json!({"content": "two "}),
        json!({"content": "three"}),
    ];
    let script = stream_of(&deltas, "stop").cut(2, Step::Break);
    let harness = chat_only().playwright(always(script)).start().await;
    let (events, exchange) = streamed(&harness.client, &response("Count", &json!({"stream": true}))).await;
    well_formed("broken", &events);
    let response = &events[events.len() - 1]["response"];
    assert_eq!(
        (&response["status"], &response["error"]["code"]),
        (&json!("failed"), &json!("server_error"))
    );
    let row = harness.receipt(&exchange);
    assert_eq!((row.state, row.basis), (State::Broken, Basis::Estimated));
    assert!(row.charge.nanos() > 0);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_kept_alive_while_a_chat_upstream_sends_nothing_but_comments() {
    let comment = || [Step::send(": keep-alive\n\n"), Step::Pause(Duration::from_secs(6))];
    let mut steps = [comment(), comment(), comment()].concat();
    let hi = json!({"choices": [{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop"}]});
    steps.push(Step::data(&hi, 1));
    steps.push(Step::send("data: [DONE]\n\n"));
    let script = Script::sse(steps);
    let harness = chat_only().playwright(always(script)).start().await;
    let (events, _) = streamed(&harness.client, &response("Hello", &json!({"stream": true}))).await;
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(
        kinds[..4],
        [
            "response.created",
            "response.in_progress",
            "keepalive",
            "response.output_item.added"
        ]
    );
    assert_eq!(events[0]["response"]["model"], MODEL);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_stream_beyond_its_limit_ends_with_what_it_said() {
    let deltas: Vec<Value> = (0..400)
        .map(|number| json!({"content": format!("word{number} ")}))
        .collect();
    let harness = chat_only().playwright(always(stream_of(&deltas, "stop"))).start().await;
    let body = response("Go on", &json!({"stream": true, "max_output_tokens": 16}));
    let (events, exchange) = streamed(&harness.client, &body).await;
    well_formed("limited", &events);
    let response = &events[events.len() - 1]["response"];
    assert_eq!(response["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(harness.receipt(&exchange).state, State::Limited);
    let sent: Value = serde_json::from_slice(&harness.served()[0].body).expect("JSON");
    assert_eq!(sent["max_tokens"], 16, "{sent}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_body_that_is_no_answer_is_the_upstreams_fault() {
    let script = Script::json(StatusCode::OK, &json!({"hello": "there"}));
    let harness = chat_only().playwright(always(script)).start().await;
    let answer = harness.client.respond("Hello").await.expect(503);
    assert_eq!(harness.receipt(answer.exchange()).charge.nanos(), 0);
    harness.finish().await;
}

/// An upstream that only has the Responses API.
fn responses_only() -> Builder {
    Harness::builder().upstream("wire = \"responses\"")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chat_call_at_a_responses_upstream_costs_what_that_counted() {
    let harness = responses_only().start().await;
    let price = catalogue("openai", MODEL);
    let whole = harness.client.chat("Hello there").await.expect(200);
    let completion = whole.json();
    assert_eq!(completion["object"], "chat.completion");
    let text = completion["choices"][0]["message"]["content"].clone();
    let mut exchanges = vec![whole.exchange().to_owned()];
    for asked in [false, true] {
        let more = json!({"stream": true, "stream_options": {"include_usage": asked}});
        let answer = harness
            .client
            .send("/v1/chat/completions", &chat("Hello there", &more))
            .await;
        exchanges.push(exchange_of(&answer));
        let (arrived, end) = drain(answer).await;
        end.expect("a clean end");
        assert!(arrived.ends_with(b"data: [DONE]\n\n"));
        let chunks = events(&arrived);
        let pieces = chunks
            .iter()
            .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
        assert_eq!(json!(pieces.collect::<String>()), text);
        let counted = chunks.iter().filter(|chunk| chunk["usage"].is_object()).count();
        assert_eq!(counted, usize::from(asked), "{chunks:?}");
    }
    let served = harness.served();
    assert!(served.iter().all(|served| served.path == "/v1/responses"), "{served:?}");
    for (served, exchange) in served.iter().zip(&exchanges) {
        let used = served.usage.as_ref().expect("a usage");
        let row = harness.receipt(exchange);
        assert_eq!((row.state, row.basis), (State::Completed, Basis::Reported));
        assert_eq!(
            i128::from(row.charge.nanos()),
            expected_charge(used, &price, "1"),
            "{used:?}"
        );
        assert_eq!(row.endpoint.path(), "/chat/completions");
    }
    let refused = chat("Hello", &json!({"n": 2}));
    let refused = harness.client.post("/v1/chat/completions", &refused).await.expect(400);
    assert_eq!(refused.json()["error"]["param"], "n");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_responses_stream_that_breaks_off_is_an_error_in_chat() {
    let event = |data: &Value| Step::event(data, 1);
    let steps = vec![
        event(
            &json!({"type": "response.created", "response": {"id": "resp_1", "model": MODEL, "status": "in_progress"}}),
        ),
        event(
            &json!({"type": "response.output_item.added", "output_index": 0, "item": {"id": "msg_1", "type": "message", "role": "assistant", "content": []}}),
        ),
        event(
            &json!({"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "item_id": "msg_1", "delta": "One two"}),
        ),
        Step::Break,
    ];
    let harness = responses_only().playwright(always(Script::sse(steps))).start().await;
    let answer = harness
        .client
        .send("/v1/chat/completions", &chat("Count", &json!({"stream": true})))
        .await;
    let exchange = exchange_of(&answer);
    let (arrived, end) = drain(answer).await;
    end.expect("a clean end");
    let arrived = String::from_utf8_lossy(&arrived).into_owned();
    assert!(
        arrived.contains("One two") && arrived.contains("\"error\"") && !arrived.contains("[DONE]"),
        "{arrived}"
    );
    let row = harness.receipt(&exchange);
    assert_eq!((row.state, row.basis), (State::Broken, Basis::Estimated));
    harness.finish().await;
}

/// Ollama's settings: no key, and nothing to pay.
#[tokio::test(flavor = "multi_thread")]
async fn a_local_model_is_usable_at_once() {
    let harness = Harness::builder()
        .balance("0")
        .vendor_with("free", &["*"], "wire = \"chat\"")
        .tweak(|config| config.upstreams[0].api_key = None)
        .start()
        .await;
    let body = json!({"model": "qwen3:8b", "input": "Hello", "stream": true});
    let (events, exchange) = streamed(&harness.client, &body).await;
    well_formed("local", &events);
    assert_eq!(events[events.len() - 1]["type"], "response.completed");
    let served = harness.served();
    assert_eq!(
        (&*served[0].path, served[0].headers.get("authorization")),
        ("/v1/chat/completions", None)
    );
    assert_eq!(harness.receipt(&exchange).charge.nanos(), 0);
    harness.finish().await;
}

/// What a recorded chat stream says, by its own bytes alone: thoughts, text, and calls with their arguments.
fn said(recorded: &Recorded) -> (String, String, Vec<(String, String)>) {
    let (mut thoughts, mut text) = (String::new(), String::new());
    let mut calls: Vec<(Value, String, String)> = Vec::new();
    for chunk in events(&recorded.bytes) {
        let delta = &chunk["choices"][0]["delta"];
        let first = |names: [&str; 2]| {
            names
                .iter()
                .find_map(|name| delta[*name].as_str().filter(|text| !text.is_empty()))
        };
        thoughts.push_str(first(["reasoning_content", "reasoning"]).unwrap_or_default());
        text.push_str(first(["content", "refusal"]).unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            if !calls.iter().any(|(index, ..)| *index == call["index"]) {
                calls.push((
                    call["index"].clone(),
                    function["name"].as_str().expect("a name").to_owned(),
                    String::new(),
                ));
            }
            let known = calls
                .iter_mut()
                .find(|(index, ..)| *index == call["index"])
                .expect("a call");
            known.2.push_str(function["arguments"].as_str().unwrap_or_default());
        }
    }
    (
        thoughts,
        text,
        calls
            .into_iter()
            .map(|(_, name, arguments)| (name, arguments))
            .collect(),
    )
}

/// The same, of the items of a response.
fn items_of(output: &Value) -> (String, String, Vec<(String, String)>) {
    let (mut thoughts, mut text, mut calls) = (String::new(), String::new(), Vec::new());
    for item in output.as_array().expect("items") {
        let part = &item["content"][0];
        match item["type"].as_str().expect("a type") {
            "reasoning" => thoughts.push_str(part["text"].as_str().expect("text")),
            "message" => text.push_str(part["text"].as_str().or(part["refusal"].as_str()).expect("text")),
            _ => calls.push((
                item["name"].as_str().expect("a name").to_owned(),
                item["arguments"].as_str().expect("arguments").to_owned(),
            )),
        }
    }
    (thoughts, text, calls)
}

/// The upstream plays the recording that a header names, in pieces of so many bytes.
fn playing(recordings: &Arc<Vec<Recorded>>) -> Playwright {
    let recordings = Arc::clone(recordings);
    Arc::new(move |request: &Request| {
        let id = request.headers["x-client-request-id"].to_str().expect("text");
        let (number, length) = id.split_once('/').expect("a recording and a length");
        let recorded = &recordings[number.parse::<usize>().expect("a number")];
        assert_eq!(request.path, "/v1/chat/completions");
        let length: usize = length.parse().expect("a length");
        let pieces = recorded
            .bytes
            .chunks(length)
            .map(|piece| Step::send(Bytes::copy_from_slice(piece)));
        Script::sse(pieces.collect())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_chat_stream_is_a_turn_of_codex() {
    let mut recordings = recordings();
    recordings.retain(|recorded| recorded.path == "/chat/completions");
    if recordings.is_empty() {
        return println!("fixtures absent");
    }
    let recordings = Arc::new(recordings);
    let mut builder = chat_only().balance("1000000").playwright(playing(&recordings));
    for (list, models) in [
        ("xai", "grok-*"),
        ("deepseek", "deepseek-*"),
        ("moonshot", "kimi-*"),
        ("groq", "openai/gpt-oss-*"),
        ("zai", "glm-*"),
        ("free", "free-*"),
    ] {
        builder = builder.vendor_with(list, &[models], "wire = \"chat\"");
    }
    let harness = builder.start().await;
    for (number, recorded) in recordings.iter().enumerate() {
        for length in [recorded.bytes.len(), 7] {
            let file = format!("{} in {length}", recorded.file);
            let body = json!({"model": recorded.model, "stream": true, "input": "Hello"});
            let request = harness.client.request(reqwest::Method::POST, "/v1/responses");
            let request = request
                .header("x-client-request-id", format!("{number}/{length}"))
                .body(body.to_string());
            let answer = request.send().await.expect("the gateway answers");
            let exchange = exchange_of(&answer);
            let answer = Answer::of(answer).await.expect(200);
            let events = events(&answer.body);
            well_formed(&file, &events);
            let response = &events[events.len() - 1]["response"];
            assert_eq!(items_of(&response["output"]), said(recorded), "{file}");
            let failed = recorded.file.contains("error-midstream");
            assert_eq!(response["status"] == "failed", failed, "{file}: {response}");
            let row = harness.receipt(&exchange);
            assert_eq!(row.state == State::Failed, failed, "{file}");
            if row.basis == Basis::Reported {
                assert_eq!(
                    response["usage"]["input_tokens"],
                    row.usage.input_tokens.get(),
                    "{file}"
                );
                assert_eq!(
                    response["usage"]["output_tokens"],
                    row.usage.output_tokens.get(),
                    "{file}"
                );
            }
        }
    }
    println!("{} recorded chat streams", recordings.len());
    harness.finish().await;
}
