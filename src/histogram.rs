//! Histograms in atomics: how many values of which size were seen, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts whole values (microseconds, operations) by the smallest bound that they do not exceed.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One for each bound, and one for what is above all of them.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// What a histogram has seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many there were up to each bound and above the one before it.
    pub buckets: Vec<(u64, u64)>,
    /// How many there were above all bounds.
    pub above: u64,
    /// All of them, added up.
    pub sum: u64,
}

impl Histogram {
    /// Of nothing yet; the bounds rise.
    pub fn new(bounds: &'static [u64]) -> Histogram {
        debug_assert!(bounds.is_sorted_by(|lower, upper| lower < upper), "{bounds:?}");
        Histogram {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a value.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Counts a time, in microseconds.
    pub fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// What it has seen. What is counted meanwhile may be in it or not.
    pub fn seen(&self) -> Seen {
        let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Seen {
            buckets: self.bounds.iter().copied().zip(self.counts.iter().map(count)).collect(),
            above: self.counts.last().map_or(0, count),
            sum: count(&self.sum),
        }
    }
}

impl Seen {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum::<u64>() + self.above
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_below_the_first_bound_that_it_does_not_exceed() {
        let histogram = Histogram::new(&[10, 100]);
        for value in [0, 10, 11, 100, 101, 5_000] {
            histogram.observe(value);
        }
        histogram.observe_time(Duration::from_nanos(99_999));
        let seen = histogram.seen();
        assert_eq!((seen.buckets.as_slice(), seen.above), (&[(10, 2), (100, 3)][..], 2));
        assert_eq!((seen.count(), seen.sum), (7, 5_222 + 99));
    }
}
