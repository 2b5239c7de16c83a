//! Migrations: what makes a database of an earlier version one of ours.

use rusqlite::{Connection, TransactionBehavior};

use crate::fail_point::{self, Point};

/// `user_version` of the schema.
pub(super) const VERSION: i64 = 2;

/// What makes a database of one version one of the next; the first is of version 1.
const STEPS: [&str; 1] = [
    // 2: commits are counted.
    "CREATE TABLE commits (
         one   INTEGER PRIMARY KEY CHECK (one = 1),
         count INTEGER NOT NULL CHECK (count >= 0)
     ) STRICT;
     INSERT INTO commits (one, count) VALUES (1, 0);
     CREATE TRIGGER commits_are_counted BEFORE UPDATE ON commits
     WHEN NEW.count IS NOT OLD.count + 1 OR NEW.one IS NOT OLD.one
     BEGIN SELECT RAISE(ABORT, 'commits are counted one by one'); END;
     CREATE TRIGGER commits_stay BEFORE DELETE ON commits
     BEGIN SELECT RAISE(ABORT, 'the count of commits is not deleted'); END;",
];

/// Brings a database of an earlier version up to ours, in one transaction.
pub(super) fn migrate(conn: &mut Connection) -> rusqlite::Result<()> {
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first.
    let found: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    for (from, step) in (1..).zip(STEPS) {
        if from >= found {
            tx.execute_batch(step)?;
            fail_point::hit(Point::Migration).map_err(super::columns::injected)?;
        }
    }
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()
}
