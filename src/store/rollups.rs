//! Usage summed by day, so that a report of years reads days and not exchanges.
//!
//! `usage_days` has the sums of all usage rows that began before `rolled_up.until_at`; what others come to is read from
//! the rows themselves. A serving process moves that time forward when a day is over, in the background: the day is summed
//! from a snapshot by a connection that only reads, its sums are written a few at a time, and one short transaction adds
//! the rows that came meanwhile and moves the time. A row that is late after all is added by whoever writes it.
//!
//! Usage rows never change, so a sum is never stale, and `Days` lets `verify` compare all sums with all rows.

use std::sync::LazyLock;

use jiff::Timestamp;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, params, params_from_iter};

use super::digest::Digest;
use super::usage_log::{ExchangeFilter, GroupBy, UsageSum, conditions, grouped, sum};
use super::{ExchangeId, Outcome, Store, StoreError, Tried};

/// Microseconds in a day.
pub(super) const DAY_US: i64 = 86_400_000_000;

/// How long after its end a day is summed: what is late then is added one by one.
const SETTLED_US: i64 = DAY_US / 24;

/// Sums in one transaction, so that no settlement waits long.
const AT_ONCE: usize = 500;

/// What is summed.
const SUMS: [&str; 7] = [
    "exchanges",
    "input_tokens",
    "cached_tokens",
    "output_tokens",
    "cost_nanos",
    "charge_nanos",
    "uncollected_nanos",
];

/// What usage rows between ?1 and ?2 whose row number is above ?3 come to, by day, user, key, model and upstream.
const DAYS: &str =
    "SELECT started_at / 86400000000 * 86400000000 AS day_at, user_id, key_id, model, upstream, COUNT(*),
            SUM(input_tokens), SUM(cached_tokens), SUM(output_tokens), SUM(cost_nanos), SUM(charge_nanos),
            SUM(uncollected_nanos)
     FROM usage_logs WHERE started_at >= ?1 AND started_at < ?2 AND rowid > ?3 GROUP BY 1, 2, 3, 4, 5";

/// Adds to the sums of days what `rows` gives: `VALUES`, or a `SELECT`.
fn adding(rows: &str) -> String {
    format!(
        "INSERT INTO usage_days (day_at, user_id, key_id, model, upstream, exchanges, input_tokens, cached_tokens,
            output_tokens, cost_nanos, charge_nanos, uncollected_nanos)
     {rows}
     ON CONFLICT DO UPDATE SET exchanges = exchanges + excluded.exchanges,
        input_tokens = input_tokens + excluded.input_tokens, cached_tokens = cached_tokens + excluded.cached_tokens,
        output_tokens = output_tokens + excluded.output_tokens, cost_nanos = cost_nanos + excluded.cost_nanos,
        charge_nanos = charge_nanos + excluded.charge_nanos,
        uncollected_nanos = uncollected_nanos + excluded.uncollected_nanos"
    )
}

static ADD: LazyLock<String> = LazyLock::new(|| adding("VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"));

static ADD_LATE: LazyLock<String> = LazyLock::new(|| {
    adding(
        "SELECT started_at / 86400000000 * 86400000000, user_id, key_id, model, upstream, 1, input_tokens, cached_tokens,
            output_tokens, cost_nanos, charge_nanos, uncollected_nanos
         FROM usage_logs WHERE exchange_id = ?1",
    )
});

/// Until when usage is summed, in microseconds, as a scalar.
pub(super) const ROLLED_UNTIL: &str = "(SELECT until_at FROM rolled_up)";

/// A row of `usage_days`, as it stands there.
type Cells = Vec<rusqlite::types::Value>;

/// A span of days that is over and not summed yet, what it comes to, and the row number up to which that is so.
struct Summed {
    from: i64,
    until: i64,
    rows: Vec<Cells>,
    seen: i64,
}

/// Until when usage is summed, in microseconds.
pub(super) fn rolled_until(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached(&format!("SELECT {ROLLED_UNTIL}"))?
        .query_row([], |row| row.get(0))
}

fn read_days(conn: &Connection, (from, until, seen): (i64, i64, i64)) -> rusqlite::Result<Vec<Cells>> {
    let mut days = conn.prepare_cached(DAYS)?;
    let width = days.column_count();
    days.query_map([from, until, seen], |row| {
        (0..width).map(|column| row.get(column)).collect()
    })?
    .collect()
}

/// Sums the first day that is over, has rows and is not summed; the empty ones before it count as summed, too.
fn next_day(conn: &Connection, now: Timestamp) -> rusqlite::Result<Option<Summed>> {
    let snapshot = conn.unchecked_transaction()?;
    let from = rolled_until(&snapshot)?;
    let over = (now.as_microsecond() - SETTLED_US) / DAY_US * DAY_US;
    if from >= over {
        return Ok(None);
    }
    let first: Option<i64> = snapshot.query_row(
        "SELECT MIN(started_at) FROM usage_logs WHERE started_at >= ?1",
        [from],
        |row| row.get(0),
    )?;
    let until = first.map_or(over, |first| (first / DAY_US * DAY_US + DAY_US).min(over));
    let seen = snapshot.query_row("SELECT COALESCE(MAX(rowid), 0) FROM usage_logs", [], |row| row.get(0))?;
    Ok(Some(Summed {
        from,
        until,
        rows: read_days(&snapshot, (from, until, i64::MIN))?,
        seen,
    }))
}

fn add(tx: &Connection, rows: &[Cells]) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached(&ADD)?;
    for row in rows {
        insert.execute(params_from_iter(row))?;
    }
    Ok(())
}

/// Adds an exchange to the sums of its day, which is summed already; part of the transaction that writes its usage row.
/// (A trigger would see to it for every row, and the look of a trigger at a row costs as much as a third of writing it.)
pub(super) fn add_late(tx: &Connection, exchange: ExchangeId) -> rusqlite::Result<()> {
    tx.prepare_cached(&ADD_LATE)?.execute([exchange]).map(drop)
}

/// Adds what came since, and moves the time.
fn finish(tx: &Connection, day: &Summed) -> rusqlite::Result<()> {
    add(tx, &read_days(tx, (day.from, day.until, day.seen))?)?;
    tx.execute("UPDATE rolled_up SET until_at = ?1", [day.until]).map(drop)
}

impl Store {
    /// Sums the next day that is over; whether there was one. For one process at a time.
    ///
    /// # Errors
    /// It is not summed, and will be later.
    pub fn roll_up(&self, now: Timestamp) -> Result<bool, NotSummed> {
        let next = self.read("summing a day", |conn| next_day(conn, now));
        let Some(day) = next.map_err(NotSummed::NotWritten)? else {
            return Ok(false);
        };
        // What another process left behind that did not come to the end.
        self.in_parts(|tx| {
            tx.prepare_cached("DELETE FROM usage_days WHERE day_at >= ?1")?
                .execute([day.from])
        })?;
        for rows in day.rows.chunks(AT_ONCE) {
            self.in_parts(|tx| add(tx, rows))?;
        }
        self.in_parts(|tx| finish(tx, &day)).map(|()| true)
    }

    fn in_parts<T>(&self, act: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, NotSummed> {
        let write = |tx: &Connection| -> Tried<T, std::convert::Infallible> { act(tx).map(Ok) };
        match self.write("writing the sums of a day", write) {
            Outcome::Committed(value) => Ok(value),
            Outcome::Refused(never) => match never {},
            Outcome::NotCommitted(error) => Err(NotSummed::NotWritten(error)),
            Outcome::Unknown(error) => Err(NotSummed::Unknown(error)),
        }
    }
}

/// Why a day was not summed.
#[derive(Debug, thiserror::Error)]
pub enum NotSummed {
    /// Nothing was written.
    #[error("its sums are not written")]
    NotWritten(#[source] StoreError),
    /// It may or may not be durable: the disk is not to be trusted ([`Writer::distrust`](super::Writer::distrust)).
    #[error("its sums may or may not be durable")]
    Unknown(#[source] StoreError),
}

// Reading them -------------------------------------------------------------------------------------------------------

/// The days that lie whole within a span of time and are summed: from, until. None, where days do not know what is asked.
fn whole_days(filter: &ExchangeFilter, rolled: i64) -> (i64, i64) {
    if filter.before.is_some() || filter.after.is_some() || filter.session.is_some() {
        return (0, 0);
    }
    let up = |at: Timestamp| at.as_microsecond().saturating_add(DAY_US - 1).div_euclid(DAY_US) * DAY_US;
    let down = |at: Timestamp| at.as_microsecond().div_euclid(DAY_US) * DAY_US;
    let from = filter.since.map_or(0, up).max(0);
    let until = filter.until.map_or(rolled, |until| down(until).min(rolled));
    if from < until { (from, until) } else { (0, 0) }
}

/// Usage summed by a group, in the group's order, without its refunds; of one snapshot.
pub(super) fn usage(snapshot: &Connection, filter: &ExchangeFilter, by: GroupBy) -> rusqlite::Result<Vec<UsageSum>> {
    let (from, until) = match by {
        GroupBy::Session | GroupBy::Kind | GroupBy::Client => (0, 0),
        GroupBy::Day | GroupBy::User | GroupBy::Key | GroupBy::Model | GroupBy::Upstream => {
            whole_days(filter, rolled_until(snapshot)?)
        }
    };
    let (conditions, mut values) = conditions(filter);
    let days = ExchangeFilter {
        since: None,
        until: None,
        session: None,
        ..filter.clone()
    };
    let (of_days, days_values) = super::usage_log::conditions(&days);
    let group = |time: &str| match by {
        GroupBy::Day => format!("u.{time} / {DAY_US}"),
        GroupBy::User => "u.user_id".to_owned(),
        GroupBy::Key => "u.key_id".to_owned(),
        GroupBy::Model => "u.model".to_owned(),
        GroupBy::Upstream => "u.upstream".to_owned(),
        GroupBy::Session | GroupBy::Kind | GroupBy::Client if time == "day_at" => "NULL".to_owned(),
        GroupBy::Session | GroupBy::Kind | GroupBy::Client => grouped(by),
    };
    let mark = |at: i64, values: &mut Vec<ToSqlOutput<'_>>| {
        values.push(ToSqlOutput::Borrowed(ValueRef::Integer(at)));
        format!("?{}", values.len())
    };
    let (from, until) = (mark(from, &mut values), mark(until, &mut values));
    // The parameters of the days come behind those of the rows.
    let shift = values.len();
    let of_days = shifted(&of_days, shift);
    values.extend(days_values);
    let sums = SUMS.map(|name| format!("SUM(u.{name}) AS {name}")).join(", ");
    let counts = sums.replacen("SUM(u.exchanges)", "COUNT(*)", 1);
    let (of_row, of_day) = (group("started_at"), group("day_at"));
    let rows = |which: &str| {
        format!("SELECT {of_row} AS grouped, {counts} FROM usage_logs u WHERE {conditions} AND {which} GROUP BY 1")
    };
    let (before, behind) = (format!("u.started_at < {from}"), format!("u.started_at >= {until}"));
    let (before, behind) = (rows(&before), rows(&behind));
    let days = format!(
        "SELECT {of_day} AS grouped, {sums} FROM usage_days u
         WHERE {of_days} AND u.day_at >= {from} AND u.day_at < {until} GROUP BY 1"
    );
    let (shown, names) = match by {
        GroupBy::User => ("o.name", "JOIN users o ON o.id = u.grouped"),
        GroupBy::Day
        | GroupBy::Key
        | GroupBy::Model
        | GroupBy::Upstream
        | GroupBy::Session
        | GroupBy::Kind
        | GroupBy::Client => ("u.grouped", ""),
    };
    let sql = format!(
        "SELECT {shown} AS grouped, {sums}, SUM(u.charge_nanos) - SUM(u.uncollected_nanos) AS charged_nanos
         FROM ({before} UNION ALL {days} UNION ALL {behind}) u {names} GROUP BY 1 ORDER BY 1"
    );
    snapshot
        .prepare(&sql)?
        .query_map(params_from_iter(&values), |row| sum(row, by))?
        .collect()
}

/// The same conditions with parameters that are numbered from further on.
fn shifted(sql: &str, by: usize) -> String {
    let mut parts = sql.split('?');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        let (number, rest) = part.split_at(end);
        let number: usize = number.parse().unwrap_or_default();
        out.push_str(&format!("?{}{rest}", number + by));
    }
    out
}

// Verifying them -----------------------------------------------------------------------------------------------------

/// What days come to, in whatever order they are looked at: sums are added, rows are taken away, and nothing remains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Days(u128);

impl Days {
    /// Adds (or takes away) so much of each of [`SUMS`], in a group: day, user, key, model, upstream.
    pub(super) fn add(&mut self, group: [ValueRef<'_>; 5], sums: [i64; 7], sign: i128) {
        let mut digest = Digest::new("codex-gateway day");
        for value in group {
            digest.field("group", value);
        }
        let hash = digest.finish();
        let half: [u8; 16] = hash.first_chunk().copied().unwrap_or_default();
        // Each column has a weight of its own in each group.
        let mut weight = u128::from_be_bytes(half) | 1;
        for value in sums {
            let signed = (sign * i128::from(value)).cast_unsigned();
            self.0 = self.0.wrapping_add(weight.wrapping_mul(signed));
            weight = weight.wrapping_mul(0x2d35_8dcc_aa6c_78a5_8bb8_4b93_962e_acc9);
        }
    }

    /// With what another thread found.
    pub(super) fn with(self, other: Days) -> Days {
        Days(self.0.wrapping_add(other.0))
    }

    /// Whether rows and sums are the same.
    pub(super) fn is_even(self) -> bool {
        self.0 == 0
    }
}

/// All sums of days.
pub(super) fn all_days(conn: &Connection) -> rusqlite::Result<Days> {
    let mut days = Days::default();
    let mut statement = conn.prepare(
        "SELECT day_at, user_id, key_id, model, upstream, exchanges, input_tokens, cached_tokens, output_tokens,
                cost_nanos, charge_nanos, uncollected_nanos
         FROM usage_days WHERE day_at < (SELECT until_at FROM rolled_up)",
    )?;
    let mut rows = statement.query(params![])?;
    while let Some(row) = rows.next()? {
        let group = [
            row.get_ref(0)?,
            row.get_ref(1)?,
            row.get_ref(2)?,
            row.get_ref(3)?,
            row.get_ref(4)?,
        ];
        let mut sums = [0; 7];
        for (sum, column) in sums.iter_mut().zip(5..) {
            *sum = row.get(column)?;
        }
        days.add(group, sums, 1);
    }
    Ok(days)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::keys::Key;
    use super::super::testing::*;
    use super::*;
    use crate::store::ledger::PlaceHold;

    const DAY: i64 = 86_400;

    /// A call of so many days later, settled.
    fn call(desk: &Desk, key: &Key, model: &str, (days, seconds): (i64, i64), charge: &str) {
        let ask = PlaceHold {
            now: at(days * DAY + seconds),
            model: model.to_owned(),
            ..ask(exchange(), key, "1")
        };
        desk.set_aside(&ask);
        let mut close = closing(ask.exchange, key, charge);
        (close.row.started_at, close.row.model) = (ask.now, model.to_owned());
        desk.close(ask.exchange, &close);
    }

    fn roll_all(desk: &Desk, days: i64) -> usize {
        let mut steps = 0;
        while desk.store.roll_up(at(days * DAY)).expect("it is written") {
            steps += 1;
        }
        steps
    }

    fn days_there(desk: &Desk) -> i64 {
        desk.raw()
            .query_row("SELECT COUNT(DISTINCT day_at) FROM usage_days", [], |row| row.get(0))
            .expect("counted")
    }

    /// All that a report may ask.
    fn reports(desk: &Desk, keys: &[Key]) -> BTreeMap<String, Vec<UsageSum>> {
        let mut all = BTreeMap::new();
        let mut filters = vec![ExchangeFilter::default()];
        for key in keys {
            filters.push(ExchangeFilter {
                key: Some(key.id),
                ..ExchangeFilter::default()
            });
            filters.push(ExchangeFilter {
                user: Some(key.user_id),
                model: Some("b".into()),
                ..ExchangeFilter::default()
            });
        }
        let spans = [
            (None, None),
            (Some(at(DAY + 7)), None),
            (None, Some(at(3 * DAY))),
            (Some(at(-DAY)), Some(at(2 * DAY + 1))),
        ];
        for filter in filters {
            for (since, until) in spans {
                for by in [
                    GroupBy::Day,
                    GroupBy::User,
                    GroupBy::Key,
                    GroupBy::Model,
                    GroupBy::Upstream,
                ] {
                    let filter = ExchangeFilter {
                        since,
                        until,
                        ..filter.clone()
                    };
                    let (rows, total) = desk.store.usage(&filter, by).expect("it is read");
                    let name = format!("{filter:?} {by:?}");
                    all.insert(name, rows.into_iter().chain([total]).collect());
                }
            }
        }
        all
    }

    #[test]
    fn a_report_is_the_same_from_days_as_from_rows() {
        let desk = Desk::new();
        let keys = [desk.key(&desk.user("ada", "99")), desk.key(&desk.user("bob", "99"))];
        for days in 0..5 {
            for (number, key) in keys.iter().enumerate() {
                for model in ["a", "b"] {
                    let charge = format!("0.0{days}{number}");
                    call(&desk, key, model, (days, 10 + days * 7), &charge);
                    call(&desk, key, model, (days, DAY / 3), "0.5");
                }
            }
        }
        let from_rows = reports(&desk, &keys);
        assert_eq!(roll_all(&desk, 4), 4, "four days are over");
        assert_eq!(days_there(&desk), 4);
        assert_eq!(reports(&desk, &keys), from_rows);
        desk.assert_books_balance();
        assert_eq!(roll_all(&desk, 9), 2, "the fifth day, and the empty ones behind it");
        assert_eq!(reports(&desk, &keys), from_rows);
        desk.assert_books_balance();
    }

    #[test]
    fn a_row_that_is_late_is_in_the_sum_of_its_day() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "99"));
        call(&desk, &key, "a", (0, 0), "0.5");
        roll_all(&desk, 3);
        call(&desk, &key, "a", (0, 1), "0.25");
        call(&desk, &key, "new", (1, 0), "0.125");
        let (rows, total) = desk
            .store
            .usage(&ExchangeFilter::default(), GroupBy::Day)
            .expect("read");
        let charges: Vec<_> = rows.iter().map(|row| row.charge.to_string()).collect();
        assert_eq!(
            (charges, total.exchanges),
            (vec!["0.75".to_owned(), "0.125".to_owned()], 3)
        );
        desk.assert_books_balance();
    }

    #[test]
    fn what_comes_while_a_day_is_summed_is_added_and_what_was_left_behind_is_not() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "99"));
        call(&desk, &key, "a", (0, 0), "0.5");
        let summed = |desk: &Desk| {
            let day = desk.store.read("summing", |conn| next_day(conn, at(2 * DAY)));
            day.expect("read").expect("a day")
        };
        let day = summed(&desk);
        // Another process wrote its sums, and died.
        desk.store.in_parts(|tx| add(tx, &day.rows)).expect("written");
        call(&desk, &key, "a", (0, 5), "0.25");
        desk.store.in_parts(|tx| finish(tx, &day)).expect("written");
        let total = |desk: &Desk| {
            desk.store
                .usage(&ExchangeFilter::default(), GroupBy::Day)
                .expect("read")
                .1
        };
        assert_eq!((total(&desk).charge, total(&desk).exchanges), (usd("0.75"), 2));
        desk.assert_books_balance();
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "99"));
        call(&desk, &key, "a", (0, 0), "0.5");
        let day = summed(&desk);
        desk.store.in_parts(|tx| add(tx, &day.rows)).expect("written");
        roll_all(&desk, 2);
        assert_eq!(total(&desk).charge, usd("0.5"));
        desk.assert_books_balance();
    }

    #[test]
    fn a_sum_that_was_altered_is_found() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "99"));
        call(&desk, &key, "a", (0, 0), "0.5");
        call(&desk, &key, "b", (1, 0), "0.5");
        roll_all(&desk, 3);
        for sql in [
            "UPDATE usage_days SET charge_nanos = charge_nanos + 1, cost_nanos = cost_nanos - 1",
            "UPDATE usage_days SET model = model || 'x' WHERE model = 'a'",
            "UPDATE usage_days SET day_at = day_at - 86400000000",
            "DELETE FROM usage_days WHERE model = 'b'",
            "UPDATE rolled_up SET until_at = 0",
        ] {
            let before = desk
                .raw()
                .query_row("SELECT COUNT(*) FROM usage_days", [], |row| row.get::<_, i64>(0));
            assert_eq!(before, Ok(2));
            desk.raw()
                .execute_batch(&format!(
                    "BEGIN; CREATE TABLE kept AS SELECT * FROM usage_days; {sql}; COMMIT"
                ))
                .expect(sql);
            let findings = desk.store.verify().expect("it verifies").findings;
            let found = findings.iter().any(|finding| finding.table == "usage_days");
            assert_eq!(
                found,
                !sql.contains("rolled_up"),
                "{sql}: what is not summed is not looked at"
            );
            let until = at(2 * DAY).as_microsecond() / DAY_US * DAY_US;
            let undo = format!(
                "DELETE FROM usage_days; INSERT INTO usage_days SELECT * FROM kept; DROP TABLE kept;
                 UPDATE rolled_up SET until_at = {until}"
            );
            desk.raw().execute_batch(&undo).expect("undone");
            desk.assert_books_balance();
        }
    }
}
