//! Tokens that were no good key, counted by the address they came from.
//!
//! A good key is never asked how many bad ones came from beside it: an office has one address. So the count is looked at
//! when a look-up has failed, and says whether that is told as a 401 or, of a source that goes on and on, as a 429. What
//! a flood of keys that were made up could cost besides is look-ups in the database: those of a source that is over its
//! count wait for one another, and such sources take turns, one look-up at a time in all, which leaves the store's other
//! readers to everybody else.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::source::Source;
use crate::refusal::Refusal;
use crate::time::Stopwatch;

/// Tries in vain that a source has at once: Codex makes twelve in seven seconds of a key that was mistyped.
const BURST: u32 = 30;

/// How long it takes until it has another one: twenty a minute.
const EVERY: Duration = Duration::from_secs(3);

/// Sources that are kept apart: some 4 MB. Those beyond it share one count.
const MOST_SOURCES: usize = 50_000;

/// How long sources that were found to be within their count are not looked for again.
const SWEEP: Duration = Duration::from_secs(1);

/// Queues of sources that are over their count; a source has one of them.
const QUEUES: usize = 64;

/// Failed tries of everybody.
#[derive(Debug)]
pub(super) struct Failures {
    counts: Mutex<Counts>,
    clock: Stopwatch,
    /// The look-ups of a source, one after the other: however many there are, others wait for one of them only.
    queues: [Arc<Semaphore>; QUEUES],
    /// Which source has which queue, as nobody can foresee.
    hasher: RandomState,
    /// The look-up of all that are at the head of their queues.
    turn: Arc<Semaphore>,
}

/// A look-up in the database, of a source that has to wait for it.
#[derive(Debug)]
pub(super) struct Turn {
    _of_all: OwnedSemaphorePermit,
    _of_source: OwnedSemaphorePermit,
}

impl Default for Failures {
    fn default() -> Failures {
        Failures {
            counts: Mutex::default(),
            clock: Stopwatch::start(),
            queues: std::array::from_fn(|_| Arc::new(Semaphore::new(1))),
            hasher: RandomState::new(),
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Failures {
    /// Counts a try in vain, and says how it is told.
    pub(super) fn tell(&self, ip: IpAddr, refusal: Refusal) -> Refusal {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.fail(Source::of(ip), self.clock.elapsed()) {
            Ok(()) => refusal,
            Err(wait) => Refusal::TooManyFailures { wait },
        }
    }

    /// Before the database is asked about a key: at once, but for a source with too many failed tries, which waits for
    /// its turn.
    pub(super) async fn turn(&self, ip: IpAddr) -> Option<Turn> {
        let source = Source::of(ip);
        let over = {
            let counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            counts.wait(source, self.clock.elapsed()).is_some()
        };
        if !over {
            return None;
        }
        let _of_source = Arc::clone(self.queue(source)).acquire_owned().await.ok()?;
        let _of_all = Arc::clone(&self.turn).acquire_owned().await.ok()?;
        Some(Turn { _of_all, _of_source })
    }

    fn queue(&self, source: Source) -> &Arc<Semaphore> {
        let hash = self.hasher.hash_one(source);
        &self.queues[usize::try_from(hash % QUEUES as u64).unwrap_or(0)]
    }
}

/// For each source the time at which all its tries are given back (the generic cell rate algorithm): a pure function of
/// time.
#[derive(Debug, Default)]
struct Counts {
    sources: HashMap<Source, Duration>,
    /// Of the sources for which there was no room.
    others: Duration,
    swept: Option<Duration>,
}

impl Counts {
    /// A try in vain at a time; or how long to wait until one is allowed, and then it is not counted.
    fn fail(&mut self, source: Source, now: Duration) -> Result<(), Duration> {
        if let Some(wait) = self.wait(source, now) {
            return Err(wait);
        }
        let whole = self.slot(source, now);
        *whole = (*whole).max(now) + EVERY;
        Ok(())
    }

    /// How long a source has to wait, if it has.
    fn wait(&self, source: Source, now: Duration) -> Option<Duration> {
        let full = self.sources.len() >= MOST_SOURCES;
        let unknown = if full { &self.others } else { &Duration::ZERO };
        let whole = self.sources.get(&source).unwrap_or(unknown);
        let wait = whole.saturating_sub(EVERY * (BURST - 1)).saturating_sub(now);
        (!wait.is_zero()).then_some(wait)
    }

    fn slot(&mut self, source: Source, now: Duration) -> &mut Duration {
        let full = self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&source);
        if full && self.swept.is_none_or(|swept| now >= swept + SWEEP) {
            self.sources.retain(|_, whole| *whole > now);
            self.swept = Some(now);
        }
        match self.sources.len() >= MOST_SOURCES && !self.sources.contains_key(&source) {
            true => &mut self.others,
            false => self.sources.entry(source).or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn source(number: u32) -> Source {
        Source::of(Ipv4Addr::from(number).into())
    }

    #[test]
    fn codex_with_a_key_that_was_mistyped_is_told_so_each_time() {
        let mut counts = Counts::default();
        for run in 0..2_u32 {
            for nth in 0..12 {
                let at = Duration::from_secs(20) * run + Duration::from_millis(583) * nth;
                assert_eq!(counts.fail(source(1), at), Ok(()), "{run} {nth}");
            }
        }
    }

    #[test]
    fn a_source_that_goes_on_waits_exactly_so_long_and_others_do_not() {
        let (mut counts, at) = (Counts::default(), Duration::from_secs(100));
        for _ in 0..BURST {
            assert_eq!(counts.fail(source(1), at), Ok(()));
        }
        assert_eq!(counts.fail(source(1), at), Err(EVERY));
        let nearly = at + EVERY - Duration::from_nanos(1);
        assert_eq!(counts.fail(source(1), nearly), Err(Duration::from_nanos(1)));
        assert_eq!(counts.fail(source(2), at), Ok(()));
        assert_eq!(counts.fail(source(1), at + EVERY), Ok(()));
        assert_eq!(counts.fail(source(1), at + EVERY), Err(EVERY));
    }

    #[test]
    fn so_many_sources_are_kept_and_the_others_share_one_count() {
        let (mut counts, at) = (Counts::default(), Duration::from_secs(100));
        let most = u32::try_from(MOST_SOURCES).expect("it is small");
        for number in 0..most {
            assert_eq!(counts.fail(source(number), at), Ok(()));
        }
        for number in 0..BURST {
            assert_eq!(counts.fail(source(most + number), at), Ok(()));
        }
        assert_eq!(counts.fail(source(most + BURST), at), Err(EVERY), "they are one");
        assert_eq!(counts.fail(source(7), at), Ok(()), "the others go on");
        assert_eq!(counts.sources.len(), MOST_SOURCES);
        let later = at + EVERY * BURST;
        assert_eq!(counts.fail(source(most + 7), later), Ok(()));
        assert_eq!(counts.sources.len(), 1, "who has all tries again is not kept");
    }

    #[tokio::test]
    async fn only_a_source_with_too_many_tries_waits_for_its_look_ups() {
        let (failures, bad) = (Failures::default(), IpAddr::from([192, 0, 2, 1]));
        assert!(failures.turn(bad).await.is_none());
        for _ in 0..=BURST {
            failures.tell(bad, Refusal::BadKey);
        }
        let turn = failures.turn(bad).await.expect("its turn");
        assert!(
            failures.turn(IpAddr::from([192, 0, 2, 2])).await.is_none(),
            "others need none"
        );
        let mut next = std::pin::pin!(failures.turn(bad));
        assert!(futures_util::poll!(&mut next).is_pending());
        drop(turn);
        assert!(next.await.is_some());
    }

    #[tokio::test]
    async fn a_source_waits_for_one_look_up_of_each_other_however_many_that_has() {
        let failures = Failures::default();
        let noisy = (1..=QUEUES).map(|number| IpAddr::from([192, 0, 2, u8::try_from(number).expect("small")]));
        let [flood, office] = {
            let mut apart = noisy.clone();
            let first = apart.next().expect("one");
            let other =
                apart.find(|ip| !Arc::ptr_eq(failures.queue(Source::of(*ip)), failures.queue(Source::of(first))));
            [first, other.expect("another queue")]
        };
        for ip in [flood, office] {
            for _ in 0..=BURST {
                failures.tell(ip, Refusal::BadKey);
            }
        }
        let first = failures.turn(flood).await;
        let mut flooding: Vec<_> = (0..100).map(|_| Box::pin(failures.turn(flood))).collect();
        for waits in &mut flooding {
            assert!(futures_util::poll!(waits).is_pending());
        }
        let mut next = std::pin::pin!(failures.turn(office));
        assert!(futures_util::poll!(&mut next).is_pending(), "one look-up at a time");
        drop(first);
        assert!(
            futures_util::poll!(&mut flooding[0]).is_pending(),
            "the office was first"
        );
        assert!(next.await.is_some());
    }

    proptest! {
        #[test]
        fn in_no_minute_more_are_told_than_a_burst_and_what_came_back(
            steps in prop::collection::vec((0..3_u32, 0..5_000_u64), 1..400)
        ) {
            let (mut counts, mut now) = (Counts::default(), Duration::from_secs(1_000));
            let mut told: Vec<(u32, Duration)> = Vec::new();
            for (number, millis) in steps {
                now += Duration::from_millis(millis);
                match counts.fail(source(number), now) {
                    Ok(()) => told.push((number, now)),
                    Err(wait) => {
                        let early = counts.wait(source(number), now + wait - Duration::from_nanos(1));
                        prop_assert_eq!(early, Some(Duration::from_nanos(1)));
                        prop_assert_eq!(counts.wait(source(number), now + wait), None);
                    }
                }
                let minute = now - Duration::from_secs(60);
                let recent = told.iter().filter(|(of, at)| *of == number && *at > minute).count();
                prop_assert!(recent <= 30 + 20, "{} in a minute", recent);
            }
        }
    }
}
