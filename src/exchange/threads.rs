//! Threads that live elsewhere than their names say: begun, or gone on, while their own upstream took no calls.
//!
//! By its name a thread has an upstream that everybody computes alike (`route`). What earlier turns of a Responses thread
//! left may be encrypted for the account that made it, and what they sent is cached there, so where it was answered elsewhere
//! is remembered: its next turns go there. From an upstream of a higher `priority` number, which only stands in, a turn that
//! holds nothing encrypted goes back to where the thread's name says, and the thread with it. Only such threads are kept, by their numbers, and of too many those that were quiet for longest are forgotten; in
//! memory, so that after a restart a thread is looked for where its name says.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Threads in each of two generations: some 10 MB in all.
const GENERATION: usize = 50_000;

/// Which threads live where.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    /// Whether there is any: of none, nobody has to look.
    any: AtomicBool,
    generations: Mutex<Generations>,
}

/// When the younger one is full it takes the place of the older one; who is asked for becomes young.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<u64, Arc<str>>,
    old: HashMap<u64, Arc<str>>,
}

impl Generations {
    fn insert(&mut self, thread: u64, upstream: Arc<str>) {
        if self.young.len() >= GENERATION && !self.young.contains_key(&thread) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(thread, upstream);
    }
}

impl Threads {
    /// The upstream, by its name, at which a thread lives; `None`: where its own name says.
    pub(super) fn home(&self, thread: u64) -> Option<Arc<str>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut generations = self.generations();
        if let Some(upstream) = generations.young.get(&thread) {
            return Some(Arc::clone(upstream));
        }
        let upstream = generations.old.remove(&thread)?;
        generations.insert(thread, Arc::clone(&upstream));
        Some(upstream)
    }

    /// From here on a thread lives at this upstream.
    pub(super) fn moved(&self, thread: u64, upstream: &str) {
        self.any.store(true, Ordering::Relaxed);
        self.generations().insert(thread, upstream.into());
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_moved_is_known_while_it_goes_on_and_so_many_are_kept() {
        let threads = Threads::default();
        let home = |thread| threads.home(thread);
        assert_eq!(home(7), None);
        threads.moved(7, "first");
        threads.moved(7, "second");
        let most = u64::try_from(GENERATION).expect("it is small");
        for thread in 1_000..1_000 + 3 * most {
            threads.moved(thread, "first");
            if thread % 1_000 == 0 {
                assert_eq!(home(7).as_deref(), Some("second"));
            }
        }
        assert_eq!(home(1_000), None, "it was quiet for longest");
        let generations = threads.generations();
        assert!(generations.young.len() + generations.old.len() <= 2 * GENERATION);
    }
}
