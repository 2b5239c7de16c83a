//! Chat clients over an upstream that speaks only the Responses API.

use std::time::Duration;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Playwright, Script, ServedUsage, Step, always};
use codex_gateway::store::usage_log::{Basis, State};
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::{MODEL, chat, drain, events, exchange_of};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge};

const PATH: &str = "/v1/chat/completions";

/// A gateway whose only upstream has no chat completions.
async fn start(playwright: Playwright) -> Harness {
    let builder = Harness::builder().upstream("wire = \"responses\"");
    builder.playwright(playwright).start().await
}

async fn streamed(harness: &Harness, body: &Value) -> Vec<u8> {
    let (arrived, end) = drain(harness.client.send(PATH, body).await).await;
    end.expect("a clean end");
    arrived
}

/// The texts of a stream's deltas.
fn said(chunks: &[Value], name: &str) -> String {
    let deltas = chunks.iter().map(|chunk| &chunk["choices"][0]["delta"][name]);
    deltas.filter_map(Value::as_str).collect()
}

fn is_done(stream: &[u8]) -> bool {
    stream.ends_with(b"data: [DONE]\n\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_answered_in_chat_and_charged_by_what_was_used() {
    let harness = start(standard(Pace::default())).await;
    let whole = harness
        .client
        .post(PATH, &chat("sim:reasoning Hello", &json!({})))
        .await
        .expect(200);
    let text = {
        let body = whole.json();
        assert_eq!(body["object"], "chat.completion");
        let usage = &body["usage"];
        assert!(
            usage["completion_tokens_details"]["reasoning_tokens"].as_u64() > Some(0),
            "{usage}"
        );
        let choice = &body["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["role"]),
            (&json!("stop"), &json!("assistant"))
        );
        assert_eq!(choice["message"]["reasoning_content"], "Thinking it over");
        choice["message"]["content"].as_str().expect("a text").to_owned()
    };
    assert!(text.contains("You said"), "{text}");
    let mut lengths = Vec::new();
    for options in [json!({}), json!({"stream_options": {"include_usage": true}})] {
        let mut body = chat("sim:reasoning Hello", &json!({"stream": true}));
        body.as_object_mut()
            .expect("an object")
            .extend(options.as_object().cloned().expect("an object"));
        let arrived = streamed(&harness, &body).await;
        let chunks = events(&arrived);
        assert_eq!(
            (said(&chunks, "content"), said(&chunks, "reasoning_content")),
            (text.clone(), "Thinking it over".into())
        );
        assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
        assert!(is_done(&arrived));
        let asked = options.get("stream_options").is_some();
        let with_usage = chunks.iter().filter(|chunk| chunk["usage"].is_object()).count();
        assert_eq!(with_usage, usize::from(asked), "usage comes to who asks for it");
        assert_eq!(chunks.iter().any(|chunk| chunk.get("usage").is_some()), asked);
        lengths.push(chunks.len());
    }
    assert_eq!(lengths[1], lengths[0] + 1);
    let served = harness.served();
    for served in &served {
        assert_eq!(served.path, "/v1/responses");
        let body: Value = serde_json::from_slice(&served.body).expect("JSON");
        assert_eq!((&body["store"], &body["messages"]), (&json!(false), &Value::Null));
    }
    let price = catalogue("openai", MODEL);
    let expected = served.iter().filter_map(|served| served.usage.as_ref());
    let expected: i128 = expected.map(|usage| expected_charge(usage, &price, "1")).sum();
    let books = harness.finish().await;
    assert_eq!((books.exchanges.len(), books.charged()), (3, expected));
    let priced = books
        .exchanges
        .iter()
        .all(|row| (row.state, row.basis) == (State::Completed, Basis::Reported));
    assert!(priced, "{:?}", books.exchanges);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_are_called_and_their_answers_read() {
    let harness = start(standard(Pace::default())).await;
    let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    let tools = json!([
        {"type": "function", "function": {"name": "weather", "parameters": schema}},
        {"type": "custom", "custom": {"name": "patch"}},
    ]);
    let asked = json!({"tools": tools, "stream": true});
    let arrived = streamed(&harness, &chat("sim:tools What is the weather?", &asked)).await;
    let chunks = events(&arrived);
    let calls = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].as_array());
    let calls: Vec<Value> = calls.flatten().cloned().collect();
    assert!(calls.iter().all(|call| call["index"] == 0), "{calls:?}");
    assert_eq!(
        (&calls[0]["type"], &calls[0]["function"]["name"]),
        (&json!("function"), &json!("weather"))
    );
    let arguments = calls.iter().filter_map(|call| call["function"]["arguments"].as_str());
    let arguments: String = arguments.collect();
    let read: Value = serde_json::from_str(&arguments).expect("JSON");
    assert!(read["city"].is_string(), "{arguments}");
    assert_eq!(chunks[chunks.len() - 1]["choices"][0]["finish_reason"], "tool_calls");
    let choice = json!({"type": "custom", "custom": {"name": "patch"}});
    let custom = chat("What is the weather?", &json!({"tools": tools, "tool_choice": choice}));
    let custom = harness.client.post(PATH, &custom).await.expect(200).json();
    let call = &custom["choices"][0]["message"]["tool_calls"][0];
    assert_eq!(
        (&call["type"], &call["custom"]["name"]),
        (&json!("custom"), &json!("patch"))
    );
    let mut again = chat("What is the weather?", &json!({"tools": tools}));
    let messages = again["messages"].as_array_mut().expect("messages");
    messages.push(custom["choices"][0]["message"].clone());
    messages.push(json!({"role": "tool", "tool_call_id": call["id"], "content": "sunny-42"}));
    let answer = harness.client.post(PATH, &again).await.expect(200).json();
    let text = answer["choices"][0]["message"]["content"].as_str().expect("a text");
    assert!(text.contains("sunny-42"), "{text}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_translated_stream_leaves_after_its_charge_is_durable() {
    let harness = start(standard(Pace::default())).await;
    let mut answer = harness
        .client
        .send(PATH, &chat("Hello", &json!({"stream": true})))
        .await;
    let id = exchange_of(&answer);
    let mut arrived = Vec::new();
    // The reason why it finished belongs to the end, too: all of it is made of the upstream's last event.
    while !String::from_utf8_lossy(&arrived).contains("\"finish_reason\":\"") {
        let piece = answer.chunk().await.expect("a piece").expect("not the end");
        arrived.extend_from_slice(&piece);
    }
    assert_eq!(harness.receipt(&id).state, State::Completed);
    assert_eq!(harness.user().held.nanos(), 0);
    drain(answer).await.1.expect("a clean end");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_or_fails_is_never_made_whole() {
    let harness = start(standard(Pace::default())).await;
    let mut ids = Vec::new();
    for (play, state) in [
        ("sim:cut", State::Broken),
        ("sim:break", State::Broken),
        ("sim:eof", State::Broken),
        ("sim:error", State::Failed),
    ] {
        let answer = harness.client.send(PATH, &chat(play, &json!({"stream": true}))).await;
        let id = exchange_of(&answer);
        let (arrived, end) = drain(answer).await;
        end.expect("a clean end");
        let chunks = events(&arrived);
        assert!(!said(&chunks, "content").is_empty(), "{play}");
        assert!(
            chunks.last().expect("chunks")["error"]["message"].is_string(),
            "{play}: {chunks:?}"
        );
        assert!(!is_done(&arrived), "{play}");
        assert!(
            chunks
                .iter()
                .all(|chunk| chunk["choices"][0]["finish_reason"].is_null()),
            "{play}"
        );
        ids.push((id, state));
    }
    harness
        .client
        .post(PATH, &chat("sim:cut", &json!({})))
        .await
        .expect(502);
    let books = harness.finish().await;
    for (id, state) in ids {
        let row = books.exchange(&id);
        assert_eq!((row.state, row.basis), (state, Basis::Estimated), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_of_which_a_part_is_lost_is_never_made_whole() {
    let usage = json!({"input_tokens": 10, "output_tokens": 5, "total_tokens": 15});
    let response = json!({"id": "resp_1", "status": "completed", "output": [], "usage": usage});
    let script = Script::sse(vec![
        Step::event(&json!({"type": "response.output_text.delta", "delta": "Hello"}), 1),
        Step::send("data: {\"type\":\"response.output_te\n\n"),
        Step::event(&json!({"type": "response.completed", "response": response}), 0),
    ]);
    let used = ServedUsage {
        input: 10,
        output: 5,
        ..ServedUsage::default()
    };
    let harness = start(always(script.using(used.clone()))).await;
    let request = harness.client.request(reqwest::Method::POST, PATH);
    let request = request
        .header("accept-language", "zh")
        .header("content-type", "application/json");
    let answer = request
        .body(chat("Hello", &json!({"stream": true})).to_string())
        .send()
        .await;
    let answer = answer.expect("the gateway answers");
    let exchange = exchange_of(&answer);
    let (arrived, end) = drain(answer).await;
    end.expect("a clean end");
    let chunks = events(&arrived);
    assert_eq!(said(&chunks, "content"), "Hello");
    let message = chunks.last().expect("chunks")["error"]["message"]
        .as_str()
        .expect("an error");
    assert!(message.contains("无法读取"), "{message}");
    assert!(!is_done(&arrived));
    assert_eq!(
        harness.receipt(&exchange).state,
        State::Failed,
        "as its client was told"
    );
    let books = harness.finish().await;
    assert_eq!(
        books.charged(),
        expected_charge(&used, &catalogue("openai", MODEL), "1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_cannot_be_read_is_an_error_at_once() {
    let junk = |name: &str| Step::send(format!("event: {name}\ndata: {{\"type\n\n"));
    for name in ["response.completed", "response.failed", "error"] {
        let script = Script::sse(vec![
            Step::event(&json!({"type": "response.output_text.delta", "delta": "Hello"}), 1),
            junk(name),
            Step::Pause(Duration::from_secs(60)),
        ]);
        let harness = start(always(script)).await;
        let body = chat("Hello", &json!({"stream": true}));
        let arrived = tokio::time::timeout(Duration::from_secs(20), streamed(&harness, &body)).await;
        let arrived = arrived.expect("its end");
        let chunks = events(&arrived);
        let end = chunks.last().expect("chunks");
        assert!(end["error"]["message"].is_string(), "{name}: {chunks:?}");
        assert!(!is_done(&arrived), "{name}");
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_answer_that_failed_is_an_error_and_costs_what_was_used() {
    let response = json!({
        "id": "resp_1", "object": "response", "model": MODEL, "status": "failed", "output": [],
        "error": {"code": "server_error", "message": "It broke."},
        "usage": {"input_tokens": 10, "output_tokens": 5, "total_tokens": 15},
    });
    let used = ServedUsage {
        input: 10,
        output: 5,
        ..ServedUsage::default()
    };
    let script = Script::json(StatusCode::OK, &response);
    let harness = start(always(script.using(used.clone()))).await;
    let answer = harness.client.post(PATH, &chat("Hello", &json!({}))).await.expect(200);
    assert_eq!(answer.json()["error"]["message"], "It broke.");
    assert_eq!(harness.receipt(answer.exchange()).state, State::Failed);
    let books = harness.finish().await;
    assert_eq!(
        books.charged(),
        expected_charge(&used, &catalogue("openai", MODEL), "1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_the_place_of_an_answer_is_the_error_that_it_is_and_costs_nothing() {
    let error = json!({"message": "The prompt is too long.", "type": "invalid_request_error", "param": "input", "code": "context_length_exceeded"});
    let script = Script::json(StatusCode::OK, &json!({"error": error}));
    let harness = start(always(script)).await;
    let answer = harness.client.post(PATH, &chat("Hello", &json!({}))).await.expect(200);
    assert_eq!(answer.json(), json!({"error": error}));
    let row = harness.receipt(answer.exchange());
    assert_eq!((row.state, row.charge.nanos()), (State::Failed, 0));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_said_is_refused_by_name_before_anything_is_sent() {
    let harness = start(standard(Pace::default())).await;
    for (more, param) in [
        (json!({"n": 2}), "n"),
        (json!({"stop": ["END"]}), "stop"),
        (json!({"logit_bias": {"1": 5}}), "logit_bias"),
        (json!({"seed": 1, "stream": true}), "seed"),
        (json!({"web_search_options": {}}), "web_search_options"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]}]}),
            "messages[0].content[0]",
        ),
    ] {
        let answer = harness.client.post(PATH, &chat("Hello", &more)).await.expect(400);
        let error = &answer.json()["error"];
        assert_eq!(
            (&error["param"], &error["code"]),
            (&json!(param), &json!("unsupported_parameter")),
            "{error}"
        );
        let message = error["message"].as_str().expect("a message");
        assert!(message.contains("/responses"), "{message}");
    }
    assert!(harness.served().is_empty());
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_in_the_upstreams_own_terms() {
    let harness = start(standard(Pace::default())).await;
    let asked = json!({"stream": true, "max_tokens": 200});
    let arrived = streamed(&harness, &chat("sim:overrun", &asked)).await;
    let chunks = events(&arrived);
    assert_eq!(chunks.last().expect("chunks")["choices"][0]["finish_reason"], "length");
    assert!(is_done(&arrived));
    let words = said(&chunks, "content").split_whitespace().count();
    assert!((200..=264).contains(&words), "{words}");
    let body: Value = serde_json::from_slice(&harness.simulator.ended(0).await.body).expect("JSON");
    assert_eq!(
        (&body["max_output_tokens"], &body["max_tokens"]),
        (&json!(200), &Value::Null)
    );
    let books = harness.finish().await;
    assert_eq!(books.only().state, State::Limited);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_smaller_than_the_answer_could_cost_limits_it() {
    let builder = Harness::builder().upstream("wire = \"responses\"").balance("0.2");
    let harness = builder.start().await;
    let answer = harness.client.chat("Hello").await.expect(200);
    let limit: u64 = answer.header("x-gateway-output-limit").parse().expect("a limit");
    let body: Value = serde_json::from_slice(&harness.served()[0].body).expect("JSON");
    assert_eq!(body["max_output_tokens"], limit);
    assert_eq!(
        (&body["max_completion_tokens"], &body["stream_options"]),
        (&Value::Null, &Value::Null)
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_refusal_passes_in_its_own_words() {
    let harness = start(standard(Pace::default())).await;
    let answer = harness.client.chat("sim:400").await.expect(400);
    assert_eq!(answer.json()["error"]["message"], "Simulated: the request is wrong.");
    let books = harness.finish().await;
    assert_eq!(books.charged(), 0);
}
