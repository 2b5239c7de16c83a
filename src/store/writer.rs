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

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::task::TaskTracker;

use super::background::{self, Background};
use super::checkpoint::{Checkpoints, checkpoint};
use super::counts::Counts;
use super::health::Health;
use super::ledger::{self, CloseHold, Closed, Hold, HoldRefused, PlaceHold, Swept};
use super::mark::{Mark, MarkFile};
use super::prepared::Prepared;
use super::space::Space;
use super::watch::Watched;
use super::{
    ExchangeId, KeyId, Outcome, Store, StoreError, Trouble, commits, connection, during, events, keys, recordings,
};
use crate::config::DiskConfig;

/// Operations in one transaction at most: beyond, a commit takes longer and gains nothing.
const MAX_BATCH: usize = 256;

/// Holds (and notes of keys' use) that may wait: a second's work of a slow disk.
const MAX_WAITING: usize = 4_096;

/// Exchanges that may be open or settling: each has its settlement's place. A place costs nothing until it is used.
const MAX_OPEN: usize = 65_536;

/// How often an idle writer looks whether another process changed the database.
const LOOK: Duration = Duration::from_millis(250);

/// How long the writer waits, after it failed, before it repeats what could not be committed.
const RETRY: Duration = Duration::from_millis(100);

/// How long it goes on with that once the process is to stop.
const LAST_TRIES: Duration = Duration::from_secs(10);

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

/// What an operation writes to the log, as checkpoints count.
const OPERATION: usize = 8 * 1024;

/// How many holds one sweep closes in one transaction.
const SWEEP: usize = 64;

/// The one writer of a serving process: group commit over a bounded queue. Cheap to clone; the writer ends when the
/// last clone is dropped.
#[derive(Clone, Debug)]
pub struct Writer {
    handle: Arc<Handle>,
}

#[derive(Debug)]
struct Handle {
    queue: Sender<Job>,
    waiting: Arc<Semaphore>,
    places: Arc<Semaphore>,
    failed: watch::Receiver<Option<String>>,
    fail: watch::Sender<Option<String>>,
    health: Arc<Health>,
    counts: Arc<Counts>,
    stopping: Arc<AtomicBool>,
}

impl Handle {
    fn send(&self, job: Job) -> Result<(), mpsc::SendError<Job>> {
        self.counts.sends();
        self.queue.send(job)
    }
}

/// A place in the writer's queue for a settlement, reserved when its hold is taken.
#[derive(Debug)]
pub struct Place {
    _permit: OwnedSemaphorePermit,
}

/// Why a hold was not even tried.
#[derive(Debug)]
pub enum Busy {
    /// The queue is full: try again soon.
    QueueFull,
    /// There is too little space on the disk.
    NoSpace,
    /// The last write failed; the writer finds out by itself when the next one would not.
    Troubled,
    /// The writer has stopped after an unknown outcome: not before the process is restarted.
    Stopped,
}

/// What is asked of a writer at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Holds and notes that wait to be written.
    pub waiting: usize,
    /// Exchanges that run or settle.
    pub open: usize,
}

impl Load {
    /// The most there may be of each.
    pub const MOST: Load = Load {
        waiting: MAX_WAITING,
        open: MAX_OPEN,
    };
}

/// What tells whether a writer has failed.
#[derive(Clone, Debug)]
pub struct Failure(watch::Receiver<Option<String>>);

impl Failure {
    /// Why it failed, if it did.
    pub fn why(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// Why a hold was not closed.
#[derive(Debug, thiserror::Error)]
pub enum NotClosed {
    /// The row can never be written, or not in time before the process stops: the hold stays open for the sweep or the
    /// next start.
    #[error("it cannot be written, and its hold stays open")]
    NotWritten(#[source] StoreError),
    /// It may or may not be durable. [`Writer::failed`] fires as well, and the process has to stop.
    #[error("it may or may not be durable")]
    Unknown(#[source] StoreError),
}

/// What is asked of the writer; whoever asked waits for `answer`.
#[derive(Debug)]
enum Job {
    Hold {
        ask: Box<PlaceHold>,
        answer: oneshot::Sender<Outcome<Hold, HoldRefused>>,
        _waits: OwnedSemaphorePermit,
    },
    Close {
        exchange: ExchangeId,
        close: Box<CloseHold>,
        answer: oneshot::Sender<Result<Closed, StoreError>>,
        _place: Place,
    },
    /// A response that runs on at its upstream.
    Begin {
        background: Box<Background>,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    /// A hold whose exchange is gone before it got the answer.
    Abandoned { exchange: ExchangeId, now: Timestamp },
    Sweep {
        overdue: Vec<ExchangeId>,
        now: Timestamp,
        answer: oneshot::Sender<Result<Swept, StoreError>>,
    },
    /// An answer to keep.
    Record {
        exchange: ExchangeId,
        sealed: Vec<u8>,
        now: Timestamp,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    /// Answers that are kept no longer.
    Forget {
        now: Timestamp,
        answer: oneshot::Sender<Result<usize, StoreError>>,
    },
    /// What became of events at a sink.
    Note {
        note: events::Note,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
    Touch {
        used: Vec<(KeyId, Timestamp)>,
        _waits: OwnedSemaphorePermit,
    },
}

/// What a job did.
enum Done {
    Hold(Result<Hold, HoldRefused>),
    Closed(Closed),
    Swept(Swept),
    Recorded,
    Noted,
    Forgotten(usize),
    Nothing,
}

impl Job {
    fn run(&self, tx: &Prepared<'_>) -> rusqlite::Result<Done> {
        match self {
            Job::Hold { ask, .. } => ledger::place(tx, ask).map(Done::Hold),
            Job::Close { exchange, close, .. } => ledger::close(tx, *exchange, close).map(Done::Closed),
            Job::Begin { background, .. } => background::begin(tx, background).map(|()| Done::Noted),
            Job::Abandoned { exchange, now } => ledger::interrupt(tx, *exchange, *now).map(|_| Done::Nothing),
            Job::Sweep { overdue, now, .. } => ledger::sweep(tx, overdue, *now).map(Done::Swept),
            Job::Record {
                exchange, sealed, now, ..
            } => recordings::keep(tx, *exchange, sealed, *now).map(|()| Done::Recorded),
            Job::Forget { now, .. } => recordings::forget(tx, *now).map(Done::Forgotten),
            Job::Note { note, .. } => events::note(tx, note).map(|()| Done::Noted),
            Job::Touch { used, .. } => keys::touch(tx, used).map(|()| Done::Nothing),
        }
    }

    /// Whether it writes much and nobody's money waits for it.
    fn is_aside(&self) -> bool {
        matches!(self, Job::Record { .. } | Job::Forget { .. } | Job::Note { .. })
    }
}

impl Writer {
    /// Takes a hold. The place it comes with is the right to settle.
    pub async fn hold(&self, hold: PlaceHold) -> Result<Outcome<(Hold, Place), HoldRefused>, Busy> {
        if self.handle.failed.borrow().is_some() {
            return Err(Busy::Stopped);
        }
        if self.handle.health.is_low() {
            return Err(Busy::NoSpace);
        }
        // Each would wait for a lock as long as the last one did.
        if self.handle.health.is_troubled() {
            return Err(Busy::Troubled);
        }
        let free = |of: &Arc<Semaphore>| Arc::clone(of).try_acquire_owned().map_err(|_| Busy::QueueFull);
        let place = Place {
            _permit: free(&self.handle.places)?,
        };
        let waits = free(&self.handle.waiting)?;
        let (answer, answered) = oneshot::channel();
        let job = Job::Hold {
            ask: Box::new(hold),
            answer,
            _waits: waits,
        };
        self.handle.send(job).map_err(|_| Busy::Stopped)?;
        Ok(match answered.await {
            Ok(Outcome::Committed(hold)) => Outcome::Committed((hold, place)),
            Ok(Outcome::Refused(why)) => Outcome::Refused(why),
            Ok(Outcome::NotCommitted(error)) => Outcome::NotCommitted(error),
            Ok(Outcome::Unknown(error)) => Outcome::Unknown(error),
            Err(_) => Outcome::Unknown(self.stopped()),
        })
    }

    /// Settles or releases: one transaction for charge, entry, usage row and the hold's closing. Repeated until it
    /// commits.
    pub async fn close(&self, hold: Hold, place: Place, close: CloseHold) -> Result<Closed, NotClosed> {
        let (answer, answered) = oneshot::channel();
        let job = Job::Close {
            exchange: hold.exchange,
            close: Box::new(close),
            answer,
            _place: place,
        };
        let sent = self.handle.send(job);
        sent.map_err(|_| NotClosed::NotWritten(self.stopped()))?;
        match answered.await {
            Ok(closed) => closed.map_err(NotClosed::NotWritten),
            Err(_) => Err(NotClosed::Unknown(self.stopped())),
        }
    }

    /// Writes down that an exchange's response runs on at its upstream, so that its hold stays open until its end is known,
    /// also across a restart. Repeated until it commits, like a settlement.
    ///
    /// # Errors
    /// As of [`Writer::close`].
    pub async fn begin(&self, background: Background) -> Result<(), NotClosed> {
        let (answer, answered) = oneshot::channel();
        let background = Box::new(background);
        let sent = self.handle.send(Job::Begin { background, answer });
        sent.map_err(|_| NotClosed::NotWritten(self.stopped()))?;
        match answered.await {
            Ok(begun) => begun.map_err(NotClosed::NotWritten),
            Err(_) => Err(NotClosed::Unknown(self.stopped())),
        }
    }

    /// A place for the settlement of a background response whose hold another process took; `None`: all are taken.
    pub fn place(&self) -> Option<Place> {
        let permit = Arc::clone(&self.handle.places).try_acquire_owned();
        permit.ok().map(|permit| Place { _permit: permit })
    }

    /// Releases holds that are open for longer than the longest possible call, as `interrupted`; there have to be none.
    pub async fn sweep(&self, overdue: Vec<ExchangeId>, now: Timestamp) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        for some in overdue.chunks(SWEEP) {
            let (answer, answered) = oneshot::channel();
            let job = Job::Sweep {
                overdue: some.to_vec(),
                now,
                answer,
            };
            self.handle.send(job).map_err(|_| self.stopped())?;
            swept.add(answered.await.unwrap_or_else(|_| Err(self.stopped()))?);
        }
        Ok(swept)
    }

    /// Keeps an answer, when nothing is in its way; it is not tried twice.
    ///
    /// # Errors
    /// It is not kept.
    pub async fn record(&self, exchange: ExchangeId, sealed: Vec<u8>, now: Timestamp) -> Result<(), StoreError> {
        if let Some(why) = self.handle.health.problem() {
            return Err(not_written(&why));
        }
        let (answer, answered) = oneshot::channel();
        let job = Job::Record {
            exchange,
            sealed,
            now,
            answer,
        };
        self.handle.send(job).map_err(|_| self.stopped())?;
        answered.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// Forgets all answers that are kept no longer, a few at a time.
    ///
    /// # Errors
    /// Not all are forgotten; the next time does it.
    pub async fn forget_recordings(&self, now: Timestamp) -> Result<(), StoreError> {
        loop {
            let (answer, answered) = oneshot::channel();
            let job = Job::Forget { now, answer };
            self.handle.send(job).map_err(|_| self.stopped())?;
            let forgotten = answered.await.unwrap_or_else(|_| Err(self.stopped()))?;
            if forgotten < usize::from(recordings::AT_ONCE) {
                return Ok(());
            }
        }
    }

    /// Writes down what became of events at a sink, when nothing is in its way; it is not tried twice.
    ///
    /// # Errors
    /// It is not written: what was delivered will be again.
    pub async fn note(&self, note: events::Note) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.handle.send(Job::Note { note, answer });
        sent.map_err(|_| self.stopped())?;
        answered.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// Notes uses of keys, some time soon; forgotten when the queue is full.
    pub fn touch_keys(&self, used: Vec<(KeyId, Timestamp)>) {
        let Ok(waits) = Arc::clone(&self.handle.waiting).try_acquire_owned() else {
            return;
        };
        if self.handle.send(Job::Touch { used, _waits: waits }).is_err() {
            tracing::debug!("the writer has stopped; uses of keys are not noted");
        }
    }

    /// Fires when an outcome is unknown: stop admitting, exit, recover from disk.
    pub async fn failed(&self) -> StoreError {
        let mut failed = self.handle.failed.clone();
        match failed.wait_for(Option::is_some).await {
            Ok(_) => self.stopped(),
            Err(_) => std::future::pending().await,
        }
    }

    /// What somebody else in this process wrote may or may not be durable: the process has to stop, as if the writer itself
    /// had failed.
    pub fn distrust(&self, error: &StoreError) {
        self.handle.fail.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| chain(error));
            first
        });
    }

    /// The process is to stop: what cannot be written within ten seconds from now is given up, so that it can. Its
    /// holds stay open, and the next start releases them as `interrupted`.
    pub fn stop_retrying(&self) {
        self.handle.stopping.store(true, Ordering::Relaxed);
    }

    /// Why it accepts no holds, if it does not: for `/readyz`.
    pub fn problem(&self) -> Option<String> {
        let failed = self.handle.failed.borrow().clone();
        let full = |of: &Semaphore| of.available_permits() == 0;
        failed
            .map(|why| format!("the books may not be as they seem: {why}"))
            .or_else(|| self.handle.health.problem())
            .or_else(|| full(&self.handle.waiting).then(|| "too many calls wait for their holds".to_owned()))
            .or_else(|| full(&self.handle.places).then(|| "too many calls are running".to_owned()))
    }

    /// How many operations wait for it, and how many exchanges have a place for their settlement.
    pub fn load(&self) -> Load {
        let taken = |of: &Semaphore, all: usize| all.saturating_sub(of.available_permits());
        Load {
            waiting: taken(&self.handle.waiting, MAX_WAITING),
            open: taken(&self.handle.places, MAX_OPEN),
        }
    }

    /// What it has to do, and what it did.
    pub fn counts(&self) -> &Arc<Counts> {
        &self.handle.counts
    }

    /// Whether its last outcome is unknown; also when the writer itself is gone already.
    pub fn failure(&self) -> Failure {
        Failure(self.handle.failed.clone())
    }

    /// A place for a settlement that no hold came with: for tests that settle twice, or without a hold.
    #[cfg(test)]
    pub(super) fn spare_place(&self) -> Place {
        let permit = Arc::clone(&self.handle.places).try_acquire_owned();
        Place {
            _permit: permit.expect("there is room"),
        }
    }

    fn stopped(&self) -> StoreError {
        let why = self.handle.failed.borrow().clone();
        StoreError {
            context: "the writer has stopped".to_owned(),
            source: why.map(Into::into),
        }
    }
}

/// Starts the writer on a blocking thread of the tracker.
pub(super) fn start(store: Store, tracker: &TaskTracker, disk: DiskConfig) -> Writer {
    let (queue, jobs) = mpsc::channel();
    let (fail, failed) = watch::channel(None);
    let shared = Shared {
        disk,
        ..Shared::default()
    };
    let handle = Handle {
        queue,
        waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        places: Arc::new(Semaphore::new(MAX_OPEN)),
        failed,
        fail: fail.clone(),
        health: Arc::clone(&shared.health),
        counts: Arc::clone(&shared.counts),
        stopping: Arc::clone(&shared.stopping),
    };
    store.caches().watch();
    tracker.spawn_blocking(move || {
        let worked = catch_unwind(AssertUnwindSafe(|| serve(&store, jobs, shared)));
        store.caches().unwatch();
        let error = match worked {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => "it panicked".to_owned(),
        };
        tracing::error!(%error, "the writer has stopped; what it was writing may or may not be durable");
        fail.send_replace(Some(error));
    });
    Writer {
        handle: Arc::new(handle),
    }
}

fn chain(error: &StoreError) -> String {
    match &error.source {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

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

    /// Refuses the holds that came while a write was failing: each would wait for a lock once more.
    fn refuse_holds(&self, batch: Vec<Job>) -> Vec<Job> {
        let Some(why) = self.health.trouble() else {
            return batch;
        };
        let (holds, rest): (Vec<_>, _) = batch.into_iter().partition(|job| matches!(job, Job::Hold { .. }));
        for hold in holds {
            give_up(hold, not_written(&why));
        }
        rest
    }

    /// Whether what cannot be written is to be given up: the process is to stop, and has waited for it.
    fn gives_up(&mut self) -> bool {
        self.stopping.load(Ordering::Relaxed)
            && *self.give_up_at.get_or_insert_with(|| Instant::now() + LAST_TRIES) <= Instant::now()
    }

    /// Leaves the lock free for a moment when the writer has been at it for a while.
    fn give_way(&mut self) {
        if self.turn_began.elapsed() >= TURN {
            thread::sleep(GAP);
            self.turn_began = Instant::now();
        }
    }

    /// Commits a batch and answers it; an error in it makes it repeat one by one.
    fn settle(&mut self, batch: Vec<Job>) -> Result<(), StoreError> {
        let (trouble, error) = match self.attempt(&batch) {
            Ok(done) => {
                self.look_at_files()?;
                self.answer(batch, done);
                return Ok(());
            }
            Err(failure) => failure,
        };
        match trouble {
            Trouble::Unknown => Err(during("writing")(error)),
            Trouble::Busy => {
                let why = error.to_string();
                batch.into_iter().for_each(|job| self.put_off(job, &why));
                Ok(())
            }
            Trouble::Full | Trouble::Passing | Trouble::Operation => {
                if trouble == Trouble::Full && self.space.release() {
                    self.look_at_space();
                }
                batch.into_iter().try_for_each(|job| self.settle_alone(job))
            }
        }
    }

    /// Writes one of what was put aside, in a transaction of its own. It gives no cause for trouble: what fails is given up.
    fn write_aside(&mut self) -> Result<(), StoreError> {
        let Some(job) = self.aside.pop_front() else {
            return Ok(());
        };
        if let Some(why) = self.health.trouble() {
            give_up(job, not_written(&why));
            return Ok(());
        }
        if let Job::Record { sealed, .. } = &job {
            self.checkpoints.count(sealed.len() / OPERATION);
        }
        match self.attempt(std::slice::from_ref(&job)) {
            Ok(done) => {
                self.look_at_files()?;
                self.answer(vec![job], done);
                Ok(())
            }
            Err((Trouble::Unknown, error)) => Err(during("writing")(error)),
            Err((_, error)) => {
                give_up(job, during("writing")(error));
                Ok(())
            }
        }
    }

    fn settle_alone(&mut self, job: Job) -> Result<(), StoreError> {
        if matches!(job, Job::Sweep { .. }) && !self.backlog.is_empty() {
            leave_unswept(job);
            return Ok(());
        }
        match self.attempt(std::slice::from_ref(&job)) {
            Ok(done) => {
                self.look_at_files()?;
                self.answer(vec![job], done);
                Ok(())
            }
            Err((Trouble::Unknown, error)) => Err(during("writing")(error)),
            Err((Trouble::Busy | Trouble::Full | Trouble::Passing, error)) => {
                self.put_off(job, &error.to_string());
                Ok(())
            }
            Err((Trouble::Operation, error)) => {
                give_up(job, during("writing")(error));
                Ok(())
            }
        }
    }

    /// Runs jobs in one transaction. On an error nothing of it is written; SQLite may have closed the transaction by
    /// itself, so nothing more runs in it (dropping it rolls back if it is still open).
    fn attempt(&mut self, jobs: &[Job]) -> Result<Vec<Done>, (Trouble, rusqlite::Error)> {
        let of = |error: rusqlite::Error| (Trouble::of(&error), error);
        let began = Instant::now();
        let tx = self
            .conn
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(of)?;
        let ran = run_all(&Prepared::of(&tx), jobs);
        let counted = ran.and_then(|done| commits::count(&tx).and_then(|()| Ok((done, Mark::of(&tx)?))));
        match counted {
            Ok((done, mark)) => match tx.commit() {
                Ok(()) => {
                    self.counts.committed(jobs.len(), began.elapsed());
                    self.mark.raise(&mark);
                    Ok(done)
                }
                Err(error) => Err((Trouble::of_commit(&error), error)),
            },
            Err(error) if tx.is_autocommit() => Err(of(error)),
            Err(error) => match tx.rollback() {
                Ok(()) => Err(of(error)),
                Err(error) => Err((Trouble::Unknown, error)),
            },
        }
    }

    fn answer(&mut self, batch: Vec<Job>, done: Vec<Done>) {
        for (job, done) in batch.into_iter().zip(done) {
            if let Some(abandoned) = tell(job, done) {
                self.backlog.push_back(abandoned);
            }
        }
        if self.backlog.is_empty() {
            self.health.works();
        }
    }

    /// Keeps what has to be written, and tells the others that they were not.
    fn put_off(&mut self, job: Job, why: &str) {
        self.retry_at = Some(Instant::now() + RETRY);
        if self.health.failed(why) {
            tracing::warn!(why, "the books cannot be written; settlements wait, calls are refused");
        }
        match job {
            Job::Close { .. } | Job::Begin { .. } | Job::Abandoned { .. } if !self.gives_up() => {
                self.backlog.push_back(job)
            }
            _ => give_up(job, not_written(why)),
        }
    }
}

fn run_all(tx: &Prepared<'_>, jobs: &[Job]) -> rusqlite::Result<Vec<Done>> {
    jobs.iter().map(|job| job.run(tx)).collect()
}

fn not_written(why: &str) -> StoreError {
    StoreError {
        context: "writing".to_owned(),
        source: Some(why.into()),
    }
}

/// Tells whoever asked what was done. A hold that nobody waits for any more comes back as abandoned.
fn tell(job: Job, done: Done) -> Option<Job> {
    let unheard = match (job, done) {
        (Job::Hold { ask, answer, .. }, Done::Hold(Ok(hold))) => {
            return answer.send(Outcome::Committed(hold)).err().map(|_| Job::Abandoned {
                exchange: ask.exchange,
                now: ask.now,
            });
        }
        (Job::Hold { answer, .. }, Done::Hold(Err(refused))) => answer.send(Outcome::Refused(refused)).is_err(),
        (Job::Close { answer, .. }, Done::Closed(closed)) => answer.send(Ok(closed)).is_err(),
        (Job::Sweep { answer, .. }, Done::Swept(swept)) => answer.send(Ok(swept)).is_err(),
        (Job::Record { answer, .. }, Done::Recorded) => answer.send(Ok(())).is_err(),
        (Job::Note { answer, .. } | Job::Begin { answer, .. }, Done::Noted) => answer.send(Ok(())).is_err(),
        (Job::Forget { answer, .. }, Done::Forgotten(count)) => answer.send(Ok(count)).is_err(),
        _ => false,
    };
    if unheard {
        tracing::debug!("nobody waited for an answer of the writer");
    }
    None
}

/// Forgets a sweep: what waits to be settled is not to be swept, and the next one comes by itself.
fn leave_unswept(sweep: Job) {
    let unswept = tell(sweep, Done::Swept(Swept::default()));
    debug_assert!(unswept.is_none());
}

/// Tells whoever asked that nothing was written.
fn give_up(job: Job, error: StoreError) {
    let unheard = match job {
        Job::Hold { answer, .. } => answer.send(Outcome::NotCommitted(error)).is_err(),
        Job::Close { answer, exchange, .. } => {
            tracing::error!(%exchange, error = chain(&error), "a settlement cannot be written; its hold stays open, and the next start releases it");
            answer.send(Err(error)).is_err()
        }
        Job::Sweep { answer, .. } => answer.send(Err(error)).is_err(),
        Job::Record { answer, .. } => answer.send(Err(error)).is_err(),
        Job::Forget { answer, .. } => answer.send(Err(error)).is_err(),
        Job::Note { answer, .. } | Job::Begin { answer, .. } => answer.send(Err(error)).is_err(),
        Job::Abandoned { exchange, .. } => {
            tracing::error!(%exchange, error = chain(&error), "an abandoned hold cannot be released");
            false
        }
        Job::Touch { .. } => false,
    };
    if unheard {
        tracing::debug!("nobody waited for an answer of the writer");
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::Key;
    use super::super::testing::*;
    use super::super::users::{User, UserStatus};
    use super::*;
    use crate::money::Usd;

    /// A desk with a running writer, a user and a key.
    struct Open {
        desk: Desk,
        writer: Writer,
        tracker: TaskTracker,
        user: User,
        key: Key,
    }

    fn open(balance: &str) -> Open {
        let desk = Desk::new();
        let tracker = TaskTracker::new();
        let writer = desk.store.start_writer(&tracker, DiskConfig::default());
        let user = desk.user("ada", balance);
        let key = desk.key(&user);
        Open {
            desk,
            writer,
            tracker,
            user,
            key,
        }
    }

    impl Open {
        async fn hold(&self, amount: &str) -> Outcome<(Hold, Place), HoldRefused> {
            let asked = ask(exchange(), &self.key, amount);
            self.writer.hold(asked).await.expect("there is room in the queue")
        }

        async fn settle(&self, (hold, place): (Hold, Place), charge: &str) -> Closed {
            let id = hold.exchange;
            self.writer
                .close(hold, place, closing(id, &self.key, charge))
                .await
                .expect("it commits")
        }

        /// Ends the writer and looks whether all is well.
        async fn finish(self) {
            let Open {
                desk, writer, tracker, ..
            } = self;
            drop(writer);
            tracker.close();
            tracker.wait().await;
            desk.assert_books_balance();
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_call_is_held_and_settled_by_the_writer() {
        let open = open("5");
        let held = done(open.hold("2").await);
        assert_eq!(open.desk.now(&open.user).held, usd("2"));
        let closed = open.settle(held, "0.5").await;
        assert_eq!((closed.charged, closed.balance), (usd("0.5"), usd("4.5")));
        assert_eq!(open.writer.problem(), None);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn parallel_calls_are_admitted_as_far_as_the_money_goes_and_no_further() {
        let open = Arc::new(open("7"));
        let tasks = TaskTracker::new();
        let barrier = Arc::new(tokio::sync::Barrier::new(32));
        let calls: Vec<_> = (0..32)
            .map(|_| {
                let (open, barrier) = (Arc::clone(&open), Arc::clone(&barrier));
                tasks.spawn(async move {
                    barrier.wait().await;
                    match open.hold("1").await {
                        Outcome::Committed(held) => Some(held),
                        Outcome::Refused(HoldRefused::Short(..)) => None,
                        other => panic!("{other:?}"),
                    }
                })
            })
            .collect();
        let mut admitted = Vec::new();
        for call in calls {
            admitted.extend(call.await.expect("no panic"));
        }
        assert_eq!(admitted.len(), 7);
        assert_eq!(open.desk.now(&open.user).available(), Usd::ZERO);
        for held in admitted {
            open.settle(held, "1").await;
        }
        assert_eq!(open.desk.now(&open.user).balance, Usd::ZERO);
        drop(tasks);
        Arc::into_inner(open).expect("all calls are over").finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_operation_that_fails_does_not_take_its_batch_with_it() {
        let open = open("5");
        let taken = exchange();
        let first = done(open.writer.hold(ask(taken, &open.key, "1")).await.expect("asked"));
        let stranger = open.desk.key(&open.user);
        // While another connection writes, everything asked for waits, and then goes into one batch.
        let raw = open.desk.raw();
        raw.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
        let (good, bad, good_too, ()) = tokio::join!(
            open.hold("1"),
            open.writer.hold(ask(taken, &stranger, "1")),
            open.hold("2"),
            async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                raw.execute_batch("ROLLBACK").expect("rolled back");
            }
        );
        assert!(matches!(bad, Ok(Outcome::NotCommitted(_))), "{bad:?}");
        for held in [first, done(good), done(good_too)] {
            open.settle(held, "1").await;
        }
        assert_eq!(open.desk.now(&open.user).balance, usd("2"));
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_settlement_waits_for_a_full_disk_and_a_hold_does_not() {
        let open = open("5");
        let held = done(open.hold("1").await);
        let pages: i64 = open
            .desk
            .raw()
            .query_row("PRAGMA page_count", [], |row| row.get(0))
            .expect("counted");
        // A full disk, as far as SQLite can tell: an operation that needs a page beyond the limit is SQLITE_FULL.
        let mut consumer = consumer(&open);
        consumer
            .conn
            .execute_batch(&format!("PRAGMA max_page_count = {pages}"))
            .expect("limited");
        let (job, mut settled) = settlement(&open, held, &"m".repeat(100_000));
        consumer.settle(vec![job]).expect("nothing is unknown");
        assert!(settled.try_recv().is_err(), "not answered yet");
        assert_eq!((consumer.backlog.len(), consumer.health.is_troubled()), (1, true));
        let (hold, refused) = asked(&open, &"m".repeat(100_000));
        consumer.settle(vec![hold]).expect("nothing is unknown");
        assert!(matches!(refused.await, Ok(Outcome::NotCommitted(_))));
        assert_eq!(open.desk.now(&open.user).held, usd("1"));
        // Room again.
        consumer
            .conn
            .execute_batch("PRAGMA max_page_count = 1000000")
            .expect("unlimited");
        let batch = consumer
            .next_batch()
            .expect("nothing is unknown")
            .expect("the settlement");
        consumer.settle(batch).expect("nothing is unknown");
        assert_eq!(settled.await.expect("answered").expect("settled").charged, usd("1"));
        drop(consumer);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waits_to_be_settled_is_not_swept() {
        let open = open("5");
        let held = done(open.hold("1").await);
        let id = held.0.exchange;
        let (job, settled) = settlement(&open, held, &"m".repeat(100_000));
        let (queue, jobs) = mpsc::channel();
        let mut consumer = consumer(&open);
        consumer.jobs = jobs;
        let limit = |pages| format!("PRAGMA max_page_count = {pages}");
        let pages: i64 = connection::pragma(&consumer.conn, "PRAGMA page_count").expect("counted");
        let sweep = || {
            let (answer, swept) = oneshot::channel();
            let (overdue, now) = (vec![id], at(99));
            (Job::Sweep { overdue, now, answer }, swept)
        };
        // In one batch with a settlement that cannot be written.
        let (alongside, swept) = sweep();
        consumer.conn.execute_batch(&limit(pages)).expect("limited");
        consumer.settle(vec![job, alongside]).expect("nothing is unknown");
        swept.await.expect("answered").expect("not needed");
        assert_eq!((consumer.backlog.len(), open.desk.now(&open.user).held), (1, usd("1")));
        // Beside a settlement that is tried again, and is all that waits.
        let (beside, swept) = sweep();
        queue.send(beside).expect("queued");
        let batch = consumer
            .next_batch()
            .expect("nothing is unknown")
            .expect("the settlement");
        assert_eq!(batch.len(), 1);
        swept.await.expect("answered").expect("not needed");
        consumer.conn.execute_batch(&limit(1_000_000)).expect("unlimited");
        consumer.settle(batch).expect("nothing is unknown");
        assert_eq!(settled.await.expect("answered").expect("settled").charged, usd("1"));
        drop(consumer);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_waited_for_a_trouble_to_pass_is_written_without_further_pauses() {
        let open = open("5");
        let mut consumer = consumer(&open);
        refuse_writes(&consumer, "ON");
        let abandoned = |_| Job::Abandoned {
            exchange: exchange(),
            now: at(1),
        };
        let all = 2 * MAX_BATCH + 1;
        consumer
            .settle((0..all).map(abandoned).collect())
            .expect("nothing is unknown");
        assert!(consumer.retry_at.is_some(), "after a failure it waits");
        refuse_writes(&consumer, "OFF");
        for left in [MAX_BATCH + 1, 1, 0] {
            let batch = consumer.next_batch().expect("nothing is unknown").expect("a part");
            consumer.settle(batch).expect("nothing is unknown");
            assert_eq!((consumer.backlog.len(), consumer.retry_at), (left, None));
        }
        assert!(!consumer.health.is_troubled());
        drop(consumer);
        open.finish().await;
    }

    /// A recording of an exchange as the writer gets it, and where its answer comes.
    fn recording(exchange: ExchangeId) -> (Job, oneshot::Receiver<Result<(), StoreError>>) {
        let (answer, answered) = oneshot::channel();
        let job = Job::Record {
            exchange,
            sealed: b"sealed".to_vec(),
            now: at(1),
            answer,
        };
        (job, answered)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn recordings_are_written_one_by_one_after_what_money_waits_for() {
        let open = open("5");
        let held = done(open.hold("1").await);
        let recorded = held.0.exchange;
        open.settle(held, "1").await;
        let (queue, jobs) = mpsc::channel();
        let mut consumer = Consumer::new(&open.desk.store, jobs, Shared::default()).expect("it opens");
        let (good, kept) = recording(recorded);
        let (bad, lost) = recording(exchange());
        let (hold, held) = asked(&open, "gpt");
        for job in [good, hold] {
            queue.send(job).expect("it is read");
        }
        drop(queue);
        let before = commits::last(&open.desk.raw()).expect("counted");
        consumer.work().expect("nothing is unknown");
        assert_eq!(commits::last(&open.desk.raw()).expect("counted"), before + 2);
        consumer.aside.push_back(bad);
        consumer.write_aside().expect("nothing is unknown");
        assert!(!consumer.health.is_troubled());
        let held = done(held.await.expect("answered"));
        kept.await.expect("answered").expect("it is there");
        lost.await.expect("answered").expect_err("it has no exchange");
        let there = open.desk.store.recording(recorded, at(2)).expect("read");
        assert_eq!(there.as_deref(), Some(&b"sealed"[..]));
        drop(consumer);
        let place = open.writer.spare_place();
        open.settle((held, place), "1").await;
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn in_trouble_nothing_is_recorded() {
        let open = open("5");
        let mut consumer = consumer(&open);
        refuse_writes(&consumer, "ON");
        let abandoned = Job::Abandoned {
            exchange: exchange(),
            now: at(1),
        };
        consumer.settle(vec![abandoned]).expect("nothing is unknown");
        assert!(consumer.health.is_troubled());
        let (job, lost) = recording(exchange());
        consumer.aside.push_back(job);
        consumer.write_aside().expect("nothing is unknown");
        assert!(lost.await.expect("answered").is_err() && consumer.backlog.len() == 1);
        refuse_writes(&consumer, "OFF");
        drop(consumer);
        open.finish().await;
    }

    /// A hold of a dollar as the writer gets it, and where its answer comes.
    fn asked(open: &Open, model: &str) -> (Job, oneshot::Receiver<Outcome<Hold, HoldRefused>>) {
        let (answer, answered) = oneshot::channel();
        let mut ask = Box::new(ask(exchange(), &open.key, "1"));
        ask.model = model.to_owned();
        let waits = Arc::new(Semaphore::new(1)).try_acquire_owned().expect("free");
        let job = Job::Hold {
            ask,
            answer,
            _waits: waits,
        };
        (job, answered)
    }

    /// A settlement of a dollar as the writer gets it, and where its answer comes.
    fn settlement(
        open: &Open,
        (hold, place): (Hold, Place),
        model: &str,
    ) -> (Job, oneshot::Receiver<Result<Closed, StoreError>>) {
        let (answer, answered) = oneshot::channel();
        let mut close = Box::new(closing(hold.exchange, &open.key, "1"));
        close.row.model = model.to_owned();
        let job = Job::Close {
            exchange: hold.exchange,
            close,
            answer,
            _place: place,
        };
        (job, answered)
    }

    /// What makes every write fail with an error that is neither a full disk nor another writer.
    fn refuse_writes(consumer: &Consumer<'_>, value: &str) {
        let sql = format!("PRAGMA query_only = {value}");
        consumer.conn.execute_batch(&sql).expect("set");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_settlement_is_only_given_up_for_what_it_is_itself() {
        let open = open("5");
        let (job, mut settled) = settlement(&open, done(open.hold("1").await), "m");
        let mut consumer = consumer(&open);
        refuse_writes(&consumer, "ON");
        consumer.settle(vec![job]).expect("nothing is unknown");
        assert!(settled.try_recv().is_err(), "it waits");
        refuse_writes(&consumer, "OFF");
        let batch = consumer.next_batch().expect("nothing is unknown").expect("it is kept");
        consumer.settle(batch).expect("nothing is unknown");
        assert_eq!(settled.await.expect("answered").expect("settled").charged, usd("1"));
        drop(consumer);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_process_that_stops_gives_up_what_cannot_be_written_and_the_next_start_releases_it() {
        let open = open("5");
        let (job, mut settled) = settlement(&open, done(open.hold("1").await), "m");
        let mut consumer = consumer(&open);
        refuse_writes(&consumer, "ON");
        consumer.stopping.store(true, Ordering::Relaxed);
        consumer.settle(vec![job]).expect("nothing is unknown");
        assert!(settled.try_recv().is_err(), "not at once");
        consumer.give_up_at = Some(Instant::now());
        let batch = consumer.next_batch().expect("nothing is unknown").expect("it is kept");
        consumer.settle(batch).expect("nothing is unknown");
        settled.await.expect("answered").expect_err("given up");
        assert!(consumer.backlog.is_empty());
        drop(consumer);
        assert_eq!(open.desk.now(&open.user).held, usd("1"));
        assert_eq!(done(open.desk.store.release_interrupted(at(99))).released, 1);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_writer_that_can_write_again_says_so_without_being_asked_to_write() {
        let open = open("5");
        let mut consumer = consumer(&open);
        refuse_writes(&consumer, "ON");
        let (hold, answered) = asked(&open, "m");
        consumer.settle(vec![hold]).expect("nothing is unknown");
        assert!(matches!(answered.await, Ok(Outcome::NotCommitted(_))));
        consumer.look_for_relief().expect("nothing is unknown");
        assert!(consumer.health.is_troubled(), "still in trouble");
        refuse_writes(&consumer, "OFF");
        let (queue, jobs) = mpsc::channel();
        consumer.jobs = jobs;
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(LOOK * 2);
                drop(queue);
            });
            assert!(consumer.wait().expect("nothing is unknown").is_none());
        });
        assert!(!consumer.health.is_troubled(), "it can write again");
        drop(consumer);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_full_disk_is_no_relief_though_a_transaction_begins() {
        let open = open("5");
        let mut consumer = consumer(&open);
        consumer.health.failed("database or disk is full");
        let full = "CREATE TEMP TRIGGER full BEFORE UPDATE ON commits BEGIN SELECT RAISE(ABORT, 'no page'); END";
        consumer.conn.execute_batch(full).expect("made");
        consumer.look_for_relief().expect("nothing is unknown");
        assert!(consumer.health.is_troubled(), "no page can be written");
        consumer.conn.execute_batch("DROP TRIGGER full").expect("dropped");
        consumer.look_for_relief().expect("nothing is unknown");
        assert!(!consumer.health.is_troubled());
        drop(consumer);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn holds_that_came_while_a_write_was_failing_are_refused_without_another_try() {
        let open = open("5");
        let (queue, jobs) = mpsc::channel();
        let mut consumer = consumer(&open);
        consumer.jobs = jobs;
        let (hold, answered) = asked(&open, "m");
        queue.send(hold).expect("queued");
        drop(queue);
        consumer.health.failed("database is locked");
        consumer.work().expect("nothing is unknown");
        let told = answered.await.expect("answered");
        assert!(matches!(told, Outcome::NotCommitted(_)), "{told:?}");
        drop(consumer);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn while_the_last_write_failed_calls_are_refused_at_once_until_one_would_not() {
        let open = open("5");
        open.writer.handle.health.failed("database is locked");
        let refused = open.writer.hold(ask(exchange(), &open.key, "1")).await;
        assert!(matches!(refused, Err(Busy::Troubled)), "{refused:?}");
        while open.writer.problem().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let held = done(open.hold("1").await);
        open.settle(held, "1").await;
        open.finish().await;
    }

    fn consumer(open: &Open) -> Consumer<'_> {
        let (_, jobs) = mpsc::channel();
        Consumer::new(&open.desk.store, jobs, Shared::default()).expect("it opens")
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_key_revoked_by_another_process_is_gone_within_a_second() {
        let open = open("5");
        let hash = new_key(open.user.id, open.key.id.0).hash;
        let cached = || {
            open.desk
                .store
                .key_by_hash(&hash)
                .expect("it reads")
                .expect("it is there")
        };
        assert_eq!(cached().revoked_at, None);
        let command_line = open.desk.again();
        done(command_line.revoke_key(open.key.id, &by(), at(9)));
        let revoked = Instant::now();
        while cached().revoked_at.is_none() {
            assert!(revoked.elapsed() < Duration::from_secs(1), "still valid");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(refused(open.hold("1").await), HoldRefused::KeyGone);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn commands_get_the_lock_beside_a_writer_that_never_rests() {
        let open = open("5");
        let (queue, jobs) = mpsc::channel();
        let mut consumer = consumer(&open);
        consumer.jobs = jobs;
        let stop = AtomicBool::new(false);
        let waits = Arc::new(Semaphore::new(MAX_WAITING));
        let command_line = open.desk.again();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut uses = 0..;
                while !stop.load(Ordering::Relaxed) {
                    match Arc::clone(&waits).try_acquire_owned() {
                        Ok(waits) => {
                            let used = uses.by_ref().take(20).map(|second| (open.key.id, at(second))).collect();
                            queue.send(Job::Touch { used, _waits: waits }).expect("queued");
                        }
                        Err(_) => thread::yield_now(),
                    }
                }
                drop(queue);
            });
            scope.spawn(move || consumer.work().expect("nothing is unknown"));
            let began = Instant::now();
            for i in 0..10 {
                let status = [UserStatus::Suspended, UserStatus::Active][i % 2];
                done(command_line.set_user_status(open.user.id, status, &by(), at(0)));
            }
            stop.store(true, Ordering::Relaxed);
            let took = began.elapsed();
            assert!(took < Duration::from_secs(3), "ten commands took {took:?}");
        });
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_hold_that_nobody_waits_for_any_more_is_released() {
        let open = open("5");
        let raw = open.desk.raw();
        raw.execute_batch("BEGIN IMMEDIATE").expect("the lock is free");
        let asked = tokio::time::timeout(Duration::from_millis(50), open.hold("1")).await;
        assert!(asked.is_err(), "it waits for the lock");
        raw.execute_batch("ROLLBACK").expect("rolled back");
        let next = done(open.hold("1").await);
        open.settle(next, "1").await;
        while open.desk.store.verify().expect("it verifies").open_holds > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn overdue_holds_are_swept_and_a_late_settlement_gets_the_first_answer() {
        let open = open("5");
        let held = done(open.hold("2").await);
        let overdue = open.desk.store.open_holds().expect("read");
        assert_eq!(overdue, [held.0.exchange]);
        open.writer.sweep(overdue, at(5000)).await.expect("swept");
        let closed = open.settle(held, "1").await;
        assert_eq!((closed.charged, closed.balance), (Usd::ZERO, usd("5")));
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_hold_that_cannot_be_swept_keeps_no_other_from_it() {
        let open = open("5");
        let (bad, good) = (done(open.hold("2").await), done(open.hold("1").await));
        let never = format!(
            "CREATE TRIGGER never BEFORE INSERT ON usage_logs WHEN NEW.exchange_id = x'{}'
             BEGIN SELECT RAISE(ABORT, 'never'); END",
            bad.0.exchange.0.simple()
        );
        open.desk.raw().execute_batch(&never).expect("made");
        let overdue = vec![bad.0.exchange, good.0.exchange];
        let swept = open.writer.sweep(overdue, at(5000)).await.expect("swept");
        let stuck = vec![(bad.0.exchange, "never".to_owned())];
        assert_eq!(swept, Swept { released: 1, stuck });
        assert_eq!(open.desk.now(&open.user).held, usd("2"));
        assert_eq!(open.writer.problem(), None, "it is no trouble for others");
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_unknown_outcome_stops_the_writer_and_everybody_is_told() {
        let open = open("5");
        let (hold, place) = done(open.hold("1").await);
        let ruin = "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = 'CREATE' WHERE name = 'holds';
                    PRAGMA schema_version = 999;";
        open.desk.raw().execute_batch(ruin).expect("the database is ruined");
        let told = open.hold("1").await;
        assert!(matches!(told, Outcome::Unknown(_)), "{told:?}");
        open.writer.failed().await;
        assert!(open.writer.problem().is_some());
        let next = open.writer.hold(ask(exchange(), &open.key, "1")).await;
        assert!(matches!(next, Err(Busy::Stopped)), "{next:?}");
        let id = hold.exchange;
        open.writer
            .close(hold, place, closing(id, &open.key, "1"))
            .await
            .expect_err("it has stopped");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_failed_commit_is_an_unknown_outcome() {
        let open = open("5");
        let mut consumer = consumer(&open);
        consumer.conn.commit_hook(Some(|| true)).expect("hooked");
        let (hold, answered) = asked(&open, "m");
        let settled = consumer.settle(vec![hold]);
        settled.expect_err("nobody knows what is in the file");
        answered.await.expect_err("not told that nothing was written");
        drop(consumer);
        open.finish().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_unknown_beside_the_writer_stops_the_server_as_well() {
        let open = open("5");
        let error = StoreError {
            context: "beside it".to_owned(),
            source: None,
        };
        open.writer.distrust(&error);
        open.writer.distrust(&open.writer.failed().await);
        assert_eq!(open.writer.failure().why().as_deref(), Some("beside it"));
        let refused = open.writer.hold(ask(exchange(), &open.key, "2")).await;
        assert!(matches!(refused, Err(Busy::Stopped)), "{refused:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_removed_log_has_is_moved_into_the_database_before_the_writer_stops() {
        let open = open("5");
        let held = done(open.hold("2").await);
        let late = done(open.hold("1").await);
        open.settle(held, "2").await;
        std::fs::remove_file(connection::beside(&open.desk.path(), "-wal")).expect("removed");
        let (id, close) = (late.0.exchange, closing(late.0.exchange, &open.key, "1"));
        let told = open.writer.close(late.0, late.1, close).await;
        assert!(told.is_err(), "{id} is not known to be durable: {told:?}");
        open.writer.failed().await;
        let copy = open.desk.path().with_file_name("copy.db");
        std::fs::copy(open.desk.path(), &copy).expect("copied");
        let alone = Store::open(&copy, super::super::Create::Never).expect("it opens without a log");
        let user = alone.find_user("ada").expect("read").expect("there");
        assert!(user.balance <= usd("3"), "what was acknowledged is there: {user:?}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_checkpoint_under_way_does_not_keep_a_removed_log_from_being_moved() {
        let desk = Desk::new();
        let (_, jobs) = mpsc::channel();
        let mut consumer = Consumer::new(&desk.store, jobs, Shared::default()).expect("it opens");
        let (path, reader, other) = (desk.path(), desk.raw(), desk.raw());
        reader.execute_batch("BEGIN; SELECT * FROM users").expect("it reads");
        desk.user("ada", "3");
        // It waits for the reader, until it is asked to stop.
        consumer.checkpoints = Checkpoints::on(move |woken| {
            let mark = MarkFile::open(&path).expect("opened");
            let waiting = thread::spawn(move || while checkpoint(&other, &mark, "RESTART").log < 0 {});
            woken.recv().expect_err("nothing is sent");
            reader.execute_batch("COMMIT").expect("it stops to read");
            waiting.join().expect("no panic");
        });
        while checkpoint(&consumer.conn, &consumer.mark, "PASSIVE").log >= 0 {
            thread::yield_now();
        }
        std::fs::remove_file(connection::beside(&desk.path(), "-wal")).expect("removed");
        consumer.look_at_files().expect_err("the log is gone");
        let copy = desk.path().with_file_name("copy.db");
        std::fs::copy(desk.path(), &copy).expect("copied");
        let alone = Store::open(&copy, super::super::Create::Never).expect("it opens without a log");
        assert!(alone.find_user("ada").expect("read").is_some());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn uses_of_keys_are_noted() {
        let open = open("5");
        open.writer
            .touch_keys(vec![(open.key.id, at(60)), (open.key.id, at(30))]);
        let held = done(open.hold("1").await);
        open.settle(held, "0").await;
        let keys = open.desk.store.keys(Some(open.user.id)).expect("read");
        assert_eq!(keys[0].last_used_at, Some(at(60)));
        open.finish().await;
    }
}
