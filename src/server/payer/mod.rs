//! The payer's view: what a key may read, and nothing of another key; and the codes that it redeems.
//!
//! ```text
//! server::dispatch
//!   auth::authenticate     any key that is valid; also of a user who is suspended or has nothing left
//!   query                  the query string → a bounded question, or a 400 that names the parameter
//!   Turns::ask             one of two turns, so that calls always find a reader; five seconds; off the async threads
//!     store::reports       this key's rows, by index, of one snapshot
//!   views, openai          rows → documents, after markup and without cost
//! ```
//!
//! The user's balance is the key's to see, because its calls spend it; of exchanges and sums it sees its own. Another
//! key's exchange is answered like one that does not exist.

mod openai;
mod query;
mod redeem;
mod sessions;
mod views;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, Uri};
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use jiff::Timestamp;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::refusal::Refused;
use super::{App, Arrival, auth};
use crate::exchange::{self, Live};
use crate::refusal::Refusal;
use crate::store::keys::Key;
use crate::store::reports::{Of, Page, Standing, Stop, Sum, Unread};
use crate::store::{Store, StoreError};
use crate::time::now;
use query::Query;
pub(super) use redeem::{Tries, redeem};

/// Questions that are read at the same time: a quarter of the store's readers, which calls need too.
const TURNS: usize = 2;

/// How long a question waits for its turn.
const TURN_WAIT: Duration = Duration::from_secs(5);

/// How long one may be read: some millions of rows.
const READ_TIME: Duration = Duration::from_secs(5);

/// What may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    /// `/gateway/me`
    Me,
    /// `/gateway/requests`
    Requests,
    /// `/gateway/requests/{id}`
    Request,
    /// `/gateway/usage`
    Usage,
    /// `/gateway/sessions`
    Sessions,
    /// `/gateway/sessions/{id}`
    Session,
    /// `/dashboard/billing/subscription`
    Subscription,
    /// `/dashboard/billing/usage`
    BillingUsage,
    /// `/dashboard/billing/credit_grants`
    CreditGrants,
    /// `/organization/usage/completions`
    OrganizationUsage,
    /// `/organization/costs`
    OrganizationCosts,
}

/// Whose turn it is to read.
#[derive(Debug)]
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Turns {
        Turns(Arc::new(Semaphore::new(TURNS)))
    }
}

impl Turns {
    /// Waits for a turn.
    async fn take(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let turn = timeout(TURN_WAIT, Arc::clone(&self.0).acquire_owned()).await;
        turn.map_err(|_| Refusal::Busy)?.map_err(|_| Refusal::ShuttingDown)
    }

    /// Asks the store. Whoever is not waited for any more, because the time is up or the client left, is stopped.
    async fn ask<T: Send + 'static>(
        &self,
        store: &Store,
        read: impl FnOnce(&Store, &Stop) -> Result<T, Unread> + Send + 'static,
    ) -> Result<T, Refusal> {
        let turn = self.take().await?;
        let stop = Stop::default();
        let _stopped = stop.on_drop();
        let reading = store.blocking(move |store| {
            let answer = read(store, &stop);
            drop(turn);
            answer
        });
        match timeout(READ_TIME, reading).await {
            Ok(Ok(answer)) => Ok(answer),
            Err(_) | Ok(Err(Unread::Stopped | Unread::TooMany)) => Err(Refusal::TooMuch),
            Ok(Err(Unread::Failed(error))) => Err(unreadable(&error)),
        }
    }
}

fn unreadable(error: &StoreError) -> Refusal {
    tracing::error!(error = error as &dyn std::error::Error, "the books cannot be read");
    Refusal::Storage
}

/// Answers a key about itself. `part` is what stands in the path for the braces.
pub(super) async fn answer(
    app: &App,
    view: View,
    arrival: &Arrival,
    head: &Parts,
    part: &str,
) -> Result<Response<Body>, Refused> {
    let key = auth::authenticate(app, arrival, &head.headers).await?;
    let answered = of_key(app, &arrival.live, view, &key, &head.uri, part).await;
    answered.map_err(Refused::to(auth::language(&key)))
}

async fn of_key(
    app: &App,
    live: &Live,
    view: View,
    key: &Key,
    uri: &Uri,
    part: &str,
) -> Result<Response<Body>, Refusal> {
    let of = Of {
        user: key.user_id,
        key: key.id,
    };
    let (store, turns) = (&app.gateway.store, &app.turns);
    match view {
        View::Me => {
            Query::read(uri, &[])?;
            me(app, live, key, of).await
        }
        View::Requests => {
            let mut query = Query::read(uri, &["since", "session", "limit", "page"])?;
            let page = Page {
                since: query.time("since")?,
                before: query.id("page")?,
                session: query.label("session")?,
                limit: query.number("limit", 1..=100)?.unwrap_or(20),
            };
            let more = Page {
                limit: page.limit + 1,
                ..page.clone()
            };
            let rows = turns.ask(store, move |store, stop| store.exchanges_of(of, &more, stop));
            json(&views::Receipts::new(rows.await?, page.limit)?)
        }
        View::Request => {
            Query::read(uri, &[])?;
            let which = percent_decode_str(part)
                .decode_utf8()
                .map_err(|_| Refusal::NoReceipt)?
                .into_owned();
            let row = turns.ask(store, move |store, stop| store.exchange_of(of, &which, stop));
            json(&views::Receipt::new(&row.await?.ok_or(Refusal::NoReceipt)?)?)
        }
        View::Usage => {
            let mut query = Query::read(uri, &["by", "since", "until"])?;
            let (by, asked) = views::question(&mut query, now_in_the_books())?;
            let span = asked.span.clone();
            let sums = turns.ask(store, move |store, stop| store.sums_of(of, &asked, stop));
            json(&views::Usage::new(by, span, &sums.await?))
        }
        View::Sessions => json(&sessions::list(store, turns, of, uri).await?),
        View::Session => {
            Query::read(uri, &[])?;
            json(&sessions::one(store, turns, of, part).await?)
        }
        // Whatever dates they pass: clients take one of these from the other.
        View::Subscription => json(&openai::Subscription::new(&standing(app, of).await?, key)),
        View::BillingUsage => json(&openai::BillingUsage::new(&standing(app, of).await?)),
        View::CreditGrants => json(&openai::CreditGrants::new(&standing(app, of).await?)),
        View::OrganizationUsage => {
            let asked = openai::Asked::usage(uri, of, now())?;
            let sums = buckets(app, of, &asked).await?;
            json(&asked.page(&sums, of, openai::completions))
        }
        View::OrganizationCosts => {
            let asked = openai::Asked::costs(uri, of, now())?;
            let sums = buckets(app, of, &asked).await?;
            json(&asked.page(&sums, of, openai::costs))
        }
    }
}

async fn me(app: &App, live: &Live, key: &Key, of: Of) -> Result<Response<Body>, Refusal> {
    let (budgets, at) = (key.budgets, now());
    let account = app.turns.ask(&app.gateway.store, move |store, stop| {
        store.account_of(of, budgets, at, stop)
    });
    let account = account.await?;
    let _turn = app.turns.take().await?;
    let offers = exchange::offered(&app.gateway, live, key, now()).await;
    let offers = offers.map_err(|error| unreadable(&error))?;
    let models: Vec<String> = offers.into_iter().map(|offer| offer.name).collect();
    let settings = &live.config.limits;
    let of_models = models.iter().map(|model| (model.clone(), settings.of_model(model)));
    let limits = views::OwnLimits {
        key: exchange::key_rates(settings, key),
        user: key.user_rates,
        models: of_models.filter(|(_, rates)| !rates.is_none()).collect(),
    };
    json(&views::Me::new(&account, key, limits, models))
}

async fn standing(app: &App, of: Of) -> Result<Standing, Refusal> {
    let asked = app
        .turns
        .ask(&app.gateway.store, move |store, stop| store.standing_of(of, stop));
    asked.await
}

async fn buckets(app: &App, of: Of, asked: &openai::Asked) -> Result<Vec<Sum>, Refusal> {
    let Some(question) = asked.question() else {
        return Ok(Vec::new());
    };
    app.turns
        .ask(&app.gateway.store, move |store, stop| {
            store.sums_of(of, &question, stop)
        })
        .await
}

/// Now, to the microsecond that the books know.
fn now_in_the_books() -> Timestamp {
    Timestamp::from_microsecond(now().as_microsecond()).unwrap_or_else(|_| now())
}

/// When a key stops working: at its own end, or at that of the grace it has left.
fn ends_at(key: &Key) -> Option<Timestamp> {
    key.expires_at.into_iter().chain(key.revoked_at).min()
}

/// A document that is nobody else's, so that no cache keeps it.
fn json(document: &impl Serialize) -> Result<Response<Body>, Refusal> {
    let body = serde_json::to_vec(document).map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "a document cannot be written");
        Refusal::Internal
    })?;
    let mut response = Response::new(Body::from(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use tempfile::tempdir;

    use super::*;
    use crate::store::Create;

    #[tokio::test]
    async fn a_question_whose_client_left_is_stopped_and_gives_its_turn_back() {
        let folder = tempdir().expect("a folder");
        let store = Store::open(&folder.path().join("gateway.db"), Create::IfMissing).expect("a database");
        let turns = Turns::default();
        let (began, begins) = std::sync::mpsc::channel();
        for _ in 0..TURNS {
            let began = began.clone();
            let endless = turns.ask(&store, move |_, stop| {
                began.send(()).expect("somebody waits");
                while !stop.told() {
                    std::thread::yield_now();
                }
                Err::<(), _>(Unread::Stopped)
            });
            // Polled until it reads, then dropped, as the server drops a handler whose client left.
            tokio::select! {
                biased;
                _ = endless => panic!("it ends only when it is stopped"),
                () = async { while begins.try_recv().is_err() { tokio::task::yield_now().await } } => {}
            }
        }
        assert_eq!(
            turns.ask(&store, |_, _| Ok(7)).await,
            Ok(7),
            "their turns are free again"
        );
    }
}
