//! The choice of an upstream: which of those that may take a call does, and a place there.

use std::sync::Arc;

use http::HeaderMap;
use uuid::Uuid;

use super::health::Turn;
use super::homes::Homes;
use super::{Live, Upstream};
use crate::breaker::Others;
use crate::call::Call;
use crate::refusal::UpstreamFault;
use crate::route::{Candidate, Seat, Target};
use crate::store::UserId;

/// Headers that name a thread, where the body's `prompt_cache_key` does not: Codex's.
const THREAD: [&str; 3] = ["thread-id", "session-id", "session_id"];

/// Why there is no choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoChoice {
    /// None may take the call.
    NoneMay,
    /// Those that may do not.
    NoneDoes(UpstreamFault),
}

impl NoChoice {
    /// One more that does not take it; what can be waited for is told, and of that the soonest.
    fn or(self, fault: UpstreamFault) -> NoChoice {
        NoChoice::NoneDoes(match (self, fault) {
            (NoChoice::NoneDoes(UpstreamFault::Resting { wait: one }), UpstreamFault::Resting { wait: other }) => {
                UpstreamFault::Resting { wait: one.min(other) }
            }
            (NoChoice::NoneDoes(resting @ UpstreamFault::Resting { .. }), _) => resting,
            _ => fault,
        })
    }
}

/// Where a call would like to go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// What decides among equals.
    pub(super) seat: Seat,
    /// Where it goes while that takes calls.
    pub(super) home: Option<usize>,
    /// Where its thread lives.
    pub(super) lives: Option<usize>,
    /// Whether it holds such a thing, so that nobody else can read it.
    pub(super) is_bound: bool,
}

impl Wish {
    /// Of a call with this seat, among the upstreams of which `may` says yes.
    pub(super) fn of(
        call: &Call,
        seat: Seat,
        live: &Live,
        homes: &Homes,
        may: impl Fn(&Candidate<'_>) -> bool,
    ) -> Wish {
        let free = Wish {
            seat,
            home: None,
            lives: None,
            is_bound: false,
        };
        if !call.endpoint.is_responses() {
            return free;
        }
        let named = |name: Arc<str>| {
            let is_it = |candidate: &Candidate<'_>| live.upstreams[candidate.upstream].name() == &*name;
            let mut candidates = live.routes.candidates(&call.model);
            let found = candidates.find(|candidate| is_it(candidate) && may(candidate));
            found.map(|candidate| candidate.upstream)
        };
        let of_thread = || {
            let Seat::Thread(thread) = seat else { return None };
            let by_name = live
                .routes
                .choose(&call.model, seat, |candidate| may(candidate).then_some(0))?
                .upstream;
            let lives = homes.of_thread(thread).and_then(named).unwrap_or(by_name);
            Some((by_name, lives))
        };
        let (by_name, lives) = of_thread().unzip();
        if !call.encrypted.is_empty() {
            let home = homes.maker(&call.encrypted).and_then(named).or(lives);
            return Wish {
                home,
                lives,
                is_bound: home.is_some(),
                ..free
            };
        }
        // From one that only stands in for it, what nobody has encrypted goes back.
        let stays = |lives: &usize| by_name.is_some_and(|by_name| live.routes.are_equals(*lives, by_name));
        Wish {
            home: lives.filter(stays).or(by_name),
            lives,
            ..free
        }
    }
}

/// What decides among equals: the thread that the call belongs to, of this user; without one the bits of its id that are
/// random.
pub(super) fn seat(user: UserId, call: &Call, headers: &HeaderMap, id: Uuid) -> Seat {
    let of_header = || {
        let named = THREAD.iter().find_map(|name| headers.get(*name));
        named.map(http::HeaderValue::as_bytes)
    };
    match call.cache_key().or_else(of_header) {
        Some(thread) if !thread.is_empty() => Seat::of_thread(user.0.as_bytes(), thread),
        _ => Seat::Any(id.as_u64_pair().1),
    }
}

/// Chooses among the upstreams that serve `model` and of which `may` says yes: the thread's home, else another one. When
/// all of these are to be left alone, one of them is asked all the same, and where breakers are open once a second.
pub(super) fn choose(
    live: &Live,
    model: &str,
    wish: Wish,
    may: impl Fn(&Candidate<'_>) -> bool,
) -> Result<(Target, Turn), NoChoice> {
    loop {
        let takes = |candidate: &Candidate<'_>, others| {
            let upstream: &Upstream = &live.upstreams[candidate.upstream];
            let wait = upstream.wait(candidate.model, others);
            if !wait.is_zero() {
                return Err(UpstreamFault::Resting { wait });
            }
            upstream
                .has_place()
                .then(|| upstream.under_way())
                .ok_or(UpstreamFault::Full)
        };
        let among = |others, only: Option<usize>| {
            let mut no_choice = NoChoice::NoneMay;
            let chosen = live.routes.choose(model, wish.seat, |candidate| {
                if !may(candidate) || only.is_some_and(|only| only != candidate.upstream) {
                    return None;
                }
                let taken = takes(candidate, others);
                taken.map_err(|fault| no_choice = no_choice.or(fault)).ok()
            });
            chosen.map(|chosen| (chosen, others)).ok_or(no_choice)
        };
        let chosen = match wish.home {
            home @ Some(_) if wish.is_bound => among(Others::None, home),
            home => home
                .ok_or(NoChoice::NoneMay)
                .and_then(|home| among(Others::Some, Some(home)))
                .or_else(|_| among(Others::Some, None))
                .or_else(|_| among(Others::None, None)),
        };
        let (candidate, others) = chosen?;
        // Another call may have taken its last place.
        if let Some(turn) = live.upstreams[candidate.upstream].turn(others) {
            return Ok((candidate.target(), turn));
        }
    }
}
