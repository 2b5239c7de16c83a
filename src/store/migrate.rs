//! Migrations: what makes a database of an earlier version one of ours.
//!
//! A backup of the earlier version is made beside the database before anything is changed: `gateway.db.version-1.backup`.
//! The migration is one transaction, which also keeps everybody else from writing while the backup is made, so that the
//! backup is the very state that was migrated.

use std::path::{Path, PathBuf};

use rusqlite::{Connection, TransactionBehavior};

use super::{OpenError, ServerLock, backup, connection, during};
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

/// Where the backup is that was made of a version before it was left.
pub(super) fn backup_path(database: &Path, version: i64) -> PathBuf {
    connection::beside(database, &format!(".version-{version}.backup"))
}

/// Brings a database of an earlier version up to ours. A server that runs on it is of an earlier release: it would go
/// on in its own way.
pub(super) fn migrate(conn: &mut Connection, path: &Path) -> Result<(), OpenError> {
    if let Some(server) = ServerLock::holder(path)
        && is_earlier(conn)?
    {
        return Err(OpenError::InUse(server));
    }
    take(&STEPS, conn, path)
}

/// Whether the database is of an earlier version still: whoever serves it may just have migrated it.
fn is_earlier(conn: &Connection) -> Result<bool, OpenError> {
    let found: i64 = connection::pragma(conn, "PRAGMA user_version").map_err(during("reading the version"))?;
    Ok(found < VERSION)
}

/// Takes those of the steps that the database lacks.
fn take(steps: &[&str], conn: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let migrating = || format!("migrating {}", path.display());
    let tx = conn
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(during(migrating()))?;
    // Another process may have been first.
    let found: i64 = connection::pragma(&tx, "PRAGMA user_version").map_err(during(migrating()))?;
    let missing: Vec<_> = (1_i64..).zip(steps).filter(|(from, _)| *from >= found).collect();
    if missing.is_empty() {
        return Ok(());
    }
    backup::before_migration(path, found).map_err(|source| OpenError::NotBackedUp { found, source })?;
    for (from, step) in missing {
        let stepped = tx
            .execute_batch(step)
            .and_then(|()| fail_point::hit(Point::Migration).map_err(super::columns::injected))
            .and_then(|()| tx.pragma_update(None, "user_version", from + 1));
        stepped.map_err(during(migrating()))?;
    }
    Ok(tx.commit().map_err(during(migrating()))?)
}
