//! `instructions` and `input`: items become messages.
//!
//! Chat has one message where the Responses API has several items of an answer: an assistant's text, its reasoning and its
//! calls go into one, up to the results of the calls, which follow it. Leading instructions are one system message, because
//! many models' templates take only one.

use serde::Serialize;
use serde_json::value::RawValue;

use super::compaction;
use super::reasoning::{self, Field, Reasoning};
use super::refuse;
use super::tools::{Kind, Tool, Tools};
use crate::call::CallError;
use crate::translate::Client;
use crate::translate::json::{Object, list, text};

/// A message as chat has it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Message {
    role: &'static str,
    content: Option<Content>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Part {
    Text {
        text: String,
    },
    ImageUrl {
        image_url: ImageUrl,
    },
    InputAudio {
        input_audio: Box<RawValue>,
    },
    File {
        file: File,
    },
    /// Mistral's reasoning.
    Thinking {
        thinking: Vec<Part>,
    },
}

#[derive(Debug, Serialize)]
struct ImageUrl {
    url: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct File {
    #[serde(skip_serializing_if = "Option::is_none")]
    filename: Option<String>,
    file_data: String,
}

#[derive(Debug, Serialize)]
struct ToolCall {
    id: String,
    r#type: &'static str,
    function: CalledFunction,
}

#[derive(Debug, Serialize)]
struct CalledFunction {
    name: String,
    arguments: String,
}

/// What a request has the model read.
pub(super) struct Conversation {
    pub(super) messages: Vec<Message>,
    /// Whether its last message asks for a summary of the others.
    pub(super) compacts: bool,
}

impl Conversation {
    /// Asks for a summary, unless that is done.
    pub(super) fn compact(&mut self) {
        if !std::mem::replace(&mut self.compacts, true) {
            self.messages.push(Message {
                role: "user",
                content: Some(Content::Text(compaction::ASK.to_owned())),
                ..Message::default()
            });
        }
    }
}

/// The messages of a request; tools that the input brings go to `tools`.
pub(super) fn conversation(request: &Object<'_>, tools: &mut Tools, client: Client) -> Result<Conversation, CallError> {
    let mut items = Items {
        tools,
        client,
        messages: Vec::new(),
        system: Vec::new(),
        assistant: None,
        images: Vec::new(),
        compacts: false,
    };
    if let Some(instructions) = request.get("instructions") {
        let text = text(instructions).ok_or_else(|| refuse("instructions", "instructions"))?;
        items.system.push(text);
    }
    if let Some(input) = request.get("input") {
        match text(input) {
            Some(text) => items.say("user", Content::Text(text)),
            None => items.add_all(input, keeps_all_reasoning(request))?,
        }
    }
    items.flush();
    let mut conversation = Conversation {
        messages: items.messages,
        compacts: false,
    };
    if items.compacts {
        conversation.compact();
    }
    Ok(conversation)
}

/// Reasoning of earlier turns is read again only by who asks for it.
fn keeps_all_reasoning(request: &Object<'_>) -> bool {
    let context = request
        .object("reasoning")
        .and_then(|reasoning| reasoning.text("context"));
    context.as_deref() == Some("all_turns")
}

/// Items on their way to messages.
struct Items<'a> {
    tools: &'a mut Tools,
    client: Client,
    messages: Vec<Message>,
    /// Leading instructions.
    system: Vec<String>,
    /// What an assistant has said and called, as far as it is one message.
    assistant: Option<Message>,
    /// Images among the results of calls. A tool's message cannot hold them; a user's behind it can.
    images: Vec<Part>,
    /// Whether they end with the wish to be made short.
    compacts: bool,
}

impl Items<'_> {
    fn add_all(&mut self, input: &RawValue, all_reasoning: bool) -> Result<(), CallError> {
        let items = list(input).ok_or_else(|| refuse("input", "input"))?;
        let items = items.into_iter().enumerate().map(|(index, json)| read(index, json));
        let items = items.collect::<Result<Vec<_>, CallError>>()?;
        // Tools may be found at any place, and calls before it name them.
        for (path, kind, item) in &items {
            if let ("additional_tools" | "tool_search_output", Some(tools)) = (&**kind, item.get("tools")) {
                self.tools.add_all(tools, &format!("{path}.tools"), self.client)?;
            }
        }
        let is_user = |(_, kind, item): &(String, String, Object<'_>)| {
            kind == "message" && item.text("role").as_deref() == Some("user")
        };
        let last = items.len().saturating_sub(1);
        let this_turn = match all_reasoning {
            true => 0,
            false => items.iter().rposition(is_user).unwrap_or(0),
        };
        for (index, (path, kind, item)) in items.iter().enumerate() {
            match &**kind {
                "reasoning" if index < this_turn => {}
                "compaction_trigger" if index == last => self.compacts = true,
                _ => self.add(path, kind, item)?,
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &str, kind: &str, item: &Object<'_>) -> Result<(), CallError> {
        match kind {
            "message" => self.message(path, item),
            "reasoning" => {
                if let Some(reasoning) = reasoning::read(item) {
                    self.think(reasoning);
                }
                Ok(())
            }
            "function_call" => self.call(path, item, Kind::Function, item.text("arguments")),
            "custom_tool_call" => {
                let input = item.text("input").unwrap_or_default();
                let arguments = serde_json::json!({"input": input}).to_string();
                self.call(path, item, Kind::Custom, Some(arguments))
            }
            "local_shell_call" => {
                let action = item.get("action").map(|action| action.get().to_owned());
                self.call(path, item, Kind::LocalShell, action)
            }
            "tool_search_call" => {
                let arguments = item.get("arguments").map(|arguments| arguments.get().to_owned());
                self.call(path, item, Kind::ToolSearch, arguments)
            }
            "function_call_output" | "custom_tool_call_output" | "local_shell_call_output" => self.output(path, item),
            "tool_search_output" => {
                let names = item.list("tools").unwrap_or_default();
                let names = names.iter().filter_map(|tool| Object::read(tool.get())?.text("name"));
                let found = names.collect::<Vec<String>>().join(", ");
                self.answer(path, item, format!("Tools found: {found}"))
            }
            "additional_tools" => Ok(()),
            "compaction" => {
                let summary = compaction::read(item).ok_or_else(|| refuse(path, kind))?;
                self.say("user", Content::Text(summary));
                Ok(())
            }
            other => Err(refuse(path, other)),
        }
    }

    fn message(&mut self, path: &str, item: &Object<'_>) -> Result<(), CallError> {
        let content = item.get("content").ok_or_else(|| refuse(path, "content"))?;
        let role = item.text("role").unwrap_or_default();
        if role == "assistant" {
            self.begin_to_speak();
        }
        let parts = match text(content) {
            Some(text) if role == "assistant" => {
                self.speak(&text);
                Vec::new()
            }
            Some(text) => vec![Part::Text { text }],
            None => self.parts(content, &format!("{path}.content"), &role)?,
        };
        match &*role {
            "assistant" => {}
            "user" => self.say("user", Content::of(parts)),
            "system" | "developer" => self.instruct(Content::of(parts)),
            other => return Err(refuse(&format!("{path}.role"), other)),
        }
        Ok(())
    }

    /// The parts of a message or of a result; an assistant's go into its message.
    fn parts(&mut self, content: &RawValue, path: &str, role: &str) -> Result<Vec<Part>, CallError> {
        let parts = list(content).ok_or_else(|| refuse(path, "content"))?;
        let mut made = Vec::new();
        for (index, json) in parts.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let part = Object::read(json.get()).ok_or_else(|| refuse(&path, "part"))?;
            let kind = part.text("type").unwrap_or_default();
            let text = || part.text("text").unwrap_or_default();
            match (role, &*kind) {
                ("assistant", "output_text" | "input_text" | "text") => self.speak(&text()),
                ("assistant", "refusal") => self.decline(part.text("refusal").unwrap_or_default()),
                ("assistant", other) => return Err(refuse(&path, other)),
                (_, "input_text" | "output_text" | "text") => made.push(Part::Text { text: text() }),
                (_, "input_image") => made.push(image(&part).ok_or_else(|| refuse(&path, "input_image"))?),
                (_, "input_audio") => {
                    let audio = part.get("input_audio").ok_or_else(|| refuse(&path, "input_audio"))?;
                    let input_audio = audio.to_owned();
                    made.push(Part::InputAudio { input_audio });
                }
                (_, "input_file") => made.push(file(&part).ok_or_else(|| refuse(&path, "input_file"))?),
                (_, other) => return Err(refuse(&path, other)),
            }
        }
        Ok(made)
    }

    /// Leading instructions wait for each other.
    fn instruct(&mut self, content: Content) {
        match content {
            Content::Text(text) if self.messages.is_empty() && self.assistant.is_none() => self.system.push(text),
            content => self.say("system", content),
        }
    }

    fn say(&mut self, role: &'static str, content: Content) {
        self.flush();
        self.push(role, content);
    }

    fn push(&mut self, role: &'static str, content: Content) {
        self.messages.push(Message {
            role,
            content: Some(content),
            ..Message::default()
        });
    }

    /// The assistant's message that is under way.
    fn assistant(&mut self) -> &mut Message {
        if self.assistant.is_none() {
            self.lead();
            self.show();
        }
        self.assistant.get_or_insert_with(|| Message {
            role: "assistant",
            ..Message::default()
        })
    }

    /// What it says in another item is another paragraph.
    fn begin_to_speak(&mut self) {
        if let Some(Content::Text(before)) = &mut self.assistant().content {
            before.push_str("\n\n");
        }
    }

    fn speak(&mut self, text: &str) {
        let message = self.assistant();
        match &mut message.content {
            Some(Content::Text(before)) => before.push_str(text),
            Some(Content::Parts(parts)) => parts.push(Part::Text { text: text.to_owned() }),
            none => *none = Some(Content::Text(text.to_owned())),
        }
    }

    fn decline(&mut self, text: String) {
        self.assistant().refusal.get_or_insert_default().push_str(&text);
    }

    fn think(&mut self, Reasoning { field, text }: Reasoning) {
        let message = self.assistant();
        match field {
            Field::ReasoningContent => message.reasoning_content.get_or_insert_default().push_str(&text),
            Field::Reasoning => message.reasoning.get_or_insert_default().push_str(&text),
            Field::Thinking => {
                let thinking = Part::Thinking {
                    thinking: vec![Part::Text { text }],
                };
                let spoken = match message.content.take() {
                    Some(Content::Text(text)) => vec![Part::Text { text }],
                    Some(Content::Parts(parts)) => parts,
                    None => Vec::new(),
                };
                let parts = spoken.into_iter().chain([thinking]).collect();
                message.content = Some(Content::Parts(parts));
            }
        }
    }

    fn call(&mut self, path: &str, item: &Object<'_>, kind: Kind, arguments: Option<String>) -> Result<(), CallError> {
        let name = match kind {
            Kind::Function | Kind::Custom => item.text("name").ok_or_else(|| refuse(path, "name"))?,
            Kind::LocalShell => "local_shell".to_owned(),
            Kind::ToolSearch => "tool_search".to_owned(),
        };
        let tool = Tool {
            kind,
            namespace: item.text("namespace"),
            name,
        };
        let call = ToolCall {
            id: id_of(path, item)?,
            r#type: "function",
            function: CalledFunction {
                name: self.tools.names.called(&tool),
                arguments: arguments.unwrap_or_default(),
            },
        };
        self.assistant().tool_calls.push(call);
        Ok(())
    }

    /// A call's result: its text as the tool's message, its images behind all results.
    fn output(&mut self, path: &str, item: &Object<'_>) -> Result<(), CallError> {
        let output = item.get("output").ok_or_else(|| refuse(path, "output"))?;
        let text = match text(output) {
            Some(text) => text,
            None => {
                let parts = self.parts(output, &format!("{path}.output"), "tool")?;
                let (texts, others): (Vec<Part>, Vec<Part>) =
                    parts.into_iter().partition(|part| matches!(part, Part::Text { .. }));
                self.images.extend(others);
                joined(texts)
            }
        };
        self.answer(path, item, text)
    }

    fn answer(&mut self, path: &str, item: &Object<'_>, text: String) -> Result<(), CallError> {
        let id = id_of(path, item)?;
        self.lead();
        self.hand_over();
        self.messages.push(Message {
            role: "tool",
            content: Some(Content::Text(text)),
            tool_call_id: Some(id),
            ..Message::default()
        });
        Ok(())
    }

    /// The instructions that lead everything.
    fn lead(&mut self) {
        if !self.system.is_empty() {
            let text = std::mem::take(&mut self.system).join("\n\n");
            self.push("system", Content::Text(text));
        }
    }

    /// The images among the results that have come.
    fn show(&mut self) {
        if !self.images.is_empty() {
            let images = std::mem::take(&mut self.images);
            self.push("user", Content::Parts(images));
        }
    }

    /// The assistant's message is whole.
    fn hand_over(&mut self) {
        let Some(mut message) = self.assistant.take() else {
            return;
        };
        if message.content.is_none() && message.tool_calls.is_empty() {
            message.content = Some(Content::Text(String::new()));
        }
        self.messages.push(message);
    }

    /// Ends what is under way, so that another message may follow.
    fn flush(&mut self) {
        self.lead();
        self.hand_over();
        self.show();
    }
}

impl Content {
    /// Texts alone are one text, which every upstream takes.
    fn of(parts: Vec<Part>) -> Content {
        match parts.iter().all(|part| matches!(part, Part::Text { .. })) {
            true => Content::Text(joined(parts)),
            false => Content::Parts(parts),
        }
    }
}

/// The texts among parts, each on lines of its own.
fn joined(parts: Vec<Part>) -> String {
    let texts = parts.into_iter().filter_map(|part| match part {
        Part::Text { text } => Some(text),
        _ => None,
    });
    texts.collect::<Vec<String>>().join("\n")
}

/// An item with its path and its type.
fn read(index: usize, json: &RawValue) -> Result<(String, String, Object<'_>), CallError> {
    let path = format!("input[{index}]");
    let item = Object::read(json.get()).ok_or_else(|| refuse(&path, "item"))?;
    let kind = kind_of(&item);
    Ok((path, kind, item))
}

/// The type of an item; one with a role needs none.
fn kind_of(item: &Object<'_>) -> String {
    let untyped = || match item.get("role") {
        Some(_) => "message",
        None => "item_reference",
    };
    item.text("type").unwrap_or_else(|| untyped().to_owned())
}

/// What ties a call to its result.
fn id_of(path: &str, item: &Object<'_>) -> Result<String, CallError> {
    let id = item.text("call_id").or_else(|| item.text("id"));
    id.ok_or_else(|| refuse(path, "call_id"))
}

/// An image by its URL; chat knows no `original`, of which `high` is the nearest.
fn image(part: &Object<'_>) -> Option<Part> {
    let detail = match part.text("detail").as_deref() {
        Some("low") => Some("low"),
        Some("high" | "original") => Some("high"),
        _ => None,
    };
    let url = part.text("image_url")?;
    Some(Part::ImageUrl {
        image_url: ImageUrl { url, detail },
    })
}

/// A file that the request itself holds.
fn file(part: &Object<'_>) -> Option<Part> {
    let file = File {
        filename: part.text("filename"),
        file_data: part.text("file_data")?,
    };
    Some(Part::File { file })
}
