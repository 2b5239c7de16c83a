//! The meter: an answer passing by → a [`Reading`]. It only looks.
//!
//! What cannot be read changes nothing and fails nothing: such an event has no [`Seen`] beyond what its name says.

mod wire;

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value;

use crate::call::{Encrypted, Endpoint};
use crate::sse::Event;
use crate::usage::{CacheTtl, Dialect, Tier, ToolTally, ToolUsage, Usage, UsageError};

use wire::{
    Choice, Chunk, DELIVERED, Groq, Item, Json, MODEL_TEXT, Medium, Response, ResponseEvent, end_of, is_dull, object,
};

/// Visible output kept for an estimate, in bytes: more than the longest answer of any model.
const MAX_VISIBLE_BYTES: usize = 8 * 1024 * 1024;

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

/// Whether OpenAI's clients take an `error` member for an error: what Python takes for false is none.
pub fn is_error(error: &Value) -> bool {
    match error {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) => true,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(members) => !members.is_empty(),
    }
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

/// How far a response is, as a whole one says by its own `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// It is over, or does not say.
    #[default]
    Over,
    /// It is over because its user cancelled it.
    Cancelled,
    /// It waits or runs: a background response whose end has to be asked for.
    Running,
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
    /// How it ended; `None`: no terminal event came, the body is not an answer, or the response runs on.
    pub end: Option<End>,
    /// How far a whole response is.
    pub progress: Progress,
    /// Whether a choice of a chat or completions stream named the reason it finished.
    pub finished: bool,
    /// Visible output, for an estimate: text that is made of output tokens. Summaries of reasoning are not.
    pub visible: String,
    /// Bytes of visible output that were too many to keep.
    pub visible_beyond: u64,
    /// Ids of output items, so that an `item_reference` can be shown to be this user's; [`MAX_ITEMS`] at most.
    pub item_ids: Vec<String>,
    /// The last thing in it that only the account that made it can read.
    pub encrypted: Option<Encrypted>,
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

    /// Takes in what of these members is text; whether there was any.
    fn show_all<'a>(&mut self, texts: impl IntoIterator<Item = Json<'a>>) -> bool {
        let texts = texts.into_iter().filter_map(Json::text);
        texts.fold(false, |shown, text| self.show(&text) | shown)
    }

    fn name_item(&mut self, id: Option<&str>) {
        let new =
            |id: &&str| !id.is_empty() && id.len() <= MAX_ID_BYTES && self.item_ids.iter().all(|known| known != id);
        if self.item_ids.len() < MAX_ITEMS
            && let Some(id) = id.filter(new)
        {
            self.item_ids.push(id.to_owned());
        }
    }

    /// Takes in what stands in every chunk; later ones are nearer to the truth, but empty ones (Azure) are not.
    fn identify(&mut self, id: Json<'_>, model: Json<'_>, tier: Json<'_>) {
        keep_latest(&mut self.response_id, id);
        keep_latest(&mut self.model, model);
        if let Some(tier) = tier.text().filter(|tier| tier != "auto") {
            self.tier = Some(Tier::from_wire(Some(&tier)));
        }
    }
}

fn keep_latest(kept: &mut Option<String>, told: Json<'_>) {
    let usable = |text: &Cow<'_, str>| !text.is_empty() && text.len() <= MAX_ID_BYTES;
    if let Some(text) = told.text().filter(usable)
        && kept.as_deref() != Some(&*text)
    {
        *kept = Some(text.into_owned());
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

    /// Looks at an event of a stream. The last end counts, but for `[DONE]`, which vendors also send after an error.
    pub fn observe(&mut self, event: &Event) -> Seen {
        let name = event.name.as_deref().unwrap_or_default();
        let is_done = |data: &[u8]| data.trim_ascii_start().starts_with(b"[DONE]");
        let seen = match &event.data {
            Some(data) if is_done(data) => {
                self.reading.end.get_or_insert(End::Completed);
                return Seen::end(End::Completed);
            }
            Some(data) if self.endpoint.is_medium() => self.medium_event(name, data),
            Some(data) if self.endpoint.is_responses() => self.response_event(name, data),
            Some(data) => self.chunk(name, data),
            None => oversized_or_empty(event, name),
        };
        self.reading.end = seen.terminal.or(self.reading.end);
        seen
    }

    /// Looks at a unary body. One that is no JSON object is not an answer, and leaves the reading's end open.
    pub fn observe_body(&mut self, body: &[u8]) {
        self.reading.end = if self.endpoint.is_medium() {
            Some(self.whole_medium(body))
        } else if self.endpoint.is_responses() {
            object(body).and_then(|response| self.whole_response(&response))
        } else {
            object(body).map(|chunk| self.read_chunk(&chunk).terminal.unwrap_or(End::Completed))
        };
    }

    /// What has been seen so far.
    pub fn reading(&self) -> &Reading {
        &self.reading
    }

    /// What was seen.
    pub fn into_reading(self) -> Reading {
        self.reading
    }

    /// Bytes of visible output so far, over all choices; see [`Reading::visible_bytes`].
    pub fn visible_bytes(&self) -> u64 {
        self.reading.visible_bytes()
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
        self.reading.identify(chunk.id, chunk.model, chunk.service_tier);
        let choices: Option<Vec<Choice<'_>>> = chunk.choices.read();
        let (mut delivers, mut within) = (false, Json::default());
        for choice in choices.iter().flatten() {
            delivers |= choice.show(&mut self.reading);
            self.reading.finished |= choice.finish_reason.text().is_some();
            within = within.or(choice.usage);
        }
        let beside: Groq<'_> = chunk.x_groq.read().unwrap_or_default();
        self.usage(chunk.usage.or(beside.usage).or(within));
        let alone = chunk.usage.is_there() && choices.is_some_and(|choices| choices.is_empty());
        self.reading.finished |= alone;
        let terminal = chunk.error.is_error().then_some(End::Failed);
        Seen {
            terminal,
            usage_only: alone && terminal.is_none(),
            delivers,
        }
    }

    /// An event of a stream of images, sound or text that was heard.
    fn medium_event(&mut self, name: &str, data: &[u8]) -> Seen {
        let Some(event) = object::<Medium<'_>>(data) else {
            return Seen::default();
        };
        let kind = event.kind.text().unwrap_or(Cow::Borrowed(name));
        self.medium_usage(event.usage);
        let shown = self.reading.show_all([event.delta]);
        let terminal = match &*kind {
            _ if event.error.is_error() => Some(End::Failed),
            "error" => Some(End::Failed),
            "transcript.text.done" | "speech.audio.done" => Some(End::Completed),
            "image_generation.completed" | "image_edit.completed" => Some(End::Completed),
            _ => None,
        };
        Seen {
            terminal,
            usage_only: false,
            delivers: shown || kind.ends_with(".delta") || kind.ends_with(".partial_image"),
        }
    }

    /// A whole answer: a document with its usage, or sound. A transcription that is long tells how long it was beside it.
    fn whole_medium(&mut self, body: &[u8]) -> End {
        let Some(answer) = object::<Medium<'_>>(body) else {
            return End::Completed;
        };
        self.medium_usage(answer.usage);
        if self.reading.usage.is_none()
            && let Some(duration) = answer.duration.read::<Value>()
        {
            self.take(Usage::of_duration(&duration).map(Some));
        }
        self.reading.show_all([answer.text]);
        match answer.error.is_error() {
            true => End::Failed,
            false => End::Completed,
        }
    }

    fn medium_usage(&mut self, told: Json<'_>) {
        let value: Value = told.read().unwrap_or_default();
        let usage = match self.endpoint {
            Endpoint::ImageGenerations | Endpoint::ImageEdits => Usage::of_images(&value),
            Endpoint::Speech => Usage::of_speech(&value),
            _ => Usage::of_sound(&value),
        };
        self.take(usage);
    }

    /// Takes in a usage, if it can be believed.
    fn usage(&mut self, told: Json<'_>) {
        let value: Value = told.read().unwrap_or_default();
        let usage = Usage::parse_for(&value, self.dialect, self.ttl);
        let with_tools = |usage| Usage {
            tools: self.reading.tools.clone(),
            ..usage
        };
        self.take(usage.map(|usage| usage.map(with_tools)));
    }

    /// The last usage that can be believed counts.
    fn take(&mut self, told: Result<Option<Usage>, UsageError>) {
        match told {
            Ok(Some(usage)) => self.reading.usage = Some(usage),
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
            let terminal = end_of(name);
            return Seen {
                terminal,
                ..Seen::default()
            };
        };
        let kind = event.kind.text().unwrap_or(Cow::Borrowed(name));
        if kind.is_empty() && event.error.is_error() {
            return Seen::end(End::Failed);
        }
        let terminal = end_of(&kind);
        let response = event.response.as_ref();
        let delivers = match &*kind {
            _ if terminal.is_some() => response.is_some_and(|response| self.response_end(response)),
            "response.output_item.added" => self.item_begins(&event),
            "response.output_item.done" => self.item_ends(&event),
            "response.image_generation_call.partial_image" => true,
            _ if kind.ends_with(".delta") => self.delta(&kind, &event),
            _ => {
                if let Some(response) = response {
                    self.identify(response);
                }
                false
            }
        };
        Seen {
            terminal,
            usage_only: false,
            delivers,
        }
    }

    fn identify(&mut self, response: &Response<'_>) {
        self.reading
            .identify(response.id, response.model, response.service_tier);
    }

    /// A piece of an item's output.
    fn delta(&mut self, kind: &str, event: &ResponseEvent<'_>) -> bool {
        let Some(text) = event.delta.text().filter(|text| !text.is_empty()) else {
            return false;
        };
        if MODEL_TEXT.contains(&kind) {
            self.items.texts.note(&self.items.position(event));
            return self.reading.show(&text);
        }
        DELIVERED.contains(&kind)
    }

    /// An item is announced; the name of a function that is called is output of the model.
    fn item_begins(&mut self, event: &ResponseEvent<'_>) -> bool {
        let item: Item<'_> = event.item.read().unwrap_or_default();
        if !item.is_call() || item.name.text().is_none() {
            return false;
        }
        self.items.names.note(&Position {
            index: event.output_index.read(),
            id: item.id.text(),
        });
        self.reading.show_all([item.name])
    }

    /// An item is whole; some upstreams send nothing but this of it.
    fn item_ends(&mut self, event: &ResponseEvent<'_>) -> bool {
        let Some(item) = event.item.read::<Item<'_>>() else {
            return false;
        };
        let index = event.output_index.read().unwrap_or(self.items.ended);
        self.items.ended = self.items.ended.max(index.saturating_add(1));
        self.items.tally.add(&item.call());
        self.tools(Json::default());
        self.whole_item(&item, index)
    }

    /// Takes in an item's id, and what of its output has not been seen before.
    fn whole_item(&mut self, item: &Item<'_>, index: u64) -> bool {
        let position = Position {
            index: Some(index),
            id: item.id.text(),
        };
        self.reading.name_item(position.id.as_deref());
        let encrypted = item.encrypted_content.text();
        self.reading.encrypted = encrypted
            .and_then(|text| Encrypted::of(&text))
            .or(self.reading.encrypted);
        let named = item.is_call() && self.items.names.note(&position);
        let shown = named && self.reading.show_all([item.name]);
        let told = self.items.texts.note(&position);
        (told && item.show(&mut self.reading)) | shown | (told && item.has_result())
    }

    /// The response object of a terminal event; its items count where the stream showed none of them.
    fn response_end(&mut self, response: &Response<'_>) -> bool {
        self.identify(response);
        let items: Vec<Item<'_>> = response.output.read().unwrap_or_default();
        let mut delivers = false;
        for (index, item) in (0..).zip(&items) {
            delivers |= self.whole_item(item, index);
        }
        if !items.is_empty() {
            self.items.tally = ToolTally::default();
            items.iter().for_each(|item| self.items.tally.add(&item.call()));
        }
        self.tools(response.tool_usage);
        self.usage(response.usage);
        delivers
    }

    /// Brings the tools' usage up to date.
    fn tools(&mut self, told: Json<'_>) {
        let told: Option<Value> = told.read();
        let tools = ToolUsage::from_responses(told.as_ref(), &self.items.tally).or_else(|problem| {
            self.reading.usage_problem = Some(problem);
            ToolUsage::from_responses(None, &self.items.tally)
        });
        self.reading.tools = tools.unwrap_or_default();
    }

    /// A unary response.
    fn whole_response(&mut self, response: &Response<'_>) -> Option<End> {
        self.response_end(response);
        let status = response.status.text();
        self.reading.progress = match status.as_deref() {
            Some("queued" | "in_progress") if !response.error.is_error() => Progress::Running,
            Some("cancelled") => Progress::Cancelled,
            _ => Progress::Over,
        };
        match status.as_deref() {
            _ if response.error.is_error() => Some(End::Failed),
            _ if self.reading.progress == Progress::Running => None,
            Some("failed" | "cancelled") => Some(End::Failed),
            Some("incomplete") => Some(End::Incomplete),
            _ => Some(End::Completed),
        }
    }
}

/// An event without data; of one whose data was too long to keep, the name tells the end.
fn oversized_or_empty(event: &Event, name: &str) -> Seen {
    Seen {
        terminal: end_of(name).filter(|_| event.oversized),
        usage_only: false,
        delivers: event.oversized,
    }
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
    /// Which item an event tells of; the one under way when it does not say.
    fn position<'a>(&self, event: &ResponseEvent<'a>) -> Position<'a> {
        let (index, id) = (event.output_index.read(), event.item_id.text());
        let under_way = id.is_none().then_some(self.ended);
        Position {
            index: index.or(under_way),
            id,
        }
    }
}

/// Where an item stands. Some upstreams give it another id in every event, some no index.
struct Position<'a> {
    index: Option<u64>,
    id: Option<Cow<'a, str>>,
}

/// A set of positions, at most [`MAX_ITEMS`] by either mark.
#[derive(Debug, Default)]
struct Positions {
    indices: HashSet<u64>,
    ids: HashSet<String>,
    /// The last one that was noted: nearly always the next one, too.
    last: (Option<u64>, Option<String>),
}

impl Positions {
    /// Notes a position; whether neither of its marks was noted before.
    fn note(&mut self, position: &Position<'_>) -> bool {
        let id = position.id.as_deref().filter(|id| id.len() <= MAX_ID_BYTES);
        let is_none = position.index.is_none() && id.is_none();
        if !is_none && self.last.0 == position.index && self.last.1.as_deref() == id {
            return false;
        }
        self.last = (position.index, id.map(str::to_owned));
        let known_id = id.is_some_and(|id| self.ids.contains(id));
        let known_index = position.index.is_some_and(|index| self.indices.contains(&index));
        if let Some(index) = position.index
            && self.indices.len() < MAX_ITEMS
        {
            self.indices.insert(index);
        }
        if let Some(id) = id.filter(|_| !known_id && self.ids.len() < MAX_ITEMS) {
            self.ids.insert(id.to_owned());
        }
        !known_id && !known_index
    }
}

#[cfg(test)]
mod tests;
