//! Checkpoints: what was committed moves from the log into the database, on a thread of its own.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
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

/// Pages of log (4 KiB each) beyond which the writer begins it anew: 32 MiB. What is written until then, and while short
/// readers are in the way, stays below 64 MiB; while one reads on for minutes, as a backup does, the log grows.
const LOG_LIMIT: i64 = 8_192;

/// How long the writer waits for readers then,
const CHECKPOINT_WAIT: Duration = Duration::from_millis(100);

/// and how long when the log has grown on to 48 MiB all the same.
const LONGER_WAIT: Duration = Duration::from_secs(1);

/// By how much it has to have grown before a reader that did not leave is waited for once more.
const NEXT_TRY: i64 = LOG_LIMIT / 4;

/// The thread that moves what was committed from the log into the database, off the commit path.
#[derive(Default)]
pub(super) struct Checkpoints {
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    since: usize,
    /// Pages of a log that is to begin anew; 0: it is short enough. Under steady load it never ends by itself, and only
    /// the writer can be sure to find the lock free.
    too_long: Arc<AtomicI64>,
    /// Pages of the log when a reader was last waited for in vain.
    in_vain: Cell<i64>,
}

impl Checkpoints {
    /// Starts the thread.
    pub(super) fn start(store: &Store) -> Result<Checkpoints, StoreError> {
        let conn = connection::open_writable(store.path()).map_err(during("opening the connection for checkpoints"))?;
        let mark = MarkFile::open(store.path())?;
        mark::raise(&conn, store.path())?;
        pairing::note(store.path(), &mark);
        let (wake, woken) = mpsc::sync_channel(1);
        let too_long = Arc::new(AtomicI64::new(0));
        let told = Arc::clone(&too_long);
        let thread = thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || run_checkpoints(&conn, &mark, &woken, &told))
            .map_err(|e| StoreError {
                context: "starting the checkpoints".to_owned(),
                source: Some(Box::new(e)),
            })?;
        Ok(Checkpoints {
            wake: Some(wake),
            thread: Some(thread),
            since: 0,
            too_long,
            in_vain: Cell::default(),
        })
    }

    /// Begins a log that is too long anew, on the writer's connection, between two transactions.
    pub(super) fn shorten(&self, conn: &Connection, mark: &MarkFile) {
        let pages = self.too_long.swap(0, Ordering::Relaxed);
        let in_vain = self.in_vain.get();
        // A shorter one has begun anew since.
        if pages == 0 || (in_vain..in_vain + NEXT_TRY).contains(&pages) {
            return;
        }
        let wait = if pages > LOG_LIMIT * 3 / 2 {
            LONGER_WAIT
        } else {
            CHECKPOINT_WAIT
        };
        match connection::waiting(conn, wait, || checkpoint(conn, mark, "RESTART")) {
            Ok(Moved { log, .. }) if log < 0 => self.too_long.store(pages, Ordering::Relaxed),
            Ok(Moved { all_moved, .. }) => self.in_vain.set(if all_moved { 0 } else { pages }),
            Err(error) => tracing::warn!(%error, "the log could not be begun anew"),
        }
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
            too_long: Arc::default(),
            in_vain: Cell::default(),
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

fn run_checkpoints(conn: &Connection, mark: &MarkFile, woken: &Receiver<()>, too_long: &AtomicI64) {
    while !matches!(woken.recv_timeout(CHECKPOINT), Err(RecvTimeoutError::Disconnected)) {
        // Without checkpoints the log would grow for ever: a panic of one must not end the others.
        if catch_unwind(AssertUnwindSafe(|| move_on(conn, mark, too_long))).is_err() {
            tracing::error!("a checkpoint panicked");
        }
    }
}

fn move_on(conn: &Connection, mark: &MarkFile, too_long: &AtomicI64) {
    mark.sync();
    let pages = checkpoint(conn, mark, "PASSIVE").log;
    if pages > LOG_LIMIT {
        too_long.store(pages, Ordering::Relaxed);
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
    fn a_log_that_is_too_long_begins_anew_under_whoever_writes() {
        let desk = Desk::new();
        let mark = MarkFile::open(&desk.path()).expect("opened");
        let ours = || connection::open_writable(&desk.path()).expect("opened");
        let (writer, other, waits) = (ours(), ours(), ours());
        let checkpoints = Checkpoints::default();
        let write = |bytes: usize| {
            writer
                .execute_batch(&format!(
                    "CREATE TABLE IF NOT EXISTS ballast (a); INSERT INTO ballast VALUES (zeroblob({bytes}))"
                ))
                .expect("written");
        };
        let log = || checkpoint(&other, &mark, "PASSIVE").log;
        let reader = desk.raw();
        write(33 << 20);
        // As under load: something is written after what a checkpoint moves.
        reader.execute_batch("BEGIN; SELECT * FROM users").expect("it reads");
        write(1);
        move_on(&other, &mark, &checkpoints.too_long);
        write(1);
        assert!(log() > LOG_LIMIT, "it goes on");
        // While another one is under way it stays due.
        thread::scope(|scope| {
            let its_mark = MarkFile::open(&desk.path()).expect("opened");
            let waiting = scope.spawn(move || while checkpoint(&waits, &its_mark, "FULL").log < 0 {});
            while log() >= 0 {
                thread::yield_now();
            }
            checkpoints.shorten(&writer, &mark);
            assert!(checkpoints.too_long.load(Ordering::Relaxed) > LOG_LIMIT);
            reader.execute_batch("COMMIT").expect("it has read");
            waiting.join().expect("no panic");
            write(1);
        });
        checkpoints.shorten(&writer, &mark);
        write(1);
        assert!(log() < 100, "it has begun anew");
    }

    #[test]
    fn a_reader_that_stays_is_not_waited_for_again_before_the_log_has_grown() {
        let desk = Desk::new();
        let mark = MarkFile::open(&desk.path()).expect("opened");
        let (writer, reader) = (connection::open_writable(&desk.path()).expect("opened"), desk.raw());
        reader.execute_batch("BEGIN; SELECT * FROM users").expect("it reads");
        desk.user("ada", "1");
        let checkpoints = Checkpoints::default();
        let waited_at = |pages| {
            checkpoints.too_long.store(pages, Ordering::Relaxed);
            checkpoints.shorten(&writer, &mark);
            checkpoints.in_vain.get()
        };
        let first = LOG_LIMIT + 1;
        assert_eq!(waited_at(first), first);
        assert_eq!(waited_at(first + NEXT_TRY - 1), first, "it is not waited for");
        assert_eq!(waited_at(first + NEXT_TRY), first + NEXT_TRY);
        assert_eq!(waited_at(first), first, "a shorter log is another one");
        reader.execute_batch("COMMIT").expect("it has read");
        assert_eq!(waited_at(first + NEXT_TRY), 0);
    }

    #[test]
    fn what_a_checkpoint_did_not_move_is_not_noted_as_moved() {
        let desk = Desk::new();
        let file = MarkFile::open(&desk.path()).expect("opened");
        let (early, late) = (desk.raw(), desk.raw());
        desk.user("ada", "1");
        let noted = || mark::moved(&desk.path()).expect("read");
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
