//! The promises of the translation to the Responses API and back: each form of request and answer, and what is refused.

mod answer;
mod any;
mod request;
mod stream;

use bytes::Bytes;
use serde_json::{Value, json};

use super::back::given;
use super::stream::Chunks;
use crate::call::{Call, CallError, Endpoint};
use crate::meter::Reading;
use crate::translate::{Answer, Translation, Wire, translate};

fn translation(chat: &Value) -> Result<Translation, CallError> {
    let body = Bytes::from(chat.to_string());
    let call = Call::parse(Endpoint::ChatCompletions, body).expect("a chat call");
    translate(&call, Wire::Responses, &given())
}

fn asking(more: Value) -> Value {
    let mut chat = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let more = more.as_object().cloned().expect("an object");
    chat.as_object_mut().expect("an object").extend(more);
    chat
}

fn usage() -> Value {
    json!({"input_tokens": 120, "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 30},
        "output_tokens": 42, "output_tokens_details": {"reasoning_tokens": 20}, "total_tokens": 162})
}

fn response(output: Value, more: Value) -> Value {
    let mut response = json!({"id": "resp_1", "object": "response", "created_at": 1_795_000_001, "model": "m-1",
        "status": "completed", "error": null, "incomplete_details": null, "output": output, "usage": usage(),
        "service_tier": "default"});
    let more = more.as_object().cloned().expect("an object");
    response.as_object_mut().expect("an object").extend(more);
    response
}

fn completion(response: &Value) -> Option<Value> {
    let body = response.to_string();
    let whole = Chunks::new(false, &given()).whole(body.as_bytes(), &Reading::default())?;
    Some(serde_json::from_slice(&whole).expect("JSON"))
}

fn stream(events: &[Value]) -> Vec<u8> {
    let written = events.iter().flat_map(|event| {
        let name = event["type"].as_str().expect("a type");
        format!("event: {name}\ndata: {event}\n\n").into_bytes()
    });
    written.collect()
}
