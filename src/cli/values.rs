//! Values of flags: times, spans, networks; each error says what to write.

use ipnet::IpNet;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

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
            "write a span like 30d or 12h, a date like 2026-12-31, or a time like 2026-12-31T18:00:00Z".into()
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
    let wrong = || "write a number with its unit: 90s, 30m, 12h, 30d or 2w".to_owned();
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
        _ => Err("at most ten years".into()),
    }
}

/// A network, or one address.
pub fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "write a range like 10.0.0.0/8 or an address like 192.0.2.7".into())
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
    fn one_address_is_a_network() {
        assert_eq!(
            network("192.0.2.7").map(|net| net.to_string()),
            Ok("192.0.2.7/32".into())
        );
        assert!(network("10.0.0.0/8").is_ok() && network("ten").is_err());
    }
}
