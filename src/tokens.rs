//! Counting tokens: upper bounds before a call, estimates after it.
//!
//! What a request costs beside its text was measured on some 250 recorded requests of OpenAI's models: 4 tokens per
//! message and 3 for the frame, and for function tools at most the tokens of their JSON and 256. An upstream's own
//! count is always better; these are for before and for when none comes.

use tiktoken_rs::CoreBPE;

use crate::call::{Call, Endpoint, InputShape, Medium};
use crate::usage::{ImageUsage, Tokens, ToolUsage, Usage};

/// Tokens of an image at most: 10,000 patches × 1.2 (no public formula since GPT-5.4).
const IMAGE_TOKENS: u64 = 12_000;

/// Tokens of an image most likely: a square of 1024 pixels in detail is 630 to 1,300 of the models' ways to count.
const LIKELY_IMAGE_TOKENS: u64 = 1_000;

/// What frames a message.
const MESSAGE_TOKENS: u64 = 4;

/// What frames a request.
const REQUEST_TOKENS: u64 = 3;

/// What goes before tools at most, a strict output format included.
const TOOLS_TOKENS: u64 = 256;

/// What goes before tools most likely.
const LIKELY_TOOLS_TOKENS: u64 = 72;

/// A text is counted in pieces of this size at most. The merging of a run without spaces takes more than linear time,
/// and the tokenizer's regular expression gives up, by a panic, on very long runs.
const PIECE_BYTES: usize = 4 * 1024;

/// The vocabulary a model's text is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// GPT-4o and later; also assumed for models of other vendors, with a margin where it limits.
    O200k,
    /// GPT-4, GPT-3.5, embeddings.
    Cl100k,
}

/// Families counted in `o200k_base`, or in `o200k_harmony`, which has the same merges.
const O200K_FAMILIES: [&str; 13] = [
    "gpt-4o",
    "chatgpt-4o",
    "gpt-4.1",
    "gpt-4.5",
    "gpt-5",
    "gpt-6",
    "gpt-oss",
    "o1",
    "o3",
    "o4",
    "chat-latest",
    "codex",
    "computer-use-preview",
];

/// Families counted in `cl100k_base`.
const CL100K_FAMILIES: [&str; 7] = [
    "gpt-3.5",
    "gpt-35",
    "text-embedding-3",
    "text-embedding-ada",
    "davinci-002",
    "babbage-002",
    "gpt-4",
];

impl Encoding {
    /// The encoding of a model, and whether it is known to be the model's own. Fine-tuned models (`ft:gpt-4o:…`) and
    /// OpenAI's models under a reseller's prefix (`openai/gpt-4o`) count as what they come from.
    pub fn of(model: &str) -> (Encoding, Known) {
        let model = model.strip_prefix("ft:").unwrap_or(model);
        let model = model.strip_prefix("openai/").unwrap_or(model);
        let of = |families: &[&str]| families.iter().any(|family| is_of_family(model, family));
        match (of(&O200K_FAMILIES), of(&CL100K_FAMILIES)) {
            (true, _) => (Encoding::O200k, Known::Exact),
            (false, true) => (Encoding::Cl100k, Known::Exact),
            (false, false) => (Encoding::O200k, Known::Guess),
        }
    }

    /// Counts a text; linear enough for megabytes, but not for an async thread. Names of special tokens in it are
    /// text. A run without a space every 2 KiB is cut, which may change the count by a token per cut.
    pub fn count(self, text: &str) -> Tokens {
        let vocabulary = self.vocabulary();
        let (mut rest, mut tokens) = (text, 0);
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(piece_end(rest));
            tokens += vocabulary.count_ordinary(piece);
            rest = after;
        }
        Tokens::saturating(as_u64(tokens))
    }

    /// Loads the vocabulary, which takes some 150 ms and 50 MB: at start, where a first call should not wait for it.
    pub fn warm(self) {
        self.vocabulary();
    }

    fn vocabulary(self) -> &'static CoreBPE {
        match self {
            Encoding::O200k => tiktoken_rs::o200k_base_singleton(),
            Encoding::Cl100k => tiktoken_rs::cl100k_base_singleton(),
        }
    }
}

/// `gpt-5` is a family of `gpt-5`, `gpt-5-mini` and `gpt-5.2`, not of `gpt-50`; of `gpt-4` only dashes are.
fn is_of_family(model: &str, family: &str) -> bool {
    let Some(rest) = model.strip_prefix(family) else {
        return false;
    };
    match rest.bytes().next() {
        None | Some(b'-' | b':' | b'@') => true,
        Some(b'.') => family != "gpt-4",
        Some(_) => false,
    }
}

/// Where to cut a text: before a space between ASCII characters, where the vocabularies cut anyway.
fn piece_end(text: &str) -> usize {
    if text.len() <= PIECE_BYTES {
        return text.len();
    }
    let end = text.floor_char_boundary(PIECE_BYTES);
    let bytes = text.as_bytes();
    let is_cut =
        |at: &usize| bytes[*at] == b' ' && bytes[*at - 1].is_ascii_graphic() && bytes[*at + 1].is_ascii_alphabetic();
    (end / 2..end - 1).rev().find(is_cut).unwrap_or(end)
}

/// Whether a vocabulary is the model's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It is.
    Exact,
    /// It is a guess: counts are estimates, limits are widened by half.
    Guess,
}

impl Known {
    /// A count or limit with the margin that a guess needs: half as much again.
    fn widen(self, tokens: Tokens) -> Tokens {
        match self {
            Known::Exact => tokens,
            Known::Guess => Tokens::saturating((tokens.get() * 3).div_ceil(2)),
        }
    }
}

/// Upper bound of the input by bytes alone: cheap, and four times too high for English. It holds for the vocabulary of
/// any vendor, because none has a token for less than a byte.
pub fn bound_by_bytes(input: &InputShape) -> Tokens {
    Tokens::saturating(input.text_bytes).saturating_add(beside_text(input))
}

/// Best guess (not a bound) of the input by bytes alone: cheap enough for every call, at four to a token of text.
pub fn guess_by_bytes(input: &InputShape) -> Tokens {
    let text = Tokens::saturating((input.text_bytes / 4).saturating_add(input.token_ids));
    text.saturating_add(likely_beside_text(input))
}

/// Upper bound of the input by counting its text, in a vocabulary that may be a guess. Not for an async thread.
pub fn bound_by_counting(call: &Call, encoding: Encoding, known: Known) -> Tokens {
    let text = known.widen(count_text(call, encoding));
    text.saturating_add(beside_text(&call.input))
        .min(bound_by_bytes(&call.input))
}

/// Best guess (not a bound) of the input for an estimate: what an upstream would most likely report. Not for an async
/// thread.
pub fn estimate_input(call: &Call, encoding: Encoding) -> Tokens {
    let text = count_text(call, encoding);
    let ids = Tokens::saturating(call.input.token_ids);
    match call.endpoint {
        Endpoint::Completions | Endpoint::Embeddings => text.saturating_add(ids),
        _ if call.endpoint.is_medium() => guess_by_bytes(&call.input),
        _ => {
            let less = tools_are_less(text, &call.input);
            text.saturating_sub(less)
                .saturating_add(ids)
                .saturating_add(likely_beside_text(&call.input))
        }
    }
}

/// Tokens of a second of sound that is heard, at most: 11 were seen.
const TOKENS_OF_SECOND: u64 = 12;

/// Tokens of a spoken character, at most: at a quarter of the usual speed.
const TOKENS_OF_CHARACTER: u64 = 8;

/// What comes beside the characters.
const TOKENS_BESIDE: u64 = 500;

/// Tokens of so many seconds of sound, at most.
pub fn heard_at_most(seconds: u64) -> Tokens {
    Tokens::saturating(seconds.saturating_mul(TOKENS_OF_SECOND))
}

/// Tokens of speech, at most.
pub fn spoken_at_most(characters: u64) -> Tokens {
    Tokens::saturating(
        characters
            .saturating_mul(TOKENS_OF_CHARACTER)
            .saturating_add(TOKENS_BESIDE),
    )
}

/// Best guess of what a call used that makes or hears something, and whose answer did not tell; `shown` is its visible
/// text, `by_second` whether seconds are what is billed.
pub fn estimate_medium(call: &Call, shown: Tokens, by_second: bool) -> Usage {
    let input = guess_by_bytes(&call.input);
    match call.medium {
        Medium::Text => Usage::default(),
        Medium::Image { tokens } => Usage {
            tools: ToolUsage {
                image_gen: Some(ImageUsage {
                    text_input_tokens: input,
                    image_output_tokens: Tokens::saturating(tokens).saturating_mul(call.choices),
                    ..ImageUsage::default()
                }),
                ..ToolUsage::default()
            },
            ..Usage::default()
        },
        Medium::Sound { length, .. } => {
            let seconds = length.likely;
            let heard = heard_at_most(seconds);
            match by_second {
                true => Usage {
                    seconds: u32::try_from(seconds).unwrap_or(u32::MAX),
                    ..Usage::default()
                },
                false => Usage {
                    input_tokens: heard,
                    audio_input_tokens: heard,
                    output_tokens: shown,
                    ..Usage::default()
                },
            }
        }
        // A character is a fifteenth of a second, and a second some twenty tokens.
        Medium::Speech { characters, .. } => {
            let spoken = Tokens::saturating(characters.saturating_mul(4).div_ceil(3));
            Usage {
                input_tokens: input,
                output_tokens: spoken,
                audio_output_tokens: spoken,
                ..Usage::default()
            }
        }
    }
}

/// Best guess of the output: the visible text, and what was too long to keep of it, in bytes, at four to a token.
/// Hidden reasoning is not in it. Not for an async thread.
pub fn estimate_output(visible: &str, beyond_bytes: u64, encoding: Encoding) -> Tokens {
    encoding.count(visible).saturating_add(guess_output(beyond_bytes))
}

/// Best guess of the output by its bytes alone, at four to a token.
pub fn guess_output(bytes: u64) -> Tokens {
    Tokens::saturating(bytes.div_ceil(4))
}

/// Tokens of all text of a call.
fn count_text(call: &Call, encoding: Encoding) -> Tokens {
    let mut tokens = Tokens::ZERO;
    call.for_each_text(&mut |text| tokens = tokens.saturating_add(encoding.count(text)));
    tokens
}

/// What is read beside the text, at most.
///
/// Blobs are base64 of encrypted reasoning, sound and files, and bounded by a token per byte that it stands for:
/// reasoning has several bytes to a token (recorded: four to ten), sound some hundreds.
fn beside_text(input: &InputShape) -> Tokens {
    let tools = if input.tools { TOOLS_TOKENS } else { 0 };
    sum([
        frame_tokens(input),
        tools,
        input.token_ids,
        input.images.saturating_mul(IMAGE_TOKENS),
        input.blob_bytes.saturating_mul(3).div_ceil(4),
    ])
}

/// What is most likely read beside the text; of a blob a token per six bytes, as recorded for encrypted reasoning.
fn likely_beside_text(input: &InputShape) -> Tokens {
    let tools = if input.tools { LIKELY_TOOLS_TOKENS } else { 0 };
    sum([
        frame_tokens(input),
        tools,
        input.images.saturating_mul(LIKELY_IMAGE_TOKENS),
        input.blob_bytes / 6,
    ])
}

/// What frames the request and its messages.
fn frame_tokens(input: &InputShape) -> u64 {
    input
        .messages
        .saturating_mul(MESSAGE_TOKENS)
        .saturating_add(REQUEST_TOKENS)
}

/// By how much tools and formats are read shorter than their JSON: a quarter in the median.
fn tools_are_less(text: Tokens, input: &InputShape) -> Tokens {
    let of_tools = text.get().saturating_mul(input.tool_bytes) / input.text_bytes.max(1);
    Tokens::saturating(of_tools / 4)
}

fn sum<const N: usize>(counts: [u64; N]) -> Tokens {
    Tokens::saturating(counts.into_iter().fold(0, u64::saturating_add))
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use serde_json::json;
    use std::time::{Duration, Instant};

    fn call(endpoint: Endpoint, body: &serde_json::Value) -> Call {
        Call::parse(endpoint, Bytes::from(body.to_string())).expect("a call")
    }

    #[test]
    fn each_model_is_counted_in_its_own_vocabulary() {
        for (model, expected) in [
            ("gpt-6.1-sol", (Encoding::O200k, Known::Exact)),
            ("gpt-5", (Encoding::O200k, Known::Exact)),
            ("gpt-5.2-2025-12-11", (Encoding::O200k, Known::Exact)),
            ("gpt-4o-mini", (Encoding::O200k, Known::Exact)),
            ("gpt-4.1", (Encoding::O200k, Known::Exact)),
            ("chatgpt-4o-latest", (Encoding::O200k, Known::Exact)),
            ("o3-pro", (Encoding::O200k, Known::Exact)),
            ("codex-mini-latest", (Encoding::O200k, Known::Exact)),
            ("openai/gpt-oss-120b", (Encoding::O200k, Known::Exact)),
            ("ft:gpt-4o-mini-2024-07-18:org::abc", (Encoding::O200k, Known::Exact)),
            ("gpt-4", (Encoding::Cl100k, Known::Exact)),
            ("gpt-4-turbo-2024-04-09", (Encoding::Cl100k, Known::Exact)),
            ("gpt-3.5-turbo-instruct", (Encoding::Cl100k, Known::Exact)),
            ("text-embedding-3-small", (Encoding::Cl100k, Known::Exact)),
            ("text-embedding-ada-002", (Encoding::Cl100k, Known::Exact)),
            ("text-embedding-004", (Encoding::O200k, Known::Guess)),
            ("deepseek-v4-flash", (Encoding::O200k, Known::Guess)),
            ("o1000", (Encoding::O200k, Known::Guess)),
            ("gpt-50", (Encoding::O200k, Known::Guess)),
            ("", (Encoding::O200k, Known::Guess)),
        ] {
            assert_eq!(Encoding::of(model), expected, "{model}");
        }
    }

    #[test]
    fn counts_are_those_of_the_published_vocabularies() {
        for (text, o200k, cl100k) in [
            ("", 0, 0),
            ("hello world", 2, 2),
            ("antidisestablishmentarianism", 6, 6),
            ("<|endoftext|>", 7, 7),
        ] {
            assert_eq!(Encoding::O200k.count(text).get(), o200k, "{text}");
            assert_eq!(Encoding::Cl100k.count(text).get(), cl100k, "{text}");
        }
    }

    #[test]
    fn cutting_prose_changes_no_count() {
        let prose = "The quick brown fox, aged 7, jumps over \"lazy\" dogs;\n\n\tthen it's 12345 km away... isn't it? "
            .repeat(900);
        for encoding in [Encoding::O200k, Encoding::Cl100k] {
            let whole = encoding.vocabulary().count_ordinary(&prose);
            assert_eq!(encoding.count(&prose).get(), as_u64(whole));
        }
    }

    #[test]
    fn cutting_what_has_no_spaces_adds_a_token_per_cut_at_most() {
        for text in [
            "漢字かな交じり文".repeat(2_000),
            "ab1/".repeat(10_000),
            "привет мир ".repeat(4_000),
        ] {
            let whole = as_u64(Encoding::O200k.vocabulary().count_ordinary(&text));
            let cuts = as_u64(text.len() / (PIECE_BYTES / 2));
            let counted = Encoding::O200k.count(&text).get();
            assert!(
                counted >= whole && counted <= whole + cuts,
                "{counted} for {whole}: {text:.20}"
            );
        }
    }

    #[test]
    fn hostile_text_is_counted_in_linear_time() {
        let started = Instant::now();
        for unit in [
            "a", "=", " ", "\n", "A", "é", "\u{301}", "0", "a ", " \n", "😀", "\u{3000}", "'s",
        ] {
            let text = unit.repeat(200_000 / unit.len());
            let bound = Tokens::saturating(as_u64(text.len()));
            for encoding in [Encoding::O200k, Encoding::Cl100k] {
                assert!(encoding.count(&text) <= bound, "{unit:?}");
            }
        }
        assert!(
            started.elapsed() < Duration::from_secs(100),
            "took {:?}",
            started.elapsed()
        );
    }

    #[test]
    fn a_run_on_which_the_tokenizer_panics_is_counted() {
        let text = " ".repeat(1_500_000) + "x";
        assert!(Encoding::O200k.count(&text).get() < 40_000);
    }

    #[test]
    fn a_guess_is_widened_by_half_and_rounded_up() {
        assert_eq!(Known::Exact.widen(Tokens::saturating(3)), Tokens::saturating(3));
        assert_eq!(Known::Guess.widen(Tokens::saturating(3)), Tokens::saturating(5));
        assert_eq!(Known::Guess.widen(Tokens::MAX), Tokens::MAX);
    }

    #[test]
    fn a_bound_holds_each_thing_the_model_reads() {
        let shape = InputShape {
            text_bytes: 1_000,
            messages: 2,
            images: 1,
            blob_bytes: 401,
            tools: true,
            token_ids: 7,
            ..InputShape::default()
        };
        assert_eq!(
            bound_by_bytes(&shape).get(),
            1_000 + (4 * 2 + 3) + 12_000 + 301 + 256 + 7
        );
        let endless = InputShape {
            text_bytes: u64::MAX,
            images: u64::MAX,
            blob_bytes: u64::MAX,
            ..InputShape::default()
        };
        assert_eq!(bound_by_bytes(&endless), Tokens::MAX);
    }

    #[test]
    fn counting_is_a_lower_bound_than_bytes_and_above_what_is_estimated() {
        let body = json!({"model": "gpt-6.1-sol", "messages": [
            {"role": "system", "content": "You are a careful assistant. ".repeat(50)},
            {"role": "user", "content": "What is the weather like in Rome today?"}],
            "tools": [{"type": "function", "function": {"name": "weather", "description": "The weather of a city",
                "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]});
        let call = call(Endpoint::ChatCompletions, &body);
        let by_bytes = bound_by_bytes(&call.input);
        let exact = bound_by_counting(&call, Encoding::O200k, Known::Exact);
        let guess = bound_by_counting(&call, Encoding::O200k, Known::Guess);
        let likely = estimate_input(&call, Encoding::O200k);
        assert!(
            likely < exact && exact < guess && guess < by_bytes,
            "{likely:?} {exact:?} {guess:?} {by_bytes:?}"
        );
    }

    #[test]
    fn text_without_tools_is_estimated_as_openai_counts_it() {
        let body = json!({"model": "gpt-4.1", "messages": [{"role": "user", "content": "hello world"}]});
        assert_eq!(
            estimate_input(&call(Endpoint::ChatCompletions, &body), Encoding::O200k).get(),
            2 + 4 + 3
        );
        let body = json!({"model": "text-embedding-3-small", "input": ["hello world", "hello world"]});
        assert_eq!(
            estimate_input(&call(Endpoint::Embeddings, &body), Encoding::Cl100k).get(),
            4
        );
        let body = json!({"model": "text-embedding-3-small", "input": [15339, 1917]});
        assert_eq!(
            estimate_input(&call(Endpoint::Embeddings, &body), Encoding::Cl100k).get(),
            2
        );
    }

    #[test]
    fn output_that_was_too_long_to_keep_is_guessed_by_its_bytes() {
        assert_eq!(estimate_output("hello world", 0, Encoding::O200k).get(), 2);
        assert_eq!(estimate_output("hello world", 401, Encoding::O200k).get(), 2 + 101);
    }
}
