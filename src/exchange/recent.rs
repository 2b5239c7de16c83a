//! What is remembered of late, in memory and within a bound: of too much, what nobody asked for is forgotten first.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// So many that were noted or asked for last, by their keys, at least; twice as many at most.
#[derive(Debug)]
pub(super) struct Recent<K, V, const SO_MANY: usize> {
    /// Whether there is any: of none, nobody has to look.
    any: AtomicBool,
    generations: Mutex<Generations<K, V, SO_MANY>>,
}

/// When the younger one is full it takes the place of the older one; who is asked for becomes young.
#[derive(Debug)]
struct Generations<K, V, const SO_MANY: usize> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K, V, const SO_MANY: usize> Default for Recent<K, V, SO_MANY> {
    fn default() -> Self {
        Recent {
            any: AtomicBool::new(false),
            generations: Mutex::new(Generations {
                young: HashMap::new(),
                old: HashMap::new(),
            }),
        }
    }
}

impl<K: Eq + Hash, V: Clone, const SO_MANY: usize> Recent<K, V, SO_MANY> {
    /// What was noted last.
    pub(super) fn get<Q: Eq + Hash + ?Sized>(&self, of: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        let mut generations = self.generations();
        if let Some(value) = generations.young.get(of) {
            return Some(value.clone());
        }
        let (key, value) = generations.old.remove_entry(of)?;
        generations.insert(key, value.clone());
        Some(value)
    }

    /// Notes it, in place of what was noted before.
    pub(super) fn note(&self, of: K, value: V) {
        self.any.store(true, Ordering::Relaxed);
        self.generations().insert(of, value);
    }

    fn generations(&self) -> MutexGuard<'_, Generations<K, V, SO_MANY>> {
        self.generations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash, V, const SO_MANY: usize> Generations<K, V, SO_MANY> {
    fn insert(&mut self, of: K, value: V) {
        if self.young.len() >= SO_MANY && !self.young.contains_key(&of) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(of, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_known_while_it_goes_on_and_so_many_are_kept() {
        let recent = Recent::<u32, &str, 1_000>::default();
        assert_eq!(recent.get(&7), None);
        recent.note(7, "first");
        recent.note(7, "second");
        for of in 1_000..4_000 {
            recent.note(of, "other");
            if of % 100 == 0 {
                assert_eq!(recent.get(&7), Some("second"));
            }
        }
        assert_eq!(recent.get(&1_000), None, "it was quiet for longest");
        let generations = recent.generations();
        assert!(generations.young.len() + generations.old.len() <= 2_000);
    }
}
