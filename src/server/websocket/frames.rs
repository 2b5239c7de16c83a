//! Frames for the client: what comes of an answer over HTTP, and the gateway's own. Pure.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_ENCODING, CONTENT_LANGUAGE, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::sse::Event;

/// The data of an event, which is a frame as it is. None: a comment, or the end of the stream.
pub(super) fn of_event(event: Event) -> Option<Bytes> {
    event
        .data
        .filter(|data| !data.is_empty() && !data.starts_with(b"[DONE]"))
}

/// The frames of an answer that came whole although a stream was asked for. `None`: it is no response.
pub(super) fn of_whole(body: &[u8]) -> Option<Vec<Bytes>> {
    #[derive(Deserialize)]
    struct Whole<'a> {
        #[serde(borrow)]
        status: Cow<'a, str>,
        #[serde(borrow)]
        output: Vec<&'a RawValue>,
    }
    let text = std::str::from_utf8(body).ok()?;
    let Whole { status, output } = serde_json::from_str(text).ok()?;
    let end = match &*status {
        status @ ("incomplete" | "failed") => status,
        _ => "completed",
    };
    let items = output.iter().enumerate().map(|(place, item)| {
        format!(
            r#"{{"type":"response.output_item.done","sequence_number":{place},"output_index":{place},"item":{item}}}"#
        )
    });
    let last = format!(
        r#"{{"type":"response.{end}","sequence_number":{},"response":{text}}}"#,
        output.len()
    );
    Some(items.chain([last]).map(Bytes::from).collect())
}

/// A refusal, with the headers that it has over HTTP, as Codex reads it. `body` is its document: `{"error": …}`
pub(super) fn refused(status: StatusCode, headers: &HeaderMap, mut body: Value) -> Bytes {
    let error = match body.get_mut("error").map(Value::take) {
        Some(error @ Value::Object(_)) => error,
        _ => json!({"message": status.to_string(), "type": "server_error", "param": null, "code": null}),
    };
    let of_http_alone = [CONTENT_TYPE, CONTENT_ENCODING, CONTENT_LANGUAGE, CONNECTION];
    let headers: Map<String, Value> = headers
        .iter()
        .filter(|(name, _)| !of_http_alone.contains(name))
        .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.into())))
        .collect();
    let frame = json!({"type": "error", "status": status.as_u16(), "error": error, "headers": headers});
    frame.to_string().into()
}

/// The answer to a create that wants none: it is remembered, and costs nothing.
pub(super) fn remembered(id: &str, model: &str, created_at: i64) -> [Bytes; 2] {
    let response = |status: &str, usage: Value| {
        json!({
            "id": id, "object": "response", "created_at": created_at, "status": status, "background": false,
            "error": null, "incomplete_details": null, "instructions": null, "max_output_tokens": null, "metadata": {},
            "model": model, "output": [], "parallel_tool_calls": true, "previous_response_id": null, "temperature": null,
            "tool_choice": "auto", "tools": [], "top_p": null, "usage": usage,
        })
    };
    let none = json!({
        "input_tokens": 0, "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 0,
    });
    let frame = |number: u8, kind: &str, response: Value| {
        let frame = json!({"type": kind, "sequence_number": number, "response": response});
        Bytes::from(frame.to_string())
    };
    [
        frame(0, "response.created", response("in_progress", Value::Null)),
        frame(1, "response.completed", response("completed", none)),
    ]
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn events_are_frames_and_the_rest_is_not() {
        let of = |data: &'static [u8]| {
            of_event(Event {
                data: Some(Bytes::from_static(data)),
                ..Event::default()
            })
        };
        assert_eq!(of(b"{\"a\":1}"), Some(Bytes::from_static(b"{\"a\":1}")));
        assert_eq!((of(b"[DONE]"), of(b""), of_event(Event::default())), (None, None, None));
    }

    #[test]
    fn a_whole_response_is_its_items_and_its_end() {
        let body = br#"{"id":"resp_1", "status":"incomplete","output":[{"n":1},{"n":2}]}"#;
        let frames: Vec<Value> = of_whole(body)
            .expect("a response")
            .iter()
            .map(|frame| serde_json::from_slice(frame).expect("JSON"))
            .collect();
        let wanted = [
            json!({"type": "response.output_item.done", "sequence_number": 0, "output_index": 0, "item": {"n": 1}}),
            json!({"type": "response.output_item.done", "sequence_number": 1, "output_index": 1, "item": {"n": 2}}),
            json!({"type": "response.incomplete", "sequence_number": 2,
                   "response": {"id": "resp_1", "status": "incomplete", "output": [{"n": 1}, {"n": 2}]}}),
        ];
        assert_eq!(frames, wanted);
        assert_eq!((of_whole(b"{}"), of_whole(b"hello")), (None, None));
    }

    #[test]
    fn a_refusal_has_its_status_its_error_and_its_headers_in_one_frame() {
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (
                "x-codex-promo-message".parse().expect("a name"),
                HeaderValue::from_static("Ask"),
            ),
        ]);
        let body = json!({"error": {"message": "gone", "code": "insufficient_quota"}});
        let frame: Value =
            serde_json::from_slice(&refused(StatusCode::TOO_MANY_REQUESTS, &headers, body)).expect("JSON");
        let wanted = json!({
            "type": "error", "status": 429, "error": {"message": "gone", "code": "insufficient_quota"},
            "headers": {"x-codex-promo-message": "Ask"},
        });
        assert_eq!(frame, wanted);
        let other = refused(StatusCode::BAD_REQUEST, &HeaderMap::new(), json!("no document"));
        let other: Value = serde_json::from_slice(&other).expect("JSON");
        assert_eq!(other["error"]["message"], "400 Bad Request");
    }
}
