//! Query strings: names that are known, values within bounds, else a refusal that names the parameter.

use std::ops::RangeInclusive;
use std::str::FromStr;

use axum::extract;
use axum::http::Uri;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use uuid::Uuid;

use crate::origin::Label;
use crate::refusal::{Refusal, Wrong};
use crate::store::ExchangeId;

/// Parameters of one query, at most.
const MOST_PARAMETERS: usize = 200;

/// Values of one list, at most.
const MOST_LISTED: usize = 50;

/// The parameters of a query that are not read yet.
pub(super) struct Query(Vec<(String, String)>);

/// A refusal of a parameter.
pub(super) fn wrong(param: &str, why: Wrong) -> Refusal {
    Refusal::Question {
        param: param.to_owned(),
        why,
    }
}

impl Query {
    /// The parameters of a query; lists may be written `name[]`. One that is not known is refused: left out in silence,
    /// it would make the answer another one than was asked for.
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Query, Refusal> {
        let pairs = extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
        let extract::Query(pairs) = pairs.map_err(|_| wrong("query", Wrong::Unreadable))?;
        if pairs.len() > MOST_PARAMETERS {
            return Err(wrong("query", Wrong::Parameters { most: MOST_PARAMETERS }));
        }
        let plain = |(name, value): (String, String)| match name.strip_suffix("[]") {
            Some(plain) => (plain.to_owned(), value),
            None => (name, value),
        };
        let pairs: Vec<_> = pairs.into_iter().map(plain).collect();
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(Query(pairs)),
            Some((name, _)) if known.is_empty() => Err(wrong(name, Wrong::TakesNone)),
            Some((name, _)) => Err(wrong(
                name,
                Wrong::Unknown {
                    known: known.join(", "),
                },
            )),
        }
    }

    /// All values of a parameter, also those that are written with commas between them. `None`: it is not there.
    pub(super) fn list(&mut self, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        let of_name = self.0.extract_if(.., |(given, _)| given == name);
        let values: Vec<String> = of_name
            .flat_map(|(_, value)| value.split(',').map(str::to_owned).collect::<Vec<_>>())
            .collect();
        match values.len() {
            0 => Ok(None),
            1..=MOST_LISTED => Ok(Some(values)),
            _ => Err(wrong(name, Wrong::Values { most: MOST_LISTED })),
        }
    }

    fn one(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        let mut values = self.0.extract_if(.., |(given, _)| given == name);
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(wrong(name, Wrong::Twice)),
            (value, None) => Ok(value.map(|(_, value)| value)),
        }
    }

    /// A whole number within bounds.
    pub(super) fn number<N>(&mut self, name: &str, bounds: RangeInclusive<N>) -> Result<Option<N>, Refusal>
    where
        N: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let number = text.parse().ok().filter(|number| bounds.contains(number));
        let (least, most) = bounds.into_inner();
        let bounds = || Wrong::NotWithin {
            least: least.to_string(),
            most: most.to_string(),
        };
        number.ok_or_else(|| wrong(name, bounds())).map(Some)
    }

    /// One of a few words.
    pub(super) fn word(&mut self, name: &str, words: &[&'static str]) -> Result<Option<&'static str>, Refusal> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let word = words.iter().copied().find(|word| *word == text);
        word.ok_or_else(|| {
            wrong(
                name,
                Wrong::NotOneOf {
                    words: words.join(", "),
                },
            )
        })
        .map(Some)
    }

    /// A time, or a date: its midnight, UTC.
    pub(super) fn time(&mut self, name: &str) -> Result<Option<Timestamp>, Refusal> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let midnight = |date: Date| {
            date.to_zoned_datetime(TimeZone::UTC)
                .ok()
                .map(|zoned| zoned.timestamp())
        };
        let time = match text.len() {
            10 => text.parse().ok().and_then(midnight),
            _ => text.parse().ok(),
        };
        // What Date writes as a year is what these count with: four digits from 1970.
        let time = time.filter(|time| *time >= Timestamp::UNIX_EPOCH);
        time.ok_or_else(|| wrong(name, Wrong::NotATime)).map(Some)
    }

    /// The id of an exchange, as an earlier answer gave it.
    pub(super) fn id(&mut self, name: &str) -> Result<Option<ExchangeId>, Refusal> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let id = Uuid::try_parse(&text).map_err(|_| wrong(name, Wrong::NotAPage))?;
        Ok(Some(ExchangeId(id)))
    }

    /// The id of a session. No session is called anything else.
    pub(super) fn label(&mut self, name: &str) -> Result<Option<Label>, Refusal> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        let label = Label::new(&text);
        label.ok_or_else(|| wrong(name, Wrong::NotASession)).map(Some)
    }

    /// A text.
    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Refusal> {
        self.one(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [&str; 3] = ["since", "limit", "group_by"];

    fn read(query: &str) -> Result<Query, Refusal> {
        let uri = format!("/v1/gateway/requests?{query}").parse().expect("a target");
        Query::read(&uri, &KNOWN)
    }

    fn param(refused: Refusal) -> String {
        match refused {
            Refusal::Question { param, .. } => param,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_parameter_that_is_not_known_or_out_of_bounds_is_named() {
        for (query, named) in [
            ("sinse=2026-11-28", "sinse"),
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=", "limit"),
            ("limit=1&limit=1", "limit"),
            ("limit=1e1", "limit"),
            ("since=yesterday", "since"),
            ("since=1969-12-31", "since"),
            ("since=2026-02-30", "since"),
            ("since=%FF", "since"),
        ] {
            let refused = read(query).and_then(|mut query| {
                query.time("since")?;
                query.number::<u32>("limit", 1..=100)
            });
            assert_eq!(refused.map_err(param), Err(named.to_owned()), "{query}");
        }
        let many = "limit=1&".repeat(MOST_PARAMETERS + 1);
        assert_eq!(read(&many).err().map(param).as_deref(), Some("query"));
    }

    #[test]
    fn a_date_is_its_midnight_and_a_list_is_written_in_three_ways() {
        let time = |text: &str| read(&format!("since={text}")).and_then(|mut query| query.time("since"));
        let midnight = "2026-11-28T00:00:00Z".parse().ok();
        assert_eq!(time("2026-11-28"), Ok(midnight));
        assert_eq!(time("2026-11-28T01:00:00%2B01:00"), Ok(midnight));
        for list in ["group_by=a,b", "group_by[]=a&group_by[]=b", "group_by=a&group_by=b"] {
            let list = read(list).and_then(|mut query| query.list("group_by"));
            assert_eq!(list, Ok(Some(vec!["a".to_owned(), "b".to_owned()])));
        }
        let list = |values| {
            read(&format!("group_by={}a", "a,".repeat(values - 1))).and_then(|mut query| query.list("group_by"))
        };
        assert_eq!(
            list(MOST_LISTED).map(|list| list.map(|list| list.len())),
            Ok(Some(MOST_LISTED))
        );
        assert_eq!(list(MOST_LISTED + 1).map_err(param), Err("group_by".to_owned()));
    }
}
