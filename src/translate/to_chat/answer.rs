//! A chat answer as a response: chunk by chunk as events, or whole.
//!
//! An item begins with the first piece of it. Text and reasoning end when another item begins; calls end with the answer,
//! because their arguments may come by turns. What has come when a stream breaks off stays as it is; `response.failed`
//! says the rest.

use serde_json::{Map, Value, json};

use super::compaction::{self, Form};
use super::item::{Call, Item, Output, State, Voice};
use super::reasoning::Field;
use super::tools::Names;
use crate::meter::{MAX_ITEMS, Reading, is_error};
use crate::sse::Event;
use crate::texts::{self, Language};
use crate::translate::json::Object;
use crate::translate::{Close, Given, event};
use crate::usage::{Tier, Usage};

/// What a response repeats of its request.
#[derive(Debug, Default)]
pub(super) struct Echo(Map<String, Value>);

impl Echo {
    /// Settings with their defaults; tools and instructions are long, and known to who sent them.
    pub(super) fn of(request: &Object<'_>) -> Echo {
        let told = |name: &str, default: Value| {
            let value = request
                .get(name)
                .and_then(|value| serde_json::from_str(value.get()).ok());
            (name.to_owned(), value.unwrap_or(default))
        };
        Echo(Map::from_iter([
            told("background", false.into()),
            told("max_output_tokens", Value::Null),
            told("metadata", json!({})),
            told("model", "".into()),
            told("parallel_tool_calls", true.into()),
            told("prompt_cache_key", Value::Null),
            told("reasoning", json!({"effort": null, "summary": null})),
            told("safety_identifier", Value::Null),
            told("temperature", Value::Null),
            told("text", json!({"format": {"type": "text"}})),
            told("tool_choice", "auto".into()),
            told("top_p", Value::Null),
            told("user", Value::Null),
        ]))
    }
}

/// Why the model stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    /// It was done.
    Done,
    /// `incomplete_details.reason`.
    Cut(&'static str),
    /// Something else made it.
    Failed,
}

/// A chat answer on its way.
#[derive(Debug)]
pub(super) struct Answer {
    /// What all ids end with.
    id: String,
    created: i64,
    names: Names,
    echo: Echo,
    packs_reasoning: bool,
    sequence: u64,
    has_begun: bool,
    has_ended: bool,
    items: Vec<Item>,
    finish: Option<Finish>,
    /// Something came that could not be read: what is delivered is not all there was.
    damaged: bool,
    failed: bool,
    language: Language,
    /// It came whole: each of its calls does, too.
    is_whole: bool,
    /// It is a summary, of which the client gets nothing before it is whole.
    compacts: Option<Form>,
}

impl Answer {
    pub(super) fn new(given: &Given, names: Names, echo: Echo, packs_reasoning: bool) -> Answer {
        Answer {
            id: given.id.simple().to_string(),
            created: given.created,
            names,
            echo,
            packs_reasoning,
            sequence: 0,
            has_begun: false,
            has_ended: false,
            items: Vec::new(),
            finish: None,
            damaged: false,
            failed: false,
            language: given.language,
            is_whole: false,
            compacts: None,
        }
    }

    /// The same, which is a summary where there is a form for it.
    pub(super) fn compacting(self, compacts: Option<Form>) -> Answer {
        Answer { compacts, ..self }
    }
}

impl crate::translate::Answer for Answer {
    fn event(&mut self, event: &Event, reading: &Reading) -> Vec<u8> {
        let mut out = Vec::new();
        let Some(data) = event.data.as_ref().filter(|_| !self.has_ended) else {
            self.damaged |= event.oversized;
            return out;
        };
        if data.trim_ascii_start().starts_with(b"[DONE]") {
            drop(self.end(&mut out, reading));
            return out;
        }
        let is_failure = event.name.as_deref() == Some("error");
        let chunk = match serde_json::from_slice::<Value>(data) {
            Ok(chunk) if chunk.is_object() || is_failure => chunk,
            Err(_) if is_failure => String::from_utf8_lossy(data).into(),
            _ => {
                self.damaged |= !data.trim_ascii().is_empty();
                return out;
            }
        };
        self.begin(&mut out, reading);
        match error_of(&chunk).or_else(|| is_failure.then(|| error_in(&chunk))) {
            Some((code, message)) => drop(self.fail(&mut out, reading, code, &message)),
            None => self.chunk(&mut out, &chunk),
        }
        out
    }

    fn open(&mut self, reading: &Reading) -> Vec<u8> {
        let mut out = Vec::new();
        self.begin(&mut out, reading);
        out
    }

    fn close(&mut self, how: Close<'_>, reading: &Reading) -> Vec<u8> {
        let mut out = Vec::new();
        if self.has_ended {
            return out;
        }
        self.begin(&mut out, reading);
        match how {
            Close::Whole => drop(self.end(&mut out, reading)),
            Close::Limited => {
                self.finish = Some(Finish::Cut("max_output_tokens"));
                drop(self.end(&mut out, reading));
            }
            Close::Failed(message) => drop(self.fail(&mut out, reading, "server_error", message)),
        }
        out
    }

    fn whole(&mut self, body: &[u8], reading: &Reading) -> Option<Vec<u8>> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let is_document = matches!(self.compacts, Some(Form::Document(_)));
        if let Some((code, message)) = error_of(&body).filter(|_| !is_document) {
            self.failed = true;
            return serde_json::to_vec(&self.failed(reading, code, &message)).ok();
        }
        body.get("choices")?.get(0)?;
        self.is_whole = true;
        // The events of a stream that is not sent; what they leave behind is the answer.
        let unsent = &mut Vec::new();
        self.chunk(unsent, &body);
        let response = self.end(unsent, reading);
        let made = if is_document { self.document(reading)? } else { response };
        serde_json::to_vec(&made).ok()
    }

    fn has_failed(&self) -> bool {
        self.failed
    }
}

/// The error that a chunk or a body holds in place of an answer.
fn error_of(chunk: &Value) -> Option<(&'static str, String)> {
    let error = chunk.get("error")?;
    is_error(error).then(|| error_in(error))
}

/// Its code among those of the Responses API, and what it says. What a client cannot mend is none of its errors.
fn error_in(error: &Value) -> (&'static str, String) {
    let error = error.get("error").unwrap_or(error);
    let word = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or_default();
    let number = ["status_code", "status", "code"]
        .into_iter()
        .find_map(|name| error.get(name)?.as_u64());
    let words = format!("{} {}", word("code"), word("type"));
    let code = match number {
        _ if words.contains("rate_limit") => "rate_limit_exceeded",
        // The operator's account, not the user's.
        _ if words.contains("insufficient_quota") => "server_is_overloaded",
        Some(402) => "server_is_overloaded",
        _ if words.contains("context_length") => "context_length_exceeded",
        Some(429) => "rate_limit_exceeded",
        Some(401..=403 | 408 | 500..) => "server_error",
        Some(400..) => "invalid_prompt",
        _ if words.contains("invalid_request") => "invalid_prompt",
        _ => "server_error",
    };
    let message = match error {
        Value::String(text) => text.clone(),
        _ => word("message").to_owned(),
    };
    (code, message)
}

/// Why it finished, by chat's own reasons and what else is known to be said for them.
fn finish_of(choice: &Value) -> Option<Finish> {
    let reason = choice.get("finish_reason")?.as_str()?.to_ascii_lowercase();
    match &*reason {
        // So some say that it goes on.
        "" | "null" => None,
        "stop" | "stop_sequence" | "eos" | "eos_token" | "end" | "end_turn" | "complete" | "completed" => {
            Some(Finish::Done)
        }
        "tool_calls" | "tool_call" | "tool_use" | "function_call" => Some(Finish::Done),
        "length" | "max_length" | "max_tokens" | "model_length" | "model_context_window_exceeded" => {
            Some(Finish::Cut("max_output_tokens"))
        }
        "content_filter" | "refusal" | "safety" | "sensitive" => Some(Finish::Cut("content_filter")),
        _ => Some(Finish::Failed),
    }
}

/// What of a chunk belongs to the answer: one choice was asked for.
impl Answer {
    fn chunk(&mut self, out: &mut Vec<u8>, chunk: &Value) {
        let Some(choice) = chunk.get("choices").and_then(|choices| choices.get(0)) else {
            return;
        };
        // A last chunk may repeat the whole message beside an empty piece.
        if let Some(message) = choice.get("delta").or_else(|| choice.get("message")) {
            self.piece(out, message);
        }
        self.finish = finish_of(choice).or(self.finish);
    }

    fn piece(&mut self, out: &mut Vec<u8>, message: &Value) {
        // Some send both, which say the same.
        match text_of(message, "reasoning_content") {
            "" => self.say(out, Voice::Thought(Field::Reasoning), text_of(message, "reasoning")),
            thought => self.say(out, Voice::Thought(Field::ReasoningContent), thought),
        }
        for part in list_of(message, "content") {
            for thought in list_of(part, "thinking") {
                self.say(out, Voice::Thought(Field::Thinking), text_of(thought, "text"));
            }
            self.say(out, Voice::Text, text_of(part, "text"));
        }
        self.say(out, Voice::Text, text_of(message, "content"));
        self.say(out, Voice::Refusal, text_of(message, "refusal"));
        for call in list_of(message, "tool_calls") {
            self.call(out, call);
        }
    }

    /// More of what is said, or the beginning of another item.
    fn say(&mut self, out: &mut Vec<u8>, voice: Voice, text: &str) {
        if text.is_empty() {
            return;
        }
        if self.spoken(voice).is_none() {
            self.end_spoken(out, State::Completed);
            let Some(index) = self.begin_item(out, Output::Spoken(voice, String::new())) else {
                return;
            };
            let part = voice.part("");
            self.tell_of(
                out,
                "response.content_part.added",
                index,
                json!({"content_index": 0, "part": part}),
            );
        }
        if let Some((index, so_far)) = self.spoken(voice) {
            so_far.push_str(text);
            let members = voice.with_logprobs(json!({"content_index": 0, "delta": text}));
            self.tell_of(out, voice.delta(), index, members);
        }
    }

    /// The text of the last item, if it is of this voice and goes on.
    fn spoken(&mut self, voice: Voice) -> Option<(usize, &mut String)> {
        let index = self.items.len().checked_sub(1)?;
        match &mut self.items[index] {
            Item {
                state: State::InProgress,
                output: Output::Spoken(of, text),
            } if *of == voice => Some((index, text)),
            _ => None,
        }
    }

    /// Ends the text that goes on.
    fn end_spoken(&mut self, out: &mut Vec<u8>, state: State) {
        let Some(index) = self.items.len().checked_sub(1) else {
            return;
        };
        if let Item {
            state: State::InProgress,
            output: Output::Spoken(voice, text),
        } = &self.items[index]
        {
            let (voice, text) = (*voice, text.clone());
            let mut said = voice.with_logprobs(json!({"content_index": 0}));
            said[voice.member()] = text.clone().into();
            self.tell_of(out, voice.done(), index, said);
            let part = json!({"content_index": 0, "part": voice.part(&text)});
            self.tell_of(out, "response.content_part.done", index, part);
            self.done(out, index, state);
        }
    }

    /// More of a call, or the beginning of another.
    fn call(&mut self, out: &mut Vec<u8>, told: &Value) {
        let (number, id) = (told.get("index").and_then(Value::as_u64), text_of(told, "id"));
        let function = told.get("function").unwrap_or(told);
        let (name, arguments) = (text_of(function, "name"), arguments_of(function));
        let index = match self.known_call(number, id, name, &arguments) {
            Some(index) => index,
            None if name.is_empty() => {
                self.damaged |= self.is_whole || !arguments.is_empty();
                return;
            }
            None => {
                self.end_spoken(out, State::Completed);
                let id = match id {
                    "" => format!("call_{}{}", self.id, self.items.len()),
                    id => id.to_owned(),
                };
                let call = Call::new(number, id, self.names.tool(name));
                match self.begin_item(out, Output::Call(call)) {
                    Some(index) => index,
                    None => return,
                }
            }
        };
        let Output::Call(call) = &mut self.items[index].output else {
            return;
        };
        let new = call.push(&arguments);
        if let Some(delta) = call.delta().filter(|_| !new.is_empty()) {
            self.tell_of(out, delta, index, json!({"delta": new}));
        }
    }

    /// The call that a piece belongs to: by its number, by its id, or the last one when it says neither.
    fn known_call(&self, number: Option<u64>, id: &str, name: &str, arguments: &str) -> Option<usize> {
        if self.is_whole {
            return None;
        }
        let found = self.last_call(|call| match (number, id) {
            // Some number all their calls 0.
            (Some(_), _) => call.number == number && (id.is_empty() || call.id == id),
            (None, "") => true,
            (None, id) => call.id == id,
        });
        match found {
            // Some give their calls no ids, and number them all 0 or not at all.
            Some((_, call)) if id.is_empty() && !name.is_empty() && call.is_whole() => {
                let begins = !arguments.is_empty() || self.names.tool(name) != call.tool;
                found.filter(|_| !begins)
            }
            // Some give each piece an id of its own.
            None if name.is_empty() => self
                .last_call(|call| number.is_some() && call.number == number)
                .or_else(|| self.last_call(|_| true)),
            found => found,
        }
        .map(|(index, _)| index)
    }

    fn last_call(&self, is_it: impl Fn(&Call) -> bool) -> Option<(usize, &Call)> {
        let mut items = self.items.iter().enumerate().rev();
        items.find_map(|(index, item)| match &item.output {
            Output::Call(call) if is_it(call) => Some((index, call)),
            _ => None,
        })
    }

    fn end_calls(&mut self, out: &mut Vec<u8>, state: State) {
        for index in 0..self.items.len() {
            let item = &mut self.items[index];
            let (State::InProgress, Output::Call(call)) = (item.state, &mut item.output) else {
                continue;
            };
            let (late, rest) = (call.begins_late(), call.finish());
            if let (Some(delta), false) = (call.delta(), rest.is_empty()) {
                self.tell_of(out, delta, index, json!({"delta": rest}));
            }
            if let Output::Call(call) = &self.items[index].output
                && let Some((done, members)) = call.done()
            {
                self.tell_of(out, done, index, members);
            }
            if late {
                self.added(out, index);
            }
            self.done(out, index, state);
        }
    }
}

/// The frame of a stream: its begin, its items' and its own end.
impl Answer {
    fn begin(&mut self, out: &mut Vec<u8>, reading: &Reading) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        for kind in ["response.created", "response.in_progress"] {
            let response = self.response(reading, "in_progress");
            self.tell(out, kind, json!({"response": response}));
        }
    }

    /// Begins an item; `None`: there are too many.
    fn begin_item(&mut self, out: &mut Vec<u8>, output: Output) -> Option<usize> {
        if self.items.len() == MAX_ITEMS {
            self.damaged = true;
            return None;
        }
        let late = matches!(&output, Output::Call(call) if call.begins_late());
        self.items.push(Item {
            state: State::InProgress,
            output,
        });
        let index = self.items.len() - 1;
        if !late {
            self.added(out, index);
        }
        Some(index)
    }

    fn added(&mut self, out: &mut Vec<u8>, index: usize) {
        let item = self.items[index].announced(&self.id, index);
        self.tell(
            out,
            "response.output_item.added",
            json!({"output_index": index, "item": item}),
        );
    }

    fn done(&mut self, out: &mut Vec<u8>, index: usize, state: State) {
        self.items[index].state = state;
        let item = self.item(index);
        self.tell(
            out,
            "response.output_item.done",
            json!({"output_index": index, "item": item}),
        );
    }

    fn item(&self, index: usize) -> Value {
        self.items[index].json(&self.id, index, self.packs_reasoning)
    }

    /// An answer that came to an end.
    fn end(&mut self, out: &mut Vec<u8>, reading: &Reading) -> Value {
        self.begin(out, reading);
        if self.damaged {
            return self.fail(out, reading, "server_error", &texts::unread(self.language));
        }
        if self.finish == Some(Finish::Failed) {
            return self.fail(out, reading, "server_error", &texts::broke_off(self.language));
        }
        if self.compacts.is_some() && self.summary().is_none() && !matches!(self.finish, Some(Finish::Cut(_))) {
            return self.fail(out, reading, "server_error", &texts::unread(self.language));
        }
        self.has_ended = true;
        let (status, state) = match self.finish {
            Some(Finish::Cut(_)) => ("incomplete", State::Incomplete),
            Some(Finish::Done | Finish::Failed) | None => ("completed", State::Completed),
        };
        self.end_spoken(out, state);
        self.end_calls(out, state);
        if let Some(item) = self.summary() {
            for kind in ["response.output_item.added", "response.output_item.done"] {
                self.put(out, kind, json!({"output_index": 0, "item": item}));
            }
        }
        let mut response = self.response(reading, status);
        if let Some(Finish::Cut(reason)) = self.finish {
            response["incomplete_details"] = json!({"reason": reason});
        }
        self.tell(out, &format!("response.{status}"), json!({"response": &response}));
        response
    }

    /// The item that takes the place of the conversation; `None`: the answer is no summary, or not all of one.
    fn summary(&self) -> Option<Value> {
        self.compacts
            .as_ref()
            .filter(|_| matches!(self.finish, Some(Finish::Done) | None))?;
        let texts = self.items.iter().filter_map(|item| match &item.output {
            Output::Spoken(Voice::Text, text) => Some(text.trim()),
            _ => None,
        });
        let summary = texts.collect::<Vec<_>>().join("\n\n");
        (!summary.is_empty()).then(|| compaction::item(&summary, &self.id))
    }

    /// What `/responses/compact` answers; `None`: there is no summary.
    fn document(&self, reading: &Reading) -> Option<Value> {
        let Some(Form::Document(said)) = self.compacts.as_ref().filter(|_| !self.failed) else {
            return None;
        };
        Some(json!({
            "id": format!("resp_{}", self.id),
            "object": "response.compaction",
            "created_at": self.created,
            "output": said.iter().cloned().chain([self.summary()?]).collect::<Vec<Value>>(),
            "usage": reading.usage.as_ref().map(usage),
        }))
    }

    /// An answer that did not.
    fn fail(&mut self, out: &mut Vec<u8>, reading: &Reading, code: &str, message: &str) -> Value {
        (self.has_ended, self.failed) = (true, true);
        for item in &mut self.items {
            if item.state == State::InProgress {
                item.state = State::Incomplete;
            }
        }
        let response = self.failed(reading, code, message);
        self.tell(out, "response.failed", json!({"response": &response}));
        response
    }

    fn failed(&self, reading: &Reading, code: &str, message: &str) -> Value {
        let mut response = self.response(reading, "failed");
        response["error"] = json!({"code": code, "message": message});
        response
    }

    fn response(&self, reading: &Reading, status: &str) -> Value {
        let ended = status != "in_progress";
        let output: Vec<Value> = match (ended, &self.compacts) {
            (false, _) => Vec::new(),
            (true, None) => (0..self.items.len()).map(|index| self.item(index)).collect(),
            (true, Some(_)) => self.summary().filter(|_| !self.failed).into_iter().collect(),
        };
        let mut response = self.echo.0.clone();
        let members = json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": null,
            "incomplete_details": null,
            "instructions": null,
            "output": output,
            "previous_response_id": null,
            "service_tier": reading.tier.map(Tier::wire),
            "store": false,
            "tools": [],
            "truncation": "disabled",
            "usage": reading.usage.as_ref().filter(|_| ended).map(usage),
        });
        if let Value::Object(members) = members {
            response.extend(members);
        }
        // Until the upstream says which one answers, it is the one that was asked.
        if let Some(model) = &reading.model {
            response.insert("model".to_owned(), model.clone().into());
        }
        Value::Object(response)
    }

    /// An event about an item.
    fn tell_of(&mut self, out: &mut Vec<u8>, kind: &str, index: usize, mut members: Value) {
        members["item_id"] = self.items[index].id(&self.id, index).into();
        members["output_index"] = index.into();
        self.tell(out, kind, members);
    }

    /// An event, but for those of what becomes a summary.
    fn tell(&mut self, out: &mut Vec<u8>, kind: &str, members: Value) {
        if self.compacts.is_none() || members.get("response").is_some() {
            self.put(out, kind, members);
        }
    }

    fn put(&mut self, out: &mut Vec<u8>, kind: &str, mut members: Value) {
        members["type"] = kind.into();
        members["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        event::named(out, kind, &members);
    }
}

/// As it is billed, in the shape of the Responses API.
fn usage(usage: &Usage) -> Value {
    let (input, output) = (usage.input_tokens.get(), usage.output_tokens.get());
    let written = usage.cache_write_tokens.get() + usage.cache_write_12h_tokens.get();
    json!({
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens.get(), "cache_write_tokens": written},
        "output_tokens": output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens.get()},
        "total_tokens": input + output,
    })
}

/// A member that is text; else none.
fn text_of<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// A member's elements; none when it is no list.
fn list_of<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value.get(name).and_then(Value::as_array).into_iter().flatten()
}

/// Arguments are text that is JSON; some upstreams send the JSON itself.
fn arguments_of(function: &Value) -> String {
    match function.get("arguments") {
        Some(Value::String(text)) => text.clone(),
        Some(arguments @ Value::Object(_)) => arguments.to_string(),
        _ => String::new(),
    }
}
