//! Prices: usage to money by exact arithmetic, rounded once; the lines of a receipt.
//!
//! A [`Price`] is read from JSON, the same in the binary's catalogue and in the database:
//!
//! ```json
//! {"kind":"text","rates":{"input":"2","cached_input":"0.1","output":"10"},
//!  "steps":[{"above":272000,"rates":{"input":"4","cached_input":"0.2","output":"15"}}],
//!  "tiers":{"flex":{"rates":{"input":"1","output":"5"}}},
//!  "off_peak":{"windows":[{"days":[6,7],"hours":["00:00-00:00"]}],"rates":{"input":"1","output":"5"}},
//!  "regional_uplift":"1.1","fees":{"web_search":"10"},"max_input":922000,"max_output":128000}
//! ```
//!
//! Rates are dollars per million tokens (`seconds` and `characters`: of these), fees dollars per thousand calls. A step prices the *whole* call once its
//! input is above the threshold. A class without a rate falls back as its vendor documents it: a tier to the standard
//! tier, cached and written input to input, audio and reasoning to the plain class.

mod catalogue;
mod recount;
mod units;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::money::Usd;
use crate::usage::{Tier, Tokens, Usage};

pub use catalogue::{CATALOGUE, CatalogueRow, catalogue};
pub use recount::{Counted, charged, miscounted, recompute};
pub use units::{Class, Exact, Factor, ListName, PriceError, Rate};
use units::{ONE, exact_usd};

/// Rates by class.
pub type Rates = BTreeMap<Class, Rate>;

/// Rates that price a whole call once its input is above a threshold: long context, input steps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The call's input is more than this, in tokens.
    pub above: u64,
    /// What it then costs.
    pub rates: Rates,
}

/// The rates of one tier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// By class.
    pub rates: Rates,
    /// By size of the input, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
}

impl Card {
    fn step(&self, input: Tokens) -> Option<&Rates> {
        self.steps
            .iter()
            .rev()
            .find(|step| input.get() > step.above)
            .map(|step| &step.rates)
    }
}

/// Cheaper hours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OffPeak {
    /// When.
    pub windows: Vec<Window>,
    /// What is cheaper then.
    pub rates: Rates,
}

/// Hours of some weekdays, UTC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// 1 = Monday … 7 = Sunday.
    pub days: Vec<i8>,
    /// `HH:MM-HH:MM`, the end excluded; an end of `00:00` is midnight after.
    pub hours: Vec<String>,
}

impl Window {
    fn contains(&self, at: Timestamp) -> bool {
        let at = at.to_zoned_datetime(TimeZone::UTC);
        let minute = i32::from(at.hour()) * 60 + i32::from(at.minute());
        self.days.contains(&at.weekday().to_monday_one_offset())
            && self
                .hours
                .iter()
                .filter_map(|hours| span(hours))
                .any(|(from, to)| from <= minute && minute < to)
    }
}

/// `HH:MM-HH:MM` as minutes of the day.
fn span(hours: &str) -> Option<(i32, i32)> {
    let minute = |text: &str| -> Option<i32> {
        let (hour, minute) = text.split_once(':')?;
        let (hour, minute): (i32, i32) = (hour.parse().ok()?, minute.parse().ok()?);
        ((0..24).contains(&hour) && (0..60).contains(&minute)).then_some(hour * 60 + minute)
    };
    let (from, to) = hours.split_once('-')?;
    let (from, to) = (minute(from)?, minute(to)?);
    Some((from, if to == 0 { 24 * 60 } else { to }))
}

/// What a model is priced for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Chat, responses, completions.
    Text,
    /// Embeddings: nothing is generated.
    Embedding,
    /// Images: by an endpoint of its own, or behind the `image_generation` tool.
    Image,
    /// Hears a recording: by the token, or by the second.
    Transcription,
    /// Speaks: by the token, or by the character.
    Speech,
}

impl Kind {
    /// The name in JSON documents.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Text => "text",
            Kind::Embedding => "embedding",
            Kind::Image => "image",
            Kind::Transcription => "transcription",
            Kind::Speech => "speech",
        }
    }
}

/// All rates of a model in one list from a date on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// What it is for.
    pub kind: Kind,
    /// The standard tier, by class.
    pub rates: Rates,
    /// The standard tier, by size of the input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// The other tiers.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tiers: BTreeMap<Tier, Card>,
    /// Cheaper hours of the standard tier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub off_peak: Option<OffPeak>,
    /// On tokens, at an upstream whose region carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub regional_uplift: Option<Factor>,
    /// Hosted tools, dollars per thousand calls.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fees: Rates,
    /// Tokens that fit into the model, read and generated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub context_window: Option<u32>,
    /// The largest input the model takes, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input: Option<u32>,
    /// The longest answer of the model, in tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_output: Option<u32>,
}

impl Price {
    /// Reads the JSON that the catalogue and the database hold, and checks that it can price every call of its kind.
    pub fn from_json(text: &str) -> Result<Price, PriceError> {
        let mut price: Price = serde_json::from_str(text).map_err(|e| PriceError::Unreadable(e.to_string()))?;
        price.steps.sort_by_key(|step| step.above);
        for card in price.tiers.values_mut() {
            card.steps.sort_by_key(|step| step.above);
        }
        price.check()?;
        Ok(price)
    }

    /// The JSON that [`Price::from_json`] reads.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Everything at zero, for an upstream whose `prices = "free"`.
    pub fn free() -> Price {
        let zero = |class: Class| (class, Rate::ZERO);
        Price {
            kind: Kind::Text,
            rates: [
                Class::Input,
                Class::Output,
                Class::ImageTextInput,
                Class::ImageOutput,
                Class::Seconds,
                Class::Characters,
            ]
            .map(zero)
            .into(),
            steps: Vec::new(),
            tiers: BTreeMap::new(),
            off_peak: None,
            regional_uplift: None,
            fees: [Class::WebSearch, Class::FileSearch, Class::Container].map(zero).into(),
            context_window: None,
            max_input: None,
            max_output: None,
        }
    }

    fn check(&self) -> Result<(), PriceError> {
        let wanted: &[Class] = match self.kind {
            Kind::Text => &[Class::Input, Class::Output],
            Kind::Embedding => &[Class::Input],
            Kind::Image => &[Class::ImageTextInput, Class::ImageOutput],
            Kind::Transcription if self.rates.contains_key(&Class::Seconds) => &[],
            Kind::Speech if self.rates.contains_key(&Class::Characters) => &[],
            Kind::Transcription | Kind::Speech => &[Class::Input, Class::Output],
        };
        for class in wanted {
            if !self.rates.contains_key(class) {
                return Err(PriceError::NoRate(*class));
            }
        }
        let hours = self
            .off_peak
            .iter()
            .flat_map(|off| &off.windows)
            .flat_map(|window| &window.hours);
        if let Some(wrong) = hours.into_iter().find(|hours| span(hours).is_none()) {
            return Err(PriceError::Hours(wrong.clone()));
        }
        for class in self.fees.keys() {
            if !class.is_fee() {
                return Err(PriceError::NotAFee(*class));
            }
        }
        self.fees.values().try_for_each(|fee| fee.per_thousand().map(drop))
    }

    /// The rate of a class, at a tier, for an input of a size, at a time.
    fn rate(&self, class: Class, at: &At) -> Option<Rate> {
        if class.is_fee() {
            let fee = self.fees.get(&class).and_then(|fee| fee.per_thousand().ok());
            return fee.or_else(|| class.fallback().and_then(|class| self.rate(class, at)));
        }
        let tier = self.tiers.get(&at.tier);
        let step = tier
            .and_then(|card| card.step(at.input))
            .or_else(|| self.step(at.input));
        // A tier without steps of its own has no rates for a long input: the standard ones hold then.
        let own = match (tier, step) {
            (Some(card), None) => Some(&card.rates),
            _ => step,
        };
        let off_peak = self.off_peak.as_ref().filter(|off| {
            at.tier == Tier::Standard && step.is_none() && off.windows.iter().any(|window| window.contains(at.time))
        });
        let standard = self.step(at.input).unwrap_or(&self.rates);
        off_peak
            .and_then(|off| off.rates.get(&class))
            .or_else(|| own.and_then(|rates| rates.get(&class)))
            .or_else(|| standard.get(&class))
            .copied()
            .or_else(|| class.fallback().and_then(|class| self.rate(class, at)))
    }

    fn step(&self, input: Tokens) -> Option<&Rates> {
        self.steps
            .iter()
            .rev()
            .find(|step| input.get() > step.above)
            .map(|step| &step.rates)
    }

    /// Sizes of input up to a bound, one at least for each price of one of them: the largest that has it.
    fn sizes_up_to(&self, bound: Tokens) -> impl Iterator<Item = Tokens> {
        let steps = self
            .steps
            .iter()
            .chain(self.tiers.values().flat_map(|card| &card.steps));
        let ends = steps.map(|step| step.above).filter(move |end| *end < bound.get());
        ends.map(Tokens::saturating).chain([bound])
    }

    /// The input above which the call gets dearer, if there is such a size.
    pub fn first_step(&self) -> Option<Tokens> {
        self.steps.first().map(|step| Tokens::saturating(step.above))
    }
}

/// Where in a price a call stands.
struct At {
    tier: Tier,
    input: Tokens,
    time: Timestamp,
}

/// Which fee a web search costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SearchTool {
    /// `web_search`.
    #[default]
    Current,
    /// `web_search_preview`.
    Preview,
}

/// Everything a bill depends on besides the usage.
#[derive(Clone, Debug)]
pub struct Terms<'a> {
    /// The model's price.
    pub price: &'a Price,
    /// The image model's price, when the call may use `image_generation`.
    pub image_price: Option<&'a Price>,
    /// Which fee a web search costs.
    pub search: SearchTool,
    /// The tier that worked.
    pub tier: Tier,
    /// The upstream's region, when it has one: it may carry an uplift.
    pub region: Option<&'a str>,
    /// What the user pays per dollar of cost.
    pub markup: Factor,
    /// When the call was admitted: prices may depend on the hour.
    pub at: Timestamp,
}

impl Terms<'_> {
    /// The regional uplift, when it applies.
    pub fn uplift(&self) -> Option<Factor> {
        self.region.and(self.price.regional_uplift)
    }

    /// What one unit of a class costs the user, exactly.
    fn unit(&self, class: Class, rate: Rate) -> Exact {
        let uplift = match class.is_lifted() {
            true => self.uplift().map_or(ONE, |factor| factor.0),
            false => ONE,
        };
        Exact(i128::from(rate.0) * i128::from(uplift) * i128::from(self.markup.0))
    }

    /// The dearest that one token of some classes may cost the user, for any input up to a bound. An upstream may
    /// serve a cheaper tier at the standard one, never at a dearer one than was asked for.
    pub fn dearest(&self, classes: &[Class], bound: Tokens) -> Exact {
        let mut dearest = Exact::ZERO;
        let tiers: &[Tier] = match self.tier {
            Tier::Standard => &[Tier::Standard],
            _ => &[self.tier, Tier::Standard],
        };
        for input in self.price.sizes_up_to(bound) {
            for tier in tiers {
                let at = At {
                    tier: *tier,
                    input,
                    time: self.at,
                };
                let units = classes
                    .iter()
                    .filter_map(|class| Some(self.unit(*class, self.price.rate(*class, &at)?)));
                dearest = units.fold(dearest, Exact::max);
            }
        }
        dearest
    }

    /// What one call of a hosted tool costs the user; `None` when the price has no fee for it.
    pub fn fee(&self, class: Class) -> Option<Exact> {
        let at = At {
            tier: Tier::Standard,
            input: Tokens::ZERO,
            time: self.at,
        };
        self.price.rate(class, &at).map(|rate| self.unit(class, rate))
    }
}

/// The prices a call is billed by, as they were when it was admitted.
#[derive(Clone, Debug, PartialEq)]
pub struct Priced {
    /// The list; `None`: free.
    pub list: Option<ListName>,
    /// In force since.
    pub from: Option<Timestamp>,
    /// The model's price.
    pub price: Arc<Price>,
    /// The image model's, when the call may use `image_generation`.
    pub image_price: Option<Arc<Price>>,
    /// Which fee a web search costs.
    pub search: SearchTool,
    /// The upstream's region.
    pub region: Option<String>,
    /// The operator's markup.
    pub markup: Factor,
    /// When the call was admitted.
    pub at: Timestamp,
}

impl Priced {
    /// The terms at a tier.
    pub fn terms(&self, tier: Tier) -> Terms<'_> {
        Terms {
            price: &self.price,
            image_price: self.image_price.as_deref(),
            search: self.search,
            tier,
            region: self.region.as_deref(),
            markup: self.markup,
            at: self.at,
        }
    }
}

/// One line of a receipt: `quantity × rate` of one class.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// What was used.
    pub class: Class,
    /// How much of it: tokens, or calls.
    pub quantity: u64,
    /// Dollars per million units, exact.
    pub rate: String,
    /// Dollars, exact, before uplift and markup.
    pub amount: String,
}

/// What a usage costs and is charged at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bill {
    /// How it came about.
    pub lines: Vec<Line>,
    /// By the price list, with the regional uplift, rounded to the nano-dollar.
    pub cost: Usd,
    /// With markup, rounded once from the exact amount.
    pub charge: Usd,
    /// What was used and has no rate: a tool nobody declared, an embedding that generates.
    pub unpriced: Vec<Class>,
}

impl Bill {
    /// Of what cost nothing.
    pub fn nothing() -> Bill {
        Bill {
            lines: Vec::new(),
            cost: Usd::ZERO,
            charge: Usd::ZERO,
            unpriced: Vec::new(),
        }
    }
}

/// Usage to money. What was used without a rate costs nothing and is named. Fails when the amount does not fit.
pub fn bill(usage: &Usage, terms: &Terms<'_>) -> Result<Bill, PriceError> {
    let too_large = || PriceError::TooLarge;
    let at = At {
        tier: terms.tier,
        input: usage.input_tokens,
        time: terms.at,
    };
    let at_cost = Terms {
        markup: Factor::ONE,
        ..terms.clone()
    };
    let (mut lines, mut unpriced) = (Vec::new(), Vec::new());
    let (mut cost, mut charge) = (Exact::ZERO, Exact::ZERO);
    for (class, quantity) in quantities(usage, terms) {
        let price = if class.is_image() {
            terms.image_price.unwrap_or(terms.price)
        } else {
            terms.price
        };
        let Some(rate) = price.rate(class, &at) else {
            unpriced.push(class);
            continue;
        };
        let add = |sum: Exact, unit: Exact| {
            unit.times(quantity)
                .and_then(|amount| sum.plus(amount))
                .ok_or_else(too_large)
        };
        cost = add(cost, at_cost.unit(class, rate))?;
        charge = add(charge, terms.unit(class, rate))?;
        lines.push(line(class, quantity, rate));
    }
    let (cost, charge) = (
        cost.round().ok_or_else(too_large)?,
        charge.round().ok_or_else(too_large)?,
    );
    Ok(Bill {
        lines,
        cost,
        charge,
        unpriced,
    })
}

fn line(class: Class, quantity: u64, rate: Rate) -> Line {
    let amount = exact_usd(i128::from(quantity) * i128::from(rate.0));
    Line {
        class,
        quantity,
        rate: rate.to_string(),
        amount,
    }
}

/// The tokens that were used, each once by what it was, whatever it is billed as.
pub fn tokens(usage: &Usage) -> impl Iterator<Item = (Class, u64)> {
    by_class(usage, usage.reasoning_tokens.get(), Class::WebSearch).filter(|(class, _)| class.is_token())
}

/// What was used, by the class it is billed as: every token once.
fn quantities(usage: &Usage, terms: &Terms<'_>) -> impl Iterator<Item = (Class, u64)> {
    let reasoning = match terms.price.rates.contains_key(&Class::ReasoningOutput) {
        true => usage.reasoning_tokens.get(),
        false => 0,
    };
    let search = match terms.search {
        SearchTool::Current => Class::WebSearch,
        SearchTool::Preview => Class::WebSearchPreview,
    };
    by_class(usage, reasoning, search)
}

/// What was used, with so much of the output as reasoning of its own class, and searches as this one.
fn by_class(usage: &Usage, reasoning: u64, search: Class) -> impl Iterator<Item = (Class, u64)> {
    let details = usage.cached_tokens.get()
        + usage.cache_write_tokens.get()
        + usage.cache_write_12h_tokens.get()
        + usage.audio_input_tokens.get();
    let images = usage.tools.image_gen.clone().unwrap_or_default();
    [
        (Class::Input, usage.input_tokens.get().saturating_sub(details)),
        (Class::CachedInput, usage.cached_tokens.get()),
        (Class::CacheWrite, usage.cache_write_tokens.get()),
        (Class::CacheWrite12h, usage.cache_write_12h_tokens.get()),
        (Class::AudioInput, usage.audio_input_tokens.get()),
        (
            Class::Output,
            usage
                .output_tokens
                .get()
                .saturating_sub(usage.audio_output_tokens.get() + reasoning),
        ),
        (Class::ReasoningOutput, reasoning),
        (Class::AudioOutput, usage.audio_output_tokens.get()),
        (search, u64::from(usage.tools.web_searches)),
        (Class::FileSearch, u64::from(usage.tools.file_searches)),
        (Class::Container, u64::from(usage.tools.containers)),
        (Class::ImageTextInput, images.text_input_tokens.get()),
        (Class::ImageInput, images.image_input_tokens.get()),
        (Class::ImageTextOutput, images.text_output_tokens.get()),
        (Class::ImageOutput, images.image_output_tokens.get()),
        (Class::Seconds, u64::from(usage.seconds)),
        (Class::Characters, u64::from(usage.characters)),
    ]
    .into_iter()
    .filter(|(_, quantity)| *quantity > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::usage::{Dialect, ToolUsage};
    use serde_json::Value;

    fn price(list: &str, model: &str) -> Price {
        let (_, rows) = catalogue().expect("the catalogue parses");
        let row = rows
            .into_iter()
            .find(|row| row.list.as_str() == list && row.model == model);
        Price::from_json(&row.unwrap_or_else(|| panic!("{model} is in the catalogue")).price).expect("a price")
    }

    fn terms(price: &Price) -> Terms<'_> {
        Terms {
            price,
            image_price: None,
            search: SearchTool::Current,
            tier: Tier::Standard,
            region: None,
            markup: Factor::ONE,
            at: "2026-11-23T08:00:00Z".parse().expect("a time"),
        }
    }

    fn flat(input: &str, output: &str) -> Price {
        Price::from_json(&format!(
            r#"{{"kind":"text","rates":{{"input":"{input}","output":"{output}"}}}}"#
        ))
        .expect("a price")
    }

    fn used(input: u64, output: u64) -> Usage {
        Usage {
            input_tokens: Tokens::saturating(input),
            output_tokens: Tokens::saturating(output),
            ..Usage::default()
        }
    }

    #[test]
    fn every_price_of_the_catalogue_prices_its_kind() {
        let (as_of, rows) = catalogue().expect("the catalogue parses");
        assert_eq!(as_of, "2026-11-28");
        assert!(rows.len() > 350, "{}", rows.len());
        for row in rows {
            let price = Price::from_json(&row.price).unwrap_or_else(|e| panic!("{} {}: {e}", row.list, row.model));
            assert_eq!(Price::from_json(&price.to_json()), Ok(price.clone()), "{}", row.model);
            let zero = price
                .rates
                .values()
                .chain(price.tiers.values().flat_map(|card| card.rates.values()));
            assert!(
                zero.into_iter().all(|rate| *rate > Rate::ZERO),
                "{}: a vendor's zero is not taken over",
                row.model
            );
        }
    }

    #[test]
    fn golden_bills_of_these_endpoints_are_exact() {
        let golden: Value = serde_json::from_str(include_str!("../../tests/data/billing-golden.json")).expect("JSON");
        let mut checked = 0;
        for case in golden["cases"].as_array().expect("cases") {
            let text = |name: &str| case[name].as_str();
            let endpoint = text("endpoint").expect("an endpoint");
            if ![
                "/chat/completions",
                "/responses",
                "/completions",
                "/embeddings",
                "/batches",
            ]
            .iter()
            .any(|e| endpoint.ends_with(e))
            {
                continue;
            }
            let price = price(text("provider").expect("a provider"), text("model").expect("a model"));
            let mut usage = Usage::parse(&case["usage"], Dialect::OpenAi)
                .expect("a usage")
                .expect("not null");
            let count = |value: &Value| u32::try_from(value.as_u64().unwrap_or(0)).expect("small");
            usage.tools = ToolUsage {
                web_searches: count(&case["tool_usage"]["web_search"]["num_requests"]),
                file_searches: count(&case["output_items"]["file_search_call"]),
                containers: count(&case["output_items"]["distinct_container_ids"]),
                image_gen: None,
            };
            let mut terms = terms(&price);
            terms.tier = Tier::from_wire(text("response_service_tier"));
            if let Some(at) = text("time_utc") {
                terms.at = at.parse().expect("a time");
            }
            let bill = bill(&usage, &terms).expect("a bill");
            let cost: Usd = text("cost_usd").expect("a cost").parse().unwrap_or_else(|_| {
                // Finer than a nano-dollar: none of the cases has a remainder, so this would be news.
                panic!("{}: {:?} is finer than a nano-dollar", case["id"], case["cost_usd"])
            });
            assert_eq!((bill.cost, bill.charge), (cost, cost), "{}", case["id"]);
            assert_eq!(
                bill.lines.len(),
                case["lines"].as_array().expect("lines").len(),
                "{}",
                case["id"]
            );
            checked += 1;
        }
        println!("{checked} golden bills");
        assert!(checked >= 18, "{checked}");
    }

    /// Dearer above 1,000 tokens, in the standard tier and in one with steps of its own; cheapest above 1,001.
    const STEPPED: &str = r#"{"kind":"text","rates":{"input":"2","output":"1"},
        "steps":[{"above":1000,"rates":{"input":"9"}},{"above":1001,"rates":{"input":"1"}}],
        "tiers":{"flex":{"rates":{"input":"3"},"steps":[{"above":1000,"rates":{"input":"5"}}]}}}"#;

    #[test]
    fn a_step_is_for_inputs_above_it() {
        let price = Price::from_json(STEPPED).expect("a price");
        let charged = |tier, input: u64| {
            let terms = Terms { tier, ..terms(&price) };
            bill(&used(input, 0), &terms).expect("a bill").charge.nanos()
        };
        let standard = [1_000, 1_001, 1_002].map(|input| charged(Tier::Standard, input));
        assert_eq!(standard, [2_000_000, 9_009_000, 1_002_000]);
        let flex = [1_000, 1_001, 1_002].map(|input| charged(Tier::Flex, input));
        assert_eq!(flex, [3_000_000, 5_005_000, 5_010_000]);
        assert_eq!(price.first_step(), Some(Tokens::saturating(1_000)));
        assert_eq!(flat("1", "1").first_step(), None);
    }

    #[test]
    fn the_dearest_rate_is_that_of_any_size_up_to_the_bound() {
        let price = Price::from_json(STEPPED).expect("a price");
        let dearest = |bound| {
            let unit = terms(&price).dearest(&[Class::Input], Tokens::saturating(bound));
            unit.times(1_000_000).and_then(Exact::ceil)
        };
        let dollars = |dollars: i64| Some(Usd::from_nanos(dollars * 1_000_000_000));
        assert_eq!([0, 1_000, 1_001].map(dearest), [dollars(2), dollars(2), dollars(9)]);
        assert_eq!(dearest(5_000), dollars(9), "one size of input is as dear as that");
    }

    #[test]
    fn reasoning_and_audio_are_taken_out_of_the_output_where_they_have_rates() {
        let json = r#"{"kind":"text","rates":{"input":"1","output":"1","reasoning_output":"2","audio_output":"3"}}"#;
        let price = Price::from_json(json).expect("a price");
        let usage = Usage {
            reasoning_tokens: Tokens::saturating(20),
            audio_output_tokens: Tokens::saturating(30),
            ..used(0, 100)
        };
        let bill = bill(&usage, &terms(&price)).expect("a bill");
        let lines: Vec<_> = bill.lines.iter().map(|line| (line.class, line.quantity)).collect();
        let expected = [
            (Class::Output, 50),
            (Class::ReasoningOutput, 20),
            (Class::AudioOutput, 30),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn cheaper_hours_begin_and_end_on_the_minute() {
        let window = Window {
            days: vec![1],
            hours: vec!["08:30-16:05".to_owned(), "23:59-00:00".to_owned()],
        };
        let contains = |time: &str| window.contains(format!("2026-11-23T{time}Z").parse().expect("a time"));
        for (time, inside) in [
            ("08:29:59", false),
            ("08:30:00", true),
            ("16:04:59", true),
            ("16:05:00", false),
            ("23:58:59", false),
            ("23:59:59", true),
        ] {
            assert_eq!(contains(time), inside, "{time}");
        }
        for no_time in ["24:30-01:00", "08:60-09:00", "-1:00-01:00", "08:00", "8-9"] {
            assert_eq!(span(no_time), None, "{no_time}");
        }
    }

    #[test]
    fn a_charge_is_rounded_once_to_the_nearest_nano_dollar_ties_up() {
        let charged = |rate: &str, tokens: u64, markup: &str| {
            let price = flat(rate, "0");
            let mut terms = terms(&price);
            terms.markup = Factor::parse(markup).expect("a factor");
            let bill = bill(&used(tokens, 0), &terms).expect("a bill");
            (bill.cost.nanos(), bill.charge.nanos())
        };
        assert_eq!(charged("0.0005", 1, "1"), (1, 1), "half a nano-dollar goes up");
        assert_eq!(charged("0.000499999", 1, "1"), (0, 0), "a little less goes down");
        assert_eq!(charged("0.0015", 1, "1"), (2, 2), "ties up, not to even");
        assert_eq!(charged("0.0025", 1, "1"), (3, 3), "ties up, not to even");
        assert_eq!(charged("0.000000001", 499_999, "1"), (0, 0), "tiny rates");
        assert_eq!(charged("0.000000001", 500_000, "1"), (1, 1), "tiny rates");
        assert_eq!(
            charged("0.0004", 1, "1.25"),
            (0, 1),
            "0.4 × 1.25 is rounded after the markup, not before"
        );
        assert_eq!(charged("0.0014", 1, "1.1"), (1, 2), "1.4 × 1.1 = 1.54");
        assert_eq!(
            charged("1", 1_000_000_000, "1000"),
            (1_000_000_000_000, 1_000_000_000_000_000)
        );
    }

    #[test]
    fn lines_show_every_token_once() {
        let price = price("openai", "gpt-6.1-sol");
        let tokens = Tokens::saturating;
        let usage = Usage {
            input_tokens: tokens(5000),
            cached_tokens: tokens(1000),
            cache_write_tokens: tokens(1997),
            cache_write_12h_tokens: tokens(2000),
            output_tokens: tokens(10),
            reasoning_tokens: tokens(9),
            ..Usage::default()
        };
        let bill = bill(&usage, &terms(&price)).expect("a bill");
        let shown: Vec<_> = bill
            .lines
            .iter()
            .map(|l| (l.class.name(), l.quantity, l.rate.as_str(), l.amount.as_str()))
            .collect();
        assert_eq!(
            shown,
            [
                ("input", 3, "2", "0.000006"),
                ("cached_input", 1000, "0.1", "0.0001"),
                ("cache_write", 1997, "2.5", "0.0049925"),
                ("cache_write_12h", 2000, "5", "0.01"),
                ("output", 10, "10", "0.0001"),
            ]
        );
        assert_eq!(bill.cost.to_string(), "0.0151985");
    }

    #[test]
    fn the_region_lifts_tokens_and_leaves_fees_alone() {
        let price = price("openai", "gpt-6.1-terra");
        let mut terms = terms(&price);
        let mut usage = used(1_000_000 / 4, 0);
        usage.tools.web_searches = 3;
        let plain = bill(&usage, &terms).expect("a bill").cost.nanos();
        terms.region = Some("eu");
        let lifted = bill(&usage, &terms).expect("a bill").cost.nanos();
        assert_eq!((plain - 30_000_000) / 10, lifted - plain);
    }

    #[test]
    fn off_peak_hours_are_read_in_utc() {
        let price = price("deepseek", "deepseek-v4-flash");
        let cost = |at: &str| {
            let mut terms = terms(&price);
            terms.at = at.parse().expect("a time");
            bill(&used(1_000_000, 0), &terms).expect("a bill").cost.to_string()
        };
        assert_eq!(cost("2026-11-23T08:00:00Z"), "0.3", "Monday, peak");
        assert_eq!(cost("2026-11-23T00:59:59Z"), "0.15", "Monday night");
        assert_eq!(cost("2026-11-23T01:00:00Z"), "0.3", "the end of a window is outside");
        assert_eq!(cost("2026-11-23T23:59:59Z"), "0.15", "until midnight");
        assert_eq!(cost("2026-11-28T08:00:00Z"), "0.15", "Saturday");
    }

    #[test]
    fn a_tier_without_a_rate_of_its_own_takes_the_standard_one() {
        let json = r#"{"kind":"text","rates":{"input":"2","cached_input":"1","output":"8"},
            "steps":[{"above":100,"rates":{"input":"4","output":"16"}}],"tiers":{"batch":{"rates":{"input":"1","output":"4"}}}}"#;
        let price = Price::from_json(json).expect("a price");
        let mut terms = terms(&price);
        terms.tier = Tier::Batch;
        let rates = |usage: &Usage| {
            bill(usage, &terms)
                .expect("a bill")
                .lines
                .iter()
                .map(|l| l.rate.clone())
                .collect::<Vec<_>>()
        };
        let mut usage = used(100, 1);
        usage.cached_tokens = Tokens::saturating(50);
        assert_eq!(
            rates(&usage),
            ["1", "1", "4"],
            "the batch card publishes no cached rate"
        );
        usage.input_tokens = Tokens::saturating(101);
        assert_eq!(
            rates(&usage),
            ["4", "4", "16"],
            "nor a long context; and the long one no cached rate"
        );
        terms.tier = Tier::Priority;
        assert_eq!(
            bill(&used(100, 1), &terms).expect("a bill").lines[0].rate,
            "2",
            "nor priority at all"
        );
    }

    #[test]
    fn a_price_that_cannot_price_its_kind_is_refused() {
        for (json, says) in [
            (r#"{"kind":"text","rates":{"input":"1"}}"#, "no rate for output"),
            (r#"{"kind":"text","rates":{"input":1,"output":"1"}}"#, "not a price"),
            (
                r#"{"kind":"text","rates":{"input":"-1","output":"1"}}"#,
                "not between 0 and 100000",
            ),
            (
                r#"{"kind":"text","rates":{"inputs":"1","output":"1"}}"#,
                "unknown variant",
            ),
            (
                r#"{"kind":"text","rates":{"input":"1","output":"1"},"fees":{"input":"1"}}"#,
                "not a fee",
            ),
        ] {
            let error = Price::from_json(json).expect_err(json).to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_receipt_recomputes_to_its_bill() {
        let price = Price::from_json(
            r#"{"kind":"text","rates":{"input":"2.5","cached_input":"0.25","output":"10.000000001"},
                "regional_uplift":"1.1","fees":{"web_search":"10"}}"#,
        )
        .expect("a price");
        let mut usage = used(1001, 77);
        usage.cached_tokens = Tokens::saturating(3);
        usage.tools.web_searches = 2;
        let terms = Terms {
            region: Some("eu"),
            markup: Factor::parse("1.037").expect("a factor"),
            ..terms(&price)
        };
        let bill = bill(&usage, &terms).expect("a bill");
        let uplift = terms.uplift().expect("one").to_string();
        let again = recompute(&bill.lines, Some(&uplift), &terms.markup.to_string());
        assert_eq!(again, Ok((bill.cost, bill.charge)));
        assert_eq!(miscounted(&bill.lines, &usage), Counted::default());
        let mut lines = bill.lines.clone();
        lines[0].quantity += 1;
        recompute(&lines, Some(&uplift), "1").expect_err("its amount is another");
        assert_eq!(miscounted(&lines, &usage).wrong, ["input"]);
        assert_eq!(
            miscounted(&bill.lines[..2], &usage).unpriced,
            ["output", "web searches"]
        );
    }

    #[test]
    fn names_of_classes_are_those_of_the_documents() {
        for class in Class::ALL {
            assert_eq!(serde_json::to_value(class).expect("JSON"), Value::from(class.name()));
        }
    }
}
