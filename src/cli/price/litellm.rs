//! LiteLLM's price map to prices: exact decimals from the JSON text, and a reason for every model that is left out.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;
use serde_json::value::RawValue;

use crate::cli::{language, output};
use crate::language::{Language, Said, Tell};
use crate::pricing::{Card, Class, Kind, ListName, Price, PriceError, Rate, Rates, Step};
use crate::said;
use crate::usage::Tier;

/// What was read from a map.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// List, model and price.
    pub(super) prices: Vec<(ListName, String, Price)>,
    /// Models left out, and why.
    pub(super) left_out: Vec<(String, LeftOut)>,
    /// List, and what is said of a zero that is not taken over.
    pub(super) zeros: Vec<(ListName, Said)>,
}

/// Why a model is left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LeftOut {
    /// What it is for is not said.
    NoMode,
    /// It searches unasked, for a fee.
    Searches,
    /// It has two prices.
    Twice,
    /// It has a cost that is none of our classes.
    NoClass(String),
    /// A cost of it is no rate.
    Cost(String, NotARate),
    /// Its rates are no whole price.
    Price(PriceError),
}

/// Why a number is no rate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NotARate {
    /// It is none.
    Number(String),
    /// It is too large or too small to be written out.
    Range(String),
    /// A rate cannot be so much, or so fine.
    Rate(PriceError),
}

impl Tell for LeftOut {
    fn told(&self, language: Language) -> Said {
        match self {
            LeftOut::NoMode => said!(
                language,
                en: "it does not say what it is for (mode)",
                zh: "没有说明用途（mode）",
            ),
            LeftOut::Searches => said!(
                language,
                en: "it searches by itself, for a fee that is not in its tokens",
                zh: "它会自行搜索，费用不包含在其 token 中",
            ),
            LeftOut::Twice => said!(language, en: "there twice, with another price", zh: "出现两次，价格不同"),
            LeftOut::NoClass(name) => {
                said!(language, en: "`{name}` has no class here", zh: "`{name}` 在此没有对应的类别")
            }
            LeftOut::Cost(name, why) => said!(
                language,
                en: "{name}: {why}",
                zh: "{name}：{why}",
                why = why.told(language),
            ),
            LeftOut::Price(why) => why.told(language),
        }
    }
}

impl Tell for NotARate {
    fn told(&self, language: Language) -> Said {
        match self {
            NotARate::Number(number) => said!(language, en: "{number} is no number", zh: "{number} 不是数"),
            NotARate::Range(number) => said!(language, en: "{number} is out of range", zh: "{number} 超出范围"),
            NotARate::Rate(why) => why.told(language),
        }
    }
}

type Fields = BTreeMap<String, Box<RawValue>>;

/// Costs per token that are classes here.
const CLASSES: [(&str, Class); 9] = [
    ("input_cost_per_token", Class::Input),
    ("output_cost_per_token", Class::Output),
    ("cache_read_input_token_cost", Class::CachedInput),
    ("input_cost_per_token_cache_hit", Class::CachedInput),
    ("cache_creation_input_token_cost", Class::CacheWrite),
    ("cache_creation_input_token_cost_above_12hr", Class::CacheWrite12h),
    ("input_cost_per_audio_token", Class::AudioInput),
    ("output_cost_per_audio_token", Class::AudioOutput),
    ("output_cost_per_reasoning_token", Class::ReasoningOutput),
];

/// Costs of things that no call through this gateway can use, or that are priced by hand (fees of hosted tools).
const HARMLESS: [&str; 7] = [
    "_query",
    "_page",
    "_session",
    "_1k_calls",
    "_gb_per_day",
    "above_1hr",
    "audio_token_cost",
];

/// Tokens of pictures and films, which answers do not count apart: they have to cost what tokens of text cost.
const LIKE_TEXT: [&str; 2] = ["_per_image_token", "_per_video_token"];

/// Suffixes of tiers.
const TIERS: [(&str, Tier); 4] = [
    ("_flex", Tier::Flex),
    ("_priority", Tier::Priority),
    ("_ultrafast", Tier::Ultrafast),
    ("_batches", Tier::Batch),
];

/// LiteLLM's providers that are price lists here.
const PROVIDERS: [&str; 13] = [
    "anthropic",
    "cerebras",
    "dashscope",
    "deepseek",
    "gemini",
    "groq",
    "minimax",
    "mistral",
    "moonshot",
    "openai",
    "perplexity",
    "xai",
    "zai",
];

/// Reads a map. Vendors that have no list here, and models that are not billed by tokens of text, are not mentioned.
pub(super) fn read(text: &str) -> Result<Read, Said> {
    let models: BTreeMap<String, Fields> = serde_json::from_str(text).map_err(|error| {
        said!(
            language(),
            en: "not a map of models to prices: {error}",
            zh: "不是模型到价格的映射：{error}",
        )
    })?;
    let mut read = Read::default();
    let mut ours: BTreeMap<(ListName, String), Price> = BTreeMap::new();
    for (key, fields) in models.iter().filter(|(key, _)| *key != "sample_spec") {
        let Some((list, kind)) = list_and_kind(fields) else {
            let unsaid = list(fields).is_some() && string(fields, "mode").is_none();
            read.left_out.extend(unsaid.then(|| (key.clone(), LeftOut::NoMode)));
            continue;
        };
        let model = key.strip_prefix(&format!("{list}/")).unwrap_or(key).to_owned();
        let made = if searches_by_itself(&list, &model, fields) {
            Err(LeftOut::Searches)
        } else {
            price(kind, fields)
        };
        let note = |zero: Zeros| {
            let what = zero.what_to_do(&list, &model);
            let note = said!(
                language(),
                en: "the zero of {key} is not taken over; {what}",
                zh: "{key} 的零没有采用；{what}",
            );
            (list.clone(), note)
        };
        read.zeros.extend(zeros(kind, fields).into_iter().map(note));
        match made {
            Err(why) => read.left_out.push((key.clone(), why)),
            Ok(price) => match ours.insert((list, model), price.clone()) {
                Some(other) if other != price => read.left_out.push((key.clone(), LeftOut::Twice)),
                _ => {}
            },
        }
    }
    let twice = |list: &ListName, model: &str| {
        let prefixed = format!("{list}/{model}");
        read.left_out
            .iter()
            .any(|(key, why)| (key == model || *key == prefixed) && *why == LeftOut::Twice)
    };
    ours.retain(|(list, model), _| !twice(list, model));
    read.prices = ours
        .into_iter()
        .map(|((list, model), price)| (list, model, price))
        .collect();
    Ok(read)
}

/// Whether a document looks like a map of this kind.
pub(super) fn is_map(text: &str) -> bool {
    text.contains("\"litellm_provider\"")
}

fn string(fields: &Fields, name: &str) -> Option<String> {
    serde_json::from_str(fields.get(name)?.get()).ok()
}

fn list(fields: &Fields) -> Option<ListName> {
    let provider = string(fields, "litellm_provider")?;
    let provider = match provider.as_str() {
        "text-completion-openai" => "openai",
        other => PROVIDERS.into_iter().find(|known| *known == other)?,
    };
    ListName::parse(provider).ok()
}

fn list_and_kind(fields: &Fields) -> Option<(ListName, Kind)> {
    let list = list(fields)?;
    let kind = match string(fields, "mode")?.as_str() {
        "chat" | "responses" | "completion" => Kind::Text,
        "embedding" => Kind::Embedding,
        _ => return None,
    };
    Some((list, kind))
}

/// Models that search the web whether asked or not: their answers do not say how often, so the fee cannot be metered.
fn searches_by_itself(list: &ListName, model: &str, fields: &Fields) -> bool {
    let named = ["search-preview", "search-api", "deep-research"]
        .iter()
        .any(|part| model.contains(part));
    named || (list.as_str() == "perplexity" && fields.contains_key("search_context_cost_per_query"))
}

/// Rates that a map has as zero: only an operator may say that something is free.
enum Zeros {
    /// Of classes that `price set` has a flag for.
    Classes(BTreeSet<Class>),
    /// Of a tier or a long context, by the names of their fields.
    Others(Vec<String>),
}

impl Zeros {
    fn what_to_do(&self, list: &ListName, model: &str) -> Said {
        match self {
            Zeros::Classes(classes) => {
                let flag = |class: &Class| format!(" --{} 0", class.name().replace('_', "-"));
                let (model, flags) = (output::shell_word(model), classes.iter().map(flag).collect::<String>());
                said!(
                    language(),
                    en: "if it is free: gateway price set {model} --list {list}{flags}",
                    zh: "如果免费：gateway price set {model} --list {list}{flags}",
                )
            }
            Zeros::Others(fields) => {
                let fields = fields.join(", ");
                said!(
                    language(),
                    en: "if it is free, import it in the form of `gateway price export`: {fields}",
                    zh: "如果免费，请以 `gateway price export` 的形式导入：{fields}",
                )
            }
        }
    }
}

fn zeros(kind: Kind, fields: &Fields) -> Vec<Zeros> {
    let (mut classes, mut others) = (BTreeSet::new(), Vec::new());
    for (field, rate) in fields {
        let Some(Name { class, above, tier }) = parse_name(field) else {
            continue;
        };
        if per_million(rate.get()) != Ok(Rate::ZERO) || (kind == Kind::Embedding && class == Class::Output) {
            continue;
        }
        match (above, tier) {
            (None, None) => drop(classes.insert(class)),
            _ => others.push(field.clone()),
        }
    }
    let classes = (!classes.is_empty()).then_some(Zeros::Classes(classes));
    let others = (!others.is_empty()).then_some(Zeros::Others(others));
    classes.into_iter().chain(others).collect()
}

/// A field's name taken apart: class, long-context threshold, tier.
struct Name {
    class: Class,
    above: Option<u64>,
    tier: Option<Tier>,
}

fn parse_name(name: &str) -> Option<Name> {
    let (rest, tier) = TIERS
        .iter()
        .find_map(|(suffix, tier)| Some((name.strip_suffix(suffix)?, Some(*tier))))
        .unwrap_or((name, None));
    let threshold = |rest: &str| -> Option<(usize, u64)> {
        let (before, thousands) = rest.strip_suffix("k_tokens")?.rsplit_once("_above_")?;
        Some((before.len(), thousands.parse::<u64>().ok()?.checked_mul(1_000)?))
    };
    let (rest, above) = match threshold(rest) {
        Some((end, above)) => (&rest[..end], Some(above)),
        None => (rest, None),
    };
    let class = CLASSES.iter().find(|(known, _)| *known == rest)?.1;
    Some(Name { class, above, tier })
}

fn price(kind: Kind, fields: &Fields) -> Result<Price, LeftOut> {
    let mut cards: BTreeMap<Option<Tier>, (Rates, BTreeMap<u64, Rates>)> = BTreeMap::new();
    for (name, value) in fields {
        let value = value.get();
        if value == "null" || !(name.contains("cost") || name == "tiered_pricing") {
            continue;
        }
        let Some(parsed) = parse_name(name) else {
            if HARMLESS.iter().any(|part| name.contains(part)) || costs_like_text(name, value, fields) {
                continue;
            }
            return Err(LeftOut::NoClass(name.clone()));
        };
        let rate = per_million(value).map_err(|why| LeftOut::Cost(name.clone(), why))?;
        if rate == Rate::ZERO {
            // Only an operator may say that something is free.
            continue;
        }
        let card = cards.entry(parsed.tier).or_default();
        let rates = match parsed.above {
            None => &mut card.0,
            Some(above) => card.1.entry(above).or_default(),
        };
        rates.insert(parsed.class, rate);
    }
    let (rates, steps) = cards.remove(&None).unwrap_or_default();
    let tiers = cards.into_iter().filter_map(|(tier, (rates, steps))| {
        let tier = tier.filter(|_| rates.contains_key(&Class::Input))?;
        Some((
            tier,
            Card {
                rates,
                steps: ascending(steps),
            },
        ))
    });
    let made = Price {
        kind,
        steps: ascending(steps),
        rates,
        tiers: tiers.collect(),
        max_input: count(fields, "max_input_tokens"),
        max_output: count(fields, "max_output_tokens").filter(|_| kind == Kind::Text),
        ..Price::free()
    };
    let made = Price {
        fees: Rates::new(),
        ..made
    };
    Price::from_json(&made.to_json()).map_err(LeftOut::Price)
}

/// Whether a cost of pictures or films is that of text.
fn costs_like_text(name: &str, value: &str, fields: &Fields) -> bool {
    LIKE_TEXT.iter().any(|unit| {
        let text = fields.get(&name.replace(unit, "_per_token"));
        name.contains(unit) && text.is_some_and(|text| per_million(text.get()) == per_million(value))
    })
}

fn ascending(steps: BTreeMap<u64, Rates>) -> Vec<Step> {
    steps.into_iter().map(|(above, rates)| Step { above, rates }).collect()
}

fn count(fields: &Fields, name: &str) -> Option<u32> {
    fields.get(name)?.get().parse().ok().filter(|count| *count > 0)
}

/// Dollars per token, as the JSON text has it (`1.25e-06`), to dollars per million tokens, exactly.
fn per_million(number: &str) -> Result<Rate, NotARate> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let none = || NotARate::Number(number.to_owned());
    let exponent: i32 = exponent.parse().map_err(|_| none())?;
    let mantissa = Decimal::from_str_exact(mantissa).map_err(|_| none())?;
    let shifted = shift(mantissa, exponent.saturating_add(6)).ok_or_else(|| NotARate::Range(number.to_owned()))?;
    Rate::parse(&shifted.normalize().to_string()).map_err(NotARate::Rate)
}

/// `value × 10^places`, exactly, or `None`.
fn shift(value: Decimal, places: i32) -> Option<Decimal> {
    let scale = i64::from(value.scale()) - i64::from(places);
    match u32::try_from(scale) {
        Ok(scale) => Decimal::try_from_i128_with_scale(value.mantissa(), scale).ok(),
        Err(_) => {
            let factor = 10_i128.checked_pow(u32::try_from(-scale).ok()?)?;
            Decimal::try_from_i128_with_scale(value.mantissa().checked_mul(factor)?, 0).ok()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(text: &str) -> Result<String, NotARate> {
        per_million(text).map(|rate| rate.to_string())
    }

    #[test]
    fn a_cost_per_token_is_read_to_the_last_digit() {
        for (text, dollars) in [
            ("1.25e-06", "1.25"),
            ("2.5E-6", "2.5"),
            ("0.00000015", "0.15"),
            ("0", "0"),
            ("0.0", "0"),
            ("1e-15", "0.000000001"),
            ("3.0000000000000001e-7", "finer"),
        ] {
            match dollars {
                "finer" => assert!(rate(text).is_err(), "{text}"),
                _ => assert_eq!(rate(text), Ok(dollars.to_owned()), "{text}"),
            }
        }
        for wrong in ["\"1\"", "-1e-6", "1e99999999999", "1e40", "{}", "NaN"] {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tiers_and_long_context_are_part_of_the_price() {
        let text = r#"{"sample_spec":{"mode":"x"},
          "gpt-x":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":2e-06,"output_cost_per_token":1e-05,
            "cache_read_input_token_cost":1e-07,"input_cost_per_token_flex":1e-06,"output_cost_per_token_flex":5e-06,
            "cache_creation_input_token_cost_above_12hr":5e-06,"cache_creation_input_token_cost_above_1hr":9e-06,
            "cache_creation_input_token_cost_above_12hr_above_272k_tokens":1e-05,
            "input_cost_per_token_above_272k_tokens":4e-06,"output_cost_per_token_above_272k_tokens":1.5e-05,
            "max_input_tokens":922000,"max_output_tokens":128000,"search_context_cost_per_query":{"a":0.1}}}"#;
        let read = read(text).expect("a map");
        assert!(read.left_out.is_empty(), "{:?}", read.left_out);
        let (list, model, price) = &read.prices[0];
        assert_eq!((list.as_str(), model.as_str()), ("openai", "gpt-x"));
        assert_eq!(
            price.to_json(),
            r#"{"kind":"text","rates":{"input":"2","cached_input":"0.1","cache_write_12h":"5","output":"10"},"steps":[{"above":272000,"rates":{"input":"4","cache_write_12h":"10","output":"15"}}],"tiers":{"flex":{"rates":{"input":"1","output":"5"}}},"max_input":922000,"max_output":128000}"#
        );
    }

    #[test]
    fn pictures_that_cost_what_text_costs_are_no_hindrance() {
        let text = r#"{"xai/m":{"litellm_provider":"xai","mode":"chat","input_cost_per_token":1.25e-06,"output_cost_per_token":2.5e-06,
            "input_cost_per_image_token":0.00000125,"input_cost_per_image_token_flex":1e-6,"input_cost_per_token_flex":1e-6}}"#;
        let read = read(text).expect("a map");
        assert_eq!((read.prices.len(), read.left_out.as_slice()), (1, [].as_slice()));
    }

    #[test]
    fn what_cannot_be_expressed_is_left_out_with_its_reason() {
        let text = r#"{
          "a":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":1e-6,"output_cost_per_token":1e-6,"output_cost_per_thought":1e-6},
          "b":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":0.0,"output_cost_per_token":0.0},
          "c":{"litellm_provider":"dashscope","mode":"chat","tiered_pricing":[{"range":[0,1]}]},
          "xai/d":{"litellm_provider":"xai","mode":"chat","input_cost_per_token":1e-6,"output_cost_per_token":1e-6},
          "d":{"litellm_provider":"xai","mode":"chat","input_cost_per_token":2e-6,"output_cost_per_token":1e-6},
          "e":{"litellm_provider":"azure","mode":"chat","input_cost_per_token":2e-6,"output_cost_per_token":1e-6},
          "o4-deep-research":{"litellm_provider":"openai","mode":"responses","input_cost_per_token":2e-6,"output_cost_per_token":1e-6},
          "it's":{"litellm_provider":"groq","mode":"chat","input_cost_per_token":0,"output_cost_per_token_flex":0,
            "output_cost_per_token":1e-6,"input_cost_per_token_above_272k_tokens":0e0},
          "f":{"litellm_provider":"openai","mode":"image_generation","input_cost_per_token":2e-6},
          "g":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":-1e-6,"output_cost_per_token":1e-6},
          "h":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":1e-6,"output_cost_per_token":1.0000000001e-6},
          "i":{"litellm_provider":"gemini","mode":"embedding","input_cost_per_token":2e-7,"input_cost_per_image_token":4.5e-7},
          "j":{"litellm_provider":"gemini","mode":"chat","input_cost_per_token":2e-7,"output_cost_per_token":1e-6,"input_cost_per_second":1e-3},
          "k":{"litellm_provider":"openai","mode":"chat","output_cost_per_token":1e-6},
          "l":{"litellm_provider":"openai","input_cost_per_token":1e-6,"output_cost_per_token":1e-6}}"#;
        let read = read(text).expect("a map");
        assert!(read.prices.is_empty(), "{:?}", read.prices);
        let names: Vec<&str> = read.left_out.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                "a",
                "b",
                "c",
                "g",
                "h",
                "i",
                "it's",
                "j",
                "k",
                "l",
                "o4-deep-research",
                "xai/d"
            ]
        );
        let zeros: Vec<&str> = read.zeros.iter().map(|(_, note)| &**note).collect();
        assert_eq!(
            zeros,
            [
                "the zero of b is not taken over; if it is free: gateway price set b --list openai --input 0 --output 0",
                r"the zero of it's is not taken over; if it is free: gateway price set 'it'\''s' --list groq --input 0",
                "the zero of it's is not taken over; if it is free, import it in the form of `gateway price export`: \
                 input_cost_per_token_above_272k_tokens, output_cost_per_token_flex",
            ]
        );
    }
}
