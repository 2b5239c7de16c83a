//! Transactions: a batch in one, what fails in it each in its own, and what is kept for another try.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rusqlite::TransactionBehavior;

use super::super::mark::Mark;
use super::super::prepared::Prepared;
use super::super::{StoreError, Trouble, commits, during};
use super::job::{Done, Job, give_up, leave_unswept, tell};
use super::{Consumer, not_written};

/// How long the writer waits, after it failed, before it repeats what could not be committed.
const RETRY: Duration = Duration::from_millis(100);

/// How long it goes on with that once the process is to stop.
const LAST_TRIES: Duration = Duration::from_secs(10);

/// What an operation writes to the log, as checkpoints count.
const OPERATION: usize = 8 * 1024;

impl Consumer<'_> {
    /// Commits a batch and answers it; an error in it makes it repeat one by one.
    pub(super) fn settle(&mut self, batch: Vec<Job>) -> Result<(), StoreError> {
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

    /// Writes one of what was put aside, in a transaction of its own. It gives no cause for trouble: what fails is given up.
    pub(super) fn write_aside(&mut self) -> Result<(), StoreError> {
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

    /// Runs jobs in one transaction. On an error nothing of it is written; SQLite may have closed the transaction by
    /// itself, so nothing more runs in it (dropping it rolls back if it is still open).
    pub(super) fn attempt(&mut self, jobs: &[Job]) -> Result<Vec<Done>, (Trouble, rusqlite::Error)> {
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

    /// Whether what cannot be written is to be given up: the process is to stop, and has waited for it.
    fn gives_up(&mut self) -> bool {
        self.stopping.load(Ordering::Relaxed)
            && *self.give_up_at.get_or_insert_with(|| Instant::now() + LAST_TRIES) <= Instant::now()
    }

    /// Refuses the holds that came while a write was failing: each would wait for a lock once more.
    pub(super) fn refuse_holds(&self, batch: Vec<Job>) -> Vec<Job> {
        let Some(why) = self.health.trouble() else {
            return batch;
        };
        let (holds, rest): (Vec<_>, _) = batch.into_iter().partition(|job| matches!(job, Job::Hold { .. }));
        for hold in holds {
            give_up(hold, not_written(&why));
        }
        rest
    }
}

fn run_all(tx: &Prepared<'_>, jobs: &[Job]) -> rusqlite::Result<Vec<Done>> {
    jobs.iter().map(|job| job.run(tx)).collect()
}
