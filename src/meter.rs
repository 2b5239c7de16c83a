//! The meter: an answer passing by → a [`Reading`]. It only looks.
//!
//! What cannot be read changes nothing and fails nothing: such an event has no [`Seen`] beyond what its name says.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::call::Endpoint;
use crate::sse::Event;
use crate::usage::Tier;
use crate::usage::{CacheTtl, Dialect, ToolCall, ToolTally, ToolUsage, Usage, UsageError};

/// Visible output kept for an estimate, in bytes: more than the longest answer of any model.
pub const MAX_VISIBLE_BYTES: usize = 8 * 1024 * 1024;

/// Output items of one answer whose ids are kept, at most; a long agent's answer has some dozens.
pub const MAX_ITEMS: usize = 4_096;

/// An id or a model's name, at most, in bytes; OpenAI's have some 60, Copilot's encrypted ones some 400.
pub const MAX_ID_BYTES: usize = 1_024;

/// How an answer ended, as far as its bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `[DONE]`, `response.completed`, a whole unary body.
    Completed,
    /// `response.incomplete`; `finish_reason: "length"` is completed.
    Incomplete,
    /// `response.failed`, `error` inside a 200.
    Failed,
}

/// What one event means to the relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The event is the stream's end: it leaves after the charge is durable. More may follow it (`response.failed`
    /// after `error`, `[DONE]` after a chunk with an `error`), which is terminal too and may bring usage.
    pub terminal: Option<End>,
    /// The event is the usage chunk that `include_usage` causes (empty `choices`, non-null `usage`).
    pub usage_only: bool,
    /// The event carries visible output (text, refusal, arguments): something is delivered when it leaves. Summaries
    /// of reasoning, images and sound are delivered too, though they are not in [`Reading::visible`].
    pub delivers: bool,
}

impl Seen {
    fn end(end: End) -> Seen {
        Seen {
            terminal: Some(end),
            ..Seen::default()
        }
    }
}

/// What the meter knows at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// The last usage seen, with the tools' usage. Counts are cumulative wherever they come more than once, so they
    /// are never summed.
    pub usage: Option<Usage>,
    /// What is wrong with the last usage that could not be believed, and was taken as if it were absent.
    pub usage_problem: Option<UsageError>,
    /// What hosted tools did, as far as seen: for an estimate, where there is no usage to hold it.
    pub tools: ToolUsage,
    /// The response's tier; the last one seen. `auto` says nothing, and is not one.
    pub tier: Option<Tier>,
    /// The upstream's response id.
    pub response_id: Option<String>,
    /// The model that answered.
    pub model: Option<String>,
    /// How it ended; `None`: no terminal event came, or the body is not an answer.
    pub end: Option<End>,
    /// Whether a choice of a chat or completions stream named the reason it finished.
    pub finished: bool,
    /// Visible output, for an estimate: text that is made of output tokens. Summaries of reasoning are not.
    pub visible: String,
    /// Bytes of visible output that were too many to keep.
    pub visible_beyond: u64,
    /// Ids of output items, so that an `item_reference` can be shown to be this user's; [`MAX_ITEMS`] at most.
    pub item_ids: Vec<String>,
}

impl Reading {
    /// Bytes of visible output so far, over all choices. An output token has at least one.
    pub fn visible_bytes(&self) -> u64 {
        u64::try_from(self.visible.len())
            .unwrap_or(u64::MAX)
            .saturating_add(self.visible_beyond)
    }

    /// Takes in visible text; whether there was any.
    fn show(&mut self, text: &str) -> bool {
        let room = MAX_VISIBLE_BYTES - self.visible.len();
        let kept = if self.visible_beyond > 0 {
            0
        } else {
            text.floor_char_boundary(room)
        };
        self.visible.push_str(&text[..kept]);
        self.visible_beyond += u64::try_from(text.len() - kept).unwrap_or(u64::MAX);
        !text.is_empty()
    }

    fn show_all<'a>(&mut self, texts: impl IntoIterator<Item = Option<&'a str>>) -> bool {
        texts
            .into_iter()
            .flatten()
            .fold(false, |shown, text| self.show(text) | shown)
    }

    fn name_item(&mut self, id: Option<&str>) {
        let new =
            |id: &&str| !id.is_empty() && id.len() <= MAX_ID_BYTES && !self.item_ids.iter().any(|known| known == id);
        if self.item_ids.len() < MAX_ITEMS
            && let Some(id) = id.filter(new)
        {
            self.item_ids.push(id.to_owned());
        }
    }

    /// Takes in what stands in every chunk; later ones are nearer to the truth, but empty ones (Azure) are not.
    fn identify(&mut self, id: &Text<'_>, model: &Text<'_>, tier: &Text<'_>) {
        keep_latest(&mut self.response_id, id);
        keep_latest(&mut self.model, model);
        if let Some(tier) = tier.get().filter(|tier| *tier != "auto") {
            self.tier = Some(Tier::from_wire(Some(tier)));
        }
    }
}

fn keep_latest(kept: &mut Option<String>, text: &Text<'_>) {
    let usable = |text: &&str| !text.is_empty() && text.len() <= MAX_ID_BYTES && kept.as_deref() != Some(text);
    if let Some(text) = text.get().filter(usable) {
        *kept = Some(text.to_owned());
    }
}

/// Watches one answer.
#[derive(Debug)]
pub struct Meter {
    endpoint: Endpoint,
    dialect: Dialect,
    ttl: CacheTtl,
    reading: Reading,
    items: Items,
}

impl Meter {
    /// A meter for one answer.
    pub fn new(endpoint: Endpoint, dialect: Dialect) -> Meter {
        let ttl = CacheTtl::default();
        Meter {
            endpoint,
            dialect,
            ttl,
            reading: Reading::default(),
            items: Items::default(),
        }
    }

    /// For a request that said how long its cache writes are to live.
    #[must_use]
    pub fn with_cache_ttl(self, ttl: CacheTtl) -> Meter {
        Meter { ttl, ..self }
    }

    /// Looks at an event of a stream.
    pub fn observe(&mut self, event: &Event) -> Seen {
        let name = event.name.as_deref().unwrap_or_default();
        let seen = match &event.data {
            Some(data) if data.trim_ascii_start().starts_with(b"[DONE]") => Seen::end(End::Completed),
            Some(data) if self.endpoint == Endpoint::Responses => self.response_event(name, data),
            Some(data) => self.chunk(name, data),
            None if event.oversized => Seen {
                terminal: end_of(name),
                usage_only: false,
                delivers: true,
            },
            None => Seen::default(),
        };
        self.note_end(event, seen.terminal);
        seen
    }

    /// Looks at a unary body. One that is no JSON object is not an answer, and leaves the reading's end open.
    pub fn observe_body(&mut self, body: &[u8]) {
        self.reading.end = match self.endpoint {
            Endpoint::Responses => object(body).map(|response| self.whole_response(&response)),
            Endpoint::ChatCompletions | Endpoint::Completions | Endpoint::Embeddings => {
                object(body).map(|chunk| self.read_chunk(&chunk).terminal.unwrap_or(End::Completed))
            }
        };
    }

    /// What has been seen so far.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// Bytes of visible output so far, over all choices; see [`Reading::visible_bytes`].
    pub fn visible_bytes(&self) -> u64 {
        self.reading.visible_bytes()
    }

    /// The reading at the end.
    pub fn into_reading(self) -> Reading {
        self.reading
    }

    /// The last end counts, but for `[DONE]`, which vendors also send after an error.
    fn note_end(&mut self, event: &Event, end: Option<End>) {
        let is_done = |data: &bytes::Bytes| data.trim_ascii_start().starts_with(b"[DONE]");
        if end.is_some() && !(self.reading.end.is_some() && event.data.as_ref().is_some_and(is_done)) {
            self.reading.end = end;
        }
    }

    /// A chunk of a chat or completions stream.
    fn chunk(&mut self, name: &str, data: &[u8]) -> Seen {
        let mut seen = object(data).map(|chunk| self.read_chunk(&chunk)).unwrap_or_default();
        if name == "error" {
            seen.terminal = Some(End::Failed);
        }
        seen
    }

    /// A chunk, or a whole body, which only says `message` where a chunk says `delta`.
    fn read_chunk(&mut self, chunk: &Chunk<'_>) -> Seen {
        self.reading.identify(&chunk.id, &chunk.model, &chunk.service_tier);
        let choices: Option<Vec<Choice<'_>>> = chunk.choices.and_then(read);
        let delivers = choices
            .iter()
            .flatten()
            .fold(false, |shown, choice| choice.show(&mut self.reading) | shown);
        self.reading.finished |= choices
            .iter()
            .flatten()
            .any(|choice| choice.finish_reason.get().is_some());
        let within = choices.iter().flatten().find_map(|choice| choice.usage);
        let beside = chunk.x_groq.and_then(read).and_then(|groq: Groq<'_>| groq.usage);
        if let Some(usage) = chunk.usage.or(beside).or(within) {
            self.usage(usage);
        }
        let terminal = chunk.error.is_some_and(is_truthy).then_some(End::Failed);
        let alone = chunk.usage.is_some() && choices.is_some_and(|choices| choices.is_empty());
        self.reading.finished |= alone;
        Seen {
            terminal,
            usage_only: alone && terminal.is_none(),
            delivers,
        }
    }

    /// Takes in a usage, if it can be believed.
    fn usage(&mut self, usage: &RawValue) {
        let value = serde_json::from_str::<Value>(usage.get()).unwrap_or_default();
        match Usage::parse_for(&value, self.dialect, self.ttl) {
            Ok(Some(usage)) => {
                self.reading.usage = Some(Usage {
                    tools: self.reading.tools.clone(),
                    ..usage
                })
            }
            Ok(None) => {}
            Err(problem) => self.reading.usage_problem = Some(problem),
        }
    }

    /// An event of a Responses stream.
    fn response_event(&mut self, name: &str, data: &[u8]) -> Seen {
        if is_dull(name, data) {
            return Seen::default();
        }
        let Some(event) = object::<ResponseEvent<'_>>(data) else {
            return Seen {
                terminal: end_of(name),
                ..Seen::default()
            };
        };
        let kind = event.kind.get().unwrap_or(name);
        if let Some(end) = end_of(kind) {
            let delivers = event.response.is_some_and(|response| self.response_end(&response));
            return Seen {
                terminal: Some(end),
                usage_only: false,
                delivers,
            };
        }
        match kind {
            "response.output_item.added" => Seen {
                delivers: self.item_begins(&event),
                ..Seen::default()
            },
            "response.output_item.done" => Seen {
                delivers: self.item_ends(&event),
                ..Seen::default()
            },
            "" if event.error.is_some_and(is_truthy) => Seen::end(End::Failed),
            _ if kind.ends_with(".delta") => Seen {
                delivers: self.delta(kind, &event),
                ..Seen::default()
            },
            _ => {
                if let Some(response) = &event.response {
                    self.reading
                        .identify(&response.id, &response.model, &response.service_tier);
                }
                Seen {
                    delivers: kind == "response.image_generation_call.partial_image",
                    ..Seen::default()
                }
            }
        }
    }

    /// A piece of an item's output.
    fn delta(&mut self, kind: &str, event: &ResponseEvent<'_>) -> bool {
        let Some(text) = event.delta.get().filter(|text| !text.is_empty()) else {
            return false;
        };
        if MODEL_TEXT.contains(&kind) {
            self.items.told(&self.position(event));
            return self.reading.show(text);
        }
        DELIVERED.contains(&kind)
    }

    /// Which item an event tells of; the one under way when it does not say.
    fn position<'a>(&self, event: &'a ResponseEvent<'_>) -> Position<'a> {
        match (event.output_index.0, event.item_id.get()) {
            (None, None) => Position {
                index: Some(self.items.ended),
                id: None,
            },
            (index, id) => Position { index, id },
        }
    }

    /// An item is announced; the name of a function that is called is output of the model.
    fn item_begins(&mut self, event: &ResponseEvent<'_>) -> bool {
        let Some(item) = event.item.and_then(read::<Item<'_>>) else {
            return false;
        };
        let name = item.name.get().filter(|_| item.is_call());
        let position = Position {
            index: event.output_index.0,
            id: item.id.get(),
        };
        if name.is_some() {
            self.items.named(&position);
        }
        self.reading.show_all([name])
    }

    /// An item is whole; some upstreams send nothing but this of it.
    fn item_ends(&mut self, event: &ResponseEvent<'_>) -> bool {
        let Some(item) = event.item.and_then(read::<Item<'_>>) else {
            return false;
        };
        let index = event.output_index.0.unwrap_or(self.items.ended);
        self.items.ended = self.items.ended.max(index.saturating_add(1));
        self.items.tally.add(&item.call());
        self.tools(None);
        self.whole_item(&item, Some(index))
    }

    /// Takes in an item's id, and what of its output has not been seen before.
    fn whole_item(&mut self, item: &Item<'_>, index: Option<u64>) -> bool {
        let position = Position {
            index,
            id: item.id.get(),
        };
        self.reading.name_item(position.id);
        let named = item.is_call() && self.items.named(&position);
        let shown = named && self.reading.show_all([item.name.get()]);
        let told = self.items.told(&position);
        (told && item.show(&mut self.reading)) | shown | (told && item.has_result())
    }

    /// The response object of a terminal event; its items count where the stream showed none of them.
    fn response_end(&mut self, response: &Response<'_>) -> bool {
        self.reading
            .identify(&response.id, &response.model, &response.service_tier);
        let items: Vec<Item<'_>> = response.output.and_then(read).unwrap_or_default();
        let mut delivers = false;
        for (index, item) in (0..).zip(&items) {
            delivers |= self.whole_item(item, Some(index));
        }
        if !items.is_empty() {
            self.items.tally = ToolTally::default();
            items.iter().for_each(|item| self.items.tally.add(&item.call()));
        }
        self.tools(response.tool_usage);
        if let Some(usage) = response.usage {
            self.usage(usage);
        }
        delivers
    }

    /// Brings the tools' usage up to date.
    fn tools(&mut self, told: Option<&RawValue>) {
        let told = told.and_then(|told| serde_json::from_str::<Value>(told.get()).ok());
        let tools = ToolUsage::from_responses(told.as_ref(), &self.items.tally).or_else(|problem| {
            self.reading.usage_problem = Some(problem);
            ToolUsage::from_responses(None, &self.items.tally)
        });
        self.reading.tools = tools.unwrap_or_default();
    }

    /// A unary response.
    fn whole_response(&mut self, response: &Response<'_>) -> End {
        self.response_end(response);
        let failed = response.error.is_some_and(is_truthy);
        match response.status.get() {
            _ if failed => End::Failed,
            Some("failed" | "cancelled") => End::Failed,
            Some("incomplete") => End::Incomplete,
            _ => End::Completed,
        }
    }
}

/// The terminal events of the Responses API.
fn end_of(kind: &str) -> Option<End> {
    match kind {
        "response.completed" => Some(End::Completed),
        "response.incomplete" => Some(End::Incomplete),
        "response.failed" | "error" => Some(End::Failed),
        _ => None,
    }
}

/// Deltas that are output tokens of the model, as they are counted and billed.
const MODEL_TEXT: [&str; 11] = [
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
const DELIVERED: [&str; 3] = [
    "response.reasoning_summary_text.delta",
    "response.shell_call_output_content.delta",
    "response.audio.delta",
];

/// Events that repeat what others say, and are long: not worth parsing when name and data agree on what they are.
fn is_dull(name: &str, data: &[u8]) -> bool {
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

/// Which output items have been seen, so that no text counts twice.
#[derive(Debug, Default)]
struct Items {
    texts: Positions,
    names: Positions,
    /// How many `output_item.done` there were: the index of one that does not say it.
    ended: u64,
    tally: ToolTally,
}

impl Items {
    /// Notes that the item's text is counted; whether that is news.
    fn told(&mut self, position: &Position<'_>) -> bool {
        self.texts.note(position)
    }

    /// Notes that the item's name is counted; whether that is news.
    fn named(&mut self, position: &Position<'_>) -> bool {
        self.names.note(position)
    }
}

/// Where an item stands. Some upstreams give it another id in every event, some no index.
#[derive(Clone, Copy, Debug)]
struct Position<'a> {
    index: Option<u64>,
    id: Option<&'a str>,
}

/// A set of positions, at most [`MAX_ITEMS`] by either mark.
#[derive(Debug, Default)]
struct Positions {
    indices: HashSet<u64>,
    ids: HashSet<String>,
}

impl Positions {
    /// Notes a position; whether neither of its marks was noted before.
    fn note(&mut self, position: &Position<'_>) -> bool {
        let id = position.id.filter(|id| id.len() <= MAX_ID_BYTES);
        let known_id = id.is_some_and(|id| self.ids.contains(id));
        let known_index = position.index.is_some_and(|index| self.indices.contains(&index));
        if let Some(index) = position
            .index
            .filter(|_| !known_index && self.indices.len() < MAX_ITEMS)
        {
            self.indices.insert(index);
        }
        if let Some(id) = id.filter(|_| !known_id && self.ids.len() < MAX_ITEMS) {
            self.ids.insert(id.to_owned());
        }
        !known_id && !known_index
    }
}

/// A chunk of a chat or completions stream, or a whole body of chat, completions or embeddings.
#[derive(Deserialize)]
struct Chunk<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    model: Text<'a>,
    #[serde(borrow, default)]
    service_tier: Text<'a>,
    #[serde(borrow, default)]
    choices: Option<&'a RawValue>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    x_groq: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// Groq repeats the usage here.
#[derive(Deserialize)]
struct Groq<'a> {
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow, default)]
    delta: Option<Message<'a>>,
    #[serde(borrow, default)]
    message: Option<Message<'a>>,
    #[serde(borrow, default)]
    finish_reason: Text<'a>,
    /// Of the legacy completions.
    #[serde(borrow, default)]
    text: Text<'a>,
    /// Of Moonshot's older models.
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

impl Choice<'_> {
    fn show(&self, reading: &mut Reading) -> bool {
        let message = self.delta.as_ref().or(self.message.as_ref());
        message.is_some_and(|message| message.show(reading)) | reading.show_all([self.text.get()])
    }
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    refusal: Text<'a>,
    #[serde(borrow, default)]
    reasoning_content: Text<'a>,
    /// As Groq, Ollama and OpenRouter call `reasoning_content`; some send both.
    #[serde(borrow, default)]
    reasoning: Text<'a>,
    #[serde(borrow, default)]
    tool_calls: Option<Vec<ToolCallDelta<'a>>>,
    #[serde(borrow, default)]
    function_call: Option<FunctionDelta<'a>>,
    #[serde(borrow, default)]
    audio: Option<AudioDelta<'a>>,
}

impl Message<'_> {
    fn show(&self, reading: &mut Reading) -> bool {
        let content = self.content.map(Parts::of).unwrap_or_default();
        let reasoning = self.reasoning_content.get().or(self.reasoning.get());
        let shown = reading.show_all([reasoning, self.refusal.get()]) | content.show(reading);
        let calls = self
            .tool_calls
            .iter()
            .flatten()
            .flat_map(|call| [&call.function, &call.custom]);
        let functions = calls.chain([&self.function_call]).flatten();
        let called = functions.fold(false, |shown, function| function.show(reading) | shown);
        let heard = self.audio.as_ref().is_some_and(|audio| audio.show(reading));
        shown | called | heard
    }
}

#[derive(Deserialize)]
struct ToolCallDelta<'a> {
    #[serde(borrow, default)]
    function: Option<FunctionDelta<'a>>,
    #[serde(borrow, default)]
    custom: Option<FunctionDelta<'a>>,
}

#[derive(Deserialize)]
struct FunctionDelta<'a> {
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    arguments: Text<'a>,
    #[serde(borrow, default)]
    input: Text<'a>,
}

impl FunctionDelta<'_> {
    fn show(&self, reading: &mut Reading) -> bool {
        reading.show_all([self.name.get(), self.arguments.get(), self.input.get()])
    }
}

#[derive(Deserialize)]
struct AudioDelta<'a> {
    #[serde(borrow, default)]
    transcript: Text<'a>,
    #[serde(borrow, default)]
    data: Text<'a>,
}

impl AudioDelta<'_> {
    fn show(&self, reading: &mut Reading) -> bool {
        reading.show_all([self.transcript.get()]) | self.data.get().is_some_and(|data| !data.is_empty())
    }
}

/// An event of a Responses stream.
#[derive(Deserialize)]
struct ResponseEvent<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    response: Option<Response<'a>>,
    #[serde(borrow, default)]
    item: Option<&'a RawValue>,
    #[serde(borrow, default)]
    item_id: Text<'a>,
    #[serde(default)]
    output_index: Index,
    #[serde(borrow, default)]
    delta: Text<'a>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// A response object.
#[derive(Deserialize)]
struct Response<'a> {
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    model: Text<'a>,
    #[serde(borrow, default)]
    service_tier: Text<'a>,
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(borrow, default)]
    output: Option<&'a RawValue>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_usage: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// An output item of a response.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default)]
    id: Text<'a>,
    #[serde(borrow, default)]
    status: Text<'a>,
    #[serde(borrow, default)]
    name: Text<'a>,
    #[serde(borrow, default)]
    arguments: Text<'a>,
    #[serde(borrow, default)]
    input: Text<'a>,
    #[serde(borrow, default)]
    code: Text<'a>,
    /// Of messages and of reasoning that is not hidden.
    #[serde(borrow, default)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default)]
    summary: Option<&'a RawValue>,
    #[serde(borrow, default)]
    action: Option<&'a RawValue>,
    #[serde(borrow, default)]
    container_id: Text<'a>,
    #[serde(borrow, default)]
    environment: Option<&'a RawValue>,
}

/// What a search or a shell call does.
#[derive(Default, Deserialize)]
struct Action<'a> {
    #[serde(borrow, default, rename = "type")]
    kind: Text<'a>,
    #[serde(borrow, default, alias = "command")]
    commands: Option<&'a RawValue>,
}

/// Where a shell call ran.
#[derive(Default, Deserialize)]
struct Environment<'a> {
    #[serde(borrow, default)]
    container_id: Text<'a>,
}

impl<'a> Item<'a> {
    fn is_call(&self) -> bool {
        self.kind.get().is_some_and(|kind| kind.ends_with("_call"))
    }

    /// What the item's fee depends on.
    fn call(&self) -> ToolCall<'a> {
        let environment: Environment<'a> = self.environment.and_then(read).unwrap_or_default();
        let action: Action<'a> = self.action.and_then(read).unwrap_or_default();
        ToolCall {
            kind: self.kind.0.clone().unwrap_or_default(),
            status: self.status.0.clone(),
            action: action.kind.0,
            container: self.container_id.0.clone().or(environment.container_id.0),
        }
    }

    fn show(&self, reading: &mut Reading) -> bool {
        let content = self.content.map(Parts::of).unwrap_or_default();
        let action: Action<'_> = self.action.and_then(read).unwrap_or_default();
        let commands: Vec<Text<'_>> = action.commands.and_then(read).unwrap_or_default();
        let texts = [self.arguments.get(), self.input.get(), self.code.get()];
        reading.show_all(texts.into_iter().chain(commands.iter().map(Text::get))) | content.show(reading)
    }

    /// Whether the item brings what a client sees and [`Reading::visible`] does not hold.
    fn has_result(&self) -> bool {
        let summary = self.summary.map(Parts::of).unwrap_or_default();
        self.kind.get() == Some("image_generation_call") || summary.0.iter().any(|part| !part.text.is_empty())
    }
}

/// Text, or a list of parts with text.
#[derive(Default)]
struct Parts<'a>(Vec<Part<'a>>);

#[derive(Default, Deserialize)]
struct Part<'a> {
    #[serde(borrow, default)]
    text: Text<'a>,
    #[serde(borrow, default)]
    refusal: Text<'a>,
    /// Mistral's reasoning: a list of parts.
    #[serde(borrow, default)]
    thinking: Option<&'a RawValue>,
}

impl<'a> Parts<'a> {
    fn of(content: &'a RawValue) -> Parts<'a> {
        if content.get().starts_with('[') {
            return Parts(read(content).unwrap_or_default());
        }
        let text = read(content).unwrap_or_default();
        Parts(vec![Part {
            text,
            ..Part::default()
        }])
    }

    fn show(&self, reading: &mut Reading) -> bool {
        self.0.iter().fold(false, |shown, part| part.show(reading) | shown)
    }
}

impl Part<'_> {
    /// Thinking may hold thinking; one level of it is all that upstreams send, and all that is looked at.
    fn show(&self, reading: &mut Reading) -> bool {
        let thoughts: Vec<Part<'_>> = self.thinking.and_then(read).unwrap_or_default();
        let texts = thoughts
            .iter()
            .map(|part| part.text.get())
            .chain([self.text.get(), self.refusal.get()]);
        reading.show_all(texts)
    }
}

/// A JSON object of that form; a list is none, though serde would take it for the members in their order.
fn object<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Option<T> {
    let is_object = json.trim_ascii_start().starts_with(b"{");
    is_object.then(|| serde_json::from_slice(json).ok()).flatten()
}

/// What JSON says, if it is of that form.
fn read<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Option<T> {
    serde_json::from_str(raw.get()).ok()
}

/// Whether OpenAI's clients take an `error` member for an error.
fn is_truthy(error: &RawValue) -> bool {
    !matches!(error.get(), "false" | "\"\"" | "0" | "{}" | "[]")
}

/// A string where JSON has one; anything else is nothing, so that one odd member does not hide the others.
#[derive(Clone, Debug, Default)]
struct Text<'a>(Option<Cow<'a, str>>);

impl Text<'_> {
    fn get(&self) -> Option<&str> {
        self.0.as_deref()
    }

    fn is_empty(&self) -> bool {
        self.get().is_none_or(str::is_empty)
    }
}

/// A whole number where JSON has one.
#[derive(Clone, Copy, Debug, Default)]
struct Index(Option<u64>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<'a>, D::Error> {
        deserializer.deserialize_any(Scalar).map(|scalar| Text(scalar.text))
    }
}

impl<'de> Deserialize<'de> for Index {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Index, D::Error> {
        deserializer.deserialize_any(Scalar).map(|scalar| Index(scalar.number))
    }
}

/// Reads any JSON, and keeps it when it is a string or a whole number.
struct Scalar;

#[derive(Default)]
struct Read<'de> {
    text: Option<Cow<'de, str>>,
    number: Option<u64>,
}

impl<'de> Visitor<'de> for Scalar {
    type Value = Read<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Read<'de>, E> {
        Ok(Read {
            text: Some(Cow::Borrowed(text)),
            ..Read::default()
        })
    }

    fn visit_str<E>(self, text: &str) -> Result<Read<'de>, E> {
        Ok(Read {
            text: Some(Cow::Owned(text.to_owned())),
            ..Read::default()
        })
    }

    fn visit_u64<E>(self, number: u64) -> Result<Read<'de>, E> {
        Ok(Read {
            number: Some(number),
            ..Read::default()
        })
    }

    fn visit_i64<E>(self, _: i64) -> Result<Read<'de>, E> {
        Ok(Read::default())
    }

    fn visit_f64<E>(self, _: f64) -> Result<Read<'de>, E> {
        Ok(Read::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<Read<'de>, E> {
        Ok(Read::default())
    }

    fn visit_unit<E>(self) -> Result<Read<'de>, E> {
        Ok(Read::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Read<'de>, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Read::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Read<'de>, A::Error> {
        while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Read::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse::{PASS_THROUGH_BYTES, Splitter};
    use bytes::Bytes;
    use serde_json::json;
    use std::path::{Path, PathBuf};

    /// Shows a meter a stream in these chunks, as a relay would.
    fn watch<'a>(mut meter: Meter, chunks: impl IntoIterator<Item = &'a [u8]>) -> (Reading, Vec<Seen>) {
        let mut splitter = Splitter::new();
        let mut seen = Vec::new();
        for chunk in chunks {
            splitter.push(Bytes::copy_from_slice(chunk));
            let events = std::iter::from_fn(|| splitter.next_piece()).filter_map(|piece| piece.event);
            seen.extend(events.map(|event| meter.observe(&event)));
        }
        let rest = std::iter::from_fn(|| splitter.finish()).filter_map(|piece| piece.event);
        seen.extend(rest.map(|event| meter.observe(&event)));
        (meter.into_reading(), seen)
    }

    fn own(file: &str) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(file);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    fn watch_own(file: &str) -> (Reading, Vec<Seen>) {
        let endpoint = match file.split(['-', '.']).next() {
            Some("responses") => Endpoint::Responses,
            Some("completions") => Endpoint::Completions,
            _ => Endpoint::ChatCompletions,
        };
        watch(Meter::new(endpoint, Dialect::OpenAi), [own(file).as_slice()])
    }

    fn usage(value: Value) -> Option<Usage> {
        Usage::parse(&value, Dialect::OpenAi).expect("believed")
    }

    fn chat_usage() -> Option<Usage> {
        usage(json!({"prompt_tokens": 21, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 16}}))
    }

    fn responses_usage() -> Option<Usage> {
        usage(
            json!({"input_tokens": 120, "input_tokens_details": {"cached_tokens": 64, "cache_write_tokens": 30},
            "output_tokens": 42, "output_tokens_details": {"reasoning_tokens": 20}}),
        )
    }

    fn terminals(seen: &[Seen]) -> Vec<End> {
        seen.iter().filter_map(|seen| seen.terminal).collect()
    }

    #[test]
    fn a_chat_stream_is_read_however_its_lines_end() {
        for file in [
            "chat-usage.sse",
            "chat-crlf.sse",
            "chat-cr.sse",
            "chat-byte-order-mark.sse",
            "chat-no-final-blank-line.sse",
        ] {
            let (reading, seen) = watch_own(file);
            let expected = Reading {
                usage: chat_usage(),
                tier: Some(Tier::Standard),
                response_id: Some("chatcmpl-1".into()),
                model: Some("gpt-6.1-sol-2026-10-01".into()),
                end: Some(End::Completed),
                finished: true,
                visible: "Héllo 😀".into(),
                ..Reading::default()
            };
            assert_eq!(reading, expected, "{file}");
            let delivers: Vec<bool> = seen.iter().map(|seen| seen.delivers).collect();
            assert_eq!(delivers, [false, true, true, false, false, false], "{file}");
            assert_eq!(
                seen[4],
                Seen {
                    usage_only: true,
                    ..Seen::default()
                },
                "{file}"
            );
            assert_eq!(seen[5], Seen::end(End::Completed), "{file}");
        }
    }

    #[test]
    fn usage_is_found_wherever_a_vendor_puts_it_and_never_summed() {
        for file in [
            "chat-usage-thrice.sse",
            "chat-usage-in-choice.sse",
            "chat-azure-first-chunk.sse",
            "chat-no-done.sse",
        ] {
            assert_eq!(watch_own(file).0.usage, chat_usage(), "{file}");
        }
        assert_eq!(watch_own("chat-no-usage.sse").0.usage, None);
        assert_eq!(
            watch_own("completions.sse").0.usage,
            usage(json!({"prompt_tokens": 21, "completion_tokens": 5}))
        );
        assert_eq!(watch_own("completions.sse").0.visible, "Héllo 😀");
    }

    #[test]
    fn a_chunk_without_choices_and_usage_is_not_the_usage_chunk() {
        let (reading, seen) = watch_own("chat-azure-first-chunk.sse");
        assert!(!seen[0].usage_only);
        assert_eq!(seen.iter().filter(|seen| seen.usage_only).count(), 1);
        assert_eq!(reading.model.as_deref(), Some("gpt-5.2-2025-12-11"));
        let (_, seen) = watch_own("chat-no-done.sse");
        assert!(seen.iter().all(|seen| !seen.usage_only && seen.terminal.is_none()));
    }

    #[test]
    fn a_stream_without_a_terminal_event_tells_whether_it_finished() {
        for (file, finished) in [("chat-no-done.sse", true), ("chat-error-midstream.sse", false)] {
            assert_eq!(watch_own(file).0.finished, finished, "{file}");
        }
        assert_eq!(watch_own("chat-no-done.sse").0.end, None);
    }

    #[test]
    fn a_usage_that_cannot_be_believed_is_as_if_absent_and_told() {
        let (reading, _) = watch_own("chat-usage-not-to-be-believed.sse");
        assert_eq!(reading.usage, None);
        assert_eq!(
            reading.usage_problem,
            Some(UsageError {
                field: "prompt_tokens",
                problem: "negative"
            })
        );
        assert_eq!(reading.end, Some(End::Completed));
    }

    #[test]
    fn text_calls_refusals_and_reasoning_are_visible() {
        let (reading, _) = watch_own("chat-tools.sse");
        assert_eq!(reading.visible, r#"weather{"city":"Rome"}clock{}"#);
        assert_eq!(watch_own("chat-two-choices.sse").0.visible, "yesno");
        assert_eq!(
            watch_own("chat-refusal-and-reasoning.sse").0.visible,
            "Hm. Well. I will not."
        );
        let parts = br#"{"choices":[{"delta":{"content":[{"type":"thinking","thinking":[{"type":"text","text":"so"}]},
            {"type":"text","text":" be it"}]}}]}"#;
        let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
        assert!(meter.chunk("", parts).delivers);
        assert_eq!(meter.reading().visible, "so be it");
    }

    #[test]
    fn an_error_inside_a_chat_stream_fails_it_even_when_done_follows() {
        let (reading, seen) = watch_own("chat-error-midstream.sse");
        assert_eq!((reading.end, terminals(&seen)), (Some(End::Failed), vec![End::Failed]));
        let (reading, seen) = watch_own("chat-error-event.sse");
        assert_eq!((reading.end, terminals(&seen)), (Some(End::Failed), vec![End::Failed]));
        let (reading, seen) = watch_own("chat-error-with-usage-then-done.sse");
        assert_eq!(
            (reading.end, terminals(&seen)),
            (Some(End::Failed), vec![End::Failed, End::Completed])
        );
        assert_eq!(
            reading.usage,
            usage(json!({"prompt_tokens": 43, "completion_tokens": 10}))
        );
    }

    #[test]
    fn a_response_is_read_from_its_terminal_event() {
        let (reading, seen) = watch_own("responses-completed.sse");
        let expected = Reading {
            usage: responses_usage(),
            tier: Some(Tier::Priority),
            response_id: Some("resp_1".into()),
            model: Some("gpt-6.1-sol-2026-10-01".into()),
            end: Some(End::Completed),
            visible: r#"Hello Romeweather{"city":"Rome"}"#.into(),
            item_ids: vec!["rs_1".into(), "msg_1".into(), "fc_1".into()],
            ..Reading::default()
        };
        assert_eq!(reading, expected);
        assert_eq!(terminals(&seen), [End::Completed]);
        let delivering: Vec<usize> = (0..)
            .zip(&seen)
            .filter(|(_, seen)| seen.delivers)
            .map(|(at, _)| at)
            .collect();
        assert_eq!(
            delivering,
            [3, 4, 7, 8, 11, 12],
            "summary, text, the call's name and arguments"
        );
    }

    #[test]
    fn a_response_may_end_in_four_ways() {
        for (file, ends, used) in [
            ("responses-incomplete.sse", vec![End::Incomplete], responses_usage()),
            ("responses-failed.sse", vec![End::Failed], None),
            ("responses-error-nested.sse", vec![End::Failed, End::Failed], None),
            ("responses-error-flat.sse", vec![End::Failed], None),
        ] {
            let (reading, seen) = watch_own(file);
            assert_eq!(terminals(&seen), ends, "{file}");
            assert_eq!((reading.end, reading.usage), (ends.last().copied(), used), "{file}");
        }
    }

    #[test]
    fn auto_is_no_tier() {
        assert_eq!(watch_own("responses-error-nested.sse").0.tier, None);
    }

    #[test]
    fn a_stream_of_whole_items_delivers_and_counts_them_once() {
        let (reading, seen) = watch_own("responses-minimal.sse");
        assert_eq!(reading.visible, r#"Hello Romeweather{"city":"Rome"}"#);
        assert_eq!(reading.item_ids, ["rs_1", "msg_1", "fc_1"]);
        assert_eq!(reading.usage, responses_usage());
        assert!(seen[1..4].iter().all(|seen| seen.delivers) && !seen[4].delivers);
        let deltas_without_marks = concat!(
            "data: {\"type\":\"response.output_text.delta\",\"delta\":\"Hi\"}\n\n",
            "data: {\"type\":\"response.output_item.done\",\"item\":{\"type\":\"message\",\"id\":\"m\",",
            "\"content\":[{\"type\":\"output_text\",\"text\":\"Hi\"}]}}\n\n",
        );
        let meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
        assert_eq!(watch(meter, [deltas_without_marks.as_bytes()]).0.visible, "Hi");
    }

    #[test]
    fn hosted_tools_are_counted_as_they_are_billed() {
        let (reading, _) = watch_own("responses-tools.sse");
        let image = json!({"image_gen": {"input_tokens": 40, "output_tokens": 272}});
        let image = ToolUsage::from_responses(Some(&image), &ToolTally::default())
            .expect("believed")
            .image_gen;
        let expected = ToolUsage {
            web_searches: 3,
            file_searches: 1,
            containers: 2,
            image_gen: image,
        };
        assert_eq!(reading.tools, expected);
        assert_eq!(reading.usage.map(|usage| usage.tools), Some(expected));
        let cut_before_the_end = own("responses-tools.sse");
        let end = cut_before_the_end
            .windows(25)
            .rposition(|at| at == b"event: response.completed")
            .expect("the end");
        let (reading, _) = watch(
            Meter::new(Endpoint::Responses, Dialect::OpenAi),
            [&cut_before_the_end[..end]],
        );
        assert_eq!(
            reading.tools,
            ToolUsage {
                web_searches: 1,
                file_searches: 1,
                containers: 2,
                image_gen: None
            }
        );
    }

    #[test]
    fn unary_bodies_are_read_at_every_endpoint() {
        let body = |endpoint, body: Value| {
            let mut meter = Meter::new(endpoint, Dialect::OpenAi);
            meter.observe_body(body.to_string().as_bytes());
            meter.into_reading()
        };
        let told = json!({"prompt_tokens": 21, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 16}});
        let chat = body(
            Endpoint::ChatCompletions,
            json!({"id": "chatcmpl-1", "model": "m", "service_tier": "flex", "usage": told, "choices": [{"index": 0,
                "message": {"role": "assistant", "content": "Hi", "refusal": null}, "finish_reason": "stop"}]}),
        );
        let expected = Reading {
            usage: chat_usage(),
            tier: Some(Tier::Flex),
            response_id: Some("chatcmpl-1".into()),
            model: Some("m".into()),
            end: Some(End::Completed),
            finished: true,
            visible: "Hi".into(),
            ..Reading::default()
        };
        assert_eq!(chat, expected);
        let completion = body(
            Endpoint::Completions,
            json!({"choices": [{"text": "Hi"}], "usage": told}),
        );
        assert_eq!((completion.visible.as_str(), completion.usage), ("Hi", chat_usage()));
        let embedding =
            json!({"data": [{"embedding": [0.1]}], "model": "e", "usage": {"prompt_tokens": 8, "total_tokens": 8}});
        let embedding = body(Endpoint::Embeddings, embedding);
        assert_eq!(embedding.usage, usage(json!({"prompt_tokens": 8})));
        let response = |status: &str, error: Value| {
            body(
                Endpoint::Responses,
                json!({"id": "resp_1", "status": status, "error": error, "output": [{"type": "message", "id": "msg_1",
                    "content": [{"type": "output_text", "text": "Hi"}]}], "usage": {"input_tokens": 1, "output_tokens": 2}}),
            )
        };
        let completed = response("completed", json!(null));
        assert_eq!(
            (completed.visible.as_str(), completed.end),
            ("Hi", Some(End::Completed))
        );
        assert_eq!(
            (completed.item_ids, completed.response_id),
            (vec!["msg_1".to_owned()], Some("resp_1".to_owned()))
        );
        assert_eq!(response("incomplete", json!(null)).end, Some(End::Incomplete));
        assert_eq!(
            response("failed", json!({"code": "server_error"})).end,
            Some(End::Failed)
        );
        assert_eq!(
            body(Endpoint::ChatCompletions, json!({"error": {"code": 1}})).end,
            Some(End::Failed)
        );
    }

    #[test]
    fn what_is_malformed_changes_nothing() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            " ",
            "{",
            "[]",
            "null",
            "3",
            "\"x\"",
            "{\"choices\":[[[",
            "{\"usage\":{\"prompt_tokens\":1}",
            "\u{0}",
            "[\"id\",\"model\"]",
            &deep,
        ] {
            for endpoint in [Endpoint::ChatCompletions, Endpoint::Responses] {
                let mut meter = Meter::new(endpoint, Dialect::OpenAi);
                let data = Some(Bytes::copy_from_slice(text.as_bytes()));
                assert_eq!(
                    meter.observe(&Event {
                        data,
                        ..Event::default()
                    }),
                    Seen::default(),
                    "{text:.40}"
                );
                meter.observe_body(text.as_bytes());
                assert_eq!(meter.into_reading(), Reading::default(), "{text:.40}");
            }
        }
    }

    #[test]
    fn one_odd_member_does_not_hide_the_usage() {
        let chunk = br#"{"id":7,"model":{"a":[1]},"service_tier":[],"choices":"none","x_groq":3,"error":null,
            "usage":{"prompt_tokens":21,"completion_tokens":5,"prompt_tokens_details":{"cached_tokens":16}}}"#;
        let mut meter = Meter::new(Endpoint::ChatCompletions, Dialect::OpenAi);
        assert_eq!(meter.chunk("", chunk), Seen::default());
        assert_eq!(
            meter.reading(),
            &Reading {
                usage: chat_usage(),
                ..Reading::default()
            }
        );
        let lone_surrogate = br#"{"choices":[{"delta":{"content":"\ud83d"}}],"usage":{"prompt_tokens":1}}"#;
        meter.chunk("", lone_surrogate);
        assert_eq!(meter.reading().usage, usage(json!({"prompt_tokens": 1})));
    }

    #[test]
    fn an_oversized_event_ends_a_stream_by_its_name() {
        let mut meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
        let event = Event {
            name: Some("response.completed".into()),
            data: None,
            oversized: true,
        };
        assert_eq!(
            meter.observe(&event),
            Seen {
                terminal: Some(End::Completed),
                usage_only: false,
                delivers: true
            }
        );
        assert_eq!(meter.into_reading().end, Some(End::Completed));
    }

    #[test]
    fn visible_output_beyond_the_bound_is_counted_and_not_kept() {
        let mut reading = Reading::default();
        let text = "é".repeat(MAX_VISIBLE_BYTES / 4);
        for _ in 0..3 {
            reading.show(&text);
        }
        assert_eq!(reading.visible.len(), MAX_VISIBLE_BYTES);
        assert_eq!(reading.visible_bytes(), u64::try_from(3 * text.len()).expect("small"));
    }

    #[test]
    fn a_long_answer_is_read_from_an_event_that_passes_in_parts() {
        let text = "x".repeat(3 * PASS_THROUGH_BYTES);
        let event = json!({"type": "response.completed", "response": {"id": "resp_1", "output": [{"type": "message",
            "content": [{"text": text}]}], "usage": {"input_tokens": 1, "output_tokens": 2}}});
        let stream = format!("event: response.completed\ndata: {event}\n\n");
        let meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
        let (reading, seen) = watch(meter, stream.as_bytes().chunks(1_000));
        assert_eq!(
            seen,
            [Seen {
                terminal: Some(End::Completed),
                usage_only: false,
                delivers: true
            }]
        );
        assert_eq!((reading.visible.len(), reading.usage.is_some()), (text.len(), true));
    }

    /// Numbers that look random and are the same in every run.
    fn numbers(mut state: u64) -> impl FnMut(usize) -> usize {
        move |below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(state >> 33).expect("31 bits") % below
        }
    }

    fn random_cut<'a>(stream: &'a [u8], next: &mut impl FnMut(usize) -> usize) -> Vec<&'a [u8]> {
        let mut places: Vec<usize> = (0..next(40))
            .map(|_| next(stream.len() + 1))
            .chain([0, stream.len()])
            .collect();
        places.sort_unstable();
        places.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect()
    }

    #[test]
    fn any_cut_of_our_streams_reads_alike() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        let mut next = numbers(7);
        for entry in std::fs::read_dir(folder).expect("tests/data") {
            let path = entry.expect("an entry").path();
            let file = path
                .file_name()
                .and_then(|name| name.to_str())
                .expect("a name")
                .to_owned();
            if !file.ends_with(".sse") {
                continue;
            }
            let endpoint = if file.starts_with("responses") {
                Endpoint::Responses
            } else {
                Endpoint::ChatCompletions
            };
            let (stream, meter) = (own(&file), || Meter::new(endpoint, Dialect::OpenAi));
            let (whole, seen) = watch(meter(), [stream.as_slice()]);
            let real =
                |seen: Vec<Seen>| -> Vec<Seen> { seen.into_iter().filter(|seen| *seen != Seen::default()).collect() };
            let seen = real(seen);
            for _ in 0..50 {
                let (reading, cut_seen) = watch(meter(), random_cut(&stream, &mut next));
                assert_eq!((reading, real(cut_seen)), (whole.clone(), seen.clone()), "{file}");
            }
        }
    }

    /// A recorded answer of one of our endpoints.
    struct Recorded {
        file: String,
        body: Vec<u8>,
        endpoint: Endpoint,
        dialect: Dialect,
        usage: Value,
        tier: Option<String>,
        done: bool,
        last: Option<String>,
    }

    fn fixtures() -> PathBuf {
        let folder = std::env::var_os("GATEWAY_FIXTURES").map(PathBuf::from);
        folder
            .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/fixtures"))
            .join("wire")
    }

    fn recorded() -> Vec<Recorded> {
        let Ok(index) = std::fs::read(fixtures().join("index.json")) else {
            return Vec::new();
        };
        let index: Value = serde_json::from_slice(&index).expect("index.json");
        let list = index
            .as_array()
            .or_else(|| index["files"].as_array())
            .expect("a list of files")
            .clone();
        let text = |entry: &Value, member: &str| entry[member].as_str().map(str::to_owned);
        let one = |entry: Value| {
            let path = text(&entry, "endpoint")?;
            let path = path.split('?').next()?;
            let endpoint = match path {
                _ if path.ends_with("/chat/completions") => Endpoint::ChatCompletions,
                _ if path.ends_with("/completions") => Endpoint::Completions,
                _ if path.contains("/responses") && !path.ends_with("/input_tokens") => Endpoint::Responses,
                _ => return None,
            };
            let file = text(&entry, "file")?;
            let dialect = if file == "xai-chat.sse" {
                Dialect::TotalCoversReasoning
            } else {
                Dialect::OpenAi
            };
            (entry["status"] == 200).then(|| Recorded {
                body: std::fs::read(fixtures().join(&file)).expect("a listed file"),
                usage: entry["final_usage"].clone(),
                tier: text(&entry, "service_tier_final"),
                done: entry["done_sentinel"] == true,
                last: text(&entry, "last_event"),
                file,
                endpoint,
                dialect,
            })
        };
        list.into_iter().filter_map(one).collect()
    }

    impl Recorded {
        fn meter(&self) -> Meter {
            Meter::new(self.endpoint, self.dialect)
        }

        fn check(&self, reading: &Reading) {
            let usage = Usage::parse(&self.usage, self.dialect).expect("believed");
            let read = reading.usage.clone().map(|usage| Usage {
                tools: ToolUsage::default(),
                ..usage
            });
            assert_eq!(read, usage, "{}", self.file);
            let tier = self.tier.as_deref().filter(|tier| *tier != "auto");
            assert_eq!(
                reading.tier,
                tier.map(|tier| Tier::from_wire(Some(tier))),
                "{}",
                self.file
            );
        }

        /// How the answer ended, by the names of its events alone.
        fn end(&self) -> Option<End> {
            let errors = self.file.contains("error-midstream");
            match self.last.as_deref() {
                _ if errors => Some(End::Failed),
                Some("response.completed") => Some(End::Completed),
                Some("response.incomplete") => Some(End::Incomplete),
                _ if self.done => Some(End::Completed),
                _ => None,
            }
        }
    }

    #[test]
    fn recorded_answers_are_read_as_their_index_says() {
        let (mut streams, mut bodies, mut next) = (0, 0, numbers(11));
        for recorded in recorded() {
            if recorded.file.ends_with(".json") {
                let mut meter = recorded.meter();
                meter.observe_body(&recorded.body);
                recorded.check(meter.reading());
                bodies += 1;
                continue;
            }
            let (whole, seen) = watch(recorded.meter(), [recorded.body.as_slice()]);
            recorded.check(&whole);
            assert_eq!(whole.end, recorded.end(), "{}", recorded.file);
            assert_eq!(terminals(&seen).is_empty(), whole.end.is_none(), "{}", recorded.file);
            for _ in 0..50 {
                let (reading, _) = watch(recorded.meter(), random_cut(&recorded.body, &mut next));
                assert_eq!(reading, whole, "{}", recorded.file);
            }
            streams += 1;
        }
        match streams + bodies {
            0 => println!("fixtures absent: {}", fixtures().display()),
            _ => println!("replayed {streams} recorded streams, each in 50 cuts, and {bodies} bodies"),
        }
    }

    /// The last usage in a stream, found without the code under test.
    fn last_usage(stream: &str) -> Value {
        let data = stream.lines().filter_map(|line| line.strip_prefix("data: "));
        let events = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
        let mut usages = events.map(|event| event["response"]["usage"].clone());
        usages.rfind(|usage| !usage.is_null()).unwrap_or_default()
    }

    #[test]
    fn recorded_answers_to_codex_are_read_chunk_by_chunk() {
        let folder = fixtures().join("../codex");
        let mut streams = 0;
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("an entry").path();
            let text = std::fs::read_to_string(&path).expect("a listed file");
            let Ok(exchange) = serde_json::from_str::<Value>(&text) else {
                continue;
            };
            let Some(chunks) = exchange["response"]["sse"].as_array() else {
                continue;
            };
            let chunks: Vec<&str> = chunks.iter().filter_map(Value::as_str).collect();
            let meter = Meter::new(Endpoint::Responses, Dialect::OpenAi);
            let (reading, _) = watch(meter, chunks.iter().map(|chunk| chunk.as_bytes()));
            assert_eq!(reading.usage, usage(last_usage(&chunks.concat())), "{}", path.display());
            streams += 1;
        }
        match streams {
            0 => println!("fixtures absent: {}", folder.display()),
            _ => println!("replayed {streams} recorded answers to Codex"),
        }
    }
}
