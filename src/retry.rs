//! Retries: which calls may be made once more, how long to wait before, and how many that may be.
//!
//! A call is repeated only where it cannot have been taken: no connection came about, or the upstream said so (429 and 503
//! with a `Retry-After`; 502 and 504 where the operator says that these are a proxy's that reached nobody). Anything else may
//! have been taken, and would be paid for twice.
//!
//! Pure: time is an argument.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::header::RETRY_AFTER;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;

/// How often a call is sent at most.
pub const MOST_ATTEMPTS: u32 = 3;

/// An extra call for so many calls: a fifth of them.
const CALLS_FOR_AN_EXTRA: u32 = 5;

/// Extra calls that may be saved up, and that there are at the start.
const MOST_SAVED: u32 = 10;

/// Before another upstream is tried.
const BEFORE_ANOTHER: Duration = Duration::from_millis(20);

/// Before the same one is tried, when it does not say how long to wait.
const BEFORE_THE_SAME: Duration = Duration::from_millis(200);

/// A client is kept waiting for the same upstream no longer; what would take longer is told to it.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What was sent and cannot have been taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotTaken {
    /// How long the upstream asks to wait.
    pub retry_after: Option<Duration>,
}

impl NotTaken {
    /// Whether an answer with this head says so; `gateway_errors`: whether 502 and 504 do.
    pub fn by(status: StatusCode, headers: &HeaderMap, gateway_errors: bool, now: Timestamp) -> Option<NotTaken> {
        let retry_after = retry_after(headers, now);
        let says_so = match status.as_u16() {
            429 | 503 => retry_after.is_some(),
            502 | 504 => gateway_errors,
            _ => false,
        };
        says_so.then_some(NotTaken { retry_after })
    }

    /// How long to wait before another upstream is tried; `chance` spreads those who wait at once.
    pub fn before_another(chance: u64) -> Duration {
        spread(BEFORE_ANOTHER, chance)
    }

    /// How long to wait before the same one is; `None`: too long.
    pub fn before_the_same(self, chance: u64) -> Option<Duration> {
        let wait = self.retry_after.unwrap_or_default().max(BEFORE_THE_SAME);
        (wait <= LONGEST_WAIT).then(|| spread(wait, chance))
    }
}

/// Up to half as long again.
fn spread(wait: Duration, chance: u64) -> Duration {
    let parts = u32::try_from(chance % 1024).unwrap_or_default();
    wait + wait / 2 * parts / 1024
}

/// `Retry-After`, in seconds or as a date; one that has passed is no wait.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(at.duration_since(now)).unwrap_or_default())
}

/// How many calls may be made beside those that clients make: a fifth of these, and a few to begin with.
#[derive(Debug)]
pub struct Budget(AtomicU32);

impl Default for Budget {
    fn default() -> Budget {
        Budget(AtomicU32::new(MOST_SAVED * CALLS_FOR_AN_EXTRA))
    }
}

impl Budget {
    /// A client's call.
    pub fn call(&self) {
        if self.0.load(Ordering::Relaxed) < MOST_SAVED * CALLS_FOR_AN_EXTRA {
            self.change(|saved| (saved < MOST_SAVED * CALLS_FOR_AN_EXTRA).then_some(saved + 1));
        }
    }

    /// Whether an extra call may be made; it counts as made then.
    pub fn extra(&self) -> bool {
        self.change(|saved| saved.checked_sub(CALLS_FOR_AN_EXTRA))
    }

    fn change(&self, change: impl FnMut(u32) -> Option<u32>) -> bool {
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(retry_after: Option<&str>) -> HeaderMap {
        let value = retry_after.map(|text| (RETRY_AFTER, text.parse().expect("a value")));
        value.into_iter().collect()
    }

    #[test]
    fn only_what_cannot_have_been_taken_is_sent_again() {
        for (status, retry_after, gateway_errors, expected) in [
            (429, Some("1"), false, true),
            (429, None, true, false),
            (503, Some("1"), false, true),
            (503, None, true, false),
            (502, Some("1"), false, false),
            (502, None, true, true),
            (504, None, true, true),
            (504, None, false, false),
            (500, Some("1"), true, false),
            (529, Some("1"), true, false),
            (400, Some("1"), true, false),
            (200, Some("1"), true, false),
        ] {
            let status = StatusCode::from_u16(status).expect("a status");
            let found = NotTaken::by(status, &headers(retry_after), gateway_errors, Timestamp::UNIX_EPOCH);
            assert_eq!(found.is_some(), expected, "{status} {retry_after:?} {gateway_errors}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2026-11-28T10:00:00Z".parse().expect("a time");
        for (text, seconds) in [
            ("7", Some(7)),
            (" 0 ", Some(0)),
            ("Sat, 28 Nov 2026 10:01:00 GMT", Some(60)),
            ("Sat, 28 Nov 2026 09:00:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
        ] {
            let found = retry_after(&headers(Some(text)), now);
            assert_eq!(found, seconds.map(Duration::from_secs), "{text}");
        }
    }

    #[test]
    fn a_wait_is_what_was_asked_for_up_to_half_as_long_again() {
        for (said, chance, waits) in [
            (None, 0, Some(200)),
            (None, 1023, Some(299)),
            (Some(2), 512, Some(2_500)),
            (Some(5), 0, Some(5_000)),
            (Some(6), 0, None),
        ] {
            let not_taken = NotTaken {
                retry_after: said.map(Duration::from_secs),
            };
            let wait = not_taken.before_the_same(chance).map(|wait| wait.as_millis());
            assert_eq!(wait, waits, "{said:?}");
        }
        assert_eq!(NotTaken::before_another(0), BEFORE_ANOTHER);
    }

    #[test]
    fn extra_calls_are_a_fifth_of_the_calls_and_a_few_to_begin_with() {
        let budget = Budget::default();
        let mut extra = 0;
        for _ in 0..1_000 {
            budget.call();
            extra += u32::from(budget.extra()) + u32::from(budget.extra());
        }
        // The first call finds all saved that may be.
        assert_eq!(extra, 999 / CALLS_FOR_AN_EXTRA + MOST_SAVED);
        for _ in 0..1_000_000 {
            budget.call();
        }
        let saved = (0..100).filter(|_| budget.extra()).count();
        assert_eq!(saved, 10);
    }
}
