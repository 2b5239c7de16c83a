//! Recorded answers, sealed: what an exchange that was charged gave to its client, for a day.

use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};

use super::columns::Micros;
use super::{ExchangeId, Store, StoreError};

/// How long a recording is given out.
pub const KEPT: Duration = Duration::from_secs(24 * 3600);

/// How many are forgotten in one transaction: each may be of thousands of pages.
pub(super) const AT_ONCE: u8 = 4;

/// Keeps a recording; part of a transaction.
pub(super) fn keep(tx: &Connection, exchange: ExchangeId, sealed: &[u8], at: Timestamp) -> rusqlite::Result<()> {
    tx.prepare_cached("INSERT INTO recordings (exchange_id, sealed, recorded_at) VALUES (?1, ?2, ?3)")?
        .execute(params![exchange, sealed, Micros(at)])
        .map(drop)
}

/// Forgets a few that are given out no more, and tells how many; part of a transaction.
pub(super) fn forget(tx: &Connection, now: Timestamp) -> rusqlite::Result<usize> {
    tx.prepare_cached(
        "DELETE FROM recordings WHERE exchange_id IN
             (SELECT exchange_id FROM recordings WHERE recorded_at <= ?1 ORDER BY recorded_at LIMIT ?2)",
    )?
    .execute(params![Micros(now - KEPT), AT_ONCE])
}

impl Store {
    /// The recording of an exchange, while it is given out.
    pub fn recording(&self, exchange: ExchangeId, now: Timestamp) -> Result<Option<Vec<u8>>, StoreError> {
        self.read("reading a recording", |conn| {
            conn.prepare_cached("SELECT sealed FROM recordings WHERE exchange_id = ?1 AND recorded_at > ?2")?
                .query_row(params![exchange, Micros(now - KEPT)], |row| row.get(0))
                .optional()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_recording_is_given_out_for_a_day_and_then_forgotten() {
        let desk = Desk::new();
        let ada = desk.user("ada", "50");
        let key = desk.key(&ada);
        let raw = desk.raw();
        let ids: Vec<_> = (0..10)
            .map(|seconds| {
                let id = exchange();
                desk.set_aside(&ask(id, &key, "1"));
                desk.close(id, &closing(id, &key, "1"));
                keep(&raw, id, b"sealed", at(seconds)).expect("it is kept");
                id
            })
            .collect();
        let day = i64::try_from(KEPT.as_secs()).expect("a day");
        let there = |at| {
            ids.iter()
                .filter(|id| desk.store.recording(**id, at).expect("read").is_some())
                .count()
        };
        assert_eq!((there(at(day - 1)), there(at(day + 3)), there(at(day + 9))), (10, 6, 0));
        keep(&raw, exchange(), b"", at(0)).expect_err("nothing without its exchange");
        let forgotten: Vec<_> = (0..3).map(|_| forget(&raw, at(day + 5)).expect("forgotten")).collect();
        assert_eq!(forgotten, [usize::from(AT_ONCE), 2, 0]);
        assert_eq!(there(at(day)), 4, "the last of them are there");
        desk.assert_books_balance();
    }
}
