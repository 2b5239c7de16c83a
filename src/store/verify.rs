//! Verification: every law recomputed from what is stored, in one snapshot, without keeping any of it.
//!
//! What it cannot see: a user's `password_hash`; a key's times of issue and last use; who did an act, when, and on what
//! state; acts taken off the end of the audit log together with what they did to a status, a key or an operator's price;
//! the index of items (`usage_items`); and whatever somebody altered who also rewrote everything that follows from it,
//! hashes and the counts in `users` and `meta` included (they have no secret).

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, ToSql};

use super::digest::{Digest, GENESIS, Hash};
use super::entries::{ENTRY_COLUMNS, ENTRY_DOMAIN};
use super::ledger::{HOLD_COLUMNS, HOLD_DOMAIN, closed_state};
use super::usage_log::{self, ExchangeRow, USAGE_COLUMNS, USAGE_DOMAIN};
use super::{Store, StoreError, audit, keys, prices, users};
use crate::money::Usd;
use crate::pricing::{self, Factor, Price, SearchTool, Terms};

/// Findings that are kept; after so many the books are wrong enough.
const MAX_FINDINGS: usize = 1000;

/// The first thing wrong that a verification found, and how much was looked at.
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
    /// What is wrong, in the order found; empty: the books balance.
    pub findings: Vec<Finding>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The table.
    pub table: &'static str,
    /// The row: its id.
    pub row: String,
    /// What is wrong with it.
    pub problem: String,
}

/// A verification under way.
struct Books<'a> {
    conn: &'a Connection,
    result: Verification,
}

/// A sum of integers that cannot overflow.
type Sum = i128;

/// How many holds a user has: a usage row for each that is closed.
const HOLDS: &str = "SELECT (SELECT COUNT(*) FROM usage_logs WHERE user_id = ?1)
                          + (SELECT COUNT(*) FROM holds WHERE user_id = ?1 AND state = 'open') AS count";

/// How many of a user's entries were made by operators,
const CREDITS: &str = "SELECT COUNT(*) AS count FROM ledger_entries WHERE user_id = ?1 AND exchange_id IS NULL";

/// and how many there were by the audit log.
const ACTS: &str =
    "SELECT COUNT(*) AS count FROM audit_log WHERE subject = ?1 AND action IN ('ledger.credit', 'ledger.adjust')";

/// What a user's entries come to.
struct Chain {
    sum: Sum,
    count: Sum,
    head: Vec<u8>,
}

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

    /// Each user: status and credit line as last written down, balance and held as their sums.
    fn users(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare("SELECT *, id AS raw FROM users ORDER BY id")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.result.users += 1;
            let id = row.get_ref("raw")?;
            let name = shown(id);
            match users::user(row) {
                Err(error) => self.find("users", &name, format!("does not parse: {error}")),
                Ok(user) => {
                    let written = audit::last_state(self.conn, "user.", &name)?;
                    if !audit::is_as_written(written.as_deref(), &users::audited(&user)) {
                        self.find("users", &name, "is not what the audit log says of it");
                    }
                    if user.available().is_negative() {
                        self.find("users", &name, "has less than nothing available");
                    }
                }
            }
            let (balance, held) = (integer(row, "balance_nanos")?, integer(row, "held_nanos")?);
            let entries = self.entries_of(id)?;
            if balance != Some(entries.sum) {
                self.find("users", &name, "has a balance that is not the sum of its entries");
            }
            let head = row.get_ref("head_hash")?;
            let head = match head {
                ValueRef::Null => GENESIS.to_vec(),
                head => bytes(head),
            };
            if integer(row, "entries")? != Some(entries.count) || head != entries.head {
                self.find(
                    "users",
                    &name,
                    "has other entries than were made: some are missing, or were added",
                );
            }
            if self.count(HOLDS, bytes(id))? != integer(row, "holds")? {
                self.find(
                    "users",
                    &name,
                    "has other holds than were taken: some are missing, or were added",
                );
            }
            if self.count(CREDITS, bytes(id))? != self.count(ACTS, &name)? {
                self.find("users", &name, "was credited otherwise than the audit log says");
            }
            if held != Some(self.open_holds_of(id)?) {
                self.find("users", &name, "holds something else than the sum of its open holds");
            }
        }
        Ok(())
    }

    fn open_holds_of(&self, user: ValueRef<'_>) -> rusqlite::Result<Sum> {
        let mut statement = self
            .conn
            .prepare_cached("SELECT amount_nanos FROM holds WHERE user_id = ?1 AND state = 'open'")?;
        let mut rows = statement.query([bytes(user)])?;
        let mut sum = 0;
        while let Some(row) = rows.next()? {
            sum += integer(row, "amount_nanos")?.unwrap_or_default();
        }
        Ok(sum)
    }

    /// A count by SQL whose ?1 is an id.
    fn count(&self, sql: &str, id: impl ToSql) -> rusqlite::Result<Option<Sum>> {
        self.conn
            .prepare_cached(sql)?
            .query_row([id], |row| integer(row, "count"))
    }

    /// A user's entries: the chain, the running balance, the usage rows of charges.
    fn entries_of(&mut self, user: ValueRef<'_>) -> rusqlite::Result<Chain> {
        let conn = self.conn;
        let mut statement = conn.prepare_cached(
            "SELECT e.*, u.row_hash, u.charge_nanos, u.uncollected_nanos, u.balance_after_nanos AS usage_balance_nanos
             FROM ledger_entries e LEFT JOIN usage_logs u ON u.exchange_id = e.exchange_id
             WHERE e.user_id = ?1 ORDER BY e.seq",
        )?;
        let mut rows = statement.query([bytes(user)])?;
        let mut chain = Chain {
            sum: 0,
            count: 0,
            head: GENESIS.to_vec(),
        };
        while let Some(row) = rows.next()? {
            self.result.entries += 1;
            chain.count += 1;
            chain.sum += integer(row, "amount_nanos")?.unwrap_or_default();
            for problem in entry_problems(row, &chain.head, chain.sum)? {
                self.find("ledger_entries", shown(row.get_ref("seq")?), problem);
            }
            chain.head = bytes(row.get_ref("hash")?);
        }
        Ok(chain)
    }

    fn orphaned_entries(&mut self) -> rusqlite::Result<()> {
        let sql = "SELECT seq FROM ledger_entries e WHERE NOT EXISTS (SELECT 1 FROM users WHERE id = e.user_id)";
        self.rows_that_must_not_be("ledger_entries", sql, "belongs to a user who is not there")
    }

    fn holds(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare(
            "SELECT h.*, u.exchange_id AS usage_id, u.charge_nanos, u.started_at, u.duration_us
             FROM holds h LEFT JOIN usage_logs u ON u.exchange_id = h.exchange_id",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let open = row.get_ref("state")? == ValueRef::Text(b"open");
            self.result.open_holds += u64::from(open);
            for problem in hold_problems(row)? {
                self.find("holds", shown(row.get_ref("exchange_id")?), problem);
            }
        }
        Ok(())
    }

    fn usage(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare(
            "SELECT u.*, h.hash AS hold_hash, h.state AS hold_state, e.amount_nanos AS entry_nanos
             FROM usage_logs u LEFT JOIN holds h ON h.exchange_id = u.exchange_id
                               LEFT JOIN ledger_entries e ON e.exchange_id = u.exchange_id",
        )?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.result.exchanges += 1;
            let name = shown(row.get_ref("exchange_id")?);
            for problem in usage_problems(row)? {
                self.find("usage_logs", &name, problem);
            }
            let problems = match usage_log::exchange(row) {
                Ok(row) => bill_problems(self.conn, &row)?,
                Err(error) => vec![format!("does not parse: {error}")],
            };
            for problem in problems {
                self.find("usage_logs", &name, problem);
            }
        }
        Ok(())
    }

    fn keys(&mut self) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare(&keys::select("ORDER BY k.id"))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let name = shown(row.get_ref("id")?);
            match keys::key(row) {
                Err(error) => self.find("api_keys", name, format!("does not parse: {error}")),
                Ok(key) => {
                    let written = audit::last_state(self.conn, "key.", &name)?;
                    if !audit::is_as_written(written.as_deref(), &keys::audited(&key)) {
                        self.find("api_keys", name, "is not what the audit log says of it");
                    }
                }
            }
        }
        let sql = "SELECT id FROM api_keys k WHERE NOT EXISTS (SELECT 1 FROM users WHERE id = k.user_id)";
        self.rows_that_must_not_be("api_keys", sql, "belongs to a user who is not there")
    }

    /// What operators put into balances or took out has to be there, as an entry of that amount.
    fn credits(&mut self) -> rusqlite::Result<()> {
        let conn = self.conn;
        let mut statement = conn.prepare(
            "SELECT seq, subject, after FROM audit_log WHERE action IN ('ledger.credit', 'ledger.adjust') ORDER BY seq",
        )?;
        let mut entries = conn.prepare("SELECT user_id, amount_nanos FROM ledger_entries WHERE seq = ?1")?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            let act: serde_json::Value = serde_json::from_str(&row.get::<_, String>("after")?).unwrap_or_default();
            let amount = act["amount"].as_str().and_then(|amount| amount.parse().ok());
            let found = entries
                .query_row([act["entry"].as_i64()], |entry| {
                    Ok((shown(entry.get_ref("user_id")?), integer(entry, "amount_nanos")?))
                })
                .optional()?;
            let said = (row.get("subject")?, amount.map(|usd: Usd| Sum::from(usd.nanos())));
            if found != Some(said) {
                let entry = act["entry"].to_string();
                self.find("ledger_entries", entry, "is not there as the audit log says of it");
            }
        }
        Ok(())
    }

    /// Entries and acts are numbered without gaps.
    fn gaps(&mut self) -> rusqlite::Result<()> {
        for table in ["ledger_entries", "audit_log"] {
            let sql = format!("SELECT COUNT(*), COALESCE(MAX(seq), 0), COALESCE(MIN(seq), 1) FROM {table}");
            let (count, last, first): (i64, i64, i64) = self
                .conn
                .query_row(&sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            if (count, first) != (last, 1) {
                self.find(
                    table,
                    last.to_string(),
                    "is the last number, and numbers before it are missing",
                );
            }
        }
        Ok(())
    }

    fn prices(&mut self) -> rusqlite::Result<()> {
        for (row, problem) in prices::unlike_the_audit_log(self.conn)? {
            self.find("model_pricing", row, problem);
        }
        if !prices::catalogue_is_whole(self.conn)? {
            self.find("model_pricing", "catalogue", "has other prices than the program wrote");
        }
        Ok(())
    }

    /// Users and keys that were added have to be there.
    fn missing(&mut self, action: &str, table: &'static str) -> rusqlite::Result<()> {
        let mut statement = self.conn.prepare("SELECT subject FROM audit_log WHERE action = ?1")?;
        let mut exists = self.conn.prepare(&format!("SELECT 1 FROM {table} WHERE id = ?1"))?;
        let mut rows = statement.query([action])?;
        while let Some(row) = rows.next()? {
            let subject: String = row.get("subject")?;
            let id = uuid::Uuid::try_parse(&subject).unwrap_or_default();
            if !exists.exists([id.as_bytes()])? {
                self.find(table, subject, "was added and is not there");
            }
        }
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

fn entry_problems(row: &Row<'_>, previous: &[u8], sum: Sum) -> rusqlite::Result<Vec<&'static str>> {
    let mut digest = Digest::new(ENTRY_DOMAIN);
    digest.field("previous_hash", ValueRef::Blob(previous));
    digest.columns(row, &ENTRY_COLUMNS)?;
    digest.field("usage_hash", row.get_ref("row_hash")?);
    let mut problems = Vec::new();
    if !is_hash(row, "hash", digest)? {
        problems.push("its hash does not fit: it, its usage row or an entry before it was altered");
    }
    if integer(row, "balance_after_nanos")? != Some(sum) {
        problems.push("its balance is not the sum so far");
    }
    if row.get_ref("exchange_id")? != ValueRef::Null {
        let charged = charged(row)?;
        if charged.is_none() || charged != integer(row, "amount_nanos")?.map(|amount| -amount) {
            problems.push("its usage row charged something else");
        }
        if integer(row, "usage_balance_nanos")? != integer(row, "balance_after_nanos")? {
            problems.push("its usage row has another balance");
        }
    }
    Ok(problems)
}

fn hold_problems(row: &Row<'_>) -> rusqlite::Result<Vec<&'static str>> {
    let mut digest = Digest::new(HOLD_DOMAIN);
    digest.columns(row, &HOLD_COLUMNS)?;
    let mut problems = Vec::new();
    if !is_hash(row, "hash", digest)? {
        problems.push("its hash does not fit: it was altered");
    }
    let open = row.get_ref("state")? == ValueRef::Text(b"open");
    let has_usage = row.get_ref("usage_id")? != ValueRef::Null;
    match (open, has_usage) {
        (true, true) => problems.push("it is open, and its exchange is settled"),
        (false, false) => problems.push("it is closed, and its exchange has no usage row"),
        (true, false) if row.get_ref("closed_at")? != ValueRef::Null => problems.push("it is open, and has an end"),
        (true, false) => {}
        (false, true) => {
            let charge = integer(row, "charge_nanos")?.and_then(|nanos| i64::try_from(nanos).ok());
            let state = charge.map(|nanos| closed_state(Usd::from_nanos(nanos)));
            if state.map(|state| ValueRef::Text(state.as_bytes())) != Some(row.get_ref("state")?) {
                problems.push("its state is not what its usage row says");
            }
            let started = integer(row, "started_at")?.zip(integer(row, "duration_us")?);
            if integer(row, "closed_at")? != started.map(|(at, took)| at + took) {
                problems.push("it was closed at another time than its exchange");
            }
        }
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

fn usage_problems(row: &Row<'_>) -> rusqlite::Result<Vec<&'static str>> {
    let mut digest = Digest::new(USAGE_DOMAIN);
    digest.columns(row, &USAGE_COLUMNS)?;
    digest.columns(row, &["hold_hash", "hold_state"])?;
    let mut problems = Vec::new();
    if !is_hash(row, "row_hash", digest)? {
        problems.push("its hash does not fit: it or its hold was altered");
    }
    let paid = integer(row, "entry_nanos")?.unwrap_or_default();
    if charged(row)? != Some(-paid) {
        problems.push("its charge is not what its entry says");
    }
    Ok(problems)
}

/// What a usage row charged, in the end.
fn charged(row: &Row<'_>) -> rusqlite::Result<Option<Sum>> {
    let parts = integer(row, "charge_nanos")?.zip(integer(row, "uncollected_nanos")?);
    Ok(parts.map(|(charge, uncollected)| charge - uncollected))
}

fn is_hash(row: &Row<'_>, column: &str, digest: Digest) -> rusqlite::Result<bool> {
    let hash: Hash = digest.finish();
    Ok(row.get_ref(column)? == ValueRef::Blob(&hash))
}

/// An integer column as a number that sums without overflow; `None` when it holds something else.
fn integer(row: &Row<'_>, column: &str) -> rusqlite::Result<Option<Sum>> {
    Ok(match row.get_ref(column)? {
        ValueRef::Integer(number) => Some(Sum::from(number)),
        _ => None,
    })
}

fn bytes(value: ValueRef<'_>) -> Vec<u8> {
    value.as_bytes().unwrap_or_default().to_vec()
}

/// A row's id as people know it.
fn shown(id: ValueRef<'_>) -> String {
    match (id.data_type(), id) {
        (_, ValueRef::Integer(number)) => number.to_string(),
        (_, ValueRef::Blob(bytes)) => match uuid::Uuid::from_slice(bytes) {
            Ok(id) => id.to_string(),
            Err(_) => bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        },
        (Type::Null, _) => "NULL".to_owned(),
        (_, other) => String::from_utf8_lossy(other.as_bytes().unwrap_or_default()).into_owned(),
    }
}

impl Store {
    /// Recomputes every law; online, in one snapshot, in constant memory.
    pub fn verify(&self) -> Result<Verification, StoreError> {
        self.read("verifying the books", |conn| {
            let snapshot = conn.unchecked_transaction()?;
            let mut books = Books {
                conn: &snapshot,
                result: Verification::default(),
            };
            books.users()?;
            books.missing("user.add", "users")?;
            books.orphaned_entries()?;
            books.gaps()?;
            books.credits()?;
            books.holds()?;
            books.usage()?;
            books.keys()?;
            books.prices()?;
            books.missing("key.issue", "api_keys")?;
            Ok(books.result)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::store::ledger::{CloseHold, Excess};
    use rusqlite::types::Value;

    /// Columns whose change `verify` cannot see, and why that is no loss.
    const UNSEEN: [(&str, &str); 1] = [
        // Neither money nor state; whoever can write it can sign in, not spend.
        ("users", "password_hash"),
    ];

    /// Books in which each table has a row of each kind.
    fn books() -> Desk {
        let desk = Desk::new();
        let ada = desk.user("ada", "9");
        desk.user("bob", "0");
        let key = desk.key(&ada);
        let adjusted = top_up(&ada, "-1", Some("correction"));
        done(desk.store.credit(&adjusted, &by(), at(2)));
        for (charge, excess) in [("1", Excess::Collect), ("0", Excess::Collect), ("3", Excess::Waive)] {
            let id = exchange();
            desk.set_aside(&ask(id, &key, "2"));
            desk.close(
                id,
                &CloseHold {
                    excess,
                    ..closing(id, &key, charge)
                },
            );
        }
        desk.set_aside(&ask(exchange(), &key, "2"));
        desk.assert_books_balance();
        desk
    }

    fn columns(conn: &Connection, table: &str) -> Vec<String> {
        let mut statement = conn
            .prepare("SELECT name FROM pragma_table_info(?1)")
            .expect("prepared");
        let names = statement.query_map([table], |row| row.get(0)).expect("read");
        names.collect::<Result<_, _>>().expect("names")
    }

    fn altered(value: Value, column: &str) -> Value {
        match value {
            Value::Null if column.ends_with("_at") || column.ends_with("_limit") => Value::Integer(7),
            Value::Null if column.ends_with("_id") => Value::Blob(vec![9; 16]),
            Value::Null => Value::Text("x".to_owned()),
            Value::Integer(number) if column == "seq" => Value::Integer(number + 1000),
            Value::Integer(number) => Value::Integer(number + 1),
            Value::Text(text) => Value::Text(match text.as_str() {
                "active" => "suspended".to_owned(),
                "open" | "released" => "settled".to_owned(),
                "settled" => "released".to_owned(),
                "completed" => "left".to_owned(),
                "credit" => "adjustment".to_owned(),
                other => format!("{other} "),
            }),
            Value::Blob(mut bytes) => {
                bytes[0] ^= 1;
                Value::Blob(bytes)
            }
            Value::Real(_) => panic!("no real numbers here"),
        }
    }

    fn as_the_column_takes_it(conn: &Connection, table: &str, column: &str, value: Value) -> Value {
        let kind: String = conn
            .query_row(
                "SELECT type FROM pragma_table_info(?1) WHERE name = ?2",
                [table, column],
                |row| row.get(0),
            )
            .expect("a type");
        match (kind.as_str(), value) {
            ("INTEGER", Value::Text(_)) => Value::Integer(7),
            ("TEXT", Value::Blob(_) | Value::Integer(_)) => Value::Text("x".to_owned()),
            ("BLOB", Value::Text(_) | Value::Integer(_)) => Value::Blob(vec![9; 16]),
            (_, value) => value,
        }
    }

    /// Alters one value of the n-th row, and names the row; `None` when there is no such row.
    fn alter(desk: &Desk, table: &str, column: &str, nth: i64) -> Option<Vec<String>> {
        let raw = desk.raw();
        raw.execute_batch("PRAGMA foreign_keys = OFF; PRAGMA ignore_check_constraints = ON;")
            .expect("settings");
        let id = if table == "ledger_entries" {
            "seq"
        } else if table == "users" {
            "id"
        } else {
            "exchange_id"
        };
        let select = format!("SELECT {column}, {id} FROM {table} ORDER BY {id} LIMIT 1 OFFSET {nth}");
        let (value, key): (Value, Value) = raw.query_row(&select, [], |row| Ok((row.get(0)?, row.get(1)?))).ok()?;
        let new = as_the_column_takes_it(&raw, table, column, altered(value, column));
        let update = format!("UPDATE {table} SET {column} = ?1 WHERE {id} = ?2");
        raw.execute(&update, rusqlite::params![new, key]).expect(&update);
        let name = |value: &Value| shown(value.into());
        Some(if column == id {
            vec![name(&key), name(&new)]
        } else {
            vec![name(&key)]
        })
    }

    fn drop_triggers(desk: &Desk) {
        let raw = desk.raw();
        let mut statement = raw
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'trigger'")
            .expect("prepared");
        let names: Vec<String> = statement
            .query_map([], |row| row.get(0))
            .expect("read")
            .collect::<Result<_, _>>()
            .expect("names");
        for name in names {
            raw.execute_batch(&format!("DROP TRIGGER {name}")).expect("dropped");
        }
    }

    #[test]
    fn any_altered_value_is_found_and_its_table_and_row_are_named() {
        let mut looked_at = 0;
        for table in ["users", "holds", "ledger_entries", "usage_logs"] {
            let template = books();
            drop_triggers(&template);
            template
                .raw()
                .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
                .expect("checkpointed");
            for column in columns(&template.raw(), table) {
                if UNSEEN.contains(&(table, column.as_str())) {
                    continue;
                }
                for nth in 0.. {
                    let before = save(&template, table);
                    let Some(rows) = alter(&template, table, &column, nth) else {
                        break;
                    };
                    let findings = template.store.verify().expect("it verifies").findings;
                    let named = findings.iter().any(|f| f.table == table && rows.contains(&f.row));
                    assert!(named, "{table}.{column} of {rows:?}: {findings:#?}");
                    restore(&template, table, &before);
                    looked_at += 1;
                }
                template.assert_books_balance();
            }
        }
        assert!(looked_at > 250, "only {looked_at} values were altered");
    }

    fn save(desk: &Desk, table: &str) -> Vec<Vec<Value>> {
        let raw = desk.raw();
        let width = columns(&raw, table).len();
        let mut statement = raw.prepare(&format!("SELECT * FROM {table}")).expect("prepared");
        let rows = statement
            .query_map([], |row| (0..width).map(|i| row.get(i)).collect())
            .expect("read");
        rows.collect::<Result<_, _>>().expect("rows")
    }

    fn restore(desk: &Desk, table: &str, rows: &[Vec<Value>]) {
        let raw = desk.raw();
        raw.execute_batch("PRAGMA foreign_keys = OFF; BEGIN IMMEDIATE")
            .expect("begun");
        raw.execute(&format!("DELETE FROM {table}"), []).expect("emptied");
        for row in rows {
            let marks: Vec<String> = (1..=row.len()).map(|i| format!("?{i}")).collect();
            let insert = format!("INSERT INTO {table} VALUES ({})", marks.join(", "));
            raw.execute(&insert, rusqlite::params_from_iter(row)).expect("restored");
        }
        raw.execute_batch("COMMIT").expect("committed");
    }

    #[test]
    fn a_missing_row_is_found() {
        for (sql, table) in [
            ("DELETE FROM users WHERE name = 'bob'", "users"),
            ("DELETE FROM ledger_entries WHERE seq = 1", "ledger_entries"),
            ("DELETE FROM ledger_entries WHERE seq = 4", "usage_logs"),
            ("DELETE FROM holds WHERE state = 'open'", "users"),
            ("DELETE FROM holds WHERE state = 'released'", "usage_logs"),
            ("DELETE FROM usage_logs WHERE charge_nanos = 0", "holds"),
            ("DELETE FROM api_keys", "api_keys"),
            ("UPDATE api_keys SET models = '[]'", "api_keys"),
        ] {
            let desk = books();
            drop_triggers(&desk);
            let raw = desk.raw();
            raw.execute_batch("PRAGMA foreign_keys = OFF").expect("settings");
            assert!(raw.execute(sql, []).expect(sql) > 0, "{sql}");
            let findings = desk.store.verify().expect("it verifies").findings;
            assert!(findings.iter().any(|f| f.table == table), "{sql}: {findings:#?}");
        }
    }

    /// Cuts the newest entries off, and makes the balance fit what is left.
    fn cut(desk: &Desk, sql: &str) {
        drop_triggers(desk);
        let raw = desk.raw();
        raw.execute_batch(&format!(
            "PRAGMA foreign_keys = OFF; {sql};
             UPDATE users SET balance_nanos =
                 (SELECT COALESCE(SUM(amount_nanos), 0) FROM ledger_entries WHERE user_id = users.id)"
        ))
        .expect(sql);
    }

    #[test]
    fn books_whose_end_was_cut_off_do_not_balance() {
        let charged = books();
        cut(
            &charged,
            "CREATE TEMP TABLE last AS SELECT exchange_id FROM ledger_entries ORDER BY seq DESC LIMIT 1;
             DELETE FROM ledger_entries WHERE exchange_id IN last; DELETE FROM usage_logs WHERE exchange_id IN last;
             DELETE FROM holds WHERE exchange_id IN last",
        );
        let credited = Desk::new();
        credited.user("ada", "9");
        cut(&credited, "DELETE FROM ledger_entries");
        let free = books();
        cut(
            &free,
            "CREATE TEMP TABLE free AS SELECT exchange_id FROM usage_logs WHERE charge_nanos = 0;
             DELETE FROM usage_logs WHERE exchange_id IN free; DELETE FROM holds WHERE exchange_id IN free",
        );
        for desk in [&charged, &credited, &free] {
            let findings = desk.store.verify().expect("it verifies").findings;
            assert!(findings.iter().any(|f| f.table == "users"), "{findings:#?}");
        }
        let findings = credited.store.verify().expect("it verifies").findings;
        assert!(
            findings.iter().any(|f| f.table == "ledger_entries" && f.row == "1"),
            "{findings:#?}"
        );
    }

    #[test]
    fn a_receipt_that_does_not_come_to_its_charge_is_found() {
        type Change = fn(&mut ExchangeRow);
        let changes: [(Change, &str); 6] = [
            (|row| row.cost = usd("1.5"), "its cost is 1.5"),
            (|row| row.charge = usd("1.5"), "its charge is 1.5"),
            (|row| row.markup = "1.1".to_owned(), "its charge is 1,"),
            (|row| row.uplift = Some("1.1".to_owned()), "its cost is 1,"),
            (|row| row.lines[0].amount = "7".to_owned(), "cannot be added up"),
            (
                |row| row.usage.output_tokens = crate::usage::Tokens::saturating(9999),
                "its lines count its output otherwise",
            ),
        ];
        for (change, says) in changes {
            let desk = Desk::new();
            let key = desk.key(&desk.user("ada", "9"));
            let id = exchange();
            desk.set_aside(&ask(id, &key, "2"));
            let mut close = closing(id, &key, "1");
            change(&mut close.row);
            desk.close(id, &close);
            let findings = desk.store.verify().expect("it verifies").findings;
            assert!(
                findings.iter().any(|f| f.problem.contains(says)),
                "{says}: {findings:#?}"
            );
        }
    }

    #[test]
    fn what_had_no_price_may_be_missing_from_a_receipt_and_what_had_one_may_not() {
        let desk = Desk::new();
        let key = desk.key(&desk.user("ada", "9"));
        let id = exchange();
        desk.set_aside(&ask(id, &key, "2"));
        let mut close = closing(id, &key, "0");
        close.row.usage.tools = crate::usage::ToolUsage::default();
        close.row.lines.clear();
        desk.close(id, &close);
        desk.assert_books_balance();
        let json = r#"{"kind":"text","rates":{"input":"1","output":"1"}}"#;
        let price = Price::from_json(json).expect("a price");
        let from = close.row.price_from.expect("a date");
        let row = (crate::pricing::ListName::openai(), close.row.priced_model, from, price);
        done(desk.store.set_prices(&[row], &by(), at(2)));
        let findings = desk.store.verify().expect("it verifies").findings;
        assert!(
            findings.iter().any(|f| f.problem.contains("were used and priced")),
            "{findings:#?}"
        );
    }

    #[test]
    fn every_credit_is_the_act_of_somebody() {
        for sql in [
            "DELETE FROM audit_log WHERE action = 'ledger.adjust'",
            r#"UPDATE audit_log SET after = replace(after, '"amount":"-1"', '"amount":"-2"') WHERE action = 'ledger.adjust'"#,
        ] {
            let desk = books();
            drop_triggers(&desk);
            assert!(desk.raw().execute(sql, []).expect(sql) > 0, "{sql}");
            let findings = desk.store.verify().expect("it verifies").findings;
            assert!(!findings.is_empty(), "{sql}");
        }
    }

    #[test]
    fn altered_prices_and_keys_are_found() {
        let price = |input: &str| {
            let json = format!(r#"{{"kind":"text","rates":{{"input":"{input}","output":"1"}}}}"#);
            crate::pricing::Price::from_json(&json).expect("a price")
        };
        let list = crate::pricing::ListName::openai();
        for (sql, table) in [
            ("UPDATE api_keys SET hash = zeroblob(32)", "api_keys"),
            (
                "UPDATE model_pricing SET price = replace(price, '7', '8') WHERE source = 'operator'",
                "model_pricing",
            ),
            ("DELETE FROM model_pricing WHERE source = 'operator'", "model_pricing"),
            (
                "UPDATE model_pricing SET price = replace(price, '1', '2') WHERE model = 'gpt-4o'",
                "model_pricing",
            ),
            ("DELETE FROM model_pricing WHERE model = 'gpt-4o'", "model_pricing"),
        ] {
            let desk = books();
            for input in ["6", "7"] {
                // Finer than the database keeps it.
                let from = at(1) + std::time::Duration::from_nanos(7);
                let row = (list.clone(), "m".to_owned(), from, price(input));
                done(desk.store.set_prices(&[row], &by(), at(2)));
            }
            desk.assert_books_balance();
            assert!(desk.raw().execute(sql, []).expect(sql) > 0, "{sql}");
            let findings = desk.store.verify().expect("it verifies").findings;
            assert!(findings.iter().any(|f| f.table == table), "{sql}: {findings:#?}");
        }
    }

    #[test]
    fn every_column_of_the_hashed_tables_is_in_a_hash() {
        let desk = Desk::new();
        let raw = desk.raw();
        let own = |table: &str, names: &[&str], apart: &[&str]| {
            let expected: Vec<String> = names.iter().chain(apart).map(|name| (*name).to_owned()).collect();
            assert_eq!(columns(&raw, table), expected, "{table}");
        };
        own("holds", &HOLD_COLUMNS, &["hash", "state", "closed_at"]);
        own("usage_logs", &USAGE_COLUMNS, &["row_hash"]);
        own("ledger_entries", &ENTRY_COLUMNS, &["hash"]);
    }
}
