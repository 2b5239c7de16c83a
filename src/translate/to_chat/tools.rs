//! Tools: all of them as functions, which are the only tools that chat upstreams have, and what each function was.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use super::refuse;
use crate::call::CallError;
use crate::translate::Client;
use crate::translate::json::{Object, list, text};

/// More tools than any model is offered; each is looked up among all of them.
const MAX_TOOLS: usize = 1_024;

/// OpenAI's bound of a function's name, which others have taken over.
const MAX_NAME: usize = 64;

/// What a call of a function is to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `function_call`.
    Function,
    /// `custom_tool_call`: its argument is the text in the member `input`.
    Custom,
    /// `local_shell_call`.
    LocalShell,
    /// `tool_search_call`, which the client runs.
    ToolSearch,
}

/// A tool as the client knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tool {
    pub(super) kind: Kind,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
}

/// Functions by the names that the upstream knows them by.
#[derive(Clone, Debug, Default)]
pub(super) struct Names(BTreeMap<String, Tool>);

impl Names {
    /// What the upstream calls by this name; what was never offered is a function.
    pub(super) fn tool(&self, name: &str) -> Tool {
        let offered = self.0.get(name).cloned();
        offered.unwrap_or_else(|| Tool {
            kind: Kind::Function,
            namespace: None,
            name: name.to_owned(),
        })
    }

    /// The name by which the upstream knows a tool, if it was offered.
    fn of(&self, tool: &Tool) -> Option<&str> {
        let found = self.0.iter().find(|(_, known)| *known == tool);
        // Some clients leave the namespace out of their calls.
        let found = found.or_else(|| {
            let mut alike = self
                .0
                .iter()
                .filter(|(_, known)| tool.namespace.is_none() && known.kind == tool.kind && known.name == tool.name);
            alike.next().filter(|_| alike.next().is_none())
        });
        found.map(|(name, _)| name.as_str())
    }

    /// The name of a tool that a call in the history names.
    pub(super) fn called(&self, tool: &Tool) -> String {
        self.of(tool).map_or_else(|| flat(tool), str::to_owned)
    }

    /// A name for a tool that no other has.
    fn add(&mut self, tool: Tool) -> String {
        let wanted = flat(&tool);
        let numbered = |number: usize| {
            let end = format!("_{number}");
            format!("{}{end}", &wanted[..wanted.len().min(MAX_NAME - end.len())])
        };
        let free = |name: &String| self.0.get(name).is_none_or(|known| *known == tool);
        let mut names = std::iter::once(wanted.clone()).chain((2..).map(numbered));
        let name = names.find(free).unwrap_or(wanted);
        self.0.insert(name.clone(), tool);
        name
    }
}

/// The namespace before the name, of letters, digits, `_` and `-` only.
fn flat(tool: &Tool) -> String {
    let whole = match &tool.namespace {
        Some(namespace) => format!("{namespace}__{}", tool.name),
        None => tool.name.clone(),
    };
    let allowed = |letter: char| match letter {
        'a'..='z' | 'A'..='Z' | '0'..='9' | '_' | '-' => letter,
        _ => '_',
    };
    whole.chars().map(allowed).take(MAX_NAME).collect()
}

/// A definition as chat has it.
#[derive(Debug, Serialize)]
pub(super) struct Definition {
    r#type: &'static str,
    function: Function,
}

#[derive(Debug, Serialize)]
struct Function {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    parameters: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
}

/// All tools of a request.
#[derive(Debug, Default)]
pub(super) struct Tools {
    pub(super) definitions: Vec<Definition>,
    pub(super) names: Names,
    /// Types of those that were offered and cannot be had.
    pub(super) left_out: Vec<String>,
}

impl Tools {
    /// Takes in a list of definitions that stands at `path`.
    pub(super) fn add_all(&mut self, tools: &RawValue, path: &str, client: Client) -> Result<(), CallError> {
        let tools = list(tools).ok_or_else(|| refuse(path, path))?;
        for (index, tool) in tools.into_iter().enumerate() {
            self.add(tool, None, &format!("{path}[{index}]"), client)?;
        }
        Ok(())
    }

    fn add(&mut self, json: &RawValue, namespace: Option<&str>, path: &str, client: Client) -> Result<(), CallError> {
        if self.definitions.len() == MAX_TOOLS {
            return Err(refuse(path, "tools"));
        }
        let tool = Object::read(json.get()).ok_or_else(|| refuse(path, "tool"))?;
        let kind = tool.text("type").unwrap_or_default();
        let name = tool.text("name").filter(|name| !name.is_empty());
        let description = tool.text("description").filter(|text| !text.is_empty());
        match (&*kind, name) {
            ("function", Some(name)) => {
                let parameters = tool.get("parameters").map(RawValue::to_owned);
                let strict = tool.is_true("strict").then_some(true);
                self.define(Kind::Function, namespace, name, description, parameters, strict);
            }
            ("custom", Some(name)) => {
                let parameters = raw(&custom_parameters(&tool));
                self.define(Kind::Custom, namespace, name, description, parameters, None);
            }
            ("namespace", Some(name)) if namespace.is_none() => {
                let tools = tool.list("tools").unwrap_or_default();
                let before = self.definitions.len();
                for (index, inner) in tools.into_iter().enumerate() {
                    self.add(inner, Some(&name), &format!("{path}.tools[{index}]"), client)?;
                }
                // Functions stand in no namespace: the first of them says what it is.
                if let (Some(of_all), Some(first)) = (description, self.definitions.get_mut(before)) {
                    let own = first.function.description.take().into_iter();
                    first.function.description = Some([of_all].into_iter().chain(own).collect::<Vec<_>>().join("\n\n"));
                }
            }
            ("local_shell", None) => {
                let parameters = raw(&shell_parameters());
                let description = "Runs a command on the user's machine.".to_owned();
                self.define(Kind::LocalShell, None, kind, Some(description), parameters, None);
            }
            ("tool_search", None) if tool.text("execution").as_deref() == Some("client") => {
                let parameters = tool.get("parameters").map(RawValue::to_owned);
                self.define(Kind::ToolSearch, None, kind, description, parameters, None);
            }
            ("web_search", _) if client == Client::Codex => {
                if self.left_out.is_empty() {
                    self.left_out.push(kind);
                }
            }
            _ => return Err(refuse(path, &kind)),
        }
        Ok(())
    }

    fn define(
        &mut self,
        kind: Kind,
        namespace: Option<&str>,
        name: String,
        description: Option<String>,
        parameters: Option<Box<RawValue>>,
        strict: Option<bool>,
    ) {
        let tool = Tool {
            kind,
            namespace: namespace.map(str::to_owned),
            name,
        };
        let is_known = self.names.of(&tool).is_some_and(|name| self.names.tool(name) == tool);
        if is_known {
            return;
        }
        let no_parameters = || raw(&json!({"type": "object", "properties": {}}));
        let Some(parameters) = parameters.or_else(no_parameters) else {
            return;
        };
        self.definitions.push(Definition {
            r#type: "function",
            function: Function {
                name: self.names.add(tool),
                description,
                parameters,
                strict,
            },
        });
    }

    /// `tool_choice` as chat has it; a choice among some of the tools leaves only these.
    pub(super) fn choice(&mut self, choice: &RawValue) -> Result<Option<Value>, CallError> {
        let refused = |kind: &str| refuse("tool_choice", kind);
        if let Some(mode) = text(choice) {
            return match &*mode {
                "auto" | "none" | "required" => Ok(Some(mode.into())),
                other => Err(refused(other)),
            };
        }
        let choice = Object::read(choice.get()).ok_or_else(|| refused("tool_choice"))?;
        match choice.text("type").as_deref() {
            Some("allowed_tools") => {
                let allowed = choice.list("tools").unwrap_or_default();
                let allowed = allowed
                    .into_iter()
                    .map(|tool| self.chosen(&Object::read(tool.get()).unwrap_or_default()));
                let allowed = allowed.collect::<Result<Vec<String>, CallError>>()?;
                self.definitions.retain(|tool| allowed.contains(&tool.function.name));
                Ok(choice.text("mode").map(Value::from))
            }
            _ => Ok(Some(
                json!({"type": "function", "function": {"name": self.chosen(&choice)?}}),
            )),
        }
    }

    /// The function that a choice names.
    fn chosen(&self, choice: &Object<'_>) -> Result<String, CallError> {
        let named = choice.text("type").unwrap_or_default();
        let kind = match &*named {
            "function" => Kind::Function,
            "custom" => Kind::Custom,
            "local_shell" => Kind::LocalShell,
            "tool_search" => Kind::ToolSearch,
            other => return Err(refuse("tool_choice", other)),
        };
        let tool = Tool {
            kind,
            namespace: choice.text("namespace"),
            name: choice.text("name").unwrap_or(named.clone()),
        };
        let name = self.names.of(&tool).map(str::to_owned);
        name.ok_or_else(|| refuse("tool_choice", &named))
    }
}

/// One text; a grammar can only be told, not enforced.
fn custom_parameters(tool: &Object<'_>) -> Value {
    let format = tool.object("format").unwrap_or_default();
    let grammar = format.text("definition").map(|grammar| {
        let syntax = format.text("syntax").unwrap_or_default();
        format!("The text, raw, by this {syntax} grammar:\n{grammar}")
    });
    json!({
        "type": "object",
        "properties": {"input": {"type": "string", "description": grammar.unwrap_or_else(|| "The text, raw.".to_owned())}},
        "required": ["input"],
        "additionalProperties": false,
    })
}

fn shell_parameters() -> Value {
    json!({
        "type": "object",
        "properties": {
            "command": {"type": "array", "items": {"type": "string"}, "description": "The program and its arguments."},
            "working_directory": {"type": "string"},
            "timeout_ms": {"type": "integer"},
            "env": {"type": "object", "additionalProperties": {"type": "string"}},
        },
        "required": ["command"],
        "additionalProperties": false,
    })
}

fn raw(value: &Value) -> Option<Box<RawValue>> {
    to_raw_value(value).ok()
}
