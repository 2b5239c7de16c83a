//! A whole response → a chat completion.

use serde_json::{Value, json};

use super::item::{self, APART, Said};
use crate::code::Code;
use crate::meter::is_error;

/// Made of a response that has ended, in full or cut short; `None`: it has not, or it failed. `id` and `created` are for
/// one that does not say them.
pub(super) fn completion(response: &Value, id: &str, created: i64) -> Option<Value> {
    if response["object"].as_str().is_some_and(|object| object != "response") {
        return None;
    }
    let ended = match response["status"].as_str() {
        Some(status) => matches!(status, "completed" | "incomplete"),
        None => !is_error(&response["error"]),
    };
    let output = response["output"].as_array().filter(|_| ended)?;
    let mut message = Message::default();
    for item in output {
        message.add(Said::by(item));
    }
    let finish_reason = item::finish_reason(response, !message.calls.is_empty());
    let logprobs = match message.logprobs.is_empty() {
        true => Value::Null,
        false => json!({"content": message.logprobs, "refusal": null}),
    };
    let mut completion = json!({
        "id": response["id"].as_str().unwrap_or(id),
        "object": "chat.completion",
        "created": item::created(response).unwrap_or(created),
        "model": response["model"].as_str().unwrap_or_default(),
        "choices": [{
            "index": 0,
            "message": message.written(),
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }],
    });
    if let Some(usage) = item::usage(&response["usage"]) {
        completion["usage"] = usage;
    }
    if let Some(tier) = response["service_tier"].as_str() {
        completion["service_tier"] = json!(tier);
    }
    Some(completion)
}

/// What failed, as chat tells it.
pub(super) fn failure(error: &Value) -> Value {
    let code = error["code"].as_str().unwrap_or(Code::ServerError.name());
    let kind = error["type"].as_str().filter(|kind| *kind != "error");
    json!({"error": {
        // Some say it without an object around it.
        "message": error["message"].as_str().or(error.as_str()).unwrap_or_default(),
        "type": kind.unwrap_or(code),
        "param": error["param"],
        "code": code,
    }})
}

/// The message so far.
#[derive(Default)]
struct Message {
    text: String,
    refusal: String,
    reasoning: String,
    annotations: Vec<Value>,
    logprobs: Vec<Value>,
    calls: Vec<Value>,
}

impl Message {
    fn add(&mut self, said: Said) {
        append(&mut self.text, &said.text);
        let before = self.text.chars().count() - said.text.chars().count();
        let before = u64::try_from(before).unwrap_or(u64::MAX);
        let annotations = said.annotations.iter();
        self.annotations
            .extend(annotations.filter_map(|annotation| item::annotation(annotation, before)));
        self.logprobs.extend(said.logprobs);
        append(&mut self.refusal, &said.refusal);
        let reasoning = match said.thought.is_empty() {
            true => said.summary,
            false => said.thought,
        };
        append(&mut self.reasoning, &reasoning);
        self.calls.extend(said.call.map(|call| {
            let kind = call.kind;
            json!({
                "id": call.id,
                "type": kind.name(),
                kind.name(): {"name": call.name, kind.input(): call.input},
            })
        }));
    }

    fn written(self) -> Value {
        let something = !self.refusal.is_empty() || !self.calls.is_empty();
        let or_null = |text: String, null: bool| match text.is_empty() && null {
            true => Value::Null,
            false => Value::String(text),
        };
        let mut message = json!({
            "role": "assistant",
            "content": or_null(self.text, something),
            "refusal": or_null(self.refusal, true),
        });
        if !self.reasoning.is_empty() {
            message["reasoning_content"] = json!(self.reasoning);
        }
        if !self.annotations.is_empty() {
            message["annotations"] = json!(self.annotations);
        }
        if !self.calls.is_empty() {
            message["tool_calls"] = json!(self.calls);
        }
        message
    }
}

fn append(whole: &mut String, text: &str) {
    if !whole.is_empty() && !text.is_empty() {
        whole.push_str(APART);
    }
    whole.push_str(text);
}
