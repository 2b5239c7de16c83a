//! What a chat client has in the end, whatever pieces an answer came in; and a Responses stream turned into chat's, so that
//! a translated answer can be translated back and held against what it was.

use bytes::Bytes;
use serde_json::Value;
use uuid::Uuid;

use super::stream::Chunks;
use crate::call::ChatLimitField;
use crate::meter::Reading;
use crate::sse::{Event, Splitter};
use crate::texts::Language;
use crate::translate::{Answer, Client, Given};
use crate::usage::{Dialect, Usage};

/// What a client was told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) text: String,
    pub(crate) refusal: String,
    pub(crate) reasoning: String,
    pub(crate) calls: Vec<Called>,
    /// Why it ended. An end after calls is `tool_calls`, as some vendors say `stop` there.
    pub(crate) finish: Option<String>,
    /// The last usage.
    pub(crate) usage: Option<Usage>,
    /// What an error said.
    pub(crate) error: Option<String>,
    /// Whether `[DONE]` came.
    pub(crate) done: bool,
}

/// A tool to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Called {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) input: String,
}

/// Reads what a client is told.
#[derive(Default)]
struct Listener {
    told: Told,
    /// Where each call stands, as its deltas say.
    indices: Vec<Option<u64>>,
}

/// What a translation is given.
pub(crate) fn given() -> Given {
    Given {
        id: Uuid::nil(),
        created: 1_795_000_000,
        chat_limit_field: ChatLimitField::MaxCompletionTokens,
        client: Client::Other,
        language: Language::English,
    }
}

/// The events of a stream that comes in these chunks.
pub(crate) fn events<'a>(chunks: impl IntoIterator<Item = &'a [u8]>) -> Vec<Event> {
    let mut splitter = Splitter::new();
    let mut pieces = Vec::new();
    for chunk in chunks {
        splitter.push(Bytes::copy_from_slice(chunk));
        pieces.extend(std::iter::from_fn(|| splitter.next_piece()));
    }
    pieces.extend(std::iter::from_fn(|| splitter.finish()));
    pieces.into_iter().filter_map(|piece| piece.event).collect()
}

/// A Responses stream as a chat client gets it that asked for the usage.
pub(crate) fn chat_of(responses: &[u8]) -> Vec<u8> {
    let mut chunks = Chunks::new(true, &given());
    let events = events([responses]);
    events
        .iter()
        .flat_map(|event| chunks.event(event, &Reading::default()))
        .collect()
}

/// What a chat stream told; `dialect` is how its usage is to be read.
pub(crate) fn told(stream: &[u8], dialect: Dialect) -> Told {
    let mut listener = Listener::default();
    for event in events([stream]) {
        let Some(data) = event.data else { continue };
        if data.starts_with(b"[DONE]") {
            listener.told.done = true;
            continue;
        }
        let chunk: Value = serde_json::from_slice(&data).expect("JSON");
        listener.take(&chunk, dialect);
    }
    listener.told
}

/// What a whole chat completion told.
pub(crate) fn told_at_once(completion: &Value) -> Told {
    let mut listener = Listener::default();
    listener.take(completion, Dialect::OpenAi);
    Told {
        done: true,
        ..listener.told
    }
}

impl Listener {
    fn take(&mut self, chunk: &Value, dialect: Dialect) {
        if let Some(message) = chunk["error"]["message"].as_str() {
            self.told.error = Some(message.to_owned());
        }
        let choice = &chunk["choices"][0];
        for usage in [&chunk["usage"], &chunk["x_groq"]["usage"], &choice["usage"]] {
            if let Ok(Some(usage)) = Usage::parse(usage, dialect) {
                self.told.usage = Some(usage);
            }
        }
        for delta in [&choice["delta"], &choice["message"]] {
            self.add(delta);
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            let after_calls = !self.told.calls.is_empty() && matches!(reason, "stop" | "function_call");
            self.told.finish = Some(if after_calls { "tool_calls" } else { reason }.to_owned());
        }
    }

    fn add(&mut self, delta: &Value) {
        let text = |name: &str| delta[name].as_str().unwrap_or_default();
        self.told.text.push_str(text("content"));
        for part in delta["content"].as_array().into_iter().flatten() {
            self.told.text.push_str(part["text"].as_str().unwrap_or_default());
            for thought in part["thinking"].as_array().into_iter().flatten() {
                self.told
                    .reasoning
                    .push_str(thought["text"].as_str().unwrap_or_default());
            }
        }
        self.told.refusal.push_str(text("refusal"));
        let reasoning = [text("reasoning_content"), text("reasoning")];
        let reasoning = reasoning.into_iter().find(|text| !text.is_empty());
        self.told.reasoning.push_str(reasoning.unwrap_or_default());
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            self.call(call);
        }
    }

    fn call(&mut self, delta: &Value) {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        let (id, index) = (text(&delta["id"]), delta["index"].as_u64());
        let tool = match delta["custom"].is_object() {
            true => &delta["custom"],
            false => &delta["function"],
        };
        let known = self
            .told
            .calls
            .iter()
            .zip(&self.indices)
            .rposition(|(call, place)| (index.is_none() || *place == index) && (id.is_empty() || call.id == id));
        let place = known.unwrap_or_else(|| {
            self.indices.push(index);
            self.told.calls.push(Called {
                id,
                ..Called::default()
            });
            self.told.calls.len() - 1
        });
        let call = &mut self.told.calls[place];
        // Some repeat the name with every piece.
        if call.name.is_empty() {
            call.name = text(&tool["name"]);
        }
        call.input.push_str(&text(&tool["arguments"]));
        call.input.push_str(&text(&tool["input"]));
    }
}
