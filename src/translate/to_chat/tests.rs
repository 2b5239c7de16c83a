//! The promises of the translation to chat and back.

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::call::{Call, CallError, ChatLimitField, Endpoint, Problem};
use crate::meter::{End, Meter};
use crate::sse::Event;
use crate::translate::{Answer, Client, Close, Given, Translation, Wire, translate};
use crate::usage::Dialect;

fn given(client: Client) -> Given {
    Given {
        id: Uuid::from_u128(7),
        created: 1_795_000_000,
        chat_limit_field: ChatLimitField::MaxTokens,
        client,
        language: crate::texts::Language::English,
    }
}

fn translated(body: &Value) -> Result<Translation, CallError> {
    let call = Call::parse(Endpoint::Responses, body.to_string().into()).expect("a call");
    translate(&call, Wire::Chat, &given(Client::Codex))
}

fn sent(body: &Value) -> Value {
    let translation = translated(body).expect("a translation");
    serde_json::from_slice(&translation.call.body).expect("JSON")
}

fn answer_to(body: &Value) -> Box<dyn Answer> {
    translated(body).expect("a translation").answer
}

/// Plays chunks as a stream: the client's events.
fn played(answer: Box<dyn Answer>, chunks: &[Value]) -> Vec<Value> {
    played_as_written(answer, chunks.iter().map(Value::to_string))
}

fn played_as_written(mut answer: Box<dyn Answer>, chunks: impl Iterator<Item = String>) -> Vec<Value> {
    let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
    let mut out = Vec::new();
    for data in chunks.chain(["[DONE]".to_owned()]) {
        let event = Event {
            data: Some(Bytes::from(data)),
            ..Event::default()
        };
        meter.observe(&event);
        out.extend(answer.event(&event, meter.reading()));
    }
    assert!(answer.close(Close::Whole, meter.reading()).is_empty(), "it has ended");
    events(&out)
}

fn events(stream: &[u8]) -> Vec<Value> {
    let text = String::from_utf8_lossy(stream);
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).expect("JSON")).collect()
}

fn whole(mut answer: Box<dyn Answer>, body: &Value) -> Value {
    let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
    let body = body.to_string();
    meter.observe_body(body.as_bytes());
    let response = answer.whole(body.as_bytes(), meter.reading()).expect("an answer");
    serde_json::from_slice(&response).expect("JSON")
}

fn delta(delta: &Value) -> Value {
    json!({"model": "m", "choices": [{"index": 0, "delta": delta}]})
}

#[test]
fn a_request_of_codex_becomes_a_chat_request() {
    let body = json!({
        "model": "m", "stream": true, "instructions": "Be brief.", "store": false,
        "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "tool_choice": "auto",
        "parallel_tool_calls": true, "reasoning": {"effort": "low", "summary": "auto"}, "max_output_tokens": 100,
        "client_metadata": {"a": "b"}, "text": {"verbosity": "low"},
        "tools": [
            {"type": "function", "name": "run", "description": "Runs.", "strict": false,
             "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}},
            {"type": "custom", "name": "apply_patch", "description": "Edits.",
             "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}},
            {"type": "namespace", "name": "clock", "description": "Time.", "tools": [
                {"type": "function", "name": "sleep", "description": "Waits.", "parameters": {"type": "object", "properties": {}}},
                {"type": "function", "name": "now", "parameters": {"type": "object", "properties": {}}}]},
            {"type": "web_search", "external_web_access": true},
        ],
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "You are Codex."}]},
            {"type": "message", "role": "user", "content": [
                {"type": "input_text", "text": "See"},
                {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "original"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Now."}]},
            {"type": "function_call", "call_id": "c1", "name": "run", "arguments": "{\"a\":1}"},
            {"type": "custom_tool_call", "call_id": "c2", "name": "apply_patch", "input": "*** \"x\""},
            {"type": "function_call", "call_id": "c3", "name": "sleep", "namespace": "clock", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": [
                {"type": "input_text", "text": "one"}, {"type": "input_image", "image_url": "http://x/y.png"}]},
            {"type": "custom_tool_call_output", "call_id": "c2", "output": "two"},
            {"type": "function_call_output", "call_id": "c3", "output": "three"},
        ],
    });
    let call = |id: &str, name: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}});
    let grammar = "The text, raw, by this lark grammar:\nstart: x";
    let expected = json!({
        "model": "m", "stream": true, "max_tokens": 100, "reasoning_effort": "low", "verbosity": "low",
        "tools": [
            {"type": "function", "function": {"name": "run", "description": "Runs.",
             "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "string"}}}}},
            {"type": "function", "function": {"name": "apply_patch", "description": "Edits.",
             "parameters": {"type": "object", "properties": {"input": {"type": "string", "description": grammar}},
                            "required": ["input"], "additionalProperties": false}}},
            {"type": "function", "function": {"name": "clock__sleep", "description": "Time.\n\nWaits.",
             "parameters": {"type": "object", "properties": {}}}},
            {"type": "function", "function": {"name": "clock__now", "parameters": {"type": "object", "properties": {}}}},
        ],
        "messages": [
            {"role": "system", "content": "Be brief.\n\nYou are Codex."},
            {"role": "user", "content": [
                {"type": "text", "text": "See"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA", "detail": "high"}}]},
            {"role": "assistant", "content": "Now.", "tool_calls": [
                call("c1", "run", "{\"a\":1}"),
                call("c2", "apply_patch", "{\"input\":\"*** \\\"x\\\"\"}"),
                call("c3", "clock__sleep", "{}")]},
            {"role": "tool", "tool_call_id": "c1", "content": "one"},
            {"role": "tool", "tool_call_id": "c2", "content": "two"},
            {"role": "tool", "tool_call_id": "c3", "content": "three"},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]},
        ],
    });
    let translation = translated(&body).expect("a translation");
    assert_eq!(sent(&body), expected);
    assert_eq!(translation.left_out, ["web_search"]);
}

#[test]
fn schemas_keep_their_order() {
    let schema = r#"{"type":"object","properties":{"z":{"type":"string"},"a":{"type":"string"}}}"#;
    let body = format!(
        r#"{{"model":"m","input":"Go","tools":[{{"type":"function","name":"f","parameters":{schema}}}],
            "text":{{"format":{{"type":"json_schema","name":"n","schema":{schema}}}}}}}"#
    );
    let call = Call::parse(Endpoint::Responses, body.into()).expect("a call");
    let translation = translate(&call, Wire::Chat, &given(Client::Other)).expect("a translation");
    let written = String::from_utf8_lossy(&translation.call.body).into_owned();
    assert_eq!(written.matches(schema).count(), 2, "{written}");
}

#[test]
fn tools_come_back_as_what_they_were() {
    let body = json!({
        "model": "m", "input": "Go", "tools": [
            {"type": "custom", "name": "apply_patch"},
            {"type": "namespace", "name": "clock", "tools": [{"type": "function", "name": "sleep"}]},
            {"type": "function", "name": "clock__sleep"},
            {"type": "tool_search", "execution": "client", "parameters": {"type": "object"}},
            {"type": "local_shell"},
        ],
    });
    let names: Vec<Value> = sent(&body)["tools"]
        .as_array()
        .expect("tools")
        .iter()
        .map(|tool| tool["function"]["name"].clone())
        .collect();
    assert_eq!(
        names,
        [
            "apply_patch",
            "clock__sleep",
            "clock__sleep_2",
            "tool_search",
            "local_shell"
        ]
    );
    let call = |index: u64, name: &str, arguments: &str| {
        delta(
            &json!({"tool_calls": [{"index": index, "id": format!("c{index}"), "function": {"name": name, "arguments": arguments}}]}),
        )
    };
    let chunks = [
        call(0, "apply_patch", "{\"input\": \"a\\nb\"}"),
        call(1, "clock__sleep", "{}"),
        call(2, "clock__sleep_2", "{\"x\":1}"),
        call(3, "tool_search", "{\"query\":\"q\"}"),
        call(4, "local_shell", "{\"command\":[\"ls\"]}"),
        call(5, "made_up", "{}"),
    ];
    let events = played(answer_to(&body), &chunks);
    let output = &events.last().expect("an end")["response"]["output"];
    let told: Vec<Value> = output
        .as_array()
        .expect("items")
        .iter()
        .map(|item| {
            let mut item = item.clone();
            for member in ["id", "status"] {
                item.as_object_mut().expect("an item").remove(member);
            }
            item
        })
        .collect();
    let action = json!({"type": "exec", "command": ["ls"], "env": {}, "timeout_ms": null, "working_directory": null});
    assert_eq!(
        told,
        [
            json!({"type": "custom_tool_call", "call_id": "c0", "name": "apply_patch", "input": "a\nb"}),
            json!({"type": "function_call", "call_id": "c1", "name": "sleep", "namespace": "clock", "arguments": "{}"}),
            json!({"type": "function_call", "call_id": "c2", "name": "clock__sleep", "arguments": "{\"x\":1}"}),
            json!({"type": "tool_search_call", "call_id": "c3", "execution": "client", "arguments": {"query": "q"}}),
            json!({"type": "local_shell_call", "call_id": "c4", "action": action}),
            json!({"type": "function_call", "call_id": "c5", "name": "made_up", "arguments": "{}"}),
        ]
    );
    assert!(
        events
            .iter()
            .any(|event| event["type"] == "response.custom_tool_call_input.delta" && event["delta"] == "a\nb")
    );
}

#[test]
fn reasoning_goes_back_where_it_came_from_within_its_turn() {
    for (field, thought) in [
        ("reasoning_content", json!({"reasoning_content": "Hm."})),
        ("reasoning", json!({"reasoning": "Hm."})),
        (
            "content",
            json!({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}]}),
        ),
    ] {
        let body = json!({"model": "m", "input": "Go", "include": ["reasoning.encrypted_content"]});
        let events = played(answer_to(&body), &[delta(&thought)]);
        let mut item = events.last().expect("an end")["response"]["output"][0].clone();
        assert_eq!(
            item["content"],
            json!([{"type": "reasoning_text", "text": "Hm."}]),
            "{field}"
        );
        // As Codex hands it back.
        item["content"] = Value::Null;
        let user = json!({"type": "message", "role": "user", "content": "Go"});
        let call = json!({"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"});
        let this_turn = sent(&json!({"model": "m", "input": [user, item, call]}));
        let given_back = &this_turn["messages"][1][field];
        assert!(given_back.to_string().contains("Hm."), "{field}: {given_back}");
        let earlier_turn = sent(&json!({"model": "m", "input": [item, call, user]}));
        assert!(!earlier_turn.to_string().contains("Hm."), "{field}: {earlier_turn}");
        let all = sent(&json!({"model": "m", "input": [item, call, user], "reasoning": {"context": "all_turns"}}));
        assert!(all.to_string().contains("Hm."), "{field}: {all}");
    }
    let foreign = json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAAAB"});
    assert_eq!(sent(&json!({"model": "m", "input": [foreign]}))["messages"], json!([]));
}

#[test]
fn a_compaction_is_a_summary_that_the_model_writes_and_reads_again() {
    let user = json!({"type": "message", "role": "user", "content": "Rename f to g."});
    let tool = json!({"type": "function", "name": "f", "parameters": {}});
    let trigger = json!({"type": "compaction_trigger"});
    let body = json!({"model": "m", "input": [user, trigger], "tools": [tool], "tool_choice": "auto",
        "text": {"format": {"type": "json_object"}}});
    let asked = sent(&body);
    assert_eq!(
        (&asked["tool_choice"], asked.get("response_format")),
        (&json!("none"), None)
    );
    let messages = asked["messages"].as_array().expect("messages");
    assert_eq!((messages.len(), &messages[1]["role"]), (2, &json!("user")));
    assert!(
        messages[1]["content"]
            .as_str()
            .is_some_and(|ask| ask.contains("summary"))
    );

    let chunks = [
        delta(&json!({"reasoning_content": "Hm."})),
        delta(&json!({"content": "f is "})),
        delta(&json!({"content": "g now."})),
    ];
    let events = played(answer_to(&body), &chunks);
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(
        kinds,
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.output_item.done",
            "response.completed"
        ]
    );
    for (number, event) in (0_u64..).zip(&events) {
        assert_eq!(event["sequence_number"], number);
    }
    let item = events[3]["item"].clone();
    assert_eq!(
        (&item["type"], &events[4]["response"]["output"]),
        (&json!("compaction"), &json!([item]))
    );
    let again = sent(&json!({"model": "m", "input": [user, item, user]}));
    assert!(
        again["messages"][1]["content"]
            .as_str()
            .is_some_and(|told| told.ends_with("f is g now.")),
        "{again}"
    );

    // Cut short it is none, and a call is none either.
    let cut = json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]});
    let call = json!({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": "{}"}}]});
    for (chunks, end) in [
        (vec![delta(&json!({"content": "f"})), cut], "response.incomplete"),
        (vec![delta(&call)], "response.failed"),
    ] {
        let events = played(answer_to(&body), &chunks);
        let last = events.last().expect("an end");
        assert_eq!((&last["type"], &last["response"]["output"]), (&json!(end), &json!([])));
    }
}

#[test]
fn the_endpoint_that_compacts_gives_what_the_user_said_and_the_summary() {
    let user = json!({"role": "user", "content": "Rename f to g."});
    let answer = json!({"type": "message", "role": "assistant", "content": "Done."});
    let body = json!({"model": "m", "instructions": "Be brief.", "input": [user, answer]});
    let call = Call::parse(Endpoint::Compact, body.to_string().into()).expect("a call");
    let translation = translate(&call, Wire::Chat, &given(Client::Codex)).expect("a translation");
    let asked: Value = serde_json::from_slice(&translation.call.body).expect("JSON");
    assert_eq!(asked["messages"].as_array().map(Vec::len), Some(4));
    let usage = json!({"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25});
    let said = |content: Value| json!({"choices": [{"index": 0, "message": {"content": content}, "finish_reason": "stop"}], "usage": usage});
    let document = whole(translation.answer, &said(json!("f is g now.")));
    assert_eq!(
        (&document["object"], &document["usage"]["input_tokens"]),
        (&json!("response.compaction"), &json!(20))
    );
    assert_eq!(
        (&document["output"][0], &document["output"][1]["type"]),
        (&user, &json!("compaction"))
    );

    for body in [said(json!("")), json!({"error": {"message": "No."}})] {
        let mut answer = translate(&call, Wire::Chat, &given(Client::Codex))
            .expect("a translation")
            .answer;
        let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
        meter.observe_body(body.to_string().as_bytes());
        assert_eq!(
            answer.whole(body.to_string().as_bytes(), meter.reading()),
            None,
            "{body}"
        );
    }
}

#[test]
fn what_has_no_counterpart_is_refused_by_its_name() {
    let user = json!({"role": "user", "content": "Go"});
    for (more, param, item) in [
        (
            json!({"previous_response_id": "resp_1"}),
            "previous_response_id",
            "previous_response_id",
        ),
        (json!({"tools": [{"type": "file_search"}]}), "tools[0]", "file_search"),
        (
            json!({"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "mcp"}]}]}),
            "tools[0].tools[0]",
            "mcp",
        ),
        (json!({"tools": [{"type": "tool_search"}]}), "tools[0]", "tool_search"),
        (
            json!({"input": [user, {"type": "item_reference", "id": "x"}]}),
            "input[1]",
            "item_reference",
        ),
        (
            json!({"input": [{"type": "compaction_trigger"}, user]}),
            "input[0]",
            "compaction_trigger",
        ),
        (
            json!({"input": [user, {"type": "compaction", "encrypted_content": "gAAAAAB"}]}),
            "input[1]",
            "compaction",
        ),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "http://x"}]}]}),
            "input[0].content[0]",
            "input_file",
        ),
        (
            json!({"text": {"format": {"type": "grammar", "definition": "x"}}}),
            "text.format",
            "grammar",
        ),
        (
            json!({"tool_choice": {"type": "web_search"}}),
            "tool_choice",
            "web_search",
        ),
        (
            json!({"include": ["message.output_text.logprobs"]}),
            "include[0]",
            "message.output_text.logprobs",
        ),
        (json!({"reasoning": {"mode": "pro"}}), "reasoning.mode", "mode"),
        (json!({"store": true}), "store", "store"),
        (json!({"truncation": "auto"}), "truncation", "truncation"),
        (json!({"top_k": 5}), "top_k", "top_k"),
    ] {
        let mut body = json!({"model": "m", "input": "Go"});
        body.as_object_mut()
            .expect("a body")
            .extend(more.as_object().expect("members").clone());
        let refused = CallError::Param {
            name: param.to_owned(),
            problem: Problem::Untranslatable {
                item: item.to_owned(),
                to: Endpoint::ChatCompletions,
            },
        };
        assert_eq!(translated(&body).err(), Some(refused), "{body}");
    }
    let body = json!({"model": "m", "input": "Go", "tools": [{"type": "web_search"}]});
    let call = Call::parse(Endpoint::Responses, body.to_string().into()).expect("a call");
    let refused = translate(&call, Wire::Chat, &given(Client::Other)).expect_err("only Codex's is left out");
    assert_eq!(refused.param(), Some("tools[0]"));
}

#[test]
fn tools_have_a_bound() {
    let tools = |count: usize| {
        let tools: Vec<Value> = (0..count)
            .map(|number| json!({"type": "function", "name": format!("f{number}")}))
            .collect();
        translated(&json!({"model": "m", "input": "Go", "tools": tools}))
    };
    assert!(tools(1_024).is_ok());
    let refused = tools(1_025).expect_err("one too many");
    assert_eq!(refused.param(), Some("tools[1024]"));
}

#[test]
fn settings_are_given_as_chat_has_them() {
    let body = json!({
        "model": "m", "input": "Go", "temperature": 0.5, "top_p": 0.9, "user": "u", "service_tier": "flex",
        "text": {"format": {"type": "json_schema", "name": "n", "strict": true, "schema": {"type": "object"}}},
        "tools": [{"type": "function", "name": "f", "strict": true}, {"type": "custom", "name": "g"}],
        "tool_choice": {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "g"}]},
        "parallel_tool_calls": false, "metadata": {"a": "b"}, "truncation": "disabled",
    });
    let mut sent = sent(&body);
    let tools = sent.as_object_mut().expect("a body").remove("tools").expect("tools");
    assert_eq!(
        (tools.as_array().map(Vec::len), &tools[0]["function"]["name"]),
        (Some(1), &json!("g"))
    );
    assert_eq!(
        sent,
        json!({
            "model": "m", "stream": false, "messages": [{"role": "user", "content": "Go"}], "temperature": 0.5, "top_p": 0.9,
            "user": "u", "service_tier": "flex", "tool_choice": "required", "parallel_tool_calls": false,
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": true, "schema": {"type": "object"}}},
        })
    );
    let chosen = json!({"model": "m", "input": "Go", "tools": [{"type": "custom", "name": "g"}], "tool_choice": {"type": "custom", "name": "g"}});
    assert_eq!(
        super::tests::sent(&chosen)["tool_choice"],
        json!({"type": "function", "function": {"name": "g"}})
    );
}

#[test]
fn an_error_in_a_chunk_fails_the_response_with_a_code_that_it_has() {
    for (error, code) in [
        (
            json!({"message": "No.", "type": "invalid_request_error", "code": "tool_use_failed", "status_code": 400}),
            "invalid_prompt",
        ),
        (json!({"message": "No.", "code": 429}), "rate_limit_exceeded"),
        (
            json!({"message": "No.", "code": "context_length_exceeded"}),
            "context_length_exceeded",
        ),
        (json!({"message": "No.", "code": 502}), "server_error"),
        (
            json!({"message": "No.", "code": "insufficient_quota"}),
            "server_is_overloaded",
        ),
        (json!("No."), "server_error"),
    ] {
        let body = json!({"model": "m", "input": "Go"});
        let events = played(
            answer_to(&body),
            &[delta(&json!({"content": "Hi"})), json!({"error": error})],
        );
        let end = events.last().expect("an end");
        assert_eq!(
            (&end["type"], &end["response"]["status"]),
            (&json!("response.failed"), &json!("failed"))
        );
        assert_eq!(
            end["response"]["error"],
            json!({"code": code, "message": "No."}),
            "{error}"
        );
        let of_body = whole(answer_to(&body), &json!({"error": error}));
        assert_eq!(of_body["error"], end["response"]["error"]);
    }
}

#[test]
fn an_error_that_is_no_json_fails_the_response_and_one_that_is_none_does_not() {
    let body = json!({"model": "m", "input": "Go"});
    let mut answer = answer_to(&body);
    let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
    let event = Event {
        name: Some("error".to_owned()),
        data: Some("Out of memory".into()),
        ..Event::default()
    };
    assert_eq!(meter.observe(&event).terminal, Some(End::Failed));
    let told = events(&answer.event(&event, meter.reading()));
    let end = &told.last().expect("an end")["response"];
    assert_eq!(
        (&end["status"], &end["error"]["message"]),
        (&json!("failed"), &json!("Out of memory"))
    );
    assert!(answer.close(Close::Whole, meter.reading()).is_empty());
    for none in [json!(null), json!(false), json!(0), json!(""), json!([]), json!({})] {
        let mut chunk = delta(&json!({"content": "Hi"}));
        chunk["error"] = none;
        let events = played(answer_to(&body), &[chunk]);
        let end = &events.last().expect("an end")["response"];
        assert_eq!(end["status"], "completed", "{end}");
    }
}

/// How a stream ended, and the message of its error.
fn ended(events: &[Value]) -> (&str, &str) {
    let end = &events.last().expect("an end")["response"];
    let message = end["error"]["message"].as_str();
    (end["status"].as_str().expect("a status"), message.unwrap_or_default())
}

#[test]
fn an_answer_is_complete_only_for_a_reason_that_is_known() {
    let body = json!({"model": "m", "input": "Go"});
    for (reason, status, cut) in [
        ("stop", "completed", None),
        ("end_turn", "completed", None),
        ("STOP", "completed", None),
        ("", "completed", None),
        ("length", "incomplete", Some("max_output_tokens")),
        ("model_length", "incomplete", Some("max_output_tokens")),
        ("sensitive", "incomplete", Some("content_filter")),
        ("network_error", "failed", None),
    ] {
        let message = |of: &str| json!({"model": "m", "choices": [{of: {"content": "Hi"}, "finish_reason": reason}]});
        let streamed = played(answer_to(&body), &[message("delta")]);
        let response = whole(answer_to(&body), &message("message"));
        for response in [&streamed.last().expect("an end")["response"], &response] {
            assert_eq!(response["status"], status, "{reason}");
            assert_eq!(response["incomplete_details"]["reason"].as_str(), cut, "{reason}");
            assert_eq!(response["error"].is_object(), status == "failed", "{reason}");
        }
    }
}

#[test]
fn items_have_a_bound() {
    let body = json!({"model": "m", "input": "Go"});
    let message = |count: usize| {
        let call = json!({"function": {"name": "f", "arguments": "{}"}});
        json!({"model": "m", "choices": [{"message": {"tool_calls": vec![call; count]}}]})
    };
    for (count, status) in [(4_096, "completed"), (4_097, "failed")] {
        let response = whole(answer_to(&body), &message(count));
        assert_eq!(response["status"], status, "{count}");
        assert_eq!(response["output"].as_array().map(Vec::len), Some(4_096));
    }
}

/// Names and arguments of the calls of a response.
fn calls(response: &Value) -> Vec<(&str, &str)> {
    let items = response["output"].as_array().expect("items").iter();
    items
        .map(|item| {
            let (name, arguments) = (item["name"].as_str(), item["arguments"].as_str());
            (name.expect("a name"), arguments.expect("arguments"))
        })
        .collect()
}

#[test]
fn each_piece_finds_its_call_whatever_ids_and_numbers_it_has() {
    let body = json!({"model": "m", "input": "Go"});
    let piece = |index: Option<u64>, id: &str, name: &str, arguments: &str| {
        let mut call = json!({"id": id, "function": {"name": name, "arguments": arguments}});
        if let Some(index) = index {
            call["index"] = index.into();
        }
        delta(&json!({"tool_calls": [call]}))
    };
    for (what, pieces, expected) in [
        (
            "ids of their own",
            vec![
                piece(Some(0), "a", "f", "{\"x\""),
                piece(Some(1), "b", "g", "{\"y\""),
                piece(Some(0), "c", "", ":1}"),
                piece(Some(1), "d", "", ":2}"),
            ],
            vec![("f", "{\"x\":1}"), ("g", "{\"y\":2}")],
        ),
        (
            "an id of its own without a number",
            vec![piece(None, "a", "f", "{\"x\""), piece(None, "b", "", ":1}")],
            vec![("f", "{\"x\":1}")],
        ),
        (
            "no ids, all numbered 0",
            vec![
                piece(Some(0), "", "f", "{}"),
                piece(Some(0), "", "f", "{\"x\""),
                piece(Some(0), "", "", ":1}"),
                piece(Some(0), "", "g", ""),
                piece(Some(0), "", "g", "{}"),
            ],
            vec![("f", "{}"), ("f", "{\"x\":1}"), ("g", "{}")],
        ),
        (
            "a name in every piece",
            vec![
                piece(Some(0), "a", "f", ""),
                piece(Some(0), "", "f", "{\"x\":{}"),
                piece(Some(0), "", "f", "}"),
                piece(Some(0), "", "f", ""),
            ],
            vec![("f", "{\"x\":{}}")],
        ),
    ] {
        let events = played(answer_to(&body), &pieces);
        assert_eq!(ended(&events).0, "completed", "{what}");
        assert_eq!(calls(&events.last().expect("an end")["response"]), expected, "{what}");
    }
    let events = played(answer_to(&body), &[piece(Some(0), "a", "", "{}")]);
    assert_eq!(ended(&events).0, "failed", "arguments of no call");
    let message = |calls: Value| json!({"model": "m", "choices": [{"message": {"tool_calls": calls}}]});
    let call = |name: &str| json!({"function": {"name": name, "arguments": "{\"x\""}});
    let response = whole(answer_to(&body), &message(json!([call("f"), call("f")])));
    assert_eq!(calls(&response), [("f", "{\"x\""), ("f", "{\"x\"")]);
    let response = whole(answer_to(&body), &message(json!([call("f"), call("")])));
    assert_eq!(response["status"], "failed", "{response}");
}

#[test]
fn an_answer_of_which_a_chunk_is_lost_is_never_made_whole() {
    let body = json!({"model": "m", "input": "Go"});
    for (chunk, status) in [("{\"choices\": [", "failed"), ("[]", "failed"), ("", "completed")] {
        let chunks = [delta(&json!({"content": "Hi"})).to_string(), chunk.to_owned()];
        let events = played_as_written(answer_to(&body), chunks.into_iter());
        let (told, message) = ended(&events);
        assert_eq!(told, status, "{chunk:?}");
        assert_eq!(message.contains("could not be read"), status == "failed", "{message}");
    }
    let mut answer = answer_to(&body);
    let meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
    let oversized = Event {
        oversized: true,
        ..Event::default()
    };
    assert!(answer.event(&oversized, meter.reading()).is_empty());
    assert_eq!(ended(&events(&answer.close(Close::Whole, meter.reading()))).0, "failed");
}

#[test]
fn the_limit_and_a_broken_stream_end_what_goes_on() {
    let body = json!({"model": "m", "input": "Go"});
    for (how, end, status) in [
        (Close::Limited, "response.incomplete", "incomplete"),
        (Close::Failed("It broke."), "response.failed", "incomplete"),
        (Close::Whole, "response.completed", "completed"),
    ] {
        let mut answer = answer_to(&body);
        let meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
        let event = Event {
            data: Some(Bytes::from(delta(&json!({"content": "Hi"})).to_string())),
            ..Event::default()
        };
        let mut stream = answer.event(&event, meter.reading());
        stream.extend(answer.close(how, meter.reading()));
        let events = events(&stream);
        let numbers: Vec<u64> = events
            .iter()
            .filter_map(|event| event["sequence_number"].as_u64())
            .collect();
        assert!(numbers.iter().copied().eq(0..numbers.len() as u64), "{numbers:?}");
        let last = events.last().expect("an end");
        assert_eq!(
            (&last["type"], &last["response"]["output"][0]["status"]),
            (&json!(end), &json!(status))
        );
        assert!(answer.close(how, meter.reading()).is_empty());
    }
}

/// A piece of an answer, and what a whole answer has of it.
fn pieces() -> impl Strategy<Value = Vec<(u8, String)>> {
    prop::collection::vec((0..5_u8, "[a-z\\\\\"\u{1F600} ]{0,6}"), 1..12)
}

proptest! {
    /// Thoughts, then text, then calls, in any pieces: the stream's items are those of the same answer given whole.
    #[test]
    fn a_stream_comes_to_the_same_items_as_a_whole_answer(mut pieces in pieces(), reason in prop::sample::select(vec!["stop", "length", "tool_calls", "content_filter"])) {
        pieces.sort_by_key(|(kind, _)| *kind);
        let body = json!({"model": "m", "input": "Go", "tools": [{"type": "custom", "name": "c"}]});
        let (mut chunks, mut message) = (Vec::new(), json!({"role": "assistant"}));
        let (names, mut arguments) = (["f", "c"], [const { None::<String> }; 2]);
        for (kind, text) in &pieces {
            match kind {
                0..=2 => {
                    let member = ["reasoning_content", "content", "refusal"][usize::from(*kind)];
                    chunks.push(delta(&json!({member: text})));
                    let so_far = message[member].as_str().unwrap_or_default().to_owned();
                    message[member] = format!("{so_far}{text}").into();
                }
                _ => {
                    let number = usize::from(*kind) - 3;
                    let begins = arguments[number].is_none();
                    arguments[number].get_or_insert_default().push_str(text);
                    let mut call = json!({"index": number, "function": {"arguments": text}});
                    if begins {
                        call["id"] = format!("c{number}").into();
                        call["function"]["name"] = names[number].into();
                    }
                    chunks.push(delta(&json!({"tool_calls": [call]})));
                }
            }
        }
        let calls: Vec<Value> = (0..2).filter_map(|number| {
            let arguments = arguments[number].clone()?;
            Some(json!({"id": format!("c{number}"), "function": {"name": names[number], "arguments": arguments}}))
        }).collect();
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        chunks.push(json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}));
        chunks.push(json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}}));
        let events = played(answer_to(&body), &chunks);
        let streamed = &events.last().expect("an end")["response"];
        let given_whole = whole(answer_to(&body), &json!({
            "model": "m", "choices": [{"index": 0, "message": message, "finish_reason": reason}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
        }));
        prop_assert_eq!(streamed, &given_whole);
        let done: Vec<&Value> = events.iter().filter(|event| event["type"] == "response.output_item.done").map(|event| &event["item"]).collect();
        let output: Vec<&Value> = streamed["output"].as_array().expect("items").iter().collect();
        prop_assert_eq!(done, output);
    }
}
