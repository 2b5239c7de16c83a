//! The gateway's own documents: money in decimal strings of dollars, times in RFC 3339, tokens as integers.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::query::{Query, wrong};
use super::{ends_at, unreadable};
use crate::budget::{Owner, Period};
use crate::limits::Rates;
use crate::money::Usd;
use crate::origin::Origin;
use crate::pricing::{self, Line};
use crate::refusal::{Refusal, Wrong};
use crate::store::StoreError;
use crate::store::attempts::Attempt;
use crate::store::budgets::Standing;
use crate::store::keys::Key;
use crate::store::reports::{self, Account, ByOrigin, Question, Sum};
use crate::store::usage_log::{Basis, State, UsageSum};
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
    budgets: Vec<OwnBudget>,
    limits: OwnLimits,
    models: Vec<String>,
}

/// How often and how much at once; what is `null` has no limit.
#[derive(Debug, Serialize)]
pub(super) struct OwnLimits {
    pub(super) key: Rates,
    pub(super) user: Rates,
    /// Of each model that has any, everybody together.
    pub(super) models: BTreeMap<String, Rates>,
}

/// What may be spent in a span of time, and what is left of it.
#[derive(Debug, Serialize)]
struct OwnBudget {
    of: Owner,
    period: Period,
    limit: Usd,
    spent: Usd,
    held: Usd,
    left: Usd,
    resets_at: Option<Timestamp>,
}

impl OwnBudget {
    fn new(of: Owner, budget: &Standing) -> OwnBudget {
        OwnBudget {
            of,
            period: budget.period,
            limit: budget.limit,
            spent: budget.spent,
            held: budget.held,
            left: budget.left(),
            resets_at: budget.resets_at,
        }
    }
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
    pub(super) fn new(account: &Account, key: &Key, limits: OwnLimits, models: Vec<String>) -> Me {
        let Account { user, of_user, of_key } = account;
        let of_key = of_key.iter().map(|budget| OwnBudget::new(Owner::Key, budget));
        let of_user = of_user.iter().map(|budget| OwnBudget::new(Owner::User, budget));
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
            budgets: of_key.chain(of_user).collect(),
            limits,
            models,
        }
    }
}

/// How one charge came about, as its payer sees it: what each class of usage was charged at, markup and regional uplift
/// included. The amounts add up to `priced`, which is rounded once; `charge` is what was taken of it, and
/// `refunded` what was given back of that.
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
    refunded: Usd,
    hold: Usd,
    output_limit: Option<Tokens>,
    balance_after: Usd,
    attempts: u32,
    tries: Vec<Try>,
    response_id: Option<String>,
    started_at: Timestamp,
    first_byte_ms: Option<u128>,
    duration_ms: u128,
    #[serde(flatten)]
    origin: Origin,
}

/// One attempt of a call that was sent more than once. Which upstream it was is the operator's own business.
#[derive(Debug, Serialize)]
struct Try {
    outcome: &'static str,
    status: Option<u16>,
    began_ms: u128,
    duration_ms: u128,
    /// What was charged for it: only the last can have been taken.
    charge: Usd,
}

impl Try {
    fn all(attempts: &[Attempt], charge: Usd) -> Vec<Try> {
        let last = attempts.len().saturating_sub(1);
        let one = |(number, attempt): (usize, &Attempt)| Try {
            outcome: attempt.outcome.name(),
            status: attempt.status,
            began_ms: attempt.began.as_millis(),
            duration_ms: attempt.took.as_millis(),
            charge: if number == last { charge } else { Usd::ZERO },
        };
        attempts.iter().enumerate().map(one).collect()
    }
}

impl Receipt {
    pub(super) fn new(read: &reports::Receipt) -> Result<Receipt, Refusal> {
        let reports::Receipt {
            row,
            refunded,
            attempts,
        } = read;
        let charge = row.charge.saturating_sub(row.uncollected);
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
            charge,
            uncollected: row.uncollected,
            refunded: *refunded,
            hold: row.held,
            output_limit: row.output_limit,
            balance_after: row.balance_after,
            attempts: row.attempts,
            tries: Try::all(attempts, charge),
            response_id: row.response_id.clone(),
            started_at: row.started_at,
            first_byte_ms: row.first_byte.map(|wait| wait.as_millis()),
            duration_ms: row.duration.as_millis(),
            origin: row.origin.clone(),
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
    pub(super) fn new(mut rows: Vec<reports::Receipt>, limit: u32) -> Result<Receipts, Refusal> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = rows.len() > limit;
        rows.truncate(limit);
        Ok(Receipts {
            next_page: rows.last().filter(|_| more).map(|last| last.row.id.to_string()),
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
    Session,
    Kind,
    Client,
}

impl By {
    const ALL: [By; 5] = [By::Day, By::Model, By::Session, By::Kind, By::Client];

    fn name(self) -> &'static str {
        match self {
            By::Day => "day",
            By::Model => "model",
            By::Session | By::Kind | By::Client => self.origin().map_or("", ByOrigin::name),
        }
    }

    fn origin(self) -> Option<ByOrigin> {
        match self {
            By::Day | By::Model => None,
            By::Session => Some(ByOrigin::Session),
            By::Kind => Some(ByOrigin::Kind),
            By::Client => Some(ByOrigin::Client),
        }
    }

    /// The group of a sum; `None`: the client did not say.
    fn group(self, sum: &Sum) -> Option<String> {
        match self {
            By::Day => sum.from.map(|day| day.strftime("%Y-%m-%d").to_string()),
            By::Model => sum.model.clone(),
            By::Session | By::Kind | By::Client => sum.origin.clone(),
        }
    }
}

/// The question of `GET /v1/gateway/usage`.
pub(super) fn question(query: &mut Query, now: Timestamp) -> Result<(By, Question), Refusal> {
    let by = query.word("by", &By::ALL.map(By::name))?;
    let by = By::ALL
        .into_iter()
        .find(|known| Some(known.name()) == by)
        .unwrap_or(By::Day);
    let question = Question {
        span: span(query, now)?,
        width: (by == By::Day).then_some(DAY),
        by_model: by == By::Model,
        by_tier: false,
        by_origin: by.origin(),
        models: None,
        without: &[],
    };
    Ok((by, question))
}

/// The span of time that a question is about.
pub(super) fn span(query: &mut Query, now: Timestamp) -> Result<Range<Timestamp>, Refusal> {
    let until = query.time("until")?.unwrap_or(now);
    let since = query.time("since")?.unwrap_or_else(|| usual_start(until));
    if since >= until {
        return Err(wrong("since", Wrong::NotBefore { end: "until" }));
    }
    if since.duration_until(until) > SignedDuration::from_hours(24 * MOST_DAYS) {
        return Err(wrong("since", Wrong::Days { most: MOST_DAYS }));
    }
    Ok(since..until)
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
    /// What is summed by, and the value of it.
    #[serde(flatten)]
    of: BTreeMap<&'static str, Option<String>>,
    #[serde(flatten)]
    total: Total,
}

#[derive(Debug, Default, Serialize)]
pub(super) struct Total {
    exchanges: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    charge: Usd,
    uncollected: Usd,
    refunded: Usd,
}

impl Total {
    pub(super) fn of(sum: &UsageSum) -> Total {
        Total {
            exchanges: sum.exchanges,
            input_tokens: sum.input_tokens,
            cached_tokens: sum.cached_tokens,
            output_tokens: sum.output_tokens,
            charge: sum.charge,
            uncollected: sum.uncollected,
            refunded: sum.refunded,
        }
    }

    fn add(&mut self, sum: &Sum) {
        self.exchanges += sum.exchanges;
        self.input_tokens += sum.input_tokens;
        self.cached_tokens += sum.cached_tokens;
        self.output_tokens += sum.output_tokens;
        self.charge = self.charge.saturating_add(sum.charge);
        self.uncollected = self.uncollected.saturating_add(sum.uncollected);
        self.refunded = self.refunded.saturating_add(sum.refunded);
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
                of: BTreeMap::from([(by.name(), by.group(sum))]),
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
