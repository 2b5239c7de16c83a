//! The words the gateway itself puts into a stream: keep-alives, and ends in the protocol's own terms.

use bytes::Bytes;
use serde_json::{Value, json};

use crate::call::Endpoint;
use crate::code::Code;
use crate::meter::Reading;

/// A sign of life between two events. Comments do not reset Codex's timer; OpenAI's SDKs ignore unknown events.
pub(super) fn keep_alive(endpoint: Endpoint) -> Bytes {
    match endpoint {
        Endpoint::Responses | Endpoint::Compact => Bytes::from_static(b"data: {\"type\":\"keepalive\"}\n\n"),
        _ => Bytes::from_static(b": keep-alive\n\n"),
    }
}

/// The output limit is reached, as the protocol tells it.
pub(super) fn limited(endpoint: Endpoint, reading: &Reading, events: u64, choices: u32) -> Bytes {
    match endpoint {
        Endpoint::Responses | Endpoint::Compact => {
            let mut response = response(reading, "incomplete");
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
            event(
                "response.incomplete",
                &json!({"type": "response.incomplete", "sequence_number": events, "response": response}),
            )
        }
        _ => {
            let choices: Vec<Value> = (0..choices).map(|index| choice(endpoint, index)).collect();
            let mut chunk = data(&json!({
                "id": reading.response_id.as_deref().unwrap_or(""),
                "object": if endpoint == Endpoint::Completions { "text_completion" } else { "chat.completion.chunk" },
                "created": 0,
                "model": reading.model.as_deref().unwrap_or(""),
                "choices": choices,
            }));
            chunk.extend_from_slice(b"data: [DONE]\n\n");
            chunk.into()
        }
    }
}

fn choice(endpoint: Endpoint, index: u32) -> Value {
    let mut choice = json!({"index": index, "finish_reason": "length", "logprobs": null});
    match endpoint {
        Endpoint::Completions => choice["text"] = json!(""),
        _ => choice["delta"] = json!({}),
    }
    choice
}

/// It ends early, as this says: never `[DONE]`, never `completed`.
pub(super) fn failed(endpoint: Endpoint, reading: &Reading, events: u64, message: &str) -> Bytes {
    let code = Code::ServerError;
    match endpoint {
        Endpoint::Responses | Endpoint::Compact => {
            let mut response = response(reading, "failed");
            response["error"] = json!({"code": code, "message": message});
            event(
                "response.failed",
                &json!({"type": "response.failed", "sequence_number": events, "response": response}),
            )
        }
        _ => event(
            "error",
            &json!({"error": {"message": message, "type": code, "param": null, "code": code}}),
        ),
    }
}

/// A response object with what both OpenAI's SDKs and Codex need of it.
fn response(reading: &Reading, status: &str) -> Value {
    json!({
        "id": reading.response_id.as_deref().unwrap_or("resp_unknown"),
        "object": "response",
        "created_at": 0,
        "status": status,
        "error": null,
        "incomplete_details": null,
        "instructions": null,
        "metadata": {},
        "model": reading.model.as_deref().unwrap_or(""),
        "output": [],
        "parallel_tool_calls": true,
        "temperature": null,
        "tool_choice": "auto",
        "tools": [],
        "top_p": null,
        "usage": null,
    })
}

fn event(name: &str, value: &Value) -> Bytes {
    let mut bytes = format!("event: {name}\n").into_bytes();
    bytes.extend(data(value));
    bytes.into()
}

fn data(value: &Value) -> Vec<u8> {
    format!("data: {value}\n\n").into_bytes()
}
