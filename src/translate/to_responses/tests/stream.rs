//! Streams, made up and recorded, however they are cut.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::back::{Told, chat_of, events, given, told, told_at_once};
use super::super::stream::Chunks;
use super::{completion, response, stream};
use crate::call::Endpoint;
use crate::meter::{Meter, Reading};
use crate::translate::{Answer, Close};
use crate::usage::{Dialect, Usage};

/// The chunks that a stream becomes, without what each of them has.
fn chunks(include_usage: bool, stream: &[u8]) -> Vec<Value> {
    let mut chunks = Chunks::new(include_usage, &given());
    let out: Vec<u8> = events([stream])
        .iter()
        .flat_map(|event| chunks.event(event, &Reading::default()))
        .collect();
    let read = |event: crate::sse::Event| match event.data {
        None => Value::Null,
        Some(done) if done == "[DONE]" => json!("[DONE]"),
        Some(data) => serde_json::from_slice(&data).expect("JSON"),
    };
    events([&out[..]]).into_iter().map(read).collect()
}

fn deltas(chunks: &[Value]) -> Vec<Value> {
    let choices = chunks
        .iter()
        .flat_map(|chunk| chunk["choices"].as_array().cloned().unwrap_or_default());
    choices.map(|mut choice| choice["delta"].take()).collect()
}

fn own(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn a_stream_becomes_chunks() {
    let all = chunks(true, &own("responses-completed.sse"));
    let expected = [
        json!({"role": "assistant", "content": "", "refusal": null}),
        json!({"reasoning_content": "Thinking of Rome"}),
        json!({"content": "Hello "}),
        json!({"content": "Rome"}),
        json!({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}}]}),
        json!({"tool_calls": [{"index": 0, "function": {"arguments": "{\"city\":\"Rome\"}"}}]}),
        json!({}),
    ];
    assert_eq!(deltas(&all), expected);
    for chunk in &all[..all.len() - 1] {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(
            (&chunk["id"], &chunk["created"]),
            (&json!("resp_1"), &json!(1_795_000_000))
        );
        assert_eq!(chunk["model"], "gpt-6.1-sol-2026-10-01");
    }
    let [finish, usage, done] = &all[all.len() - 3..] else {
        panic!()
    };
    assert_eq!(
        (&finish["choices"][0]["finish_reason"], &finish["usage"]),
        (&json!("tool_calls"), &Value::Null)
    );
    assert_eq!(finish["service_tier"], "priority");
    assert_eq!(
        (&usage["choices"], &usage["usage"]["prompt_tokens"]),
        (&json!([]), &json!(120))
    );
    assert_eq!(done, "[DONE]");
    assert_eq!(all[2]["obfuscation"], "q");
    let unasked = chunks(false, &own("responses-completed.sse"));
    assert!(unasked.iter().all(|chunk| chunk.get("usage").is_none()), "{unasked:?}");
    assert_eq!(unasked.len(), all.len() - 1);
}

#[test]
fn parallel_calls_have_indices_of_their_own() {
    let item = |index: u64, kind: &str, name: &str| {
        json!({"type": "response.output_item.added", "output_index": index,
        "item": {"type": kind, "id": format!("i{index}"), "call_id": format!("c{index}"), "name": name}})
    };
    let delta = |index: u64, kind: &str, delta: &str| {
        json!({"type": format!("response.{kind}.delta"), "output_index": index,
        "item_id": format!("i{index}"), "delta": delta})
    };
    let all = chunks(
        false,
        &stream(&[
            item(3, "function_call", "f"),
            item(5, "custom_tool_call", "g"),
            delta(5, "custom_tool_call_input", "raw"),
            delta(3, "function_call_arguments", "{}"),
        ]),
    );
    let expected = [
        json!({"role": "assistant", "content": "", "refusal": null}),
        json!({"tool_calls": [{"index": 0, "id": "c3", "type": "function", "function": {"name": "f", "arguments": ""}}]}),
        json!({"tool_calls": [{"index": 1, "id": "c5", "type": "custom", "custom": {"name": "g", "input": ""}}]}),
        json!({"tool_calls": [{"index": 1, "custom": {"input": "raw"}}]}),
        json!({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}),
    ];
    assert_eq!(deltas(&all), expected);
}

#[test]
fn what_deltas_do_not_tell_comes_from_whole_items_and_the_end() {
    let minimal = told(&chat_of(&own("responses-minimal.sse")), Dialect::OpenAi);
    let expected = told(&chat_of(&own("responses-completed.sse")), Dialect::OpenAi);
    assert_eq!(minimal, expected);
    assert_eq!(
        (minimal.text.as_str(), minimal.calls.len(), minimal.done),
        ("Hello Rome", 1, true)
    );
    let output = json!([
        {"type": "message", "content": [{"type": "output_text", "text": "Hello Rome"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{\"a\":1}"},
    ]);
    let end = json!({"type": "response.completed", "response": response(output, json!({}))});
    let said = |text: &str| json!({"type": "response.output_text.delta", "output_index": 0, "delta": text});
    let called = json!({"type": "response.output_item.added", "output_index": 1,
        "item": {"type": "function_call", "call_id": "c", "name": "f", "arguments": ""}});
    let input = json!({"type": "response.function_call_arguments.delta", "output_index": 1, "delta": "{\"a\""});
    for before in [vec![], vec![said("Hello")], vec![said("Hello Rome"), called, input]] {
        let whole = [before.as_slice(), std::slice::from_ref(&end)].concat();
        let told = told(&chat_of(&stream(&whole)), Dialect::OpenAi);
        assert_eq!((told.text.as_str(), told.calls.len()), ("Hello Rome", 1), "{before:?}");
        assert_eq!(
            (told.calls[0].input.as_str(), told.calls[0].name.as_str()),
            ("{\"a\":1}", "f"),
            "{before:?}"
        );
    }
}

#[test]
fn a_stream_that_fails_never_looks_whole() {
    for (file, code, message) in [
        ("responses-error-flat.sse", "server_error", "No."),
        ("responses-error-nested.sse", "insufficient_quota", "No."),
        ("responses-failed.sse", "server_error", "Try again."),
    ] {
        let all = chunks(true, &own(file));
        let last = all.last().expect("chunks");
        assert_eq!(
            (&last["error"]["code"], &last["error"]["message"]),
            (&json!(code), &json!(message)),
            "{file}"
        );
        assert_eq!(
            all.iter().filter(|chunk| chunk["error"].is_object()).count(),
            1,
            "{file}"
        );
        assert!(!all.contains(&json!("[DONE]")), "{file}");
    }
    let lost = [
        stream(&[json!({"type": "response.output_text.delta", "delta": "a"})]),
        b"data: {\"type\":\"resp\n\n".to_vec(),
        own("responses-completed.sse"),
    ];
    let told = told(&chat_of(&lost.concat()), Dialect::OpenAi);
    assert!(told.error.is_some() && !told.done && told.finish.is_none(), "{told:?}");
}

#[test]
fn a_stream_without_an_end_is_given_one() {
    let begun = || {
        let mut chunks = Chunks::new(true, &given());
        let event = stream(&[json!({"type": "response.output_text.delta", "delta": "a"})]);
        let events = events([&event[..]]);
        let out = events.iter().flat_map(|event| chunks.event(event, &Reading::default()));
        (out.collect::<Vec<u8>>(), chunks)
    };
    let closed = |how: Close<'_>| {
        let (mut out, mut chunks) = begun();
        out.extend(chunks.close(how, &Reading::default()));
        assert_eq!(
            chunks.close(Close::Failed("twice"), &Reading::default()),
            Vec::<u8>::new()
        );
        told(&out, Dialect::OpenAi)
    };
    let said = |finish: Option<&str>, error: Option<&str>| Told {
        text: "a".into(),
        finish: finish.map(Into::into),
        error: error.map(Into::into),
        done: finish.is_some(),
        ..Told::default()
    };
    assert_eq!(closed(Close::Failed("It broke.")), said(None, Some("It broke.")));
    assert_eq!(closed(Close::Limited), said(Some("length"), None));
    assert_eq!(closed(Close::Whole), said(Some("stop"), None));
}

#[test]
fn signs_of_life_are_passed_on_until_the_end() {
    let alive = b": ping\n\ndata: {\"type\":\"keepalive\"}\n\n";
    let after = [
        own("responses-completed.sse"),
        alive.to_vec(),
        b"data: [DONE]\n\n".to_vec(),
    ]
    .concat();
    assert_eq!(chunks(false, alive), [Value::Null, Value::Null]);
    assert_eq!(chunks(false, &after), chunks(false, &own("responses-completed.sse")));
}

#[test]
fn reasoning_is_told_once_and_in_parts() {
    let text =
        |kind: &str, delta: &str| json!({"type": format!("response.{kind}.delta"), "output_index": 0, "delta": delta});
    let part = json!({"type": "response.reasoning_summary_part.added", "output_index": 0});
    let summed = [
        part.clone(),
        text("reasoning_summary_text", "One."),
        part,
        text("reasoning_summary_text", "Two."),
    ];
    let item = json!({"type": "response.output_item.done", "output_index": 0, "item": {"type": "reasoning",
        "summary": [{"text": "One."}, {"text": "Two."}], "content": [{"text": "Aloud."}]}});
    let told = |events: &[Value]| told(&chat_of(&stream(events)), Dialect::OpenAi).reasoning;
    assert_eq!(
        told(&[&summed[..], std::slice::from_ref(&item)].concat()),
        "One.\n\nTwo."
    );
    let aloud = [
        text("reasoning_text", "Alo"),
        text("reasoning_summary_text", "One."),
        item,
    ];
    assert_eq!(told(&aloud), "Aloud.");
}

/// Recorded Responses answers, translated; what they say is compared with what their final items say.
fn replay(name: &str, stream: &[u8]) {
    let chat = chat_of(stream);
    let told = told(&chat, Dialect::OpenAi);
    let mut meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
    let mut last = Value::Null;
    let mut whole = Vec::new();
    for event in events([stream]) {
        meter.observe(&event);
        let data = event.data.unwrap_or_default();
        let event: Value = serde_json::from_slice(&data).unwrap_or_default();
        if event["type"] == "response.output_item.done" {
            whole.push(event["item"].clone());
        }
        if event["response"].is_object() {
            last = event["response"].clone();
        }
    }
    if last["error"].is_object() {
        assert!(told.error.is_some() && !told.done, "{name}: {told:?}");
        return;
    }
    let output = last["output"].as_array().filter(|output| !output.is_empty()).cloned();
    last["output"] = Value::Array(output.unwrap_or(whole));
    let completion = completion(&last).unwrap_or_else(|| panic!("{name}: no answer"));
    let mut expected = told_at_once(&completion);
    if name == "responses-shell-container.sse" {
        // Its deltas say something else than its whole text; a client has been shown the deltas.
        expected.text = expected.text.replace("successfully in", "successfully.in");
    }
    assert_eq!(told, expected, "{name}");
    let tools = meter.reading().tools.clone();
    let read = told.usage.map(|usage| Usage { tools, ..usage });
    assert_eq!(read, meter.reading().usage, "{name}");
    for cut in 1..=7 {
        let mut chunks = Chunks::new(true, &given());
        let events = events(stream.chunks(cut));
        let out: Vec<u8> = events
            .iter()
            .flat_map(|event| chunks.event(event, &Reading::default()))
            .collect();
        assert_eq!(out, chat, "{name} in pieces of {cut}");
    }
}

#[test]
fn recorded_answers_say_the_same_in_chat() {
    for file in [
        "responses-completed.sse",
        "responses-minimal.sse",
        "responses-incomplete.sse",
        "responses-tools.sse",
    ] {
        replay(file, &own(file));
    }
    let Some(folder) = std::env::var_os("GATEWAY_FIXTURES").map(PathBuf::from) else {
        println!("GATEWAY_FIXTURES is not set: recorded answers are not replayed");
        return;
    };
    let mut replayed = 0;
    for file in std::fs::read_dir(folder.join("wire")).expect("fixtures") {
        let path = file.expect("an entry").path();
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name")
            .to_owned();
        let bytes = std::fs::read(&path).expect("a listed file");
        match name.rsplit_once('.') {
            Some((stem, "sse")) if stem.contains("responses") => replay(&name, &bytes),
            Some((stem, "json")) if stem.starts_with("responses") => replay_whole(&name, &bytes),
            _ => continue,
        }
        replayed += 1;
    }
    println!("replayed {replayed} recorded answers");
    assert!(replayed >= 24, "{replayed}");
}

fn replay_whole(name: &str, body: &[u8]) {
    let recorded: Value = serde_json::from_slice(body).expect("JSON");
    let ended =
        recorded["object"] == "response" && matches!(recorded["status"].as_str(), Some("completed" | "incomplete"));
    let completion = completion(&recorded);
    assert_eq!(completion.is_some(), ended, "{name}");
    if let Some(completion) = completion {
        let read = |usage: &Value| Usage::parse(usage, Dialect::OpenAi).expect("believed");
        assert_eq!(read(&completion["usage"]), read(&recorded["usage"]), "{name}");
    }
}
