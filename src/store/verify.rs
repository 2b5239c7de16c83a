//! Verification: every law recomputed from what is stored, in one snapshot, without keeping any of it.
//!
//! What it cannot see: a user's `password_hash`; exchanges that were never charged, when both their hold and their usage
//! row are gone; and whatever somebody altered who also recomputed every hash after it (they have no secret).

use rusqlite::types::{Type, ValueRef};
use rusqlite::{Connection, Row};

use super::digest::{Digest, GENESIS, Hash};
use super::ledger::{ENTRY_COLUMNS, ENTRY_DOMAIN, HOLD_COLUMNS, HOLD_DOMAIN, closed_state};
use super::usage_log::{USAGE_COLUMNS, USAGE_DOMAIN};
use super::{Store, StoreError, audit, keys, users};
use crate::money::Usd;

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
        let mut statement = self
            .conn
            .prepare(&format!("SELECT {}, id AS raw FROM users ORDER BY id", users::USER))?;
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            self.result.users += 1;
            let id = row.get_ref("raw")?;
            let name = shown(id);
            match users::user(row) {
                Err(error) => self.find("users", &name, format!("does not parse: {error}")),
                Ok(user) => {
                    let written = audit::last_state(self.conn, "user.", &name)?;
                    if written.as_deref() != Some(users::audited(&user).as_str()) {
                        self.find("users", &name, "is not what the audit log says of it");
                    }
                    if user.available().is_negative() {
                        self.find("users", &name, "has less than nothing available");
                    }
                }
            }
            let (balance, held) = (integer(row, "balance_nanos")?, integer(row, "held_nanos")?);
            if balance != Some(self.entries_of(id)?) {
                self.find("users", &name, "has a balance that is not the sum of its entries");
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

    /// A user's entries: the chain, the running balance, the usage rows of charges. Returns their sum.
    fn entries_of(&mut self, user: ValueRef<'_>) -> rusqlite::Result<Sum> {
        let conn = self.conn;
        let mut statement = conn.prepare_cached(
            "SELECT e.*, u.row_hash, u.charge_nanos, u.uncollected_nanos, u.balance_after_nanos AS usage_balance_nanos
             FROM ledger_entries e LEFT JOIN usage_logs u ON u.exchange_id = e.exchange_id
             WHERE e.user_id = ?1 ORDER BY e.seq",
        )?;
        let mut rows = statement.query([bytes(user)])?;
        let (mut sum, mut previous) = (0, GENESIS.to_vec());
        while let Some(row) = rows.next()? {
            self.result.entries += 1;
            sum += integer(row, "amount_nanos")?.unwrap_or_default();
            for problem in entry_problems(row, &previous, sum)? {
                self.find("ledger_entries", shown(row.get_ref("seq")?), problem);
            }
            previous = bytes(row.get_ref("hash")?);
        }
        Ok(sum)
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
            for problem in usage_problems(row)? {
                self.find("usage_logs", shown(row.get_ref("exchange_id")?), problem);
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
                    if written.as_deref() != Some(keys::audited(&key).as_str()) {
                        self.find("api_keys", name, "is not what the audit log says of it");
                    }
                }
            }
        }
        let sql = "SELECT id FROM api_keys k WHERE NOT EXISTS (SELECT 1 FROM users WHERE id = k.user_id)";
        self.rows_that_must_not_be("api_keys", sql, "belongs to a user who is not there")
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
            books.holds()?;
            books.usage()?;
            books.keys()?;
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
