//! Counts over the last minute, out of counts since the start.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::exchange::Totals;

/// How far back is counted.
const SPAN: Duration = Duration::from_secs(60);

/// Samples nearer than this to the one before are not kept: whoever looks often does not make the others forget.
const APART: Duration = Duration::from_millis(500);

/// Calls that ended within the last minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastMinute {
    /// Over how much of it; less in the first one.
    pub seconds: u64,
    /// Calls that were settled or released.
    pub calls: u64,
    /// Calls that got no hold.
    pub refused: u64,
    /// Of the calls, those that the upstream refused, failed or broke off.
    pub failed: u64,
    /// Their tokens, in and out.
    pub tokens: u64,
}

/// Counts as they were, oldest first, each with the time since the start.
#[derive(Debug, Default)]
pub(super) struct Rates(VecDeque<(Duration, Totals)>);

impl Rates {
    /// Notes what the counts are now; gives what was added within the last minute.
    pub(super) fn note(&mut self, at: Duration, now: Totals) -> LastMinute {
        // The youngest that is a minute old is what the minute began with.
        while self.0.get(1).is_some_and(|(then, _)| at.saturating_sub(*then) >= SPAN) {
            self.0.pop_front();
        }
        let (since, then) = self.0.front().copied().unwrap_or_default();
        if self.0.back().is_none_or(|(last, _)| at.saturating_sub(*last) >= APART) {
            self.0.push_back((at, now));
        }
        LastMinute {
            seconds: at.saturating_sub(since).min(SPAN).as_secs(),
            calls: now.calls.saturating_sub(then.calls),
            refused: now.refused.saturating_sub(then.refused),
            failed: now.failed.saturating_sub(then.failed),
            tokens: now.tokens.saturating_sub(then.tokens),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(calls: u64) -> Totals {
        Totals {
            calls,
            tokens: 10 * calls,
            ..Totals::default()
        }
    }

    #[test]
    fn the_last_minute_is_what_came_since_a_minute_ago() {
        let (mut rates, second) = (Rates::default(), Duration::from_secs(1));
        let mut last = LastMinute::default();
        for passed in 0..=200_u32 {
            last = rates.note(second * passed, after(u64::from(passed)));
            let expected = u64::from(passed.min(60));
            assert_eq!(
                (last.seconds, last.calls, last.tokens),
                (expected, expected, 10 * expected)
            );
        }
        let quiet = rates.note(second * 400, after(200));
        assert_eq!((quiet.calls, last.refused, last.failed), (0, 0, 0));
    }

    #[test]
    fn what_is_kept_is_bounded_however_often_one_looks() {
        let mut rates = Rates::default();
        for looks in 0..100_000_u64 {
            rates.note(Duration::from_millis(looks), after(looks));
        }
        assert!(rates.0.len() <= 122, "{}", rates.0.len());
        let last = rates.note(Duration::from_millis(100_000), after(100_000));
        assert!((60_000..=60_500).contains(&last.calls), "{last:?}");
    }
}
