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
mod tests;
