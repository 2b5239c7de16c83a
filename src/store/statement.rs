//! Statements: what became of a user's balance within a span of time, from the ledger alone.

use std::ops::Range;

use jiff::Timestamp;
use rusqlite::{Connection, Row, params};

use super::columns::{Count, Micros};
use super::entries::{Entry, entry};
use super::rollups::DAY_US;
use super::usage_log::day;
use super::users::{self, User};
use super::{Store, StoreError, UserId};
use crate::money::Usd;

/// What became of a balance, by the times of its entries.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Whose, as of now.
    pub user: User,
    /// The span of time.
    pub span: Range<Timestamp>,
    /// The balance at its beginning.
    pub opening: Usd,
    /// Credits, adjustments and refunds, in the ledger's order.
    pub movements: Vec<Entry>,
    /// Charges by day and model, in that order.
    pub charges: Vec<Charges>,
    /// The balance at its end: of a span that is not over, the balance of now.
    pub closing: Usd,
}

/// The charges of one day for one model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Charges {
    /// The day, UTC, on which they were settled: `2026-11-28`.
    pub day: String,
    /// The model that was asked for.
    pub model: String,
    /// How many. Exchanges that cost nothing have no entry.
    pub exchanges: u64,
    /// Tokens read.
    pub input_tokens: u64,
    /// Of them cached.
    pub cached_tokens: u64,
    /// Tokens generated.
    pub output_tokens: u64,
    /// What was taken for them; not negative.
    pub amount: Usd,
}

impl Statement {
    /// What the movements of a kind come to.
    pub fn moved(&self, kind: &str) -> Usd {
        let of_kind = self.movements.iter().filter(|entry| entry.kind == kind);
        of_kind.map(|entry| entry.amount).sum()
    }

    /// What all charges come to; not negative.
    pub fn charged(&self) -> Usd {
        self.charges.iter().map(|charges| charges.amount).sum()
    }

    /// Whether the lines lead from the opening balance to the closing one, to the nano-dollar. The closing balance is
    /// counted back from the user's balance of now, and not made of these lines.
    pub fn adds_up(&self) -> bool {
        let nanos = |usd: Usd| i128::from(usd.nanos());
        let moved: i128 = self.movements.iter().map(|entry| nanos(entry.amount)).sum();
        let charged: i128 = self.charges.iter().map(|charges| nanos(charges.amount)).sum();
        nanos(self.opening) + moved - charged == nanos(self.closing)
    }
}

/// What was moved before a time, and from another one on.
const AROUND: &str = "SELECT COALESCE(SUM(amount_nanos) FILTER (WHERE at < ?2), 0),
            COALESCE(SUM(amount_nanos) FILTER (WHERE at >= ?3), 0)
     FROM ledger_entries WHERE user_id = ?1";

const MOVEMENTS: &str = "SELECT * FROM ledger_entries
     WHERE user_id = ?1 AND at >= ?2 AND at < ?3 AND kind <> 'charge' ORDER BY seq";

/// By the user's entries, each with its usage row: the other way round would read all that the user ever did.
const CHARGES: &str = "SELECT e.at / ?4, u.model, COUNT(*), SUM(u.input_tokens), SUM(u.cached_tokens),
            SUM(u.output_tokens), -SUM(e.amount_nanos)
     FROM ledger_entries e CROSS JOIN usage_logs u ON u.exchange_id = e.exchange_id
     WHERE e.user_id = ?1 AND e.at >= ?2 AND e.at < ?3 GROUP BY 1, 2 ORDER BY 1, 2";

fn charges(row: &Row<'_>) -> rusqlite::Result<Charges> {
    let count = |column: usize| row.get::<_, Count>(column).map(|count| count.0);
    Ok(Charges {
        day: day(row.get(0)?)?,
        model: row.get(1)?,
        exchanges: count(2)?,
        input_tokens: count(3)?,
        cached_tokens: count(4)?,
        output_tokens: count(5)?,
        amount: row.get(6)?,
    })
}

fn statement(conn: &Connection, id: UserId, span: Range<Timestamp>) -> rusqlite::Result<Statement> {
    let snapshot = conn.unchecked_transaction()?;
    let user = users::by_id(&snapshot, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
    let (from, to) = (Micros(span.start), Micros(span.end));
    let (opening, later): (Usd, Usd) = snapshot
        .prepare_cached(AROUND)?
        .query_row(params![id, from, to], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let movements = snapshot
        .prepare_cached(MOVEMENTS)?
        .query_map(params![id, from, to], entry)?
        .collect::<Result<_, _>>()?;
    let charges = snapshot
        .prepare_cached(CHARGES)?
        .query_map(params![id, from, to, DAY_US], charges)?
        .collect::<Result<_, _>>()?;
    Ok(Statement {
        closing: user.balance.saturating_sub(later),
        user,
        span,
        opening,
        movements,
        charges,
    })
}

impl Store {
    /// What became of a user's balance within a span of time, of one snapshot.
    pub fn statement(&self, user: UserId, span: Range<Timestamp>) -> Result<Statement, StoreError> {
        self.read("reading a statement", |conn| statement(conn, user, span))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::Outcome;
    use super::super::keys::Key;
    use super::super::ledger::{CloseHold, PlaceHold};
    use super::super::refunds::Refund;
    use super::super::testing::*;
    use super::super::usage_log::{ExchangeFilter, ExchangeRow, GroupBy};
    use super::*;
    use crate::budget::Period;

    /// The months in which anything happens here, and one before and after.
    fn months() -> Vec<Range<Timestamp>> {
        let first = Period::Month.start(at(-31 * 86_400));
        let end = |start: &Timestamp| Period::Month.resets_at(*start);
        let starts = std::iter::successors(Some(first), end).take(12);
        starts.map(|start| start..end(&start).expect("an end")).collect()
    }

    /// One thing that happens.
    #[derive(Clone, Debug)]
    enum Step {
        Credit {
            user: usize,
            nanos: i64,
            minute: i64,
        },
        Call {
            key: usize,
            model: usize,
            tokens: i64,
            minute: i64,
            seconds: u64,
        },
        Refund {
            call: usize,
            percent: i64,
            minute: i64,
        },
    }

    fn step() -> impl Strategy<Value = Step> {
        // Five months; refunds come in a later one, mostly.
        let minute = 0..150 * 24 * 60_i64;
        prop_oneof![
            1 => (0..3_usize, -1_000_000_000..3_000_000_000_i64, minute.clone())
                .prop_map(|(user, nanos, minute)| Step::Credit { user, nanos, minute }),
            4 => (0..6_usize, 0..3_usize, 0..160_000_i64, minute, 0..90_000_u64)
                .prop_map(|(key, model, tokens, minute, seconds)| Step::Call { key, model, tokens, minute, seconds }),
            1 => (0..100_usize, 1..=100_i64, 0..90 * 24 * 60_i64)
                .prop_map(|(call, percent, minute)| Step::Refund { call, percent, minute }),
        ]
    }

    /// A call that was made: whose key, what it is, what was taken, what was given back.
    struct Call {
        key: usize,
        row: ExchangeRow,
        charge: i64,
        refunded: i64,
    }

    fn day_of(at: Timestamp) -> String {
        at.strftime("%Y-%m-%d").to_string()
    }

    /// Sums of two amounts by a text.
    type Sums = BTreeMap<String, (i64, i64)>;

    fn by(calls: &[&Call], group: impl Fn(&Call) -> String) -> Sums {
        let mut sums = Sums::new();
        for call in calls {
            let sum = sums.entry(group(call)).or_default();
            (sum.0, sum.1) = (sum.0 + call.charge, sum.1 + call.refunded);
        }
        sums
    }

    /// What the reports say, by a group.
    fn usage(desk: &Desk, user: Option<UserId>, group: GroupBy) -> Sums {
        let filter = ExchangeFilter {
            user,
            ..ExchangeFilter::default()
        };
        let (rows, _) = desk.store.usage(&filter, group).expect("it reads");
        let row =
            |row: &super::super::usage_log::UsageSum| (row.group.clone(), (row.charge.nanos(), row.refunded.nanos()));
        rows.iter().map(row).collect()
    }

    /// What the ledger's rows say of what was charged and refunded, by something of the usage row.
    fn entries(desk: &Desk, group: &str) -> Sums {
        let sql = format!(
            "SELECT {group}, -SUM(amount_nanos) FILTER (WHERE e.kind = 'charge'),
                    COALESCE(SUM(amount_nanos) FILTER (WHERE e.kind = 'refund'), 0)
             FROM ledger_entries e JOIN usage_logs u ON u.exchange_id IN (e.exchange_id, e.refunds)
             GROUP BY 1"
        );
        let raw = desk.raw();
        let mut statement = raw.prepare(&sql).expect(&sql);
        let rows = statement.query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))));
        rows.expect(&sql).collect::<Result<_, _>>().expect(&sql)
    }

    struct World {
        desk: Desk,
        users: Vec<User>,
        keys: Vec<Key>,
        calls: Vec<Call>,
    }

    impl World {
        fn new() -> World {
            let desk = Desk::new();
            let users: Vec<User> = ["ada", "bob", "eve"].map(|name| desk.user(name, "3")).into();
            let keys = (0..6).map(|n| desk.key(&users[n / 2])).collect();
            World {
                desk,
                users,
                keys,
                calls: Vec::new(),
            }
        }

        fn take(&mut self, step: &Step) {
            match *step {
                Step::Credit { user, nanos, minute } => {
                    let amount = Usd::from_nanos(nanos).to_string();
                    let credit = top_up(&self.users[user], &amount, None);
                    // Zero, or more than is not held: nothing happens.
                    if nanos != 0 {
                        drop(
                            self.desk
                                .store
                                .credit(&credit, &super::super::testing::by(), at(60 * minute)),
                        );
                    }
                }
                Step::Call {
                    key,
                    model,
                    tokens,
                    minute,
                    seconds,
                } => {
                    let (id, of) = (exchange(), &self.keys[key]);
                    let now = at(60 * minute);
                    let place = PlaceHold {
                        now,
                        ..ask(id, of, "1")
                    };
                    let Outcome::Committed(_) = self.desk.place(&place) else {
                        return;
                    };
                    let close = closing(id, of, &Usd::from_nanos(tokens * 10_000).to_string());
                    let row = ExchangeRow {
                        model: ["gpt", "gpt-mini", "o9"][model].to_owned(),
                        started_at: now,
                        duration: Duration::from_secs(seconds),
                        ..close.row
                    };
                    let close = CloseHold { row, ..close };
                    let closed = self.desk.close(id, &close);
                    self.calls.push(Call {
                        key,
                        charge: close.row.charge.nanos() - closed.uncollected.nanos(),
                        row: close.row,
                        refunded: 0,
                    });
                }
                Step::Refund { call, percent, minute } => {
                    let count = self.calls.len();
                    let Some(call) = (count > 0).then(|| &mut self.calls[call % count]) else {
                        return;
                    };
                    let refund = Refund {
                        exchange: call.row.id,
                        amount: Some(Usd::from_nanos(call.charge * percent / 100)),
                        reference: None,
                        note: None,
                    };
                    let later = call.row.started_at + Duration::from_secs(minute.unsigned_abs() * 60);
                    if let Outcome::Committed(done) =
                        self.desk.store.refund(&refund, &super::super::testing::by(), later)
                    {
                        call.refunded += done.entry.amount.nanos();
                    }
                }
            }
        }

        fn statements(&self, user: &User) -> Vec<Statement> {
            let statement = |span| self.desk.store.statement(user.id, span).expect("it reads");
            months().into_iter().map(statement).collect()
        }

        /// Σ statement = Σ usage = Σ entries.
        fn assert_totals(&self) {
            self.desk.assert_books_balance();
            let all: Vec<&Call> = self.calls.iter().collect();
            let key_of = |call: &Call| self.keys[call.key].id.to_string();
            assert_eq!(usage(&self.desk, None, GroupBy::Key), by(&all, key_of));
            assert_eq!(
                usage(&self.desk, None, GroupBy::User),
                by(&all, |call| self.users[call.key / 2].name.clone())
            );
            let paid = |sums: Sums| -> Sums { sums.into_iter().filter(|(_, sum)| sum.0 != 0).collect() };
            assert_eq!(
                entries(&self.desk, "u.model"),
                paid(usage(&self.desk, None, GroupBy::Model))
            );
            let day = "strftime('%Y-%m-%d', u.started_at / 1000000, 'unixepoch')";
            assert_eq!(entries(&self.desk, day), paid(usage(&self.desk, None, GroupBy::Day)));
            for (number, user) in self.users.iter().enumerate() {
                let calls: Vec<&Call> = all.iter().filter(|call| call.key / 2 == number).copied().collect();
                let statements = self.statements(user);
                let balance = self.desk.now(user).balance;
                assert_eq!((statements[0].opening, statements[11].closing), (Usd::ZERO, balance));
                for pair in statements.windows(2) {
                    assert_eq!(pair[0].closing, pair[1].opening);
                }
                assert!(statements.iter().all(Statement::adds_up));
                let lines: Vec<&Charges> = statements.iter().flat_map(|statement| &statement.charges).collect();
                let summed = |group: fn(&Charges) -> String| {
                    let mut sums = BTreeMap::<String, i64>::new();
                    lines
                        .iter()
                        .for_each(|line| *sums.entry(group(line)).or_default() += line.amount.nanos());
                    sums
                };
                let charges = |sums: Sums| -> BTreeMap<String, i64> {
                    paid(sums).into_iter().map(|(group, sum)| (group, sum.0)).collect()
                };
                let model = charges(usage(&self.desk, Some(user.id), GroupBy::Model));
                assert_eq!(summed(|line| line.model.clone()), model);
                let settled = |call: &Call| day_of(call.row.started_at + call.row.duration);
                assert_eq!(summed(|line| line.day.clone()), charges(by(&calls, settled)));
                let started = by(&calls, |call| day_of(call.row.started_at));
                assert_eq!(usage(&self.desk, Some(user.id), GroupBy::Day), started);
                let refunded: i64 = statements
                    .iter()
                    .map(|statement| statement.moved("refund").nanos())
                    .sum();
                assert_eq!(refunded, calls.iter().map(|call| call.refunded).sum::<i64>());
                let exchanges = lines.iter().map(|line| line.exchanges).sum::<u64>();
                assert_eq!(exchanges, calls.iter().filter(|call| call.charge > 0).count() as u64);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn statements_usage_and_entries_come_to_the_same_of_every_user_key_model_and_day(
            steps in proptest::collection::vec(step(), 40..80),
        ) {
            let mut world = World::new();
            steps.iter().for_each(|step| world.take(step));
            world.assert_totals();
            // The same when the days are summed.
            while world.desk.store.roll_up(at(90 * 86_400)).expect("it is summed") {}
            world.assert_totals();
        }
    }

    #[test]
    fn a_statement_that_does_not_lead_to_the_balance_says_so() {
        let desk = Desk::new();
        let ada = desk.user("ada", "3");
        let id = exchange();
        let key = desk.key(&ada);
        desk.set_aside(&ask(id, &key, "1"));
        desk.close(id, &closing(id, &key, "0.5"));
        let month = Period::Month.start(at(0));
        let span = month..Period::Month.resets_at(month).expect("an end");
        let statement = || desk.store.statement(ada.id, span.clone()).expect("it reads");
        assert!(statement().adds_up());
        let raw = desk.raw();
        raw.execute_batch("PRAGMA foreign_keys = OFF; DROP TRIGGER usage_logs_stay; DELETE FROM usage_logs")
            .expect("altered");
        assert!(!statement().adds_up(), "a charge without its usage row");
        raw.execute_batch("DROP TRIGGER entries_stay; DELETE FROM ledger_entries WHERE kind = 'charge'")
            .expect("altered");
        assert!(!statement().adds_up(), "a balance without its entry");
    }

    #[test]
    fn a_statement_reads_its_users_entries_and_nobody_elses() {
        let desk = Desk::new();
        let conn = desk.raw();
        for sql in [AROUND, MOVEMENTS, CHARGES] {
            let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).expect(sql);
            let nulls = vec![rusqlite::types::Null; explain.parameter_count()];
            let steps = explain.query_map(rusqlite::params_from_iter(nulls), |row| row.get::<_, String>("detail"));
            let steps: Vec<String> = steps.expect(sql).collect::<Result<_, _>>().expect(sql);
            assert!(
                steps[0].contains("USING INDEX ledger_entries_by_user (user_id=?"),
                "{steps:#?}"
            );
            assert!(!steps.iter().any(|step| step.starts_with("SCAN")), "{steps:#?}");
        }
    }
}
