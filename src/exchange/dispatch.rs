//! Dispatch: sends an admitted call until an upstream has taken it, or until that cannot be known.
//!
//! A call is sent once more only where it cannot have been taken (`retry`), while nothing of an answer has left, within the
//! budget of extra calls and the exchange's own deadline; what never had a connection was no call, and is in no budget. The
//! hold was taken by the terms of one upstream, so that another one is tried only if its terms are the same: list, region,
//! the model as it is priced, and how usage is written. So the hold pays for it, and the bill is the same. What leans on
//! earlier answers, or holds what is encrypted for an account, stays where these were made. Else, and when no other takes
//! calls, the same upstream is tried a second time, after a pause.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use reqwest::Response;
use tokio::time::sleep;

use super::choice::{self, Wish};
use super::client::Client;
use super::form;
use super::health::Turn;
use super::sending::Asked;
use super::{Admitted, Ending, Gateway, Settle, Upstream, Watch, while_wanted};
use crate::breaker::{Others, Verdict};
use crate::config::OnHangup;
use crate::metrics::Attempt;
use crate::refusal::UpstreamFault;
use crate::retry::{self, MOST_ATTEMPTS, NotTaken};
use crate::route::{Candidate, Target};
use crate::store::attempts::Outcome;
use crate::time::now;

/// What the upstreams said in the end: the head of an answer, or why there is none.
pub(super) type Said = Result<Response, UpstreamFault>;

/// Where a call is sent next.
struct Next {
    pause: Duration,
    /// Another upstream than before.
    moved: Option<(Target, Turn)>,
}

/// Sends the call, with what may go on of the client's headers, and waits for the head of an answer.
pub(super) async fn dispatch(
    gateway: &Gateway,
    admitted: &mut Admitted,
    headers: HeaderMap,
    client: &mut Client,
    watch: &mut Watch,
) -> Result<Response, Ending> {
    gateway.retries.call();
    let mut tried = Vec::new();
    loop {
        let said = match admitted.upstream().admit(&admitted.target.model, admitted.turn.others) {
            false => Err(UpstreamFault::Resting {
                wait: admitted.upstream().wait(&admitted.target.model, Others::None),
            }),
            true => attempt(gateway, admitted, &headers, client, watch).await?,
        };
        let Some(next) = next(gateway, admitted, &said, &mut tried, watch) else {
            if said.as_ref().is_ok_and(|response| response.status().is_success()) {
                gateway.homes.taken(admitted);
            }
            return said.map_err(Ending::fault);
        };
        drop(said);
        while_wanted(gateway, admitted, client, sleep(next.pause))
            .await
            .map_err(unsent)?;
        if client.has_left() {
            return Err(Ending::left(Settle::Nothing));
        }
        let Some((target, turn)) = next.moved else {
            // Nobody else takes it.
            admitted.turn.others = Others::None;
            continue;
        };
        tracing::info!(
            exchange = %admitted.id(),
            from = admitted.upstream().name(),
            to = admitted.live.upstreams[target.upstream].name(),
            "not taken; another upstream is asked"
        );
        (admitted.target, admitted.turn) = (target, turn);
    }
}

/// Nothing is under way: whatever ends it there costs nothing.
fn unsent(ending: Ending) -> Ending {
    Ending {
        settle: Settle::Nothing,
        ..ending
    }
}

/// Sends it once, and notes what became of that.
async fn attempt(
    gateway: &Gateway,
    admitted: &mut Admitted,
    headers: &HeaderMap,
    client: &mut Client,
    watch: &mut Watch,
) -> Result<Said, Ending> {
    let sent = admitted.upstream().now();
    watch.begin(admitted.target.upstream);
    let arriving = admitted.arriving.take();
    // Only where a client that leaves ends the call is it asked how far the call came.
    let asked = match admitted.on_hangup {
        OnHangup::Drain if arriving.is_none() => Asked::default(),
        OnHangup::Drain | OnHangup::Cancel => Asked::watched(),
    };
    let waited = match arriving {
        None => {
            let sending = admitted.upstream().send(admitted, headers, &asked);
            while_wanted(gateway, admitted, client, sending).await
        }
        Some(arriving) => Box::pin(form::send(gateway, admitted, arriving, headers, client, &asked)).await,
    };
    let upstream = admitted.upstream();
    let waited = waited.map_err(|ending| match asked.perhaps() {
        true => ending,
        false => unsent(ending),
    });
    watch.head(waited.as_ref().ok());
    let counted = counted(waited.as_ref().ok());
    gateway.metrics.attempted(upstream.name(), counted, 1);
    let verdict = waited.as_ref().ok().and_then(|said| verdict(admitted, said));
    if verdict.is_some_and(|verdict| upstream.note_sent(&admitted.target.model, sent, verdict)) {
        tracing::warn!(
            upstream = upstream.name(),
            model = admitted.target.model,
            state = upstream.breaker_state().name(),
            "the circuit breaker changed"
        );
    }
    waited
}

/// What a breaker makes of it. A connection that broke before the head says nothing: that may have been the call.
fn verdict(admitted: &Admitted, said: &Said) -> Option<Verdict> {
    let failed = |retry_after| Verdict::Failed {
        caller: admitted.key.id.0.as_u128(),
        retry_after,
    };
    match said {
        Ok(response) if response.status().is_server_error() => {
            Some(failed(retry::retry_after(response.headers(), now())))
        }
        Ok(response) if response.status() == StatusCode::TOO_MANY_REQUESTS => {
            let wait = retry::retry_after(response.headers(), now());
            Some(wait.map_or(Verdict::Answered, Verdict::Busy))
        }
        Ok(_) => Some(Verdict::Answered),
        Err(UpstreamFault::Unreachable) => Some(Verdict::Unreachable),
        Err(UpstreamFault::Timeout) => Some(failed(None)),
        Err(_) => None,
    }
}

/// Whether, where and when it is sent once more: what may go elsewhere does not wait for one that has no time for it.
fn next(gateway: &Gateway, admitted: &Admitted, said: &Said, tried: &mut Vec<usize>, watch: &Watch) -> Option<Next> {
    let upstream = admitted.upstream();
    let not_taken = match said {
        Ok(response) => NotTaken::by(
            response.status(),
            response.headers(),
            upstream.retries_gateway_errors(),
            now(),
        )?,
        Err(UpstreamFault::Unreachable | UpstreamFault::Resting { .. }) => NotTaken { retry_after: None },
        Err(_) => return None,
    };
    if watch.attempts() >= MOST_ATTEMPTS {
        return None;
    }
    tried.push(admitted.target.upstream);
    let chance = admitted.id().0.as_u64_pair().1 >> watch.attempts();
    let before_the_same = not_taken.before_the_same(chance);
    let next = match another(admitted, tried) {
        Some(moved) => Next {
            pause: NotTaken::before_another(chance),
            moved: Some(moved),
        },
        None => {
            let is_first = tried.iter().filter(|one| **one == admitted.target.upstream).count() == 1;
            let rests = upstream.wait(&admitted.target.model, Others::None);
            let pause = match said {
                Err(UpstreamFault::Resting { .. }) => Some(rests),
                _ => before_the_same.map(|pause| pause.max(rests)),
            };
            Next {
                pause: pause.filter(|_| is_first)?,
                moved: None,
            }
        }
    };
    // What never had a connection was no call.
    (said.is_err() || gateway.retries.extra()).then_some(next)
}

/// Another upstream of the same terms that takes the call, and a place there.
fn another(admitted: &Admitted, tried: &[usize]) -> Option<(Target, Turn)> {
    if !admitted.call.refers_to.is_empty() || admitted.wish.is_bound {
        return None;
    }
    let live = &admitted.live;
    // Its home was tried.
    let wish = Wish {
        home: None,
        ..admitted.wish
    };
    let may = |candidate: &Candidate<'_>| {
        let upstream: &Upstream = &live.upstreams[candidate.upstream];
        !tried.contains(&candidate.upstream)
            && candidate.model == admitted.target.model
            && upstream.has_terms_of(admitted.upstream(), admitted.call.endpoint)
    };
    choice::choose(live, &admitted.call.model, wish, may).ok()
}

/// What became of an attempt; `None`: it was given up.
pub(super) fn outcome(said: Option<&Said>) -> Outcome {
    match said {
        Some(Ok(response)) if response.status().is_success() => Outcome::Answered,
        Some(Ok(_)) => Outcome::Refused,
        Some(Err(UpstreamFault::Unreachable)) => Outcome::Unreachable,
        Some(Err(UpstreamFault::Timeout)) => Outcome::Timeout,
        Some(Err(_)) => Outcome::Broken,
        None => Outcome::Abandoned,
    }
}

/// The same, as it is counted.
fn counted(said: Option<&Said>) -> Attempt {
    match (outcome(said), said) {
        (Outcome::Answered, _) => Attempt::Answered,
        (Outcome::Refused, Some(Ok(response))) if response.status().is_server_error() => Attempt::Failed,
        (Outcome::Refused, _) => Attempt::Refused,
        (Outcome::Unreachable, _) => Attempt::Unreachable,
        (Outcome::Timeout, _) => Attempt::Timeout,
        (Outcome::Broken, _) => Attempt::Broken,
        (Outcome::Abandoned, _) => Attempt::Abandoned,
    }
}
