//! `POST /v1/gateway/redeem`: a code becomes credit of the key's user. Also of one who is suspended: the money is theirs.
//!
//! A code that is unknown, revoked, expired or another user's gets one answer, and a key that tries too many of them has
//! to wait: whether a code exists is not to be found out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{Response, Uri};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::super::refusal::Refused;
use super::super::{App, Arrival, auth};
use super::json;
use super::query::{Query, wrong};
use crate::money::Usd;
use crate::redemption::RedemptionCode;
use crate::refusal::{Refusal, Wrong, in_seconds};
use crate::store::codes::{NotRedeemed, Redeemed};
use crate::store::entries::Times;
use crate::store::keys::Key;
use crate::store::{KeyId, Outcome, StoreError, UserId};
use crate::time::{Stopwatch, now};

/// Codes of one key that may fail within [`A_WHILE`].
const MOST_FAILED: u32 = 10;

/// After this time a key's failed tries are forgotten.
const A_WHILE: Duration = Duration::from_secs(60);

/// Keys whose failed tries are kept, at most: beyond that others have to wait, too.
const MOST_KEYS: usize = 10_000;

/// Bytes of a body, at most.
const MAX_BODY: usize = 4096;

/// Codes that keys tried in vain, or are trying.
#[derive(Debug)]
pub(in super::super) struct Tries {
    keys: Mutex<HashMap<KeyId, Failed>>,
    clock: Stopwatch,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    since: Duration,
    tries: u32,
}

impl Default for Tries {
    fn default() -> Tries {
        Tries {
            keys: Mutex::default(),
            clock: Stopwatch::start(),
        }
    }
}

impl Tries {
    /// Counts a try before its outcome is known, so that many at once are no way around; or says how long to wait.
    fn begin(&self, key: KeyId) -> Result<(), Duration> {
        self.begin_at(key, self.clock.elapsed())
    }

    fn begin_at(&self, key: KeyId, at: Duration) -> Result<(), Duration> {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let over = |failed: &Failed| at.saturating_sub(failed.since) >= A_WHILE;
        if keys.len() >= MOST_KEYS {
            keys.retain(|_, failed| !over(failed));
        }
        let full = keys.len() >= MOST_KEYS;
        let failed = match keys.get_mut(&key) {
            Some(failed) => failed,
            None if full => return Err(A_WHILE),
            None => keys.entry(key).or_insert(Failed { since: at, tries: 0 }),
        };
        if over(failed) {
            *failed = Failed { since: at, tries: 0 };
        }
        if failed.tries >= MOST_FAILED {
            return Err(A_WHILE.saturating_sub(at.saturating_sub(failed.since)));
        }
        failed.tries += 1;
        Ok(())
    }

    /// The try was not in vain; a repeated one counts, so that nobody repeats it for ever.
    fn forgive(&self, key: KeyId) {
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failed) = keys.get_mut(&key) {
            failed.tries = failed.tries.saturating_sub(1);
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    code: String,
}

/// What a code came to. Balance and what is available are those of the answer, not of the time of a first one.
#[derive(Debug, Serialize)]
struct View {
    code: String,
    amount: Usd,
    redeemed: &'static str,
    redeemed_at: Option<Timestamp>,
    balance: Usd,
    held: Usd,
    available: Usd,
}

/// Redeems the code in the body.
pub(in super::super) async fn redeem(
    app: &Arc<App>,
    arrival: &Arrival,
    head: &Parts,
    body: Body,
) -> Result<Response<Body>, Refused> {
    // From here on a stop waits for this.
    let _running = app.gateway.tracker.token();
    if app.stopping.load(std::sync::atomic::Ordering::SeqCst) {
        return Err(Refusal::ShuttingDown.into());
    }
    let key = auth::authenticate(app, arrival, &head.headers).await?;
    let answered = of_key(app, arrival, &key, &head.uri, body).await;
    answered.map_err(Refused::to(auth::language(&key)))
}

async fn of_key(app: &App, arrival: &Arrival, key: &Key, uri: &Uri, body: Body) -> Result<Response<Body>, Refusal> {
    Query::read(uri, &[])?;
    let body = timeout(arrival.live.config.server.body_timeout, read(body))
        .await
        .map_err(|_| Refusal::BodyLost)??;
    let asked: Asked = serde_json::from_slice(&body).map_err(|_| wrong("code", Wrong::NotOneText))?;
    let too_many = |wait| Refusal::TooManyTries { wait: in_seconds(wait) };
    app.tries.begin(key.id).map_err(too_many)?;
    let Some(code) = RedemptionCode::parse(&asked.code) else {
        return Err(Refusal::NoCode);
    };
    let done = write(app, &code, (key.user_id, key.id)).await;
    let repeats = matches!(&done, Ok(redeemed) if redeemed.times == Times::Again);
    if !repeats && !matches!(done, Err(Refusal::NoCode)) {
        app.tries.forgive(key.id);
    }
    let Redeemed { code, user, times } = done?;
    json(&View {
        code: code.prefix,
        amount: code.amount,
        redeemed: match times {
            Times::First => "now",
            Times::Again => "before",
        },
        redeemed_at: code.redeemed.map(|by| by.at),
        balance: user.balance,
        held: user.held,
        available: user.available(),
    })
}

async fn read(mut body: Body) -> Result<Vec<u8>, Refusal> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refusal::BodyLost)?.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > MAX_BODY {
            return Err(wrong("code", Wrong::Bytes { most: MAX_BODY }));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

/// In its turn, as a question is read: calls always find a reader. Also when the client leaves it comes to its end.
async fn write(app: &App, code: &RedemptionCode, by: (UserId, KeyId)) -> Result<Redeemed, Refusal> {
    let gateway = &app.gateway;
    if let Some(why) = gateway.writer.failure().why() {
        tracing::error!(why, "no code is redeemed: the books may not be as they seem");
        return Err(Refusal::Storage);
    }
    let (turn, hash) = (app.turns.take().await?, code.hash());
    let redeeming = gateway.store.blocking(move |store| {
        let outcome = store.redeem(hash, by, now());
        drop(turn);
        outcome
    });
    match redeeming.await {
        Outcome::Committed(redeemed) => Ok(redeemed),
        Outcome::Refused(NotRedeemed::NoCode) => Err(Refusal::NoCode),
        Outcome::Refused(NotRedeemed::TooLarge) => Err(wrong("code", Wrong::TooMuchMoney)),
        // Whoever sends the same code again is told what became of it.
        Outcome::NotCommitted(error) => Err(not_redeemed(&error)),
        Outcome::Unknown(error) => {
            gateway.writer.distrust(&error);
            Err(not_redeemed(&error))
        }
    }
}

fn not_redeemed(error: &StoreError) -> Refusal {
    tracing::error!(error = error as &dyn std::error::Error, "a code cannot be redeemed");
    Refusal::Storage
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_guesses_waits_and_others_do_not() {
        let tries = Tries::default();
        let (guesser, other) = (KeyId(uuid::Uuid::nil()), KeyId(uuid::Uuid::max()));
        let second = Duration::from_secs(1);
        for _ in 0..MOST_FAILED {
            assert_eq!(tries.begin_at(guesser, second), Ok(()));
        }
        assert_eq!(tries.begin_at(guesser, 11 * second), Err(50 * second));
        assert_eq!(tries.begin_at(other, 11 * second), Ok(()));
        tries.forgive(guesser);
        assert_eq!(
            tries.begin_at(guesser, 11 * second),
            Ok(()),
            "one was none of the failed ones"
        );
        assert_eq!(tries.begin_at(guesser, 60 * second), Err(second));
        assert_eq!(tries.begin_at(guesser, 61 * second), Ok(()));
    }

    #[test]
    fn so_many_keys_are_kept_and_no_more() {
        let tries = Tries::default();
        let key = |number| KeyId(uuid::Uuid::from_u128(number));
        for number in 0..MOST_KEYS as u128 {
            assert_eq!(tries.begin_at(key(number), Duration::ZERO), Ok(()));
        }
        let one_more = key(MOST_KEYS as u128);
        assert_eq!(tries.begin_at(one_more, Duration::ZERO), Err(A_WHILE));
        assert_eq!(tries.begin_at(key(7), Duration::ZERO), Ok(()), "one of them goes on");
        assert_eq!(tries.begin_at(one_more, A_WHILE), Ok(()));
    }
}
