//! One thing that the writer is asked to write: what it does in a transaction, and how whoever asked is told.

use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::super::background::{self, Background};
use super::super::ledger::{self, CloseHold, Closed, Hold, HoldRefused, PlaceHold, Swept};
use super::super::prepared::Prepared;
use super::super::{ExchangeId, KeyId, Outcome, StoreError, events, keys, recordings};
use super::chain;
use super::handle::Place;

/// Where whoever asked waits.
pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What is asked of the writer; whoever asked waits for `answer`.
#[derive(Debug)]
pub(super) enum Job {
    Hold {
        ask: Box<PlaceHold>,
        answer: oneshot::Sender<Outcome<Hold, HoldRefused>>,
        _waits: OwnedSemaphorePermit,
    },
    Close {
        exchange: ExchangeId,
        close: Box<CloseHold>,
        answer: Answer<Closed>,
        _place: Place,
    },
    /// A response that runs on at its upstream.
    Begin {
        background: Box<Background>,
        answer: Answer<()>,
    },
    /// A hold whose exchange is gone before it got the answer.
    Abandoned { exchange: ExchangeId, now: Timestamp },
    Sweep {
        overdue: Vec<ExchangeId>,
        now: Timestamp,
        answer: Answer<Swept>,
    },
    /// An answer to keep.
    Record {
        exchange: ExchangeId,
        sealed: Vec<u8>,
        now: Timestamp,
        answer: Answer<()>,
    },
    /// Answers that are kept no longer.
    Forget { now: Timestamp, answer: Answer<usize> },
    /// What became of events at a sink.
    Note { note: events::Note, answer: Answer<()> },
    Touch {
        used: Vec<(KeyId, Timestamp)>,
        _waits: OwnedSemaphorePermit,
    },
}

/// What a job did.
pub(super) enum Done {
    Hold(Result<Hold, HoldRefused>),
    Closed(Closed),
    Swept(Swept),
    Written,
    Forgotten(usize),
    Nothing,
}

impl Job {
    pub(super) fn run(&self, tx: &Prepared<'_>) -> rusqlite::Result<Done> {
        match self {
            Job::Hold { ask, .. } => ledger::place(tx, ask).map(Done::Hold),
            Job::Close { exchange, close, .. } => ledger::close(tx, *exchange, close).map(Done::Closed),
            Job::Begin { background, .. } => background::begin(tx, background).map(|()| Done::Written),
            Job::Abandoned { exchange, now } => ledger::interrupt(tx, *exchange, *now).map(|_| Done::Nothing),
            Job::Sweep { overdue, now, .. } => ledger::sweep(tx, overdue, *now).map(Done::Swept),
            Job::Record {
                exchange, sealed, now, ..
            } => recordings::keep(tx, *exchange, sealed, *now).map(|()| Done::Written),
            Job::Forget { now, .. } => recordings::forget(tx, *now).map(Done::Forgotten),
            Job::Note { note, .. } => events::note(tx, note).map(|()| Done::Written),
            Job::Touch { used, .. } => keys::touch(tx, used).map(|()| Done::Nothing),
        }
    }

    /// Whether it writes much and nobody's money waits for it.
    pub(super) fn is_aside(&self) -> bool {
        matches!(self, Job::Record { .. } | Job::Forget { .. } | Job::Note { .. })
    }
}

/// Tells whoever asked what was done. A hold that nobody waits for any more comes back as abandoned.
pub(super) fn tell(job: Job, done: Done) -> Option<Job> {
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
        (Job::Record { answer, .. } | Job::Note { answer, .. } | Job::Begin { answer, .. }, Done::Written) => {
            answer.send(Ok(())).is_err()
        }
        (Job::Forget { answer, .. }, Done::Forgotten(count)) => answer.send(Ok(count)).is_err(),
        _ => false,
    };
    if unheard {
        tracing::debug!("nobody waited for an answer of the writer");
    }
    None
}

/// Forgets a sweep: what waits to be settled is not to be swept, and the next one comes by itself.
pub(super) fn leave_unswept(sweep: Job) {
    let unswept = tell(sweep, Done::Swept(Swept::default()));
    debug_assert!(unswept.is_none());
}

/// Tells whoever asked that nothing was written.
pub(super) fn give_up(job: Job, error: StoreError) {
    let unheard = match job {
        Job::Hold { answer, .. } => answer.send(Outcome::NotCommitted(error)).is_err(),
        Job::Close { answer, exchange, .. } => {
            tracing::error!(%exchange, error = chain(&error), "a settlement cannot be written; its hold stays open, and the next start releases it");
            answer.send(Err(error)).is_err()
        }
        Job::Sweep { answer, .. } => answer.send(Err(error)).is_err(),
        Job::Forget { answer, .. } => answer.send(Err(error)).is_err(),
        Job::Record { answer, .. } | Job::Note { answer, .. } | Job::Begin { answer, .. } => {
            answer.send(Err(error)).is_err()
        }
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
