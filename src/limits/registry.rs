//! The limits of everybody: what of them is taken, in shards, and in bounded memory.
//!
//! A call locks the shards of what it is counted for, at most three and in order, for as long as it takes to look and
//! write numbers; two calls wait for each other only where a shard is the same. What is full again, with no call
//! running, is the same as what was never used, and is dropped whenever a shard has doubled since it was last looked
//! through: so there are at most twice as many as were used within about a minute, and never more than [`MOST`].

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::bucket::{Bucket, Mark};
use super::{AtMost, CALLS_RETRY, Exceeded, Level, Limited, Rates, Refused, Standing, Wait, What, Whose};

const SHARDS: usize = 64;

/// Keys, users and models that are counted at once, in all: about 100 MB. Beyond that, others have to wait.
pub(super) const MOST: usize = 1 << 20;

/// A shard this small is not looked through.
const SMALL: usize = 64;

/// What a call is counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A key, or all those that share its limits.
    Key(Uuid),
    /// A user.
    User(Uuid),
    /// A model, by its name's hash: a name may be long.
    Model([u8; 16]),
}

impl Subject {
    /// A model, as clients call it.
    pub fn model(name: &str) -> Subject {
        let hash: [u8; 32] = Sha256::digest(name).into();
        let mut start = [0; 16];
        start.copy_from_slice(&hash[..16]);
        Subject::Model(start)
    }

    const fn whose(self) -> Whose {
        match self {
            Subject::Key(_) => Whose::Key,
            Subject::User(_) => Whose::User,
            Subject::Model(_) => Whose::Model,
        }
    }
}

/// What a call is counted for, and the limits there.
pub type Asked = (Subject, Rates);

/// The tokens that a call is taken to need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// As many for certain: it is never admitted where fewer are given in a minute.
    pub tokens: u64,
    /// As many more perhaps. A guess, so it counts as far as the limit has room for it, and is no reason to refuse for
    /// good.
    pub perhaps: u64,
}

impl Need {
    fn of(self, limit: AtMost) -> u64 {
        let room = u64::from(limit.get()).saturating_sub(self.tokens);
        self.tokens.saturating_add(self.perhaps.min(room))
    }
}

/// What a call has taken: it is given to [`Registry::end`] when the call ends.
#[derive(Debug, Default)]
#[must_use = "what was taken has to be given back"]
pub struct Taken {
    shares: [Option<Share>; 3],
}

#[derive(Clone, Copy, Debug)]
struct Share {
    subject: Subject,
    /// Since when a request is taken, where requests are limited and it was not given back.
    request: Option<Mark>,
    /// The estimate and since when it is taken, where tokens are limited and it was not settled.
    tokens: Option<(u64, Mark)>,
}

/// What is taken of the limits of one key, user or model.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    requests: Bucket,
    tokens: Bucket,
    running: u32,
}

impl State {
    fn is_idle(&self, now: u64) -> bool {
        self.running == 0 && self.requests.is_full(now) && self.tokens.is_full(now)
    }
}

#[derive(Debug, Default)]
struct Shard {
    states: HashMap<Subject, State>,
    /// How many it has when it is looked through next.
    full_at: usize,
}

impl Shard {
    /// Whether one more may be counted.
    fn has_room(&mut self, now: u64) -> bool {
        if self.states.len() >= self.full_at.max(SMALL) {
            self.states.retain(|_, state| !state.is_idle(now));
            self.full_at = (2 * self.states.len()).clamp(SMALL, MOST / SHARDS);
            self.states.shrink_to(self.full_at);
        }
        self.states.len() < MOST / SHARDS
    }
}

/// The limits of everybody.
#[derive(Debug)]
pub struct Registry {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
}

impl Default for Registry {
    fn default() -> Registry {
        Registry {
            shards: std::array::from_fn(|_| Mutex::default()),
            hasher: RandomState::new(),
        }
    }
}

/// The shards of a call, locked, each once.
struct Locked<'a>([Option<(usize, MutexGuard<'a, Shard>)>; 3]);

impl Locked<'_> {
    fn shard(&mut self, index: usize) -> Option<&mut Shard> {
        let mut locked = self.0.iter_mut().flatten();
        locked.find(|(of, _)| *of == index).map(|(_, shard)| &mut **shard)
    }
}

impl Registry {
    /// Takes a request, tokens and a running call of all limits, or nothing of any; and tells what is left. `asked` are
    /// different subjects.
    pub fn take(&self, asked: [Asked; 3], need: Need, now: Duration) -> (Result<Taken, Refused>, Standing) {
        let now = micros(now);
        let limited = asked.map(|(subject, rates)| (!rates.is_none()).then(|| (subject, rates, self.index(subject))));
        let mut locked = self.lock(limited.map(|asked| asked.map(|(.., index)| index)));
        let (mut after, mut exceeded, mut standing) = ([None; 3], None, Standing::default());
        for (after, (subject, rates, index)) in after.iter_mut().zip(limited.iter().flatten().copied()) {
            let Some(shard) = locked.shard(index) else { continue };
            let state = match shard.states.get(&subject).copied() {
                Some(state) => state,
                None if shard.has_room(now) => State::default(),
                None => return (Err(Refused::Full), Standing::default()),
            };
            let taking = Taking::of(subject, rates, state, need, now);
            standing = tighter(standing, taking.left());
            exceeded = later(exceeded, taking.exceeds(need));
            *after = Some((taking, index));
        }
        if let Some(exceeded) = exceeded {
            return (Err(Refused::Exceeded(exceeded)), standing);
        }
        let (mut taken, mut standing) = (Taken::default(), Standing::default());
        for (share, (mut taking, index)) in taken.shares.iter_mut().zip(after.into_iter().flatten()) {
            *share = Some(taking.take());
            standing = tighter(standing, taking.left());
            if let Some(shard) = locked.shard(index) {
                shard.states.insert(taking.subject, taking.state);
            }
        }
        (Ok(taken), standing)
    }

    /// Takes what the call used in place of the estimate.
    pub fn settle(&self, taken: &mut Taken, used: u64, now: Duration) {
        let now = micros(now);
        for share in taken.shares.iter_mut().flatten() {
            if let Some((estimate, since)) = share.tokens.take() {
                self.change(share.subject, |state| state.correct(estimate, used, since, now));
            }
        }
    }

    /// What the call uses is not known before it has ended for its client: it is counted as it was estimated.
    pub fn keep_estimate(&self, taken: &mut Taken) {
        for share in taken.shares.iter_mut().flatten() {
            share.tokens = None;
        }
    }

    /// Nothing of the call has come to anybody but us: what it took of everybody's requests to its model is given back.
    pub fn spare_model(&self, taken: &mut Taken, now: Duration) {
        let now = micros(now);
        for share in taken.shares.iter_mut().flatten() {
            if let (Subject::Model(_), Some(since)) = (share.subject, share.request.take()) {
                self.change(share.subject, |state| {
                    state.requests = state.requests.later(now);
                    state.requests.give_back(1, 1, since);
                });
            }
        }
    }

    /// The call has ended. What was not settled used nothing.
    pub fn end(&self, mut taken: Taken, now: Duration) {
        self.settle(&mut taken, 0, now);
        for share in taken.shares.into_iter().flatten() {
            self.change(share.subject, |state| state.running = state.running.saturating_sub(1));
        }
    }

    /// How many are counted.
    #[cfg(test)]
    fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard>| shard.lock().map(|shard| shard.states.len()).unwrap_or_default();
        self.shards.iter().map(len).sum()
    }

    fn change(&self, subject: Subject, change: impl FnOnce(&mut State)) {
        // It is there as long as a call of it runs.
        if let Some(state) = self.lock_one(self.index(subject)).states.get_mut(&subject) {
            change(state);
        }
    }

    fn index(&self, subject: Subject) -> usize {
        let hash = self.hasher.hash_one(subject);
        usize::try_from(hash % SHARDS as u64).unwrap_or(0)
    }

    fn lock_one(&self, index: usize) -> MutexGuard<'_, Shard> {
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks shards in the order that all calls lock them in.
    fn lock(&self, mut wanted: [Option<usize>; 3]) -> Locked<'_> {
        wanted.sort_unstable();
        let mut last = None;
        Locked(wanted.map(|index| {
            let index = index.filter(|index| last != Some(*index))?;
            last = Some(index);
            Some((index, self.lock_one(index)))
        }))
    }
}

/// A call's share of the limits of one key, user or model, before it is taken.
#[derive(Clone, Copy)]
struct Taking {
    subject: Subject,
    rates: Rates,
    state: State,
    /// How many, where they are limited.
    tokens: Option<u64>,
}

impl Taking {
    fn of(subject: Subject, rates: Rates, mut state: State, need: Need, now: u64) -> Taking {
        if let Some(limit) = rates.rpm {
            state.requests = state.requests.at(now, limit);
        }
        if let Some(limit) = rates.tpm {
            state.tokens = state.tokens.at(now, limit);
        }
        Taking {
            subject,
            rates,
            state,
            tokens: rates.tpm.map(|limit| need.of(limit)),
        }
    }

    /// The limit that has to be waited for longest.
    fn exceeds(&self, need: Need) -> Option<Exceeded> {
        let exceeded = |what, limit, wait| Exceeded {
            of: Limited {
                whose: self.subject.whose(),
                what,
                limit,
            },
            wait,
        };
        let after = |what, limit, micros: u64| {
            let wait = Duration::from_secs(micros.div_ceil(1_000_000));
            (micros > 0).then(|| exceeded(what, limit, Wait::After(wait)))
        };
        let of_requests = self.rates.rpm;
        let of_requests = of_requests.and_then(|limit| after(What::Requests, limit, self.state.requests.wait(1)));
        let of_tokens = self.rates.tpm.zip(self.tokens).and_then(|(limit, count)| {
            if need.tokens > u64::from(limit.get()) {
                let needed = need.tokens;
                return Some(exceeded(What::Tokens, limit, Wait::Never { needed }));
            }
            after(What::Tokens, limit, self.state.tokens.wait(count))
        });
        let of_calls = self.rates.concurrency.filter(|limit| self.state.running >= limit.get());
        let of_calls = of_calls.map(|limit| exceeded(What::Calls, limit, Wait::After(CALLS_RETRY)));
        later(later(of_requests, of_tokens), of_calls)
    }

    fn take(&mut self) -> Share {
        let request = self.rates.rpm.map(|_| self.state.requests.mark());
        if request.is_some() {
            self.state.requests.take(1);
        }
        let tokens = self.tokens.map(|tokens| (tokens, self.state.tokens.mark()));
        if let Some((tokens, _)) = tokens {
            self.state.tokens.take(tokens);
        }
        self.state.running = self.state.running.saturating_add(1);
        Share {
            subject: self.subject,
            request,
            tokens,
        }
    }

    /// What is left.
    fn left(&self) -> Standing {
        let level = |limit: Option<AtMost>, bucket: &Bucket| {
            limit.map(|limit| Level {
                limit: limit.get(),
                remaining: bucket.remaining(),
                reset: Duration::from_micros(bucket.reset()),
            })
        };
        Standing {
            requests: level(self.rates.rpm, &self.state.requests),
            tokens: level(self.rates.tpm, &self.state.tokens),
        }
    }
}

impl State {
    /// Takes what was used in place of an estimate.
    fn correct(&mut self, estimate: u64, used: u64, since: Mark, now: u64) {
        self.tokens = self.tokens.later(now);
        match used.checked_sub(estimate) {
            Some(more) => self.tokens.take(more),
            None => self.tokens.give_back(estimate, estimate - used, since),
        }
    }
}

/// The one that has to be waited for longer; of two alike, the first.
fn later(one: Option<Exceeded>, other: Option<Exceeded>) -> Option<Exceeded> {
    let longer = |other: &Exceeded| match (one.map(|one| one.wait), other.wait) {
        (None, _) => true,
        (Some(Wait::Never { .. }), _) => false,
        (Some(Wait::After(_)), Wait::Never { .. }) => true,
        (Some(Wait::After(one)), Wait::After(other)) => other > one,
    };
    other.filter(longer).or(one)
}

/// Of each kind the level of which less remains; of two alike, the first.
fn tighter(one: Standing, other: Standing) -> Standing {
    let least = |one: Option<Level>, other: Option<Level>| {
        [one, other].into_iter().flatten().min_by_key(|level| level.remaining)
    };
    Standing {
        requests: least(one.requests, other.requests),
        tokens: least(one.tokens, other.tokens),
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn limit(count: u32) -> Option<AtMost> {
        Some(AtMost::new(count).expect("a limit"))
    }

    fn rates(rpm: u32, tpm: u32, concurrency: u32) -> Rates {
        Rates {
            rpm: AtMost::new(rpm),
            tpm: AtMost::new(tpm),
            concurrency: AtMost::new(concurrency),
        }
    }

    fn key(number: u128) -> Subject {
        Subject::Key(Uuid::from_u128(number))
    }

    /// A call of a key, a user and a model.
    fn asked(of_key: Rates, of_user: Rates, of_model: Rates) -> [Asked; 3] {
        let user = Subject::User(Uuid::from_u128(1));
        [(key(1), of_key), (user, of_user), (Subject::model("gpt-5"), of_model)]
    }

    fn tokens(tokens: u64) -> Need {
        Need { tokens, perhaps: 0 }
    }

    fn exceeded(refused: Result<Taken, Refused>) -> Exceeded {
        match refused {
            Err(Refused::Exceeded(exceeded)) => exceeded,
            other => panic!("{other:?}"),
        }
    }

    const NONE: Rates = Rates {
        rpm: None,
        tpm: None,
        concurrency: None,
    };

    #[test]
    fn each_of_nine_limits_refuses_by_its_own_name_and_takes_nothing() {
        let limits = [rates(2, 0, 0), rates(0, 10, 0), rates(0, 0, 2)];
        let of = |whose: usize, rates: Rates| {
            let mut all = [NONE; 3];
            all[whose] = rates;
            asked(all[0], all[1], all[2])
        };
        let mut names = Vec::new();
        for (whose, limit) in (0..3).flat_map(|whose| limits.map(|limit| (whose, limit))) {
            let registry = Registry::default();
            let (mut all, wide) = (of(whose, limit), rates(100, 100, 100));
            for (_, rates) in &mut all {
                *rates = rates.or(wide);
            }
            let take = || registry.take(all, tokens(5), Duration::ZERO);
            let running = [take().0.expect("one"), take().0.expect("two")];
            let before = format!("{:?}", registry.shards);
            let refused = exceeded(take().0);
            assert_eq!(format!("{:?}", registry.shards), before, "nothing is taken");
            names.push(refused.of.name());
            for taken in running {
                registry.end(taken, Duration::ZERO);
            }
        }
        let expected =
            ["key", "user", "model"].map(|whose| ["rpm", "tpm", "concurrency"].map(|what| format!("{whose}_{what}")));
        assert_eq!(names, expected.concat());
    }

    #[test]
    fn who_waits_as_long_as_was_said_is_admitted_and_one_second_less_is_refused() {
        for (limits, need) in [
            (rates(7, 0, 0), tokens(0)),
            (rates(0, 1_000, 0), tokens(700)),
            (rates(3, 5_000, 0), tokens(2_100)),
        ] {
            let registry = Registry::default();
            let all = asked(limits, NONE, NONE);
            let mut now = Duration::from_millis(1_234);
            while let (Ok(mut taken), _) = registry.take(all, need, now) {
                registry.settle(&mut taken, need.tokens, now);
                registry.end(taken, now);
                now += Duration::from_millis(77);
            }
            let Wait::After(wait) = exceeded(registry.take(all, need, now).0).wait else {
                panic!("it may be repeated");
            };
            let early = wait - Duration::from_secs(1);
            assert!(registry.take(all, need, now + early).0.is_err(), "{limits:?} {wait:?}");
            assert!(registry.take(all, need, now + wait).0.is_ok(), "{limits:?} {wait:?}");
        }
    }

    #[test]
    fn of_several_limits_the_one_that_takes_longest_is_told() {
        let registry = Registry::default();
        let all = asked(rates(60, 0, 0), rates(1, 100, 0), rates(0, 0, 1));
        let (first, standing) = registry.take(all, tokens(60), Duration::ZERO);
        let level = |limit, remaining, seconds| Level {
            limit,
            remaining,
            reset: Duration::from_secs(seconds),
        };
        let left = Standing {
            requests: Some(level(1, 0, 60)),
            tokens: Some(level(100, 40, 36)),
        };
        assert_eq!(standing, left);
        let (refused, standing) = registry.take(all, tokens(60), Duration::ZERO);
        let refused = exceeded(refused);
        assert_eq!(
            (refused.of.whose, refused.of.what, refused.wait),
            (Whose::User, What::Requests, Wait::After(MINUTE))
        );
        assert_eq!(standing, left, "a refused call takes nothing");
        let later = exceeded(registry.take(all, tokens(60), MINUTE).0);
        assert_eq!(
            (later.of.name(), later.wait),
            ("model_concurrency", Wait::After(CALLS_RETRY))
        );
        registry.end(first.expect("it was admitted"), MINUTE);
        assert!(registry.take(all, tokens(60), MINUTE).0.is_ok());
    }

    #[test]
    fn a_call_that_is_larger_than_its_limit_is_told_so_and_a_guess_is_not() {
        let registry = Registry::default();
        let all = asked(rates(0, 100, 0), NONE, NONE);
        let refused = exceeded(registry.take(all, tokens(101), Duration::ZERO).0);
        assert_eq!(refused.wait, Wait::Never { needed: 101 });
        let guessed = Need {
            tokens: 30,
            perhaps: 1_000,
        };
        let (taken, standing) = registry.take(all, guessed, Duration::ZERO);
        assert_eq!(standing.tokens.map(|level| level.remaining), Some(0));
        let mut taken = taken.expect("there is room for it");
        registry.settle(&mut taken, 40, Duration::ZERO);
        assert!(
            registry.take(all, tokens(60), Duration::ZERO).0.is_ok(),
            "the rest is given back"
        );
        registry.end(taken, Duration::ZERO);
    }

    #[test]
    fn what_a_call_used_counts_in_place_of_its_estimate() {
        let registry = Registry::default();
        let all = asked(rates(0, 100, 0), NONE, NONE);
        let used = |estimate, used: Option<u64>| {
            let taken = registry.take(all, tokens(estimate), Duration::ZERO).0;
            let mut taken = taken.expect("there is room");
            if let Some(used) = used {
                registry.settle(&mut taken, used, Duration::ZERO);
            }
            registry.end(taken, Duration::ZERO);
        };
        used(90, Some(20));
        used(80, None);
        used(70, Some(150));
        let refused = exceeded(registry.take(all, tokens(1), Duration::ZERO).0);
        assert_eq!(
            refused.wait,
            Wait::After(Duration::from_secs(43)),
            "71 tokens, 0.6 s each"
        );
    }

    #[test]
    fn what_came_to_nobody_takes_nothing_of_its_model_and_stays_a_request_of_its_key() {
        let registry = Registry::default();
        let all = asked(rates(2, 0, 0), NONE, rates(1, 0, 0));
        for _ in 0..2 {
            let mut taken = registry
                .take(all, Need::default(), Duration::ZERO)
                .0
                .expect("there is room");
            registry.spare_model(&mut taken, Duration::ZERO);
            registry.spare_model(&mut taken, Duration::ZERO);
            registry.end(taken, Duration::ZERO);
        }
        let refused = exceeded(registry.take(all, Need::default(), Duration::ZERO).0);
        assert_eq!(refused.of.name(), "key_rpm");
        let other = [
            (key(2), NONE),
            (key(3), NONE),
            (Subject::model("gpt-5"), rates(1, 0, 0)),
        ];
        assert!(registry.take(other, Need::default(), Duration::ZERO).0.is_ok());
        assert!(registry.take(other, Need::default(), Duration::ZERO).0.is_err());
    }

    #[test]
    fn a_limit_that_is_taken_away_while_a_call_runs_is_given_back_all_the_same() {
        let registry = Registry::default();
        let taken = registry
            .take(asked(rates(0, 0, 1), NONE, NONE), Need::default(), Duration::ZERO)
            .0;
        let unlimited = asked(NONE, NONE, NONE);
        registry.end(
            registry
                .take(unlimited, Need::default(), Duration::ZERO)
                .0
                .expect("free"),
            Duration::ZERO,
        );
        registry.end(taken.expect("one"), Duration::ZERO);
        assert!(
            registry
                .take(asked(rates(0, 0, 1), NONE, NONE), Need::default(), Duration::ZERO)
                .0
                .is_ok()
        );
    }

    #[test]
    fn many_at_once_get_exactly_as_many_permits_as_there_are() {
        let (registry, barrier) = (Registry::default(), Barrier::new(8));
        let all = asked(rates(0, 0, 40), rates(37, 0, 0), rates(0, 3_100, 0));
        let admitted: usize = thread::scope(|scope| {
            let caller = || {
                barrier.wait();
                let take = |_| registry.take(all, tokens(100), Duration::ZERO).0;
                (0..50).map(take).filter(Result::is_ok).count()
            };
            let callers: Vec<_> = (0..8).map(|_| scope.spawn(caller)).collect();
            callers
                .into_iter()
                .map(|caller| caller.join().expect("it counts"))
                .sum()
        });
        assert_eq!(admitted, 31);
    }

    #[test]
    fn memory_is_bounded_whatever_the_number_of_keys() {
        let registry = Registry::default();
        let (mut now, mut most) = (Duration::ZERO, 0);
        // 5,000 keys a minute are used, each once, over forty minutes.
        for number in 0..200_000 {
            let all = [(key(number), rates(60, 60_000, 5)), (key(0), NONE), (key(0), NONE)];
            let taken = registry.take(all, tokens(30_000), now).0.expect("its own limit");
            registry.end(taken, now);
            now += Duration::from_millis(12);
            if number % 1_000 == 0 {
                most = most.max(registry.len());
            }
        }
        assert!(most < 2 * SHARDS * SMALL, "{most} are kept");
    }

    #[test]
    fn beyond_the_bound_nobody_new_is_counted_until_there_is_room() {
        let mut shard = Shard::default();
        let busy = State {
            running: 1,
            ..State::default()
        };
        let fill = |shard: &mut Shard| {
            for number in 0.. {
                if !shard.has_room(0) {
                    break;
                }
                shard.states.insert(key(number), busy);
            }
        };
        fill(&mut shard);
        assert_eq!(shard.states.len(), MOST / SHARDS);
        for state in shard.states.values_mut() {
            state.running = 0;
        }
        assert!(shard.has_room(0) && shard.states.is_empty());
    }

    #[test]
    fn limits_are_one_for_each_subject() {
        let registry = Registry::default();
        let one = |subject| {
            registry
                .take(
                    [(subject, rates(1, 0, 0)), (key(8), NONE), (key(9), NONE)],
                    Need::default(),
                    Duration::ZERO,
                )
                .0
        };
        for subject in [
            key(1),
            key(2),
            Subject::User(Uuid::from_u128(1)),
            Subject::model("a"),
            Subject::model("b"),
        ] {
            assert!(one(subject).is_ok());
            assert_eq!(exceeded(one(subject)).of.limit, limit(1).expect("a limit"));
        }
    }
}
