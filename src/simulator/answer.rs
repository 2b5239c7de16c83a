//! Answers: what a model says, rendered in the wire format that was asked for, whole or as a stream.

use http::StatusCode;
use serde_json::{Value, json};

use super::script::{Script, ServedUsage, Step};
use super::{Request, Wire};

/// What the model makes, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Hidden thinking of so many tokens, with the summary that responses show of it.
    Reasoning {
        /// Tokens that are billed and not shown.
        tokens: u64,
        /// What is shown; empty: nothing.
        summary: String,
    },
    /// Text.
    Text(String),
    /// A function to call, with its arguments as JSON text.
    Function {
        /// Its name.
        name: String,
        /// JSON text.
        arguments: String,
    },
    /// What takes the place of all that was said before, in so many tokens that only the upstream can read.
    Compaction {
        /// Tokens that are billed and not shown.
        tokens: u64,
    },
    /// A custom tool to call, with its free-form input. Chat has these as functions.
    Custom {
        /// Its name.
        name: String,
        /// Any text.
        input: String,
    },
}

/// How a text is divided among the events of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pieces {
    /// A token each, as upstreams do.
    #[default]
    Tokens,
    /// So many, as even as tokens allow; fewer when the text has fewer tokens.
    Count(usize),
}

/// Whether the output limit of the request is obeyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Limit {
    /// The answer is cut there, and says so.
    #[default]
    Obeyed,
    /// It goes on.
    Ignored,
}

/// An answer, counted, before it takes a wire format.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What is in it, after the cut.
    pub items: Vec<Item>,
    /// Whether the output limit cut it.
    pub cut: bool,
    /// What it uses.
    pub usage: ServedUsage,
    /// How its text is divided.
    pub pieces: Pieces,
}

impl Answer {
    /// Counts what the model makes, and cuts it at the request's limit.
    pub fn new(request: &Request, items: Vec<Item>, limit: Limit, pieces: Pieces) -> Answer {
        let limit = match limit {
            Limit::Obeyed => request.output_limit(),
            Limit::Ignored => None,
        };
        let (items, cut) = cut(request, items, limit.unwrap_or(u64::MAX));
        let reasoning: u64 = items.iter().map(reasoning_tokens).sum();
        let visible: u64 = items.iter().map(|item| visible_tokens(request, item)).sum();
        let choices = request.choices();
        let usage = ServedUsage {
            input: request.input_tokens(),
            cached: request.cached_tokens(),
            cache_write: 0,
            output: (reasoning + visible) * choices,
            reasoning: reasoning * choices,
            tier: Some(request.tier().to_owned()),
        };
        Answer {
            items,
            cut,
            usage,
            pieces,
        }
    }

    /// The script that plays it, in the request's wire format.
    pub fn script(&self, request: &Request) -> Script {
        let id = format!("{:x}{:04x}", request.at.as_microsecond(), request.id);
        let mut script = match (request.wire(), request.streamed()) {
            (Some(Wire::Responses), false) => Script::json(StatusCode::OK, &Response::new(request, self, &id).whole()),
            (Some(Wire::Responses), true) => Script::sse(Response::new(request, self, &id).stream()),
            (wire, streamed) => {
                let chat = Chat::new(request, self, &id, wire == Some(Wire::Completions));
                if streamed {
                    Script::sse(chat.stream())
                } else {
                    Script::json(StatusCode::OK, &chat.whole())
                }
            }
        };
        let prefix = if request.wire() == Some(Wire::Responses) {
            "resp_"
        } else {
            "chatcmpl-"
        };
        script.response_id = Some(format!("{prefix}{id}"));
        script
            .using(self.usage.clone())
            .header("x-request-id", &format!("req_{id}"))
    }
}

fn reasoning_tokens(item: &Item) -> u64 {
    match item {
        Item::Reasoning { tokens, .. } => *tokens,
        _ => 0,
    }
}

fn visible_tokens(request: &Request, item: &Item) -> u64 {
    match item {
        Item::Reasoning { .. } => 0,
        Item::Compaction { tokens } => *tokens,
        Item::Text(text) => request.count(text),
        Item::Function { name, arguments } => request.count(name) + request.count(arguments),
        Item::Custom { name, input } => request.count(name) + request.count(input),
    }
}

/// What fits into `limit` tokens: a text is cut, a call that does not fit is left out.
fn cut(request: &Request, items: Vec<Item>, limit: u64) -> (Vec<Item>, bool) {
    let mut left = limit;
    let mut kept = Vec::new();
    for item in items {
        let size = reasoning_tokens(&item) + visible_tokens(request, &item);
        if size <= left {
            left -= size;
            kept.push(item);
            continue;
        }
        match item {
            Item::Text(text) => kept.push(Item::Text(first_tokens(request, &text, left))),
            Item::Reasoning { summary, .. } => kept.push(Item::Reasoning { tokens: left, summary }),
            Item::Function { .. } | Item::Custom { .. } | Item::Compaction { .. } => {}
        }
        return (kept, true);
    }
    (kept, false)
}

fn first_tokens(request: &Request, text: &str, limit: u64) -> String {
    let mut left = limit;
    let fits = |(piece, tokens): (String, u64)| {
        left = left.checked_sub(tokens)?;
        Some(piece)
    };
    request.cut_into_tokens(text).into_iter().map_while(fits).collect()
}

/// A text in pieces, with the tokens of each.
fn divide(request: &Request, text: &str, pieces: Pieces) -> Vec<(String, u64)> {
    let tokens = request.cut_into_tokens(text);
    let Pieces::Count(count) = pieces else {
        return tokens;
    };
    let count = count.clamp(1, tokens.len().max(1));
    let part = |number: usize| &tokens[number * tokens.len() / count..(number + 1) * tokens.len() / count];
    let join = |part: &[(String, u64)]| {
        let text = part.iter().map(|(piece, _)| piece.as_str()).collect();
        (text, part.iter().map(|(_, tokens)| tokens).sum())
    };
    (0..count).map(|number| join(part(number))).collect()
}

/// Chat completions and the older completions.
struct Chat<'a> {
    request: &'a Request,
    answer: &'a Answer,
    id: &'a str,
    texts_only: bool,
}

impl<'a> Chat<'a> {
    fn new(request: &'a Request, answer: &'a Answer, id: &'a str, texts_only: bool) -> Chat<'a> {
        Chat {
            request,
            answer,
            id,
            texts_only,
        }
    }

    fn head(&self, object: &str) -> Value {
        json!({
            "id": format!("chatcmpl-{}", self.id),
            "object": object,
            "created": self.request.at.as_second(),
            "model": self.request.model,
            "service_tier": self.answer.usage.tier,
            "system_fingerprint": "fp_simulated",
        })
    }

    fn finish_reason(&self) -> &'static str {
        let calls = |item: &Item| matches!(item, Item::Function { .. } | Item::Custom { .. });
        match self.answer.cut {
            true => "length",
            false if self.answer.items.iter().any(calls) => "tool_calls",
            false => "stop",
        }
    }

    fn text(&self) -> String {
        self.texts().collect()
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        self.answer.items.iter().filter_map(|item| match item {
            Item::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    fn calls(&self, choice: u64) -> Vec<Value> {
        let calls = self.answer.items.iter().filter_map(|item| match item {
            Item::Function { name, arguments } => Some((name, arguments)),
            Item::Custom { name, input } => Some((name, input)),
            _ => None,
        });
        let shown = |(number, (name, arguments)): (usize, (&String, &String))| {
            json!({
                "id": format!("call_{}_{choice}_{number}", self.id),
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            })
        };
        calls.enumerate().map(shown).collect()
    }

    fn usage(&self) -> Value {
        let usage = &self.answer.usage;
        json!({
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": usage.input + usage.output,
            "prompt_tokens_details": {
                "cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write, "audio_tokens": 0,
            },
            "completion_tokens_details": {
                "reasoning_tokens": usage.reasoning, "audio_tokens": 0,
                "accepted_prediction_tokens": 0, "rejected_prediction_tokens": 0,
            },
        })
    }

    fn whole(&self) -> Value {
        let object = if self.texts_only {
            "text_completion"
        } else {
            "chat.completion"
        };
        let mut whole = self.head(object);
        let choices = (0..self.request.choices()).map(|choice| self.choice(choice));
        whole["choices"] = choices.collect();
        whole["usage"] = self.usage();
        whole
    }

    fn choice(&self, index: u64) -> Value {
        let finish = self.finish_reason();
        if self.texts_only {
            return json!({"index": index, "text": self.text(), "logprobs": null, "finish_reason": finish});
        }
        let text = self.text();
        let content = if text.is_empty() {
            Value::Null
        } else {
            Value::from(text)
        };
        let mut message = json!({"role": "assistant", "content": content, "refusal": null, "annotations": []});
        let calls = self.calls(index);
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        json!({"index": index, "message": message, "logprobs": null, "finish_reason": finish})
    }

    fn stream(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        let choices = 0..self.request.choices();
        if !self.texts_only {
            let role = json!({"role": "assistant", "content": "", "refusal": null});
            steps.extend(choices.clone().map(|choice| self.delta(choice, &role, Value::Null, 0)));
        }
        for (piece, tokens) in self
            .texts()
            .flat_map(|text| divide(self.request, text, self.answer.pieces))
        {
            let delta = json!({"content": piece});
            steps.extend(
                choices
                    .clone()
                    .map(|choice| self.delta(choice, &delta, Value::Null, tokens)),
            );
        }
        steps.extend(choices.clone().flat_map(|choice| self.call_deltas(choice)));
        let finish = Value::from(self.finish_reason());
        steps.extend(choices.map(|choice| self.delta(choice, &json!({}), finish.clone(), 0)));
        if self.request.include_usage() {
            steps.push(Step::data(&self.chunk(json!([]), self.usage()), 0));
        }
        steps.push(Step::send("data: [DONE]\n\n"));
        steps
    }

    fn call_deltas(&self, choice: u64) -> Vec<Step> {
        let mut steps = Vec::new();
        for (number, call) in self.calls(choice).into_iter().enumerate() {
            let arguments = call["function"]["arguments"].as_str().unwrap_or_default().to_owned();
            let mut first = call.clone();
            first["index"] = number.into();
            first["function"]["arguments"] = "".into();
            let name = self
                .request
                .count(call["function"]["name"].as_str().unwrap_or_default());
            steps.push(self.delta(choice, &json!({"tool_calls": [first]}), Value::Null, name));
            for (piece, tokens) in divide(self.request, &arguments, self.answer.pieces) {
                let more = json!({"tool_calls": [{"index": number, "function": {"arguments": piece}}]});
                steps.push(self.delta(choice, &more, Value::Null, tokens));
            }
        }
        steps
    }

    fn delta(&self, index: u64, delta: &Value, finish: Value, tokens: u64) -> Step {
        let choice = if self.texts_only {
            let text = delta["content"].as_str().unwrap_or_default();
            json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish})
        } else {
            json!({"index": index, "delta": delta, "logprobs": null, "finish_reason": finish})
        };
        Step::data(&self.chunk(json!([choice]), Value::Null), tokens)
    }

    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let object = if self.texts_only {
            "text_completion"
        } else {
            "chat.completion.chunk"
        };
        let mut chunk = self.head(object);
        chunk["choices"] = choices;
        if self.request.include_usage() {
            chunk["usage"] = usage;
        }
        chunk
    }
}

/// The Responses API.
struct Response<'a> {
    request: &'a Request,
    answer: &'a Answer,
    id: &'a str,
}

impl<'a> Response<'a> {
    fn new(request: &'a Request, answer: &'a Answer, id: &'a str) -> Response<'a> {
        Response { request, answer, id }
    }

    fn whole(&self) -> Value {
        let output = self.answer.items.iter().enumerate();
        let output: Vec<Value> = output.map(|(number, item)| self.item(number, item)).collect();
        let status = if self.answer.cut { "incomplete" } else { "completed" };
        let mut whole = self.object(status, output);
        whole["service_tier"] = self.answer.usage.tier.clone().into();
        whole["usage"] = self.usage();
        if self.answer.cut {
            whole["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        whole
    }

    /// The response object while nothing is known of its cost.
    fn object(&self, status: &str, output: Vec<Value>) -> Value {
        let asked = |field: &str, default: Value| match &self.request.json[field] {
            Value::Null => default,
            given => given.clone(),
        };
        json!({
            "id": format!("resp_{}", self.id),
            "object": "response",
            "created_at": self.request.at.as_second(),
            "status": status,
            "background": asked("background", false.into()),
            "error": null,
            "incomplete_details": null,
            "instructions": asked("instructions", Value::Null),
            "max_output_tokens": asked("max_output_tokens", Value::Null),
            "model": self.request.model,
            "output": output,
            "parallel_tool_calls": asked("parallel_tool_calls", true.into()),
            "previous_response_id": asked("previous_response_id", Value::Null),
            "reasoning": asked("reasoning", json!({"effort": null, "summary": null})),
            "service_tier": "auto",
            "store": asked("store", true.into()),
            "temperature": asked("temperature", 1.into()),
            "text": asked("text", json!({"format": {"type": "text"}})),
            "tool_choice": asked("tool_choice", "auto".into()),
            "tools": asked("tools", json!([])),
            "top_p": asked("top_p", 1.into()),
            "truncation": asked("truncation", "disabled".into()),
            "usage": null,
            "user": asked("user", Value::Null),
            "metadata": asked("metadata", json!({})),
        })
    }

    fn usage(&self) -> Value {
        let usage = &self.answer.usage;
        json!({
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": usage.cache_write},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": usage.reasoning},
            "total_tokens": usage.input + usage.output,
        })
    }

    fn item_id(&self, number: usize, item: &Item) -> String {
        let prefix = match item {
            Item::Reasoning { .. } => "rs",
            Item::Text(_) => "msg",
            Item::Function { .. } => "fc",
            Item::Custom { .. } => "ctc",
            Item::Compaction { .. } => "cmp",
        };
        format!("{prefix}_{}_{number}", self.id)
    }

    fn item(&self, number: usize, item: &Item) -> Value {
        let status = if self.answer.cut && number + 1 == self.answer.items.len() {
            "incomplete"
        } else {
            "completed"
        };
        let id = self.item_id(number, item);
        let call_id = format!("call_{}_{number}", self.id);
        match item {
            Item::Reasoning { summary, .. } => {
                let summary = if summary.is_empty() {
                    json!([])
                } else {
                    json!([summary_part(summary)])
                };
                let mut shown = json!({"id": id, "type": "reasoning", "summary": summary});
                if self.wants("reasoning.encrypted_content") {
                    shown["encrypted_content"] = format!("simulated-{}", self.id).into();
                }
                shown
            }
            Item::Text(text) => {
                let content = json!([text_part(text)]);
                json!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
            }
            Item::Function { name, arguments } => json!({
                "id": id, "type": "function_call", "status": status, "call_id": call_id,
                "name": name, "arguments": arguments,
            }),
            Item::Custom { name, input } => json!({
                "id": id, "type": "custom_tool_call", "status": status, "call_id": call_id,
                "name": name, "input": input,
            }),
            Item::Compaction { .. } => {
                json!({"id": id, "type": "compaction", "encrypted_content": format!("simulated-{}", self.id)})
            }
        }
    }

    fn wants(&self, included: &str) -> bool {
        let include = self.request.json["include"].as_array();
        include.is_some_and(|names| names.iter().any(|name| name == included))
    }

    fn stream(&self) -> Vec<Step> {
        let begun = self.object("in_progress", Vec::new());
        let mut events = vec![
            (json!({"type": "response.created", "response": begun}), 0),
            (json!({"type": "response.in_progress", "response": begun}), 0),
        ];
        for (number, item) in self.answer.items.iter().enumerate() {
            self.item_events(number, item, &mut events);
        }
        let end = if self.answer.cut {
            "response.incomplete"
        } else {
            "response.completed"
        };
        events.push((json!({"type": end, "response": self.whole()}), 0));
        let numbered = events.into_iter().enumerate().map(|(number, (mut event, tokens))| {
            event["sequence_number"] = number.into();
            Step::event(&event, tokens)
        });
        numbered.collect()
    }

    fn item_events(&self, number: usize, item: &Item, events: &mut Vec<(Value, u64)>) {
        let done = self.item(number, item);
        let mut added = done.clone();
        added["status"] = "in_progress".into();
        // A call shows its name when it begins, and its input as it comes.
        let mut name_tokens = 0;
        for field in ["content", "summary", "arguments", "input"] {
            match &mut added[field] {
                Value::Array(parts) => parts.clear(),
                Value::String(text) => text.clear(),
                _ => {}
            }
        }
        if let Some(fields) = added.as_object_mut() {
            fields.retain(|_, value| !value.is_null());
        }
        if let Some(name) = done["name"].as_str() {
            name_tokens = self.request.count(name);
        }
        let begin = json!({"type": "response.output_item.added", "output_index": number, "item": added});
        events.push((begin, name_tokens));
        let place = json!({"item_id": self.item_id(number, item), "output_index": number});
        match item {
            Item::Reasoning { summary, .. } => self.summary_events(&place, summary, events),
            Item::Text(text) => self.text_events(&place, text, events),
            Item::Function { arguments, .. } => {
                self.input_events(
                    &place,
                    "response.function_call_arguments",
                    "arguments",
                    arguments,
                    events,
                );
            }
            Item::Custom { input, .. } => {
                self.input_events(&place, "response.custom_tool_call_input", "input", input, events);
            }
            Item::Compaction { .. } => {}
        }
        events.push((
            json!({"type": "response.output_item.done", "output_index": number, "item": done}),
            0,
        ));
    }

    fn summary_events(&self, place: &Value, summary: &str, events: &mut Vec<(Value, u64)>) {
        if summary.is_empty() {
            return;
        }
        let name = |event: &str| format!("response.reasoning_summary_{event}");
        let part = |text: &str| json!({"summary_index": 0, "part": summary_part(text)});
        events.push((with(place, &name("part.added"), &part("")), 0));
        for (piece, _) in divide(self.request, summary, self.answer.pieces) {
            // A summary is written by another model: it is shown and not billed.
            events.push((
                with(place, &name("text.delta"), &json!({"summary_index": 0, "delta": piece})),
                0,
            ));
        }
        events.push((
            with(place, &name("text.done"), &json!({"summary_index": 0, "text": summary})),
            0,
        ));
        events.push((with(place, &name("part.done"), &part(summary)), 0));
    }

    fn text_events(&self, place: &Value, text: &str, events: &mut Vec<(Value, u64)>) {
        let part = |text: &str| json!({"content_index": 0, "part": text_part(text)});
        events.push((with(place, "response.content_part.added", &part("")), 0));
        for (piece, tokens) in divide(self.request, text, self.answer.pieces) {
            let delta = json!({"content_index": 0, "delta": piece, "logprobs": []});
            events.push((with(place, "response.output_text.delta", &delta), tokens));
        }
        let whole = json!({"content_index": 0, "text": text, "logprobs": []});
        events.push((with(place, "response.output_text.done", &whole), 0));
        events.push((with(place, "response.content_part.done", &part(text)), 0));
    }

    fn input_events(&self, place: &Value, name: &str, field: &str, text: &str, events: &mut Vec<(Value, u64)>) {
        for (piece, tokens) in divide(self.request, text, self.answer.pieces) {
            events.push((with(place, &format!("{name}.delta"), &json!({"delta": piece})), tokens));
        }
        events.push((with(place, &format!("{name}.done"), &json!({field: text})), 0));
    }
}

fn text_part(text: &str) -> Value {
    json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text})
}

fn summary_part(text: &str) -> Value {
    json!({"type": "summary_text", "text": text})
}

/// An event of this type at a place in the output, with more fields.
fn with(place: &Value, kind: &str, more: &Value) -> Value {
    let mut event = place.clone();
    event["type"] = kind.into();
    for (name, value) in more.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    event
}

/// Vectors for a text or several: short ones, whose first number is the text's length.
pub fn embeddings(request: &Request) -> Script {
    let vector = |text: &Value| json!([text.to_string().len(), 1, 0, 0]);
    let items = request.items();
    // One prompt may be a list of token ids.
    let alone = items.iter().any(Value::is_number);
    let texts = if alone { vec![Value::Array(items)] } else { items };
    let base64 = request.json["encoding_format"] == "base64";
    let data = texts.iter().enumerate().map(|(index, text)| {
        let embedding = if base64 {
            Value::from(ONE_ZERO_BASE64)
        } else {
            vector(text)
        };
        json!({"object": "embedding", "index": index, "embedding": embedding})
    });
    let input = request.input_tokens();
    let body = json!({
        "object": "list",
        "data": data.collect::<Vec<_>>(),
        "model": request.model,
        "usage": {"prompt_tokens": input, "total_tokens": input},
    });
    Script::json(StatusCode::OK, &body).using(ServedUsage {
        input,
        ..ServedUsage::default()
    })
}

/// Tokens of every compaction.
const COMPACTED: u64 = 50;

/// A conversation made shorter: what the user said last, and the rest of it sealed.
pub fn compaction(request: &Request) -> Script {
    let (said, _) = request.prompt();
    let id = format!("{:x}{:04x}", request.at.as_microsecond(), request.id);
    let usage = ServedUsage {
        input: request.input_tokens(),
        cached: request.cached_tokens(),
        output: COMPACTED,
        tier: Some(request.tier().to_owned()),
        ..ServedUsage::default()
    };
    let body = json!({
        "id": format!("resp_{id}"),
        "object": "response.compaction",
        "created_at": request.at.as_second(),
        "output": [
            {"id": format!("msg_{id}"), "type": "message", "role": "user", "status": "completed",
             "content": [{"type": "input_text", "text": said}]},
            {"id": format!("cmp_{id}"), "type": "compaction", "encrypted_content": "c2VhbGVk"},
        ],
        "usage": {
            "input_tokens": usage.input,
            "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
            "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.input + usage.output,
        },
    });
    let mut script = Script::json(StatusCode::OK, &body).using(usage);
    script.response_id = Some(format!("resp_{id}"));
    script
}

/// The vector (1, 0) as little-endian 32-bit floats in base64, which OpenAI's clients ask for.
const ONE_ZERO_BASE64: &str = "AACAPwAAAAA=";
