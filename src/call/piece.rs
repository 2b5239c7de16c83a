//! The pieces a walk over a request meets, and the sums they are added to.

use super::InputShape;

/// Something met on the walk.
pub(super) enum Piece<'a> {
    /// Text of a message, an instruction, a prompt.
    Text(&'a str),
    /// Text the client predicts the answer to be.
    Prediction(&'a str),
    /// Tool definitions, as JSON.
    Tools(&'a str),
    /// The schema an answer has to follow, as JSON.
    Format(&'a str),
    /// A message or item begins.
    Message,
    /// One of several prompts.
    Prompt,
    /// A token, given by its number.
    TokenId,
    /// An image, wherever it lies.
    Image,
    /// An opaque blob of so many bytes.
    Blob(usize),
    /// Input whose size the body does not tell: a file or video by URL, earlier audio by id.
    Beyond,
}

impl Piece<'_> {
    /// Adds the piece to the sums.
    pub(super) fn add_to(&self, shape: &mut InputShape) {
        match self {
            Piece::Text(text) => shape.text_bytes += bytes(text),
            Piece::Prediction(text) => {
                shape.text_bytes += bytes(text);
                shape.prediction_bytes += bytes(text);
            }
            Piece::Tools(json) => {
                shape.text_bytes += bytes(json);
                shape.tool_bytes += bytes(json);
                shape.tools |= *json != "[]";
            }
            Piece::Format(json) => {
                shape.text_bytes += bytes(json);
                shape.tool_bytes += bytes(json);
            }
            Piece::Message => shape.messages += 1,
            Piece::Prompt => shape.prompts = shape.prompts.saturating_add(1),
            Piece::TokenId => shape.token_ids += 1,
            Piece::Image => shape.images += 1,
            Piece::Blob(length) => shape.blob_bytes += u64::try_from(*length).unwrap_or(u64::MAX),
            Piece::Beyond => shape.unbounded = true,
        }
    }

    /// The text a tokenizer has to count, if the piece is some.
    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Piece::Text(text) | Piece::Prediction(text) | Piece::Tools(text) | Piece::Format(text) => Some(text),
            _ => None,
        }
    }
}

fn bytes(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}
