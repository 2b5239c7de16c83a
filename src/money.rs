//! Money: an exact count of nano-dollars, parsed from what people type and shown without loss.

use std::fmt;
use std::iter::Sum;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::language::{Language, Said, Tell};
use crate::said;

/// Nano-dollars in one US dollar.
pub const NANOS_PER_USD: i64 = 1_000_000_000;

/// Decimal places of a nano-dollar.
const DECIMALS: usize = 9;

/// An amount of US dollars as a count of nano-dollars (1 USD = 10⁹), between ±9.2 billion dollars.
///
/// Arithmetic is checked: there is no `+`, because every sum of money has to say what happens when it does not fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usd(i64);

impl Usd {
    /// No money.
    pub const ZERO: Usd = Usd(0);
    /// The largest amount that can be stored.
    pub const MAX: Usd = Usd(i64::MAX);

    /// `nanos` nano-dollars.
    pub const fn from_nanos(nanos: i64) -> Usd {
        Usd(nanos)
    }

    /// The count of nano-dollars.
    pub const fn nanos(self) -> i64 {
        self.0
    }

    /// The sum, or `None` when it does not fit.
    pub const fn checked_add(self, other: Usd) -> Option<Usd> {
        match self.0.checked_add(other.0) {
            Some(nanos) => Some(Usd(nanos)),
            None => None,
        }
    }

    /// The difference, or `None` when it does not fit.
    pub const fn checked_sub(self, other: Usd) -> Option<Usd> {
        match self.0.checked_sub(other.0) {
            Some(nanos) => Some(Usd(nanos)),
            None => None,
        }
    }

    /// The difference, held at the ends of the range: for amounts that are only shown or compared.
    pub const fn saturating_sub(self, other: Usd) -> Usd {
        Usd(self.0.saturating_sub(other.0))
    }

    /// The sum, held at the ends of the range: for amounts that are only shown or compared.
    pub const fn saturating_add(self, other: Usd) -> Usd {
        Usd(self.0.saturating_add(other.0))
    }

    /// Whether the amount is below zero.
    pub const fn is_negative(self) -> bool {
        self.0 < 0
    }

    /// The same amount with the other sign, or `None` when it does not fit.
    pub const fn checked_neg(self) -> Option<Usd> {
        match self.0.checked_neg() {
            Some(nanos) => Some(Usd(nanos)),
            None => None,
        }
    }
}

impl Sum for Usd {
    /// A sum that is only shown; it stays at the end of the range instead of wrapping.
    fn sum<I: Iterator<Item = Usd>>(iter: I) -> Usd {
        iter.fold(Usd::ZERO, Usd::saturating_add)
    }
}

/// Why a text is not an amount of dollars.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.told(Language::English))]
pub enum ParseUsdError {
    /// Not a decimal number.
    NotDecimal,
    /// Finer than a nano-dollar.
    TooFine,
    /// Beyond ±9.2 billion dollars.
    TooLarge,
}

impl Tell for ParseUsdError {
    fn told(&self, language: Language) -> Said {
        match self {
            ParseUsdError::NotDecimal => said!(
                language,
                en: "not an amount in US dollars; write it like 5, 0.25 or $12.50",
                zh: "不是美元金额；请写成 5、0.25 或 $12.50 这样",
            ),
            ParseUsdError::TooFine => said!(
                language,
                en: "more than nine decimals; the smallest amount is a nano-dollar, 0.000000001",
                zh: "小数超过九位；最小金额是纳美元，0.000000001",
            ),
            ParseUsdError::TooLarge => said!(
                language,
                en: "too large; at most 9223372036.854775807",
                zh: "过大；最多 9223372036.854775807",
            ),
        }
    }
}

impl FromStr for Usd {
    type Err = ParseUsdError;

    /// Reads `5`, `0.25`, `$12.50`, `-3`, `-$3`; refuses exponents, separators, blanks and a tenth decimal.
    fn from_str(text: &str) -> Result<Usd, ParseUsdError> {
        let (negative, rest) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let rest = rest.strip_prefix('$').unwrap_or(rest);
        let (whole, fraction) = rest.split_once('.').unwrap_or((rest, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) {
            return Err(ParseUsdError::NotDecimal);
        }
        if fraction.len() > DECIMALS {
            return Err(ParseUsdError::TooFine);
        }
        let unsigned: i128 = format!("{whole}{fraction:0<DECIMALS$}")
            .parse()
            .map_err(|_| ParseUsdError::TooLarge)?;
        let signed = if negative { -unsigned } else { unsigned };
        i64::try_from(signed).map(Usd).map_err(|_| ParseUsdError::TooLarge)
    }
}

impl fmt::Display for Usd {
    /// The exact amount: `0.008138`, `5`, `-0.25`. With `{:#}` as people read it: `$0.008138`, `$5.00`, `-$0.25`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = NANOS_PER_USD.unsigned_abs();
        let (mut whole, mut fraction) = (self.0.unsigned_abs() / unit, self.0.unsigned_abs() % unit);
        let (mut places, least) = (9, if f.alternate() { 2 } else { 0 });
        while places > least && fraction % 10 == 0 {
            (places, fraction) = (places - 1, fraction / 10);
        }
        let mut text = Backwards::default();
        for _ in 0..places {
            text.digit_of(&mut fraction);
        }
        if places > 0 {
            text.push(b'.');
        }
        text.digit_of(&mut whole);
        while whole > 0 {
            text.digit_of(&mut whole);
        }
        if f.alternate() {
            text.push(b'$');
        }
        if self.0 < 0 {
            text.push(b'-');
        }
        f.pad(text.as_str())
    }
}

/// A short text that is written from its end: an amount is told some ten times in each call, and needs no memory for it.
#[derive(Default)]
struct Backwards {
    bytes: [u8; Backwards::MOST],
    length: usize,
}

impl Backwards {
    /// Two signs, ten digits, a point and nine digits.
    const MOST: usize = 22;

    fn push(&mut self, byte: u8) {
        self.length += 1;
        self.bytes[Backwards::MOST - self.length] = byte;
    }

    /// Moves the last digit of a number before the text.
    fn digit_of(&mut self, number: &mut u64) {
        self.push(b'0' + u8::try_from(*number % 10).unwrap_or_default());
        *number /= 10;
    }

    fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[Backwards::MOST - self.length..]).unwrap_or_default()
    }
}

impl Serialize for Usd {
    /// A decimal string in dollars, as in every JSON document of the gateway.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Usd {
    /// From a decimal string; a JSON number is refused, because it may have been a float.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Usd, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_type_is_read_exactly() {
        for (text, nanos) in [
            ("5", 5_000_000_000),
            ("0.25", 250_000_000),
            ("$12.50", 12_500_000_000),
            ("-$3", -3_000_000_000),
            ("0.000000001", 1),
            ("9223372036.854775807", i64::MAX),
            ("-9223372036.854775808", i64::MIN),
        ] {
            assert_eq!(text.parse(), Ok(Usd::from_nanos(nanos)), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused() {
        for text in [
            "", "$", ".", "5.", ".5", "1e3", "1,000", " 5", "+5", "--5", "$-5", "NaN", "٣",
        ] {
            assert_eq!(text.parse::<Usd>(), Err(ParseUsdError::NotDecimal), "{text:?}");
        }
        assert_eq!("0.0000000001".parse::<Usd>(), Err(ParseUsdError::TooFine));
        assert_eq!("9223372036.854775808".parse::<Usd>(), Err(ParseUsdError::TooLarge));
        assert_eq!("9".repeat(80).parse::<Usd>(), Err(ParseUsdError::TooLarge));
    }

    #[test]
    fn people_see_cents_and_machines_see_no_padding() {
        let shown = |nanos: i64| {
            (
                format!("{}", Usd::from_nanos(nanos)),
                format!("{:#}", Usd::from_nanos(nanos)),
            )
        };
        assert_eq!(shown(5_000_000_000), ("5".into(), "$5.00".into()));
        assert_eq!(shown(8_138_000), ("0.008138".into(), "$0.008138".into()));
        assert_eq!(shown(-250_000_000), ("-0.25".into(), "-$0.25".into()));
        assert_eq!(shown(0), ("0".into(), "$0.00".into()));
    }

    proptest! {
        #[test]
        fn every_amount_prints_and_parses_back(nanos: i64) {
            let usd = Usd::from_nanos(nanos);
            prop_assert_eq!(format!("{usd}").parse(), Ok(usd));
            prop_assert_eq!(format!("{usd:#}").parse(), Ok(usd));
        }
    }
}
