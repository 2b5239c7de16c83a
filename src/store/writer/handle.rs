//! What is asked of the writer, and what whoever asks is told.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio_util::task::TaskTracker;

use super::super::background::Background;
use super::super::counts::Counts;
use super::super::health::Health;
use super::super::ledger::{CloseHold, Closed, Hold, HoldRefused, PlaceHold, Swept};
use super::super::{ExchangeId, KeyId, Outcome, Store, StoreError, events, recordings};
use super::job::{Answer, Job};
use super::{Shared, chain, not_written, serve};
use crate::config::DiskConfig;

/// Holds (and notes of keys' use) that may wait: a second's work of a slow disk.
pub(super) const MAX_WAITING: usize = 4_096;

/// Exchanges that may be open or settling: each has its settlement's place. A place costs nothing until it is used.
const MAX_OPEN: usize = 65_536;

/// How many holds one sweep closes in one transaction.
const SWEEP: usize = 64;

/// The one writer of a serving process: group commit over a bounded queue. Cheap to clone; the writer ends when the
/// last clone is dropped.
#[derive(Clone, Debug)]
pub struct Writer {
    pub(super) handle: Arc<Handle>,
}

#[derive(Debug)]
pub(super) struct Handle {
    queue: Sender<Job>,
    waiting: Arc<Semaphore>,
    places: Arc<Semaphore>,
    failed: watch::Receiver<Option<String>>,
    fail: watch::Sender<Option<String>>,
    pub(super) health: Arc<Health>,
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
        let place = self.place().ok_or(Busy::QueueFull)?;
        let waiting = Arc::clone(&self.handle.waiting);
        let waits = waiting.try_acquire_owned().map_err(|_| Busy::QueueFull)?;
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
        let close = Box::new(close);
        self.kept(|answer| Job::Close {
            exchange: hold.exchange,
            close,
            answer,
            _place: place,
        })
        .await
    }

    /// Writes down that an exchange's response runs on at its upstream, so that its hold stays open until its end is known,
    /// also across a restart. Repeated until it commits, like a settlement.
    ///
    /// # Errors
    /// As of [`Writer::close`].
    pub async fn begin(&self, background: Background) -> Result<(), NotClosed> {
        let background = Box::new(background);
        self.kept(|answer| Job::Begin { background, answer }).await
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
            let overdue = some.to_vec();
            swept.add(self.tried(|answer| Job::Sweep { overdue, now, answer }).await?);
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
        self.tried(|answer| Job::Record {
            exchange,
            sealed,
            now,
            answer,
        })
        .await
    }

    /// Forgets all answers that are kept no longer, a few at a time.
    ///
    /// # Errors
    /// Not all are forgotten; the next time does it.
    pub async fn forget_recordings(&self, now: Timestamp) -> Result<(), StoreError> {
        loop {
            let forgotten = self.tried(|answer| Job::Forget { now, answer }).await?;
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
        self.tried(|answer| Job::Note { note, answer }).await
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
    pub(in crate::store) fn spare_place(&self) -> Place {
        self.place().expect("there is room")
    }

    /// Has a job written, once, and waits for what came of it.
    async fn tried<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.handle.send(job(answer)).map_err(|_| self.stopped())?;
        answered.await.unwrap_or_else(|_| Err(self.stopped()))
    }

    /// Has a job written that is kept until it commits, and waits for what came of it.
    async fn kept<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, NotClosed> {
        let (answer, answered) = oneshot::channel();
        let sent = self.handle.send(job(answer));
        sent.map_err(|_| NotClosed::NotWritten(self.stopped()))?;
        match answered.await {
            Ok(done) => done.map_err(NotClosed::NotWritten),
            Err(_) => Err(NotClosed::Unknown(self.stopped())),
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
pub(in crate::store) fn start(store: Store, tracker: &TaskTracker, disk: DiskConfig) -> Writer {
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
