//! Usage: what a call consumed, by class, read from every wire format that upstreams speak.

use std::borrow::Cow;
use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

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

/// How fast, and at what price, an upstream worked: the response's `service_tier`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "OpenAI's own names")]
pub enum Tier {
    #[default]
    Standard,
    Flex,
    Priority,
    Ultrafast,
    Batch,
}

impl Tier {
    /// From `service_tier`, of a request or a response. `fast` is priority; `auto`, `default`, `scale` (priced by
    /// contract) and what is unknown are standard.
    pub fn from_wire(name: Option<&str>) -> Tier {
        match name {
            Some("flex") => Tier::Flex,
            Some("priority" | "fast") => Tier::Priority,
            Some("ultrafast") => Tier::Ultrafast,
            Some("batch") => Tier::Batch,
            _ => Tier::Standard,
        }
    }

    /// As OpenAI's answers name it.
    pub const fn wire(self) -> &'static str {
        match self {
            Tier::Standard | Tier::Batch => "default",
            Tier::Flex => "flex",
            Tier::Priority => "priority",
            Tier::Ultrafast => "ultrafast",
        }
    }

    /// The name in JSON documents and receipts.
    pub const fn name(self) -> &'static str {
        match self {
            Tier::Standard => "standard",
            Tier::Flex => "flex",
            Tier::Priority => "priority",
            Tier::Ultrafast => "ultrafast",
            Tier::Batch => "batch",
        }
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
    /// Seconds of sound that were heard, where they are what is billed.
    #[serde(skip_serializing_if = "is_zero")]
    pub seconds: u32,
    /// Characters that were spoken, where they are what is billed.
    #[serde(skip_serializing_if = "is_zero")]
    pub characters: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
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

/// How long cache writes live when an upstream does not say: what the request asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheTtl {
    /// The default of every endpoint.
    #[default]
    Minutes30,
    /// Only by `prompt_cache_options.ttl` of the Responses API.
    Hours12,
}

impl Usage {
    /// Reads a `usage` object of chat, completions, embeddings or responses. `null` is `None`, and so is an object
    /// without any count of tokens; zero is a usage. Cache writes of unstated life live for `ttl`.
    ///
    /// A part that is larger than what it is a part of is cut down, in the order cached, written, audio, so that
    /// what is left of the input at the plain rate is never negative.
    ///
    /// # Errors
    /// A count that is negative, no whole number, no number at all or beyond [`Tokens::MAX`]; an output without an
    /// input.
    pub fn parse_for(usage: &Value, dialect: Dialect, ttl: CacheTtl) -> Result<Option<Usage>, UsageError> {
        let Some(usage) = object(Some(usage), "usage")? else {
            return Ok(None);
        };
        let Some((input_tokens, output_tokens)) = totals(usage, dialect)? else {
            return Ok(None);
        };
        let input = Details::of(
            usage,
            ["prompt_tokens_details", "input_tokens_details", "input_token_details"],
        )?;
        let output = Details::of(
            usage,
            [
                "completion_tokens_details",
                "output_tokens_details",
                "output_token_details",
            ],
        )?;
        let (cached, written) = (cached(&input, usage)?, CacheWrites::read(&input, ttl)?);
        let audio = input.tokens("audio_tokens")?.unwrap_or_default();
        let cached_tokens = cached.min(input_tokens);
        let uncached = input_tokens.saturating_sub(cached_tokens);
        let written = written.at_most(uncached);
        let plain = uncached.saturating_sub(written.total());
        let reasoning_tokens = reasoning(&output, usage)?.min(output_tokens);
        let audio_output = output.tokens("audio_tokens")?.unwrap_or_default();
        Ok(Some(Usage {
            input_tokens,
            cached_tokens,
            cache_write_tokens: written.minutes_30,
            cache_write_12h_tokens: written.hours_12,
            audio_input_tokens: audio.min(plain),
            output_tokens,
            reasoning_tokens,
            audio_output_tokens: audio_output.min(output_tokens.saturating_sub(reasoning_tokens)),
            tools: ToolUsage::default(),
            seconds: 0,
            characters: 0,
        }))
    }

    /// Reads the usage of an image endpoint.
    ///
    /// # Errors
    /// As [`Usage::parse_for`].
    pub fn of_images(usage: &Value) -> Result<Option<Usage>, UsageError> {
        let details = Details(object(Some(usage), "usage")?);
        let told = details.tokens("input_tokens")?.or(details.tokens("output_tokens")?);
        if told.is_none() {
            return Ok(None);
        }
        let tools = ToolUsage {
            image_gen: ImageUsage::read(&details)?,
            ..ToolUsage::default()
        };
        Ok(Some(Usage {
            tools,
            ..Usage::default()
        }))
    }

    /// Reads the usage of speech: all that is generated is sound.
    ///
    /// # Errors
    /// As [`Usage::parse_for`].
    pub fn of_speech(usage: &Value) -> Result<Option<Usage>, UsageError> {
        let usage = Usage::parse_for(usage, Dialect::OpenAi, CacheTtl::default())?;
        Ok(usage.map(|usage| Usage {
            audio_output_tokens: usage.output_tokens,
            ..usage
        }))
    }

    /// Reads the usage of a transcription or translation: tokens, or seconds, which count when they have begun.
    ///
    /// # Errors
    /// As [`Usage::parse_for`]; a duration that is no number of seconds.
    pub fn of_sound(usage: &Value) -> Result<Option<Usage>, UsageError> {
        let duration =
            object(Some(usage), "usage")?.filter(|usage| usage.get("type").is_some_and(|kind| kind == "duration"));
        match duration {
            None => Usage::parse_for(usage, Dialect::OpenAi, CacheTtl::default()),
            Some(usage) => Usage::of_duration(usage.get("seconds").unwrap_or(&Value::Null)).map(Some),
        }
    }

    /// So many seconds of sound.
    ///
    /// # Errors
    /// It is no number of seconds.
    pub fn of_duration(seconds: &Value) -> Result<Usage, UsageError> {
        let wrong = UsageError {
            field: "seconds",
            problem: "not a number of seconds",
        };
        let text = match seconds {
            Value::Number(number) => number.to_string(),
            _ => return Err(wrong),
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        let begun = fraction.bytes().any(|digit| digit != b'0');
        let is_plain = fraction.bytes().all(|digit| digit.is_ascii_digit());
        let whole: u32 = whole.parse().map_err(|_| wrong.clone())?;
        match whole.checked_add(u32::from(begun)).filter(|_| is_plain) {
            Some(seconds) => Ok(Usage {
                seconds,
                ..Usage::default()
            }),
            None => Err(wrong),
        }
    }

    /// As [`Usage::parse_for`], for a request that said nothing of its cache writes.
    #[cfg(test)]
    pub fn parse(usage: &Value, dialect: Dialect) -> Result<Option<Usage>, UsageError> {
        Usage::parse_for(usage, dialect, CacheTtl::default())
    }
}

/// Input and output as billed; `None` when the object counts no tokens.
fn totals(usage: &Map<String, Value>, dialect: Dialect) -> Result<Option<(Tokens, Tokens)>, UsageError> {
    let output = first(usage, ["completion_tokens", "output_tokens"])?;
    let Some(input) = input_total(usage)? else {
        return match output {
            None => Ok(None),
            Some(_) => Err(UsageError {
                field: "prompt_tokens",
                problem: "missing",
            }),
        };
    };
    let beyond_input = || Ok(count(usage, "total_tokens")?.unwrap_or_default().saturating_sub(input));
    let output = match (dialect, output) {
        (Dialect::OpenAi, Some(output)) => output,
        (Dialect::OpenAi, None) => beyond_input()?,
        (Dialect::TotalCoversReasoning, output) => output.unwrap_or_default().max(beyond_input()?),
    };
    Ok(Some((input, output)))
}

/// All input; DeepSeek also gives it in two parts.
fn input_total(usage: &Map<String, Value>) -> Result<Option<Tokens>, UsageError> {
    if let Some(input) = first(usage, ["prompt_tokens", "input_tokens"])? {
        return Ok(Some(input));
    }
    let hit = count(usage, "prompt_cache_hit_tokens")?;
    let miss = count(usage, "prompt_cache_miss_tokens")?;
    Ok(hit.zip(miss).map(|(hit, miss)| hit.saturating_add(miss)))
}

/// Tokens read from the cache: in the details, or as DeepSeek and Moonshot say it beside them.
fn cached(details: &Details<'_>, usage: &Map<String, Value>) -> Result<Tokens, UsageError> {
    let told = match details.tokens("cached_tokens")? {
        None => first(usage, ["prompt_cache_hit_tokens", "cached_tokens"])?,
        told => told,
    };
    Ok(told.unwrap_or_default())
}

/// Reasoning inside the output: in the details, or as Copilot says it beside them.
fn reasoning(details: &Details<'_>, usage: &Map<String, Value>) -> Result<Tokens, UsageError> {
    let told = match details.tokens("reasoning_tokens")? {
        None => count(usage, "reasoning_tokens")?,
        told => told,
    };
    Ok(told.unwrap_or_default())
}

/// What was written to the cache, by how long it lives.
#[derive(Clone, Copy, Debug, Default)]
struct CacheWrites {
    minutes_30: Tokens,
    hours_12: Tokens,
}

impl CacheWrites {
    /// The total that is told is right, the split only divides it: what it leaves out is 30-minute writes, and
    /// without any split all of it lives as long as the request asked.
    fn read(details: &Details<'_>, ttl: CacheTtl) -> Result<CacheWrites, UsageError> {
        let split = Details(details.member("cache_write_tokens_details")?);
        let minutes_30 = split.tokens("ttl_30m_tokens")?;
        let hours_12 = split.tokens("ttl_12h_tokens")?;
        let sum = minutes_30
            .unwrap_or_default()
            .saturating_add(hours_12.unwrap_or_default());
        let total = details.tokens("cache_write_tokens")?.unwrap_or(sum);
        let hours_12 = match (minutes_30, hours_12, ttl) {
            (None, None, CacheTtl::Hours12) => total,
            (_, hours_12, _) => hours_12.unwrap_or_default().min(total),
        };
        Ok(CacheWrites {
            minutes_30: total.saturating_sub(hours_12),
            hours_12,
        })
    }

    fn total(self) -> Tokens {
        self.minutes_30.saturating_add(self.hours_12)
    }

    /// Cut to `most`, the cheaper 30-minute part first.
    fn at_most(self, most: Tokens) -> CacheWrites {
        let hours_12 = self.hours_12.min(most);
        CacheWrites {
            minutes_30: self.minutes_30.min(most.saturating_sub(hours_12)),
            hours_12,
        }
    }
}

/// A details object, which may be missing or null.
struct Details<'a>(Option<&'a Map<String, Value>>);

impl<'a> Details<'a> {
    /// The first of `names` that is there.
    fn of(usage: &'a Map<String, Value>, names: [&'static str; 3]) -> Result<Details<'a>, UsageError> {
        for name in names {
            if let Some(details) = object(usage.get(name), name)? {
                return Ok(Details(Some(details)));
            }
        }
        Ok(Details(None))
    }

    fn member(&self, name: &'static str) -> Result<Option<&'a Map<String, Value>>, UsageError> {
        object(self.0.and_then(|details| details.get(name)), name)
    }

    fn tokens(&self, name: &'static str) -> Result<Option<Tokens>, UsageError> {
        self.0.map_or(Ok(None), |details| count(details, name))
    }
}

/// An object; `None` when it is missing or null.
fn object<'a>(value: Option<&'a Value>, field: &'static str) -> Result<Option<&'a Map<String, Value>>, UsageError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(members)) => Ok(Some(members)),
        Some(_) => Err(UsageError {
            field,
            problem: "not an object",
        }),
    }
}

/// The first count that is there.
fn first(members: &Map<String, Value>, names: [&'static str; 2]) -> Result<Option<Tokens>, UsageError> {
    match count(members, names[0])? {
        None => count(members, names[1]),
        told => Ok(told),
    }
}

/// A count; `None` when it is missing or null.
fn count(members: &Map<String, Value>, field: &'static str) -> Result<Option<Tokens>, UsageError> {
    let problem = match members.get(field) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Number(number)) => match number.as_u64() {
            Some(told) => match Tokens::new(told) {
                Some(tokens) => return Ok(Some(tokens)),
                None => "more than any model reads or writes",
            },
            None if number.is_i64() => "negative",
            None => "not a whole number in range",
        },
        Some(_) => "not a number",
    };
    Err(UsageError { field, problem })
}

/// An output item of the Responses API, as far as fees depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolCall<'a> {
    /// The item's `type`.
    pub kind: Cow<'a, str>,
    /// The item's `status`; only what did not finish carries another than `completed`.
    pub status: Option<Cow<'a, str>>,
    /// `action.type` of a `web_search_call`.
    pub action: Option<Cow<'a, str>>,
    /// The container that a `code_interpreter_call` or a hosted `shell_call` ran in.
    pub container: Option<Cow<'a, str>>,
}

/// Calls of hosted tools, counted from output items as they pass by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolTally {
    web_searches: u32,
    file_searches: u32,
    containers: BTreeSet<String>,
}

impl ToolTally {
    /// Containers of one response that are told apart, at most; a fee for more is not believed.
    pub const MAX_CONTAINERS: usize = 1_024;

    /// Counts an item, if a fee hangs on it.
    pub fn add(&mut self, item: &ToolCall<'_>) {
        match item.kind.as_ref() {
            "web_search_call" if item.searched() => self.web_searches = self.web_searches.saturating_add(1),
            "file_search_call" => self.file_searches = self.file_searches.saturating_add(1),
            "code_interpreter_call" | "shell_call" => self.add_container(item.container.as_deref()),
            _ => {}
        }
    }

    fn add_container(&mut self, id: Option<&str>) {
        if let Some(id) = id
            && self.containers.len() < ToolTally::MAX_CONTAINERS
            && !self.containers.contains(id)
        {
            self.containers.insert(id.to_owned());
        }
    }
}

impl ToolCall<'_> {
    /// Whether the item is a search that took place: opening a page and finding in it are free. The action is
    /// absent in answers from before there were other actions.
    fn searched(&self) -> bool {
        self.action.as_deref().is_none_or(|action| action == "search")
            && self.status.as_deref().is_none_or(|status| status == "completed")
    }
}

impl ToolUsage {
    /// From a response's `tool_usage` and its output items. What `tool_usage` says of web searches goes before what
    /// the items show, because one visible call may hide several that are billed.
    ///
    /// # Errors
    /// A count that cannot be believed, as in [`Usage::parse_for`].
    pub fn from_responses(tool_usage: Option<&Value>, items: &ToolTally) -> Result<ToolUsage, UsageError> {
        let members = Details(object(tool_usage, "tool_usage")?);
        let searches = Details(members.member("web_search")?).tokens("num_requests")?;
        let told = searches.map(|told| u32::try_from(told.get()).unwrap_or(u32::MAX));
        Ok(ToolUsage {
            web_searches: told.unwrap_or(items.web_searches),
            file_searches: items.file_searches,
            containers: u32::try_from(items.containers.len()).unwrap_or(u32::MAX),
            image_gen: ImageUsage::read(&Details(members.member("image_gen")?))?,
        })
    }
}

impl ImageUsage {
    /// Without details all that was read is text and all that was made is images; what details leave out likewise.
    /// Without a total it is the sum of the details. Nothing at all means that the tool did not run. What the image
    /// model had cached is billed as read.
    fn read(image_gen: &Details<'_>) -> Result<Option<ImageUsage>, UsageError> {
        let input = Details(image_gen.member("input_tokens_details")?);
        let output = Details(image_gen.member("output_tokens_details")?);
        let (image_input, input) = split(
            image_gen.tokens("input_tokens")?,
            &input,
            ["image_tokens", "text_tokens"],
        )?;
        let (text_output, output) = split(
            image_gen.tokens("output_tokens")?,
            &output,
            ["text_tokens", "image_tokens"],
        )?;
        let usage = ImageUsage {
            text_input_tokens: input,
            image_input_tokens: image_input,
            text_output_tokens: text_output,
            image_output_tokens: output,
        };
        Ok((usage != ImageUsage::default()).then_some(usage))
    }
}

/// A total as (the part of the first name, the rest).
fn split(
    total: Option<Tokens>,
    details: &Details<'_>,
    names: [&'static str; 2],
) -> Result<(Tokens, Tokens), UsageError> {
    let part = details.tokens(names[0])?.unwrap_or_default();
    let rest = details.tokens(names[1])?.unwrap_or_default();
    let total = total.unwrap_or(part.saturating_add(rest));
    let part = part.min(total);
    Ok((part, total.saturating_sub(part)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn tokens(count: u64) -> Tokens {
        Tokens::new(count).expect("within MAX")
    }

    fn read(usage: Value) -> Usage {
        Usage::parse(&usage, Dialect::OpenAi)
            .expect("believed")
            .expect("a usage")
    }

    #[test]
    fn counting_stops_at_the_bounds() {
        assert_eq!(tokens(6).saturating_mul(7), tokens(42));
        assert_eq!(Tokens::MAX.saturating_mul(2), Tokens::MAX);
        assert_eq!(tokens(6).saturating_add(tokens(7)), tokens(13));
        assert_eq!(Tokens::MAX.saturating_add(tokens(1)), Tokens::MAX);
        assert_eq!(tokens(7).saturating_sub(tokens(6)), tokens(1));
        assert_eq!(tokens(6).saturating_sub(tokens(7)), Tokens::ZERO);
    }

    #[test]
    fn a_tier_has_one_name() {
        let tiers = [Tier::Standard, Tier::Flex, Tier::Priority, Tier::Ultrafast, Tier::Batch];
        for tier in tiers {
            assert_eq!(serde_json::to_value(tier).expect("JSON"), tier.name());
            assert_eq!(Tier::from_wire(Some(tier.name())), tier);
        }
    }

    #[test]
    fn null_absent_and_zero_are_three_things() {
        let parse = |usage| Usage::parse(&usage, Dialect::OpenAi);
        assert_eq!(parse(json!(null)), Ok(None));
        assert_eq!(parse(json!({})), Ok(None));
        assert_eq!(
            parse(json!({"prompt_tokens": null, "completion_tokens": null})),
            Ok(None)
        );
        assert_eq!(
            parse(json!({"prompt_tokens": 0, "completion_tokens": 0})),
            Ok(Some(Usage::default()))
        );
    }

    #[test]
    fn chat_and_responses_say_the_same_in_other_words() {
        let chat = read(
            json!({"prompt_tokens": 2600, "completion_tokens": 500, "total_tokens": 3100,
            "prompt_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 400, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 300, "audio_tokens": 0,
                "accepted_prediction_tokens": 9, "rejected_prediction_tokens": 9}}),
        );
        let responses = read(json!({"input_tokens": 2600, "output_tokens": 500, "total_tokens": 3100,
            "input_tokens_details": {"cached_tokens": 2000, "cache_write_tokens": 400},
            "output_tokens_details": {"reasoning_tokens": 300}}));
        assert_eq!(chat, responses);
        assert_eq!(
            chat,
            Usage {
                input_tokens: tokens(2600),
                cached_tokens: tokens(2000),
                cache_write_tokens: tokens(400),
                output_tokens: tokens(500),
                reasoning_tokens: tokens(300),
                ..Usage::default()
            }
        );
    }

    #[test]
    fn details_may_be_missing_null_or_partial() {
        let bare = json!({"prompt_tokens": 7, "completion_tokens": 5});
        let null = json!({"prompt_tokens": 7, "completion_tokens": 5,
            "prompt_tokens_details": null, "completion_tokens_details": null});
        let partial = json!({"prompt_tokens": 7, "completion_tokens": 5,
            "prompt_tokens_details": {"cached_tokens": null}, "completion_tokens_details": {}});
        assert_eq!(read(bare.clone()), read(null));
        assert_eq!(read(bare), read(partial));
        assert_eq!(
            read(json!({"prompt_tokens": 8, "total_tokens": 8})).output_tokens,
            Tokens::ZERO,
            "embeddings"
        );
    }

    #[test]
    fn audio_is_a_part_of_input_and_of_output() {
        let usage = read(json!({"prompt_tokens": 59, "completion_tokens": 123,
            "prompt_tokens_details": {"audio_tokens": 43, "text_tokens": 16},
            "completion_tokens_details": {"audio_tokens": 100}}));
        assert_eq!(usage.audio_input_tokens, tokens(43));
        assert_eq!(usage.audio_output_tokens, tokens(100));
    }

    #[test]
    fn vendors_name_the_cache_in_their_own_way() {
        let deepseek = json!({"prompt_tokens": 3000, "completion_tokens": 200,
            "prompt_cache_hit_tokens": 2560, "prompt_cache_miss_tokens": 440});
        assert_eq!(read(deepseek).cached_tokens, tokens(2560));
        let in_parts =
            json!({"prompt_cache_hit_tokens": 2560, "prompt_cache_miss_tokens": 440, "completion_tokens": 1});
        assert_eq!(read(in_parts).input_tokens, tokens(3000));
        let moonshot = json!({"prompt_tokens": 30, "completion_tokens": 2, "cached_tokens": 20});
        assert_eq!(read(moonshot).cached_tokens, tokens(20));
        let copilot = json!({"prompt_tokens": 30, "completion_tokens": 20, "reasoning_tokens": 11,
            "completion_tokens_details": {"accepted_prediction_tokens": 0}});
        assert_eq!(read(copilot).reasoning_tokens, tokens(11));
    }

    #[test]
    fn reasoning_outside_the_output_is_billed_where_the_dialect_says_so() {
        let usage = json!({"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 303,
            "completion_tokens_details": {"reasoning_tokens": 290}});
        let read = |dialect| Usage::parse(&usage, dialect).expect("believed").expect("a usage");
        let usual = read(Dialect::OpenAi);
        assert_eq!((usual.output_tokens, usual.reasoning_tokens), (tokens(1), tokens(1)));
        let covering = read(Dialect::TotalCoversReasoning);
        assert_eq!(
            (covering.output_tokens, covering.reasoning_tokens),
            (tokens(291), tokens(290))
        );
    }

    #[test]
    fn cache_writes_are_split_as_told_or_as_asked_for() {
        let writes = |details: Value, ttl| {
            let usage = json!({"input_tokens": 5010, "output_tokens": 1, "input_tokens_details": details});
            let usage = Usage::parse_for(&usage, Dialect::OpenAi, ttl)
                .expect("believed")
                .expect("a usage");
            (usage.cache_write_tokens.get(), usage.cache_write_12h_tokens.get())
        };
        let split = json!({"cache_write_tokens": 4997,
            "cache_write_tokens_details": {"ttl_30m_tokens": 1997, "ttl_12h_tokens": 3000}});
        assert_eq!(writes(split.clone(), CacheTtl::Minutes30), (1997, 3000));
        assert_eq!(writes(split, CacheTtl::Hours12), (1997, 3000));
        let unsplit = json!({"cache_write_tokens": 4997, "cache_write_tokens_details": null});
        assert_eq!(writes(unsplit.clone(), CacheTtl::Minutes30), (4997, 0));
        assert_eq!(writes(unsplit, CacheTtl::Hours12), (0, 4997));
        let partial = json!({"cache_write_tokens": 100, "cache_write_tokens_details": {"ttl_12h_tokens": 30}});
        assert_eq!(writes(partial, CacheTtl::Minutes30), (70, 30));
    }

    #[test]
    fn a_count_that_cannot_be_is_not_believed() {
        for (usage, field, problem) in [
            (
                json!({"prompt_tokens": -1, "completion_tokens": 1}),
                "prompt_tokens",
                "negative",
            ),
            (
                json!({"prompt_tokens": 1.5, "completion_tokens": 1}),
                "prompt_tokens",
                "not a whole number in range",
            ),
            (
                json!({"prompt_tokens": "1", "completion_tokens": 1}),
                "prompt_tokens",
                "not a number",
            ),
            (
                json!({"input_tokens": 1, "output_tokens": true}),
                "output_tokens",
                "not a number",
            ),
            (
                json!({"input_tokens": 1_000_000_001, "output_tokens": 1}),
                "input_tokens",
                "more than any model reads or writes",
            ),
            (json!({"completion_tokens": 1}), "prompt_tokens", "missing"),
            (
                json!({"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": -5}}),
                "cached_tokens",
                "negative",
            ),
            (
                json!({"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": 5}),
                "prompt_tokens_details",
                "not an object",
            ),
            (json!([1]), "usage", "not an object"),
        ] {
            assert_eq!(
                Usage::parse(&usage, Dialect::OpenAi),
                Err(UsageError { field, problem }),
                "{usage}"
            );
        }
        let huge: Value = serde_json::from_str(r#"{"prompt_tokens": 1e30, "completion_tokens": 1}"#).expect("JSON");
        assert!(Usage::parse(&huge, Dialect::OpenAi).is_err());
    }

    fn item(kind: &'static str, action: Option<&'static str>, container: Option<&'static str>) -> ToolCall<'static> {
        ToolCall {
            kind: kind.into(),
            status: Some("completed".into()),
            action: action.map(Into::into),
            container: container.map(Into::into),
        }
    }

    #[test]
    fn tool_calls_are_counted_in_the_units_they_are_billed_by() {
        let mut tally = ToolTally::default();
        for item in [
            item("web_search_call", Some("search"), None),
            item("web_search_call", Some("search"), None),
            item("web_search_call", Some("open_page"), None),
            item("web_search_call", None, None),
            item("file_search_call", None, None),
            item("code_interpreter_call", None, Some("cntr_1")),
            item("code_interpreter_call", None, Some("cntr_1")),
            item("shell_call", None, Some("cntr_2")),
            item("shell_call", None, None),
            item("message", None, None),
        ] {
            tally.add(&item);
        }
        let counted = ToolUsage::from_responses(None, &tally).expect("believed");
        assert_eq!(
            counted,
            ToolUsage {
                web_searches: 3,
                file_searches: 1,
                containers: 2,
                image_gen: None
            }
        );
        let told = ToolUsage::from_responses(Some(&json!({"web_search": {"num_requests": 4}})), &tally);
        assert_eq!(told.expect("believed").web_searches, 4);
        let wrong = ToolUsage::from_responses(Some(&json!({"web_search": {"num_requests": -3}})), &tally);
        assert_eq!(
            wrong,
            Err(UsageError {
                field: "num_requests",
                problem: "negative"
            })
        );
    }

    #[test]
    fn more_containers_than_any_answer_has_are_not_told_apart() {
        let mut tally = ToolTally::default();
        for number in 0..ToolTally::MAX_CONTAINERS + 2 {
            tally.add(&ToolCall {
                container: Some(format!("cntr_{number}").into()),
                ..item("shell_call", None, None)
            });
        }
        let counted = ToolUsage::from_responses(None, &tally).expect("believed");
        assert_eq!(usize::try_from(counted.containers), Ok(ToolTally::MAX_CONTAINERS));
    }

    #[test]
    fn an_unfinished_search_costs_nothing() {
        let mut tally = ToolTally::default();
        tally.add(&ToolCall {
            status: Some("failed".into()),
            ..item("web_search_call", Some("search"), None)
        });
        assert_eq!(tally, ToolTally::default());
    }

    #[test]
    fn image_tokens_without_details_are_text_in_and_images_out() {
        let read = |image_gen: Value| {
            let told = json!({"image_gen": image_gen});
            ToolUsage::from_responses(Some(&told), &ToolTally::default())
                .expect("believed")
                .image_gen
        };
        let image = |text_in, image_in, text_out, image_out| {
            Some(ImageUsage {
                text_input_tokens: tokens(text_in),
                image_input_tokens: tokens(image_in),
                text_output_tokens: tokens(text_out),
                image_output_tokens: tokens(image_out),
            })
        };
        assert_eq!(
            read(json!({"input_tokens": 431, "output_tokens": 1364})),
            image(431, 0, 0, 1364)
        );
        let details = json!({"input_tokens": 431, "input_tokens_details": {"image_tokens": 388, "text_tokens": 43},
            "output_tokens": 1364, "output_tokens_details": {"image_tokens": 1056, "text_tokens": 308}});
        assert_eq!(read(details), image(43, 388, 308, 1056));
        let idle = json!({"input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
            "output_tokens": 0, "output_tokens_details": null, "total_tokens": 0});
        assert_eq!(read(idle), None);
        assert_eq!(read(json!(null)), None);
    }

    #[test]
    fn sound_is_told_in_tokens_or_in_seconds_that_have_begun() {
        let of = |usage: Value| Usage::of_sound(&usage);
        let seconds = |usage| of(usage).map(|usage| usage.map(|usage| usage.seconds));
        assert_eq!(seconds(json!({"type": "duration", "seconds": 7})), Ok(Some(7)));
        assert_eq!(seconds(json!({"type": "duration", "seconds": 3.25})), Ok(Some(4)));
        assert_eq!(seconds(json!({"type": "duration", "seconds": 3.0})), Ok(Some(3)));
        for wrong in [
            json!(-1),
            json!("7"),
            json!(null),
            json!(1e30),
            json!(5_000_000_000_u64),
        ] {
            assert!(of(json!({"type": "duration", "seconds": wrong})).is_err(), "{wrong}");
        }
        let told = json!({"type": "tokens", "total_tokens": 49, "input_tokens": 37, "output_tokens": 12,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 37}});
        let usage = of(told).expect("believed").expect("a usage");
        assert_eq!(
            (usage.input_tokens, usage.audio_input_tokens, usage.output_tokens),
            (tokens(37), tokens(37), tokens(12))
        );
        let spoken = Usage::of_speech(&json!({"input_tokens": 9, "output_tokens": 80, "total_tokens": 89}));
        assert_eq!(
            spoken.expect("believed").expect("a usage").audio_output_tokens,
            tokens(80)
        );
        assert_eq!(Usage::of_images(&json!({})), Ok(None));
        assert_eq!(of(json!(null)), Ok(None));
    }

    proptest! {
        #[test]
        fn no_part_is_larger_than_its_whole(
            input in 0u64..2_000, cached in 0u64..2_000, written in 0u64..2_000, long in 0u64..2_000,
            audio in 0u64..2_000, output in 0u64..2_000, reasoning in 0u64..2_000, spoken in 0u64..2_000,
        ) {
            let usage = read(json!({"input_tokens": input, "output_tokens": output,
                "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written,
                    "cache_write_tokens_details": {"ttl_12h_tokens": long}, "audio_tokens": audio},
                "output_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": spoken}}));
            let parts = usage.cached_tokens.get() + usage.cache_write_tokens.get()
                + usage.cache_write_12h_tokens.get() + usage.audio_input_tokens.get();
            prop_assert!(parts <= input);
            prop_assert_eq!(usage.input_tokens.get(), input);
            prop_assert!(usage.reasoning_tokens.get() <= output && usage.audio_output_tokens.get() <= output);
        }
    }
}
