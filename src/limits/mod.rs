//! Rate limits: requests and tokens a minute, and calls at once, of a key, of a user and of a model.
//!
//! ```text
//! settings, columns ─▶ Rates, of each Subject that a call is counted for: key, user, model
//!                        │
//! Registry::take         ▼      all limits of a call at once, or none of them
//!    requests ── Bucket   1                                     stays taken
//!    tokens   ── Bucket   an estimate                           Registry::settle: what was used instead
//!    calls    ── a count  1                                     Registry::end: given back
//! ```
//!
//! A limit of `n` a minute is a `bucket::Bucket` that holds `n` and is filled evenly, by `n` a minute. So its
//! burst is `n`, too: who was quiet for a minute may do a minute's worth at once, and in any 60 seconds no more than
//! `2n` are admitted. (Tokens are admitted as far as they are known: what a call used beyond its estimate is taken when
//! it is settled, may empty the bucket below nothing, and is waited for by those who come after.)
//!
//! All of it is a function of time, which is an argument; nothing here reads a clock.

mod bucket;
mod registry;

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;

use crate::bilingual;
use crate::language::Bilingual;

pub use registry::{Asked, Need, Registry, Subject, Taken};

/// A limit: so many and no more, from 1 to [`AtMost::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct AtMost(NonZeroU32);

impl AtMost {
    /// The largest limit.
    pub const MAX: u32 = 1_000_000_000;

    /// A limit of `count`, if there is such a one.
    pub fn new(count: u32) -> Option<AtMost> {
        NonZeroU32::new(count)
            .filter(|count| count.get() <= AtMost::MAX)
            .map(AtMost)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for AtMost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for AtMost {
    type Err = Bilingual;

    fn from_str(text: &str) -> Result<AtMost, Bilingual> {
        let (count, most) = (text.parse().ok().and_then(AtMost::new), AtMost::MAX);
        count.ok_or_else(|| bilingual!(en: "write a whole number from 1 to {most}", zh: "请写 1 到 {most} 的整数"))
    }
}

/// The limits of one key, user or model; `None`: no limit, or not one of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rates {
    /// Requests a minute.
    pub rpm: Option<AtMost>,
    /// Tokens a minute, input and output.
    pub tpm: Option<AtMost>,
    /// Calls at once.
    pub concurrency: Option<AtMost>,
}

impl Rates {
    /// Its own limits, and those of `default` where it has none.
    pub fn or(self, default: Rates) -> Rates {
        Rates {
            rpm: self.rpm.or(default.rpm),
            tpm: self.tpm.or(default.tpm),
            concurrency: self.concurrency.or(default.concurrency),
        }
    }

    /// Whether there is no limit.
    pub fn is_none(&self) -> bool {
        *self == Rates::default()
    }

    /// Each limit, with the name of its setting.
    pub fn named(self) -> [(&'static str, Option<AtMost>); 3] {
        [("rpm", self.rpm), ("tpm", self.tpm), ("concurrency", self.concurrency)]
    }
}

/// What to change of limits; what is `None` stays, `Some(None)` takes a limit away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RatesChange {
    /// Requests a minute.
    pub rpm: Option<Option<AtMost>>,
    /// Tokens a minute.
    pub tpm: Option<Option<AtMost>>,
    /// Calls at once.
    pub concurrency: Option<Option<AtMost>>,
}

impl RatesChange {
    /// What `before` becomes.
    pub fn of(self, before: Rates) -> Rates {
        Rates {
            rpm: self.rpm.unwrap_or(before.rpm),
            tpm: self.tpm.unwrap_or(before.tpm),
            concurrency: self.concurrency.unwrap_or(before.concurrency),
        }
    }
}

/// Whose limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The key's, with those that it was rotated from and to.
    Key,
    /// The user's: all keys together.
    User,
    /// The model's: everybody together.
    Model,
}

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Requests a minute.
    Requests,
    /// Tokens a minute.
    Tokens,
    /// Calls at once.
    Calls,
}

/// One limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    /// Whose.
    pub whose: Whose,
    /// Of what.
    pub what: What,
    /// How many.
    pub limit: AtMost,
}

/// Why a call is not admitted now. It has taken nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exceeded {
    /// The limit; of several, the one that has to be waited for longest.
    pub of: Limited,
    /// What helps.
    pub wait: Wait,
}

impl Limited {
    /// Its name for programs: `key_rpm`, `user_tpm`, `model_concurrency`.
    pub const fn name(&self) -> &'static str {
        match (self.whose, self.what) {
            (Whose::Key, What::Requests) => "key_rpm",
            (Whose::Key, What::Tokens) => "key_tpm",
            (Whose::Key, What::Calls) => "key_concurrency",
            (Whose::User, What::Requests) => "user_rpm",
            (Whose::User, What::Tokens) => "user_tpm",
            (Whose::User, What::Calls) => "user_concurrency",
            (Whose::Model, What::Requests) => "model_rpm",
            (Whose::Model, What::Tokens) => "model_tpm",
            (Whose::Model, What::Calls) => "model_concurrency",
        }
    }
}

/// When a call that exceeds a limit is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// After so many whole seconds, if nobody else comes first; not after one less. Where running calls have to end
    /// first nobody can know, and it is [`CALLS_RETRY`].
    After(Duration),
    /// Never: it needs more tokens than the limit gives in a minute.
    Never {
        /// How many.
        needed: u64,
    },
}

/// Until a running call has ended, perhaps; Codex waits that long at most five times.
pub const CALLS_RETRY: Duration = Duration::from_secs(5);

/// Why a call is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// It exceeds a limit.
    Exceeded(Exceeded),
    /// More keys, users and models are counted at this moment than there is room for.
    Full,
}

/// What is left of the limits a minute of a call, after it was admitted or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The tightest limit of requests, if there is one.
    pub requests: Option<Level>,
    /// The tightest limit of tokens, if there is one.
    pub tokens: Option<Level>,
}

/// What is left of one limit a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// The limit.
    pub limit: u32,
    /// How many may be taken at once.
    pub remaining: u32,
    /// Until as many as the limit may be taken.
    pub reset: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_whole_number_of_at_least_one() {
        let limit = |text: &str| text.parse::<AtMost>().map(AtMost::get);
        assert_eq!(limit("1"), Ok(1));
        assert_eq!(limit("1000000000"), Ok(AtMost::MAX));
        for wrong in [
            "0",
            "-1",
            "1.5",
            "",
            "1000000001",
            "99999999999999999999",
            "1e3",
            "none",
        ] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_set_is_as_the_default_says_and_what_is_not_named_stays() {
        let limit = |count| AtMost::new(count).expect("a limit");
        let own = Rates {
            rpm: Some(limit(1)),
            ..Rates::default()
        };
        let default = Rates {
            rpm: Some(limit(5)),
            tpm: Some(limit(7)),
            concurrency: None,
        };
        let both = own.or(default);
        assert_eq!((both.rpm, both.tpm, both.concurrency), (own.rpm, default.tpm, None));
        let change = RatesChange {
            rpm: Some(None),
            concurrency: Some(Some(limit(3))),
            ..RatesChange::default()
        };
        let after = change.of(both);
        assert_eq!((after.rpm, after.tpm), (None, default.tpm));
        assert_eq!(after.concurrency, Some(limit(3)));
    }
}
