//! Holds: how much to set aside for a call before it is sent.
//!
//! [`quote`] turns what a call may use into money, before the transaction; [`size`] decides inside it, with the room
//! that it finds there. Whenever the usage stays within the bounds of the quote, the charge is at most the hold.

use crate::call::{HostedTools, Medium};
use crate::money::Usd;
use crate::pricing::{Class, Exact, SearchTool, Terms};
use crate::tokens;
use crate::usage::{CacheTtl, Tokens};

/// Below this the OpenAI API refuses a limit, and no answer fits.
pub const MIN_LIMIT: Tokens = Tokens::saturating(16);

/// Hosted tools may run this often when the call does not say (`max_tool_calls`): more than agents were seen to do
/// in one answer, and at $10 per thousand searches not much money.
const TOOL_CALLS: u32 = 20;

/// Tokens of one generated image at most, and of one read (high quality 1024² is 4,160; larger sizes double it).
const IMAGE_GEN_TOKENS: u64 = 16_000;

/// An answer is at most this long when neither the client nor the price says.
pub const MAX_OUTPUT: u32 = 128_000;

/// What a call may use at most.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Tokens the model reads, at most.
    pub input: Tokens,
    /// Tokens of a prediction that the model may reject: billed as output, beside the answer.
    pub rejected: Tokens,
    /// The output limit that the client stated, per choice.
    pub stated: Option<Tokens>,
    /// How long written cache may live.
    pub cache_ttl: CacheTtl,
    /// Answers generated and paid for.
    pub choices: u32,
    /// Tools the upstream may run.
    pub tools: &'a HostedTools,
    /// What is made or heard beside text.
    pub medium: Medium,
}

/// What a call may cost, as a function of how long its answer gets. After uplift and markup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quote {
    /// What the input and the fees may cost.
    pub input: Exact,
    /// What one token of output costs, in every choice.
    pub per_output_token: Exact,
    /// The output limit that the client stated, per choice.
    pub stated: Option<Tokens>,
    /// The longest answer the model gives, per choice.
    pub max_output: Tokens,
    /// How much of the room it may take where its limit is stated.
    pub of_room: OfRoom,
}

/// How much of the room a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfRoom {
    /// All of it.
    All,
    /// The share of it that one call may take whose cost is only bounded from afar: other calls need the rest.
    Share,
}

/// Why nobody can say what a call may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unquoted {
    /// A tool that may run has no fee.
    NoFee(Class),
    /// The image model of a tool that may run has no price.
    NoImagePrice(String),
    /// The answer, in the form that was asked for, does not tell what it used.
    Untold(Form),
    /// More than fits.
    TooLarge,
}

/// What decides the form of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `response_format` of a transcription or translation.
    Response,
    /// `stream_format` of speech.
    Stream,
}

/// Prices a call before it is made.
///
/// # Errors
/// A tool that may run has no price, or it would cost more than fits.
pub fn quote(ask: &Ask<'_>, terms: &Terms<'_>) -> Result<Quote, Unquoted> {
    let too_large = || Unquoted::TooLarge;
    if ask.medium != Medium::Text {
        return Ok(Quote {
            input: medium(ask, terms)?,
            per_output_token: Exact::ZERO,
            stated: Some(Tokens::ZERO),
            max_output: Tokens::MAX,
            of_room: OfRoom::All,
        });
    }
    let write = match ask.cache_ttl {
        CacheTtl::Minutes30 => Class::CacheWrite,
        CacheTtl::Hours12 => Class::CacheWrite12h,
    };
    let input_classes = [Class::Input, Class::CachedInput, write, Class::AudioInput];
    let output_classes = [Class::Output, Class::ReasoningOutput, Class::AudioOutput];
    let input = terms
        .dearest(&input_classes, ask.input)
        .times(ask.input.get())
        .ok_or_else(too_large)?;
    let fees = fees(ask.tools, terms)?;
    let output = terms.dearest(&output_classes, ask.input);
    let per_output = output.times(u64::from(ask.choices)).ok_or_else(too_large)?;
    let rejected = per_output.times(ask.rejected.get()).ok_or_else(too_large)?;
    let input = input
        .plus(fees)
        .and_then(|sum| sum.plus(rejected))
        .ok_or_else(too_large)?;
    Ok(Quote {
        input,
        per_output_token: per_output,
        stated: ask.stated,
        max_output: Tokens::saturating(u64::from(terms.price.max_output.unwrap_or(MAX_OUTPUT))),
        of_room: OfRoom::All,
    })
}

/// What an image, a recording or speech may cost at most, its text included. No output limit can be stated for it.
fn medium(ask: &Ask<'_>, terms: &Terms<'_>) -> Result<Exact, Unquoted> {
    let of = |classes: &[Class], count: u64| terms.dearest(classes, Tokens::ZERO).times(count);
    let output_classes = [Class::Output, Class::AudioOutput];
    let is_billed_by = |class: Class| terms.price.rates.contains_key(&class);
    let (most, tells, form) = match ask.medium {
        Medium::Text => return Ok(Exact::ZERO),
        Medium::Image { tokens } => {
            let read = of(&[Class::ImageTextInput, Class::ImageInput], ask.input.get());
            let made = tokens.saturating_mul(u64::from(ask.choices));
            let made = of(&[Class::ImageTextOutput, Class::ImageOutput], made);
            (sum(read, made), true, Form::Response)
        }
        Medium::Sound { length, tells } => {
            let seconds = length.most;
            let most = if is_billed_by(Class::Seconds) {
                of(&[Class::Seconds], seconds)
            } else {
                let heard = tokens::heard_at_most(seconds).saturating_add(ask.input);
                let largest = terms
                    .price
                    .max_input
                    .map_or(Tokens::MAX, |most| Tokens::saturating(most.into()));
                let heard = of(&[Class::Input, Class::AudioInput], heard.min(largest).get());
                let written = u64::from(terms.price.max_output.unwrap_or(MAX_OUTPUT));
                sum(heard, of(&output_classes, written))
            };
            (most, tells, Form::Response)
        }
        Medium::Speech { characters, .. } if is_billed_by(Class::Characters) => {
            (of(&[Class::Characters], characters), true, Form::Stream)
        }
        Medium::Speech { characters, tells } => {
            let read = of(&[Class::Input], ask.input.get());
            let spoken = tokens::spoken_at_most(characters);
            (sum(read, of(&output_classes, spoken.get())), tells, Form::Stream)
        }
    };
    match most.ok_or(Unquoted::TooLarge)? {
        most if tells || most == Exact::ZERO => Ok(most),
        _ => Err(Unquoted::Untold(form)),
    }
}

fn sum(one: Option<Exact>, other: Option<Exact>) -> Option<Exact> {
    one?.plus(other?)
}

fn fees(tools: &HostedTools, terms: &Terms<'_>) -> Result<Exact, Unquoted> {
    let too_large = || Unquoted::TooLarge;
    let search = match terms.search {
        SearchTool::Current => Class::WebSearch,
        SearchTool::Preview => Class::WebSearchPreview,
    };
    let calls = u64::from(tools.max_calls.unwrap_or(TOOL_CALLS));
    let mut sum = Exact::ZERO;
    for (runs, class) in [
        (tools.web_search, search),
        (tools.file_search, Class::FileSearch),
        (tools.container, Class::Container),
    ] {
        if runs {
            let fee = terms.fee(class).ok_or(Unquoted::NoFee(class))?;
            sum = fee.times(calls).and_then(|fee| sum.plus(fee)).ok_or_else(too_large)?;
        }
    }
    if let Some(model) = &tools.image_generation {
        let price = terms.image_price.ok_or_else(|| Unquoted::NoImagePrice(model.clone()))?;
        let classes = [
            Class::ImageTextInput,
            Class::ImageInput,
            Class::ImageTextOutput,
            Class::ImageOutput,
        ];
        let terms = Terms { price, ..terms.clone() };
        let image = terms
            .dearest(&classes, Tokens::ZERO)
            .times(2 * IMAGE_GEN_TOKENS * calls)
            .ok_or_else(too_large)?;
        sum = sum.plus(image).ok_or_else(too_large)?;
    }
    Ok(sum)
}

impl Quote {
    /// What the call costs at most when each answer has at most `limit` tokens; `None` when it does not fit.
    fn ceiling(&self, limit: Tokens) -> Option<Usd> {
        self.per_output_token.times(limit.get())?.plus(self.input)?.ceil()
    }

    /// The largest limit that `money` pays for; `None` when output is free.
    fn limit_for(&self, money: Usd) -> Option<Tokens> {
        self.per_output_token
            .affordable(money, self.input)
            .map(Tokens::saturating)
    }
}

/// The operator's rules for holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Which part of the room one call without a stated limit may take, in millionths (250,000 = 1/4).
    pub share_ppm: u32,
    /// An answer shorter than this shows nothing and costs money, in tokens; at least [`MIN_LIMIT`].
    pub min_output: Tokens,
}

/// What a call may cost at most, when the hold is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// balance + credit line − open holds, and less where a budget leaves less.
    pub available: Usd,
    /// What running calls hold; it comes back when they settle.
    pub held: Usd,
}

/// How a call is admitted, or why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// Set this aside.
    Hold {
        /// The money.
        amount: Usd,
        /// The output limit that the hold pays for, per choice, when it is below the one the model would have.
        output_limit: Option<Tokens>,
    },
    /// The room does not pay for the call.
    Short(Shortfall),
}

/// Why the room does not pay for a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// What the call needs at least.
    pub needed: Usd,
    /// What there is.
    pub available: Usd,
    /// What running calls hold.
    pub held: Usd,
    /// The largest output limit that the room pays for, when the client stated one.
    pub largest_limit: Option<Tokens>,
}

/// Decides the hold. Pure; called inside the writer's transaction.
pub fn size(quote: &Quote, room: Room, policy: &Policy) -> Size {
    match quote.stated {
        Some(limit) => size_stated(quote, limit, room, policy),
        None => size_open(quote, room, policy),
    }
}

/// A stated limit is never lowered: it is paid for whole, or refused.
fn size_stated(quote: &Quote, limit: Tokens, room: Room, policy: &Policy) -> Size {
    let most = match quote.of_room {
        OfRoom::All => room.available,
        OfRoom::Share => share(room.available, policy.share_ppm),
    };
    match quote.ceiling(limit) {
        Some(amount) if amount <= most => Size::Hold {
            amount,
            output_limit: None,
        },
        ceiling => Size::Short(Shortfall {
            needed: ceiling.unwrap_or(Usd::MAX),
            available: room.available,
            held: room.held,
            largest_limit: quote.limit_for(room.available).filter(|limit| *limit >= MIN_LIMIT),
        }),
    }
}

/// Without a limit a call gets a share of the room, at least what a useful answer needs, at most its ceiling.
fn size_open(quote: &Quote, room: Room, policy: &Policy) -> Size {
    let short = |needed: Option<Usd>| {
        Size::Short(Shortfall {
            needed: needed.unwrap_or(Usd::MAX),
            available: room.available,
            held: room.held,
            largest_limit: None,
        })
    };
    let need = match quote.ceiling(policy.min_output.min(quote.max_output)) {
        Some(need) if need <= room.available => need,
        need => return short(need),
    };
    let most = share(room.available, policy.share_ppm).max(need);
    match quote.ceiling(quote.max_output) {
        Some(ceiling) if ceiling <= most => Size::Hold {
            amount: ceiling,
            output_limit: None,
        },
        _ => Size::Hold {
            amount: most,
            output_limit: quote.limit_for(most),
        },
    }
}

fn share(available: Usd, ppm: u32) -> Usd {
    let nanos = i128::from(available.nanos()) * i128::from(ppm) / 1_000_000;
    Usd::from_nanos(i64::try_from(nanos).unwrap_or(available.nanos()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pricing::{Factor, Price, bill};
    use crate::usage::Tier;
    use crate::usage::Usage;
    use proptest::prelude::*;

    fn price() -> Price {
        let json = r#"{"kind":"text","rates":{"input":"2","cached_input":"0.1","cache_write":"2.5","output":"10"},
            "steps":[{"above":272000,"rates":{"input":"4","cache_write":"5","output":"15"}}],
            "tiers":{"flex":{"rates":{"input":"1","output":"5"}},"priority":{"rates":{"input":"4","output":"20"}}},
            "regional_uplift":"1.1","max_output":128000}"#;
        Price::from_json(json).expect("a price")
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

    fn quoted(input: u64, stated: Option<u64>) -> Quote {
        let (price, tools) = (price(), HostedTools::default());
        let ask = Ask {
            input: Tokens::saturating(input),
            rejected: Tokens::ZERO,
            stated: stated.map(Tokens::saturating),
            cache_ttl: CacheTtl::Minutes30,
            choices: 1,
            tools: &tools,
            medium: Medium::Text,
        };
        quote(&ask, &terms(&price)).expect("a quote")
    }

    fn usd(text: &str) -> Usd {
        text.parse().expect("an amount")
    }

    fn room(available: &str) -> Room {
        Room {
            available: usd(available),
            held: Usd::ZERO,
        }
    }

    const POLICY: Policy = Policy {
        share_ppm: 250_000,
        min_output: Tokens::saturating(8192),
    };

    #[test]
    fn a_stated_limit_is_held_whole() {
        // 1,000 × $2.5 (it may be written to the cache) + 1,000 × $10
        let size = size(&quoted(1000, Some(1000)), room("1"), &POLICY);
        assert_eq!(
            size,
            Size::Hold {
                amount: usd("0.0125"),
                output_limit: None
            }
        );
    }

    #[test]
    fn a_stated_limit_that_does_not_fit_is_refused_with_the_largest_that_does() {
        let Size::Short(short) = size(&quoted(1000, Some(100_000)), room("0.0125"), &POLICY) else {
            panic!("it fits")
        };
        assert_eq!(
            (short.needed, short.largest_limit),
            (usd("1.0025"), Some(Tokens::saturating(1000)))
        );
        let Size::Short(short) = size(&quoted(1000, Some(100_000)), room("0.002"), &POLICY) else {
            panic!("it fits")
        };
        assert_eq!(short.largest_limit, None, "not even the input");
    }

    #[test]
    fn what_is_bounded_from_afar_is_held_for_out_of_a_share_of_the_room() {
        let quote = Quote {
            of_room: OfRoom::Share,
            ..quoted(1000, Some(1000))
        };
        let Size::Hold { amount, .. } = size(&quote, room("0.05"), &POLICY) else {
            panic!("a quarter of it is enough")
        };
        assert_eq!(amount, usd("0.0125"));
        let short = size(&quote, room("0.049"), &POLICY);
        assert!(matches!(short, Size::Short(_)), "{short:?}");
    }

    #[test]
    fn without_a_limit_a_rich_user_holds_the_ceiling_and_keeps_the_models_own_limit() {
        assert_eq!(
            size(&quoted(1000, None), room("100"), &POLICY),
            Size::Hold {
                amount: usd("1.2825"),
                output_limit: None
            }
        );
    }

    #[test]
    fn without_a_limit_a_call_takes_a_share_and_its_limit_says_so() {
        let hold = size(&quoted(1000, None), room("4"), &POLICY);
        assert_eq!(
            hold,
            Size::Hold {
                amount: usd("1"),
                output_limit: Some(Tokens::saturating(99_750))
            }
        );
    }

    #[test]
    fn without_a_limit_a_call_gets_what_a_useful_answer_needs_or_nothing() {
        let need = usd("0.08442");
        assert_eq!(
            size(
                &quoted(1000, None),
                Room {
                    available: need,
                    held: Usd::ZERO
                },
                &POLICY
            ),
            Size::Hold {
                amount: need,
                output_limit: Some(Tokens::saturating(8192))
            }
        );
        let Size::Short(short) = size(&quoted(1000, None), room("0.084419999"), &POLICY) else {
            panic!("it fits")
        };
        assert_eq!(short.needed, need);
    }

    #[test]
    fn a_bound_that_may_reach_the_long_context_is_held_at_its_rates() {
        assert_eq!(
            quoted(272_000, Some(0)).ceiling(Tokens::ZERO),
            Some(usd("0.68")),
            "272,000 × $2.5"
        );
        assert_eq!(
            quoted(272_001, Some(0)).ceiling(Tokens::ZERO),
            Some(usd("1.360005")),
            "272,001 × $5"
        );
    }

    #[test]
    fn a_cheaper_tier_is_held_at_the_standard_one_and_a_dearer_one_at_its_own() {
        let (price, tools) = (price(), HostedTools::default());
        let ceiling = |tier| {
            let ask = Ask {
                input: Tokens::ZERO,
                rejected: Tokens::ZERO,
                stated: None,
                cache_ttl: CacheTtl::Minutes30,
                choices: 1,
                tools: &tools,
                medium: Medium::Text,
            };
            quote(&ask, &Terms { tier, ..terms(&price) })
                .expect("a quote")
                .ceiling(Tokens::saturating(1_000_000))
        };
        assert_eq!(ceiling(Tier::Flex), Some(usd("10")));
        assert_eq!(ceiling(Tier::Priority), Some(usd("20")));
    }

    #[test]
    fn a_tool_without_a_fee_is_refused_and_one_with_a_fee_is_held() {
        let mut price = price();
        let tools = HostedTools {
            web_search: true,
            max_calls: Some(3),
            ..HostedTools::default()
        };
        let ask = Ask {
            input: Tokens::ZERO,
            rejected: Tokens::ZERO,
            stated: None,
            cache_ttl: CacheTtl::Minutes30,
            choices: 1,
            tools: &tools,
            medium: Medium::Text,
        };
        assert!(quote(&ask, &terms(&price)).is_err());
        price
            .fees
            .insert(Class::WebSearch, crate::pricing::Rate::parse("10").expect("a rate"));
        assert_eq!(
            quote(&ask, &terms(&price)).expect("a quote").ceiling(Tokens::ZERO),
            Some(usd("0.03"))
        );
    }

    #[test]
    fn an_image_is_held_at_the_rates_of_its_model_in_and_out_for_each_call() {
        let (price, tools) = (
            price(),
            HostedTools {
                image_generation: Some("image".to_owned()),
                max_calls: Some(3),
                ..HostedTools::default()
            },
        );
        let json = r#"{"kind":"image","rates":{"image_text_input":"5","image_input":"8","image_output":"30"}}"#;
        let image = Price::from_json(json).expect("a price");
        let ask = Ask {
            input: Tokens::ZERO,
            rejected: Tokens::ZERO,
            stated: None,
            cache_ttl: CacheTtl::Minutes30,
            choices: 1,
            tools: &tools,
            medium: Medium::Text,
        };
        assert!(quote(&ask, &terms(&price)).is_err(), "an image model without a price");
        let terms = Terms {
            image_price: Some(&image),
            ..terms(&price)
        };
        let ceiling = quote(&ask, &terms).expect("a quote").ceiling(Tokens::ZERO);
        assert_eq!(ceiling, Some(usd("2.88")), "3 × 2 × 16,000 × $30");
    }

    proptest! {
        #[test]
        fn the_charge_is_at_most_the_hold_whenever_the_usage_is_within_the_bounds(
            bound in 0u64..600_000, used_part in 0u64..=1000, cached_part in 0u64..=1000, written_part in 0u64..=1000,
            stated in proptest::option::of(0u64..200_000), output_part in 0u64..=1000, choices in 1u32..5,
            available in 0i64..20_000_000_000, tier in 0usize..3, answered in 0usize..2, region: bool,
            markup in 0u64..3_000_000,
        ) {
            let price = price();
            let tools = HostedTools::default();
            let tiers = [Tier::Standard, Tier::Flex, Tier::Priority];
            let markup = Factor::parse(&format!("{}.{:06}", markup / 1_000_000, markup % 1_000_000)).expect("a factor");
            let asked = Terms { tier: tiers[tier], region: region.then_some("eu"), markup, ..terms(&price) };
            let ask = Ask { input: Tokens::saturating(bound), rejected: Tokens::ZERO, stated: stated.map(Tokens::saturating), cache_ttl: CacheTtl::Minutes30, choices, tools: &tools, medium: Medium::Text };
            let quote = quote(&ask, &asked).expect("a quote");
            let room = Room { available: Usd::from_nanos(available), held: Usd::ZERO };
            let Size::Hold { amount, output_limit } = size(&quote, room, &POLICY) else { return Ok(()) };
            prop_assert!(amount <= room.available);
            let limit = output_limit.or(ask.stated).unwrap_or(quote.max_output).get();
            prop_assert!(limit >= 16 || stated.is_some());
            let input = bound * used_part / 1000;
            let cached = input * cached_part / 1000;
            let usage = Usage {
                input_tokens: Tokens::saturating(input),
                cached_tokens: Tokens::saturating(cached),
                cache_write_tokens: Tokens::saturating((input - cached) * written_part / 1000),
                output_tokens: Tokens::saturating(limit * u64::from(choices) * output_part / 1000),
                ..Usage::default()
            };
            let tier = if answered == 0 { asked.tier } else { Tier::Standard };
            let bill = bill(&usage, &Terms { tier, ..asked }).expect("a bill");
            prop_assert!(bill.charge <= amount, "{} > {}", bill.charge, amount);
        }
    }
}
