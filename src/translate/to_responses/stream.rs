//! The events of a response → the chunks of a chat completion.
//!
//! What a client is shown of an item is counted, so that what its deltas left out (some upstreams send none, or no item
//! before the end) is made up for from the whole item, and nothing comes twice.

use std::collections::HashMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::item::{self, APART, Kind, Said, ToolCall};
use super::whole;
use crate::meter::{MAX_ITEMS, Reading, is_error};
use crate::sse::Event;
use crate::texts::{self, Language};
use crate::translate::{Answer, Close, Given, event};

/// Items are known again by ids of this length at most; OpenAI's longest have 64 bytes.
const MAX_ID_BYTES: usize = 1_024;

/// A sign of life, where the upstream gives one.
const COMMENT: &[u8] = b": keep-alive\n\n";

/// A chat completion on its way.
#[derive(Debug)]
pub(super) struct Chunks {
    /// Whether the client asked for the usage.
    include_usage: bool,
    id: String,
    created: i64,
    model: String,
    tier: Option<String>,
    stage: Stage,
    /// Something came that could not be read: what is delivered is not all there was.
    damaged: bool,
    failed: bool,
    language: Language,
    items: Vec<Shown>,
    by_index: HashMap<u64, usize>,
    by_id: HashMap<String, usize>,
    calls: u32,
    text: Joined,
    refusal: Joined,
    reasoning: Joined,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Ahead,
    Begun,
    Ended,
}

/// What has been shown of an item, in bytes of its own text.
#[derive(Debug, Default)]
struct Shown {
    text: usize,
    refusal: usize,
    reasoning: usize,
    /// Which of the two kinds of reasoning is shown: the one that came first.
    thinks: Option<Thinks>,
    /// How many characters of other items stand before its text.
    before: u64,
    annotations: usize,
    /// The call's index and kind.
    call: Option<(u32, Kind)>,
    input: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Thinks {
    Aloud,
    InSummary,
}

/// A text that several items add to.
#[derive(Debug, Default)]
struct Joined {
    /// The item that added to it last.
    last: Option<usize>,
    chars: u64,
}

impl Joined {
    /// What keeps a text of this item apart from another's before it.
    fn apart(&mut self, item: usize) -> &'static str {
        let apart = match self.last.replace(item) {
            Some(last) if last != item => APART,
            _ => "",
        };
        self.add(apart);
        apart
    }

    fn add(&mut self, text: &str) {
        let chars = u64::try_from(text.chars().count()).unwrap_or(u64::MAX);
        self.chars = self.chars.saturating_add(chars);
    }
}

#[derive(Serialize)]
struct Chunk<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_tier: Option<&'a str>,
    choices: Vec<Choice<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Value>,
    /// Padding that hides how long the text is.
    #[serde(skip_serializing_if = "Option::is_none")]
    obfuscation: Option<&'a str>,
}

#[derive(Serialize)]
struct Choice<'a> {
    index: u32,
    delta: Value,
    logprobs: Value,
    finish_reason: Option<&'a str>,
}

/// What an event brings beside the delta.
#[derive(Default)]
struct Beside<'a> {
    logprobs: Value,
    obfuscation: Option<&'a str>,
}

impl<'a> Beside<'a> {
    fn of(event: &'a Value) -> Beside<'a> {
        let logprobs = event["logprobs"].as_array().filter(|logprobs| !logprobs.is_empty());
        Beside {
            logprobs: logprobs.map_or(Value::Null, |logprobs| json!({"content": logprobs, "refusal": null})),
            obfuscation: event["obfuscation"].as_str(),
        }
    }
}

impl Chunks {
    pub(super) fn new(include_usage: bool, given: &Given) -> Chunks {
        Chunks {
            include_usage,
            id: format!("chatcmpl-{}", given.id.simple()),
            created: given.created,
            model: String::new(),
            tier: None,
            stage: Stage::Ahead,
            damaged: false,
            failed: false,
            language: given.language,
            items: Vec::new(),
            by_index: HashMap::new(),
            by_id: HashMap::new(),
            calls: 0,
            text: Joined::default(),
            refusal: Joined::default(),
            reasoning: Joined::default(),
        }
    }

    fn read(&mut self, kind: &str, event: &Value, out: &mut Vec<u8>) {
        match kind {
            "error" => {
                let nested = Some(&event["error"]).filter(|error| error.is_object());
                return self.fail(nested.unwrap_or(event), out);
            }
            "" if is_error(&event["error"]) => return self.fail(&event["error"], out),
            "keepalive" => return out.extend_from_slice(COMMENT),
            _ => {}
        }
        if event["response"].is_object() {
            self.identify(&event["response"]);
            self.begin(out);
        }
        match kind {
            "response.failed" => self.fail(&event["response"]["error"], out),
            "response.completed" | "response.incomplete" => self.end(&event["response"], out),
            "response.output_item.added" => self.item_begins(event, out),
            "response.output_item.done" => {
                if let Some(place) = self.place(event, &event["item"]["id"]) {
                    self.show(place, &event["item"], out);
                }
            }
            _ => self.delta(kind, event, out),
        }
    }

    /// Takes in what stands in every response object.
    fn identify(&mut self, response: &Value) {
        let keep = |kept: &mut String, name: &str| {
            if let Some(text) = response[name].as_str().filter(|text| !text.is_empty()) {
                text.clone_into(kept);
            }
        };
        if self.stage == Stage::Ahead {
            keep(&mut self.id, "id");
            self.created = item::created(response).unwrap_or(self.created);
        }
        keep(&mut self.model, "model");
        if let Some(tier) = response["service_tier"].as_str() {
            self.tier = Some(tier.to_owned());
        }
    }

    /// The first chunk says who speaks.
    fn begin(&mut self, out: &mut Vec<u8>) {
        if self.stage == Stage::Ahead {
            self.stage = Stage::Begun;
            let delta = json!({"role": "assistant", "content": "", "refusal": null});
            self.write(delta, Beside::default(), None, out);
        }
    }

    /// A chunk with a choice.
    fn write(&self, delta: Value, beside: Beside<'_>, finish_reason: Option<&str>, out: &mut Vec<u8>) {
        let choice = Choice {
            index: 0,
            delta,
            logprobs: beside.logprobs,
            finish_reason,
        };
        let usage = self.include_usage.then_some(Value::Null);
        self.chunk(vec![choice], usage, beside.obfuscation, out);
    }

    fn chunk(&self, choices: Vec<Choice<'_>>, usage: Option<Value>, obfuscation: Option<&str>, out: &mut Vec<u8>) {
        let chunk = Chunk {
            id: &self.id,
            object: "chat.completion.chunk",
            created: self.created,
            model: &self.model,
            service_tier: self.tier.as_deref(),
            choices,
            usage,
            obfuscation,
        };
        event::unnamed(out, &chunk);
    }

    /// Which item an event is about: by its id, by its index, else the last one. `None`: there are too many.
    fn place(&mut self, event: &Value, id: &Value) -> Option<usize> {
        let id = id.as_str().filter(|id| !id.is_empty() && id.len() <= MAX_ID_BYTES);
        let index = event["output_index"].as_u64();
        self.place_of(index, id)
    }

    fn place_of(&mut self, index: Option<u64>, id: Option<&str>) -> Option<usize> {
        let known = id.and_then(|id| self.by_id.get(id));
        let known = known.or_else(|| self.by_index.get(&index?)).copied();
        let last = self
            .items
            .len()
            .checked_sub(1)
            .filter(|_| index.is_none() && id.is_none());
        let place = match known.or(last) {
            Some(place) => place,
            None if self.items.len() == MAX_ITEMS => {
                self.damaged = true;
                return None;
            }
            None => {
                self.items.push(Shown::default());
                self.items.len() - 1
            }
        };
        // One that does not say where it stands stands behind those before it.
        let index = index.or_else(|| u64::try_from(place).ok());
        if let Some(id) = id.filter(|id| self.by_id.len() < MAX_ITEMS && !self.by_id.contains_key(*id)) {
            self.by_id.insert(id.to_owned(), place);
        }
        if let Some(index) = index.filter(|_| self.by_index.len() < 2 * MAX_ITEMS) {
            self.by_index.entry(index).or_insert(place);
        }
        Some(place)
    }

    /// An item is announced. Of a call the name is known, of everything else nothing yet.
    fn item_begins(&mut self, event: &Value, out: &mut Vec<u8>) {
        let item = &event["item"];
        let Some(place) = self.place(event, &item["id"]) else {
            return;
        };
        if let Some(call) = Said::by(item).call.filter(|call| !call.name.is_empty()) {
            self.call(place, &call, out);
        }
    }

    /// A piece of an item.
    fn delta(&mut self, kind: &str, event: &Value, out: &mut Vec<u8>) {
        let known = matches!(
            kind,
            "response.output_text.delta"
                | "response.refusal.delta"
                | "response.reasoning_text.delta"
                | "response.reasoning_summary_text.delta"
                | "response.reasoning_summary_part.added"
                | "response.function_call_arguments.delta"
                | "response.custom_tool_call_input.delta"
                | "response.output_text.annotation.added"
        );
        if !known {
            return;
        }
        let Some(place) = self.place(event, &event["item_id"]) else {
            return;
        };
        let delta = event["delta"].as_str().unwrap_or_default();
        match kind {
            "response.output_text.delta" => self.speak(place, delta, Beside::of(event), out),
            "response.refusal.delta" => self.refuse(place, delta, Beside::of(event), out),
            "response.reasoning_text.delta" => self.think(place, Thinks::Aloud, delta, Beside::of(event), out),
            "response.reasoning_summary_text.delta" => {
                self.think(place, Thinks::InSummary, delta, Beside::of(event), out);
            }
            "response.reasoning_summary_part.added" => {
                if self.items[place].reasoning > 0 {
                    self.think(place, Thinks::InSummary, APART, Beside::default(), out);
                }
            }
            "response.output_text.annotation.added" => {
                self.items[place].annotations += 1;
                self.annotate(place, &event["annotation"], out);
            }
            _ => self.hand_over(place, delta, Beside::of(event), out),
        }
    }

    fn speak(&mut self, place: usize, text: &str, beside: Beside<'_>, out: &mut Vec<u8>) {
        if text.is_empty() && beside.logprobs.is_null() {
            return;
        }
        self.begin(out);
        let apart = self.text.apart(place);
        if self.items[place].text == 0 {
            self.items[place].before = self.text.chars;
        }
        self.items[place].text += text.len();
        self.text.add(text);
        self.write(json!({"content": format!("{apart}{text}")}), beside, None, out);
    }

    fn refuse(&mut self, place: usize, text: &str, beside: Beside<'_>, out: &mut Vec<u8>) {
        if text.is_empty() {
            return;
        }
        self.begin(out);
        self.items[place].refusal += text.len();
        let apart = self.refusal.apart(place);
        self.write(json!({"refusal": format!("{apart}{text}")}), beside, None, out);
    }

    fn think(&mut self, place: usize, thinks: Thinks, text: &str, beside: Beside<'_>, out: &mut Vec<u8>) {
        if text.is_empty() || *self.items[place].thinks.get_or_insert(thinks) != thinks {
            return;
        }
        self.begin(out);
        self.items[place].reasoning += text.len();
        let apart = self.reasoning.apart(place);
        self.write(
            json!({"reasoning_content": format!("{apart}{text}")}),
            beside,
            None,
            out,
        );
    }

    /// Citations stand behind the text they are in.
    fn annotate(&mut self, place: usize, annotation: &Value, out: &mut Vec<u8>) {
        if let Some(annotation) = item::annotation(annotation, self.items[place].before) {
            self.begin(out);
            self.write(json!({"annotations": [annotation]}), Beside::default(), None, out);
        }
    }

    /// A call is made known, with what is there of its input.
    fn call(&mut self, place: usize, call: &ToolCall, out: &mut Vec<u8>) {
        if self.items[place].call.is_some() {
            return;
        }
        self.begin(out);
        let (index, kind) = (self.calls, call.kind);
        self.calls += 1;
        self.items[place].call = Some((index, kind));
        self.items[place].input = call.input.len();
        let delta = json!({"tool_calls": [{
            "index": index,
            "id": call.id,
            "type": kind.name(),
            kind.name(): {"name": call.name, kind.input(): call.input},
        }]});
        self.write(delta, Beside::default(), None, out);
    }

    /// A piece of a call's input. Of a call that has not been made known it waits for the whole item.
    fn hand_over(&mut self, place: usize, input: &str, beside: Beside<'_>, out: &mut Vec<u8>) {
        let Some((index, kind)) = self.items[place].call.filter(|_| !input.is_empty()) else {
            return;
        };
        self.items[place].input += input.len();
        let delta = json!({"tool_calls": [{"index": index, kind.name(): {kind.input(): input}}]});
        self.write(delta, beside, None, out);
    }

    /// Shows what an item says that has not been shown.
    fn show(&mut self, place: usize, item: &Value, out: &mut Vec<u8>) {
        let said = Said::by(item);
        let first = match said.thought.is_empty() {
            true => Thinks::InSummary,
            false => Thinks::Aloud,
        };
        let thinks = self.items[place].thinks.unwrap_or(first);
        let reasoning = match thinks {
            Thinks::Aloud => &said.thought,
            Thinks::InSummary => &said.summary,
        };
        let shown = &self.items[place];
        let rest = |whole: &str, shown: usize| whole.get(shown..).unwrap_or_default().to_owned();
        let (text, refusal) = (rest(&said.text, shown.text), rest(&said.refusal, shown.refusal));
        let reasoning = rest(reasoning, shown.reasoning);
        let untold = match shown.text {
            // None of the text came with what its deltas say beside it.
            0 if !said.logprobs.is_empty() => json!({"content": said.logprobs, "refusal": null}),
            _ => Value::Null,
        };
        let annotations = shown.annotations;
        self.think(place, thinks, &reasoning, Beside::default(), out);
        let beside = Beside {
            logprobs: untold,
            obfuscation: None,
        };
        self.speak(place, &text, beside, out);
        self.refuse(place, &refusal, Beside::default(), out);
        for annotation in said.annotations.iter().skip(annotations) {
            self.annotate(place, annotation, out);
        }
        self.items[place].annotations = annotations.max(said.annotations.len());
        if let Some(call) = said.call {
            match self.items[place].call {
                None => self.call(place, &call, out),
                Some(_) => {
                    let input = rest(&call.input, self.items[place].input);
                    self.hand_over(place, &input, Beside::default(), out);
                }
            }
        }
    }

    /// The end in the upstream's words.
    fn end(&mut self, response: &Value, out: &mut Vec<u8>) {
        self.begin(out);
        for (index, item) in (0..).zip(response["output"].as_array().into_iter().flatten()) {
            let id = item["id"]
                .as_str()
                .filter(|id| !id.is_empty() && id.len() <= MAX_ID_BYTES);
            if let Some(place) = self.place_of(Some(index), id) {
                self.show(place, item, out);
            }
        }
        if self.damaged {
            return self.fail(&json!({"message": &*texts::unread(self.language)}), out);
        }
        let reason = item::finish_reason(response, self.calls > 0);
        self.finish(reason, item::usage(&response["usage"]), out);
    }

    fn finish(&mut self, reason: &str, usage: Option<Value>, out: &mut Vec<u8>) {
        self.stage = Stage::Ended;
        self.write(json!({}), Beside::default(), Some(reason), out);
        if let Some(usage) = usage.filter(|_| self.include_usage) {
            self.chunk(Vec::new(), Some(usage), None, out);
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
    }

    /// It failed, and nothing follows.
    fn fail(&mut self, error: &Value, out: &mut Vec<u8>) {
        (self.stage, self.failed) = (Stage::Ended, true);
        event::named(out, "error", &whole::failure(error));
    }
}

impl Answer for Chunks {
    fn event(&mut self, event: &Event, _reading: &Reading) -> Vec<u8> {
        let mut out = Vec::new();
        if self.stage == Stage::Ended {
            return out;
        }
        let Some(data) = &event.data else {
            match event.oversized {
                true => self.damaged = true,
                false => out.extend_from_slice(COMMENT),
            }
            return out;
        };
        // Some send it behind the end that the Responses API has.
        if data.trim_ascii_start().starts_with(b"[DONE]") {
            return out;
        }
        match serde_json::from_slice::<Value>(data) {
            Ok(value) if value.is_object() => {
                let kind = value["type"].as_str().or(event.name.as_deref()).unwrap_or_default();
                self.read(kind, &value, &mut out);
            }
            _ => self.damaged = true,
        }
        out
    }

    fn open(&mut self, _reading: &Reading) -> Vec<u8> {
        // Comments may stand before the first chunk.
        Vec::new()
    }

    fn close(&mut self, how: Close<'_>, _reading: &Reading) -> Vec<u8> {
        let mut out = Vec::new();
        if self.stage == Stage::Ended {
            return out;
        }
        match how {
            Close::Failed(message) => self.fail(&json!({"message": message}), &mut out),
            Close::Limited => {
                self.begin(&mut out);
                self.finish("length", None, &mut out);
            }
            Close::Whole => self.end(&Value::Null, &mut out),
        }
        out
    }

    fn whole(&mut self, body: &[u8], _reading: &Reading) -> Option<Vec<u8>> {
        let response: Value = serde_json::from_slice(body).ok()?;
        let (status, error) = (response["status"].as_str(), &response["error"]);
        self.failed = match status {
            Some(status) => matches!(status, "failed" | "cancelled"),
            // An error in place of an answer.
            None => is_error(error),
        };
        let made = match self.failed {
            true if is_error(error) => whole::failure(error),
            true => whole::failure(&json!({"message": &*texts::broke_off(self.language)})),
            false => whole::completion(&response, &self.id, self.created)?,
        };
        serde_json::to_vec(&made).ok()
    }

    fn has_failed(&self) -> bool {
        self.failed
    }
}
