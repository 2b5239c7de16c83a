//! Values of flags: times, spans, networks; each error says what to write.

use std::net::SocketAddr;
use std::ops::Range;
use std::str::FromStr;

use ipnet::IpNet;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use super::language;
use crate::budget::{Budget, Period};
use crate::config;
use crate::language::{Language, NotALanguage, Tell};
use crate::limits::{AtMost, RatesChange};
use crate::pricing::Factor;
use crate::said;
use crate::store::budgets::Change;

/// Reads a value as its type reads it; what is wrong is told in the language of the terminal.
pub fn typed<T: FromStr<Err: Tell>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.told(language()).into())
}

/// What [`typed`] does, with a function that reads.
pub fn read<T, E: Tell>(read: impl FnOnce(&str) -> Result<T, E>, text: &str) -> Result<T, String> {
    read(text).map_err(|error| error.told(language()).into())
}

/// A point in time as typed: a date, a time, or a span from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// `2026-12-31` (midnight UTC) or `2026-12-31T18:00:00Z`.
    At(Timestamp),
    /// `30d`, `12h`.
    Span(SignedDuration),
}

impl When {
    /// Reads a date, a time or a span.
    pub fn parse(text: &str) -> Result<When, String> {
        if let Ok(span) = span(text) {
            return Ok(When::Span(span));
        }
        if let Ok(at) = text.parse::<Timestamp>() {
            return Ok(When::At(at));
        }
        let midnight = text
            .parse::<Date>()
            .ok()
            .and_then(|date| date.to_zoned_datetime(TimeZone::UTC).ok());
        midnight.map(|at| When::At(at.timestamp())).ok_or_else(|| {
            said!(
                language(),
                en: "write a span like 30d or 12h, a date like 2026-12-31, or a time like 2026-12-31T18:00:00Z",
                zh: "请写 30d 或 12h 这样的时长、2026-12-31 这样的日期，或 2026-12-31T18:00:00Z 这样的时间",
            )
            .into()
        })
    }

    /// That time, a span counted forward.
    pub fn ahead(self, now: Timestamp) -> Timestamp {
        self.from(now, |span| now.checked_add(span).ok())
    }

    /// That time, a span counted back.
    pub fn ago(self, now: Timestamp) -> Timestamp {
        self.from(now, |span| now.checked_sub(span).ok())
    }

    fn from(self, now: Timestamp, counted: impl FnOnce(SignedDuration) -> Option<Timestamp>) -> Timestamp {
        match self {
            When::At(at) => at,
            When::Span(span) => counted(span).unwrap_or(now),
        }
    }
}

/// The longest span: ten years.
const LONGEST_HOURS: i64 = 10 * 366 * 24;

/// `90s`, `30m`, `12h`, `30d`, `2w`.
pub fn span(text: &str) -> Result<SignedDuration, String> {
    let wrong = || -> String {
        said!(
            language(),
            en: "write a number with its unit: 90s, 30m, 12h, 30d or 2w",
            zh: "请写带单位的数字：90s、30m、12h、30d 或 2w",
        )
        .into()
    };
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (count, unit) = text.split_at(unit_at);
    let seconds: i64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    let total = count.parse::<i64>().ok().and_then(|count| count.checked_mul(seconds));
    match total {
        Some(total) if total <= LONGEST_HOURS * 3_600 => Ok(SignedDuration::from_secs(total)),
        _ => Err(said!(language(), en: "at most ten years", zh: "最多十年").into()),
    }
}

/// A month of the calendar, UTC: `2026-11`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Month {
    /// As it is written.
    pub name: String,
    /// From its first microsecond to that of the next one.
    pub span: Range<Timestamp>,
}

impl Month {
    /// Reads a month.
    pub fn parse(text: &str) -> Result<Month, String> {
        let start = |date: Date| Some(date.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp());
        let first = format!("{text}-01").parse::<Date>().ok().filter(|_| text.len() == 7);
        let span = first.and_then(|first| {
            let next = first.checked_add(jiff::Span::new().months(1)).ok()?;
            Some(start(first)?..start(next)?)
        });
        span.map(|span| Month {
            name: text.to_owned(),
            span,
        })
        .ok_or_else(|| said!(language(), en: "write a month like 2026-11", zh: "请写 2026-11 这样的月份").into())
    }
}

/// An address to listen on.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    read(config::listen, text)
}

/// A network, or one address.
pub fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| {
            said!(
                language(),
                en: "write a range like 10.0.0.0/8 or an address like 192.0.2.7",
                zh: "请写 10.0.0.0/8 这样的网段，或 192.0.2.7 这样的地址",
            )
            .into()
        })
}

/// A markup, or none of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Markup(pub Option<Factor>);

/// `1.2`, or `default`.
pub fn markup(text: &str) -> Result<Markup, String> {
    if text == "default" {
        return Ok(Markup(None));
    }
    Factor::parse(text).map(|factor| Markup(Some(factor))).map_err(|error| {
        let error = error.told(language());
        said!(language(), en: "{error}, or 'default'", zh: "{error}，或写 'default'").into()
    })
}

/// A language, or none of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spoken(pub Option<Language>);

/// `en`, `zh`, or `auto`.
pub fn spoken(text: &str) -> Result<Spoken, String> {
    match text {
        "auto" => Ok(Spoken(None)),
        other => other
            .parse()
            .map(|chosen| Spoken(Some(chosen)))
            .map_err(|error: NotALanguage| {
                let error = error.told(language());
                said!(language(), en: "{error}, or auto", zh: "{error}，或 auto").into()
            }),
    }
}

/// A limit, or none of one's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<AtMost>);

/// `60`, or `default`.
pub fn key_rate(text: &str) -> Result<Rate, String> {
    rate(text, "default")
}

/// `60`, or `none`.
pub fn user_rate(text: &str) -> Result<Rate, String> {
    rate(text, "none")
}

fn rate(text: &str, unset: &str) -> Result<Rate, String> {
    if text == unset {
        return Ok(Rate(None));
    }
    let limit = text.parse::<AtMost>();
    limit.map(|limit| Rate(Some(limit))).map_err(|error| {
        let (language, error) = (language(), error.told(language()));
        said!(language, en: "{error}, or '{unset}'", zh: "{error}，或 '{unset}'").into()
    })
}

/// What `--rpm`, `--tpm` and `--concurrency` ask for.
pub fn rates_change(rpm: Option<Rate>, tpm: Option<Rate>, concurrency: Option<Rate>) -> RatesChange {
    let [rpm, tpm, concurrency] = [rpm, tpm, concurrency].map(|rate| rate.map(|rate| rate.0));
    RatesChange { rpm, tpm, concurrency }
}

/// What `--budget` and `--no-budget` ask for.
pub fn budget_changes(set: &[Budget], dropped: &[Period]) -> Vec<Change> {
    let set = set.iter().map(|budget| Change::Set(*budget));
    set.chain(dropped.iter().map(|period| Change::Drop(*period))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_a_time_or_a_span() {
        let now: Timestamp = "2026-11-24T10:00:00Z".parse().expect("a time");
        let ahead = |text: &str| When::parse(text).map(|when| when.ahead(now).to_string());
        assert_eq!(ahead("30d"), Ok("2026-12-24T10:00:00Z".into()));
        assert_eq!(ahead("2026-12-31"), Ok("2026-12-31T00:00:00Z".into()));
        assert_eq!(ahead("2026-12-31T18:00:00+02:00"), Ok("2026-12-31T16:00:00Z".into()));
        assert_eq!(
            When::parse("12h").map(|when| when.ago(now).to_string()),
            Ok("2026-11-23T22:00:00Z".into())
        );
        for wrong in ["", "30", "d", "-1d", "tomorrow", "2026-13-01", "99999999999999w"] {
            assert!(When::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_month_ends_where_the_next_begins() {
        let span = |text: &str| Month::parse(text).map(|month| format!("{}..{}", month.span.start, month.span.end));
        assert_eq!(span("2026-11"), Ok("2026-11-01T00:00:00Z..2026-12-01T00:00:00Z".into()));
        assert_eq!(span("2028-02"), Ok("2028-02-01T00:00:00Z..2028-03-01T00:00:00Z".into()));
        for wrong in ["", "2026", "2026-13", "2026-1", "2026-11-01", "11-2026", "9999-12-"] {
            assert!(Month::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn one_address_is_a_network() {
        assert_eq!(
            network("192.0.2.7").map(|net| net.to_string()),
            Ok("192.0.2.7/32".into())
        );
        assert!(network("10.0.0.0/8").is_ok() && network("ten").is_err());
    }
}
