//! How many transactions were committed: what tells a database that lost its end from a whole one.

use rusqlite::Connection;

/// Counts the transaction that is about to commit; part of it. (`RETURNING` would make a table for the one number.)
pub(super) fn count(tx: &Connection) -> rusqlite::Result<()> {
    tx.prepare_cached("UPDATE commits SET count = count + 1")?
        .execute([])
        .map(drop)
}

/// The number of the last one.
pub(super) fn last(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("SELECT count FROM commits")?
        .query_row([], |row| row.get(0))
}
