//! Usage: what a call consumed, by class, read from every wire format that upstreams speak.

use serde::Serialize;

/// A count of tokens, at most [`Tokens::MAX`], so that products with rates cannot overflow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Tokens(u32);

impl Tokens {
    /// None.
    pub const ZERO: Tokens = Tokens(0);
    /// More than any model reads or writes; a larger count in an answer is not believed.
    pub const MAX: Tokens = Tokens(1_000_000_000);

    /// `count` tokens; `None` above [`Tokens::MAX`].
    pub const fn new(count: u64) -> Option<Tokens> {
        if count > Tokens::MAX.0 as u64 {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "checked against MAX above")]
        let count = count as u32;
        Some(Tokens(count))
    }

    /// `count` tokens, or [`Tokens::MAX`] when it is larger: for bounds.
    pub const fn saturating(count: u64) -> Tokens {
        match Tokens::new(count) {
            Some(tokens) => tokens,
            None => Tokens::MAX,
        }
    }

    /// The count.
    pub const fn get(self) -> u64 {
        self.0 as u64
    }

    /// The sum, held at [`Tokens::MAX`].
    pub const fn saturating_add(self, other: Tokens) -> Tokens {
        Tokens::saturating(self.get() + other.get())
    }

    /// The difference, held at zero.
    pub const fn saturating_sub(self, other: Tokens) -> Tokens {
        Tokens(self.0.saturating_sub(other.0))
    }

    /// The product, held at [`Tokens::MAX`].
    pub const fn saturating_mul(self, factor: u32) -> Tokens {
        Tokens::saturating(self.get() * factor as u64)
    }
}

/// How a vendor's usage object departs from OpenAI's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// `prompt_tokens`/`completion_tokens` or `input_tokens`/`output_tokens`, details as subsets.
    #[default]
    OpenAi,
    /// Reasoning is only inside `total_tokens` (xAI chat, Gemini): output = total − input when that is more.
    TotalCoversReasoning,
}

/// What a call consumed. Every detail is a subset of the total it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// All tokens read, cached and written ones included.
    pub input_tokens: Tokens,
    /// Of the input: read from the cache.
    pub cached_tokens: Tokens,
    /// Of the input: written to the cache for 30 minutes.
    pub cache_write_tokens: Tokens,
    /// Of the input: written to the cache for 12 hours.
    pub cache_write_12h_tokens: Tokens,
    /// Of the input: audio.
    pub audio_input_tokens: Tokens,
    /// All tokens generated, reasoning included.
    pub output_tokens: Tokens,
    /// Of the output: reasoning, billed as output and shown apart.
    pub reasoning_tokens: Tokens,
    /// Of the output: audio.
    pub audio_output_tokens: Tokens,
    /// Hosted tools, billed beside the tokens.
    pub tools: ToolUsage,
}

/// What hosted tools of the Responses API did, in the units they are billed by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ToolUsage {
    /// Billable web searches (`tool_usage.web_search.num_requests`, else finished `search` actions).
    pub web_searches: u32,
    /// `file_search_call` items.
    pub file_searches: u32,
    /// Distinct containers of code interpreter and shell calls.
    pub containers: u32,
    /// Tokens of the image model behind `image_generation`, if it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_gen: Option<ImageUsage>,
}

/// Tokens of an image model; no part lies inside another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ImageUsage {
    /// Text read.
    pub text_input_tokens: Tokens,
    /// Images read.
    pub image_input_tokens: Tokens,
    /// Text generated.
    pub text_output_tokens: Tokens,
    /// Images generated.
    pub image_output_tokens: Tokens,
}

/// Why a usage object cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("usage field {field} is {problem}")]
pub struct UsageError {
    /// The field as the upstream names it.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Usage {
    /// Reads a `usage` object of chat, completions, embeddings or responses. `null` is `None`; zero is a usage.
    pub fn parse(usage: &serde_json::Value, dialect: Dialect) -> Result<Option<Usage>, UsageError> {
        let (_, _) = (usage, dialect);
        todo!()
    }
}
