//! Chat messages → input items.

use std::borrow::Cow;
use std::collections::HashSet;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::members::{Members, list, text, wrong_type};
use crate::call::{CallError, Wanted};

/// An item of `input`.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Item<'a> {
    Message {
        role: Cow<'a, str>,
        content: Content<'a>,
    },
    /// What an earlier answer told of its reasoning. It has no id: no upstream is made to look for it.
    Reasoning {
        summary: [Summary<'a>; 1],
    },
    FunctionCall {
        call_id: Cow<'a, str>,
        name: Cow<'a, str>,
        arguments: Cow<'a, str>,
    },
    CustomToolCall {
        call_id: Cow<'a, str>,
        name: Cow<'a, str>,
        input: Cow<'a, str>,
    },
    FunctionCallOutput {
        call_id: Cow<'a, str>,
        output: Content<'a>,
    },
    CustomToolCallOutput {
        call_id: Cow<'a, str>,
        output: Content<'a>,
    },
}

/// What was said.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Content<'a> {
    Text(Cow<'a, str>),
    Parts(Vec<Part<'a>>),
}

/// A part of what was said.
#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Part<'a> {
    InputText {
        text: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_cache_breakpoint: Option<&'a RawValue>,
    },
    InputImage {
        image_url: Cow<'a, str>,
        detail: Cow<'a, str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_cache_breakpoint: Option<&'a RawValue>,
    },
    InputFile {
        #[serde(skip_serializing_if = "Option::is_none")]
        file_data: Option<Cow<'a, str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        file_id: Option<Cow<'a, str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        filename: Option<Cow<'a, str>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        prompt_cache_breakpoint: Option<&'a RawValue>,
    },
    OutputText {
        text: Cow<'a, str>,
        annotations: Vec<Value>,
    },
    Refusal {
        refusal: Cow<'a, str>,
    },
}

/// A part of a reasoning's summary.
#[derive(Serialize)]
#[serde(tag = "type", rename = "summary_text")]
pub(super) struct Summary<'a> {
    text: Cow<'a, str>,
}

/// The items that the messages make, in their order.
pub(super) fn items(messages: &str) -> Result<Vec<Item<'_>>, CallError> {
    let mut thread = Thread::default();
    for (path, json) in list(messages, "messages", Wanted::Messages)? {
        thread.take(Members::of(json, &path)?)?;
    }
    Ok(thread.items)
}

/// The items so far.
#[derive(Default)]
struct Thread<'a> {
    items: Vec<Item<'a>>,
    /// The ids of calls of custom tools: what these tools answered is an item of another type.
    custom: HashSet<Cow<'a, str>>,
}

impl<'a> Thread<'a> {
    fn take(&mut self, mut message: Members<'a>) -> Result<(), CallError> {
        let role = message.needed("role")?;
        match &*role {
            "system" | "developer" | "user" => {
                let content = input(&mut message)?;
                self.items.push(Item::Message { role, content });
            }
            "assistant" => self.answer(&mut message)?,
            "tool" => self.output(&mut message)?,
            _ => return Err(message.untranslatable(&role)),
        }
        message.finish()
    }

    /// What a model answered before.
    fn answer(&mut self, message: &mut Members<'a>) -> Result<(), CallError> {
        let before = self.items.len();
        let thought = [message.text("reasoning_content")?, message.text("reasoning")?];
        if let Some(text) = thought.into_iter().flatten().find(|text| !text.is_empty()) {
            let summary = [Summary { text }];
            self.items.push(Item::Reasoning { summary });
        }
        let content = output(message)?;
        let said = content.as_ref().is_some_and(|content| !content.is_empty());
        let place = self.items.len();
        self.calls(message)?;
        // An empty text beside calls says nothing; alone it is still a turn.
        if said || self.items.len() == before {
            let item = Item::Message {
                role: "assistant".into(),
                content: content.unwrap_or(Content::Text("".into())),
            };
            self.items.insert(place, item);
        }
        Ok(())
    }

    fn calls(&mut self, message: &mut Members<'a>) -> Result<(), CallError> {
        for (path, json) in message.list("tool_calls", Wanted::List)? {
            let mut call = Members::of(json, &path)?;
            // Left over from the stream that it came in.
            call.leave_out("index", Value::is_u64);
            let call_id = call.needed("id")?;
            let kind = call.text("type")?.unwrap_or("function".into());
            let item = match &*kind {
                "function" => {
                    let mut function = call.needed_object("function")?;
                    let (name, arguments) = (function.needed("name")?, function.needed("arguments")?);
                    function.finish()?;
                    Item::FunctionCall {
                        call_id,
                        name,
                        arguments,
                    }
                }
                "custom" => {
                    self.custom.insert(call_id.clone());
                    let mut custom = call.needed_object("custom")?;
                    let (name, input) = (custom.needed("name")?, custom.needed("input")?);
                    custom.finish()?;
                    Item::CustomToolCall { call_id, name, input }
                }
                _ => return Err(call.untranslatable(&kind)),
            };
            call.finish()?;
            self.items.push(item);
        }
        Ok(())
    }

    /// What a tool answered. Its name only repeats what the call's id says.
    fn output(&mut self, message: &mut Members<'a>) -> Result<(), CallError> {
        message.text("name")?;
        let call_id = message.needed("tool_call_id")?;
        let output = input(message)?;
        self.items.push(match self.custom.contains(&call_id) {
            true => Item::CustomToolCallOutput { call_id, output },
            false => Item::FunctionCallOutput { call_id, output },
        });
        Ok(())
    }
}

impl Content<'_> {
    fn is_empty(&self) -> bool {
        match self {
            Content::Text(text) => text.is_empty(),
            Content::Parts(parts) => parts.is_empty(),
        }
    }
}

/// What is said to the model.
fn input<'a>(message: &mut Members<'a>) -> Result<Content<'a>, CallError> {
    let path = message.path("content");
    let Some(json) = message.take("content") else {
        return Err(wrong_type(&path, Wanted::TextOrList));
    };
    if let Some(text) = text(json) {
        return Ok(Content::Text(text));
    }
    let parts = list(json, &path, Wanted::TextOrList)?;
    let parts = parts.into_iter().map(|(path, json)| input_part(json, &path));
    parts.collect::<Result<_, _>>().map(Content::Parts)
}

fn input_part<'a>(json: &'a str, path: &str) -> Result<Part<'a>, CallError> {
    let mut part = Members::of(json, path)?;
    let kind = part.needed("type")?;
    let prompt_cache_breakpoint = part.raw("prompt_cache_breakpoint");
    let translated = match &*kind {
        "text" => Part::InputText {
            text: part.needed("text")?,
            prompt_cache_breakpoint,
        },
        "image_url" => {
            let mut image = part.needed_object("image_url")?;
            let image_url = image.needed("url")?;
            let detail = image.text("detail")?.unwrap_or("auto".into());
            image.finish()?;
            Part::InputImage {
                image_url,
                detail,
                prompt_cache_breakpoint,
            }
        }
        "file" => {
            let mut file = part.needed_object("file")?;
            let translated = Part::InputFile {
                file_data: file.text("file_data")?,
                file_id: file.text("file_id")?,
                filename: file.text("filename")?,
                prompt_cache_breakpoint,
            };
            file.finish()?;
            translated
        }
        _ => return Err(part.untranslatable(&kind)),
    };
    part.finish()?;
    Ok(translated)
}

/// What the model said: a plain text where that is all.
fn output<'a>(message: &mut Members<'a>) -> Result<Option<Content<'a>>, CallError> {
    let path = message.path("content");
    let annotations = message.list("annotations", Wanted::List)?;
    let annotations: Vec<Value> = annotations
        .into_iter()
        .map(|(path, json)| annotation(json, &path))
        .collect::<Result<_, _>>()?;
    let refusal = message.text("refusal")?.filter(|refusal| !refusal.is_empty());
    let content = message.take("content");
    let text = content.and_then(text);
    if refusal.is_none() && annotations.is_empty() && (content.is_none() || text.is_some()) {
        return Ok(text.map(Content::Text));
    }
    let mut parts = match (content, text) {
        (_, Some(text)) => vec![Part::OutputText { text, annotations }],
        (None, None) => Vec::new(),
        (Some(json), None) => {
            let parts = list(json, &path, Wanted::TextOrList)?;
            let mut annotations = Some(annotations);
            let parts = parts.into_iter().map(|(path, json)| {
                let annotations = annotations.take().unwrap_or_default();
                output_part(json, &path, annotations)
            });
            parts.collect::<Result<_, _>>()?
        }
    };
    parts.extend(refusal.map(|refusal| Part::Refusal { refusal }));
    Ok(Some(Content::Parts(parts)))
}

fn output_part<'a>(json: &'a str, path: &str, annotations: Vec<Value>) -> Result<Part<'a>, CallError> {
    let mut part = Members::of(json, path)?;
    let kind = part.needed("type")?;
    let translated = match &*kind {
        "text" => Part::OutputText {
            text: part.needed("text")?,
            annotations,
        },
        "refusal" => Part::Refusal {
            refusal: part.needed("refusal")?,
        },
        _ => return Err(part.untranslatable(&kind)),
    };
    part.finish()?;
    Ok(translated)
}

/// An annotation of an earlier answer: chat has what it says in an object of its own.
fn annotation(json: &str, path: &str) -> Result<Value, CallError> {
    let mut annotation = Members::of(json, path)?;
    let kind = annotation.needed("type")?;
    if kind != "url_citation" {
        return Err(annotation.untranslatable(&kind));
    }
    let path = annotation.path("url_citation");
    let citation = annotation
        .take("url_citation")
        .and_then(|json| serde_json::from_str(json).ok());
    let Some(Value::Object(mut citation)) = citation else {
        return Err(wrong_type(&path, Wanted::Object));
    };
    citation.insert("type".into(), json!(kind));
    annotation.finish()?;
    Ok(Value::Object(citation))
}
