//! The units of prices: rates, factors, classes, names of lists, and exact amounts before they are rounded.

use std::fmt;

use rust_decimal::Decimal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::language::{Language, Said, Tell};
use crate::money::{ParseUsdError, Usd};
use crate::said;

/// Units of an [`Exact`] in a nano-dollar: millionths of a rate × millionths of an uplift × millionths of a markup.
pub(super) const EXACT_PER_NANO: i128 = 1_000_000_000_000_000_000;

/// A factor of one.
pub(super) const ONE: u64 = 1_000_000;

/// What is wrong with a price, or with a number in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.told(Language::English))]
pub enum PriceError {
    /// It cannot be read, as the parser says.
    Unreadable(String),
    /// The catalogue cannot be read, as the parser says.
    Catalogue(String),
    /// A class without a rate.
    NoRate(Class),
    /// What are no hours.
    Hours(String),
    /// A class of tokens among the fees.
    NotAFee(Class),
    /// A text that is no rate.
    Rate(String, ParseUsdError),
    /// A rate that is negative or too large.
    RateRange(String),
    /// A fee that is too large.
    FeeRange,
    /// A text that is no factor.
    Factor(String),
    /// A text that is no name of a price list.
    ListName(String),
    /// A line of a receipt that is not its quantity at its rate.
    Amount(Class),
    /// An amount that does not fit.
    TooLarge,
}

impl Tell for PriceError {
    fn told(&self, language: Language) -> Said {
        match self {
            PriceError::Unreadable(why) => said!(language, en: "not a price: {why}", zh: "不是价格：{why}"),
            PriceError::Catalogue(why) => said!(
                language,
                en: "the catalogue does not parse: {why}",
                zh: "无法解析目录：{why}",
            ),
            PriceError::NoRate(class) => said!(
                language,
                en: "the price has no rate for {class}; write 0 if it is free",
                zh: "价格缺少 {class} 的费率；如果免费请写 0",
            ),
            PriceError::Hours(hours) => said!(
                language,
                en: "{hours:?} are no hours; write them like 00:00-06:30",
                zh: "{hours:?} 不是时段；请写成 00:00-06:30 这样",
            ),
            PriceError::NotAFee(class) => said!(
                language,
                en: "{class} is not a fee; it belongs into rates",
                zh: "{class} 不是费用；它属于 rates",
            ),
            PriceError::Rate(text, why) => said!(
                language,
                en: "the rate {text:?} is {why}",
                zh: "费率 {text:?}：{why}",
                why = why.told(language),
            ),
            PriceError::RateRange(text) => said!(
                language,
                en: "the rate {text:?} is not between 0 and 100000 dollars per million",
                zh: "费率 {text:?} 不在每百万 0 到 100000 美元之间",
            ),
            PriceError::FeeRange => said!(
                language,
                en: "a fee is above 100 dollars per thousand calls",
                zh: "费用超过每千次调用 100 美元",
            ),
            PriceError::Factor(text) => said!(
                language,
                en: "{text:?} is not a factor: write it like 1.04, at most six decimals, at most 1000",
                zh: "{text:?} 不是系数：请写成 1.04 这样，最多六位小数，不超过 1000",
            ),
            PriceError::ListName(text) => said!(
                language,
                en: "{text:?} is not a name for a price list: letters, digits, '.', '_' and '-', at most 64, and not 'free'",
                zh: "{text:?} 不是价目表的名称：字母、数字、'.'、'_' 和 '-'，最多 64 个，且不能是 'free'",
            ),
            PriceError::Amount(class) => said!(
                language,
                en: "the amount of {class} is not its quantity at its rate",
                zh: "{class} 的金额不等于数量乘以费率",
            ),
            PriceError::TooLarge => said!(language, en: "the amount does not fit", zh: "金额超出范围"),
        }
    }
}

/// Nano-dollars per million units (tokens, or calls of a tool): `2.5` dollars per million is 2,500,000,000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(pub(super) u64);

impl Rate {
    /// Nothing. Only someone who wrote zero gets it.
    pub const ZERO: Rate = Rate(0);
    /// $100,000 per million: dearer than anything sold, and small enough for exact products.
    const MAX: u64 = 100_000 * 1_000_000_000;

    /// Reads dollars per million units: at most nine decimals, at most 100,000, not negative.
    pub fn parse(text: &str) -> Result<Rate, PriceError> {
        let usd: Usd = text.parse().map_err(|why| PriceError::Rate(text.to_owned(), why))?;
        u64::try_from(usd.nanos())
            .ok()
            .filter(|nanos| *nanos <= Rate::MAX)
            .map(Rate)
            .ok_or_else(|| PriceError::RateRange(text.to_owned()))
    }

    /// What the user pays per million units: exact, in dollars.
    pub fn charged(self, markup: Factor) -> String {
        exact_usd(i128::from(self.0) * i128::from(markup.0))
    }

    pub(super) fn per_thousand(self) -> Result<Rate, PriceError> {
        Some(self.0 * 1000)
            .filter(|nanos| *nanos <= Rate::MAX)
            .map(Rate)
            .ok_or(PriceError::FeeRange)
    }
}

impl fmt::Display for Rate {
    /// Dollars per million units, exact.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Usd::from_nanos(i64::try_from(self.0).unwrap_or(i64::MAX)).fmt(f)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rate, D::Error> {
        Rate::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A multiplier in millionths: markup, regional uplift.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Factor(pub(super) u64);

impl Factor {
    /// No change.
    pub const ONE: Factor = Factor(ONE);

    /// Reads a decimal between 0 and 1000 with at most six decimals.
    pub fn parse(text: &str) -> Result<Factor, PriceError> {
        let wrong = || PriceError::Factor(text.to_owned());
        let usd: Usd = text.parse().map_err(|_| wrong())?;
        let nanos = u64::try_from(usd.nanos()).map_err(|_| wrong())?;
        if text.starts_with('$') || nanos % 1000 != 0 || nanos / 1000 > 1000 * ONE {
            return Err(wrong());
        }
        Ok(Factor(nanos / 1000))
    }
}

impl fmt::Display for Factor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Usd::from_nanos(i64::try_from(self.0 * 1000).unwrap_or(i64::MAX)).fmt(f)
    }
}

impl Serialize for Factor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Factor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Factor, D::Error> {
        Factor::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The name of a price list, such as `openai`: the same model costs differently at two vendors.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ListName(String);

impl ListName {
    /// Reads a name: letters, digits, `.`, `_` and `-`, at most 64 of them; `free` is not a list.
    pub fn parse(text: &str) -> Result<ListName, PriceError> {
        let fits = !text.is_empty()
            && text.len() <= 64
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if !fits || text == "free" {
            return Err(PriceError::ListName(text.to_owned()));
        }
        Ok(ListName(text.to_owned()))
    }

    /// OpenAI's list.
    pub fn openai() -> ListName {
        ListName("openai".to_owned())
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ListName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a token or a tool call is billed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are the classes")]
pub enum Class {
    Input,
    CachedInput,
    CacheWrite,
    #[serde(rename = "cache_write_12h")]
    CacheWrite12h,
    AudioInput,
    Output,
    ReasoningOutput,
    AudioOutput,
    WebSearch,
    WebSearchPreview,
    FileSearch,
    Container,
    ImageTextInput,
    ImageInput,
    ImageTextOutput,
    ImageOutput,
    Seconds,
    Characters,
}

impl Class {
    /// All classes, in the order of a receipt.
    pub const ALL: [Class; 18] = [
        Class::Input,
        Class::CachedInput,
        Class::CacheWrite,
        Class::CacheWrite12h,
        Class::AudioInput,
        Class::Output,
        Class::ReasoningOutput,
        Class::AudioOutput,
        Class::WebSearch,
        Class::WebSearchPreview,
        Class::FileSearch,
        Class::Container,
        Class::ImageTextInput,
        Class::ImageInput,
        Class::ImageTextOutput,
        Class::ImageOutput,
        Class::Seconds,
        Class::Characters,
    ];

    /// The name in JSON documents and receipts.
    pub const fn name(self) -> &'static str {
        match self {
            Class::Input => "input",
            Class::CachedInput => "cached_input",
            Class::CacheWrite => "cache_write",
            Class::CacheWrite12h => "cache_write_12h",
            Class::AudioInput => "audio_input",
            Class::Output => "output",
            Class::ReasoningOutput => "reasoning_output",
            Class::AudioOutput => "audio_output",
            Class::WebSearch => "web_search",
            Class::WebSearchPreview => "web_search_preview",
            Class::FileSearch => "file_search",
            Class::Container => "container",
            Class::ImageTextInput => "image_text_input",
            Class::ImageInput => "image_input",
            Class::ImageTextOutput => "image_text_output",
            Class::ImageOutput => "image_output",
            Class::Seconds => "seconds",
            Class::Characters => "characters",
        }
    }

    /// What a class without a rate is billed as.
    pub(super) const fn fallback(self) -> Option<Class> {
        match self {
            Class::CachedInput | Class::CacheWrite | Class::AudioInput => Some(Class::Input),
            Class::CacheWrite12h => Some(Class::CacheWrite),
            Class::ReasoningOutput | Class::AudioOutput => Some(Class::Output),
            Class::WebSearchPreview => Some(Class::WebSearch),
            Class::ImageInput => Some(Class::ImageTextInput),
            Class::ImageTextOutput => Some(Class::ImageOutput),
            Class::Input
            | Class::Output
            | Class::WebSearch
            | Class::FileSearch
            | Class::Container
            | Class::ImageTextInput
            | Class::ImageOutput
            | Class::Seconds
            | Class::Characters => None,
        }
    }

    /// Whether a regional uplift applies: to the tokens of the model itself.
    pub const fn is_lifted(self) -> bool {
        self.is_token() && !self.is_image()
    }

    /// Whether tokens are counted.
    pub const fn is_token(self) -> bool {
        !self.is_fee() && !matches!(self, Class::Seconds | Class::Characters)
    }

    /// Whether the image model of `image_generation` is paid.
    pub(super) const fn is_image(self) -> bool {
        matches!(
            self,
            Class::ImageTextInput | Class::ImageInput | Class::ImageTextOutput | Class::ImageOutput
        )
    }

    /// Whether calls are counted, not tokens; regional uplift leaves these alone.
    pub const fn is_fee(self) -> bool {
        matches!(
            self,
            Class::WebSearch | Class::WebSearchPreview | Class::FileSearch | Class::Container
        )
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An amount before it is rounded: nano-dollars × 10¹⁸.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exact(pub(super) i128);

impl Exact {
    /// Nothing.
    pub const ZERO: Exact = Exact(0);

    /// `units` times as much.
    pub fn times(self, units: u64) -> Option<Exact> {
        self.0.checked_mul(i128::from(units)).map(Exact)
    }

    /// The sum.
    pub fn plus(self, other: Exact) -> Option<Exact> {
        self.0.checked_add(other.0).map(Exact)
    }

    /// The next nano-dollar up: for what is set aside.
    pub fn ceil(self) -> Option<Usd> {
        let nanos = self.0.checked_add(EXACT_PER_NANO - 1)?.div_euclid(EXACT_PER_NANO);
        i64::try_from(nanos).ok().map(Usd::from_nanos)
    }

    /// The nearest nano-dollar, ties up: for what is charged.
    pub fn round(self) -> Option<Usd> {
        let nanos = self.0.checked_add(EXACT_PER_NANO / 2)?.div_euclid(EXACT_PER_NANO);
        i64::try_from(nanos).ok().map(Usd::from_nanos)
    }

    /// How many units of this amount `money` pays for, after `first` is paid.
    pub fn affordable(self, money: Usd, first: Exact) -> Option<u64> {
        let left = i128::from(money.nanos())
            .checked_mul(EXACT_PER_NANO)?
            .checked_sub(first.0)?;
        (self.0 > 0).then(|| u64::try_from(left.div_euclid(self.0)).unwrap_or(0))
    }
}

/// Millionths of nano-dollars as dollars, exact.
pub(super) fn exact_usd(millionths: i128) -> String {
    Decimal::try_from_i128_with_scale(millionths, 15).map_or_else(|_| String::new(), |usd| usd.normalize().to_string())
}

#[cfg(test)]
mod texts {
    use super::*;
    use crate::language::agreement::{agree, samples};

    #[test]
    fn what_is_wrong_with_a_price_is_told_in_every_language() {
        let text = || "1.5x".to_owned();
        for error in samples!(PriceError {
            PriceError::Unreadable(_) => PriceError::Unreadable(text()),
            PriceError::Catalogue(_) => PriceError::Catalogue(text()),
            PriceError::NoRate(_) => PriceError::NoRate(Class::CacheWrite12h),
            PriceError::Hours(_) => PriceError::Hours(text()),
            PriceError::NotAFee(_) => PriceError::NotAFee(Class::Input),
            PriceError::Rate(..) => PriceError::Rate(text(), ParseUsdError::NotDecimal),
            PriceError::RateRange(_) => PriceError::RateRange(text()),
            PriceError::FeeRange => PriceError::FeeRange,
            PriceError::Factor(_) => PriceError::Factor(text()),
            PriceError::ListName(_) => PriceError::ListName(text()),
            PriceError::Amount(_) => PriceError::Amount(Class::Input),
            PriceError::TooLarge => PriceError::TooLarge,
        }) {
            let [en, zh] = Language::ALL.map(|language| error.told(language));
            agree(&en, &zh);
        }
        for error in samples!(ParseUsdError {
            ParseUsdError::NotDecimal => ParseUsdError::NotDecimal,
            ParseUsdError::TooFine => ParseUsdError::TooFine,
            ParseUsdError::TooLarge => ParseUsdError::TooLarge,
        }) {
            let [en, zh] = Language::ALL.map(|language| error.told(language));
            agree(&en, &zh);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_with_its_markup_is_exact() {
        let charged = |rate, markup| {
            let markup = Factor::parse(markup).expect("a factor");
            Rate::parse(rate).expect("a rate").charged(markup)
        };
        assert_eq!(charged("2", "1.25"), "2.5");
        assert_eq!(charged("0.000000001", "1.000001"), "0.000000001000001");
        assert_eq!(charged("3", "0"), "0");
    }

    #[test]
    fn rates_and_factors_are_read_up_to_their_bounds() {
        for factor in ["0", "0.000001", "1.04", "1000", "1000.000000"] {
            let parsed = Factor::parse(factor).map(|factor| factor.to_string());
            let plain = factor.trim_end_matches(".000000");
            assert_eq!(parsed.as_deref(), Ok(plain));
        }
        for wrong in ["-1", "$1", "1.0000001", "0.0000001", "1000.000001", "1001", ""] {
            assert!(Factor::parse(wrong).is_err(), "{wrong}");
        }
        for rate in ["0", "0.000000001", "100000"] {
            assert_eq!(Rate::parse(rate).map(|rate| rate.to_string()).as_deref(), Ok(rate));
        }
        for wrong in ["-0.1", "100000.000000001", "0.0000000001"] {
            assert!(Rate::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn money_pays_for_any_number_of_what_is_free() {
        let (nano, free) = (Usd::from_nanos(1), Exact::ZERO);
        assert_eq!(free.affordable(nano, Exact::ZERO), None);
        assert_eq!(Exact(EXACT_PER_NANO / 4).affordable(nano, Exact::ZERO), Some(4));
        assert_eq!(Exact(EXACT_PER_NANO / 4).affordable(nano, Exact(1)), Some(3));
        assert_eq!(Exact(1).affordable(nano, Exact(EXACT_PER_NANO + 1)), Some(0));
    }

    #[test]
    fn the_name_of_a_list_is_short_and_plain() {
        let longest = "a".repeat(64);
        for name in ["openai", "x.y_z-1", &longest] {
            let parsed = ListName::parse(name).expect("a name");
            assert_eq!((parsed.as_str(), parsed.to_string().as_str()), (name, name));
        }
        for wrong in ["", "free", "a b", "ä", &"a".repeat(65)] {
            assert!(ListName::parse(wrong).is_err(), "{wrong}");
        }
    }
}
