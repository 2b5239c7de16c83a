//! Requests: what the simulator was asked, as far as its answers depend on it.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, Method};
use jiff::Timestamp;
use serde_json::Value;
use tiktoken_rs::CoreBPE;

/// A request to the simulator.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its number: 0, 1, 2 … in the order of arrival.
    pub id: u64,
    /// When it had arrived whole.
    pub at: Timestamp,
    /// Its method.
    pub method: Method,
    /// Its path, with its query.
    pub path: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The same parsed; null when it is no JSON.
    pub json: Value,
    /// The model it names; empty without one.
    pub model: String,
}

/// The wire formats that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "OpenAI's own names")]
pub enum Wire {
    ChatCompletions,
    Responses,
    Compact,
    Completions,
    Embeddings,
}

/// What a message costs beyond its text (measured on OpenAI's answers).
const TOKENS_PER_MESSAGE: u64 = 4;

/// What a conversation costs beyond its messages.
const TOKENS_PER_CONVERSATION: u64 = 2;

/// A prefix shorter than this is not cached.
const CACHED_FROM: u64 = 1024;

/// The cache works in blocks of so many tokens.
const CACHE_BLOCK: u64 = 128;

impl Request {
    pub(super) fn new(head: Parts, body: Bytes) -> Request {
        let json: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        Request {
            id: 0,
            at: crate::time::now(),
            method: head.method,
            path: path.to_owned(),
            headers: head.headers,
            body,
            model: json["model"].as_str().unwrap_or_default().to_owned(),
            json,
        }
    }

    /// A value of its query.
    pub(super) fn query(&self, name: &str) -> Option<String> {
        let url = reqwest::Url::parse("http://simulator/").ok()?.join(&self.path).ok()?;
        let found = url.query_pairs().find(|(known, _)| known == name);
        found.map(|(_, value)| value.into_owned())
    }

    /// The path below `/v1`, without its query.
    pub fn route(&self) -> &str {
        let path = self.path.split('?').next().unwrap_or_default();
        path.strip_prefix("/v1").unwrap_or(path)
    }

    /// The wire format, if the path is one that generates something.
    pub fn wire(&self) -> Option<Wire> {
        match self.route() {
            "/chat/completions" => Some(Wire::ChatCompletions),
            "/responses" => Some(Wire::Responses),
            "/responses/compact" => Some(Wire::Compact),
            "/completions" => Some(Wire::Completions),
            "/embeddings" => Some(Wire::Embeddings),
            _ => None,
        }
    }

    /// Whether the answer is to be streamed.
    pub fn streamed(&self) -> bool {
        self.json["stream"] == true
    }

    /// Where the stream of a background response is to be read on, if it is.
    pub(super) fn resumes_after(&self) -> Option<u64> {
        let query = self.path.split_once('?')?.1;
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let streams = pairs.clone().any(|pair| pair == ("stream", "true"));
        let after = pairs
            .find(|(name, _)| *name == "starting_after")
            .map(|(_, after)| after);
        streams.then(|| after.and_then(|after| after.parse().ok()).unwrap_or(0))
    }

    /// Whether a chat or completions stream is to end with its usage.
    pub fn include_usage(&self) -> bool {
        self.json["stream_options"]["include_usage"] == true
    }

    /// The output limit, per choice.
    pub fn output_limit(&self) -> Option<u64> {
        let fields: &[&str] = match self.wire() {
            Some(Wire::Responses) => &["max_output_tokens"],
            Some(Wire::ChatCompletions) => &["max_completion_tokens", "max_tokens"],
            Some(Wire::Completions) => &["max_tokens"],
            _ => &[],
        };
        fields.iter().find_map(|field| self.json[*field].as_u64())
    }

    /// Answers asked for.
    pub fn choices(&self) -> u64 {
        self.json["n"].as_u64().unwrap_or(1).max(1)
    }

    /// The tier that works for it: a fast one is priority, and what is unknown is the default.
    pub fn tier(&self) -> &str {
        match self.json["service_tier"].as_str() {
            Some("fast" | "priority") => "priority",
            Some(tier @ ("flex" | "ultrafast")) => tier,
            _ => "default",
        }
    }

    /// The conversation: chat messages, response items; a text alone is one.
    pub fn items(&self) -> Vec<Value> {
        let field = match self.wire() {
            Some(Wire::ChatCompletions) => "messages",
            Some(Wire::Completions) => "prompt",
            _ => "input",
        };
        match &self.json[field] {
            Value::Array(items) => items.clone(),
            Value::Null => Vec::new(),
            alone => vec![alone.clone()],
        }
    }

    /// What the user said last, and the items since: an agent sends the outputs of tools there.
    pub fn prompt(&self) -> (String, Vec<Value>) {
        let items = self.items();
        let from_user = |item: &Value| item["role"] == "user" || item.is_string();
        let Some(last) = items.iter().rposition(from_user) else {
            return (String::new(), items);
        };
        let mut said = String::new();
        read(&items[last], &mut |text| said.push_str(text));
        (said, items[last + 1..].to_vec())
    }

    /// Tools it declares, those inside namespaces and `additional_tools` too.
    pub fn tools(&self) -> Vec<Value> {
        let mut found = Vec::new();
        let mut open: Vec<Value> = self.json["tools"].as_array().cloned().unwrap_or_default();
        open.extend(
            self.items()
                .into_iter()
                .filter(|item| item["type"] == "additional_tools"),
        );
        while let Some(tool) = open.pop() {
            match tool["tools"].as_array() {
                Some(inner) => open.extend(inner.iter().cloned()),
                None => found.push(tool),
            }
        }
        found.reverse();
        found
    }

    /// Tokens read: texts, a little for each message, and declared tools.
    pub fn input_tokens(&self) -> u64 {
        let items = self.items();
        match self.wire() {
            Some(Wire::Completions | Wire::Embeddings) => items.iter().map(|item| self.count_item(item)).sum(),
            _ => TOKENS_PER_CONVERSATION + self.count_fixed() + self.count_messages(&items),
        }
    }

    /// Of them from the cache: what came before the last thing the model itself said was read by an earlier call.
    pub fn cached_tokens(&self) -> u64 {
        let items = self.items();
        let by_model = |item: &Value| {
            let kind = item["type"].as_str().unwrap_or_default();
            item["role"] == "assistant" || (kind.ends_with("_call") && self.wire() == Some(Wire::Responses))
        };
        let Some(before) = items.iter().rposition(by_model) else {
            return 0;
        };
        let prefix = self.count_fixed() + self.count_messages(&items[..before]);
        if prefix < CACHED_FROM {
            0
        } else {
            prefix - prefix % CACHE_BLOCK
        }
    }

    /// Counts a text as this request's model does.
    pub fn count(&self, text: &str) -> u64 {
        whole(self.vocabulary().count_ordinary(text))
    }

    /// Cuts a text into its tokens, joined where one alone is no UTF-8: pieces, with how many tokens each has.
    pub fn cut_into_tokens(&self, text: &str) -> Vec<(String, u64)> {
        let vocabulary = self.vocabulary();
        let mut pieces = Vec::new();
        let mut open = Vec::new();
        for token in vocabulary.encode_ordinary(text) {
            open.push(token);
            let bytes = vocabulary.decode_bytes(&open).unwrap_or_default();
            if let Ok(piece) = String::from_utf8(bytes) {
                pieces.push((piece, whole(open.len())));
                open.clear();
            }
        }
        pieces
    }

    fn count_fixed(&self) -> u64 {
        let instructions = self.json["instructions"]
            .as_str()
            .map(|text| TOKENS_PER_MESSAGE + self.count(text));
        let tools = match &self.json["tools"] {
            Value::Null => 0,
            // Upstreams rewrite the declarations; about three quarters of their JSON remain.
            tools => self.count(&tools.to_string()) * 3 / 4,
        };
        instructions.unwrap_or(0) + tools
    }

    fn count_messages(&self, items: &[Value]) -> u64 {
        items
            .iter()
            .map(|item| TOKENS_PER_MESSAGE + self.count_item(item))
            .sum()
    }

    fn count_item(&self, item: &Value) -> u64 {
        let mut tokens = 0;
        match item["type"].as_str() {
            Some("additional_tools") => tokens = self.count(&item["tools"].to_string()) * 3 / 4,
            _ => read(item, &mut |text| tokens += self.count(text)),
        }
        // A prompt may come as token ids.
        if item.is_number() { 1 } else { tokens }
    }

    fn vocabulary(&self) -> &'static CoreBPE {
        let old = ["text-embedding-", "gpt-4-", "gpt-3.5"];
        if self.model == "gpt-4" || old.iter().any(|start| self.model.starts_with(start)) {
            return tiktoken_rs::cl100k_base_singleton();
        }
        tiktoken_rs::o200k_base_singleton()
    }
}

/// Shows every text of a message or item that a model reads.
fn read(item: &Value, seen: &mut impl FnMut(&str)) {
    const READ: [&str; 9] = [
        "content",
        "text",
        "arguments",
        "input",
        "output",
        "name",
        "refusal",
        "tool_calls",
        "function",
    ];
    match item {
        Value::String(text) => seen(text),
        Value::Array(parts) => parts.iter().for_each(|part| read(part, seen)),
        Value::Object(fields) => READ
            .iter()
            .filter_map(|name| fields.get(*name))
            .for_each(|part| read(part, seen)),
        _ => {}
    }
}

fn whole(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
