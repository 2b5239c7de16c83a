//! What every call looks up, kept in memory until the database changes under it: keys and prices.
//!
//! An answer is kept with the generation that was current *before* it was read, and counts only while that generation
//! lasts; so an answer read before a change can never be taken for one read after it.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use moka::sync::Cache;

use super::keys::Key;
use super::prices::PriceRow;
use crate::key::KeyHash;
use crate::pricing::ListName;

/// Keys kept, unknown ones too: 100,000 are about 50 MB, and a flood of unknown keys cannot take more.
const MAX_KEYS: u64 = 100_000;

/// Models kept with their prices; ten times the catalogue.
const MAX_MODELS: u64 = 5_000;

/// An answer and the generation it belongs to.
type Kept<T> = (u64, T);

/// The caches, and whether they may be used.
pub(super) struct Caches {
    generation: AtomicU64,
    watched: AtomicBool,
    keys: Cache<KeyHash, Kept<Option<Arc<Key>>>>,
    prices: Cache<(ListName, String), Kept<Arc<[PriceRow]>>>,
}

impl Caches {
    /// Empty caches that keep nothing until [`Caches::watch`].
    pub(super) fn new() -> Caches {
        Caches {
            generation: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            keys: Cache::new(MAX_KEYS),
            prices: Cache::new(MAX_MODELS),
        }
    }

    /// From now on somebody watches for changes, so answers may be kept.
    pub(super) fn watch(&self) {
        self.forget();
        self.watched.store(true, Ordering::SeqCst);
    }

    /// Nobody watches any more.
    pub(super) fn unwatch(&self) {
        self.watched.store(false, Ordering::SeqCst);
        self.forget();
    }

    /// The database changed.
    pub(super) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Another number whenever the database changed under what is kept.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// A key, as far as it is kept. Unknown ones are kept, too.
    pub(super) fn known_key(&self, hash: &KeyHash) -> Option<Option<Arc<Key>>> {
        self.known(&self.keys, hash)
    }

    /// A key, kept or read.
    pub(super) fn key<E>(
        &self,
        hash: &KeyHash,
        read: impl FnOnce() -> Result<Option<Key>, E>,
    ) -> Result<Option<Arc<Key>>, E> {
        self.kept(&self.keys, *hash, || Ok(read()?.map(Arc::new)))
    }

    /// A model's prices, as far as they are kept.
    pub(super) fn known_prices(&self, list: &ListName, model: &str) -> Option<Arc<[PriceRow]>> {
        self.known(&self.prices, &(list.clone(), model.to_owned()))
    }

    /// A model's prices, kept or read.
    pub(super) fn prices<E>(
        &self,
        list: &ListName,
        model: &str,
        read: impl FnOnce() -> Result<Vec<PriceRow>, E>,
    ) -> Result<Arc<[PriceRow]>, E> {
        self.kept(&self.prices, (list.clone(), model.to_owned()), || Ok(read()?.into()))
    }

    fn known<K, T>(&self, cache: &Cache<K, Kept<T>>, key: &K) -> Option<T>
    where
        K: Eq + Hash + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
    {
        if !self.watched.load(Ordering::SeqCst) {
            return None;
        }
        let generation = self.generation.load(Ordering::SeqCst);
        let (of, value) = cache.get(key)?;
        (of == generation).then_some(value)
    }

    fn kept<K, T, E>(&self, cache: &Cache<K, Kept<T>>, key: K, read: impl FnOnce() -> Result<T, E>) -> Result<T, E>
    where
        K: Eq + Hash + Send + Sync + 'static,
        T: Clone + Send + Sync + 'static,
    {
        let generation = self.generation.load(Ordering::SeqCst);
        if let Some(value) = self.known(cache, &key) {
            return Ok(value);
        }
        let value = read()?;
        if self.watched.load(Ordering::SeqCst) {
            cache.insert(key, (generation, value.clone()));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(caches: &Caches, read: impl FnOnce() -> Option<Key>) -> Option<Arc<Key>> {
        let answer: Result<_, ()> = caches.key(&KeyHash([1; 32]), || Ok(read()));
        answer.expect("reading does not fail")
    }

    #[test]
    fn an_answer_is_read_once_until_the_database_changes() {
        let caches = Caches::new();
        caches.watch();
        let mut reads = 0;
        for round in 0..3 {
            for _ in 0..5 {
                look(&caches, || {
                    reads += 1;
                    None
                });
            }
            assert_eq!(reads, round + 1);
            caches.forget();
        }
    }

    #[test]
    fn an_answer_read_before_a_change_is_not_kept_after_it() {
        let caches = Caches::new();
        caches.watch();
        look(&caches, || {
            caches.forget();
            None
        });
        let mut read_again = false;
        look(&caches, || {
            read_again = true;
            None
        });
        assert!(read_again);
    }

    #[test]
    fn nothing_is_kept_while_nobody_watches() {
        let caches = Caches::new();
        let mut reads = 0;
        for _ in 0..3 {
            look(&caches, || {
                reads += 1;
                None
            });
        }
        assert_eq!(reads, 3);
    }
}
