//! Exchanges: each usage row with its hold, its hash, and how its receipt comes to its charge.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use super::super::digest::Digest;
use super::super::ledger::{HOLD_COLUMNS, HOLD_DOMAIN, closed_state};
use super::super::prices;
use super::super::usage_log::{self, ExchangeRow, USAGE_COLUMNS, USAGE_DOMAIN};
use super::{Books, bytes, integer, is_hash, shown};
use crate::money::Usd;
use crate::pricing::{self, Factor, Price, SearchTool, Terms};

/// Usage rows, each with its hold, and whether it has an entry.
pub(super) static EXCHANGES: LazyLock<String> = LazyLock::new(|| {
    let (usage, hold) = (USAGE_COLUMNS.join(", u."), HOLD_COLUMNS.join(", h."));
    format!(
        "SELECT u.{usage}, u.row_hash, h.hash, h.state, h.closed_at, h.{hold},
                EXISTS (SELECT 1 FROM ledger_entries e WHERE e.exchange_id = u.exchange_id)
         FROM usage_logs u LEFT JOIN holds h ON h.exchange_id = u.exchange_id
         WHERE u.rowid BETWEEN ?1 AND ?2"
    )
});

/// Holds that no usage row closes, or that are open.
pub(super) static OPEN_HOLDS: LazyLock<String> = LazyLock::new(|| {
    let hold = HOLD_COLUMNS.join(", h.");
    format!(
        "SELECT h.{hold}, h.hash, h.closed_at, h.state = 'open' AS open,
                EXISTS (SELECT 1 FROM usage_logs u WHERE u.exchange_id = h.exchange_id) AS used
         FROM holds h NOT INDEXED WHERE open OR NOT used"
    )
});

/// Where what is needed stands in [`EXCHANGES`].
const ID: usize = 0;
const CHARGE: usize = 33;
const UNCOLLECTED: usize = 34;
const STARTED: usize = 43;
const DURATION: usize = 45;
const ROW_HASH: usize = USAGE_COLUMNS.len();
const HOLD_HASH: usize = ROW_HASH + 1;
const HOLD_STATE: usize = ROW_HASH + 2;
const HOLD_CLOSED: usize = ROW_HASH + 3;
const HOLD: usize = ROW_HASH + 4;
const HAS_ENTRY: usize = HOLD + HOLD_COLUMNS.len();

impl Books<'_> {
    /// Usage rows from a row number to another one.
    pub(super) fn exchanges(&mut self, first: i64, last: i64) -> rusqlite::Result<()> {
        let conn = self.conn;
        let mut statement = conn.prepare_cached(&EXCHANGES)?;
        let mut rows = statement.query([first, last])?;
        while let Some(row) = rows.next()? {
            self.result.exchanges += 1;
            for (table, problem) in problems(row)? {
                self.find(table, shown(row.get_ref(ID)?), problem);
            }
            let problems = match usage_log::exchange(row) {
                Ok(exchange) => {
                    for item in exchange.item_ids.iter().collect::<BTreeSet<_>>() {
                        self.items.add(item.as_bytes(), row.get_ref(ID)?);
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

    /// The index of items, which has to have those of the usage rows.
    pub(super) fn items(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare("SELECT item_id, exchange_id FROM usage_items")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.items.take_away(bytes(row.get_ref(0)?), row.get_ref(1)?);
        }
        Ok(())
    }

    /// Holds that are open, and those that should have a usage row.
    pub(super) fn holds(&mut self) -> rusqlite::Result<()> {
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
            }
            for problem in problems {
                self.find("holds", shown(row.get_ref(ID)?), problem);
            }
        }
        Ok(())
    }
}

/// What is wrong with a usage row, its entry and its hold, and with which of them.
fn problems(row: &Row<'_>) -> rusqlite::Result<Vec<(&'static str, &'static str)>> {
    let mut problems = Vec::new();
    let mut digest = Digest::new(USAGE_DOMAIN);
    digest.columns(row, 0, &USAGE_COLUMNS)?;
    digest.columns(row, HOLD_HASH, &["hold_hash", "hold_state"])?;
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
