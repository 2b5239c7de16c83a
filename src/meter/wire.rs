//! What the meter reads of an answer: the names of events, and JSON borrowed from their bytes, member by member.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::{End, Reading, is_error};
use crate::usage::ToolCall;

/// The terminal events of the Responses API.
pub(super) fn end_of(kind: &str) -> Option<End> {
    match kind {
        "response.completed" => Some(End::Completed),
        "response.incomplete" => Some(End::Incomplete),
        "response.failed" | "error" => Some(End::Failed),
        _ => None,
    }
}

/// Deltas that are output tokens of the model, as they are counted and billed.
pub(super) const MODEL_TEXT: [&str; 11] = [
    "response.output_text.delta",
    "response.refusal.delta",
    "response.function_call_arguments.delta",
    "response.custom_tool_call_input.delta",
    "response.mcp_call_arguments.delta",
    "response.reasoning_text.delta",
    "response.code_interpreter_call_code.delta",
    "response.shell_call_command.delta",
    "response.apply_patch_call_operation_diff.delta",
    "response.audio.transcript.delta",
    "response.audio_transcript.delta",
];

/// Deltas that a client sees, though their text is not made of the model's billed output.
pub(super) const DELIVERED: [&str; 3] = [
    "response.reasoning_summary_text.delta",
    "response.shell_call_output_content.delta",
    "response.audio.delta",
];

/// Events that repeat what others say, and are long: not worth parsing when name and data agree on what they are.
pub(super) fn is_dull(name: &str, data: &[u8]) -> bool {
    const DULL: [&str; 9] = [
        "response.in_progress",
        "response.output_text.done",
        "response.content_part.added",
        "response.content_part.done",
        "response.function_call_arguments.done",
        "response.custom_tool_call_input.done",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_part.done",
    ];
    let kind = data
        .strip_prefix(br#"{"type":""#)
        .and_then(|rest| rest.strip_prefix(name.as_bytes()));
    kind.is_some_and(|rest| rest.starts_with(b"\"")) && DULL.contains(&name)
}

/// A JSON object of that form; a list is none, though serde would take it for the members in their order.
pub(super) fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    if !json.trim_ascii_start().starts_with(b"{") {
        return None;
    }
    // Text that is known to be UTF-8 is not looked at again, string by string.
    match std::str::from_utf8(json) {
        Ok(text) => serde_json::from_str(text).ok(),
        Err(_) => serde_json::from_slice(json).ok(),
    }
}

/// A member as it is written; nothing when it is missing or null. It is read only where it is wanted, so that an odd
/// one does not hide the others, and text that nobody counts is not decoded.
#[derive(Clone, Copy, Default, Deserialize)]
#[serde(transparent)]
pub(super) struct Json<'a>(#[serde(borrow)] Option<&'a RawValue>);

impl<'a> Json<'a> {
    /// What it says, if it is of that form.
    pub(super) fn read<T: Deserialize<'a>>(self) -> Option<T> {
        serde_json::from_str(self.0?.get()).ok()
    }

    /// What it says, if it is a string.
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        let inside = self.0?.get().strip_prefix('"')?.strip_suffix('"')?;
        if inside.contains('\\') {
            return self.read().map(Cow::Owned);
        }
        Some(Cow::Borrowed(inside))
    }

    /// Its parts with text; a string is one.
    fn parts(self) -> Vec<Part<'a>> {
        if self.0.is_some_and(|json| json.get().starts_with('[')) {
            return self.read().unwrap_or_default();
        }
        vec![Part {
            text: self,
            ..Part::default()
        }]
    }

    /// Itself, or `other` when there is none.
    pub(super) fn or(self, other: Json<'a>) -> Json<'a> {
        Json(self.0.or(other.0))
    }

    /// Whether there is one.
    pub(super) fn is_there(self) -> bool {
        self.0.is_some()
    }

    /// Whether it, an `error` member, is one.
    pub(super) fn is_error(self) -> bool {
        self.read::<Value>().is_some_and(|error| is_error(&error))
    }
}

/// A chunk of a chat or completions stream, or a whole body of chat, completions or embeddings.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Chunk<'a> {
    pub(super) id: Json<'a>,
    pub(super) model: Json<'a>,
    pub(super) service_tier: Json<'a>,
    /// A list of [`Choice`]s.
    pub(super) choices: Json<'a>,
    pub(super) usage: Json<'a>,
    /// A [`Groq`].
    pub(super) x_groq: Json<'a>,
    pub(super) error: Json<'a>,
}

/// An event or a whole answer of the image and audio endpoints.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Medium<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Json<'a>,
    pub(super) usage: Json<'a>,
    /// Of a transcription, in seconds.
    pub(super) duration: Json<'a>,
    pub(super) text: Json<'a>,
    pub(super) delta: Json<'a>,
    pub(super) error: Json<'a>,
}

/// Groq repeats the usage here.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Groq<'a> {
    pub(super) usage: Json<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Choice<'a> {
    delta: Option<Message<'a>>,
    message: Option<Message<'a>>,
    pub(super) finish_reason: Json<'a>,
    /// Of the legacy completions.
    text: Json<'a>,
    /// Of Moonshot's older models.
    pub(super) usage: Json<'a>,
}

impl Choice<'_> {
    pub(super) fn show(&self, reading: &mut Reading) -> bool {
        let message = self.delta.as_ref().or(self.message.as_ref());
        message.is_some_and(|message| message.show(reading)) | reading.show_all([self.text])
    }
}

#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct Message<'a> {
    content: Json<'a>,
    refusal: Json<'a>,
    reasoning_content: Json<'a>,
    /// As Groq, Ollama and OpenRouter call `reasoning_content`; some send both.
    reasoning: Json<'a>,
    tool_calls: Option<Vec<ToolCallDelta<'a>>>,
    function_call: Option<FunctionDelta<'a>>,
    audio: Option<AudioDelta<'a>>,
}

impl Message<'_> {
    fn show(&self, reading: &mut Reading) -> bool {
        let reasoning = match self.reasoning_content.text() {
            Some(_) => self.reasoning_content,
            None => self.reasoning,
        };
        let mut shown = reading.show_all([reasoning, self.refusal]) | show_parts(self.content, reading);
        let calls = self.tool_calls.iter().flatten();
        let functions = calls.flat_map(|call| [&call.function, &call.custom]);
        for function in functions.chain([&self.function_call]).flatten() {
            shown |= reading.show_all([function.name, function.arguments, function.input]);
        }
        shown | self.audio.as_ref().is_some_and(|audio| audio.show(reading))
    }
}

#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct ToolCallDelta<'a> {
    function: Option<FunctionDelta<'a>>,
    custom: Option<FunctionDelta<'a>>,
}

#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct FunctionDelta<'a> {
    name: Json<'a>,
    arguments: Json<'a>,
    input: Json<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct AudioDelta<'a> {
    transcript: Json<'a>,
    data: Json<'a>,
}

impl AudioDelta<'_> {
    fn show(&self, reading: &mut Reading) -> bool {
        reading.show_all([self.transcript]) | self.data.text().is_some_and(|data| !data.is_empty())
    }
}

/// An event of a Responses stream.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct ResponseEvent<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Json<'a>,
    pub(super) response: Option<Response<'a>>,
    /// An [`Item`].
    pub(super) item: Json<'a>,
    pub(super) item_id: Json<'a>,
    pub(super) output_index: Json<'a>,
    pub(super) delta: Json<'a>,
    pub(super) error: Json<'a>,
}

/// A response object.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Response<'a> {
    pub(super) id: Json<'a>,
    pub(super) model: Json<'a>,
    pub(super) service_tier: Json<'a>,
    pub(super) status: Json<'a>,
    /// A list of [`Item`]s.
    pub(super) output: Json<'a>,
    pub(super) usage: Json<'a>,
    pub(super) tool_usage: Json<'a>,
    pub(super) error: Json<'a>,
}

/// An output item of a response.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
pub(super) struct Item<'a> {
    #[serde(rename = "type")]
    kind: Json<'a>,
    pub(super) id: Json<'a>,
    status: Json<'a>,
    pub(super) name: Json<'a>,
    arguments: Json<'a>,
    input: Json<'a>,
    code: Json<'a>,
    /// Of messages and of reasoning that is not hidden.
    content: Json<'a>,
    summary: Json<'a>,
    pub(super) encrypted_content: Json<'a>,
    /// An [`Action`].
    action: Json<'a>,
    container_id: Json<'a>,
    /// An [`Environment`].
    environment: Json<'a>,
}

/// What a search or a shell call does.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct Action<'a> {
    #[serde(rename = "type")]
    kind: Json<'a>,
    #[serde(alias = "command")]
    commands: Json<'a>,
}

/// Where a shell call ran.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct Environment<'a> {
    container_id: Json<'a>,
}

impl<'a> Item<'a> {
    pub(super) fn is_call(&self) -> bool {
        self.kind.text().is_some_and(|kind| kind.ends_with("_call"))
    }

    /// What the item's fee depends on.
    pub(super) fn call(&self) -> ToolCall<'a> {
        let action: Action<'a> = self.action.read().unwrap_or_default();
        let environment: Environment<'a> = self.environment.read().unwrap_or_default();
        let container = self.container_id.text();
        ToolCall {
            kind: self.kind.text().unwrap_or_default(),
            status: self.status.text(),
            action: action.kind.text(),
            container: container.or_else(|| environment.container_id.text()),
        }
    }

    pub(super) fn show(&self, reading: &mut Reading) -> bool {
        let action: Action<'_> = self.action.read().unwrap_or_default();
        let commands: Vec<Json<'_>> = action.commands.read().unwrap_or_default();
        reading.show_all([self.arguments, self.input, self.code])
            | reading.show_all(commands)
            | show_parts(self.content, reading)
    }

    /// Whether the item brings what a client sees and [`Reading::visible`] does not hold.
    pub(super) fn has_result(&self) -> bool {
        let says = |part: &Part<'_>| part.text.text().is_some_and(|text| !text.is_empty());
        self.kind.text().as_deref() == Some("image_generation_call") || self.summary.parts().iter().any(says)
    }
}

/// A part of a message or of a summary.
#[derive(Default, Deserialize)]
#[serde(default, bound(deserialize = "'de: 'a"))]
struct Part<'a> {
    text: Json<'a>,
    refusal: Json<'a>,
    /// Mistral's reasoning: a list of parts.
    thinking: Json<'a>,
}

/// Thinking may hold thinking; one level of it is all that upstreams send, and all that is looked at.
fn show_parts(content: Json<'_>, reading: &mut Reading) -> bool {
    content.parts().iter().fold(false, |shown, part| {
        let thoughts: Vec<Part<'_>> = part.thinking.read().unwrap_or_default();
        let texts = thoughts.iter().map(|thought| thought.text);
        reading.show_all(texts.chain([part.text, part.refusal])) | shown
    })
}
