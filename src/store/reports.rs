//! What a payer reads: the rows of one key, and the state of the balance that it spends.
//!
//! Every question is told whose it is and when to stop: a long one is broken off when nobody waits for its answer.
//! They all find their rows by the user's index. An exchange's id begins with the time at which it came in, so that a
//! span of time is a range of that index too.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};
use uuid::Uuid;

use super::attempts::{self, Attempt};
use super::budgets::{self, Spender};
use super::columns::{Count, Micros, broken, json};
use super::usage_log::{ExchangeRow, exchange};
use super::users::{self, User};
use super::{ExchangeId, KeyId, Store, StoreError, UserId};
use crate::call::Endpoint;
use crate::money::Usd;
use crate::origin::Label;
use crate::usage::Tier;

/// Steps of SQLite between two looks at whether to stop: well below a millisecond.
const STEPS: i32 = 10_000;

/// How far the time in an exchange's id may be from that of its hold: the body comes in between, and clocks jump.
const APART: Duration = Duration::from_secs(24 * 3600);

/// Groups of one answer, at most.
const MOST_GROUPS: u32 = 10_000;

/// Whose rows: those of one key.
#[derive(Clone, Copy, Debug)]
pub struct Of {
    /// The key's user.
    pub user: UserId,
    /// The key.
    pub key: KeyId,
}

/// Tells a question to stop.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

/// Stops its question when it goes.
#[derive(Debug)]
pub struct StopOnDrop(Stop);

impl Stop {
    /// A guard that stops the question when it is dropped.
    pub fn on_drop(&self) -> StopOnDrop {
        StopOnDrop(self.clone())
    }

    /// Whether it was told to.
    pub fn told(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub enum Unread {
    /// It was told to stop.
    Stopped,
    /// It would have more groups than one answer may have.
    TooMany,
    /// The database failed.
    Failed(StoreError),
}

/// What a key's user has, and what the key has spent, of one moment.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The user.
    pub user: User,
    /// What was charged to the key since it was issued, less what was given back.
    pub spent: Usd,
}

/// What a key's user has, and what may be spent of it, of one moment.
#[derive(Clone, Debug)]
pub struct Account {
    /// The user.
    pub user: User,
    /// The user's budgets.
    pub of_user: Vec<budgets::Standing>,
    /// The key's.
    pub of_key: Vec<budgets::Standing>,
}

/// Which exchanges, newest first.
#[derive(Clone, Debug)]
pub struct Page {
    /// Started at or after.
    pub since: Option<Timestamp>,
    /// Older than this one.
    pub before: Option<ExchangeId>,
    /// Of this session.
    pub session: Option<Label>,
    /// At most so many.
    pub limit: u32,
}

/// What to sum, and by what.
#[derive(Clone, Debug)]
pub struct Question {
    /// Started within.
    pub span: Range<Timestamp>,
    /// Spans of time of this length, counted from 1970; `None`: not by time.
    pub width: Option<Duration>,
    /// By the model that was asked for.
    pub by_model: bool,
    /// By the tier that was priced.
    pub by_tier: bool,
    /// By something that the client said of itself.
    pub by_origin: Option<ByOrigin>,
    /// Only these models; `None`: all.
    pub models: Option<Vec<String>>,
    /// Without these endpoints.
    pub without: &'static [Endpoint],
}

/// What clients say of themselves, as far as it is summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ByOrigin {
    /// The session.
    Session,
    /// What the call was for.
    Kind,
    /// The client's name.
    Client,
}

impl ByOrigin {
    /// The name in documents.
    pub const fn name(self) -> &'static str {
        match self {
            ByOrigin::Session => "session",
            ByOrigin::Kind => "kind",
            ByOrigin::Client => "client",
        }
    }
}

/// What the exchanges of one group come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Where the span of time begins.
    pub from: Option<Timestamp>,
    /// The model.
    pub model: Option<String>,
    /// The tier.
    pub tier: Option<Tier>,
    /// What the client said of itself.
    pub origin: Option<String>,
    /// How many.
    pub exchanges: u64,
    /// Tokens read, all of them.
    pub input_tokens: u64,
    /// Of them from the cache.
    pub cached_tokens: u64,
    /// Of them written to the cache for 30 minutes.
    pub cache_write_tokens: u64,
    /// Of them written to the cache for 12 hours.
    pub cache_write_12h_tokens: u64,
    /// Of them audio.
    pub audio_input_tokens: u64,
    /// Tokens generated, all of them.
    pub output_tokens: u64,
    /// Of them audio.
    pub audio_output_tokens: u64,
    /// Charged, after what was not collected: what the ledger's entries add up to.
    pub charge: Usd,
    /// Not collected.
    pub uncollected: Usd,
    /// Of the charge: given back, whenever that was.
    pub refunded: Usd,
}

/// An exchange, and what was given back of its charge.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The exchange.
    pub row: ExchangeRow,
    /// What was given back.
    pub refunded: Usd,
    /// Where it was sent, if that was more than once; else none.
    pub attempts: Vec<Attempt>,
}

/// Refunds with their exchanges. They are few, so that all of them are looked through.
macro_rules! refunds {
    () => {
        "ledger_entries e CROSS JOIN usage_logs u ON u.exchange_id = e.refunds
         WHERE e.refunds IS NOT NULL AND u.user_id = ?1 AND u.key_id = ?2"
    };
}

const SPENT: &str = concat!(
    "SELECT COALESCE(SUM(charge_nanos - uncollected_nanos), 0) - (SELECT COALESCE(SUM(e.amount_nanos), 0) FROM ",
    refunds!(),
    ") FROM usage_logs WHERE user_id = ?1 AND key_id = ?2"
);

/// The columns of an exchange, and behind them what was given back.
macro_rules! receipt {
    () => {
        "SELECT *, (SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE refunds = usage_logs.exchange_id)
                   AS refunded
         FROM usage_logs "
    };
}

const PAGE: &str = concat!(
    receipt!(),
    "
     WHERE user_id = ?1 AND key_id = ?2 AND exchange_id >= ?3 AND exchange_id < ?4 AND started_at >= ?5
     ORDER BY exchange_id DESC LIMIT ?6"
);

/// The same of one session.
const PAGE_OF_SESSION: &str = concat!(
    receipt!(),
    "INDEXED BY usage_logs_by_session
     WHERE user_id = ?1 AND key_id = ?2 AND exchange_id >= ?3 AND exchange_id < ?4 AND started_at >= ?5 AND session = ?7
     ORDER BY exchange_id DESC LIMIT ?6"
);

const BY_ID: &str = concat!(receipt!(), "WHERE exchange_id = ?1 AND user_id = ?2 AND key_id = ?3");

/// With the `+`, the user's index is not taken for it: that would read all that the user ever did.
const BY_RESPONSE: &str = concat!(
    receipt!(),
    "WHERE response_id = ?1 AND +user_id = ?2 AND key_id = ?3 ORDER BY exchange_id DESC LIMIT 1"
);

/// What the client said of itself: the group that a parameter names.
macro_rules! of_origin {
    ($by:literal) => {
        concat!(
            "CASE ",
            $by,
            " WHEN 'session' THEN u.session WHEN 'kind' THEN u.kind
                 WHEN 'client' THEN substr(u.client, 1, instr(u.client || '/', '/') - 1) END AS of_origin,"
        )
    };
}

/// A group that is not asked for is NULL.
const SUMS: &str = concat!(
    "SELECT started_at / ?9 * ?9 AS span, CASE WHEN ?10 THEN model END AS of_model,
            CASE WHEN ?11 THEN tier END AS of_tier, ",
    of_origin!("?13"),
    " COUNT(*) AS exchanges, SUM(input_tokens) AS input,
            SUM(cached_tokens) AS cached, SUM(cache_write_tokens) AS written,
            SUM(cache_write_12h_tokens) AS written_12h, SUM(audio_input_tokens) AS audio_input,
            SUM(output_tokens) AS output, SUM(audio_output_tokens) AS audio_output,
            SUM(charge_nanos - uncollected_nanos) AS charged, SUM(uncollected_nanos) AS uncollected
     FROM usage_logs u
     WHERE user_id = ?1 AND key_id = ?2 AND exchange_id >= ?3 AND exchange_id < ?4
       AND started_at >= ?5 AND started_at < ?6 AND endpoint NOT IN (SELECT value FROM json_each(?7))
       AND (?8 IS NULL OR model IN (SELECT value FROM json_each(?8)))
     GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4 LIMIT ?12"
);

/// What was given back in the groups of [`SUMS`].
const REFUNDS: &str = concat!(
    "SELECT u.started_at / ?7 * ?7 AS span, CASE WHEN ?8 THEN u.model END AS of_model,
            CASE WHEN ?9 THEN u.tier END AS of_tier, ",
    of_origin!("?10"),
    " SUM(e.amount_nanos) AS refunded FROM ",
    refunds!(),
    " AND u.started_at >= ?3 AND u.started_at < ?4 AND u.endpoint NOT IN (SELECT value FROM json_each(?5))
       AND (?6 IS NULL OR u.model IN (SELECT value FROM json_each(?6)))
     GROUP BY 1, 2, 3, 4"
);

/// What exchanges are summed by.
type Group = (Option<Timestamp>, Option<String>, Option<Tier>, Option<String>);

fn group(row: &Row<'_>) -> rusqlite::Result<Group> {
    let span: Option<Micros> = row.get("span")?;
    Ok((
        span.map(|at| at.0),
        row.get("of_model")?,
        row.get("of_tier")?,
        row.get("of_origin")?,
    ))
}

fn sum(row: &Row<'_>) -> rusqlite::Result<Sum> {
    let count = |column: &str| row.get::<_, Count>(column).map(|count| count.0);
    let (from, model, tier, origin) = group(row)?;
    Ok(Sum {
        from,
        model,
        tier,
        origin,
        exchanges: count("exchanges")?,
        input_tokens: count("input")?,
        cached_tokens: count("cached")?,
        cache_write_tokens: count("written")?,
        cache_write_12h_tokens: count("written_12h")?,
        audio_input_tokens: count("audio_input")?,
        output_tokens: count("output")?,
        audio_output_tokens: count("audio_output")?,
        charge: row.get("charged")?,
        uncollected: row.get("uncollected")?,
        refunded: Usd::ZERO,
    })
}

/// Reads a receipt; its attempts are read from where it was found.
fn receipt(row: &Row<'_>, conn: &Connection) -> rusqlite::Result<Receipt> {
    let exchange = exchange(row)?;
    Ok(Receipt {
        attempts: match exchange.attempts {
            0 | 1 => Vec::new(),
            _ => attempts::of(conn, exchange.id)?,
        },
        refunded: row.get("refunded")?,
        row: exchange,
    })
}

/// The first id that came in at this time.
fn first_id(at: Timestamp) -> ExchangeId {
    let millis = u128::try_from(at.as_millisecond()).unwrap_or(0);
    ExchangeId(Uuid::from_u128(millis << 80))
}

/// The first id that an exchange which started at this time or later may have.
pub(super) fn lowest(since: Option<Timestamp>) -> ExchangeId {
    let since = since.and_then(|since| since.checked_sub(APART).ok());
    since.map_or(ExchangeId(Uuid::nil()), first_id)
}

/// An id above all that an exchange which started before this time may have.
fn highest(until: Timestamp) -> ExchangeId {
    until.checked_add(APART).map_or(ExchangeId(Uuid::max()), first_id)
}

/// Stops what the connection does when it is told to, and leaves the connection as it was.
struct Stoppable<'c>(&'c Connection);

impl<'c> Stoppable<'c> {
    fn new(conn: &'c Connection, stop: &Stop) -> rusqlite::Result<Stoppable<'c>> {
        let stop = stop.clone();
        conn.progress_handler(STEPS, Some(move || stop.told()))?;
        Ok(Stoppable(conn))
    }
}

impl Drop for Stoppable<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.progress_handler(0, None::<fn() -> bool>) {
            tracing::warn!(error = &error as &dyn std::error::Error, "a reader may stop early");
        }
    }
}

impl Store {
    /// Answers one question from one snapshot.
    pub(super) fn answer<T>(
        &self,
        context: &str,
        stop: &Stop,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, Unread> {
        let mut stopped = false;
        let answer = self.read(context, |conn| {
            let _stoppable = Stoppable::new(conn, stop)?;
            let snapshot = conn.unchecked_transaction()?;
            read(&snapshot).inspect_err(|error| {
                stopped = error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted);
            })
        });
        answer.map_err(|error| {
            if stopped {
                Unread::Stopped
            } else {
                Unread::Failed(error)
            }
        })
    }

    /// What the key's user has, and what their budgets and those of the key leave at a time.
    pub fn account_of(&self, of: Of, budgets_of: KeyId, at: Timestamp, stop: &Stop) -> Result<Account, Unread> {
        self.answer("reading a balance", stop, |conn| {
            Ok(Account {
                user: user(conn, of)?,
                of_user: budgets::standing(conn, Spender::User(of.user), at)?,
                of_key: budgets::standing(conn, Spender::Key(budgets_of), at)?,
            })
        })
    }

    /// What the key's user has and what the key has spent.
    pub fn standing_of(&self, of: Of, stop: &Stop) -> Result<Standing, Unread> {
        self.answer("reading what a key has spent", stop, |conn| {
            let spent = conn
                .prepare_cached(SPENT)?
                .query_row(params![of.user, of.key], |row| row.get(0))?;
            let user = user(conn, of)?;
            Ok(Standing { user, spent })
        })
    }

    /// A page of the key's exchanges.
    pub fn exchanges_of(&self, of: Of, page: &Page, stop: &Stop) -> Result<Vec<Receipt>, Unread> {
        let before = page.before.unwrap_or(ExchangeId(Uuid::max()));
        let since = page.since.map_or(i64::MIN, Timestamp::as_microsecond);
        self.answer("reading a key's exchanges", stop, |conn| {
            let low = lowest(page.since);
            let common = params![of.user, of.key, low, before, since, page.limit];
            match &page.session {
                None => conn
                    .prepare_cached(PAGE)?
                    .query_map(common, |row| receipt(row, conn))?
                    .collect(),
                Some(session) => conn
                    .prepare_cached(PAGE_OF_SESSION)?
                    .query_map(
                        params![of.user, of.key, low, before, since, page.limit, session.as_str()],
                        |row| receipt(row, conn),
                    )?
                    .collect(),
            }
        })
    }

    /// One of the key's exchanges: by its id, or by the upstream's id of the answer, of which the newest counts. Some
    /// upstreams' ids are UUIDs as ours are.
    pub fn exchange_of(&self, of: Of, which: &str, stop: &Stop) -> Result<Option<Receipt>, Unread> {
        let id = Uuid::try_parse(which).ok().map(ExchangeId);
        self.answer("looking for a key's exchange", stop, |conn| {
            let by_id = conn
                .prepare_cached(BY_ID)?
                .query_row(params![id, of.user, of.key], |row| receipt(row, conn))
                .optional()?;
            if by_id.is_some() {
                return Ok(by_id);
            }
            conn.prepare_cached(BY_RESPONSE)?
                .query_row(params![which, of.user, of.key], |row| receipt(row, conn))
                .optional()
        })
    }

    /// What the key's exchanges come to, in the order of their groups.
    pub fn sums_of(&self, of: Of, asked: &Question, stop: &Stop) -> Result<Vec<Sum>, Unread> {
        let width = asked
            .width
            .map(|width| i64::try_from(width.as_micros()).unwrap_or(i64::MAX));
        let without: Vec<&str> = asked.without.iter().map(|endpoint| endpoint.path()).collect();
        let by_origin = asked.by_origin.map(ByOrigin::name);
        let Range { start, end } = asked.span;
        let rows: Vec<Sum> = self.answer("summing a key's exchanges", stop, |conn| {
            let models = asked.models.as_ref().map(json).transpose()?;
            let without = json(&without)?;
            let mut rows: Vec<Sum> = conn
                .prepare_cached(SUMS)?
                .query_map(
                    params![
                        of.user,
                        of.key,
                        lowest(Some(start)),
                        highest(end),
                        Micros(start),
                        Micros(end),
                        without,
                        models,
                        width,
                        asked.by_model,
                        asked.by_tier,
                        MOST_GROUPS + 1,
                        by_origin
                    ],
                    sum,
                )?
                .collect::<Result<_, _>>()?;
            let refunds: Vec<(Group, Usd)> = conn
                .prepare_cached(REFUNDS)?
                .query_map(
                    params![
                        of.user,
                        of.key,
                        Micros(start),
                        Micros(end),
                        without,
                        models,
                        width,
                        asked.by_model,
                        asked.by_tier,
                        by_origin
                    ],
                    |row| Ok((group(row)?, row.get("refunded")?)),
                )?
                .collect::<Result<_, _>>()?;
            for (group, refunded) in refunds {
                let of_group = |row: &&mut Sum| {
                    (row.from, &row.model, row.tier, &row.origin) == (group.0, &group.1, group.2, &group.3)
                };
                if let Some(row) = rows.iter_mut().find(of_group) {
                    row.refunded = refunded;
                }
            }
            Ok(rows)
        })?;
        if rows.len() > MOST_GROUPS as usize {
            return Err(Unread::TooMany);
        }
        Ok(rows)
    }
}

fn user(conn: &Connection, of: Of) -> rusqlite::Result<User> {
    users::by_id(conn, of.user)?.ok_or_else(|| broken("a key has no user"))
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn every_question_finds_its_rows_by_an_index() {
        let desk = Desk::new();
        let conn = desk.raw();
        for (sql, index) in [
            (SPENT, "usage_logs_by_user (user_id=?)"),
            (
                PAGE,
                "usage_logs_by_user (user_id=? AND exchange_id>? AND exchange_id<?)",
            ),
            (PAGE_OF_SESSION, "usage_logs_by_session (session=? AND user_id=?)"),
            (BY_ID, "sqlite_autoindex_usage_logs_1 (exchange_id=?)"),
            (BY_RESPONSE, "usage_logs_by_response (response_id=?)"),
            (
                SUMS,
                "usage_logs_by_user (user_id=? AND exchange_id>? AND exchange_id<?)",
            ),
            (REFUNDS, "usage_logs_by_user (user_id=? AND exchange_id=?)"),
        ] {
            let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect(sql);
            let nulls = vec![rusqlite::types::Null; explain.parameter_count()];
            let steps = explain.query_map(rusqlite::params_from_iter(nulls), |row| row.get::<_, String>("detail"));
            let steps: Vec<String> = steps.expect(sql).collect::<Result<_, _>>().expect(sql);
            let table = if [REFUNDS, SUMS].contains(&sql) {
                "u"
            } else {
                "usage_logs"
            };
            let wanted = format!("SEARCH {table} USING INDEX {index}");
            assert!(steps.contains(&wanted), "{sql}\n{steps:#?}");
            assert!(
                !steps
                    .iter()
                    .any(|step| step == "SCAN usage_logs" || step == "SCAN u" || step == "SCAN e"),
                "{steps:#?}"
            );
        }
    }

    #[test]
    fn a_question_that_nobody_waits_for_is_broken_off_and_its_connection_is_good_again() {
        let desk = Desk::new();
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n";
        let stop = Stop::default();
        drop(stop.on_drop());
        let answer = desk.store.answer("counting", &stop, |conn| {
            conn.query_row(endless, [], |row| row.get::<_, i64>(0))
        });
        assert!(matches!(answer, Err(Unread::Stopped)), "{answer:?}");
        let again = desk.store.answer("counting", &Stop::default(), |conn| {
            let counted = "SELECT COUNT(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 100000) SELECT i FROM n)";
            conn.query_row(counted, [], |row| row.get::<_, i64>(0))
        });
        assert_eq!(again.expect("it reads"), 100_000);
    }

    #[test]
    fn a_span_of_time_is_a_range_of_ids() {
        let id = |text: &str| ExchangeId(text.parse().expect("an id"));
        let at: Timestamp = "2026-11-24T15:05:32Z".parse().expect("a time");
        let made = id("01a20e17-373e-7416-b9e4-5d1cf3900119");
        let range = |from: Timestamp, to: Timestamp| lowest(Some(from)) <= made && made < highest(to);
        let hour = Duration::from_secs(3600);
        assert!(
            range(at, at + hour),
            "also when its hold was taken later than it came in"
        );
        assert!(!range(at + APART + hour, Timestamp::MAX) && !range(Timestamp::UNIX_EPOCH, at - APART - hour));
        assert!(range(Timestamp::MIN, Timestamp::MAX));
    }
}
