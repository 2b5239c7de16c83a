//! OpenAI's documents: its old balance form, and the usage and costs of an organization, which is here one key.
//!
//! Their amounts are JSON numbers. They are written as exact decimals: no float comes near them.

use std::ops::Range;

use axum::http::Uri;
use jiff::Timestamp;
use rust_decimal::Decimal;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::ends_at;
use super::query::{Query, wrong};
use crate::call::Endpoint;
use crate::money::Usd;
use crate::refusal::{Refusal, Wrong};
use crate::store::keys::Key;
use crate::store::reports::{Of, Question, Standing, Sum};

/// The latest time there is, in Unix seconds: in the year 9999.
const LATEST: i64 = 253_402_207_200;

/// An exact decimal as a JSON number.
#[derive(Debug)]
struct Number(Decimal);

impl Serialize for Number {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let number = RawValue::from_string(self.0.normalize().to_string()).map_err(serde::ser::Error::custom)?;
        number.serialize(serializer)
    }
}

fn dollars(usd: Usd) -> Number {
    Number(Decimal::new(usd.nanos(), 9))
}

fn cents(usd: Usd) -> Number {
    Number(Decimal::new(usd.nanos(), 7))
}

/// What the key has spent and what its user has: what was ever there, as far as the key can see.
fn granted(standing: &Standing) -> Usd {
    let user = &standing.user;
    standing
        .spent
        .saturating_add(user.balance)
        .saturating_add(user.credit_line)
}

/// `GET /v1/dashboard/billing/subscription`. Clients take `total_usage` of [`BillingUsage`] from the hard limit, for
/// whatever dates: what is left is balance and credit line.
#[derive(Debug, Serialize)]
pub(super) struct Subscription {
    object: &'static str,
    soft_limit_usd: Number,
    hard_limit_usd: Number,
    system_hard_limit_usd: Number,
    /// Unix seconds; 0: it does not expire.
    access_until: i64,
}

impl Subscription {
    pub(super) fn new(standing: &Standing, key: &Key) -> Subscription {
        let limit = granted(standing);
        Subscription {
            object: "billing_subscription",
            soft_limit_usd: dollars(limit),
            hard_limit_usd: dollars(limit),
            system_hard_limit_usd: dollars(limit),
            access_until: ends_at(key).map_or(0, Timestamp::as_second),
        }
    }
}

/// `GET /v1/dashboard/billing/usage`: in cents, since the key was issued.
#[derive(Debug, Serialize)]
pub(super) struct BillingUsage {
    object: &'static str,
    total_usage: Number,
}

impl BillingUsage {
    pub(super) fn new(standing: &Standing) -> BillingUsage {
        BillingUsage {
            object: "list",
            total_usage: cents(standing.spent),
        }
    }
}

/// `GET /v1/dashboard/billing/credit_grants`: in dollars. What running calls hold is not available.
#[derive(Debug, Serialize)]
pub(super) struct CreditGrants {
    object: &'static str,
    total_granted: Number,
    total_used: Number,
    total_available: Number,
}

impl CreditGrants {
    pub(super) fn new(standing: &Standing) -> CreditGrants {
        CreditGrants {
            object: "credit_summary",
            total_granted: dollars(granted(standing)),
            total_used: dollars(standing.spent),
            total_available: dollars(standing.user.available()),
        }
    }
}

/// What is no completion.
const NO_COMPLETIONS: [Endpoint; 6] = [
    Endpoint::Embeddings,
    Endpoint::ImageGenerations,
    Endpoint::ImageEdits,
    Endpoint::Speech,
    Endpoint::Transcriptions,
    Endpoint::Translations,
];

/// What is asked of `/v1/organization/…`: buckets of time and how they are split.
#[derive(Debug)]
pub(super) struct Asked {
    span: Range<i64>,
    width: i64,
    limit: usize,
    by: Vec<String>,
    models: Option<Vec<String>>,
    /// Whether the key itself is among the keys and users that are asked for.
    own: bool,
    without: &'static [Endpoint],
}

impl Asked {
    /// `GET /v1/organization/usage/completions`: everything but what OpenAI tells of at paths of their own.
    pub(super) fn usage(uri: &Uri, of: Of, now: Timestamp) -> Result<Asked, Refusal> {
        let known = [
            "start_time",
            "end_time",
            "bucket_width",
            "group_by",
            "limit",
            "page",
            "models",
            "api_key_ids",
            "user_ids",
        ];
        let mut query = Query::read(uri, &known)?;
        let (width, usual, most) = match query.word("bucket_width", &["1m", "1h", "1d"])? {
            Some("1m") => (60, 60, 1440),
            Some("1h") => (3_600, 24, 168),
            _ => (86_400, 7, 31),
        };
        let asked = Asked::read(&mut query, of, now, (width, usual, most))?;
        Ok(Asked {
            by: groups(&mut query, &["model", "service_tier", "api_key_id", "user_id"])?,
            models: query.list("models")?,
            without: &NO_COMPLETIONS,
            ..asked
        })
    }

    /// `GET /v1/organization/costs`: charges by the day; a line item is a model.
    pub(super) fn costs(uri: &Uri, of: Of, now: Timestamp) -> Result<Asked, Refusal> {
        let known = [
            "start_time",
            "end_time",
            "bucket_width",
            "group_by",
            "limit",
            "page",
            "line_items",
            "api_key_ids",
            "user_ids",
        ];
        let mut query = Query::read(uri, &known)?;
        query.word("bucket_width", &["1d"])?;
        let asked = Asked::read(&mut query, of, now, (86_400, 7, 180))?;
        Ok(Asked {
            by: groups(&mut query, &["line_item", "api_key_id", "user_id"])?,
            models: query.list("line_items")?,
            ..asked
        })
    }

    /// What both have. Buckets begin at whole minutes, hours or days, UTC; the first is cut at the start and the last
    /// at the end. There are none of the future.
    fn read(
        query: &mut Query,
        of: Of,
        now: Timestamp,
        (width, usual, most): (i64, usize, usize),
    ) -> Result<Asked, Refusal> {
        let start = query
            .number("start_time", 0..=LATEST)?
            .ok_or_else(|| wrong("start_time", Wrong::NoStart))?;
        let current = after(now.as_second(), width);
        let end = query.number("end_time", 0..=LATEST)?.unwrap_or(current.max(start + 1));
        if end <= start {
            return Err(wrong("end_time", Wrong::NotAfter { start: "start_time" }));
        }
        let page = query.text("page")?.map(|page| {
            let at = page.strip_prefix("page_").and_then(|at| at.parse::<i64>().ok());
            at.filter(|at| (start..end).contains(at) && at % width == 0)
                .ok_or_else(|| wrong("page", Wrong::NotAPage))
        });
        let own = |list: Option<Vec<String>>, id: String| list.is_none_or(|ids| ids.contains(&id));
        let own_key = own(query.list("api_key_ids")?, of.key.to_string());
        Ok(Asked {
            span: page.transpose()?.unwrap_or(start)..end.min(current),
            width,
            limit: query.number("limit", 1..=most)?.unwrap_or(usual),
            by: Vec::new(),
            models: None,
            own: own_key && own(query.list("user_ids")?, of.user.to_string()),
            without: &[],
        })
    }

    /// Where the buckets begin, and where the last of them ends.
    fn edges(&self) -> Vec<i64> {
        let starts = std::iter::successors(Some(self.span.start), |at| Some(after(*at, self.width)));
        let mut edges: Vec<i64> = starts
            .take_while(|at| *at < self.span.end)
            .take(self.limit + 1)
            .collect();
        if edges.len() <= self.limit && !edges.is_empty() {
            edges.push(self.span.end);
        }
        edges
    }

    /// What to sum for this page; `None`: nothing.
    pub(super) fn question(&self) -> Option<Question> {
        let edges = self.edges();
        let time = |seconds: i64| Timestamp::from_second(seconds).ok();
        let span = time(*edges.first()?)?..time(*edges.last()?)?;
        let by = |name: &str| self.by.iter().any(|group| group == name);
        self.own.then(|| Question {
            span,
            width: Some(std::time::Duration::from_secs(self.width.unsigned_abs())),
            by_model: by("model") || by("line_item"),
            by_tier: by("service_tier"),
            by_origin: None,
            models: self.models.clone(),
            without: self.without,
        })
    }

    /// The page: every bucket of it, with what its sums come to.
    pub(super) fn page<R>(&self, sums: &[Sum], of: Of, result: fn(&Sum, Ids) -> R) -> Page<R> {
        let edges = self.edges();
        let by = |name: &str| self.by.iter().any(|group| group == name);
        let ids = || Ids {
            api_key_id: by("api_key_id").then(|| of.key.to_string()),
            user_id: by("user_id").then(|| of.user.to_string()),
        };
        let bucket = |(start_time, end_time): (i64, i64)| {
            let begins = start_time - start_time % self.width;
            let within = sums
                .iter()
                .filter(|sum| sum.from.map(Timestamp::as_second) == Some(begins));
            Bucket {
                object: "bucket",
                start_time,
                end_time,
                results: within.map(|sum| result(sum, ids())).collect(),
            }
        };
        let next = edges.last().copied().filter(|end| *end < self.span.end);
        Page {
            object: "page",
            data: edges.windows(2).map(|pair| bucket((pair[0], pair[1]))).collect(),
            has_more: next.is_some(),
            next_page: next.map(|at| format!("page_{at}")),
        }
    }
}

/// The first time after this one at which a bucket begins.
fn after(at: i64, width: i64) -> i64 {
    at - at % width + width
}

fn groups(query: &mut Query, known: &[&str]) -> Result<Vec<String>, Refusal> {
    let groups = query.list("group_by")?.unwrap_or_default();
    match groups.iter().find(|group| !known.contains(&group.as_str())) {
        None => Ok(groups),
        Some(_) => Err(wrong(
            "group_by",
            Wrong::NotOneOf {
                words: known.join(", "),
            },
        )),
    }
}

/// A page of buckets.
#[derive(Debug, Serialize)]
pub(super) struct Page<R> {
    object: &'static str,
    data: Vec<Bucket<R>>,
    has_more: bool,
    next_page: Option<String>,
}

#[derive(Debug, Serialize)]
struct Bucket<R> {
    object: &'static str,
    start_time: i64,
    end_time: i64,
    results: Vec<R>,
}

/// Whose a result is, when it is grouped by that.
#[derive(Debug, Serialize)]
pub(super) struct Ids {
    api_key_id: Option<String>,
    user_id: Option<String>,
}

/// A result of usage.
#[derive(Debug, Serialize)]
pub(super) struct Completions {
    object: &'static str,
    input_tokens: u64,
    input_uncached_tokens: u64,
    input_cached_tokens: u64,
    input_cache_write_tokens: u64,
    input_cache_write_30m_tokens: u64,
    input_cache_write_12h_tokens: u64,
    input_audio_tokens: u64,
    output_tokens: u64,
    output_audio_tokens: u64,
    num_model_requests: u64,
    model: Option<String>,
    service_tier: Option<&'static str>,
    #[serde(flatten)]
    ids: Ids,
}

/// A group's usage.
pub(super) fn completions(sum: &Sum, ids: Ids) -> Completions {
    let written = sum.cache_write_tokens + sum.cache_write_12h_tokens;
    Completions {
        object: "organization.usage.completions.result",
        input_tokens: sum.input_tokens,
        input_uncached_tokens: sum.input_tokens.saturating_sub(sum.cached_tokens + written),
        input_cached_tokens: sum.cached_tokens,
        input_cache_write_tokens: written,
        input_cache_write_30m_tokens: sum.cache_write_tokens,
        input_cache_write_12h_tokens: sum.cache_write_12h_tokens,
        input_audio_tokens: sum.audio_input_tokens,
        output_tokens: sum.output_tokens,
        output_audio_tokens: sum.audio_output_tokens,
        num_model_requests: sum.exchanges,
        model: sum.model.clone(),
        service_tier: sum.tier.map(|tier| tier.name()),
        ids,
    }
}

/// A result of costs: what was charged, less what was given back.
#[derive(Debug, Serialize)]
pub(super) struct Costs {
    object: &'static str,
    amount: Amount,
    line_item: Option<String>,
    #[serde(flatten)]
    ids: Ids,
}

#[derive(Debug, Serialize)]
struct Amount {
    value: Number,
    currency: &'static str,
}

/// A group's charges, less what was given back.
pub(super) fn costs(sum: &Sum, ids: Ids) -> Costs {
    Costs {
        object: "organization.costs.result",
        amount: Amount {
            value: dollars(sum.charge.saturating_sub(sum.refunded)),
            currency: "usd",
        },
        line_item: sum.model.clone(),
        ids,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::store::{KeyId, UserId};

    fn of() -> Of {
        Of {
            user: UserId(Uuid::nil()),
            key: KeyId(Uuid::nil()),
        }
    }

    fn costs_of(query: &str) -> Result<Asked, Refusal> {
        let uri = format!("/v1/organization/costs?{query}").parse().expect("a target");
        let now = Timestamp::from_second(10 * 86_400 + 5).expect("a time");
        Asked::costs(&uri, of(), now)
    }

    fn buckets(query: &str) -> (Vec<(i64, i64)>, Option<String>) {
        let page = costs_of(query).expect("a question").page(&[], of(), costs);
        let data = page.data.iter().map(|bucket| (bucket.start_time, bucket.end_time));
        (data.collect(), page.next_page)
    }

    #[test]
    fn a_number_is_exact() {
        let text = |number| serde_json::to_string(&number).expect("JSON");
        assert_eq!(text(dollars(Usd::from_nanos(252_000))), "0.000252");
        assert_eq!(text(cents(Usd::from_nanos(252_000))), "0.0252");
        assert_eq!(text(dollars(Usd::MAX)), "9223372036.854775807");
        assert_eq!(text(cents(Usd::from_nanos(i64::MIN))), "-922337203685.4775808");
        assert_eq!(text(dollars(Usd::from_nanos(5_000_000_000))), "5");
        assert_eq!(text(dollars(Usd::from_nanos(100_000_000_000))), "100");
    }

    #[test]
    fn buckets_are_whole_days_cut_at_both_ends_and_pages_go_on_where_they_stopped() {
        let day = 86_400;
        assert_eq!(
            buckets("start_time=100&end_time=200000&limit=2"),
            (vec![(100, day), (day, 2 * day)], Some(format!("page_{}", 2 * day)))
        );
        assert_eq!(
            buckets(&format!("start_time=100&end_time=200000&limit=2&page=page_{}", 2 * day)),
            (vec![(2 * day, 200_000)], None)
        );
        let today = format!("start_time={}", 9 * day);
        assert_eq!(buckets(&today), (vec![(9 * day, 10 * day), (10 * day, 11 * day)], None));
        let future = format!("start_time={}", 20 * day);
        assert_eq!(buckets(&future), (vec![], None));
        assert_eq!(
            buckets(&format!("start_time=0&end_time={LATEST}&limit=180")).0.len(),
            11
        );
    }

    #[test]
    fn what_is_not_asked_right_is_named() {
        for (query, named) in [
            ("", "start_time"),
            ("start_time=x", "start_time"),
            ("start_time=-1", "start_time"),
            ("start_time=5&end_time=5", "end_time"),
            ("start_time=0&limit=181", "limit"),
            ("start_time=0&bucket_width=1h", "bucket_width"),
            ("start_time=0&group_by=model", "group_by"),
            ("start_time=0&page=page_1", "page"),
            ("start_time=0&project_ids=a", "project_ids"),
        ] {
            let refused = costs_of(query).err();
            assert!(
                matches!(&refused, Some(Refusal::Question { param, .. }) if param == named),
                "{query}: {refused:?}"
            );
        }
    }

    #[test]
    fn of_another_key_there_is_nothing() {
        let asked = costs_of("start_time=0&api_key_ids[]=01a20e17-373e-7416-b9e4-5d1cf3900119").expect("a question");
        assert!(asked.question().is_none());
        let own = costs_of(&format!("start_time=0&api_key_ids={}", Uuid::nil())).expect("a question");
        assert!(own.question().is_some());
    }
}
