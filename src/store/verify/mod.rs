//! Verification: every law recomputed from what is stored, in one snapshot, keeping a few numbers for each user.
//!
//! Two threads share the work, each with a connection of its own that sees the same state. The work grows with the rows
//! there are, and nothing is sorted. What a query finds by an
//! index is checked too: SQLite compares each index with its table, and the order of both (`structure`).
//!
//! What it cannot see:
//!
//! - a user's `password_hash`; a key's times of issue and last use; who did an act, when, and on what state; how a
//!   price that is no longer in force came about;
//! - acts taken off the end of the audit log together with what they did to a status, a key or an operator's price;
//! - an Idempotency-Key that was taken away: the call of that name would be made, and charged, as a new one;
//! - constraints and triggers that were taken out of the schema, as long as the rows keep the laws;
//! - a whole database put back to what it was before: its books balance. A seal that is kept elsewhere shows it
//!   (`store/seal.rs`), and so does the high-water mark beside the database, if that was not put back with it;
//! - whatever somebody altered who also rewrote everything that follows from it, hashes and the counts in `users` and
//!   `meta` included: they have no secret. A seal kept elsewhere shows that too, for entries, their usage rows and their
//!   holds up to its number; not for exchanges that were free, and not for users, keys and prices.

mod accounts;
mod exchanges;
mod records;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, ErrorCode, Row};

use super::digest::{Digest, Hash};
use super::rollups::Days;
use super::seal::{self, Seal};
use super::{Store, StoreError, commits, connection, during};

/// Findings that are kept; after so many the books are wrong enough.
const MAX_FINDINGS: usize = 1000;

/// Threads, and connections: a server beside them keeps the other cores.
const WORKERS: usize = 2;

/// What each of them keeps of the database in memory, in KiB.
const CACHE_KIB: u32 = 16 * 1024;

/// How often the connections try to begin with the same state: a busy writer commits every few milliseconds, and they
/// begin within one.
const TRIES: u32 = 1_000;

/// So many shares are the usage rows looked at in.
const RANGES: i64 = 32;

/// Tables with their indexes, the largest first.
const TABLES: [&str; 19] = [
    "usage_logs",
    "usage_items",
    "ledger_entries",
    "holds",
    "usage_days",
    "recordings",
    "idempotency",
    "attempts",
    "audit_log",
    "users",
    "api_keys",
    "model_pricing",
    "codes",
    "budget_windows",
    "budgets",
    "background_responses",
    "rolled_up",
    "commits",
    "meta",
];

/// What a verification looked at, and all that it found wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verification {
    /// Users looked at.
    pub users: u64,
    /// Entries looked at.
    pub entries: u64,
    /// Usage rows looked at.
    pub exchanges: u64,
    /// Open holds.
    pub open_holds: u64,
    /// What is wrong; empty: the books balance.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The table.
    pub table: &'static str,
    /// The row: its id; `*` for the table as a whole.
    pub row: String,
    /// What is wrong with it.
    pub problem: String,
}

impl Verification {
    /// Both together.
    fn with(mut self, other: Verification) -> Verification {
        let space = MAX_FINDINGS.saturating_sub(self.findings.len());
        self.findings.extend(other.findings.into_iter().take(space));
        Verification {
            users: self.users + other.users,
            entries: self.entries + other.entries,
            exchanges: self.exchanges + other.exchanges,
            open_holds: self.open_holds + other.open_holds,
            findings: self.findings,
        }
    }
}

/// A part of a verification, which one thread does at a time.
#[derive(Clone, Copy)]
enum Part {
    /// Users, their entries and what they hold.
    Accounts,
    /// Usage rows from a row number to another one, with their holds and receipts.
    Exchanges(i64, i64),
    /// Holds that are open, or without a usage row.
    Holds,
    /// The index of items.
    Items,
    /// The sums of days.
    Days,
    /// Attempts that belong to nothing.
    Attempts,
    /// What operators wrote: credits, keys, prices.
    Records,
    /// A table, its indexes and the order of both.
    Structure(&'static str),
    /// The entries up to one that was sealed.
    Sealed(Seal),
}

impl Part {
    /// What it is about, for what cannot even be read.
    fn table(self) -> &'static str {
        match self {
            Part::Accounts | Part::Sealed(_) => "ledger_entries",
            Part::Exchanges(..) => "usage_logs",
            Part::Holds => "holds",
            Part::Items => "usage_items",
            Part::Days => "usage_days",
            Part::Attempts => "attempts",
            Part::Records => "audit_log",
            Part::Structure(table) => table,
        }
    }
}

/// A part under way.
struct Books<'a> {
    conn: &'a Connection,
    result: Verification,
    left: Left,
}

/// What is left over when what follows from usage rows is taken away from them: nothing, if it is all there.
#[derive(Clone, Copy, Default)]
struct Left {
    items: Items,
    days: Days,
}

impl Left {
    fn with(self, other: Left) -> Left {
        Left {
            items: Items(self.items.0.wrapping_add(other.items.0)),
            days: self.days.with(other.days),
        }
    }
}

/// A sum over all items of answers, whatever their order: those in usage rows are added, those in their index are
/// taken away, and nothing remains.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Items(u128);

impl Items {
    fn add(&mut self, item: &[u8], exchange: ValueRef<'_>) {
        self.0 = self.0.wrapping_add(Items::one(item, exchange));
    }

    fn take_away(&mut self, item: &[u8], exchange: ValueRef<'_>) {
        self.0 = self.0.wrapping_sub(Items::one(item, exchange));
    }

    fn one(item: &[u8], exchange: ValueRef<'_>) -> u128 {
        let mut digest = Digest::new("codex-gateway item");
        digest.field("item_id", ValueRef::Text(item));
        digest.field("exchange_id", exchange);
        let half = digest.finish().first_chunk().copied().unwrap_or_default();
        u128::from_be_bytes(half)
    }
}

/// A sum of integers that cannot overflow.
type Sum = i128;

impl Books<'_> {
    fn find(&mut self, table: &'static str, row: impl Into<String>, problem: impl Into<String>) {
        if self.result.findings.len() < MAX_FINDINGS {
            self.result.findings.push(Finding {
                table,
                row: row.into(),
                problem: problem.into(),
            });
        }
    }

    fn verify(&mut self, part: Part) -> rusqlite::Result<()> {
        match part {
            Part::Accounts => self.accounts(),
            Part::Exchanges(first, last) => self.exchanges(first, last),
            Part::Holds => self.holds(),
            Part::Items => self.items(),
            Part::Days => self.days(),
            Part::Attempts => self.attempts(),
            Part::Records => self.records(),
            Part::Structure(table) => self.structure(table),
            Part::Sealed(seal) => self.sealed(seal),
        }
    }

    /// SQLite's own check: no page is damaged, and whatever is looked for by an index is what the table has.
    fn structure(&mut self, table: &'static str) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare(&format!("PRAGMA integrity_check({table})"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let said: String = row.get(0)?;
            if said != "ok" {
                self.find(table, "*", said);
            }
        }
        Ok(())
    }

    /// History up to a seal has to be what it was.
    fn sealed(&mut self, seal: Seal) -> rusqlite::Result<()> {
        let sequence = seal.sequence;
        let last = seal::last_sequence(self.conn)?;
        let problem = if sequence > last {
            format!("is sealed and not there: the last entry is {last}, so entries were taken away since")
        } else if seal::up_to(self.conn, sequence)? != seal {
            "is sealed, and it or an entry before it is not what it was: history was changed since".to_owned()
        } else {
            return Ok(());
        };
        self.find("ledger_entries", sequence.to_string(), problem);
        Ok(())
    }

    fn rows_that_must_not_be(&mut self, table: &'static str, sql: &str, problem: &str) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare(sql)?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.find(table, shown(row.get_ref(0)?), problem);
        }
        Ok(())
    }
}

/// Whether an error says that the database is damaged, not that it could not be read now.
fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        None | Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase | ErrorCode::Unknown)
    )
}

fn is_hash(row: &Row<'_>, column: usize, digest: Digest) -> rusqlite::Result<bool> {
    let hash: Hash = digest.finish();
    Ok(row.get_ref(column)? == ValueRef::Blob(&hash))
}

/// An integer as a number that sums without overflow; `None` when it is something else.
fn integer(value: ValueRef<'_>) -> Option<Sum> {
    match value {
        ValueRef::Integer(number) => Some(Sum::from(number)),
        _ => None,
    }
}

fn bytes(value: ValueRef<'_>) -> &[u8] {
    value.as_bytes().unwrap_or_default()
}

/// A row's id as people know it.
fn shown(id: ValueRef<'_>) -> String {
    match (id.data_type(), id) {
        (_, ValueRef::Integer(number)) => number.to_string(),
        (_, ValueRef::Blob(bytes)) => match uuid::Uuid::from_slice(bytes) {
            Ok(id) => id.to_string(),
            Err(_) => super::columns::hex(bytes),
        },
        (Type::Null, _) => "NULL".to_owned(),
        (_, other) => String::from_utf8_lossy(bytes(other)).into_owned(),
    }
}

// The work, and who does it -------------------------------------------------------------------------------------------

/// Connections that see one and the same state, however busy a writer is: they begin, and begin again until as many
/// commits had been counted when each did. After so many tries it is one connection, which does all the work.
fn snapshot(store: &Store, tries: u32) -> rusqlite::Result<Vec<Connection>> {
    let mut conns = Vec::new();
    for _ in 0..WORKERS {
        let conn = connection::open_reader(store.path())?;
        conn.execute_batch(&format!(
            "PRAGMA cache_size = -{CACHE_KIB}; PRAGMA ignore_check_constraints = ON"
        ))?;
        conns.push(conn);
    }
    let begin = |conn: &Connection| conn.execute_batch("BEGIN").and_then(|()| commits::last(conn));
    for _ in 0..tries {
        let seen: Vec<i64> = conns.iter().map(begin).collect::<Result<_, _>>()?;
        if seen.iter().all(|count| *count == seen[0]) {
            return Ok(conns);
        }
        for conn in &conns {
            conn.execute_batch("ROLLBACK")?;
        }
    }
    conns.truncate(1);
    begin(&conns[0])?;
    Ok(conns)
}

/// All that there is to verify, what takes longest first.
fn parts(conn: &Connection, seal: Option<&Seal>) -> rusqlite::Result<Vec<Part>> {
    let sealed = seal.map(|seal| Part::Sealed(*seal));
    let structure = TABLES.into_iter().map(Part::Structure);
    let parts = [Part::Accounts, Part::Holds, Part::Items, Part::Days, Part::Attempts].into_iter();
    Ok(parts
        .chain(structure)
        .chain(ranges(conn)?)
        .chain([Part::Records])
        .chain(sealed)
        .collect())
}

/// All usage rows, in ranges of row numbers of the same width.
fn ranges(conn: &Connection) -> rusqlite::Result<Vec<Part>> {
    let (first, last): (i64, i64) = conn.query_row(
        "SELECT COALESCE((SELECT MIN(rowid) FROM usage_logs), 0), COALESCE((SELECT MAX(rowid) FROM usage_logs), 0)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    let width = last.saturating_sub(first) / RANGES;
    let starts = (1..RANGES).map(|number| first.saturating_add(width.saturating_mul(number)));
    let starts: Vec<i64> = std::iter::once(i64::MIN).chain(starts).collect();
    let ends = starts
        .iter()
        .skip(1)
        .map(|next| next.saturating_sub(1))
        .chain([i64::MAX]);
    Ok(starts
        .iter()
        .zip(ends)
        .map(|(first, last)| Part::Exchanges(*first, last))
        .collect())
}

/// Does one part after the other until none is left; by the parts' order.
fn work(conn: &Connection, parts: &[Part], next: &AtomicUsize) -> rusqlite::Result<Vec<(usize, Verification, Left)>> {
    let mut done = Vec::new();
    loop {
        let at = next.fetch_add(1, Ordering::Relaxed);
        let Some(part) = parts.get(at) else {
            return Ok(done);
        };
        let mut books = Books {
            conn,
            result: Verification::default(),
            left: Left::default(),
        };
        match books.verify(*part) {
            Err(error) if is_damage(&error) => books.find(part.table(), "*", format!("cannot be read: {error}")),
            other => other?,
        }
        done.push((at, books.result, books.left));
    }
}

/// What the mark beside the database says of it.
fn marked(store: &Store) -> Verification {
    let behind = store.behind().map(|behind| Finding {
        table: "commits",
        row: "*".to_owned(),
        problem: format!("is not what was there before: {behind}"),
    });
    Verification {
        findings: behind.into_iter().collect(),
        ..Verification::default()
    }
}

/// What items and days say that are left over.
fn indexed(left: Left) -> Verification {
    let wrong = |table, problem: &str| Finding {
        table,
        row: "*".to_owned(),
        problem: problem.to_owned(),
    };
    let items = (left.items != Items::default()).then(|| wrong("usage_items", "has other items than the usage rows"));
    let days = (!left.days.is_even()).then(|| wrong("usage_days", "has other sums than the usage rows come to"));
    Verification {
        findings: items.into_iter().chain(days).collect(),
        ..Verification::default()
    }
}

fn verify(store: &Store, seal: Option<&Seal>) -> rusqlite::Result<Verification> {
    let conns = snapshot(store, TRIES)?;
    let parts = parts(&conns[0], seal)?;
    let (parts, next) = (&parts, &AtomicUsize::new(0));
    let done = thread::scope(|scope| {
        let workers: Vec<_> = conns
            .into_iter()
            .map(|conn| scope.spawn(move || work(&conn, parts, next)))
            .collect();
        let results = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        results.collect::<Result<Vec<_>, _>>()
    })?;
    let (mut in_order, mut left) = (BTreeMap::new(), Left::default());
    for (at, result, some) in done.into_iter().flatten() {
        in_order.insert(at, result);
        left = left.with(some);
    }
    let all = in_order.into_values().fold(marked(store), Verification::with);
    Ok(all.with(indexed(left)))
}

impl Store {
    /// Recomputes every law; online, in one snapshot, in memory that depends on the number of users only.
    pub fn verify(&self) -> Result<Verification, StoreError> {
        self.verify_sealed(None)
    }

    /// The same, and that history up to a seal is what it was when it was sealed.
    pub fn verify_sealed(&self, seal: Option<&Seal>) -> Result<Verification, StoreError> {
        match verify(self, seal) {
            Err(error) if is_damage(&error) => Ok(Verification {
                findings: vec![Finding {
                    table: "sqlite_schema",
                    row: "*".to_owned(),
                    problem: format!("cannot be read: {error}"),
                }],
                ..Verification::default()
            }),
            other => other.map_err(during("verifying the books")),
        }
    }
}
