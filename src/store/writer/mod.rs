//! The one writer of a serving process: everything that waits goes into one transaction and shares one fsync.
//!
//! A blocking thread takes what is queued (at most [`MAX_BATCH`]), runs it in one `BEGIN IMMEDIATE`, commits once and
//! answers each. What can go wrong, and what follows:
//!
//! | error | holds | settlements |
//! |---|---|---|
//! | a constraint broken by one operation, a row that must not be | rolled back, everything else repeated one by one; this one is `NotCommitted` | likewise |
//! | another process writes, the disk is full, no memory, a file that cannot be written for now | `NotCommitted` | kept and repeated until they commit |
//! | the same, and the process is asked to stop | `NotCommitted` | repeated for ten seconds more; then their holds stay open, and the next start releases them |
//! | I/O error, failed COMMIT, panic | `Unknown`, and the writer stops: the process has to exit and read from disk | likewise |

mod handle;
mod job;
#[cfg(test)]
mod tests;
mod transaction;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use self::job::{Job, leave_unswept};
use super::checkpoint::{Checkpoints, checkpoint};
use super::counts::Counts;
use super::health::Health;
use super::mark::MarkFile;
use super::space::Space;
use super::watch::Watched;
use super::{Store, StoreError, Trouble, connection, during};
use crate::config::DiskConfig;
pub(super) use handle::start;
pub use handle::{Busy, Load, NotClosed, Place, Writer};

/// Operations in one transaction at most: beyond, a commit takes longer and gains nothing.
const MAX_BATCH: usize = 256;

/// How often an idle writer looks whether another process changed the database.
const LOOK: Duration = Duration::from_millis(250);

/// How long a busy writer works before it leaves a gap for other processes.
const TURN: Duration = Duration::from_millis(50);

/// The gap: other connections ask every millisecond.
const GAP: Duration = Duration::from_millis(2);

/// From so many operations in a transaction on, the next are waited for.
const THICK: usize = 8;

/// How long: calls that come so thick pay with less of the processor for it than they wait.
const LINGER: Duration = Duration::from_micros(500);

/// The writer's page cache, in KiB: the pages that calls of a million users touch again and again.
const CACHE: i64 = 16 * 1024;

/// A statement that sets off a trigger notes the pages that it changes, so that it alone can be undone. With `MEMORY` that is
/// kept in pieces of a kilobyte, four for each page, each allocated; with `FILE` in one piece of 64 KiB, and in a file only
/// beyond that, which is more pages than a statement of a call changes.
const STATEMENT_JOURNALS: &str = "FILE";

/// Works until every [`Writer`] is gone, or until an outcome is unknown. What is still queued then is dropped, and
/// whoever waits for it is told that the outcome is unknown.
fn serve(store: &Store, jobs: Receiver<Job>, shared: Shared) -> Result<(), StoreError> {
    let mut consumer = Consumer::new(store, jobs, shared)?;
    consumer.checkpoints = Checkpoints::start(store)?;
    consumer.look_around()?;
    let worked = consumer.work();
    consumer.checkpoints.stop();
    if worked.is_ok() {
        checkpoint(&consumer.conn, &consumer.mark, "TRUNCATE");
    }
    worked
}

/// What the writer shares with its handles, and its settings.
#[derive(Default)]
struct Shared {
    health: Arc<Health>,
    counts: Arc<Counts>,
    stopping: Arc<AtomicBool>,
    disk: DiskConfig,
}

struct Consumer<'a> {
    store: &'a Store,
    conn: Connection,
    jobs: Receiver<Job>,
    /// What could not be committed yet, and has to be.
    backlog: VecDeque<Job>,
    /// What is written between two batches, one at a time: settlements wait for no more than one, and never fail with it.
    aside: VecDeque<Job>,
    health: Arc<Health>,
    counts: Arc<Counts>,
    stopping: Arc<AtomicBool>,
    /// When it is tried again, if the last try failed.
    retry_at: Option<Instant>,
    /// When what cannot be written is given up: some time after the process was asked to stop.
    give_up_at: Option<Instant>,
    data_version: i64,
    /// Whether the last transaction had so many operations that the next will, too.
    is_thick: bool,
    turn_began: Instant,
    looked_at: Instant,
    checkpoints: Checkpoints,
    space: Space,
    files: Watched,
    mark: MarkFile,
}

impl Consumer<'_> {
    fn new(store: &Store, jobs: Receiver<Job>, shared: Shared) -> Result<Consumer<'_>, StoreError> {
        let opening = || "opening the writer's connection";
        let conn = connection::open_writable(store.path()).map_err(during(opening()))?;
        conn.pragma_update(None, "cache_size", -CACHE)
            .map_err(during(opening()))?;
        conn.pragma_update(None, "temp_store", STATEMENT_JOURNALS)
            .map_err(during(opening()))?;
        Ok(Consumer {
            store,
            conn,
            jobs,
            backlog: VecDeque::new(),
            aside: VecDeque::new(),
            health: shared.health,
            counts: shared.counts,
            stopping: shared.stopping,
            retry_at: None,
            give_up_at: None,
            data_version: 0,
            is_thick: false,
            turn_began: Instant::now(),
            looked_at: Instant::now(),
            checkpoints: Checkpoints::default(),
            space: Space::of(store.path(), shared.disk),
            files: Watched::of(store.path())?,
            mark: MarkFile::open(store.path())?,
        })
    }

    fn work(&mut self) -> Result<(), StoreError> {
        while let Some(batch) = self.next_batch()? {
            if self.looked_at.elapsed() >= LOOK {
                self.look_around()?;
            }
            self.look_for_changes()?;
            let (aside, batch): (Vec<_>, Vec<_>) = batch.into_iter().partition(Job::is_aside);
            self.aside.extend(aside);
            let batch = self.refuse_holds(batch);
            if !batch.is_empty() {
                self.checkpoints.count(batch.len());
                self.settle(batch)?;
            }
            self.write_aside()?;
            self.checkpoints.shorten(&self.conn, &self.mark);
            self.counts.keeps(self.backlog.len() + self.aside.len());
            self.give_way();
        }
        Ok(())
    }

    /// Waits for work and takes all there is; `None` when nobody can ask for anything any more.
    fn next_batch(&mut self) -> Result<Option<Vec<Job>>, StoreError> {
        let mut batch = Vec::new();
        let repeats = !self.backlog.is_empty();
        if repeats {
            if let Some(at) = self.retry_at.take() {
                thread::sleep(at.saturating_duration_since(Instant::now()));
            }
            let some = self.backlog.len().min(MAX_BATCH);
            batch.extend(self.backlog.drain(..some));
        } else {
            if self.is_thick {
                thread::sleep(LINGER);
            }
            // Else there is work whatever comes.
            if self.aside.is_empty() {
                match self.wait()? {
                    Some(job) => batch.push(job),
                    None => return Ok(None),
                }
            }
        }
        while batch.len() < MAX_BATCH {
            match self.jobs.try_recv().inspect(|_| self.counts.takes()) {
                Ok(job @ Job::Sweep { .. }) if repeats => leave_unswept(job),
                Ok(job) => batch.push(job),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => {
                    self.stopping.store(true, Ordering::Relaxed);
                    break;
                }
            }
        }
        self.is_thick = batch.len() >= THICK;
        Ok(Some(batch))
    }

    fn wait(&mut self) -> Result<Option<Job>, StoreError> {
        if let Ok(job) = self.jobs.try_recv().inspect(|_| self.counts.takes()) {
            return Ok(Some(job));
        }
        loop {
            let idle_since = Instant::now();
            let next = self.jobs.recv_timeout(LOOK).inspect(|_| self.counts.takes());
            if idle_since.elapsed() >= GAP {
                self.turn_began = Instant::now();
            }
            match next {
                Ok(job) => return Ok(Some(job)),
                Err(RecvTimeoutError::Timeout) => {
                    self.look_around()?;
                    self.look_for_relief()?;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
            }
        }
    }

    /// Looks at what happens around the database: its files, its disk, other writers.
    fn look_around(&mut self) -> Result<(), StoreError> {
        self.looked_at = Instant::now();
        self.look_at_files()?;
        self.look_at_space();
        self.look_for_changes()
    }

    fn look_at_space(&mut self) {
        let low = self.space.look(!self.health.is_troubled());
        self.health.space(low);
    }

    /// Fails when the files are not those that are open: what is written into them is lost.
    fn look_at_files(&mut self) -> Result<(), StoreError> {
        match self.files.replaced() {
            None => Ok(()),
            Some(what) => {
                if self.files.lost_only_its_log() {
                    // What was acknowledged is in it, and it is gone for good once nobody has it open. While another
                    // checkpoint is under way nothing would be moved.
                    self.checkpoints.stop();
                    if !checkpoint(&self.conn, &self.mark, "FULL").all_moved {
                        tracing::error!("not all of the removed log could be moved into the database");
                    }
                }
                Err(StoreError {
                    context: what,
                    source: None,
                })
            }
        }
    }

    /// Drops the caches when another connection has written. Only on this connection does the number stand still
    /// while we write ourselves.
    fn look_for_changes(&mut self) -> Result<(), StoreError> {
        let asked = self
            .conn
            .prepare_cached("PRAGMA data_version")
            .and_then(|mut pragma| pragma.query_row([], |row| row.get(0)));
        match asked {
            Ok(now) if now == self.data_version => return Ok(()),
            Ok(now) => self.data_version = now,
            Err(error) if Trouble::of(&error) == Trouble::Unknown => {
                return Err(during("asking whether the database changed")(error));
            }
            Err(error) => tracing::warn!(%error, "whether the database changed cannot be asked"),
        }
        self.store.caches().forget();
        Ok(())
    }

    /// In trouble and without work, looks whether it can write again: nobody sends holds to a gateway that says that
    /// it is not ready. It commits a page, since a full disk shows itself no sooner.
    fn look_for_relief(&mut self) -> Result<(), StoreError> {
        if !self.health.is_troubled() {
            return Ok(());
        }
        // A commit of its own: the error of one that a statement makes by itself would be lost.
        match self.attempt(&[]) {
            Ok(_) => self.health.works(),
            Err((Trouble::Unknown, error)) => return Err(during("writing")(error)),
            Err((_, error)) => tracing::debug!(%error, "the books cannot be written yet"),
        }
        Ok(())
    }

    /// Leaves the lock free for a moment when the writer has been at it for a while.
    fn give_way(&mut self) {
        if self.turn_began.elapsed() >= TURN {
            thread::sleep(GAP);
            self.turn_began = Instant::now();
        }
    }
}

fn not_written(why: &str) -> StoreError {
    StoreError {
        context: "writing".to_owned(),
        source: Some(why.into()),
    }
}

fn chain(error: &StoreError) -> String {
    match &error.source {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
