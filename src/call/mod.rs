//! A call: a client's request, as far as its cost and its route depend on it; the edits made to it.

mod fields;
mod input;
mod parse;
mod piece;
mod splice;
mod tools;

use std::fmt;

use bytes::Bytes;

use crate::usage::{CacheTtl, Tier, Tokens};

/// The billed endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "OpenAI's own names")]
pub enum Endpoint {
    ChatCompletions,
    Responses,
    Completions,
    Embeddings,
}

impl Endpoint {
    /// The path below `/v1`: `/chat/completions`.
    pub const fn path(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "/chat/completions",
            Endpoint::Responses => "/responses",
            Endpoint::Completions => "/completions",
            Endpoint::Embeddings => "/embeddings",
        }
    }

    /// From the path below `/v1`.
    pub fn from_path(path: &str) -> Option<Endpoint> {
        [
            Endpoint::ChatCompletions,
            Endpoint::Responses,
            Endpoint::Completions,
            Endpoint::Embeddings,
        ]
        .into_iter()
        .find(|endpoint| endpoint.path() == path)
    }
}

/// What the model has to read, summed up while parsing; the input of the bounds in [`crate::tokens`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InputShape {
    /// Bytes of text the model reads: messages, instructions, tool definitions, formats.
    pub text_bytes: u64,
    /// Messages and items.
    pub messages: u64,
    /// Images, whatever they are given as.
    pub images: u64,
    /// Bytes of opaque blobs as they are written: `encrypted_content`, files and audio in base64.
    pub blob_bytes: u64,
    /// Whether tools are declared (a model reads a preamble for them).
    pub tools: bool,
    /// Of the text: JSON of tool definitions and of the answer's format, which count for less than their text.
    pub tool_bytes: u64,
    /// Of the text: the client's `prediction`. What the model rejects of it is billed as output beside the answer.
    pub prediction_bytes: u64,
    /// Tokens given by their numbers, in prompts of completions and embeddings; exact, and not in `text_bytes`.
    pub token_ids: u64,
    /// Whether the model reads more than the body tells: files by URL, earlier audio, a `reasoning.mode` of drafts.
    pub unbounded: bool,
}

/// Hosted tools that the upstream may run by itself, for money.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostedTools {
    /// `web_search` and its variants, `web_search_options` of chat, and chat models that always search.
    pub web_search: bool,
    /// Whether one of them is a `web_search_preview`, whose fee is another.
    pub web_search_preview: bool,
    /// `file_search`.
    pub file_search: bool,
    /// `code_interpreter` and hosted `shell`.
    pub container: bool,
    /// `image_generation`, with the image model it names.
    pub image_generation: Option<String>,
    /// `mcp`: no fee, but rounds of input and output that the request does not show.
    pub mcp: bool,
    /// `max_tool_calls`, when stated.
    pub max_calls: Option<u32>,
}

impl HostedTools {
    /// Whether any may run.
    pub fn any(&self) -> bool {
        self.web_search || self.file_search || self.container || self.mcp || self.image_generation.is_some()
    }
}

/// Whether an answer begins with the prompt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Echo {
    /// It does not.
    #[default]
    No,
    /// It does: what is visible is not all output.
    Prompt,
}

/// A parsed request. The body stays as the client wrote it; [`Call::upstream_body`] splices into it.
#[derive(Clone)]
pub struct Call {
    /// Which endpoint it came to.
    pub endpoint: Endpoint,
    /// The model asked for.
    pub model: String,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Whether the client asked for the usage chunk of a chat stream.
    pub include_usage: bool,
    /// The output limit the client stated, per choice; the larger one of `max_completion_tokens` and `max_tokens` in
    /// chat, since upstreams differ in which they obey. A legacy completion without one is kept as `None`: OpenAI then
    /// stops at 16, others do not.
    pub output_limit: Option<Tokens>,
    /// Answers generated and paid for: `n`, `best_of`; 1 elsewhere; prompts of a batch multiply it.
    pub choices: u32,
    /// The tier asked for.
    pub tier: Tier,
    /// What the model has to read.
    pub input: InputShape,
    /// Hosted tools.
    pub tools: HostedTools,
    /// `previous_response_id` and the ids of `item_reference`s: state only the upstream holds.
    pub refers_to: Vec<Reference>,
    /// How long what it writes to the prompt cache is to live: `prompt_cache_options.ttl`.
    pub cache_ttl: CacheTtl,
    /// Whether a legacy completion repeats its prompt: `echo`.
    pub echo: Echo,
    /// The request as the client wrote it, decompressed.
    pub body: Bytes,
    places: splice::Places,
}

/// Without the body: prompts never reach a log.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("endpoint", &self.endpoint)
            .field("model", &self.model)
            .field("stream", &self.stream)
            .field("output_limit", &self.output_limit)
            .field("choices", &self.choices)
            .field("tier", &self.tier)
            .field("input", &self.input)
            .field("tools", &self.tools)
            .field("body_bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Something the call leans on that an earlier answer made at the upstream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// `previous_response_id`.
    Response(String),
    /// The id in an `item_reference`.
    Item(String),
}

/// Why a body is not a call. All are a 400 naming the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// What is wrong and what to change, for the client.
    pub message: String,
    /// The field, as `param` in the answer.
    pub param: Option<String>,
    /// OpenAI's code where it has one (`invalid_json`, `missing_required_parameter`, `unsupported_parameter` …).
    pub code: &'static str,
}

/// What the gateway writes into the request it sends upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    /// The upstream's name of an aliased model.
    pub model: Option<String>,
    /// An output limit that the hold pays for.
    pub output_limit: Option<Tokens>,
    /// Ask for the usage chunk of a chat or completions stream.
    pub include_usage: bool,
    /// The name the upstream takes the chat limit by.
    pub chat_limit_field: ChatLimitField,
}

/// Which field limits a chat answer at this upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ChatLimitField {
    /// OpenAI since the o-series.
    #[default]
    MaxCompletionTokens,
    /// Everybody else.
    MaxTokens,
}

impl Call {
    /// Reads a body. Refuses what would be read differently upstream (a deciding field twice, in another case, of
    /// another type) and state that is not the gateway's to bill.
    ///
    /// # Errors
    /// A [`CallError`] that names the parameter, for a 400.
    pub fn parse(endpoint: Endpoint, body: Bytes) -> Result<Call, CallError> {
        parse::parse(endpoint, &body)
    }

    /// Tells `told` every text that is counted in [`InputShape::text_bytes`]: strings with their escapes undone, tools
    /// and formats as their JSON. Walks over the body again.
    pub fn for_each_text(&self, told: &mut dyn FnMut(&str)) {
        parse::each_text(self, told);
    }

    /// Whether the model may read more than the body and the answers it refers to: results of hosted tools, files by
    /// URL, its own drafts. Nothing but the model's largest input bounds it.
    pub fn reads_more_than_the_body(&self) -> bool {
        self.input.unbounded || self.tools.any()
    }

    /// The body to send: the client's bytes with `edits` spliced in; the very same `Bytes` when there are none. A limit
    /// the client stated is replaced only when it is larger, and one is added only when none was stated.
    pub fn upstream_body(&self, edits: &Edits) -> Bytes {
        splice::spliced(self, edits)
    }
}

#[cfg(test)]
mod tests;
