//! Checkpoints: what was committed moves from the log into the database, on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rusqlite::Connection;

use super::mark::{self, MarkFile};
use super::{Store, StoreError, commits, connection, during, pairing};
use crate::fail_point::{self, Point};

/// A checkpoint is made at least so often,
const CHECKPOINT: Duration = Duration::from_secs(10);

/// and after so many operations (about 8 MiB of log).
const CHECKPOINT_AFTER: usize = 1_000;

/// Pages of log (4 KiB each) beyond which a checkpoint makes the writer wait, so that the log begins anew: 64 MiB.
const LOG_LIMIT: i64 = 16_384;

/// How long such a checkpoint waits for readers; the writer waits as long.
const CHECKPOINT_WAIT: Duration = Duration::from_millis(100);

/// The thread that moves what was committed from the log into the database, off the commit path.
#[derive(Default)]
pub(super) struct Checkpoints {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    since: usize,
}

impl Checkpoints {
    /// Starts the thread.
    pub(super) fn start(store: &Store) -> Result<Checkpoints, StoreError> {
        let conn = connection::open_writable(store.path())
            .and_then(|conn| conn.busy_timeout(CHECKPOINT_WAIT).map(|()| conn))
            .map_err(during("opening the connection for checkpoints"))?;
        let mark = MarkFile::open(store.path())?;
        mark::raise(&conn, store.path())?;
        pairing::note(store.path(), &mark);
        let (wake, woken) = mpsc::sync_channel(1);
        let thread = thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || run_checkpoints(&conn, &mark, &woken))
            .map_err(|e| StoreError {
                context: "starting the checkpoints".to_owned(),
                source: Some(Box::new(e)),
            })?;
        Ok(Checkpoints {
            wake: Some(wake),
            thread: Some(thread),
            since: 0,
        })
    }

    /// Counts operations; after enough of them a checkpoint is due.
    pub(super) fn count(&mut self, operations: usize) {
        self.since += operations;
        if self.since < CHECKPOINT_AFTER {
            return;
        }
        self.since = 0;
        // A full channel means that one is due already.
        if self.wake.as_ref().is_some_and(|wake| wake.try_send(()).is_err()) {
            tracing::trace!("a checkpoint is due already");
        }
    }

    /// With a thread of a test, which ends when it hears that the channel is closed.
    #[cfg(test)]
    pub(super) fn on(thread: impl FnOnce(Receiver<()>) + Send + 'static) -> Checkpoints {
        let (wake, woken) = mpsc::sync_channel(1);
        Checkpoints {
            wake: Some(wake),
            thread: Some(thread::spawn(move || thread(woken))),
            since: 0,
        }
    }

    /// Ends the thread, and waits for the checkpoint that it is making.
    pub(super) fn stop(&mut self) {
        self.wake = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread for checkpoints panicked");
        }
    }
}

fn run_checkpoints(conn: &Connection, mark: &MarkFile, woken: &Receiver<()>) {
    while !matches!(woken.recv_timeout(CHECKPOINT), Err(RecvTimeoutError::Disconnected)) {
        // Without checkpoints the log would grow for ever: a panic of one must not end the others.
        if catch_unwind(AssertUnwindSafe(|| move_on(conn, mark))).is_err() {
            tracing::error!("a checkpoint panicked");
        }
    }
}

fn move_on(conn: &Connection, mark: &MarkFile) {
    mark.sync();
    if checkpoint(conn, mark, "PASSIVE").log > LOG_LIMIT {
        // Under steady load the log never ends by itself: hold the writer up for once.
        checkpoint(conn, mark, "RESTART");
    }
}

/// What a checkpoint came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moved {
    /// Pages in the log; -1: another checkpoint was under way.
    pub(super) log: i64,
    /// All of them are in the database.
    pub(super) all_moved: bool,
}

/// Makes a checkpoint. An error is told and passes: the log only grows.
pub(super) fn checkpoint(conn: &Connection, mark: &MarkFile, mode: &str) -> Moved {
    if let Err(error) = fail_point::hit(Point::Checkpoint) {
        tracing::warn!(%error, mode, "a checkpoint failed");
        return Moved::default();
    }
    let sql = format!("PRAGMA wal_checkpoint({mode})");
    let committed = commits::last(conn);
    match conn.query_row(&sql, [], |row| {
        Ok((row.get::<_, i64>(0)?, row.get(1)?, row.get::<_, i64>(2)?))
    }) {
        Ok((busy, log, moved)) => {
            // While another one is under way nothing was done, and both counts are -1.
            let all_moved = busy == 0 && log >= 0 && log == moved;
            if let (true, Ok(count)) = (all_moved, committed) {
                mark.note_moved(count);
            }
            Moved { log, all_moved }
        }
        Err(error) => {
            tracing::warn!(%error, mode, "a checkpoint failed");
            Moved::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn what_a_checkpoint_did_not_move_is_not_noted_as_moved() {
        let desk = Desk::new();
        let file = MarkFile::open(&desk.path()).expect("opened");
        let (early, late) = (desk.raw(), desk.raw());
        desk.user("ada", "1");
        let noted = || mark::moved(&desk.path());
        assert!(checkpoint(&early, &file, "PASSIVE").all_moved);
        let first = noted();
        assert_eq!(first, commits::last(&early).ok());
        // A reader that still needs what the database file has keeps what is newer in the log.
        let reader = desk.raw();
        reader.execute_batch("BEGIN").expect("begun");
        commits::last(&reader).expect("read");
        desk.user("bob", "1");
        desk.user("eve", "1");
        assert!(!checkpoint(&early, &file, "PASSIVE").all_moved);
        assert_eq!(noted(), first);
        // A checkpoint that waits for the reader keeps another one from moving anything.
        let waiting_mark = MarkFile::open(&desk.path()).expect("opened");
        let (other, noted_by_other) = thread::scope(|scope| {
            scope.spawn(move || while checkpoint(&early, &waiting_mark, "RESTART").log < 0 {});
            let other = loop {
                let other = checkpoint(&late, &file, "PASSIVE");
                if other.log < 0 {
                    break (other, noted());
                }
                thread::yield_now();
            };
            reader.execute_batch("COMMIT").expect("ended");
            other
        });
        assert!(!other.all_moved);
        assert_eq!(noted_by_other, first);
        assert_eq!(noted(), commits::last(&late).ok(), "the one that waited moved all");
    }
}
