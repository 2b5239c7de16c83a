//! What an output item says, as far as chat has words for it.

use serde_json::{Map, Value, json};

/// Between texts that belong to different messages, and between parts of reasoning.
pub(super) const APART: &str = "\n\n";

/// What an item says.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) refusal: String,
    /// Reasoning as it was thought.
    pub(super) thought: String,
    /// Reasoning as it was summed up.
    pub(super) summary: String,
    /// Citations and how likely the tokens were, as they are written in the item.
    pub(super) annotations: Vec<Value>,
    pub(super) logprobs: Vec<Value>,
    pub(super) call: Option<ToolCall>,
}

/// A tool that the client is to run.
#[derive(Debug)]
pub(super) struct ToolCall {
    pub(super) id: String,
    pub(super) kind: Kind,
    pub(super) name: String,
    /// Its arguments or its input.
    pub(super) input: String,
}

/// Of which kind it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Function,
    Custom,
}

impl Kind {
    /// The type of a call, and the name of the object that holds it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Kind::Function => "function",
            Kind::Custom => "custom",
        }
    }

    /// The member that holds what the tool is given.
    pub(super) const fn input(self) -> &'static str {
        match self {
            Kind::Function => "arguments",
            Kind::Custom => "input",
        }
    }
}

impl Said {
    /// By an item; nothing, when it is the upstream's own business.
    pub(super) fn by(item: &Value) -> Said {
        let mut said = Said::default();
        match item["type"].as_str().unwrap_or_default() {
            "message" => said.message(&item["content"]),
            "reasoning" => {
                said.thought = texts(&item["content"]).concat();
                said.summary = texts(&item["summary"]).join(APART);
            }
            "function_call" => said.call = Some(tool_call(item, Kind::Function)),
            "custom_tool_call" => said.call = Some(tool_call(item, Kind::Custom)),
            _ => {}
        }
        said
    }

    fn message(&mut self, content: &Value) {
        if let Some(text) = content.as_str() {
            text.clone_into(&mut self.text);
        }
        for part in content.as_array().into_iter().flatten() {
            let list = |name: &str| part[name].as_array().cloned().unwrap_or_default();
            self.refusal.push_str(part["refusal"].as_str().unwrap_or_default());
            self.text.push_str(part["text"].as_str().unwrap_or_default());
            self.annotations.extend(list("annotations"));
            self.logprobs.extend(list("logprobs"));
        }
    }
}

/// The texts of parts.
fn texts(parts: &Value) -> Vec<&str> {
    let parts = parts.as_array().into_iter().flatten();
    parts.filter_map(|part| part["text"].as_str()).collect()
}

fn tool_call(item: &Value, kind: Kind) -> ToolCall {
    let text = |name: &str| match &item[name] {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let id = [text("call_id"), text("id")];
    ToolCall {
        id: id.into_iter().find(|id| !id.is_empty()).unwrap_or_default(),
        kind,
        name: text("name"),
        input: text(kind.input()),
    }
}

/// A citation as chat has it, in a text that `before` characters of the whole stand before; of other annotations it knows
/// none.
pub(super) fn annotation(annotation: &Value, before: u64) -> Option<Value> {
    let mut citation = annotation.as_object().cloned()?;
    let kind = citation.remove("type").filter(|kind| kind == "url_citation")?;
    for place in ["start_index", "end_index"] {
        if let Some(index) = citation.get(place).and_then(Value::as_u64) {
            citation.insert(place.into(), json!(index.saturating_add(before)));
        }
    }
    Some(json!({"type": kind, "url_citation": citation}))
}

/// Why the answer ends.
pub(super) fn finish_reason(response: &Value, calls: bool) -> &'static str {
    match response["incomplete_details"]["reason"].as_str() {
        Some("content_filter") => "content_filter",
        // Whatever else cut it: it is not whole.
        Some(_) => "length",
        None if response["status"] == "incomplete" => "length",
        None if calls => "tool_calls",
        None => "stop",
    }
}

/// The usage under chat's names; what has none of its own stays as it is.
pub(super) fn usage(usage: &Value) -> Option<Value> {
    let renamed = usage.as_object()?.iter().map(|(name, value)| {
        let name = match &**name {
            "input_tokens" => "prompt_tokens",
            "output_tokens" => "completion_tokens",
            "input_tokens_details" => "prompt_tokens_details",
            "output_tokens_details" => "completion_tokens_details",
            other => other,
        };
        (name.to_owned(), value.clone())
    });
    Some(Value::Object(renamed.collect::<Map<_, _>>()))
}

/// When the answer was made, in whole seconds: some upstreams write a fraction.
pub(super) fn created(response: &Value) -> Option<i64> {
    let written = response["created_at"].as_number()?.to_string();
    written.split('.').next()?.parse().ok()
}
