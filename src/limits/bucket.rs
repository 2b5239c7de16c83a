//! A limit a minute as a pure function of time, in whole numbers.

use super::AtMost;

/// Microseconds in a minute. A bucket counts in parts of so many to one, so that a limit of `n` a minute gives back
/// exactly `n` parts in each microsecond, and nothing is ever rounded.
const PARTS: u64 = 60_000_000;

/// More than is taken at once, so that sums of parts do not overflow.
const MOST: u64 = 100_000_000_000;

/// What was taken of a limit and has not come back, as of a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    /// In parts; more than the limit when more was used than anybody knew beforehand.
    taken: u64,
    /// In microseconds of the clock that all times here are of.
    at: u64,
    /// By which it comes back; zero before the first use.
    limit: u32,
    /// All parts that came back by themselves so far, or would have, had so many been taken: by the limit of each moment.
    /// It wraps around; with the largest limit a call would have to last five hours to be misled by that.
    came_back: u64,
}

impl Bucket {
    /// As it is at a time, for a limit that counts from then on. A time that lies back changes nothing.
    pub(super) fn at(self, now: u64, limit: AtMost) -> Bucket {
        Bucket {
            limit: limit.get(),
            ..self.later(now)
        }
    }

    /// As it is at a time.
    pub(super) fn later(self, now: u64) -> Bucket {
        let (time, limit) = (now.saturating_sub(self.at), u64::from(self.limit));
        Bucket {
            taken: self.taken.saturating_sub(time.saturating_mul(limit)),
            at: self.at.max(now),
            limit: self.limit,
            came_back: self.came_back.wrapping_add(time.wrapping_mul(limit)),
        }
    }

    /// Microseconds until `count` may be taken; 0: now. More than the limit may never be.
    pub(super) fn wait(&self, count: u64) -> u64 {
        let over = self.taken.saturating_add(parts(count)).saturating_sub(self.holds());
        over.div_ceil(u64::from(self.limit).max(1))
    }

    pub(super) fn take(&mut self, count: u64) {
        self.taken = self.taken.saturating_add(parts(count));
    }

    /// What tells, when something is given back, how much of it has come back by itself since this moment.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.came_back)
    }

    /// Gives back what was taken too much, `since` then. What has come back by itself meanwhile, by whatever limits there
    /// were, is not given back once more: else calls that take long would put aside, for one moment, what they were admitted
    /// with in many minutes.
    ///
    /// All that is given back after a time was in the bucket from that time on, so that the bucket is as if it had
    /// never been taken.
    pub(super) fn give_back(&mut self, taken: u64, too_much: u64, since: Mark) {
        let back = self.came_back.wrapping_sub(since.0);
        let left = parts(taken).saturating_sub(back);
        self.taken = self.taken.saturating_sub(left.min(parts(too_much)));
    }

    /// How many may be taken now.
    pub(super) fn remaining(&self) -> u32 {
        let whole = self.holds().saturating_sub(self.taken) / PARTS;
        u32::try_from(whole).unwrap_or(self.limit)
    }

    /// Microseconds until nothing is taken.
    pub(super) fn reset(&self) -> u64 {
        self.taken.div_ceil(u64::from(self.limit).max(1))
    }

    /// Whether nothing is taken at a time, so that nothing has to be remembered.
    pub(super) fn is_full(self, now: u64) -> bool {
        self.later(now).taken == 0
    }

    fn holds(&self) -> u64 {
        parts(u64::from(self.limit))
    }
}

/// A moment in the life of a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark(u64);

fn parts(count: u64) -> u64 {
    count.min(MOST) * PARTS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;
    const MINUTE: u64 = 60 * SECOND;

    fn limit(count: u32) -> AtMost {
        AtMost::new(count).expect("a limit")
    }

    #[test]
    fn a_minutes_worth_may_be_taken_at_once_and_comes_back_evenly() {
        let mut bucket = Bucket::default().at(5, limit(60));
        bucket.take(60);
        assert_eq!((bucket.remaining(), bucket.reset()), (0, MINUTE));
        assert_eq!((bucket.wait(1), bucket.wait(60)), (SECOND, MINUTE));
        let later = bucket.at(5 + 10 * SECOND, limit(60));
        assert_eq!((later.remaining(), later.wait(10), later.wait(11)), (10, 0, SECOND));
        assert!(!bucket.is_full(4 + MINUTE) && bucket.is_full(5 + MINUTE));
        assert_eq!(bucket.at(0, limit(60)), bucket, "a clock that steps back gives nothing");
    }

    #[test]
    fn what_was_used_beyond_what_was_known_is_waited_for() {
        let mut bucket = Bucket::default().at(0, limit(100));
        bucket.take(10);
        bucket.take(290);
        assert_eq!(bucket.remaining(), 0);
        assert_eq!(bucket.wait(1), MINUTE * 201 / 100);
    }

    #[test]
    fn a_changed_limit_counts_at_once() {
        let mut bucket = Bucket::default().at(0, limit(10));
        bucket.take(10);
        assert_eq!(bucket.at(0, limit(20)).remaining(), 10);
        let lower = bucket.at(0, limit(5));
        assert_eq!((lower.remaining(), lower.wait(1)), (0, 6 * MINUTE / 5));
    }

    #[test]
    fn what_has_come_back_by_itself_is_not_given_back_once_more() {
        let mut bucket = Bucket::default().at(0, limit(100));
        let first = bucket.mark();
        bucket.take(100);
        bucket = bucket.at(MINUTE, limit(100));
        let second = bucket.mark();
        bucket.take(100);
        let mut half = bucket;
        bucket.give_back(100, 100, first);
        assert_eq!(bucket.remaining(), 0, "of the first hundred nothing is left to give");
        half = half.at(MINUTE + MINUTE / 2, limit(100));
        half.give_back(100, 100, second);
        assert_eq!(half.remaining(), 100, "of the second, the half that has not come back");
    }

    #[test]
    fn a_limit_that_changes_while_a_call_runs_gives_nothing_back_twice() {
        let mut bucket = Bucket::default().at(0, limit(100));
        let first = bucket.mark();
        bucket.take(100);
        // All of it has come back when the limit is lowered.
        bucket = bucket.at(MINUTE, limit(10));
        bucket.take(10);
        bucket = bucket.at(MINUTE, limit(10));
        bucket.give_back(100, 100, first);
        assert_eq!(bucket.remaining(), 0, "the ten were taken after it");
    }

    #[test]
    fn the_largest_numbers_do_not_overflow() {
        let most = limit(AtMost::MAX);
        let mut bucket = Bucket::default().at(u64::MAX, most);
        for _ in 0..5 {
            bucket.take(u64::MAX);
        }
        assert!(bucket.wait(u64::MAX) > 0 && bucket.remaining() == 0);
        bucket.give_back(u64::MAX, u64::MAX, bucket.mark());
        assert!(bucket.reset() > 0);
    }

    /// Somebody comes after a while, and wants so many; the call takes a while, and uses so many.
    type Visit = (u64, u64, u64, u64);

    fn visits() -> impl Strategy<Value = Vec<Visit>> {
        let pause = prop_oneof![0..200_000_u64, 0..3 * SECOND, 0..20 * SECOND];
        let lasts = prop_oneof![0..SECOND, MINUTE..3 * MINUTE];
        prop::collection::vec((pause, 1..40_u64, lasts, prop_oneof![Just(0), 0..60_u64]), 1..200)
    }

    /// Plays visits in simulated time; gives when each was admitted, what it took for good, and what it used beyond it.
    fn play(visits: &[Visit], most: AtMost) -> Vec<(u64, u64, u64)> {
        let (mut bucket, mut now, mut admitted) = (Bucket::default(), 0, Vec::new());
        let mut marks = Vec::new();
        let mut running: Vec<(u64, usize, u64, u64)> = Vec::new();
        let settle = |bucket: &mut Bucket,
                      running: &mut Vec<(u64, usize, u64, u64)>,
                      until: u64,
                      (admitted, marks): (&mut Vec<(u64, u64, u64)>, &[Mark])| {
            running.sort_unstable();
            while running.first().is_some_and(|(ends, ..)| *ends <= until) {
                let (ends, nth, taken, used) = running.remove(0);
                *bucket = bucket.at(ends, most);
                let before = bucket.taken;
                if used > taken {
                    bucket.take(used - taken);
                    admitted[nth].2 = used - taken;
                } else {
                    bucket.give_back(taken, taken - used, marks[nth]);
                }
                // In whole ones, rounded down: what was given back is at least so much.
                admitted[nth].1 -= before.saturating_sub(bucket.taken) / PARTS;
            }
        };
        for (pause, wants, lasts, used) in visits {
            now += pause;
            settle(&mut bucket, &mut running, now, (&mut admitted, &marks));
            bucket = bucket.at(now, most);
            if *wants <= u64::from(most.get()) && bucket.wait(*wants) == 0 {
                marks.push(bucket.mark());
                bucket.take(*wants);
                running.push((now + lasts, admitted.len(), *wants, *used));
                admitted.push((now, *wants, 0));
            }
        }
        settle(&mut bucket, &mut running, u64::MAX, (&mut admitted, &marks));
        admitted
    }

    proptest! {
        /// In any 60 seconds: at most the limit and the burst, which is the limit; and what was used beyond estimates.
        #[test]
        fn no_minute_admits_more_than_limit_and_burst(visits in visits(), most in 10..60_u32) {
            let admitted = play(&visits, limit(most));
            for (start, ..) in &admitted {
                let within = admitted.iter().filter(|(at, ..)| (*start..start + MINUTE).contains(at));
                let (count, taken) = within.fold((0, 0), |(count, sum), (_, taken, _)| (count + 1, sum + taken));
                // Each of them was rounded up by less than one.
                prop_assert!(taken <= 2 * u64::from(most) + count, "{taken} of {most}");
            }
        }

        /// The same without settlements, to the last one.
        #[test]
        fn no_minute_admits_one_more(visits in visits(), most in 1..60_u32) {
            let same: Vec<Visit> = visits.iter().map(|(pause, wants, lasts, _)| (*pause, *wants, *lasts, *wants)).collect();
            let admitted = play(&same, limit(most));
            for (start, ..) in &admitted {
                let within = admitted.iter().filter(|(at, ..)| (*start..start + MINUTE).contains(at));
                prop_assert!(within.map(|(_, taken, _)| taken).sum::<u64>() <= 2 * u64::from(most));
            }
        }

        /// Who waits exactly as long as was said is admitted; a microsecond earlier it would not have been.
        #[test]
        fn the_wait_is_exact(takes in prop::collection::vec((0..MINUTE, 1..300_u64), 1..20), most in 1..200_u32, wants in 1..200_u64) {
            let most = limit(most);
            let wants = wants.min(u64::from(most.get()));
            let (mut bucket, mut now) = (Bucket::default(), 0);
            for (pause, count) in takes {
                now += pause;
                bucket = bucket.at(now, most);
                bucket.take(count);
            }
            let wait = bucket.wait(wants);
            let mut then = bucket.at(now + wait, most);
            prop_assert_eq!(then.wait(wants), 0);
            then.take(wants);
            prop_assert!(then.taken <= then.holds(), "no part more than there is");
            prop_assert!(wait == 0 || bucket.at(now + wait - 1, most).wait(wants) == 1);
        }
    }
}
