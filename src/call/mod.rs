//! A call: a client's request, as far as its cost and its route depend on it; the edits made to it.

mod arriving;
mod encrypted;
mod fields;
mod input;
mod media;
mod parse;
mod piece;
mod sound;
mod splice;
mod tools;

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

pub use arriving::{Begun, Opening, Shown};
pub use encrypted::{AllEncrypted, Encrypted};
pub use fields::{Member, members};
pub use media::Medium;
pub use sound::Length;

use crate::code::Code;
use crate::usage::{CacheTtl, Tier, Tokens};

/// The billed endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "OpenAI's own names")]
pub enum Endpoint {
    ChatCompletions,
    Responses,
    Compact,
    Completions,
    Embeddings,
    ImageGenerations,
    ImageEdits,
    Speech,
    Transcriptions,
    Translations,
}

impl Endpoint {
    /// All of them.
    pub const ALL: [Endpoint; 10] = [
        Endpoint::ChatCompletions,
        Endpoint::Responses,
        Endpoint::Compact,
        Endpoint::Completions,
        Endpoint::Embeddings,
        Endpoint::ImageGenerations,
        Endpoint::ImageEdits,
        Endpoint::Speech,
        Endpoint::Transcriptions,
        Endpoint::Translations,
    ];

    /// The path below `/v1`: `/chat/completions`.
    pub const fn path(self) -> &'static str {
        match self {
            Endpoint::ChatCompletions => "/chat/completions",
            Endpoint::Responses => "/responses",
            Endpoint::Compact => "/responses/compact",
            Endpoint::Completions => "/completions",
            Endpoint::Embeddings => "/embeddings",
            Endpoint::ImageGenerations => "/images/generations",
            Endpoint::ImageEdits => "/images/edits",
            Endpoint::Speech => "/audio/speech",
            Endpoint::Transcriptions => "/audio/transcriptions",
            Endpoint::Translations => "/audio/translations",
        }
    }

    /// Whether requests and answers are those of the Responses API.
    pub const fn is_responses(self) -> bool {
        matches!(self, Endpoint::Responses | Endpoint::Compact)
    }

    /// Whether a call makes or hears something beside text.
    pub const fn is_medium(self) -> bool {
        matches!(
            self,
            Endpoint::ImageGenerations
                | Endpoint::ImageEdits
                | Endpoint::Speech
                | Endpoint::Transcriptions
                | Endpoint::Translations
        )
    }

    /// Whether a call may come as a form.
    pub const fn takes_forms(self) -> bool {
        matches!(
            self,
            Endpoint::ImageEdits | Endpoint::Transcriptions | Endpoint::Translations
        )
    }

    /// From the path below `/v1`.
    pub fn from_path(path: &str) -> Option<Endpoint> {
        Endpoint::ALL.into_iter().find(|endpoint| endpoint.path() == path)
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
    /// Prompts of a batch, of completions and embeddings: the model reads each by itself. Of one that stands alone, none
    /// or 1.
    pub prompts: u32,
    /// Whether the model reads more than the body tells: files by URL, earlier audio, a `reasoning.mode` of drafts.
    pub unbounded: bool,
}

/// Hosted tools that the upstream may run by itself, for money.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostedTools {
    /// `web_search` and its variants, chat's `web_search_options` and what other vendors call it (`search_parameters`,
    /// `enable_search`, a `builtin_function`), and chat models that always search.
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
    /// Whether the response is made after the call is answered: `background`.
    pub background: bool,
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
    /// `previous_response_id`, the conversation, the ids of `item_reference`s and of files: state only the upstream holds.
    pub refers_to: Vec<Reference>,
    /// Its `encrypted_content`: what earlier answers left there only the account that made them can read.
    pub encrypted: AllEncrypted,
    /// How long what it writes to the prompt cache is to live: `prompt_cache_options.ttl`.
    pub cache_ttl: CacheTtl,
    /// Whether a legacy completion repeats its prompt: `echo`.
    pub echo: Echo,
    /// What it makes or hears beside text.
    pub medium: Medium,
    /// The content type of a form; a JSON document has none.
    pub form: Option<String>,
    /// The request as the client wrote it, decompressed.
    pub body: Bytes,
    /// Where in it the text of `prompt_cache_key` lies.
    cache_key: Option<Range<usize>>,
    /// Where in it `client_metadata` lies.
    client_metadata: Option<Range<usize>>,
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

/// Something the call leans on that the upstream keeps: an earlier answer made it there, or the user put it there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// `previous_response_id`.
    Response(String),
    /// The id in an `item_reference`.
    Item(String),
    /// `conversation`.
    Conversation(String),
    /// A `file_id`.
    File(String),
}

/// Why a body is not a call. All are a 400 naming the field; [`crate::texts`] has the words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The body as a whole.
    Body(BodyProblem),
    /// A parameter, by its path: `param` in the answer.
    Param {
        /// The path, as `tools[0].container`.
        name: String,
        /// What is wrong with it.
        problem: Problem,
    },
}

/// What is wrong with a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyProblem {
    /// Bytes that are no text.
    NotUtf8,
    /// Text that is no JSON, from here on.
    NotJson {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// JSON of another kind.
    NotAnObject,
    /// No form, or one that may be read in two ways.
    NotAForm,
    /// More parameters than are read.
    TooManyParameters {
        /// How many are.
        most: usize,
    },
}

/// What is wrong with a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// It is `model`, and not there.
    NoModel,
    /// It is `model`, and cannot be the name of one.
    NotAModel,
    /// It is written in another case.
    Miswritten,
    /// It is a part of a form, of which servers read this in different ways.
    Unclear {
        /// What of its head: `name*`, `Content-Type`.
        what: &'static str,
    },
    /// It is there more than once.
    Repeated,
    /// It is of another type.
    Type(Wanted),
    /// It is 0.
    Zero,
    /// It is too large a number.
    Above {
        /// The largest.
        most: u64,
    },
    /// It is none of these words.
    NotOneOf(&'static [&'static str]),
    /// It is nested deeper than is read.
    TooDeep,
    /// It holds half a character, or a number that is out of range.
    BrokenText,
    /// It is understood, and not served here.
    Unsupported(Instead),
    /// It has no counterpart in the only format that the model's upstream takes.
    Untranslatable {
        /// What it is: `web_search`; the parameter's own name, where it is one.
        item: String,
        /// Where that format is spoken.
        to: Endpoint,
    },
}

/// The type that a parameter has to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Wanted {
    Text,
    Bool,
    /// A whole number, at least 1.
    Count,
    Object,
    List,
    TextOrList,
    TextOrObject,
    Messages,
    Tools,
    Functions,
}

/// What to do instead of using a parameter that is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Of `background`, anywhere but in a request to make a response.
    PostResponse,
    /// Of a stored `prompt`.
    SendPrompt,
    /// Of `n_predict`.
    SetMaxTokens,
    /// Of what would make the upstream bill another model.
    OneModel,
    /// Of what only the upstream keeps, for all users alike, or where it would not be looked for.
    SendContent,
    /// Of two image tools that differ.
    OneImageModel,
    /// Of a lane of a WebSocket.
    OneAtATime,
}

impl CallError {
    /// The parameter, as `param` in the answer.
    pub fn param(&self) -> Option<&str> {
        match self {
            CallError::Body(_) => None,
            CallError::Param { name, .. } => Some(name),
        }
    }

    /// OpenAI's code where it has one.
    pub fn code(&self) -> Code {
        match self {
            CallError::Body(BodyProblem::TooManyParameters { .. }) => Code::InvalidValue,
            CallError::Body(BodyProblem::NotAForm) => Code::InvalidValue,
            CallError::Body(_) => Code::InvalidJson,
            CallError::Param { problem, .. } => match problem {
                Problem::NoModel => Code::MissingRequiredParameter,
                Problem::Miswritten => Code::UnknownParameter,
                Problem::Repeated => Code::DuplicateParameter,
                Problem::Type(_) => Code::InvalidType,
                Problem::Unsupported(_) | Problem::Untranslatable { .. } => Code::UnsupportedParameter,
                Problem::NotAModel
                | Problem::Unclear { .. }
                | Problem::Zero
                | Problem::Above { .. }
                | Problem::NotOneOf(_)
                | Problem::TooDeep
                | Problem::BrokenText => Code::InvalidValue,
            },
        }
    }
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

    /// Reads a form, likewise.
    ///
    /// # Errors
    /// As [`Call::parse`].
    pub fn parse_form(endpoint: Endpoint, content_type: &str, body: Bytes) -> Result<Call, CallError> {
        media::form(endpoint, content_type, &body)
    }

    /// What the items of a document lean on that is no call: of a conversation that is made or added to.
    ///
    /// # Errors
    /// A [`CallError`] that names the parameter, for a 400.
    pub fn references(document: &[u8]) -> Result<Vec<Reference>, CallError> {
        parse::references(document)
    }

    /// The model that a document names that is no call, if it names one.
    ///
    /// # Errors
    /// A [`CallError`] that names the parameter, for a 400.
    pub fn named_model(document: &[u8]) -> Result<Option<String>, CallError> {
        parse::named_model(document)
    }

    /// Tells `told` every text that is counted in [`InputShape::text_bytes`]: strings with their escapes undone, tools
    /// and formats as their JSON. Walks over the body again.
    pub fn for_each_text(&self, told: &mut dyn FnMut(&str)) {
        parse::each_text(self, told);
    }

    /// The client's `prompt_cache_key`: what it thinks of as one thread.
    pub fn cache_key(&self) -> Option<&[u8]> {
        self.body.get(self.cache_key.clone()?)
    }

    /// The JSON of `client_metadata`, in which Codex says of each call what it is for.
    pub fn client_metadata(&self) -> Option<&[u8]> {
        self.body.get(self.client_metadata.clone()?)
    }

    /// Lets go of the body, where another is sent in its place. What was read of it stays.
    pub fn let_go_of_body(&mut self) {
        self.body = Bytes::new();
        self.cache_key = None;
        self.client_metadata = None;
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
