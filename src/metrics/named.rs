//! Values by name, for as many names as there is room: found without a lock, never taken away.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// How many places a name may come to lie in; when others have them all, it shares the place of the rest.
const PLACES: usize = 16;

/// What the rest is called.
pub(super) const REST: &str = "other";

/// A place for a name and its value.
type Slot<T> = OnceLock<(Box<str>, T)>;

/// Values by name.
pub(super) struct Named<T> {
    slots: Box<[Slot<T>]>,
    rest: T,
    hasher: RandomState,
}

impl<T> fmt::Debug for Named<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|(name, _)| name)).finish()
    }
}

impl<T: Default> Named<T> {
    /// Room for so many names, or a few less.
    pub(super) fn with_room(names: usize) -> Named<T> {
        Named {
            slots: (0..names).map(|_| OnceLock::new()).collect(),
            rest: T::default(),
            hasher: RandomState::new(),
        }
    }

    /// The value of a name; the first time it is made.
    pub(super) fn of(&self, name: &str) -> &T {
        if name == REST {
            return &self.rest;
        }
        let hash = usize::try_from(self.hasher.hash_one(name) >> 32).unwrap_or(0);
        for place in 0..PLACES.min(self.slots.len()) {
            let slot = &self.slots[(hash + place) % self.slots.len()];
            let (whose, value) = slot.get_or_init(|| (name.into(), T::default()));
            if **whose == *name {
                return value;
            }
        }
        &self.rest
    }
}

impl<T> Named<T> {
    /// The value of all names that have none of their own.
    pub(super) fn rest(&self) -> &T {
        &self.rest
    }

    /// All names that were asked for, and the rest at the end.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &T)> {
        let named = self.slots.iter().filter_map(OnceLock::get);
        let named = named.map(|(name, value)| (&**name, value));
        named.chain([(REST, &self.rest)])
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn a_name_keeps_its_value_and_what_finds_no_room_shares_one() {
        let named: Named<AtomicU64> = Named::with_room(64);
        let count = |n: u32| {
            named.of(&format!("m{n}")).fetch_add(1, Ordering::Relaxed);
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..1_000).for_each(count));
            }
        });
        let names: Vec<&str> = named.iter().map(|(name, _)| name).collect();
        assert!(names.len() <= 65, "{}", names.len());
        assert_eq!(
            names.iter().collect::<BTreeSet<_>>().len(),
            names.len(),
            "no name is there twice"
        );
        let counted: u64 = named.iter().map(|(_, value)| value.load(Ordering::Relaxed)).sum();
        assert_eq!(counted, 4_000);
        assert!(named.rest().load(Ordering::Relaxed) >= 4 * (1_000 - 64));
    }

    #[test]
    fn the_rest_is_no_name_of_its_own() {
        let named: Named<AtomicU64> = Named::with_room(8);
        named.of(REST).fetch_add(1, Ordering::Relaxed);
        assert_eq!(named.rest().load(Ordering::Relaxed), 1);
        assert_eq!(named.iter().count(), 1);
    }
}
