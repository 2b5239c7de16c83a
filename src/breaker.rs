//! Circuit breakers: an upstream that keeps failing at a model is left alone for a while, and tried now and then.
//!
//! ```text
//! closed ── FAILURES in a row ──▶ open ── after the interval, one call ──▶ half-open ── an answer ──▶ closed
//!                                  ▲────────────────── a failure ───────────────┘
//! ```
//!
//! What counts: no connection, no head in time, and a 5xx. Refusals (any other head) are answers, and a stream that breaks
//! after its head says nothing. What one key meets again and again counts once until another call fails or one is answered:
//! what it sends may be what makes the upstream fail. No connection can be blamed on a key, so each of those counts.
//!
//! An answer closes it, if its call was sent after it opened. The wait for the next try is the interval, or what the
//! upstream's `Retry-After` says when that is longer. A try whose outcome never comes costs an interval and no more: there
//! is nothing to give back. When nobody else serves the model ([`Others::None`]), one call a second is let through.
//!
//! Beside that, an upstream that says when to come again (a `Retry-After` with a refusal or a failure) gets no call for the
//! model before, as long as another takes it. When none does it is asked all the same: what it says then is for the client.
//!
//! A model is forgotten once nothing was noted of it for `FORGOTTEN_AFTER`, whether it is asked for again or not.
//!
//! Pure: time is an argument, counted from any fixed moment.

use std::collections::BTreeMap;
use std::time::Duration;

/// Failures in a row that open it.
const FAILURES: u32 = 5;

/// How often a call is let through to an upstream that nobody stands in for.
const TRICKLE: Duration = Duration::from_secs(1);

/// An upstream is left alone for no longer, whatever its `Retry-After` says.
const LONGEST_REST: Duration = Duration::from_secs(300);

/// Models that failures are remembered of, for each upstream. Of more, the one that was quiet for longest is forgotten.
const MAX_MODELS: usize = 256;

/// After so long without trouble a model needs no memory.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(900);

/// How often it is looked for models to forget.
const SWEEP: Duration = Duration::from_secs(60);

/// Who makes a call: a key's id.
pub type Caller = u128;

/// What became of a call, as far as a breaker cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A head that is no 5xx.
    Answered,
    /// Such a head, with the wish to be left alone for so long.
    Busy(Duration),
    /// No connection came about, whoever called.
    Unreachable,
    /// No head in time, or a 5xx, for this caller.
    Failed {
        /// Who called.
        caller: Caller,
        /// What its `Retry-After` said.
        retry_after: Option<Duration>,
    },
}

/// Whether another upstream could take the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// One may.
    Some,
    /// There is none, or none that takes calls.
    None,
}

/// How a breaker stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Calls pass.
    #[default]
    Closed,
    /// One call is being tried, or the next one will be.
    HalfOpen,
    /// No call passes.
    Open,
}

impl State {
    /// Its name, in documents.
    pub const fn name(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::HalfOpen => "half_open",
            State::Open => "open",
        }
    }
}

/// The breaker of one model.
#[derive(Clone, Debug)]
struct Breaker {
    /// Failures in a row, as they count.
    failures: u32,
    /// Whose the last failure was; nobody's when no connection came about.
    last: Option<Caller>,
    /// When something was last noted that is no plain answer.
    troubled_at: Duration,
    /// Until when calls go elsewhere, if others take them.
    not_before: Duration,
    /// When it last opened or closed: what was sent before says nothing any more.
    since: Duration,
    open: Option<Rest>,
}

/// An open breaker.
#[derive(Clone, Copy, Debug)]
struct Rest {
    /// When the next call is tried.
    next: Duration,
    /// When one was last let through.
    tried: Duration,
    /// Whether one is being tried.
    trying: bool,
}

impl Rest {
    /// When the next call is let through.
    fn due(&self, others: Others) -> Duration {
        match others {
            Others::Some => self.next,
            Others::None => self.next.min(self.tried.saturating_add(TRICKLE)),
        }
    }
}

impl Breaker {
    /// When the next call is let through.
    fn due(&self, others: Others) -> Duration {
        let rested = self.open.map_or(Duration::ZERO, |rest| rest.due(others));
        match others {
            Others::Some => rested.max(self.not_before),
            Others::None => rested,
        }
    }

    fn state(&self, now: Duration) -> State {
        match self.open {
            None => State::Closed,
            Some(rest) if rest.trying || now >= rest.next => State::HalfOpen,
            Some(_) => State::Open,
        }
    }

    /// It wants to be left alone.
    fn leave_alone(&mut self, now: Duration, retry_after: Duration) {
        let until = now.saturating_add(retry_after.min(LONGEST_REST));
        self.not_before = self.not_before.max(until);
    }
}

/// The breakers of an upstream, one for each model that fails.
#[derive(Clone, Debug)]
pub struct Breakers {
    interval: Duration,
    models: BTreeMap<String, Breaker>,
    /// When it last answered, for whatever model; `None`: not since it is looked at.
    answered_at: Option<Duration>,
    /// Whether no connection came about, the last time that one was wanted.
    unreachable: bool,
    /// When it was last looked for models to forget.
    swept: Duration,
}

impl Breakers {
    /// Closed ones, which leave an upstream alone for so long.
    pub fn new(interval: Duration) -> Breakers {
        Breakers {
            interval,
            models: BTreeMap::new(),
            answered_at: None,
            unreachable: false,
            swept: Duration::ZERO,
        }
    }

    /// From here on an upstream is left alone for so long.
    pub fn set_interval(&mut self, interval: Duration) {
        self.interval = interval;
    }

    /// Forgets models of which nothing was noted for long.
    pub fn forget(&mut self, now: Duration) {
        if now < self.swept.saturating_add(SWEEP) {
            return;
        }
        self.swept = now;
        self.models.retain(|_, breaker| {
            let until = breaker.troubled_at.saturating_add(FORGOTTEN_AFTER);
            now < until.max(breaker.due(Others::Some))
        });
    }

    /// Models that something is remembered of; of none, nothing needs to be asked or noted but failures.
    pub fn remembered(&self) -> usize {
        self.models.len()
    }

    /// Whether a call for `model` would be let through.
    pub fn would_admit(&self, model: &str, now: Duration, others: Others) -> bool {
        self.wait(model, now, others).is_zero()
    }

    /// How long until a call for `model` would be let through.
    pub fn wait(&self, model: &str, now: Duration, others: Others) -> Duration {
        let due = self.models.get(model).map(|breaker| breaker.due(others));
        due.unwrap_or_default().saturating_sub(now)
    }

    /// Lets a call for `model` through, or not. One that is let through while it is open is the try of this interval.
    pub fn admit(&mut self, model: &str, now: Duration, others: Others) -> bool {
        if !self.would_admit(model, now, others) {
            return false;
        }
        if let Some(rest) = self.models.get_mut(model).and_then(|breaker| breaker.open.as_mut()) {
            rest.tried = now;
            rest.trying = true;
            rest.next = rest.next.max(now.saturating_add(self.interval));
        }
        true
    }

    /// Notes what became of a call that was sent at `sent`. Returns whether that opened or closed it.
    pub fn note(&mut self, model: &str, sent: Duration, now: Duration, verdict: Verdict) -> bool {
        self.unreachable = verdict == Verdict::Unreachable;
        if matches!(verdict, Verdict::Answered | Verdict::Busy(_)) {
            self.answered_at = Some(now);
        }
        match verdict {
            Verdict::Answered => self.answered(model, sent, now),
            Verdict::Busy(retry_after) => {
                let closes = self.answered(model, sent, now);
                if !retry_after.is_zero() {
                    let breaker = self.remember(model);
                    breaker.troubled_at = now;
                    breaker.leave_alone(now, retry_after);
                }
                closes
            }
            Verdict::Unreachable => self.failed(model, sent, now, None, None),
            Verdict::Failed { caller, retry_after } => self.failed(model, sent, now, Some(caller), retry_after),
        }
    }

    /// How the breaker of the model that stands worst does.
    pub fn state(&self, now: Duration) -> State {
        let worst = self.models.values().map(|breaker| breaker.state(now));
        worst.max().unwrap_or_default()
    }

    /// Whether nothing is to be had of it, for any model: a breaker is open, and there is no connection, or no answer to
    /// any call came since. One model that fails is not all of it, so where that is not known it is not down.
    pub fn is_down(&self, now: Duration) -> bool {
        let open = self.models.values().filter(|breaker| breaker.state(now) == State::Open);
        let opened = open.map(|breaker| breaker.since).min();
        let silent = |since| self.answered_at.is_none_or(|answered| answered < since);
        opened.is_some_and(|since| self.unreachable || silent(since))
    }

    fn answered(&mut self, model: &str, sent: Duration, now: Duration) -> bool {
        let Some(breaker) = self.models.get_mut(model).filter(|breaker| sent >= breaker.since) else {
            return false;
        };
        breaker.failures = 0;
        breaker.last = None;
        let closes = breaker.open.take().is_some();
        if closes {
            breaker.since = now;
        }
        closes
    }

    fn failed(
        &mut self,
        model: &str,
        sent: Duration,
        now: Duration,
        caller: Option<Caller>,
        retry_after: Option<Duration>,
    ) -> bool {
        let interval = self.interval;
        let breaker = self.remember(model);
        breaker.leave_alone(now, retry_after.unwrap_or_default());
        if sent < breaker.since {
            return false;
        }
        let until = now.saturating_add(interval.max(retry_after.unwrap_or_default().min(LONGEST_REST)));
        breaker.troubled_at = now;
        if let Some(rest) = &mut breaker.open {
            rest.next = rest.next.max(until);
            rest.trying = false;
            return false;
        }
        if caller.is_none() || breaker.last != caller {
            breaker.failures += 1;
        }
        breaker.last = caller;
        if breaker.failures < FAILURES {
            return false;
        }
        breaker.since = now;
        breaker.open = Some(Rest {
            next: until,
            tried: now,
            trying: false,
        });
        true
    }

    /// The breaker of a model, in the place of the quietest one if there are too many.
    fn remember(&mut self, model: &str) -> &mut Breaker {
        if self.models.len() >= MAX_MODELS && !self.models.contains_key(model) {
            let quietest = self.models.iter().min_by_key(|(_, breaker)| breaker.troubled_at);
            let quietest = quietest.map(|(name, _)| name.clone());
            quietest.and_then(|name| self.models.remove(&name));
        }
        self.models.entry(model.to_owned()).or_insert(Breaker {
            failures: 0,
            last: None,
            troubled_at: Duration::ZERO,
            not_before: Duration::ZERO,
            since: Duration::ZERO,
            open: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn failed_for(caller: Caller) -> Verdict {
        Verdict::Failed {
            caller,
            retry_after: None,
        }
    }

    /// Breakers of which that of `m` opened at this time.
    fn opened(now: Duration) -> Breakers {
        let mut breakers = Breakers::new(INTERVAL);
        for _ in 1..FAILURES {
            assert!(!breakers.note("m", now, now, Verdict::Unreachable));
        }
        assert!(breakers.note("m", now, now, Verdict::Unreachable));
        breakers
    }

    #[test]
    fn it_opens_after_failures_in_a_row_for_its_model_only() {
        let mut breakers = opened(at(0));
        assert!(!breakers.admit("m", at(9_999), Others::Some));
        assert!(breakers.admit("other", at(0), Others::Some));
        assert_eq!(breakers.state(at(1)), State::Open);
        let mut broken = Breakers::new(INTERVAL);
        for turn in 0..100 {
            let verdict = if turn % 4 == 0 {
                Verdict::Answered
            } else {
                Verdict::Unreachable
            };
            broken.note("m", at(turn), at(turn), verdict);
            assert!(broken.admit("m", at(turn), Others::Some), "an answer between them");
        }
    }

    #[test]
    fn the_failures_of_one_key_alone_do_not_open_it() {
        let mut breakers = Breakers::new(INTERVAL);
        for now in 0..1_000 {
            assert!(!breakers.note("m", at(now), at(now), failed_for(1)));
        }
        assert_eq!(breakers.state(at(1_000)), State::Closed);
        let mut openings = 0;
        for now in 1_000..1_000 + u64::from(FAILURES) {
            openings += u32::from(breakers.note("m", at(now), at(now), failed_for(u128::from(now % 2))));
        }
        assert_eq!((openings, breakers.state(at(1_005))), (1, State::Open));
    }

    #[test]
    fn one_call_an_interval_tries_it_and_an_answer_closes_it() {
        let mut breakers = opened(at(0));
        for (now, passes) in [(10_000, true), (10_001, false), (19_999, false), (20_000, true)] {
            assert_eq!(breakers.would_admit("m", at(now), Others::Some), passes, "{now}");
            assert_eq!(breakers.admit("m", at(now), Others::Some), passes, "{now}");
        }
        assert_eq!(breakers.state(at(20_001)), State::HalfOpen);
        assert!(!breakers.note("m", at(20_000), at(20_500), failed_for(1)));
        assert_eq!(breakers.state(at(20_501)), State::Open);
        assert!(!breakers.admit("m", at(30_499), Others::Some));
        assert!(breakers.admit("m", at(30_500), Others::Some));
        assert!(breakers.note("m", at(30_500), at(30_600), Verdict::Answered));
        assert_eq!(breakers.state(at(30_600)), State::Closed);
        assert!(breakers.admit("m", at(30_600), Others::Some) && breakers.admit("m", at(30_600), Others::Some));
    }

    #[test]
    fn it_is_closed_again_within_twice_the_interval_after_the_upstream_healed() {
        for heals in (0..40_000).step_by(777) {
            let mut breakers = opened(at(0));
            let mut closed = None;
            // A call every 10 ms, which takes 5 ms.
            for now in (0..80_000).step_by(10) {
                if breakers.admit("m", at(now), Others::Some) {
                    let verdict = if now >= heals {
                        Verdict::Answered
                    } else {
                        Verdict::Unreachable
                    };
                    breakers.note("m", at(now), at(now + 5), verdict);
                }
                if breakers.state(at(now + 5)) == State::Closed {
                    closed = Some(now + 5);
                    break;
                }
            }
            let closed = closed.expect("it closes");
            assert!(at(closed.saturating_sub(heals)) <= 2 * INTERVAL, "{heals}: {closed}");
        }
    }

    #[test]
    fn what_was_sent_before_it_changed_says_nothing_any_more() {
        let mut breakers = opened(at(5_000));
        assert!(!breakers.note("m", at(4_999), at(6_000), Verdict::Answered));
        assert!(!breakers.admit("m", at(6_000), Others::Some));
        assert!(breakers.admit("m", at(15_000), Others::Some));
        assert!(breakers.note("m", at(15_000), at(15_001), Verdict::Answered));
        for _ in 0..2 * FAILURES {
            assert!(!breakers.note("m", at(15_000), at(16_000), Verdict::Unreachable));
        }
        assert_eq!(breakers.state(at(16_000)), State::Closed);
    }

    #[test]
    fn retry_after_is_waited_for_within_bounds() {
        for (said, waits) in [(2, 10), (60, 60), (86_400, 300)] {
            let mut breakers = opened(at(0));
            assert!(breakers.admit("m", at(10_000), Others::Some));
            let verdict = Verdict::Failed {
                caller: 1,
                retry_after: Some(Duration::from_secs(said)),
            };
            breakers.note("m", at(10_000), at(10_000), verdict);
            let next = at(10_000 + waits * 1_000);
            assert!(!breakers.admit("m", next - at(1), Others::Some), "{said}");
            assert!(breakers.admit("m", next, Others::Some), "{said}");
        }
    }

    #[test]
    fn the_only_upstream_of_a_model_gets_one_call_a_second() {
        let mut breakers = opened(at(0));
        let passed = (0..9_500).filter(|now| breakers.admit("m", at(*now), Others::None));
        assert_eq!(
            passed.collect::<Vec<_>>(),
            (1..=9).map(|s| s * 1_000).collect::<Vec<_>>()
        );
    }

    #[test]
    fn only_so_many_models_are_remembered() {
        let mut breakers = opened(at(0));
        for now in 0..10_000 {
            breakers.note(&format!("model-{now}"), at(now + 1), at(now + 1), failed_for(1));
        }
        assert_eq!(breakers.remembered(), MAX_MODELS);
        assert!(
            breakers.admit("m", at(1), Others::Some),
            "the quietest one was forgotten"
        );
        let mut breakers = Breakers::new(INTERVAL);
        breakers.note("m", at(0), at(0), failed_for(1));
        breakers.note("m", at(1), at(1), Verdict::Answered);
        assert_eq!(breakers.remembered(), 1);
    }

    #[test]
    fn a_model_is_forgotten_by_time_alone() {
        let mut breakers = opened(at(0));
        breakers.forget(FORGOTTEN_AFTER - at(1));
        assert_eq!(breakers.state(FORGOTTEN_AFTER), State::HalfOpen);
        breakers.forget(FORGOTTEN_AFTER + SWEEP);
        assert_eq!(
            (breakers.remembered(), breakers.state(FORGOTTEN_AFTER + SWEEP)),
            (0, State::Closed)
        );
    }

    #[test]
    fn an_upstream_that_says_when_to_come_again_is_left_alone_until_then_while_others_take_calls() {
        let failed = |retry_after| Verdict::Failed {
            caller: 1,
            retry_after: Some(retry_after),
        };
        for (said, waits) in [(0, 0), (7, 7), (86_400, 300)] {
            let said = Duration::from_secs(said);
            for verdict in [Verdict::Busy(said), failed(said)] {
                let mut breakers = Breakers::new(INTERVAL);
                assert!(!breakers.note("m", at(0), at(500), verdict), "it opens nothing");
                let until = at(500) + Duration::from_secs(waits);
                assert_eq!(
                    breakers.wait("m", at(500), Others::Some),
                    until - at(500),
                    "{verdict:?}"
                );
                assert!(breakers.admit("m", until, Others::Some));
                assert!(breakers.admit("m", at(500), Others::None), "nobody else would");
                assert!(
                    breakers.admit("other", at(500), Others::Some),
                    "it was said of one model"
                );
                assert_eq!(breakers.state(at(500)), State::Closed);
            }
        }
    }

    #[test]
    fn it_is_down_when_nothing_is_to_be_had_of_it_and_not_for_one_model() {
        let mut breakers = Breakers::new(INTERVAL);
        let fail = |breakers: &mut Breakers, now: u64| {
            for caller in 0..u128::from(FAILURES) {
                breakers.note("m", at(now), at(now), failed_for(caller));
            }
        };
        assert!(!breakers.is_down(at(0)));
        breakers.note("other", at(0), at(0), Verdict::Answered);
        fail(&mut breakers, 1_000);
        assert!(breakers.is_down(at(1_000)), "nothing else is known of it");
        assert!(!breakers.is_down(at(11_000)), "the next call will be tried");
        assert!(breakers.admit("m", at(11_000), Others::Some));
        fail(&mut breakers, 11_000);
        assert!(breakers.is_down(at(11_000)));
        breakers.note("other", at(11_500), at(11_500), Verdict::Answered);
        assert_eq!(breakers.state(at(11_500)), State::Open);
        assert!(!breakers.is_down(at(11_500)), "it answers for another model");
        breakers.note("other", at(12_000), at(12_000), failed_for(1));
        assert!(!breakers.is_down(at(12_000)));
        breakers.note("other", at(12_500), at(12_500), Verdict::Unreachable);
        assert!(breakers.is_down(at(12_500)), "what cannot be reached, no model can");
        assert!(breakers.admit("m", at(21_000), Others::Some));
        breakers.note("m", at(21_000), at(21_000), Verdict::Answered);
        assert!(!breakers.is_down(at(21_000)));
    }

    #[test]
    fn a_refusal_that_says_when_to_come_again_closes_it_as_an_answer_does() {
        let mut breakers = opened(at(0));
        assert!(breakers.admit("m", at(10_000), Others::Some));
        assert!(breakers.note("m", at(10_000), at(10_000), Verdict::Busy(INTERVAL)));
        assert_eq!(breakers.state(at(10_000)), State::Closed);
        assert_eq!(breakers.wait("m", at(10_000), Others::Some), INTERVAL);
    }
}
