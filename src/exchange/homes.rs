//! Homes: at which upstream a thread lives, and who made what a call holds encrypted.
//!
//! By its name a thread has an upstream that everybody computes alike (`route`). What an answer leaves encrypted only the
//! account that made it can read, so where there is more than one upstream its maker is remembered, by a digest of it, and
//! what holds it goes there: of conversations that share a name, and of one that began as a copy of another, each to its own.
//! Of what is not known, and of what is not encrypted but cached, the thread decides. One that was answered elsewhere than its
//! name says lives there from then on; from an upstream of a higher `priority` number, which only stands in, a turn that holds
//! nothing encrypted goes back to where the name says, and the thread with it.
//!
//! All of it is in memory, by numbers, and of too many those that were quiet for longest are forgotten: after a restart a
//! thread is looked for where its name says.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Admitted;
use crate::call::{AllEncrypted, Encrypted};
use crate::meter::Reading;
use crate::route::Seat;

/// How many of a kind are in each of two generations: some 10 MB in all for a kind.
const GENERATION: usize = 50_000;

/// What lives where.
#[derive(Debug, Default)]
pub(crate) struct Homes {
    /// Threads that live elsewhere than their names say.
    threads: Memory<u64>,
    /// The last thing that each answer left encrypted.
    made: Memory<Encrypted>,
}

impl Homes {
    /// The upstream, by its name, at which a thread lives; `None`: where its own name says.
    pub(super) fn of_thread(&self, thread: u64) -> Option<Arc<str>> {
        self.threads.home(thread)
    }

    /// The upstream that made what is encrypted there, the last of it that is known.
    pub(super) fn maker(&self, all: &AllEncrypted) -> Option<Arc<str>> {
        all.newest_first().find_map(|one| self.made.home(one))
    }

    /// An upstream takes a call: its thread lives there from here on, if it lived elsewhere.
    pub(super) fn taken(&self, admitted: &Admitted) {
        let moved = admitted
            .wish
            .lives
            .is_some_and(|lives| lives != admitted.target.upstream);
        if let (Seat::Thread(thread), true) = (admitted.wish.seat, moved) {
            self.threads.note(thread, admitted.upstream().name());
        }
    }

    /// An upstream has answered: what that leaves encrypted is its own.
    pub(super) fn answered(&self, admitted: &Admitted, reading: &Reading) {
        let is_choice = || admitted.live.routes.candidates(&admitted.call.model).nth(1).is_some();
        if let Some(encrypted) = reading.encrypted
            && is_choice()
        {
            self.made.note(encrypted, admitted.upstream().name());
        }
    }
}

/// Where things of a kind live.
#[derive(Debug)]
struct Memory<K> {
    /// Whether there is any: of none, nobody has to look.
    any: AtomicBool,
    generations: Mutex<Generations<K>>,
}

impl<K> Default for Memory<K> {
    fn default() -> Memory<K> {
        Memory {
            any: AtomicBool::new(false),
            generations: Mutex::new(Generations {
                young: HashMap::new(),
                old: HashMap::new(),
            }),
        }
    }
}

/// When the younger one is full it takes the place of the older one; who is asked for becomes young.
#[derive(Debug)]
struct Generations<K> {
    young: HashMap<K, Arc<str>>,
    old: HashMap<K, Arc<str>>,
}

impl<K: Copy + Eq + Hash> Generations<K> {
    fn insert(&mut self, of: K, upstream: Arc<str>) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&of) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(of, upstream);
    }
}

impl<K: Copy + Eq + Hash> Memory<K> {
    fn home(&self, of: K) -> Option<Arc<str>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut generations = self.generations();
        if let Some(upstream) = generations.young.get(&of) {
            return Some(Arc::clone(upstream));
        }
        let upstream = generations.old.remove(&of)?;
        generations.insert(of, Arc::clone(&upstream));
        Some(upstream)
    }

    fn note(&self, of: K, upstream: &str) {
        self.any.store(true, Ordering::Relaxed);
        self.generations().insert(of, upstream.into());
    }

    fn generations(&self) -> MutexGuard<'_, Generations<K>> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_known_while_it_goes_on_and_so_many_are_kept() {
        let memory = Memory::default();
        let home = |of| memory.home(of);
        assert_eq!(home(7), None);
        memory.note(7, "first");
        memory.note(7, "second");
        let most = u64::try_from(GENERATION).expect("it is small");
        for of in 1_000..1_000 + 3 * most {
            memory.note(of, "first");
            if of % 1_000 == 0 {
                assert_eq!(home(7).as_deref(), Some("second"));
            }
        }
        assert_eq!(home(1_000), None, "it was quiet for longest");
        let generations = memory.generations();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }
}
