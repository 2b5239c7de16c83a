//! The gateway's own documents: money in decimal strings of dollars, times in RFC 3339, tokens as integers.

use std::ops::Range;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::query::{Query, wrong};
use super::{ends_at, unreadable};
use crate::money::Usd;
use crate::pricing::{self, Line};
use crate::refusal::Refusal;
use crate::store::StoreError;
use crate::store::keys::Key;
use crate::store::reports::{Question, Sum};
use crate::store::usage_log::{Basis, ExchangeRow, State};
use crate::store::users::User;
use crate::usage::{Tokens, Usage as Used};

const DAY: Duration = Duration::from_secs(86_400);

/// Whole days before the last one that usage is summed over when none are said.
const USUAL_DAYS: i64 = 30;

/// Days that usage is summed over, at most.
const MOST_DAYS: i64 = 366;

/// `GET /v1/gateway/me`
#[derive(Debug, Serialize)]
pub(super) struct Me {
    user: String,
    status: &'static str,
    balance: Usd,
    credit_line: Usd,
    held: Usd,
    available: Usd,
    key: OwnKey,
    models: Vec<String>,
}

#[derive(Debug, Serialize)]
struct OwnKey {
    id: String,
    name: String,
    prefix: String,
    created_at: Timestamp,
    expires_at: Option<Timestamp>,
}

impl Me {
    pub(super) fn new(user: &User, key: &Key, models: Vec<String>) -> Me {
        Me {
            user: user.name.clone(),
            status: user.status.name(),
            balance: user.balance,
            credit_line: user.credit_line,
            held: user.held,
            available: user.available(),
            key: OwnKey {
                id: key.id.to_string(),
                name: key.name.clone(),
                prefix: key.prefix.clone(),
                created_at: key.created_at,
                expires_at: ends_at(key),
            },
            models,
        }
    }
}

/// How one charge came about, as its payer sees it: what each class of usage was charged at, markup and regional uplift
/// included. The amounts add up to `priced`, which is rounded once; `charge` is what was taken of it.
#[derive(Debug, Serialize)]
pub(super) struct Receipt {
    id: String,
    state: &'static str,
    estimated: bool,
    endpoint: &'static str,
    streamed: bool,
    model: String,
    priced_model: String,
    answered_model: Option<String>,
    tier: &'static str,
    usage: Used,
    lines: Vec<Line>,
    priced: Usd,
    charge: Usd,
    uncollected: Usd,
    hold: Usd,
    output_limit: Option<Tokens>,
    balance_after: Usd,
    attempts: u32,
    response_id: Option<String>,
    started_at: Timestamp,
    first_byte_ms: Option<u128>,
    duration_ms: u128,
}

impl Receipt {
    pub(super) fn new(row: &ExchangeRow) -> Result<Receipt, Refusal> {
        let lines = pricing::charged(&row.lines, row.uplift.as_deref(), &row.markup).map_err(|error| {
            unreadable(&StoreError {
                context: format!("reading the lines of {}", row.id),
                source: Some(Box::new(error)),
            })
        })?;
        Ok(Receipt {
            id: row.id.to_string(),
            state: row.state.name(),
            estimated: row.basis == Basis::Estimated && row.state != State::Interrupted,
            endpoint: row.endpoint.path(),
            streamed: row.streamed,
            model: row.model.clone(),
            priced_model: row.priced_model.clone(),
            answered_model: row.answered_model.clone(),
            tier: row.tier.name(),
            usage: row.usage.clone(),
            lines,
            priced: row.charge,
            charge: row.charge.saturating_sub(row.uncollected),
            uncollected: row.uncollected,
            hold: row.held,
            output_limit: row.output_limit,
            balance_after: row.balance_after,
            attempts: row.attempts,
            response_id: row.response_id.clone(),
            started_at: row.started_at,
            first_byte_ms: row.first_byte.map(|wait| wait.as_millis()),
            duration_ms: row.duration.as_millis(),
        })
    }
}

/// `GET /v1/gateway/requests`: newest first. `next_page` is where the next page goes on, if there is more.
#[derive(Debug, Serialize)]
pub(super) struct Receipts {
    items: Vec<Receipt>,
    next_page: Option<String>,
}

impl Receipts {
    /// Of rows of which one more than the limit was read.
    pub(super) fn new(mut rows: Vec<ExchangeRow>, limit: u32) -> Result<Receipts, Refusal> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok(Receipts {
            next_page: rows.last().filter(|_| more).map(|last| last.id.to_string()),
            items: rows.iter().map(Receipt::new).collect::<Result<_, _>>()?,
        })
    }
}

/// What usage is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum By {
    Day,
    Model,
}

/// The question of `GET /v1/gateway/usage`.
pub(super) fn question(query: &mut Query, now: Timestamp) -> Result<(By, Question), Refusal> {
    let by = match query.word("by", &["day", "model"])? {
        Some("model") => By::Model,
        _ => By::Day,
    };
    let until = query.time("until")?.unwrap_or(now);
    let since = query.time("since")?.unwrap_or_else(|| usual_start(until));
    if since >= until {
        return Err(wrong("since", "it is not before until"));
    }
    if since.duration_until(until) > SignedDuration::from_hours(24 * MOST_DAYS) {
        return Err(wrong("since", format!("it is more than {MOST_DAYS} days before until")));
    }
    let question = Question {
        span: since..until,
        width: (by == By::Day).then_some(DAY),
        by_model: by == By::Model,
        by_tier: false,
        models: None,
        without: None,
    };
    Ok((by, question))
}

/// The midnight, UTC, from which usage is summed when nothing is said.
fn usual_start(until: Timestamp) -> Timestamp {
    let day = until.as_second().div_euclid(86_400) - USUAL_DAYS;
    Timestamp::from_second(day * 86_400).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// `GET /v1/gateway/usage`
#[derive(Debug, Serialize)]
pub(super) struct Usage {
    by: By,
    since: Timestamp,
    until: Timestamp,
    items: Vec<Group>,
    total: Total,
}

#[derive(Debug, Serialize)]
struct Group {
    #[serde(skip_serializing_if = "Option::is_none")]
    day: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(flatten)]
    total: Total,
}

#[derive(Debug, Default, Serialize)]
struct Total {
    exchanges: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    charge: Usd,
    uncollected: Usd,
}

impl Total {
    fn add(&mut self, sum: &Sum) {
        self.exchanges += sum.exchanges;
        self.input_tokens += sum.input_tokens;
        self.cached_tokens += sum.cached_tokens;
        self.output_tokens += sum.output_tokens;
        self.charge = self.charge.saturating_add(sum.charge);
        self.uncollected = self.uncollected.saturating_add(sum.uncollected);
    }
}

impl Usage {
    pub(super) fn new(by: By, span: Range<Timestamp>, sums: &[Sum]) -> Usage {
        let mut total = Total::default();
        sums.iter().for_each(|sum| total.add(sum));
        let group = |sum: &Sum| {
            let mut total = Total::default();
            total.add(sum);
            Group {
                day: sum.from.map(|day| day.strftime("%Y-%m-%d").to_string()),
                model: sum.model.clone(),
                total,
            }
        };
        Usage {
            by,
            since: span.start,
            until: span.end,
            items: sums.iter().map(group).collect(),
            total,
        }
    }
}
