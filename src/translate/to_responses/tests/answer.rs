//! Whole answers, their ends and their usage.

use serde_json::{Value, json};

use super::super::back::given;
use super::super::stream::Chunks;
use super::{completion, response, usage};
use crate::meter::Reading;
use crate::translate::Answer;
use crate::usage::{Dialect, Usage};

fn message_of(output: Value) -> (Value, Value) {
    let mut completion = completion(&response(output, json!({}))).expect("an answer");
    let choice = &mut completion["choices"][0];
    (choice["message"].take(), choice["finish_reason"].take())
}

#[test]
fn a_whole_response_becomes_a_completion() {
    let output = json!([
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "One."}, {"type": "summary_text", "text": "Two."}]},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [{"type": "output_text", "text": "Hello", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "f", "arguments": "{}"},
        {"type": "custom_tool_call", "id": "ct_1", "call_id": "call_2", "name": "g", "input": "raw"},
    ]);
    let expected = json!({
        "id": "resp_1", "object": "chat.completion", "created": 1_795_000_001, "model": "m-1", "service_tier": "default",
        "choices": [{"index": 0, "logprobs": null, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "Hello", "refusal": null, "reasoning_content": "One.\n\nTwo.",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "call_2", "type": "custom", "custom": {"name": "g", "input": "raw"}},
            ],
        }}],
        "usage": {"prompt_tokens": 120, "prompt_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 30},
            "completion_tokens": 42, "completion_tokens_details": {"reasoning_tokens": 20}, "total_tokens": 162},
    });
    assert_eq!(completion(&response(output, json!({}))), Some(expected));
}

#[test]
fn forms_of_whole_responses() {
    let refusal = json!([{"type": "message", "content": [{"type": "refusal", "refusal": "No."}]}]);
    let expected = json!({"role": "assistant", "content": null, "refusal": "No."});
    assert_eq!(message_of(refusal), (expected, json!("stop")));
    let empty = json!({"role": "assistant", "content": "", "refusal": null});
    assert_eq!(message_of(json!([])), (empty, json!("stop")));
    let cite = |from: u64| json!({"type": "url_citation", "start_index": from, "end_index": from + 2, "url": "https://e", "title": "E"});
    let cited = json!([
        {"type": "web_search_call", "id": "ws_1", "status": "completed"},
        {"type": "message", "content": [{"type": "output_text", "text": "Prä", "annotations": []}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Ende", "annotations": [cite(1), {"type": "file_citation"}]}]},
    ]);
    let (message, _) = message_of(cited);
    assert_eq!(message["content"], "Prä\n\nEnde");
    let expected = json!([{"type": "url_citation", "url_citation":
        {"start_index": 6, "end_index": 8, "url": "https://e", "title": "E"}}]);
    assert_eq!(message["annotations"], expected);
    let logprobs = json!([{"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": []}]);
    let likely = json!([{"type": "message", "content": [{"type": "output_text", "text": "Hi", "logprobs": logprobs}]}]);
    let whole = completion(&response(likely, json!({}))).expect("an answer");
    assert_eq!(
        whole["choices"][0]["logprobs"],
        json!({"content": logprobs, "refusal": null})
    );
    let aloud = json!([{"type": "reasoning", "summary": [{"text": "S"}], "content": [{"type": "reasoning_text", "text": "T"}]}]);
    assert_eq!(message_of(aloud).0["reasoning_content"], "T");
}

#[test]
fn the_end_says_why() {
    let cut = |reason: Value| response(json!([]), json!({"status": "incomplete", "incomplete_details": reason}));
    for (response, reason) in [
        (cut(json!({"reason": "max_output_tokens"})), "length"),
        (cut(json!({"reason": "content_filter"})), "content_filter"),
        (cut(Value::Null), "length"),
    ] {
        let completion = completion(&response).expect("an answer");
        assert_eq!(completion["choices"][0]["finish_reason"], reason, "{response}");
    }
    let failed = response(
        json!([]),
        json!({"status": "failed", "error": {"code": "server_error", "message": "No."}}),
    );
    let error = json!({"message": "No.", "type": "server_error", "param": null, "code": "server_error"});
    assert_eq!(completion(&failed), Some(json!({"error": error})));
    let cancelled = completion(&response(json!([]), json!({"status": "cancelled"}))).expect("an error");
    assert!(
        cancelled["error"]["message"]
            .as_str()
            .is_some_and(|text| !text.is_empty())
    );
    for status in ["queued", "in_progress"] {
        assert_eq!(
            completion(&response(json!([]), json!({"status": status}))),
            None,
            "{status}"
        );
    }
    for body in ["", "[]", "{}", "nonsense", r#"{"error":null}"#] {
        let whole = Chunks::new(false, &given()).whole(body.as_bytes(), &Reading::default());
        assert_eq!(whole, None, "{body}");
    }
    let bare = json!({"error": {"message": "No.", "type": "invalid_request_error", "param": null, "code": "no"}});
    assert_eq!(completion(&bare), Some(bare));
    let worded = completion(&json!({"error": "No."})).expect("an error");
    assert_eq!(
        (&worded["error"]["message"], &worded["error"]["code"]),
        (&json!("No."), &json!("server_error"))
    );
}

#[test]
fn usage_counts_the_same_in_both() {
    let of =
        |usage: Value| completion(&response(json!([]), json!({"usage": usage}))).expect("an answer")["usage"].take();
    let chat_style = json!({"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3});
    for usage in [
        usage(),
        chat_style,
        json!({"input_tokens": 1, "output_tokens": 0, "input_tokens_details": null, "cost": 0.5}),
    ] {
        let read = |usage: &Value| Usage::parse(usage, Dialect::OpenAi).expect("believed");
        assert_eq!(read(&of(usage.clone())), read(&usage), "{usage}");
    }
    assert_eq!(of(Value::Null), Value::Null);
}
