//! Budgets: what a user or a key may spend at most, in total, or in a day or month of UTC.
//!
//! A call belongs to the window in which its hold was taken, however long it runs. What it holds and what it is charged
//! count there, and a refund gives it back there.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::ToSpan;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Serialize;

use crate::language::{Language, Said, Tell};
use crate::money::{ParseUsdError, Usd};
use crate::said;

/// Over what a budget counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Period {
    /// All there ever was.
    Total,
    /// A day, UTC.
    Day,
    /// A calendar month, UTC.
    Month,
}

impl Period {
    /// Every one of them.
    pub const ALL: [Period; 3] = [Period::Total, Period::Day, Period::Month];

    /// `total`, `day`, `month`.
    pub const fn name(self) -> &'static str {
        match self {
            Period::Total => "total",
            Period::Day => "day",
            Period::Month => "month",
        }
    }

    /// When the window began that a time is in; that of `total`, in 1970.
    pub fn start(self, at: Timestamp) -> Timestamp {
        let date = at.to_zoned_datetime(TimeZone::UTC).date();
        match self {
            Period::Total => Timestamp::UNIX_EPOCH,
            Period::Day => midnight(date),
            Period::Month => midnight(date.first_of_month()),
        }
    }

    /// When the next window begins, and the budget is whole again; `None`: never.
    pub fn resets_at(self, at: Timestamp) -> Option<Timestamp> {
        let date = self.start(at).to_zoned_datetime(TimeZone::UTC).date();
        let next = match self {
            Period::Total => return None,
            Period::Day => date.checked_add(1.day()),
            Period::Month => date.checked_add(1.month()),
        };
        next.ok().map(midnight)
    }
}

/// The first moment of a day; of the last day that can be told, for what is beyond.
fn midnight(date: Date) -> Timestamp {
    date.to_zoned_datetime(TimeZone::UTC)
        .map_or(Timestamp::MAX, |at| at.timestamp())
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why a text is not a budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotABudget {
    /// Its amount is none.
    Amount(ParseUsdError),
    /// Its amount is below zero.
    Negative,
    /// Its period is none.
    Period,
}

impl Tell for NotABudget {
    fn told(&self, language: Language) -> Said {
        match self {
            NotABudget::Amount(why) => said!(
                language,
                en: "{why}; write a budget like 20, 5/day or 100/month",
                zh: "{why}；预算请写成 20、5/day 或 100/month 这样",
                why = why.told(language),
            ),
            NotABudget::Negative => said!(language, en: "a budget is not negative", zh: "预算不能是负数"),
            NotABudget::Period => said!(
                language,
                en: "a budget is for total, day or month",
                zh: "预算的周期是 total、day 或 month",
            ),
        }
    }
}

impl FromStr for Period {
    type Err = NotABudget;

    fn from_str(text: &str) -> Result<Period, NotABudget> {
        let found = Period::ALL.into_iter().find(|period| period.name() == text);
        found.ok_or(NotABudget::Period)
    }
}

/// A limit of spending, as typed: `20`, `20/total`, `5/day`, `$100/month`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Over what.
    pub period: Period,
    /// How much.
    pub limit: Usd,
}

impl FromStr for Budget {
    type Err = NotABudget;

    fn from_str(text: &str) -> Result<Budget, NotABudget> {
        let (amount, period) = text.split_once('/').unwrap_or((text, "total"));
        let limit: Usd = amount.parse().map_err(NotABudget::Amount)?;
        if limit.is_negative() {
            return Err(NotABudget::Negative);
        }
        Ok(Budget {
            period: period.parse()?,
            limit,
        })
    }
}

/// Whose budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The user's: all keys together.
    User,
    /// The key's, with those that it was rotated from.
    Key,
}

/// What it was that a call did not fit into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// The user's balance, with the credit line.
    Balance,
    /// A budget.
    Budget {
        /// Whose.
        owner: Owner,
        /// Over what.
        period: Period,
        /// When it is whole again.
        resets_at: Option<Timestamp>,
    },
}

impl Limit {
    /// When it is whole again; `None`: not by itself.
    pub const fn resets_at(self) -> Option<Timestamp> {
        match self {
            Limit::Balance => None,
            Limit::Budget { resets_at, .. } => resets_at,
        }
    }

    /// `balance`, `key_budget_day`, `user_budget_month` …
    pub const fn name(self) -> &'static str {
        match self {
            Limit::Balance => "balance",
            Limit::Budget { owner, period, .. } => match (owner, period) {
                (Owner::User, Period::Total) => "user_budget_total",
                (Owner::User, Period::Day) => "user_budget_day",
                (Owner::User, Period::Month) => "user_budget_month",
                (Owner::Key, Period::Total) => "key_budget_total",
                (Owner::Key, Period::Day) => "key_budget_day",
                (Owner::Key, Period::Month) => "key_budget_month",
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_window_begins_at_midnight_of_utc_and_ends_where_the_next_begins() {
        for (period, inside, start, end) in [
            (
                Period::Day,
                "2026-11-28T00:00:00Z",
                "2026-11-28T00:00:00Z",
                Some("2026-11-29T00:00:00Z"),
            ),
            (
                Period::Day,
                "2026-11-28T23:59:59.999999Z",
                "2026-11-28T00:00:00Z",
                Some("2026-11-29T00:00:00Z"),
            ),
            (
                Period::Month,
                "2026-12-31T23:59:59Z",
                "2026-12-01T00:00:00Z",
                Some("2027-01-01T00:00:00Z"),
            ),
            (
                Period::Month,
                "2028-02-29T12:00:00Z",
                "2028-02-01T00:00:00Z",
                Some("2028-03-01T00:00:00Z"),
            ),
            (Period::Total, "2026-11-28T12:00:00Z", "1970-01-01T00:00:00Z", None),
        ] {
            assert_eq!(period.start(at(inside)), at(start), "{period} {inside}");
            assert_eq!(period.resets_at(at(inside)), end.map(at), "{period} {inside}");
        }
    }

    #[test]
    fn a_budget_is_an_amount_and_a_period() {
        let budget = |text: &str| text.parse::<Budget>().map(|b| (b.limit.to_string(), b.period));
        assert_eq!(budget("20"), Ok(("20".into(), Period::Total)));
        assert_eq!(budget("$0.5/day"), Ok(("0.5".into(), Period::Day)));
        assert_eq!(budget("100/month"), Ok(("100".into(), Period::Month)));
        assert_eq!(budget("0/total"), Ok(("0".into(), Period::Total)));
        for wrong in ["", "/day", "5/week", "-1/day", "5/day/day", "five"] {
            assert!(budget(wrong).is_err(), "{wrong}");
        }
    }
}
