//! A call of the Responses API at an upstream that only has chat completions: Codex with any model.
//!
//! ```text
//! input, instructions ──▶ messages       `input`
//! tools               ──▶ functions      `tools`, which also knows what each was
//! the rest            ──▶ parameters     here
//! a compaction        ──▶ a summary      `compaction`
//! chat's answer       ──▶ items, events  `answer`, of whose parts `reasoning` and `custom` know more
//! ```

mod answer;
mod compaction;
mod custom;
mod input;
mod item;
mod reasoning;
mod tools;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;
use serde_json::value::{RawValue, to_raw_value};

use super::json::{Object, text};
use super::{Given, Made, Wire, untranslatable};
use crate::call::{Call, CallError, ChatLimitField, Endpoint};
use answer::{Answer, Echo};
use compaction::Form;
use input::{Conversation, Message};
use tools::{Definition, Tools};

/// What stands at `path` has no counterpart in chat.
fn refuse(path: &str, item: &str) -> CallError {
    untranslatable(path, item, Wire::Chat)
}

/// The body that a chat upstream takes.
#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    messages: Vec<Message>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Definition>,
    #[serde(flatten)]
    parameters: BTreeMap<&'static str, Box<RawValue>>,
    stream: bool,
}

/// Makes the upstream's request.
pub(super) fn request(call: &Call, given: &Given) -> Result<Made, CallError> {
    let whole = std::str::from_utf8(&call.body).ok().and_then(Object::read);
    let request = whole.ok_or_else(|| refuse("input", "body"))?;
    let mut tools = Tools::default();
    if let Some(offered) = request.get("tools") {
        tools.add_all(offered, "tools", given.client)?;
    }
    let is_document = call.endpoint == Endpoint::Compact;
    let mut conversation = input::conversation(&request, &mut tools, given.client)?;
    if is_document {
        conversation.compact();
    }
    let Conversation { messages, compacts } = conversation;
    let mut parameters = Parameters::default();
    for (name, value) in request.members() {
        parameters.add(name, value, given.chat_limit_field)?;
    }
    if let Some(choice) = request.get("tool_choice") {
        let choice = tools.choice(choice)?.filter(|_| !tools.definitions.is_empty());
        // `auto` is what happens without a word.
        if let Some(choice) = choice.filter(|choice| choice != "auto") {
            parameters.put("tool_choice", &choice);
        }
    }
    if compacts {
        parameters.made.remove("response_format");
        // They stay, as a part of what is in the upstream's cache.
        if !tools.definitions.is_empty() {
            parameters.put("tool_choice", "none");
        }
    }
    if tools.definitions.is_empty() {
        parameters.made.remove("parallel_tool_calls");
    }
    let body = Body {
        model: &call.model,
        messages,
        tools: tools.definitions,
        parameters: parameters.made,
        stream: call.stream,
    };
    let body = serde_json::to_vec(&body).map_err(|_| refuse("input", "body"))?;
    Ok(Made {
        body,
        answer: Box::new(
            Answer::new(given, tools.names, Echo::of(&request), parameters.packs_reasoning).compacting(compacts.then(
                || match is_document {
                    true => Form::document(request.get("input")),
                    false => Form::Response,
                },
            )),
        ),
        left_out: tools.left_out,
    })
}

/// The parameters besides messages and tools.
#[derive(Default)]
struct Parameters {
    made: BTreeMap<&'static str, Box<RawValue>>,
    /// Whether the client wants reasoning back in a form that it can hand on.
    packs_reasoning: bool,
}

impl Parameters {
    fn add(&mut self, name: &str, value: &RawValue, limit: ChatLimitField) -> Result<(), CallError> {
        match name {
            // Seen to elsewhere.
            "model" | "input" | "instructions" | "tools" | "tool_choice" | "stream" => {}
            // Of no meaning without hosted tools or state, or told in the answer only.
            "client_metadata"
            | "max_tool_calls"
            | "metadata"
            | "prompt_cache_key"
            | "prompt_cache_options"
            | "prompt_cache_retention"
            | "stream_options" => {}
            // What happens without a word.
            "background" | "store" if value.get() == "false" => {}
            "parallel_tool_calls" if value.get() == "true" => {}
            "top_logprobs" if value.get() == "0" => {}
            "truncation" if text(value).as_deref() == Some("disabled") => {}
            "max_output_tokens" => self.put(limit_field(limit), value),
            "parallel_tool_calls" => self.put("parallel_tool_calls", value),
            "safety_identifier" => self.put("safety_identifier", value),
            "service_tier" => self.put("service_tier", value),
            "temperature" => self.put("temperature", value),
            "top_p" => self.put("top_p", value),
            "user" => self.put("user", value),
            "include" => self.include(value)?,
            "reasoning" => self.reasoning(value)?,
            "text" => self.text(value)?,
            other => return Err(refuse(other, other)),
        }
        Ok(())
    }

    fn put(&mut self, name: &'static str, value: &(impl Serialize + ?Sized)) {
        if let Ok(value) = to_raw_value(value) {
            self.made.insert(name, value);
        }
    }

    /// What belongs to hosted tools is there as soon as the tools are.
    fn include(&mut self, value: &RawValue) -> Result<(), CallError> {
        let wanted: Vec<String> = serde_json::from_str(value.get()).map_err(|_| refuse("include", "include"))?;
        for (index, wanted) in wanted.iter().enumerate() {
            match &**wanted {
                "reasoning.encrypted_content" => self.packs_reasoning = true,
                "message.input_image.image_url" | "computer_call_output.output.image_url" => {}
                tool if tool.contains("_call.") => {}
                other => return Err(refuse(&format!("include[{index}]"), other)),
            }
        }
        Ok(())
    }

    /// A summary is not to be had; the reasoning itself is given where the upstream shows it.
    fn reasoning(&mut self, value: &RawValue) -> Result<(), CallError> {
        let reasoning = Object::read(value.get()).ok_or_else(|| refuse("reasoning", "reasoning"))?;
        for (name, value) in reasoning.members() {
            let word = text(value).unwrap_or_default();
            match (name, &*word) {
                ("effort", effort) => self.put("reasoning_effort", effort),
                ("summary" | "generate_summary" | "context", _) | ("mode", "default" | "standard") => {}
                (other, _) => return Err(refuse(&format!("reasoning.{other}"), other)),
            }
        }
        Ok(())
    }

    fn text(&mut self, value: &RawValue) -> Result<(), CallError> {
        let settings = Object::read(value.get()).ok_or_else(|| refuse("text", "text"))?;
        for (name, value) in settings.members() {
            match name {
                "verbosity" => self.put("verbosity", value),
                "format" => self.format(value)?,
                other => return Err(refuse(&format!("text.{other}"), other)),
            }
        }
        Ok(())
    }

    /// The form of the answer; a grammar is not to be had.
    fn format(&mut self, value: &RawValue) -> Result<(), CallError> {
        let format = Object::read(value.get()).ok_or_else(|| refuse("text.format", "format"))?;
        match &*format.text("type").unwrap_or_default() {
            "text" => {}
            "json_object" => self.put("response_format", &json!({"type": "json_object"})),
            "json_schema" => {
                let json_schema: BTreeMap<&str, &RawValue> =
                    format.members().filter(|(name, _)| *name != "type").collect();
                let format = ResponseFormat {
                    r#type: "json_schema",
                    json_schema,
                };
                self.put("response_format", &format);
            }
            other => return Err(refuse("text.format", other)),
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct ResponseFormat<'a> {
    r#type: &'static str,
    json_schema: BTreeMap<&'a str, &'a RawValue>,
}

const fn limit_field(field: ChatLimitField) -> &'static str {
    match field {
        ChatLimitField::MaxCompletionTokens => "max_completion_tokens",
        ChatLimitField::MaxTokens => "max_tokens",
    }
}

#[cfg(test)]
mod tests;
