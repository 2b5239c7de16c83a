//! How many transactions were committed: what tells a database that lost its end from a whole one.

use rusqlite::Connection;

use super::connection;

pub(super) const COUNT: &str = "UPDATE commits SET count = count + 1 WHERE one = 1";

/// Counts the transaction that is about to commit; part of it.
pub(super) fn count(tx: &Connection) -> rusqlite::Result<()> {
    tx.prepare_cached(COUNT)?.execute([]).map(drop)
}

/// The number of the last one, in a database of any version: before the second none were counted.
pub(super) fn last_if_counted(conn: &Connection) -> rusqlite::Result<Option<i64>> {
    let version: i64 = connection::pragma(conn, "PRAGMA user_version")?;
    (version > 1).then(|| last(conn)).transpose()
}

/// The number of the last one.
pub(super) fn last(conn: &Connection) -> rusqlite::Result<i64> {
    conn.prepare_cached("SELECT count FROM commits")?
        .query_row([], |row| row.get(0))
}
