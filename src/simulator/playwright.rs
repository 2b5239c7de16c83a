//! The standard playwright: what the simulator answers when nobody writes scripts for it.
//!
//! A play is chosen by the model's name, `sim-PLAY`, or by a word `sim:PLAY` in the last thing the user said (so that
//! it can be asked of any model). Every other request is answered with a short text that quotes the prompt.
//!
//! | play | what happens |
//! |---|---|
//! | `words-N` | a text of N words, one token each |
//! | `reasoning` | 64 hidden tokens of reasoning before the text |
//! | `tools` | calls the first declared tool; once its output is there, a text |
//! | `slow` | 200 ms between events |
//! | `overrun` | the output limit is ignored: twice as many words as it allows |
//! | `no-usage` | nothing is said of the usage |
//! | `400`, `401`, `403`, `404`, `429`, `500`, `502`, `503`, `529` | that error, in OpenAI's shape |
//! | `quota` | 429 `insufficient_quota`: the operator's own account is empty |
//! | `refuse` | hangs up before the head |
//! | `hang` | never answers |
//! | `stall` | falls silent after half of the answer |
//! | `cut` | resets the connection after half of the answer |
//! | `break` | closes the connection after half of the answer, without its end |
//! | `eof` | ends cleanly, but before the last event |
//! | `error` | half of the answer, then an error event |
//! | `broken-json` | an answer that is no JSON |
//! | `huge` | one event, or one body, of 33 MiB |
//!
//! A background response is `queued` when it is made, `in_progress` when it is asked for first, and over the time after that
//! (`shelf.rs`). More plays are for it:
//!
//! | play | what happens |
//! |---|---|
//! | `polls-N` | it is over when it is asked for the Nth time |
//! | `fails` | it ends as `failed`, without usage |
//! | `forgets` | it is not there when it is asked for |
//! | `endless` | it runs until it is cancelled |
//!
//! Images are drawn, texts spoken and recordings heard (`media.rs`), always the same ones.
//!
//! Files, conversations and the answers themselves are kept, and moderations and counts of input answered
//! (`shelf.rs`).
//!
//! Codex, and whoever declares its tools, is served by what it says: `run a tool` or `run a command` runs a command
//! (the one in backticks, else `echo hi-from-tool`), `apply_patch` creates the file named before it (`create hello.txt
//! with apply_patch`, with the text in backticks, else `hello`). What follows a tool's output is a text; a
//! `compaction_trigger` at the end of the input is answered by a `compaction` item.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Map, Value, json};

use super::answer::{Answer, Item, Limit, Pieces, compaction, embeddings};
use super::script::{Gate, Script, Step};
use super::shelf::Shelf;
use super::{Playwright, Request, Wire, media};

/// Hidden tokens of the play `reasoning`.
const REASONING_TOKENS: u64 = 64;

/// Between two events of the play `slow`.
const SLOW: Duration = Duration::from_millis(200);

/// The play `huge` is one MiB more than the gateway looks at.
const HUGE_MIB: u64 = 33;

/// How much of a prompt is quoted, in characters.
const QUOTED: usize = 80;

/// A word that is one token in every vocabulary of OpenAI's.
const WORD: &str = " and";

/// Models that are listed beside the plays.
const MODELS: [&str; 3] = ["gpt-6.1-sol", "gpt-5.5", "text-embedding-3-small"];

/// Plays that are listed as models.
const PLAYS: [&str; 25] = [
    "words-100",
    "reasoning",
    "tools",
    "slow",
    "overrun",
    "no-usage",
    "400",
    "401",
    "403",
    "404",
    "429",
    "500",
    "502",
    "503",
    "529",
    "quota",
    "refuse",
    "hang",
    "stall",
    "cut",
    "break",
    "eof",
    "error",
    "broken-json",
    "huge",
];

/// How fast, and in how many pieces, ordinary answers come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    /// Before the head.
    pub delay: Duration,
    /// Pieces of a streamed text; `None`: a token each. A text that has too few tokens is made longer.
    pub chunks: Option<usize>,
    /// Between two events of a stream.
    pub chunk_delay: Duration,
}

/// The standard playwright at this pace.
pub fn standard(pace: Pace) -> Playwright {
    let shelf = Shelf::default();
    Arc::new(move |request| {
        let kept = shelf.answer(request).or_else(|| media::answer(request));
        let script = kept.unwrap_or_else(|| match runs_in_background(request) {
            true => shelf.run(request, write(request, pace), &play_of(request)),
            false => write(request, pace),
        });
        paced(script, pace)
    })
}

fn runs_in_background(request: &Request) -> bool {
    request.wire() == Some(Wire::Responses) && request.json["background"] == true
}

fn paced(script: Script, pace: Pace) -> Script {
    let script = match pace.chunk_delay {
        Duration::ZERO => script,
        delay => script.between(&Step::Pause(delay)),
    };
    match pace.delay {
        Duration::ZERO => script,
        delay => script.first(Step::Pause(delay)),
    }
}

fn write(request: &Request, pace: Pace) -> Script {
    match (request.method == Method::POST, request.wire()) {
        (true, Some(Wire::Embeddings)) => fault(request, &play_of(request)).unwrap_or_else(|| embeddings(request)),
        (true, Some(Wire::Compact)) => fault(request, &play_of(request)).unwrap_or_else(|| compaction(request)),
        (true, Some(_)) => generate(request, pace),
        (false, None) if request.route().starts_with("/models") => models(request),
        _ => Script::error(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            "not_found",
            "No such route here.",
        ),
    }
}

/// The play that the model's name or the prompt asks for; empty for an ordinary answer.
fn play_of(request: &Request) -> String {
    let (said, _) = request.prompt();
    let word = said.split_whitespace().find_map(|word| word.strip_prefix("sim:"));
    let play = request.model.strip_prefix("sim-").or(word);
    play.unwrap_or_default().to_owned()
}

fn generate(request: &Request, pace: Pace) -> Script {
    if !request.json.is_object() || request.model.is_empty() {
        let message = "The body is no JSON object with a model.";
        return Script::error(
            StatusCode::BAD_REQUEST,
            "invalid_request_error",
            "invalid_json",
            message,
        );
    }
    let play = play_of(request);
    if let Some(script) = fault(request, &play) {
        return script;
    }
    let (items, limit) = plot(request, &play, pace);
    let pieces = pace.chunks.map_or(Pieces::Tokens, Pieces::Count);
    let script = Answer::new(request, items, limit, pieces).script(request);
    stage(request, &play, script)
}

/// Faults instead of an answer.
fn fault(request: &Request, play: &str) -> Option<Script> {
    let error = |kind: &str, code: &str, message: &str| {
        let status = play
            .parse::<u16>()
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok());
        Script::error(status.unwrap_or(StatusCode::TOO_MANY_REQUESTS), kind, code, message)
    };
    let script = match play {
        "400" => error(
            "invalid_request_error",
            "invalid_value",
            "Simulated: the request is wrong.",
        ),
        "401" => error(
            "invalid_request_error",
            "invalid_api_key",
            "Simulated: the upstream's key is wrong.",
        ),
        "403" => error("invalid_request_error", "permission_denied", "Simulated: not allowed."),
        "404" => error(
            "invalid_request_error",
            "model_not_found",
            "Simulated: there is no such model.",
        ),
        "429" => error("requests", "rate_limit_exceeded", "Simulated: too many requests.").header("retry-after", "1"),
        "500" | "502" => error("server_error", "server_error", "Simulated: the upstream failed."),
        "503" | "529" => error(
            "server_error",
            "server_is_overloaded",
            "Simulated: the upstream is overloaded.",
        ),
        "quota" => error(
            "insufficient_quota",
            "insufficient_quota",
            "Simulated: the upstream's account is empty.",
        ),
        "refuse" => Script::refuse(),
        "hang" => Script::refuse().first(Step::Wait(Gate::closed())),
        "broken-json" => broken(request),
        "huge" => huge(request),
        _ => return None,
    };
    Some(script)
}

fn broken(request: &Request) -> Script {
    if request.streamed() {
        return Script::sse(vec![
            Step::send("data: {\"choices\":[{\"del\n\n"),
            Step::send("data: [DONE]\n\n"),
        ]);
    }
    Script::body(
        StatusCode::OK,
        "application/json",
        Bytes::from_static(b"{\"id\":\"simulated\",\"usage\":{"),
    )
}

fn huge(request: &Request) -> Script {
    let mib = Step::Repeat {
        bytes: Bytes::from(vec![b'a'; 1024 * 1024]),
        times: HUGE_MIB,
    };
    if request.streamed() {
        return Script::sse(vec![
            Step::send("data: {\"huge\":\""),
            mib,
            Step::send("\"}\n\ndata: [DONE]\n\n"),
        ]);
    }
    let mut script = Script::body(StatusCode::OK, "application/json", Bytes::new());
    script.headers.retain(|(name, _)| name != "content-length");
    script.steps = vec![Step::send("{\"huge\":\""), mib, Step::send("\"}")];
    script
}

/// What the model makes, and whether it obeys the limit.
fn plot(request: &Request, play: &str, pace: Pace) -> (Vec<Item>, Limit) {
    let input = request.json["input"].as_array();
    if input
        .and_then(|items| items.last())
        .is_some_and(|last| last["type"] == "compaction_trigger")
    {
        let tokens = REASONING_TOKENS;
        return (vec![Item::Compaction { tokens }], Limit::Obeyed);
    }
    if let Some(call) = tool_call(request, play) {
        return (vec![call], Limit::Obeyed);
    }
    let text = vec![Item::Text(lengthen(request, speech(request), pace))];
    match play {
        "reasoning" => (thinking(text), Limit::Obeyed),
        "overrun" => (
            vec![words(request.output_limit().unwrap_or(REASONING_TOKENS) * 2)],
            Limit::Ignored,
        ),
        _ => match play.strip_prefix("words-").and_then(|count| count.parse().ok()) {
            Some(count) => (vec![words(count)], Limit::Obeyed),
            None => (text, Limit::Obeyed),
        },
    }
}

fn words(count: u64) -> Item {
    Item::Text(WORD.repeat(usize::try_from(count).unwrap_or(0)))
}

fn thinking(mut then: Vec<Item>) -> Vec<Item> {
    let thought = Item::Reasoning {
        tokens: REASONING_TOKENS,
        summary: "Thinking it over".into(),
    };
    then.insert(0, thought);
    then
}

fn lengthen(request: &Request, text: String, pace: Pace) -> String {
    let missing = pace.chunks.map_or(0, |chunks| {
        let there = usize::try_from(request.count(&text)).unwrap_or(usize::MAX);
        chunks.saturating_sub(there)
    });
    text + &WORD.repeat(missing)
}

/// An ordinary answer: JSON where a schema asks for it, else a sentence.
fn speech(request: &Request) -> String {
    let format = match request.wire() {
        Some(Wire::Responses) => &request.json["text"]["format"],
        _ => &request.json["response_format"],
    };
    let schema = [&format["schema"], &format["json_schema"]["schema"]];
    if let Some(schema) = schema.into_iter().find(|schema| schema.is_object()) {
        return instance(schema).to_string();
    }
    if format["type"] == "json_object" {
        return json!({"answer": "simulated"}).to_string();
    }
    let (said, since) = request.prompt();
    if let Some(output) = since.iter().rev().find_map(tool_output) {
        return format!("Done. The tool said: {}", quote(&output));
    }
    format!(
        "This is a simulated answer by {}. You said: {}",
        request.model,
        quote(&said)
    )
}

fn quote(text: &str) -> String {
    let text: Vec<&str> = text.split_whitespace().collect();
    let text = text.join(" ");
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("\"{}…\"", &text[..end]),
        None => format!("\"{text}\""),
    }
}

fn tool_output(item: &Value) -> Option<String> {
    let kind = item["type"].as_str().unwrap_or_default();
    let output = match item["role"] == "tool" {
        true => &item["content"],
        false if kind.ends_with("_call_output") => &item["output"],
        false => return None,
    };
    let text = |part: &Value| part["text"].as_str().map(str::to_owned);
    Some(match output {
        Value::String(output) => output.clone(),
        Value::Array(parts) => parts.iter().filter_map(text).collect(),
        other => other.to_string(),
    })
}

/// The smallest value that a JSON schema accepts, as far as examples go.
fn instance(schema: &Value) -> Value {
    if let Some(first) = schema["enum"]
        .get(0)
        .or_else(|| schema["anyOf"].get(0).map(|_| &Value::Null))
    {
        return if first.is_null() {
            instance(&schema["anyOf"][0])
        } else {
            first.clone()
        };
    }
    let kind = schema["type"].as_str().or_else(|| schema["type"][0].as_str());
    match kind {
        Some("string") => "simulated".into(),
        Some("integer" | "number") => 1.into(),
        Some("boolean") => true.into(),
        Some("array") => json!([instance(&schema["items"])]),
        Some("null") => Value::Null,
        _ => {
            let fields = schema["properties"].as_object().into_iter().flatten();
            fields
                .map(|(name, field)| (name.clone(), instance(field)))
                .collect::<Map<_, _>>()
                .into()
        }
    }
}

/// The call of a tool that the prompt, the play or `tool_choice` asks for, unless its output is already there.
fn tool_call(request: &Request, play: &str) -> Option<Item> {
    let (said, since) = request.prompt();
    let tools = request.tools();
    let is_done = |item: &Value| tool_output(item).is_some() || item["type"] == "compaction";
    if tools.is_empty() || since.iter().any(is_done) {
        return None;
    }
    let find = |name: &str| tools.iter().find(|tool| name_of(tool) == name);
    let said_lower = said.to_lowercase();
    if said_lower.contains("apply_patch") {
        return patch_call(&find, &said);
    }
    if said_lower.contains("run a tool") || said_lower.contains("run a command") {
        return command_call(&find, &said).or_else(|| any_call(tools.first()?));
    }
    let choice = &request.json["tool_choice"];
    let named = choice["name"].as_str().or_else(|| choice["function"]["name"].as_str());
    match named {
        Some(name) => any_call(find(name)?),
        None if play == "tools" || choice == "required" => any_call(tools.first()?),
        None => None,
    }
}

fn name_of(tool: &Value) -> &str {
    let name = tool["name"].as_str().or_else(|| tool["function"]["name"].as_str());
    name.unwrap_or_default()
}

fn any_call(tool: &Value) -> Option<Item> {
    let name = name_of(tool).to_owned();
    if name.is_empty() {
        return None;
    }
    if tool["type"] == "custom" {
        return Some(Item::Custom {
            name,
            input: "simulated".into(),
        });
    }
    let parameters = [&tool["parameters"], &tool["function"]["parameters"]];
    let schema = parameters
        .into_iter()
        .find(|schema| schema.is_object())
        .unwrap_or(&Value::Null);
    Some(Item::Function {
        name,
        arguments: instance(schema).to_string(),
    })
}

/// A command, by the tool that is declared for it: Codex has had several.
fn command_call<'a>(find: &impl Fn(&str) -> Option<&'a Value>, said: &str) -> Option<Item> {
    let command = in_backticks(said).unwrap_or("echo hi-from-tool");
    if find("exec_command").is_some() {
        return Some(function("exec_command", &json!({"cmd": command})));
    }
    if find("exec").is_some() {
        let input = format!(
            "const r = await tools.exec_command({});\ntext(r);",
            json!({"cmd": command})
        );
        return Some(Item::Custom {
            name: "exec".into(),
            input,
        });
    }
    let shell = ["shell_command", "shell"]
        .into_iter()
        .find(|name| find(name).is_some())?;
    let arguments = match shell {
        "shell" => json!({"command": ["bash", "-lc", command]}),
        _ => json!({"command": command}),
    };
    Some(function(shell, &arguments))
}

/// A patch that adds a file, by the tool that is declared for it.
fn patch_call<'a>(find: &impl Fn(&str) -> Option<&'a Value>, said: &str) -> Option<Item> {
    let is_file = |word: &&str| word.trim_end_matches('.').contains('.') && !word.contains('`');
    let file = said.split_whitespace().find(is_file).unwrap_or("hello.txt");
    let content = in_backticks(said).unwrap_or("hello");
    let lines: String = content.lines().map(|line| format!("+{line}\n")).collect();
    let patch = format!("*** Begin Patch\n*** Add File: {file}\n{lines}*** End Patch\n");
    match find("apply_patch") {
        Some(tool) if tool["type"] == "custom" => Some(Item::Custom {
            name: "apply_patch".into(),
            input: patch,
        }),
        Some(_) => Some(function("apply_patch", &json!({"input": patch}))),
        None if find("exec").is_some() => Some(Item::Custom {
            name: "exec".into(),
            input: format!("const r = await tools.apply_patch({});\ntext(r);", json!(patch)),
        }),
        None => {
            let command = format!("apply_patch <<'EOF'\n{patch}EOF");
            command_call(find, &format!("`{command}`"))
        }
    }
}

fn function(name: &str, arguments: &Value) -> Item {
    Item::Function {
        name: name.into(),
        arguments: arguments.to_string(),
    }
}

fn in_backticks(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('`')?;
    rest.split_once('`').map(|(inside, _)| inside)
}

/// Faults in the middle of an answer.
fn stage(request: &Request, play: &str, script: Script) -> Script {
    let half = script.steps.len() / 2;
    match play {
        "slow" => script.between(&Step::Pause(SLOW)),
        "stall" => script.cut(half, Step::Wait(Gate::closed())),
        "cut" => halved(script, Step::Reset),
        "break" => halved(script, Step::Break),
        "eof" if request.streamed() => {
            let without_end = script.steps.len().saturating_sub(1);
            script.cut(without_end, Step::send(""))
        }
        "error" if request.streamed() => script.cut(half, error_event(request)),
        "no-usage" => without_usage(script),
        _ => script,
    }
}

/// The first half of an answer, then `last`; a body in one piece is cut in two.
fn halved(mut script: Script, last: Step) -> Script {
    if let [Step::Send { bytes, .. }] = script.steps.as_mut_slice() {
        bytes.truncate(bytes.len() / 2);
        script.steps.push(last);
        return script;
    }
    let half = script.steps.len() / 2;
    script.cut(half, last)
}

fn error_event(request: &Request) -> Step {
    let error =
        json!({"message": "Simulated: it broke.", "type": "server_error", "param": null, "code": "server_error"});
    match request.wire() {
        Some(Wire::Responses) => Step::event(&json!({"type": "error", "error": error}), 0),
        _ => Step::data(&json!({"error": error}), 0),
    }
}

/// Takes the usage out of every event, and out of the log.
fn without_usage(mut script: Script) -> Script {
    for step in &mut script.steps {
        if let Step::Send { bytes, .. } = step {
            *bytes = erase_usage(bytes);
        }
    }
    let length = script.steps.first().map_or(0, |step| match step {
        Step::Send { bytes, .. } => bytes.len(),
        _ => 0,
    });
    for (name, value) in &mut script.headers {
        if name == "content-length" {
            *value = length.to_string();
        }
    }
    script
}

fn erase_usage(bytes: &Bytes) -> Bytes {
    let text = String::from_utf8_lossy(bytes);
    let erased = |line: &str| {
        let data = line.strip_prefix("data: ");
        let Ok(mut json) = serde_json::from_str::<Value>(data.unwrap_or(line)) else {
            return line.to_owned();
        };
        for place in ["/usage", "/response/usage"] {
            if let Some(usage) = json.pointer_mut(place) {
                *usage = Value::Null;
            }
        }
        format!("{}{json}", if data.is_some() { "data: " } else { "" })
    };
    let lines: Vec<String> = text.split('\n').map(erased).collect();
    Bytes::from(lines.join("\n"))
}

fn models(request: &Request) -> Script {
    let names = MODELS.iter().map(|name| (*name).to_owned());
    let names: Vec<String> = names.chain(PLAYS.iter().map(|play| format!("sim-{play}"))).collect();
    let shown = |name: &String| json!({"id": name, "object": "model", "created": 0, "owned_by": "simulator"});
    match request.route().strip_prefix("/models/") {
        None => {
            let data: Vec<Value> = names.iter().map(shown).collect();
            Script::json(StatusCode::OK, &json!({"object": "list", "data": data}))
        }
        Some(name) => match names.iter().find(|known| *known == name) {
            Some(name) => Script::json(StatusCode::OK, &shown(name)),
            None => Script::error(
                StatusCode::NOT_FOUND,
                "invalid_request_error",
                "model_not_found",
                "No such model.",
            ),
        },
    }
}
