//! A chat client over an upstream that speaks only the Responses API.
//!
//! ```text
//! request    the body's members are taken one by one (members); what is left over is refused by its path
//!              messages ──▶ input: a message each; tool calls, their outputs and earlier reasoning are items of their own
//!              tools, tool_choice, response_format ──▶ the same without the object around them
//!              limits, effort, verbosity, logprobs ──▶ other names; nothing is stored unless it is asked for
//! answer     an output item ──▶ Said (item): text, refusal, reasoning, citations, a call
//!              whole    all items' Said ──▶ one message
//!              stream   each event ──▶ chunks; what an item or the end tells and its deltas did not is made up for
//! usage      the same counts under their other names
//! ```
//!
//! What has no counterpart is refused by its name: several choices, audio, stop words, logit bias, penalties, seeds,
//! predictions, hosted search, functions in their old form, names of speakers, and whatever chat's own API does not know.
//!
//! One choice is made of all that the upstream puts out. Texts of several messages stand apart by an empty line, parts of
//! reasoning too. Reasoning comes as `reasoning_content`, which most chat APIs call it by, and may be sent back. Steps of
//! tools that an upstream runs by itself have no counterpart in chat, as with chat models that search; their results are
//! in the text.

#[cfg(test)]
pub(super) mod back;
mod item;
mod members;
mod messages;
mod request;
mod stream;
#[cfg(test)]
mod tests;
mod whole;

use super::{Given, Made};
use crate::call::{BodyProblem, Call, CallError};
use stream::Chunks;

/// Makes a Responses request of a chat call.
pub(super) fn request(call: &Call, given: &Given) -> Result<Made, CallError> {
    let body = std::str::from_utf8(&call.body).map_err(|_| CallError::Body(BodyProblem::NotUtf8))?;
    Ok(Made {
        body: request::translated(body)?,
        answer: Box::new(Chunks::new(call.include_usage, given)),
        left_out: Vec::new(),
    })
}
