//! Exchanges: each usage row with its hold, its hash, and how its receipt comes to its charge.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row};

use super::super::attempts::Outcome;
use super::super::digest::Digest;
use super::super::ledger::{HOLD_COLUMNS, HOLD_DOMAIN, LONGEST_HOLD, closed_state};
use super::super::usage_log::{self, ExchangeRow, ORIGIN, ORIGIN_COLUMNS, USAGE_COLUMNS, USAGE_DOMAIN};
use super::super::{prices, rollups};
use super::{Books, Sum, bytes, integer, is_hash, shown};
use crate::money::Usd;
use crate::pricing::{self, Factor, Price, SearchTool, Terms};

/// Usage rows, each with its hold, and whether it has an entry.
pub(super) static EXCHANGES: LazyLock<String> = LazyLock::new(|| {
    let (usage, hold) = (USAGE_COLUMNS.join(", u."), HOLD_COLUMNS.join(", h."));
    let origin = ORIGIN_COLUMNS.join(", u.");
    format!(
        "SELECT u.{usage}, u.row_hash, u.{origin}, h.hash, h.state, h.closed_at, h.{hold},
                EXISTS (SELECT 1 FROM ledger_entries e WHERE e.exchange_id = u.exchange_id), h.origin
         FROM usage_logs u LEFT JOIN holds h ON h.exchange_id = u.exchange_id
         WHERE u.rowid BETWEEN ?1 AND ?2"
    )
});

/// Holds that no usage row closes, or that are open.
pub(super) static OPEN_HOLDS: LazyLock<String> = LazyLock::new(|| {
    let hold = HOLD_COLUMNS.join(", h.");
    format!(
        "SELECT h.{hold}, h.hash, h.closed_at, h.state = 'open' AS open,
                EXISTS (SELECT 1 FROM usage_logs u WHERE u.exchange_id = h.exchange_id) AS used,
                COALESCE((SELECT deadline_at FROM background_responses b WHERE b.exchange_id = h.exchange_id), h.placed_at)
                    AS lasts_to
         FROM holds h NOT INDEXED WHERE open OR NOT used"
    )
});

/// When the exchange that was closed last ended: open holds are as old as they were then, by the clock that wrote them.
const LATEST: &str =
    "SELECT MAX(started_at + duration_us) FROM usage_logs WHERE rowid = (SELECT MAX(rowid) FROM usage_logs)";

/// Where what is needed stands in [`EXCHANGES`].
const ID: usize = 0;
const USER: usize = 1;
const KEY: usize = 2;
const MODEL: usize = 5;
const UPSTREAM: usize = 8;
const INPUT: usize = 14;
const CACHED: usize = 15;
const OUTPUT: usize = 19;
const COST: usize = 32;
const CHARGE: usize = 33;
const UNCOLLECTED: usize = 34;
const UPSTREAM_STATUS: usize = 41;
const ATTEMPTS: usize = 42;
const STARTED: usize = 43;
const DURATION: usize = 45;
const ROW_HASH: usize = USAGE_COLUMNS.len();
const HOLD_HASH: usize = ORIGIN + ORIGIN_COLUMNS.len();
const HOLD_STATE: usize = HOLD_HASH + 1;
const HOLD_CLOSED: usize = HOLD_HASH + 2;
const HOLD: usize = HOLD_HASH + 3;
const HAS_ENTRY: usize = HOLD + HOLD_COLUMNS.len();
const HOLD_ORIGIN: usize = HAS_ENTRY + 1;

impl Books<'_> {
    /// Usage rows from a row number to another one.
    pub(super) fn exchanges(&mut self, first: i64, last: i64) -> rusqlite::Result<()> {
        let conn = self.conn;
        let mut statement = conn.prepare_cached(&EXCHANGES)?;
        let mut rows = statement.query([first, last])?;
        let summed_until = rollups::rolled_until(conn)?;
        while let Some(row) = rows.next()? {
            self.result.exchanges += 1;
            self.of_day(row, summed_until)?;
            if integer(row.get_ref(ATTEMPTS)?) > Some(1) && !are_its_attempts(conn, row)? {
                self.find(
                    "attempts",
                    shown(row.get_ref(ID)?),
                    "they are not those that its usage row counts",
                );
            }
            for (table, problem) in problems(row)? {
                self.find(table, shown(row.get_ref(ID)?), problem);
            }
            let problems = match usage_log::exchange(row) {
                Ok(exchange) => {
                    for item in exchange.item_ids.iter().collect::<BTreeSet<_>>() {
                        self.left.items.add(item.as_bytes(), row.get_ref(ID)?);
                    }
                    bill_problems(conn, &exchange)?
                }
                Err(error) => vec![format!("does not parse: {error}")],
            };
            for problem in problems {
                self.find("usage_logs", shown(row.get_ref(ID)?), problem);
            }
        }
        Ok(())
    }

    /// Counts a usage row against the sum of its day, if that is summed.
    fn of_day(&mut self, row: &Row<'_>, summed_until: i64) -> rusqlite::Result<()> {
        let Some(started) = integer(row.get_ref(STARTED)?).and_then(|at| i64::try_from(at).ok()) else {
            return Ok(());
        };
        if started >= summed_until {
            return Ok(());
        }
        let day = started.div_euclid(rollups::DAY_US) * rollups::DAY_US;
        let group = [
            ValueRef::Integer(day),
            row.get_ref(USER)?,
            row.get_ref(KEY)?,
            row.get_ref(MODEL)?,
            row.get_ref(UPSTREAM)?,
        ];
        let mut sums = [1; 7];
        for (sum, column) in sums
            .iter_mut()
            .skip(1)
            .zip([INPUT, CACHED, OUTPUT, COST, CHARGE, UNCOLLECTED])
        {
            *sum = integer(row.get_ref(column)?)
                .and_then(|n| i64::try_from(n).ok())
                .unwrap_or_default();
        }
        self.left.days.add(group, sums, -1);
        Ok(())
    }

    /// The sums of days, which have to be those of the usage rows.
    pub(super) fn days(&mut self) -> rusqlite::Result<()> {
        self.left.days = self.left.days.with(rollups::all_days(self.conn)?);
        Ok(())
    }

    /// The index of items, which has to have those of the usage rows.
    pub(super) fn items(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare("SELECT item_id, exchange_id FROM usage_items")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.left.items.take_away(bytes(row.get_ref(0)?), row.get_ref(1)?);
        }
        Ok(())
    }

    /// Attempts of exchanges that were sent but once, or of none.
    pub(super) fn attempts(&mut self) -> rusqlite::Result<()> {
        self.rows_that_must_not_be(
            "attempts",
            "SELECT DISTINCT a.exchange_id FROM attempts a
             WHERE NOT EXISTS (SELECT 1 FROM usage_logs u WHERE u.exchange_id = a.exchange_id AND u.attempts > 1)",
            "its exchange was not sent more than once",
        )
    }

    /// Holds that are open, and those that should have a usage row.
    pub(super) fn holds(&mut self) -> rusqlite::Result<()> {
        let latest = self.conn.query_row(LATEST, [], |row| Ok(integer(row.get_ref(0)?)))?;
        let overdue = latest.map(|latest| latest - Sum::try_from(LONGEST_HOLD.as_micros()).unwrap_or(Sum::MAX));
        let mut statement = self.conn.prepare(&OPEN_HOLDS)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let open = row.get_ref("open")? == ValueRef::Integer(1);
            let used = row.get_ref("used")? == ValueRef::Integer(1);
            self.result.open_holds += u64::from(open);
            let mut digest = Digest::new(HOLD_DOMAIN);
            digest.columns(row, 0, &HOLD_COLUMNS)?;
            let mut problems = Vec::new();
            if !is_hash(row, HOLD_COLUMNS.len(), digest)? {
                problems.push("its hash does not fit: it was altered");
            }
            if open && used {
                problems.push("it is open, and its exchange is settled");
            } else if !open {
                problems.push("it is closed, and its exchange has no usage row");
            } else if row.get_ref("closed_at")? != ValueRef::Null {
                problems.push("it is open, and has an end");
            } else if integer(row.get_ref("lasts_to")?)
                .zip(overdue)
                .is_some_and(|(at, overdue)| at < overdue)
            {
                problems
                    .push("it is open for longer than any call lasts: it was not released, and its money is set aside");
            }
            for problem in problems {
                self.find("holds", shown(row.get_ref(ID)?), problem);
            }
        }
        Ok(())
    }
}

/// Whether the attempts of an exchange that was sent more than once are as many as its usage row says, numbered from 1, and
/// the last is the one that it tells of.
fn are_its_attempts(conn: &Connection, row: &Row<'_>) -> rusqlite::Result<bool> {
    let mut statement = conn.prepare_cached(
        "SELECT number, upstream, status, outcome FROM attempts WHERE exchange_id = ?1 ORDER BY number",
    )?;
    let mut attempts = statement.query([ToSqlOutput::Borrowed(row.get_ref(ID)?)])?;
    let (mut count, mut last_is_its) = (0, false);
    while let Some(attempt) = attempts.next()? {
        count += 1;
        if integer(attempt.get_ref(0)?) != Some(count) || attempt.get::<_, Outcome>(3).is_err() {
            return Ok(false);
        }
        last_is_its =
            attempt.get_ref(1)? == row.get_ref(UPSTREAM)? && attempt.get_ref(2)? == row.get_ref(UPSTREAM_STATUS)?;
    }
    Ok(last_is_its && Some(count) == integer(row.get_ref(ATTEMPTS)?))
}

/// What is wrong with a usage row, its entry and its hold, and with which of them.
fn problems(row: &Row<'_>) -> rusqlite::Result<Vec<(&'static str, &'static str)>> {
    let mut problems = Vec::new();
    let mut digest = Digest::new(USAGE_DOMAIN);
    digest.columns(row, 0, &USAGE_COLUMNS)?;
    digest.columns(row, HOLD_HASH, &["hold_hash", "hold_state"])?;
    for (at, name) in (ORIGIN..).zip(ORIGIN_COLUMNS) {
        digest.field_if_any(name, row.get_ref(at)?);
    }
    if !is_hash(row, ROW_HASH, digest)? {
        problems.push(("usage_logs", "its hash does not fit: it or its hold was altered"));
    }
    // That an entry has the amount of its usage row is seen from the entry.
    let charged = row.get_ref(CHARGE)? != row.get_ref(UNCOLLECTED)?;
    if charged != (row.get_ref(HAS_ENTRY)? == ValueRef::Integer(1)) {
        problems.push(("usage_logs", "its charge is not what its entry says"));
    }
    if row.get_ref(HOLD_HASH)? == ValueRef::Null {
        problems.push(("usage_logs", "its hold is not there"));
    } else {
        problems.extend(hold_problems(row)?.into_iter().map(|problem| ("holds", problem)));
    }
    Ok(problems)
}

/// What is wrong with the hold of a usage row.
fn hold_problems(row: &Row<'_>) -> rusqlite::Result<Vec<&'static str>> {
    let mut problems = Vec::new();
    let mut digest = Digest::new(HOLD_DOMAIN);
    digest.columns(row, HOLD, &HOLD_COLUMNS)?;
    if !is_hash(row, HOLD_HASH, digest)? {
        problems.push("its hash does not fit: it was altered");
    }
    let state = bytes(row.get_ref(HOLD_STATE)?);
    let charge = integer(row.get_ref(CHARGE)?).and_then(|nanos| i64::try_from(nanos).ok());
    let expected = charge.map(|nanos| closed_state(Usd::from_nanos(nanos)).as_bytes());
    if state != b"open" && expected != Some(state) {
        problems.push("its state is not what its usage row says");
    }
    let started = integer(row.get_ref(STARTED)?).zip(integer(row.get_ref(DURATION)?));
    if state != b"open" && integer(row.get_ref(HOLD_CLOSED)?) != started.map(|(at, took)| at + took) {
        problems.push("it was closed at another time than its exchange");
    }
    if state != b"open" && row.get_ref(HOLD_ORIGIN)? != ValueRef::Null {
        problems.push("it is closed, and still says who asked");
    }
    Ok(problems)
}

/// What is wrong with how a receipt comes to its cost and charge (law 5).
fn bill_problems(conn: &Connection, row: &ExchangeRow) -> rusqlite::Result<Vec<String>> {
    let mut problems = Vec::new();
    match pricing::recompute(&row.lines, row.uplift.as_deref(), &row.markup) {
        Err(error) => problems.push(format!("its lines cannot be added up: {error}")),
        Ok((cost, charge)) => {
            if cost != row.cost {
                problems.push(format!("its cost is {}, its lines come to {cost}", row.cost));
            }
            if charge != row.charge {
                problems.push(format!("its charge is {}, its lines come to {charge}", row.charge));
            }
        }
    }
    let counted = pricing::miscounted(&row.lines, &row.usage);
    problems.extend(
        counted
            .wrong
            .iter()
            .map(|what| format!("its lines count its {what} otherwise")),
    );
    if !counted.unpriced.is_empty() && has_price(conn, row)? {
        let what = counted.unpriced.join(", ");
        problems.push(format!("{what} were used and priced, and are not in its lines"));
    }
    Ok(problems)
}

/// Whether all that an exchange used has a rate in the price it names. What has none is not charged, with a word in
/// the log.
fn has_price(conn: &Connection, row: &ExchangeRow) -> rusqlite::Result<bool> {
    let price = match (&row.list, row.price_from) {
        (Some(list), Some(from)) => prices::price_of(conn, list, &row.priced_model, from, row.started_at)?,
        _ => Some(Price::free()),
    };
    Ok(price.is_some_and(|price| {
        let terms = Terms {
            price: &price,
            image_price: None,
            search: SearchTool::Current,
            tier: row.tier,
            region: None,
            markup: Factor::ONE,
            at: row.started_at,
        };
        pricing::bill(&row.usage, &terms).is_ok_and(|bill| bill.unpriced.is_empty())
    }))
}
