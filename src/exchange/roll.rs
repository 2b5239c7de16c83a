//! The exchanges that run, and counts of those that ended, for whoever watches the server.
//!
//! An exchange is entered once it is admitted and struck out at its end, whatever that is: one small value, in one of a
//! few tables by its id, so that exchanges do not wait for one another. What changes while it runs are counters of its own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Admitted, Live};
use crate::call::Call;
use crate::store::ExchangeId;
use crate::store::keys::Key;
use crate::store::usage_log::{ExchangeRow, State};
use crate::time::Stopwatch;

/// Tables; an id ends in random bits.
const TABLES: usize = 32;

type Table = HashMap<ExchangeId, Arc<Entry>>;

/// All that run.
#[derive(Debug, Default)]
pub struct Roll {
    tables: [Mutex<Table>; TABLES],
    calls: AtomicU64,
    refused: AtomicU64,
    failed: AtomicU64,
    tokens: AtomicU64,
}

/// What ended since the start of the server. Counted one by one: between two of them a call may end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Calls that were settled or released.
    pub calls: u64,
    /// Calls that got no hold.
    pub refused: u64,
    /// Of the calls, those that the upstream refused, failed or broke off.
    pub failed: u64,
    /// Tokens in and out.
    pub tokens: u64,
}

/// How far an exchange is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// It waits for the head of an answer.
    Waiting,
    /// The answer comes.
    Answering,
    /// The answer has ended; its end waits for the settlement.
    Settling,
}

/// One exchange that runs.
#[derive(Debug)]
pub struct Entry {
    /// Its id.
    pub id: ExchangeId,
    /// Whose it is.
    pub key: Arc<Key>,
    /// What is asked.
    pub call: Arc<Call>,
    /// Since it was admitted.
    pub since: Stopwatch,
    live: Arc<Live>,
    upstream: AtomicUsize,
    phase: AtomicU8,
    events: AtomicU64,
    bytes: AtomicU64,
}

impl Entry {
    fn new(admitted: &Admitted) -> Entry {
        Entry {
            id: admitted.id(),
            key: Arc::clone(&admitted.key),
            call: Arc::clone(&admitted.call),
            since: admitted.since_start,
            live: Arc::clone(&admitted.live),
            upstream: AtomicUsize::new(admitted.target.upstream),
            phase: AtomicU8::new(Phase::Waiting as u8),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
        }
    }

    /// Where it was sent last.
    pub fn upstream(&self) -> &str {
        self.live.upstreams[self.upstream.load(Ordering::Relaxed)].name()
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        let phases = [Phase::Waiting, Phase::Answering];
        let phase = self.phase.load(Ordering::Relaxed);
        let found = phases.into_iter().find(|one| *one as u8 == phase);
        found.unwrap_or(Phase::Settling)
    }

    /// Events of a stream that came.
    pub fn events(&self) -> u64 {
        self.events.load(Ordering::Relaxed)
    }

    /// Bytes of a stream that came.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// It is sent there, and waits for the head of an answer.
    pub(super) fn is_sent_to(&self, upstream: usize) {
        self.upstream.store(upstream, Ordering::Relaxed);
        self.is(Phase::Waiting);
    }

    pub(super) fn is(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    pub(super) fn came(&self, bytes: usize) {
        self.bytes
            .fetch_add(u64::try_from(bytes).unwrap_or(0), Ordering::Relaxed);
    }

    pub(super) fn has_events(&self, events: u64) {
        self.events.store(events, Ordering::Relaxed);
    }
}

/// An exchange's place on the roll; it is struck out when this is dropped.
#[derive(Debug)]
pub(super) struct OnRoll<'a> {
    roll: &'a Roll,
    pub(super) entry: Arc<Entry>,
}

impl Drop for OnRoll<'_> {
    fn drop(&mut self) {
        self.roll.table(self.entry.id, |table| table.remove(&self.entry.id));
    }
}

impl Roll {
    /// Enters an exchange.
    pub(super) fn enter(&self, admitted: &Admitted) -> OnRoll<'_> {
        let entry = Arc::new(Entry::new(admitted));
        self.table(entry.id, |table| table.insert(entry.id, Arc::clone(&entry)));
        OnRoll { roll: self, entry }
    }

    fn table<T>(&self, id: ExchangeId, act: impl FnOnce(&mut Table) -> T) -> T {
        let table = &self.tables[usize::from(id.0.as_bytes()[15]) % TABLES];
        act(&mut table.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those that run, in no order.
    pub fn running(&self) -> Vec<Arc<Entry>> {
        let mut all = Vec::new();
        for table in &self.tables {
            all.extend(table.lock().unwrap_or_else(PoisonError::into_inner).values().cloned());
        }
        all
    }

    /// What ended so far.
    pub fn totals(&self) -> Totals {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Totals {
            calls: of(&self.calls),
            refused: of(&self.refused),
            failed: of(&self.failed),
            tokens: of(&self.tokens),
        }
    }

    /// Counts a call that got no hold.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a call that ended.
    pub(super) fn ended(&self, row: &ExchangeRow) {
        let tokens = row.usage.input_tokens.saturating_add(row.usage.output_tokens);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.tokens.fetch_add(tokens.get(), Ordering::Relaxed);
        if matches!(row.state, State::Refused | State::Failed | State::Broken) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}
