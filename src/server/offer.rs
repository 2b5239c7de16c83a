//! `GET /v1/models`: what this key may use, in OpenAI's form and Codex's at once.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::models::{self, Offered, Purpose, Rates, Speaks};
use super::refusal::Refused;
use super::{App, Arrival, auth};
use crate::exchange::{self, Live, Offer};
use crate::money::Usd;
use crate::pricing::{Class, Kind};
use crate::refusal::Refusal;
use crate::route;
use crate::store::StoreError;
use crate::store::keys::Key;
use crate::time::now;
use crate::usage::Tokens;

/// All models.
pub(super) async fn list(app: &App, arrival: &Arrival, headers: &HeaderMap) -> Result<Response<Body>, Refused> {
    let key = auth::authenticate(app, arrival, headers).await?;
    let refused = Refused::to(auth::language(&key));
    let (document, tag) = look(app, &arrival.live, &key).await.map_err(&refused)?;
    Ok(respond(headers, &document, &tag))
}

/// The list for a key and its tag, which is noted.
pub(super) async fn look(app: &App, live: &Arc<Live>, key: &Key) -> Result<(Value, String), Refusal> {
    let generation = app.gateway.store.generation();
    let offered = offered(app, live, key).await?;
    let (document, tag) = models::document(&offered, available(app, key).await?);
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        app.tags.note(key, tag, generation, live);
    }
    Ok((document, tag))
}

/// One model.
pub(super) async fn show(
    app: &App,
    arrival: &Arrival,
    headers: &HeaderMap,
    name: &str,
) -> Result<Response<Body>, Refused> {
    let key = auth::authenticate(app, arrival, headers).await?;
    let name = percent_decode_str(name).decode_utf8_lossy();
    let refused = Refused::to(auth::language(&key));
    let offered = offered(app, &arrival.live, &key).await.map_err(&refused)?;
    match offered.iter().find(|model| model.name == name) {
        Some(model) => {
            let document = models::one(model);
            let tag = models::etag(document.to_string().as_bytes());
            Ok(respond(headers, &document, &tag))
        }
        None => {
            let names = offered.iter().map(|model| model.name.as_str());
            let nearest = route::nearest(&name, names).map(str::to_owned);
            Err(refused(Refusal::NoModel {
                model: name.into_owned(),
                nearest,
            }))
        }
    }
}

async fn offered(app: &App, live: &Live, key: &Key) -> Result<Vec<Offered>, Refusal> {
    let offers = exchange::offered(&app.gateway, live, key, now())
        .await
        .map_err(|error| unreadable(&error))?;
    Ok(offers.iter().map(|offer| described(live, key, offer)).collect())
}

/// What the key's user can spend.
async fn available(app: &App, key: &Key) -> Result<Usd, Refusal> {
    let user = key.user_id.to_string();
    let found = app.gateway.store.blocking(move |store| store.find_user(&user)).await;
    let user = found.map_err(|error| unreadable(&error))?;
    Ok(user.map_or(Usd::ZERO, |user| user.available()))
}

fn unreadable(error: &StoreError) -> Refusal {
    tracing::error!(error = error as &dyn std::error::Error, "the books cannot be read");
    Refusal::Storage
}

fn described(live: &Live, key: &Key, offer: &Offer) -> Offered {
    let price = &offer.price;
    let markup = live.config.billing.markup.of(key.user_markup, &offer.name);
    let rate = |class: Class| price.rates.get(&class).map(|rate| rate.charged(markup));
    let tokens = |count: Option<u32>| count.map(|count| Tokens::saturating(u64::from(count)));
    Offered {
        name: offer.name.clone(),
        created: offer.since.map_or(0, |since| since.as_second()),
        owned_by: offer.upstream.clone(),
        purpose: match (price.kind, offer.since) {
            // Free: its price says nothing of it.
            (Kind::Text, None) => Purpose::by_name(&offer.name),
            (Kind::Text, Some(_)) => Purpose::Answers,
            _ => Purpose::Other,
        },
        speaks: Speaks::of(live.upstreams[offer.target.upstream].base_url()),
        rates: offer.since.and(rate(Class::Input)).map(|input| Rates {
            input,
            cached_input: rate(Class::CachedInput),
            output: rate(Class::Output),
        }),
        max_input: tokens(price.max_input),
        max_output: tokens(price.max_output),
    }
}

/// Whether `If-None-Match` names the tag: one of a list, weak or not, or any.
fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    let named = headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|list| list.to_str().ok());
    let mut named = named.flat_map(|list| list.split(',')).map(str::trim);
    named.any(|one| one == "*" || opaque(one) == opaque(tag))
}

/// A tag without the mark of a weak one.
fn opaque(tag: &str) -> &str {
    tag.strip_prefix("W/").unwrap_or(tag)
}

fn respond(headers: &HeaderMap, document: &Value, tag: &str) -> Response<Body> {
    let known = is_known(headers, tag);
    let body = || Body::from(document.to_string());
    let mut response = Response::new(if known { Body::empty() } else { body() });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}
