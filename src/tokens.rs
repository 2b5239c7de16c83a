//! Counting tokens: upper bounds before a call, estimates after it.

use crate::call::{Call, InputShape};
use crate::usage::Tokens;

/// Tokens of an image at most: 10,000 patches × 1.2 (no public formula since GPT-5.4).
pub const IMAGE_TOKENS: u64 = 12_000;

/// The vocabulary a model's text is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// GPT-4o and later; also assumed for models of other vendors, with a margin where it limits.
    O200k,
    /// GPT-4, GPT-3.5, embeddings.
    Cl100k,
}

impl Encoding {
    /// The encoding of a model, and whether it is known to be the model's own.
    pub fn of(_model: &str) -> (Encoding, Known) {
        todo!()
    }

    /// Counts a text; linear enough for megabytes, but not for an async thread.
    pub fn count(self, _text: &str) -> Tokens {
        todo!()
    }
}

/// Whether a vocabulary is the model's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is.
    Exact,
    /// It is a guess: counts are estimates, limits are widened by half.
    Guess,
}

/// Upper bound of the input by bytes alone: cheap, and four times too high for English.
pub fn bound_by_bytes(_input: &InputShape) -> Tokens {
    todo!()
}

/// Upper bound of the input by counting its text.
pub fn bound_by_counting(_call: &Call, _encoding: Encoding) -> Tokens {
    todo!()
}

/// Best guess (not a bound) of the input for an estimate: what an upstream would most likely report.
pub fn estimate_input(_call: &Call, _encoding: Encoding) -> Tokens {
    todo!()
}
