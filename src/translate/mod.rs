//! Between the two wire formats of text generation: a call to one endpoint, as an upstream takes it that has only the
//! other, and its answer back again.
//!
//! ```text
//! admission   Call ── translate ──▶ Translation { call, answer, left_out }, or a CallError: a 400 with the item's name
//!               `call` is a Call of the upstream's endpoint, read back from the body that was made. It is what the model
//!               reads: it is priced, bounded, held for, edited (alias, limit, usage chunk), sent, and estimated by.
//! relay       the upstream's event ──▶ meter, in the upstream's shape ──▶ Answer::event ──▶ passage ──▶ client
//!               usage, tier and estimates are read before the translation; the end it makes of a terminal event waits for
//!               the charge like any other
//! the end     Answer::close: where the upstream's bytes bring no end: closed without `[DONE]`, at the limit, broken, stopped
//! unary       the whole body ──▶ meter ──▶ Answer::whole ──▶ client
//! ```
//!
//! The client's own call stays what the usage row, keep-alives and refusals go by. What a request asks for either reaches the
//! model or is refused with its name. Left out is only what changes nothing that was asked, and Codex's offer of a search
//! that the upstream has not, which the answer's `x-gateway-left-out` tells.
//!
//! Pure: bytes in, bytes out. Ids and times come in with [`Given`].

use std::fmt;

use uuid::Uuid;

use crate::call::{Call, CallError, ChatLimitField, Endpoint, Problem};
use crate::meter::Reading;
use crate::sse::Event;
use crate::texts::Language;

mod event;
mod json;
mod to_chat;
mod to_responses;

#[cfg(test)]
mod tests;

/// A wire format of text generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// `/responses`.
    Responses,
    /// `/chat/completions`.
    Chat,
}

impl Wire {
    /// Where it is spoken.
    pub const fn endpoint(self) -> Endpoint {
        match self {
            Wire::Responses => Endpoint::Responses,
            Wire::Chat => Endpoint::ChatCompletions,
        }
    }

    /// That of an endpoint; `None`: it has a format of its own, which nothing is translated to.
    pub const fn of(endpoint: Endpoint) -> Option<Wire> {
        match endpoint {
            // Making a conversation short is a call like any other where the model itself does it.
            Endpoint::Responses | Endpoint::Compact => Some(Wire::Responses),
            Endpoint::ChatCompletions => Some(Wire::Chat),
            _ => None,
        }
    }
}

/// Which of them an upstream speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wires {
    /// Both: nothing is translated.
    #[default]
    Both,
    /// One: calls to the other's endpoint are translated.
    Only(Wire),
}

impl Wires {
    /// As the settings write it.
    pub const fn name(self) -> &'static str {
        match self {
            Wires::Both => "responses+chat",
            Wires::Only(Wire::Responses) => "responses",
            Wires::Only(Wire::Chat) => "chat",
        }
    }

    /// What a call to `endpoint` has to be translated to; `None`: nothing.
    pub fn other_than(self, endpoint: Endpoint) -> Option<Wire> {
        match (self, Wire::of(endpoint)) {
            (Wires::Only(wire), Some(asked)) if wire != asked => Some(wire),
            _ => None,
        }
    }
}

/// What a translation takes from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// The exchange's id, which the ids of the answer and of its items are made of.
    pub id: Uuid,
    /// Now, in Unix seconds: the answer's `created_at` or `created`.
    pub created: i64,
    /// The name by which the upstream takes the limit of a chat answer.
    pub chat_limit_field: ChatLimitField,
    /// Who asks.
    pub client: Client,
    /// In which language.
    pub language: Language,
}

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Client {
    /// Codex, which offers its model a hosted search whatever the model.
    Codex,
    /// Any other: what it offers it means.
    Other,
}

/// A call in the other wire format.
#[derive(Debug)]
pub struct Translation {
    /// As the upstream takes it.
    pub call: Call,
    /// Turns the upstream's answer into the client's.
    pub answer: Box<dyn Answer>,
    /// Types of the tools that were offered, and left out.
    pub left_out: Vec<String>,
}

/// An answer on its way from one wire format to the other.
///
/// The events it gives out are whole: each ends with its blank line. What it is shown is malformed as often as not; that
/// comes to as much of an answer as can be made of it, which fails at its end where a part is lost.
pub trait Answer: fmt::Debug + Send + Sync {
    /// What an event of the upstream's stream becomes: no event, one or several. `reading` holds what the meter has seen,
    /// this event included. An upstream's terminal event becomes the client's.
    fn event(&mut self, event: &Event, reading: &Reading) -> Vec<u8>;

    /// What a stream has to begin with before anything else is put into it. Nothing, when it has begun, or need not.
    fn open(&mut self, reading: &Reading) -> Vec<u8>;

    /// The end of a stream that the upstream did not end in its own words. Nothing, when it did.
    fn close(&mut self, how: Close<'_>, reading: &Reading) -> Vec<u8>;

    /// What a whole body becomes; `None`: it is no answer.
    fn whole(&mut self, body: &[u8], reading: &Reading) -> Option<Vec<u8>>;

    /// Whether the end that was made tells the client of a failure, whatever the upstream said: of an answer that could
    /// not be read whole, too.
    fn has_failed(&self) -> bool;
}

/// How a stream ends without a word of the upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close<'a> {
    /// The upstream closed it behind a whole answer.
    Whole,
    /// The output limit is reached.
    Limited,
    /// It broke off, or the gateway stops; with what is said to the client.
    Failed(&'a str),
}

/// Translates a call.
///
/// # Errors
/// The first thing that has no counterpart ([`Problem::Untranslatable`]), by its path.
pub fn translate(call: &Call, to: Wire, given: &Given) -> Result<Translation, CallError> {
    let made = match to {
        Wire::Chat => to_chat::request(call, given)?,
        Wire::Responses => to_responses::request(call, given)?,
    };
    let call = Call::parse(to.endpoint(), made.body.into())?;
    Ok(Translation {
        call,
        answer: made.answer,
        left_out: made.left_out,
    })
}

/// What a direction makes of a call: its `request`.
struct Made {
    /// The body, of the upstream's endpoint. Its `model` is the client's, and `stream` as it asked; its limit stands in
    /// [`Given::chat_limit_field`] or `max_output_tokens`. The usage chunk is asked for by the edits.
    body: Vec<u8>,
    answer: Box<dyn Answer>,
    left_out: Vec<String>,
}

/// What stands at the path `param` and is called `item` (`web_search`, `input_file`; the parameter's own name, where it is
/// one) is not to be had of an upstream that only speaks `to`.
fn untranslatable(param: impl Into<String>, item: impl Into<String>, to: Wire) -> CallError {
    CallError::Param {
        name: param.into(),
        problem: Problem::Untranslatable {
            item: item.into(),
            to: to.endpoint(),
        },
    }
}
