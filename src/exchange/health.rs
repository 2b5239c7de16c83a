//! How an upstream does: calls under way at it, and its circuit breakers. It outlives a change of
//! the settings: [`super::Upstream::new`].
//!
//! A call asks for a [`Turn`] when it is admitted and keeps it to its end. Whether the breaker lets it through is looked at
//! then, and decided when it is sent: a call that is refused in between does not use up the try of an interval. As long
//! as nothing fails none of this takes a lock.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::breaker::{Breakers, Others, State, Verdict};
use crate::time::Stopwatch;

/// How an upstream does.
#[derive(Debug)]
pub(super) struct Health {
    since_start: Stopwatch,
    under_way: AtomicU32,
    /// How many models the breakers remember: of none, nobody has to look.
    remembered: AtomicUsize,
    breakers: Mutex<Breakers>,
}

/// A call's place at an upstream, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    health: Arc<Health>,
    /// Whether another upstream would have taken the call.
    pub(super) others: Others,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.health.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Health {
    /// Of an upstream that nothing is known of.
    pub(super) fn new(breaker_interval: Duration) -> Health {
        Health {
            since_start: Stopwatch::start(),
            under_way: AtomicU32::new(0),
            remembered: AtomicUsize::new(0),
            breakers: Mutex::new(Breakers::new(breaker_interval)),
        }
    }

    /// From here on a breaker that opens leaves the upstream alone for so long.
    pub(super) fn set_breaker_interval(&self, interval: Duration) {
        self.breakers().set_interval(interval);
    }

    /// Calls that have a place.
    pub(super) fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::Relaxed)
    }

    /// A place, if fewer than `most` are taken.
    pub(super) fn turn(self: &Arc<Health>, most: Option<u32>, others: Others) -> Option<Turn> {
        let most = most.unwrap_or(u32::MAX);
        let one_more = |taken: u32| (taken < most).then_some(taken + 1);
        let taken = self
            .under_way
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.is_ok().then(|| Turn {
            health: Arc::clone(self),
            others,
        })
    }

    /// The time that [`Health::note`] goes by.
    pub(super) fn now(&self) -> Duration {
        self.since_start.elapsed()
    }

    /// How long until a call for `model` would be let through.
    pub(super) fn wait(&self, model: &str, others: Others) -> Duration {
        match self.is_untroubled() {
            true => Duration::ZERO,
            false => self.breakers().wait(model, self.now(), others),
        }
    }

    /// Lets a call for `model` through, or not.
    pub(super) fn admit(&self, model: &str, others: Others) -> bool {
        self.is_untroubled() || self.breakers().admit(model, self.now(), others)
    }

    /// Notes what became of a call that was sent at `sent`. Returns whether that opened or closed a breaker.
    pub(super) fn note(&self, model: &str, sent: Duration, verdict: Verdict) -> bool {
        if verdict == Verdict::Answered && self.is_untroubled() {
            return false;
        }
        let mut breakers = self.breakers();
        let turned = breakers.note(model, sent, self.now(), verdict);
        self.remembered.store(breakers.remembered(), Ordering::Relaxed);
        turned
    }

    /// How the breaker that stands worst does.
    pub(super) fn state(&self) -> State {
        self.breakers().state(self.now())
    }

    /// Whether nothing is to be had of it.
    pub(super) fn is_down(&self) -> bool {
        !self.is_untroubled() && self.breakers().is_down(self.now())
    }

    fn is_untroubled(&self) -> bool {
        self.remembered.load(Ordering::Relaxed) == 0
    }

    fn breakers(&self) -> MutexGuard<'_, Breakers> {
        let mut breakers = self.breakers.lock().unwrap_or_else(PoisonError::into_inner);
        breakers.forget(self.now());
        self.remembered.store(breakers.remembered(), Ordering::Relaxed);
        breakers
    }
}
