//! A chat request → a request of the Responses API.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::members::{Members, text, wrong_type};
use super::messages::{self, Item};
use crate::call::{CallError, Wanted};

/// Parameters that have the same name and meaning.
const SAME: [&str; 12] = [
    "metadata",
    "model",
    "parallel_tool_calls",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "service_tier",
    "stream",
    "temperature",
    "top_p",
    "user",
];

/// What has to be asked for to be told how likely the tokens were.
const LOGPROBS: [&str; 1] = ["message.output_text.logprobs"];

/// Those of a function that names none.
const NO_PARAMETERS: &str = r#"{"type":"object","properties":{}}"#;

#[derive(Serialize)]
struct Request<'a> {
    #[serde(flatten)]
    same: BTreeMap<&'static str, &'a RawValue>,
    input: Vec<Item<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<Tool<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_choice: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<Reasoning<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_output_tokens: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    include: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stream_options: Option<StreamOptions<'a>>,
    store: Value,
}

/// A tool that the client runs.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Tool<'a> {
    Function {
        name: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<Cow<'a, str>>,
        /// As it is written: models follow the order of its members.
        parameters: Option<&'a RawValue>,
        strict: &'a RawValue,
    },
    Custom {
        name: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        description: Option<Cow<'a, str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        format: Option<Value>,
    },
}

#[derive(Serialize)]
struct Text<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<Format<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verbosity: Option<&'a RawValue>,
}

/// The form of the answer.
#[derive(Serialize)]
struct Format<'a> {
    r#type: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<&'a RawValue>,
}

#[derive(Serialize)]
struct Reasoning<'a> {
    effort: &'a RawValue,
}

#[derive(Serialize)]
struct StreamOptions<'a> {
    include_obfuscation: &'a RawValue,
}

/// The body for the upstream.
pub(super) fn translated(body: &str) -> Result<Vec<u8>, CallError> {
    let mut chat = Members::of(body, "")?;
    ask_for_nothing(&mut chat);
    let same = SAME
        .into_iter()
        .filter_map(|name| Some((name, chat.raw(name)?)))
        .collect();
    let messages = chat.take("messages").unwrap_or("[]");
    let limits = [chat.raw("max_completion_tokens"), chat.raw("max_tokens")];
    let include = match chat.take("logprobs") {
        None => None,
        Some("true") => Some(LOGPROBS),
        Some(_) => return Err(wrong_type("logprobs", Wanted::Bool)),
    };
    let request = Request {
        same,
        input: messages::items(messages)?,
        tools: tools(&mut chat)?,
        tool_choice: tool_choice(&mut chat)?,
        text: text_settings(&mut chat)?,
        reasoning: chat.raw("reasoning_effort").map(|effort| Reasoning { effort }),
        max_output_tokens: limits.into_iter().flatten().next(),
        top_logprobs: include.and_then(|_| chat.raw("top_logprobs")),
        include,
        stream_options: stream_options(&mut chat)?,
        store: store(&mut chat),
    };
    chat.finish()?;
    // There is no map in it whose names are not strings.
    Ok(serde_json::to_vec(&request).unwrap_or_default())
}

/// Takes what says only what the Responses API does anyway.
fn ask_for_nothing(chat: &mut Members<'_>) {
    let is_empty = |value: &Value| match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        _ => false,
    };
    for name in ["functions", "logit_bias", "stop"] {
        chat.leave_out(name, is_empty);
    }
    for name in ["frequency_penalty", "presence_penalty", "top_logprobs"] {
        chat.leave_out(name, |value| value.as_f64() == Some(0.0));
    }
    chat.leave_out("logprobs", |value| *value == json!(false));
    chat.leave_out("n", |value| value.as_u64() == Some(1));
    chat.leave_out("modalities", |value| *value == json!(["text"]));
}

/// Chat stores nothing unless it is asked to; the Responses API does unless it is asked not to.
fn store(chat: &mut Members<'_>) -> Value {
    Value::Bool(chat.take("store") == Some("true"))
}

fn tools<'a>(chat: &mut Members<'a>) -> Result<Vec<Tool<'a>>, CallError> {
    let tools = chat.list("tools", Wanted::Tools)?;
    tools.into_iter().map(|(path, json)| tool(json, &path)).collect()
}

fn tool<'a>(json: &'a str, path: &str) -> Result<Tool<'a>, CallError> {
    let mut tool = Members::of(json, path)?;
    let kind = tool.needed("type")?;
    let translated = match &*kind {
        "function" => {
            let mut function = tool.needed_object("function")?;
            let translated = Tool::Function {
                name: function.needed("name")?,
                description: function.text("description")?,
                parameters: function
                    .raw("parameters")
                    .or_else(|| serde_json::from_str(NO_PARAMETERS).ok()),
                // What is not said means no here, and yes there.
                strict: function.raw("strict").unwrap_or(RawValue::FALSE),
            };
            function.finish()?;
            translated
        }
        "custom" => {
            let mut custom = tool.needed_object("custom")?;
            let translated = Tool::Custom {
                name: custom.needed("name")?,
                description: custom.text("description")?,
                format: custom.object("format")?.map(input_format).transpose()?,
            };
            custom.finish()?;
            translated
        }
        _ => return Err(tool.untranslatable(&kind)),
    };
    tool.finish()?;
    Ok(translated)
}

/// The form of what a custom tool takes: chat has a grammar in an object of its own.
fn input_format(mut format: Members<'_>) -> Result<Value, CallError> {
    let kind = format.needed("type")?;
    let translated = match &*kind {
        "text" => json!({"type": kind}),
        "grammar" => {
            let mut grammar = format.needed_object("grammar")?;
            let (syntax, definition) = (grammar.needed("syntax")?, grammar.needed("definition")?);
            grammar.finish()?;
            json!({"type": kind, "syntax": syntax, "definition": definition})
        }
        _ => return Err(format.untranslatable(&kind)),
    };
    format.finish()?;
    Ok(translated)
}

fn tool_choice(chat: &mut Members<'_>) -> Result<Option<Value>, CallError> {
    let path = chat.path("tool_choice");
    let Some(json) = chat.take("tool_choice") else {
        return Ok(None);
    };
    if let Some(word) = text(json) {
        return Ok(Some(json!(word)));
    }
    let mut choice = Members::of(json, &path)?;
    let kind = choice.needed("type")?;
    let translated = match &*kind {
        "function" | "custom" => json!({"type": kind, "name": name_within(&mut choice, &kind)?}),
        "allowed_tools" => {
            let mut allowed = choice.needed_object("allowed_tools")?;
            let mode = allowed.needed("mode")?;
            let tools = allowed.list("tools", Wanted::Tools)?;
            let tools = tools.into_iter().map(|(path, json)| allowed_tool(json, &path));
            let tools: Vec<Value> = tools.collect::<Result<_, _>>()?;
            allowed.finish()?;
            json!({"type": kind, "mode": mode, "tools": tools})
        }
        _ => return Err(choice.untranslatable(&kind)),
    };
    choice.finish()?;
    Ok(Some(translated))
}

fn allowed_tool(json: &str, path: &str) -> Result<Value, CallError> {
    let mut tool = Members::of(json, path)?;
    let kind = tool.needed("type")?;
    if !matches!(&*kind, "function" | "custom") {
        return Err(tool.untranslatable(&kind));
    }
    let name = name_within(&mut tool, &kind)?;
    tool.finish()?;
    Ok(json!({"type": kind, "name": name}))
}

/// The name that stands in an object of its own.
fn name_within<'a>(tool: &mut Members<'a>, kind: &str) -> Result<Cow<'a, str>, CallError> {
    let mut named = tool.needed_object(kind)?;
    let name = named.needed("name")?;
    named.finish()?;
    Ok(name)
}

fn text_settings<'a>(chat: &mut Members<'a>) -> Result<Option<Text<'a>>, CallError> {
    let format = chat.object("response_format")?.map(answer_format).transpose()?;
    let verbosity = chat.raw("verbosity");
    Ok((format.is_some() || verbosity.is_some()).then_some(Text { format, verbosity }))
}

fn answer_format(mut format: Members<'_>) -> Result<Format<'_>, CallError> {
    let kind = format.needed("type")?;
    let mut translated = Format {
        r#type: kind.clone(),
        name: None,
        description: None,
        schema: None,
        strict: None,
    };
    match &*kind {
        "text" | "json_object" => {}
        "json_schema" => {
            let mut schema = format.needed_object("json_schema")?;
            translated.name = schema.text("name")?;
            translated.description = schema.text("description")?;
            translated.schema = schema.raw("schema");
            translated.strict = schema.raw("strict");
            schema.finish()?;
        }
        _ => return Err(format.untranslatable(&kind)),
    }
    format.finish()?;
    Ok(translated)
}

/// Whether the usage is told in the end is the translated answer's business.
fn stream_options<'a>(chat: &mut Members<'a>) -> Result<Option<StreamOptions<'a>>, CallError> {
    let Some(mut options) = chat.object("stream_options")? else {
        return Ok(None);
    };
    options.take("include_usage");
    let include_obfuscation = options.raw("include_obfuscation");
    options.finish()?;
    Ok(include_obfuscation.map(|include_obfuscation| StreamOptions { include_obfuscation }))
}
