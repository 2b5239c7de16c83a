//! How much the writer has to do and how long it takes, counted as it works, for whoever watches it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::histogram::Histogram;

/// Upper bounds of a transaction's time, in microseconds.
const COMMITS: &[u64] = &[
    250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 125_000, 250_000, 500_000, 1_000_000, 5_000_000,
];

/// Upper bounds of the operations in a transaction.
const BATCHES: &[u64] = &[1, 2, 4, 8, 16, 32, 64, 128, 256];

/// What the writer has to do, and what it did.
#[derive(Debug)]
pub struct Counts {
    /// Sent to the writer, and not yet taken by it.
    queued: AtomicUsize,
    /// Taken, and kept: what could not be written yet, and what is put aside.
    kept: AtomicUsize,
    /// From BEGIN to COMMIT of each transaction that came to its end, in microseconds.
    pub commits: Histogram,
    /// How many operations each of them had.
    pub batches: Histogram,
}

impl Default for Counts {
    fn default() -> Counts {
        Counts {
            queued: AtomicUsize::new(0),
            kept: AtomicUsize::new(0),
            commits: Histogram::new(COMMITS),
            batches: Histogram::new(BATCHES),
        }
    }
}

impl Counts {
    /// How many operations wait for the writer.
    pub fn depth(&self) -> usize {
        self.queued.load(Ordering::Relaxed) + self.kept.load(Ordering::Relaxed)
    }

    /// Before an operation is sent.
    pub(super) fn sends(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// The writer took one.
    pub(super) fn takes(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// So many are kept.
    pub(super) fn keeps(&self, count: usize) {
        self.kept.store(count, Ordering::Relaxed);
    }

    /// A transaction with so many operations is durable; one without any was but a look whether it can be.
    pub(super) fn committed(&self, operations: usize, took: Duration) {
        if operations > 0 {
            self.commits.observe_time(took);
            self.batches.observe(u64::try_from(operations).unwrap_or(u64::MAX));
        }
    }
}
