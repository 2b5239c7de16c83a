//! A `response.create` frame, as the HTTP call that it stands for. Pure.
//!
//! The call's body has the frame's members as they were written, but for those of the WebSocket alone (`type`,
//! `generate`), for `stream`, which is always true, and for what this connection remembers: when `previous_response_id`
//! names its last response, it is left out, and `input` becomes that response's input, its output and the new items.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::thread::Thread;
use crate::call::{CallError, Instead, Member, Problem, Wanted, members};
use crate::refusal::Refusal;

/// The one frame that a client may send.
static TYPES: [&str; 1] = ["response.create"];

/// How Codex writes a header of one call, when the connection has but those of its handshake.
const HEADER: &str = "ws_request_header_";

/// Members of `client_metadata` that are headers of the HTTP call, and the names they have there.
const METADATA: [(&str, &str); 4] = [
    ("session_id", "session-id"),
    ("thread_id", "thread-id"),
    ("x-codex-turn-metadata", "x-codex-turn-metadata"),
    ("x-codex-window-id", "x-codex-window-id"),
];

/// Headers that a frame may bring, beside those by the start of their names. What says who and where the client is
/// counts as of the handshake.
const HEADERS: [&str; 4] = ["accept-language", "idempotency-key", "traceparent", "tracestate"];

/// By the start of their names.
const HEADER_PREFIXES: [&str; 2] = ["x-codex-", "x-openai-"];

/// What a client asks for.
#[derive(Debug)]
pub(super) struct Create {
    /// The body of the call.
    pub(super) body: Bytes,
    /// Where in it the value of `input` is, if it has any.
    input: Option<Range<usize>>,
    /// `generate`: whether an answer is wanted; else only that the input is remembered.
    pub(super) generates: bool,
    /// Whether the client said `"store": false`: then nobody but this connection keeps the response.
    pub(super) is_kept_here_only: bool,
    /// The same without what the response has that it follows on, where that is told whole: that response, and the body.
    pub(super) follows: Option<(String, Bytes)>,
    /// Headers of this call.
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Create {
    /// Reads a frame. `thread` is what the connection remembers.
    ///
    /// # Errors
    /// It is none, or leans on a response that nobody has.
    pub(super) fn read(frame: &str, thread: Option<&Thread>) -> Result<Create, Refusal> {
        let members = members(frame).map_err(Refusal::Call)?;
        let fields = Fields(&members);
        if fields.text("type")?.as_deref() != Some(TYPES[0]) {
            return Err(param("type", Problem::NotOneOf(&TYPES)));
        }
        if fields.one("stream_id")?.is_some() {
            return Err(param("stream_id", Problem::Unsupported(Instead::OneAtATime)));
        }
        // Its end would not come over this connection.
        if fields.one("background")? == Some("true") {
            return Err(param("background", Problem::Unsupported(Instead::PostResponse)));
        }
        let generates = match fields.one("generate")? {
            None | Some("true") => true,
            Some("false") => false,
            Some(_) => return Err(param("generate", Problem::Type(Wanted::Bool))),
        };
        let is_kept_here_only = fields.one("store")? == Some("false");
        let earlier = match fields.text("previous_response_id")? {
            None => None,
            Some(id) => match thread.filter(|thread| thread.is(&id)) {
                // The upstream may keep it.
                None if !is_kept_here_only && generates => None,
                None => return Err(Refusal::NoPrevious { id }),
                found => found,
            },
        };
        // What the model would read beyond the whole, nothing would be held for.
        let follows = earlier.filter(|earlier| earlier.tells_all());
        let follows = follows.map(|earlier| (earlier.id().to_owned(), body(&members, None).0));
        let (body, input) = body(&members, earlier);
        Ok(Create {
            follows,
            body,
            input,
            generates,
            is_kept_here_only,
            headers: headers(&members),
        })
    }

    /// The items of the input, separated by commas.
    pub(super) fn items(&self) -> Cow<'_, str> {
        let written = self.input.clone().and_then(|input| self.body.get(input));
        items(written.and_then(|input| std::str::from_utf8(input).ok()).unwrap_or(""))
    }

    /// Puts the headers of this call in the place of the handshake's.
    pub(super) fn put_headers(&mut self, headers: &mut HeaderMap) {
        for (name, value) in self.headers.drain(..) {
            headers.insert(name, value);
        }
    }
}

/// Members by their names.
struct Fields<'a>(&'a [Member<'a>]);

impl<'a> Fields<'a> {
    /// The JSON of a member, which may be there once; `null` is none.
    fn one(&self, name: &str) -> Result<Option<&'a str>, Refusal> {
        let mut found = self.0.iter().filter(|member| member.name == name);
        match (found.next(), found.next()) {
            (Some(member), None) => Ok(Some(member.value).filter(|value| *value != "null")),
            (None, _) => Ok(None),
            (Some(_), Some(_)) => Err(param(name, Problem::Repeated)),
        }
    }

    fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        let read = |raw| serde_json::from_str(raw).map_err(|_| param(name, Problem::Type(Wanted::Text)));
        self.one(name)?.map(read).transpose()
    }
}

fn param(name: &str, problem: Problem) -> Refusal {
    let name = name.to_owned();
    Refusal::Call(CallError::Param { name, problem })
}

/// The body of the call, and where its input is.
fn body(members: &[Member<'_>], earlier: Option<&Thread>) -> (Bytes, Option<Range<usize>>) {
    let known = earlier.map_or("", Thread::items);
    let written: usize = members
        .iter()
        .map(|member| member.name.len() + member.value.len() + 8)
        .sum();
    let (mut body, mut input) = (String::with_capacity(written + known.len() + 32), None);
    let mut put_input = |body: &mut String, value: &str| {
        body.push_str("\"input\":");
        let start = body.len();
        match (known, value) {
            ("", value) => body.push_str(value),
            (known, value) => {
                let new = items(value);
                let comma = if new.is_empty() { "" } else { "," };
                for part in ["[", known, comma, &new, "]"] {
                    body.push_str(part);
                }
            }
        }
        input.get_or_insert(start..body.len());
        body.push(',');
    };
    body.push('{');
    for Member { name, value } in members {
        match &**name {
            "type" | "generate" | "stream" => {}
            "previous_response_id" if earlier.is_some() => {}
            "input" => put_input(&mut body, value),
            name => {
                body.push_str(&Value::from(name).to_string());
                body.push(':');
                body.push_str(value);
                body.push(',');
            }
        }
    }
    if !known.is_empty() && !members.iter().any(|member| member.name == "input") {
        put_input(&mut body, "null");
    }
    body.push_str("\"stream\":true}");
    (body.into(), input)
}

/// The items of an input, as they are between the brackets of a list. A text is a message of the user.
fn items(input: &str) -> Cow<'_, str> {
    match input.as_bytes().first() {
        Some(b'[') => Cow::Borrowed(input.get(1..input.len() - 1).unwrap_or("").trim_ascii()),
        Some(b'"') => Cow::Owned(format!(r#"{{"type":"message","role":"user","content":{input}}}"#)),
        _ => Cow::Borrowed(""),
    }
}

/// The headers that Codex writes into `client_metadata`.
fn headers(all: &[Member<'_>]) -> Vec<(HeaderName, HeaderValue)> {
    let metadata = all.iter().find(|member| member.name == "client_metadata");
    let metadata = metadata
        .and_then(|member| members(member.value).ok())
        .unwrap_or_default();
    metadata.iter().filter_map(header).collect()
}

fn header(member: &Member<'_>) -> Option<(HeaderName, HeaderValue)> {
    let named = METADATA.iter().find(|(name, _)| *name == member.name);
    let name = match named {
        Some((_, header)) => (*header).to_owned(),
        None => {
            let name = member.name.strip_prefix(HEADER)?.replace('_', "-").to_ascii_lowercase();
            let may = HEADERS.contains(&&*name) || HEADER_PREFIXES.iter().any(|start| name.starts_with(start));
            may.then_some(name)?
        }
    };
    let value: String = serde_json::from_str(member.value).ok()?;
    Some((name.parse().ok()?, value.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn thread(items: &str) -> Thread {
        Thread::of("resp_1", items)
    }

    fn create(frame: &Value, thread: Option<&Thread>) -> Create {
        Create::read(&frame.to_string(), thread).expect("a create")
    }

    fn json_of(create: &Create) -> Value {
        serde_json::from_slice(&create.body).expect("JSON")
    }

    #[test]
    fn a_create_is_the_body_of_the_call_without_what_is_of_the_websocket() {
        let frame = r#"{"type":"response.create","model":"m","input":[ {"a":1} ],"stream":false,"generate":true,"x":{"y":[1]}}"#;
        let create = Create::read(frame, None).expect("a create");
        assert_eq!(
            std::str::from_utf8(&create.body).expect("text"),
            r#"{"model":"m","input":[ {"a":1} ],"x":{"y":[1]},"stream":true}"#
        );
        assert_eq!((create.items(), create.generates), (r#"{"a":1}"#.into(), true));
        assert_eq!(create.follows, None);
    }

    #[test]
    fn what_the_connection_remembers_comes_before_the_new_items() {
        let (known, with) = (
            thread(r#"{"n":1},{"n":2}"#),
            |input: Value| json!({"type": "response.create", "model": "m", "previous_response_id": "resp_1", "input": input, "store": false}),
        );
        for (input, wanted) in [
            (json!([{"n": 3}]), json!([{"n": 1}, {"n": 2}, {"n": 3}])),
            (json!([]), json!([{"n": 1}, {"n": 2}])),
            (Value::Null, json!([{"n": 1}, {"n": 2}])),
            (json!([[]]), json!([{"n": 1}, {"n": 2}, []])),
            (
                json!("hi \"there\""),
                json!([{"n": 1}, {"n": 2}, {"type": "message", "role": "user", "content": "hi \"there\""}]),
            ),
        ] {
            let create = create(&with(input.clone()), Some(&known));
            let body = json_of(&create);
            assert_eq!(body["input"], wanted);
            assert_eq!(body.get("previous_response_id"), None);
            let (after, new) = create.follows.as_ref().expect("it follows");
            let new: Value = serde_json::from_slice(new).expect("JSON");
            assert_eq!((&**after, &new["previous_response_id"]), ("resp_1", &json!("resp_1")));
            assert_eq!(new["input"], input);
            let items: Value = serde_json::from_str(&format!("[{}]", create.items())).expect("items");
            assert_eq!(items, wanted);
        }
        let without = json!({"type": "response.create", "model": "m", "previous_response_id": "resp_1"});
        assert_eq!(
            json_of(&create(&without, Some(&known)))["input"],
            json!([{"n": 1}, {"n": 2}])
        );
        let of_nothing = create(&with(json!([{"n": 3}])), Some(&thread("")));
        assert_eq!(json_of(&of_nothing)["input"], json!([{"n": 3}]));
    }

    #[test]
    fn a_response_that_nobody_keeps_is_not_found_and_one_that_the_upstream_may_keep_is_asked_for_there() {
        let known = thread("");
        let with = |more: Value| {
            let mut frame = json!({"type": "response.create", "model": "m", "previous_response_id": "resp_2"});
            frame
                .as_object_mut()
                .expect("an object")
                .extend(more.as_object().expect("an object").clone());
            Create::read(&frame.to_string(), Some(&known))
        };
        let gone = Refusal::NoPrevious { id: "resp_2".into() };
        assert_eq!(with(json!({"store": false})).err(), Some(gone.clone()));
        assert_eq!(with(json!({"generate": false})).err(), Some(gone));
        let asked = with(json!({})).expect("a create");
        assert_eq!(json_of(&asked)["previous_response_id"], "resp_2");
    }

    #[test]
    fn anything_else_is_refused_by_name() {
        for (frame, name) in [
            (r#"{"model":"m"}"#, "type"),
            (r#"{"type":"response.steer"}"#, "type"),
            (r#"{"type":7}"#, "type"),
            (r#"{"type":"response.create","type":"response.create"}"#, "type"),
            (r#"{"type":"response.create","stream_id":"a"}"#, "stream_id"),
            (r#"{"type":"response.create","generate":1}"#, "generate"),
        ] {
            let Err(Refusal::Call(error)) = Create::read(frame, None) else {
                panic!("{frame}");
            };
            assert_eq!(error.param(), Some(name), "{frame}");
        }
        for frame in ["", "[]", "hello", "{"] {
            let Err(Refusal::Call(error)) = Create::read(frame, None) else {
                panic!("{frame}");
            };
            assert_eq!(error.param(), None, "{frame}");
        }
    }

    #[test]
    fn what_is_a_header_over_http_is_one_again_and_nothing_says_who_the_client_is() {
        let frame = json!({"type": "response.create", "client_metadata": {
            "thread_id": "t", "session_id": "s", "turn_id": "no header",
            "x-codex-turn-metadata": "{\"turn_id\":\"a\"}",
            "ws_request_header_x_openai_internal_codex_responses_lite": "true",
            "ws_request_header_idempotency_key": "name",
            "ws_request_header_authorization": "Bearer other",
            "ws_request_header_x_forwarded_for": "10.0.0.1",
            "ws_request_header_x_codex_broken": "a\nb",
        }});
        let mut headers = HeaderMap::from_iter([
            (HeaderName::from_static("thread-id"), HeaderValue::from_static("before")),
            (
                HeaderName::from_static("authorization"),
                HeaderValue::from_static("Bearer own"),
            ),
        ]);
        create(&frame, None).put_headers(&mut headers);
        let mut seen: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.to_str().expect("text")))
            .collect();
        seen.sort_unstable();
        let wanted = [
            ("authorization", "Bearer own"),
            ("idempotency-key", "name"),
            ("session-id", "s"),
            ("thread-id", "t"),
            ("x-codex-turn-metadata", "{\"turn_id\":\"a\"}"),
            ("x-openai-internal-codex-responses-lite", "true"),
        ];
        assert_eq!(seen, wanted);
    }
}
