//! What earlier answers left encrypted: who made it can be told by a digest of it.

use std::hash::{DefaultHasher, Hash, Hasher};

/// So much of its end is digested, in bytes: there such texts have their authentication, which no two share.
const DIGESTED: usize = 64;

/// How many of one call are kept, its last ones.
const MOST: usize = 16;

/// An `encrypted_content`, by a digest of its end: enough to know it again in this process, and nothing to keep for longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Encrypted(u64);

impl Encrypted {
    /// Of a text; an empty one is none.
    pub fn of(text: &str) -> Option<Encrypted> {
        let mut hasher = DefaultHasher::new();
        text.len().hash(&mut hasher);
        text.as_bytes()[text.len().saturating_sub(DIGESTED)..].hash(&mut hasher);
        (!text.is_empty()).then(|| Encrypted(hasher.finish()))
    }
}

/// What a call holds of it, the last ones of it: only the account that made them can read them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllEncrypted(Vec<Encrypted>);

impl AllEncrypted {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The last one first.
    pub fn newest_first(&self) -> impl Iterator<Item = Encrypted> {
        self.0.iter().rev().copied()
    }

    /// One that comes behind the others.
    pub(super) fn push(&mut self, text: &str) {
        let Some(one) = Encrypted::of(text) else { return };
        if self.0.len() == MOST {
            self.0.remove(0);
        }
        self.0.push(one);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_known_by_its_end_and_its_length_and_nothing_is_none() {
        let long = |first: &str, last: &str| Encrypted::of(&format!("{first}{}{last}", "A".repeat(100)));
        assert_eq!(long("one", "=="), long("one", "=="));
        assert_ne!(long("one", "=="), long("one", "B="));
        assert_ne!(long("one", "=="), long("three", "=="));
        assert_eq!(Encrypted::of(""), None);
        // Not at the boundary of a character.
        assert!(Encrypted::of(&"é".repeat(100)).is_some() && Encrypted::of(&format!("a{}", "é".repeat(100))).is_some());
    }

    #[test]
    fn of_too_many_the_last_ones_are_kept() {
        let mut all = AllEncrypted::default();
        assert!(all.is_empty());
        for number in 0..3 * MOST {
            all.push(&number.to_string());
            all.push("");
        }
        let kept: Vec<_> = all.newest_first().collect();
        let expected = (2 * MOST..3 * MOST).rev();
        let expected: Vec<_> = expected
            .filter_map(|number| Encrypted::of(&number.to_string()))
            .collect();
        assert_eq!(kept, expected);
    }
}
