//! LiteLLM's price map to prices: exact decimals from the JSON text, and a reason for every model that is left out.

use std::collections::{BTreeMap, BTreeSet};

use rust_decimal::Decimal;
use serde_json::value::RawValue;

use crate::cli::output;
use crate::pricing::{Card, Class, Kind, ListName, Price, Rate, Rates, Step};
use crate::usage::Tier;

/// What was read from a map.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// List, model and price.
    pub(super) prices: Vec<(ListName, String, Price)>,
    /// Models left out, and why.
    pub(super) left_out: Vec<(String, String)>,
    /// List, and what is said of a zero that is not taken over.
    pub(super) zeros: Vec<(ListName, String)>,
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
const HARMLESS: [&str; 12] = [
    "image",
    "pixel",
    "video",
    "_query",
    "_page",
    "_session",
    "_1k_calls",
    "_gb_per_day",
    "above_1hr",
    "audio_token_cost",
    "_per_second",
    "_per_character",
];

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
pub(super) fn read(text: &str) -> Result<Read, String> {
    let models: BTreeMap<String, Fields> =
        serde_json::from_str(text).map_err(|error| format!("not a map of models to prices: {error}"))?;
    let mut read = Read::default();
    let mut ours: BTreeMap<(ListName, String), Price> = BTreeMap::new();
    for (key, fields) in models.iter().filter(|(key, _)| *key != "sample_spec") {
        let Some((list, kind)) = list_and_kind(fields) else {
            continue;
        };
        let model = key.strip_prefix(&format!("{list}/")).unwrap_or(key).to_owned();
        let made = if searches_by_itself(&list, &model, fields) {
            Err("it searches by itself, for a fee that is not in its tokens".to_owned())
        } else {
            price(kind, fields)
        };
        let note = |zero: Zeros| {
            (
                list.clone(),
                format!(
                    "the zero of {key} is not taken over; {}",
                    zero.what_to_do(&list, &model)
                ),
            )
        };
        read.zeros.extend(zeros(kind, fields).into_iter().map(note));
        match made {
            Err(why) => read.left_out.push((key.clone(), why)),
            Ok(price) => match ours.insert((list, model), price.clone()) {
                Some(other) if other != price => read
                    .left_out
                    .push((key.clone(), "there twice, with another price".into())),
                _ => {}
            },
        }
    }
    let twice = |list: &ListName, model: &str| {
        let prefixed = format!("{list}/{model}");
        read.left_out
            .iter()
            .any(|(key, why)| (key == model || *key == prefixed) && why.starts_with("there twice"))
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

fn list_and_kind(fields: &Fields) -> Option<(ListName, Kind)> {
    let provider = string(fields, "litellm_provider")?;
    let provider = match provider.as_str() {
        "text-completion-openai" => "openai",
        other => PROVIDERS.into_iter().find(|known| *known == other)?,
    };
    let kind = match string(fields, "mode")?.as_str() {
        "chat" | "responses" | "completion" => Kind::Text,
        "embedding" => Kind::Embedding,
        _ => return None,
    };
    Some((ListName::parse(provider).ok()?, kind))
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
    fn what_to_do(&self, list: &ListName, model: &str) -> String {
        match self {
            Zeros::Classes(classes) => {
                let flag = |class: &Class| format!(" --{} 0", class.name().replace('_', "-"));
                let (model, flags) = (output::shell_word(model), classes.iter().map(flag).collect::<String>());
                format!("if it is free: gateway price set {model} --list {list}{flags}")
            }
            Zeros::Others(fields) => format!(
                "if it is free, import it in the form of `gateway price export`: {}",
                fields.join(", ")
            ),
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

fn price(kind: Kind, fields: &Fields) -> Result<Price, String> {
    let mut cards: BTreeMap<Option<Tier>, (Rates, BTreeMap<u64, Rates>)> = BTreeMap::new();
    for (name, value) in fields {
        let value = value.get();
        if value == "null" || !(name.contains("cost") || name == "tiered_pricing") {
            continue;
        }
        let Some(parsed) = parse_name(name) else {
            if HARMLESS.iter().any(|part| name.contains(part)) {
                continue;
            }
            return Err(format!("`{name}` has no class here"));
        };
        let rate = per_million(value).map_err(|why| format!("{name}: {why}"))?;
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
    Price::from_json(&made.to_json()).map_err(|error| error.to_string())
}

fn ascending(steps: BTreeMap<u64, Rates>) -> Vec<Step> {
    steps.into_iter().map(|(above, rates)| Step { above, rates }).collect()
}

fn count(fields: &Fields, name: &str) -> Option<u32> {
    fields.get(name)?.get().parse().ok().filter(|count| *count > 0)
}

/// Dollars per token, as the JSON text has it (`1.25e-06`), to dollars per million tokens, exactly.
fn per_million(number: &str) -> Result<Rate, String> {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let exponent: i32 = exponent.parse().map_err(|_| format!("{number} is no number"))?;
    let mantissa = Decimal::from_str_exact(mantissa).map_err(|_| format!("{number} is no number"))?;
    let shifted = shift(mantissa, exponent.saturating_add(6)).ok_or_else(|| format!("{number} is out of range"))?;
    Rate::parse(&shifted.normalize().to_string()).map_err(|error| error.to_string())
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

    fn rate(text: &str) -> Result<String, String> {
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
          "f":{"litellm_provider":"openai","mode":"image_generation","input_cost_per_token":2e-6}}"#;
        let read = read(text).expect("a map");
        assert!(read.prices.is_empty(), "{:?}", read.prices);
        let names: Vec<&str> = read.left_out.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c", "it's", "o4-deep-research", "xai/d"]);
        let zeros: Vec<&str> = read.zeros.iter().map(|(_, note)| note.as_str()).collect();
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
