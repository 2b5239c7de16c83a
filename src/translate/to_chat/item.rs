//! The items of a response, as far as a chat answer has any.

use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::custom::Input;
use super::reasoning::{Field, Reasoning};
use super::tools::{Kind, Tool};

/// An item of the answer; its place among them is its `output_index`.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) state: State,
    pub(super) output: Output,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    InProgress,
    Completed,
    /// It was cut off.
    Incomplete,
}

/// What it is.
#[derive(Debug)]
pub(super) enum Output {
    /// Something said, so far.
    Spoken(Voice, String),
    /// A tool called.
    Call(Call),
}

/// Who says something, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
    /// The model to itself.
    Thought(Field),
    /// The model.
    Text,
    /// The model, where it declines.
    Refusal,
}

impl Voice {
    /// The event of a piece of it.
    pub(super) const fn delta(self) -> &'static str {
        match self {
            Voice::Thought(_) => "response.reasoning_text.delta",
            Voice::Text => "response.output_text.delta",
            Voice::Refusal => "response.refusal.delta",
        }
    }

    /// The event of all of it.
    pub(super) const fn done(self) -> &'static str {
        match self {
            Voice::Thought(_) => "response.reasoning_text.done",
            Voice::Text => "response.output_text.done",
            Voice::Refusal => "response.refusal.done",
        }
    }

    /// The member that holds it.
    pub(super) const fn member(self) -> &'static str {
        match self {
            Voice::Thought(_) | Voice::Text => "text",
            Voice::Refusal => "refusal",
        }
    }

    /// As the one part of its item.
    pub(super) fn part(self, text: &str) -> Value {
        match self {
            Voice::Thought(_) => json!({"type": "reasoning_text", "text": text}),
            Voice::Text => json!({"type": "output_text", "text": text, "annotations": [], "logprobs": []}),
            Voice::Refusal => json!({"type": "refusal", "refusal": text}),
        }
    }

    /// Events of text have a list of these; it is empty, because none are asked for.
    pub(super) fn with_logprobs(self, mut members: Value) -> Value {
        if self == Voice::Text {
            members["logprobs"] = json!([]);
        }
        members
    }
}

/// A call of a tool, so far.
#[derive(Debug)]
pub(super) struct Call {
    /// The number that the upstream gives it.
    pub(super) number: Option<u64>,
    /// What ties it to its result.
    pub(super) id: String,
    pub(super) tool: Tool,
    arguments: String,
    input: Input,
}

impl Call {
    pub(super) fn new(number: Option<u64>, id: String, tool: Tool) -> Call {
        Call {
            number,
            id,
            tool,
            arguments: String::new(),
            input: Input::default(),
        }
    }

    /// Takes in more of the arguments; what of it the client is told.
    pub(super) fn push(&mut self, arguments: &str) -> String {
        self.arguments.push_str(arguments);
        match self.tool.kind {
            Kind::Custom => self.input.push(arguments),
            _ => arguments.to_owned(),
        }
    }

    /// The arguments are whole; what of them the client has not been told.
    pub(super) fn finish(&mut self) -> String {
        match self.tool.kind {
            Kind::Custom => self.input.finish(),
            _ => String::new(),
        }
    }

    /// Whether its arguments are an object with its end.
    pub(super) fn is_whole(&self) -> bool {
        self.arguments.trim_end().ends_with('}') && serde_json::from_str::<IgnoredAny>(&self.arguments).is_ok()
    }

    /// The event of a piece of the arguments, if there are such.
    pub(super) const fn delta(&self) -> Option<&'static str> {
        match self.tool.kind {
            Kind::Function => Some("response.function_call_arguments.delta"),
            Kind::Custom => Some("response.custom_tool_call_input.delta"),
            Kind::LocalShell | Kind::ToolSearch => None,
        }
    }

    /// The event of all of them.
    pub(super) fn done(&self) -> Option<(&'static str, Value)> {
        match self.tool.kind {
            Kind::Function => Some((
                "response.function_call_arguments.done",
                json!({"name": self.tool.name, "arguments": self.arguments}),
            )),
            Kind::Custom => Some((
                "response.custom_tool_call_input.done",
                json!({"input": self.input.text}),
            )),
            Kind::LocalShell | Kind::ToolSearch => None,
        }
    }

    /// Whether its item can only be told when it is whole.
    pub(super) const fn begins_late(&self) -> bool {
        self.delta().is_none()
    }

    fn json(&self) -> Value {
        let mut item = match self.tool.kind {
            Kind::Function => json!({"type": "function_call", "name": self.tool.name, "arguments": self.arguments}),
            Kind::Custom => json!({"type": "custom_tool_call", "name": self.tool.name, "input": self.input.text}),
            Kind::LocalShell => json!({"type": "local_shell_call", "action": self.action()}),
            Kind::ToolSearch => {
                json!({"type": "tool_search_call", "execution": "client", "arguments": self.parsed()})
            }
        };
        item["call_id"] = self.id.clone().into();
        if let Some(namespace) = &self.tool.namespace {
            item["namespace"] = namespace.clone().into();
        }
        item
    }

    /// The arguments; a client finds out what is wrong with what is no JSON.
    fn parsed(&self) -> Value {
        serde_json::from_str(&self.arguments).unwrap_or_else(|_| self.arguments.clone().into())
    }

    fn action(&self) -> Value {
        let arguments = self.parsed();
        let of = |name: &str| arguments.get(name).cloned().unwrap_or_default();
        let command = match of("command") {
            Value::String(line) => json!(["bash", "-lc", line]),
            list @ Value::Array(_) => list,
            _ => json!([]),
        };
        let env = Some(of("env")).filter(Value::is_object).unwrap_or_else(|| json!({}));
        json!({
            "type": "exec",
            "command": command,
            "env": env,
            "timeout_ms": of("timeout_ms"),
            "working_directory": of("working_directory"),
        })
    }
}

impl Item {
    /// Its id, of an answer whose ids end with `answer`.
    pub(super) fn id(&self, answer: &str, index: usize) -> String {
        let kind = match &self.output {
            Output::Spoken(Voice::Thought(_), _) => "rs",
            Output::Spoken(..) => "msg",
            Output::Call(call) => match call.tool.kind {
                Kind::Function => "fc",
                Kind::Custom => "ctc",
                Kind::LocalShell => "lsh",
                Kind::ToolSearch => "tsc",
            },
        };
        format!("{kind}_{answer}{index:02}")
    }

    /// As it is announced: without what there is to it.
    pub(super) fn announced(&self, answer: &str, index: usize) -> Value {
        let mut item = match &self.output {
            Output::Spoken(voice, _) => {
                let mut item = spoken(*voice, "");
                item["content"] = json!([]);
                item
            }
            Output::Call(call) => {
                let mut item = call.json();
                for (member, text) in [("arguments", ""), ("input", "")] {
                    if !call.begins_late() && item.get(member).is_some() {
                        item[member] = text.into();
                    }
                }
                item
            }
        };
        item["id"] = self.id(answer, index).into();
        item["status"] = "in_progress".into();
        item
    }

    /// As it is; with `packs`, reasoning in a form that the client can hand on.
    pub(super) fn json(&self, answer: &str, index: usize, packs: bool) -> Value {
        let mut item = match &self.output {
            Output::Spoken(voice, text) => spoken(*voice, text),
            Output::Call(call) => call.json(),
        };
        if let (Output::Spoken(Voice::Thought(field), text), true) = (&self.output, packs) {
            let (field, text) = (*field, text.clone());
            item["encrypted_content"] = Reasoning { field, text }.packed().into();
        }
        item["id"] = self.id(answer, index).into();
        item["status"] = match self.state {
            State::InProgress => "in_progress",
            State::Completed => "completed",
            State::Incomplete => "incomplete",
        }
        .into();
        item
    }
}

fn spoken(voice: Voice, text: &str) -> Value {
    let content = json!([voice.part(text)]);
    match voice {
        Voice::Thought(_) => json!({"type": "reasoning", "summary": [], "content": content}),
        Voice::Text | Voice::Refusal => json!({"type": "message", "role": "assistant", "content": content}),
    }
}
