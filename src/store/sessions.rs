//! Sessions: which there are, and the exchanges of one, for whoever asks what they cost.
//!
//! The rows of one are found by an index that only rows with a session are in; a list of many sums rows of a span of time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params, params_from_iter};

use super::columns::{Count, Micros};
use super::reports::{Of, Stop, Unread, lowest};
use super::usage_log::{ExchangeFilter, ExchangeRow, GroupBy, UsageSum, conditions, exchange, refunds};
use super::{KeyId, Store, StoreError, UserId, prices};
use crate::money::Usd;
use crate::origin::{Client, Label};
use crate::pricing::{ListName, Price};

/// What the calls of a session come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSum {
    /// The session.
    pub session: Label,
    /// Whose it is.
    pub user: UserId,
    /// The client of its newest call.
    pub client: Option<Client>,
    /// The model that its newest call asked for.
    pub model: String,
    /// When the first call began.
    pub began: Timestamp,
    /// When the last one ended.
    pub ended: Timestamp,
    /// How many turns are known of it.
    pub turns: u64,
    /// All of it; the group is the session.
    pub sum: UsageSum,
}

/// An exchange of a session, with what a report of it needs besides.
#[derive(Clone, Debug)]
pub struct OfSession {
    /// Its row.
    pub row: ExchangeRow,
    /// What was given back of its charge.
    pub refunded: Usd,
    /// The price it was billed by; `None`: it was free, or the price is not there any more.
    pub price: Option<Arc<Price>>,
}

/// The rows of a session in the order in which their calls came; ?3: of one key only.
const ROWS: &str =
    "SELECT *, (SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE refunds = usage_logs.exchange_id)
            AS refunded
     FROM usage_logs INDEXED BY usage_logs_by_session
     WHERE session = ?1 AND user_id = ?2 AND (?3 IS NULL OR key_id = ?3) ORDER BY exchange_id";

/// Sessions that begin so, and whose they are.
const STARTING: &str = "SELECT DISTINCT session, user_id FROM usage_logs INDEXED BY usage_logs_by_session
     WHERE session >= ?1 AND session < ?1 || '~' AND (?2 IS NULL OR user_id = ?2) LIMIT ?3";

/// The session of a sub-agent.
const OF_AGENT: &str = "SELECT session FROM usage_logs INDEXED BY usage_logs_by_agent
     WHERE agent = ?1 AND user_id = ?2 AND session IS NOT NULL LIMIT 1";

/// The newest sessions among the exchanges that match. They are summed first, and what their last calls say is looked up
/// for those that are shown.
fn newest(conditions: &str, index: &str, limit: u32) -> String {
    format!(
        "SELECT s.*, n.client, n.model FROM (
             SELECT u.session, u.user_id, MAX(u.exchange_id) AS newest, MIN(u.started_at) AS began_at,
                    MAX(u.started_at + u.duration_us) AS ended_at, COUNT(DISTINCT u.turn) AS turns,
                    COUNT(*) AS exchanges, SUM(u.input_tokens) AS input_tokens, SUM(u.cached_tokens) AS cached_tokens,
                    SUM(u.output_tokens) AS output_tokens, SUM(u.cost_nanos) AS cost_nanos,
                    SUM(u.charge_nanos) - SUM(u.uncollected_nanos) AS charged_nanos,
                    SUM(u.uncollected_nanos) AS uncollected_nanos
             FROM usage_logs u INDEXED BY {index} WHERE {conditions} AND u.session IS NOT NULL
             GROUP BY u.session, u.user_id ORDER BY newest DESC LIMIT {limit}
         ) s CROSS JOIN usage_logs n ON n.exchange_id = s.newest ORDER BY s.newest DESC"
    )
}

fn sessions(conn: &Connection, filter: &ExchangeFilter) -> rusqlite::Result<Vec<SessionSum>> {
    let (conditions, values) = conditions(filter);
    let index = if filter.user.is_some() {
        "usage_logs_by_user"
    } else {
        "usage_logs_by_start"
    };
    let count = |row: &rusqlite::Row<'_>, column: &str| row.get::<_, Count>(column).map(|count| count.0);
    let read = |row: &rusqlite::Row<'_>| {
        let session: Label = row.get("session")?;
        Ok(SessionSum {
            user: row.get("user_id")?,
            client: row.get("client")?,
            model: row.get("model")?,
            began: row.get::<_, Micros>("began_at")?.0,
            ended: row.get::<_, Micros>("ended_at")?.0,
            turns: count(row, "turns")?,
            sum: UsageSum {
                group: session.to_string(),
                exchanges: count(row, "exchanges")?,
                input_tokens: count(row, "input_tokens")?,
                cached_tokens: count(row, "cached_tokens")?,
                output_tokens: count(row, "output_tokens")?,
                cost: row.get("cost_nanos")?,
                charge: row.get("charged_nanos")?,
                uncollected: row.get("uncollected_nanos")?,
                refunded: Usd::ZERO,
            },
            session,
        })
    };
    let mut found: Vec<SessionSum> = conn
        .prepare(&newest(&conditions, index, filter.limit))?
        .query_map(params_from_iter(&values), read)?
        .collect::<Result<_, _>>()?;
    // Two users may have sessions of the same name; refunds are of one of them.
    let users: BTreeSet<UserId> = found.iter().map(|session| session.user).collect();
    for user in users {
        let of_user = ExchangeFilter {
            user: Some(user),
            ..filter.clone()
        };
        let given_back = refunds(conn, &of_user, GroupBy::Session)?;
        for session in found.iter_mut().filter(|session| session.user == user) {
            session.sum.refunded = given_back.get(&session.sum.group).copied().unwrap_or_default();
        }
    }
    Ok(found)
}

/// Prices that exchanges were billed by, each read once.
#[derive(Default)]
struct Prices(BTreeMap<(ListName, String, Timestamp), Option<Arc<Price>>>);

impl Prices {
    fn of(&mut self, conn: &Connection, row: &ExchangeRow) -> rusqlite::Result<Option<Arc<Price>>> {
        let (Some(list), Some(from)) = (&row.list, row.price_from) else {
            return Ok(None);
        };
        let named = (list.clone(), row.priced_model.clone(), from);
        if let Some(price) = self.0.get(&named) {
            return Ok(price.clone());
        }
        let price = prices::price_of(conn, list, &row.priced_model, from, row.started_at)?.map(Arc::new);
        self.0.insert(named, price.clone());
        Ok(price)
    }
}

impl Store {
    /// The sessions of which exchanges match, the newest first: what the matching ones come to. The filter's limit is
    /// that of sessions.
    ///
    /// # Errors
    /// It was told to stop, or the database failed.
    pub fn sessions(&self, filter: &ExchangeFilter, stop: &Stop) -> Result<Vec<SessionSum>, Unread> {
        self.answer("summing sessions", stop, |conn| sessions(conn, filter))
    }

    /// The sessions of one key in a span of time, the newest first.
    ///
    /// # Errors
    /// As [`Store::sessions`].
    pub fn sessions_of(
        &self,
        of: Of,
        (since, until): (Timestamp, Timestamp),
        limit: u32,
        stop: &Stop,
    ) -> Result<Vec<SessionSum>, Unread> {
        let filter = ExchangeFilter {
            user: Some(of.user),
            key: Some(of.key),
            since: Some(since),
            until: Some(until),
            after: Some(lowest(Some(since))),
            limit,
            ..ExchangeFilter::default()
        };
        self.sessions(&filter, stop)
    }

    /// Tells the exchanges of a session in the order in which they came: those of a user, or of one of the user's keys. It
    /// ends early when it is told to.
    ///
    /// # Errors
    /// As [`Store::sessions`]; [`Unread::TooMany`] when it was told to end.
    pub fn session(
        &self,
        (user, key): (UserId, Option<KeyId>),
        session: &str,
        stop: &Stop,
        mut tell: impl FnMut(OfSession) -> ControlFlow<()>,
    ) -> Result<(), Unread> {
        let ended = self.answer("reading a session", stop, |conn| {
            let mut prices = Prices::default();
            let mut statement = conn.prepare_cached(ROWS)?;
            let mut rows = statement.query(params![session, user, key])?;
            while let Some(row) = rows.next()? {
                let exchange = exchange(row)?;
                let told = tell(OfSession {
                    price: prices.of(conn, &exchange)?,
                    refunded: row.get("refunded")?,
                    row: exchange,
                });
                if told.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })?;
        match ended {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Unread::TooMany),
        }
    }

    /// The session of a sub-agent of a user's, if it has been seen.
    ///
    /// # Errors
    /// The database failed.
    pub fn session_of_agent(&self, user: UserId, agent: &Label) -> Result<Option<Label>, StoreError> {
        self.read("looking for a session", |conn| {
            conn.prepare_cached(OF_AGENT)?
                .query_row(params![agent.as_str(), user], |row| row.get(0))
                .optional()
        })
    }

    /// Sessions whose ids begin so, at most so many, and whose they are; of one user, or of all.
    ///
    /// # Errors
    /// The database failed.
    pub fn sessions_starting(
        &self,
        start: &str,
        user: Option<UserId>,
        limit: u32,
    ) -> Result<Vec<(Label, UserId)>, StoreError> {
        self.read("looking for sessions", |conn| {
            conn.prepare_cached(STARTING)?
                .query_map(params![start, user, limit], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::Key;
    use super::super::refunds::Refund;
    use super::super::testing::exchange;
    use super::super::testing::*;
    use super::super::usage_log::ExchangeRow;
    use super::*;
    use crate::origin::{Kind, Origin};
    use crate::store::ExchangeId;

    fn called(desk: &Desk, key: &Key, session: Option<&str>, charge: &str) -> ExchangeId {
        let id = exchange();
        desk.set_aside(&ask(id, key, "1"));
        let mut close = closing(id, key, charge);
        close.row = ExchangeRow {
            origin: Origin {
                session: session.and_then(Label::new),
                turn: None,
                agent: None,
                kind: session.map(|_| Kind::Turn),
                client: session.and_then(|_| Client::parse("codex_exec/0.169.0")),
            },
            ..close.row
        };
        desk.close(id, &close);
        id
    }

    fn read(desk: &Desk, whose: (UserId, Option<KeyId>), session: &str) -> Vec<ExchangeId> {
        let mut read = Vec::new();
        let told = desk.store.session(whose, session, &Stop::default(), |step| {
            read.push(step.row.id);
            ControlFlow::Continue(())
        });
        told.expect("it reads");
        read
    }

    #[test]
    fn a_session_is_found_by_the_index_of_those_that_have_one() {
        let desk = Desk::new();
        let conn = desk.raw();
        let of_user = ExchangeFilter {
            user: Some(UserId(uuid::Uuid::nil())),
            after: Some(lowest(Some(at(0)))),
            ..ExchangeFilter::default()
        };
        let since = ExchangeFilter {
            since: Some(at(0)),
            ..ExchangeFilter::default()
        };
        let listed = |filter: &ExchangeFilter, index| newest(&conditions(filter).0, index, 20);
        for (sql, index) in [
            (
                ROWS.to_owned(),
                "usage_logs USING INDEX usage_logs_by_session (session=? AND user_id=?)",
            ),
            (
                OF_AGENT.to_owned(),
                "usage_logs USING INDEX usage_logs_by_agent (agent=? AND user_id=?)",
            ),
            (
                STARTING.to_owned(),
                "usage_logs USING COVERING INDEX usage_logs_by_session (session>? AND session<?)",
            ),
            (
                listed(&of_user, "usage_logs_by_user"),
                "u USING INDEX usage_logs_by_user (user_id=? AND exchange_id>?)",
            ),
            (
                listed(&since, "usage_logs_by_start"),
                "u USING INDEX usage_logs_by_start (started_at>?)",
            ),
        ] {
            let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect(&sql);
            let nulls = vec![rusqlite::types::Null; explain.parameter_count()];
            let steps = explain.query_map(params_from_iter(nulls), |row| row.get::<_, String>("detail"));
            let steps: Vec<String> = steps.expect(&sql).collect::<Result<_, _>>().expect(&sql);
            assert!(steps.contains(&format!("SEARCH {index}")), "{sql}\n{steps:#?}");
        }
    }

    #[test]
    fn sessions_of_the_same_name_are_those_of_each_user_and_key() {
        let desk = Desk::new();
        let (ada, bob) = (desk.user("ada", "9"), desk.user("bob", "9"));
        let (laptop, desktop, bobs) = (desk.key(&ada), desk.key(&ada), desk.key(&bob));
        let mine = [
            called(&desk, &laptop, Some("s"), "1"),
            called(&desk, &desktop, Some("s"), "0.5"),
        ];
        let his = called(&desk, &bobs, Some("s"), "0.25");
        called(&desk, &laptop, None, "2");
        assert_eq!(read(&desk, (ada.id, None), "s"), mine);
        assert_eq!(read(&desk, (ada.id, Some(desktop.id)), "s"), mine[1..]);
        assert_eq!(read(&desk, (bob.id, Some(laptop.id)), "s"), []);
        let refund = Refund {
            exchange: his,
            amount: Some(usd("0.125")),
            reference: None,
            note: None,
        };
        done(desk.store.refund(&refund, &by(), at(100)));
        let filter = ExchangeFilter {
            since: Some(at(0)),
            limit: 10,
            ..ExchangeFilter::default()
        };
        let found = desk.store.sessions(&filter, &Stop::default()).expect("it reads");
        let found: Vec<_> = found
            .iter()
            .map(|of| (of.user, of.sum.charge, of.sum.refunded))
            .collect();
        assert_eq!(
            found,
            [(bob.id, usd("0.25"), usd("0.125")), (ada.id, usd("1.5"), Usd::ZERO)]
        );
        let starting = |start: &str, user| desk.store.sessions_starting(start, user, 9).expect("it reads").len();
        assert_eq!(
            (starting("s", None), starting("s", Some(bob.id)), starting("t", None)),
            (2, 1, 0)
        );
    }

    #[test]
    fn groups_of_who_asked_come_to_the_total_however_much_of_it_is_summed_by_day() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "9"));
        for (session, charge) in [(Some("s"), "1"), (Some("t"), "0.5"), (None, "2")] {
            called(&desk, &key, session, charge);
        }
        for _ in 0..2 {
            for (by, groups) in [
                (GroupBy::Session, ["", "s", "t"].as_slice()),
                (GroupBy::Kind, ["", "turn"].as_slice()),
                (GroupBy::Client, ["", "codex_exec"].as_slice()),
            ] {
                let (rows, total) = desk.store.usage(&ExchangeFilter::default(), by).expect("it reads");
                let names: Vec<_> = rows.iter().map(|row| row.group.as_str()).collect();
                assert_eq!((names.as_slice(), total.charge), (groups, usd("3.5")));
            }
            let of_session = ExchangeFilter {
                session: Some("s".to_owned()),
                ..ExchangeFilter::default()
            };
            let (_, total) = desk.store.usage(&of_session, GroupBy::Model).expect("it reads");
            assert_eq!(total.charge, usd("1"));
            assert!(
                desk.store.roll_up(at(3 * 86_400)).expect("summed"),
                "once more with sums of days"
            );
        }
    }
}
