//! `GET /v1/models`: what this key may use, in OpenAI's form and Codex's at once.

use std::net::SocketAddr;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::models::{self, Offered, Purpose, Rates, Speaks};
use super::{App, auth};
use crate::exchange::{self, Offer};
use crate::pricing::{Class, Kind};
use crate::refusal::Refusal;
use crate::route;
use crate::store::keys::Key;
use crate::time::now;
use crate::usage::Tokens;

/// All models.
pub(super) async fn list(app: &App, peer: SocketAddr, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let key = auth::authenticate(app, peer, headers).await?;
    let offered = offered(app, &key).await?;
    Ok(respond(headers, &models::document(&offered)))
}

/// One model.
pub(super) async fn show(
    app: &App,
    peer: SocketAddr,
    headers: &HeaderMap,
    name: &str,
) -> Result<Response<Body>, Refusal> {
    let key = auth::authenticate(app, peer, headers).await?;
    let name = percent_decode_str(name).decode_utf8_lossy();
    let offered = offered(app, &key).await?;
    match offered.iter().find(|model| model.name == name) {
        Some(model) => Ok(respond(headers, &models::one(model))),
        None => {
            let names = offered.iter().map(|model| model.name.as_str());
            let nearest = route::nearest(&name, names).map(str::to_owned);
            Err(Refusal::NoModel {
                model: name.into_owned(),
                nearest,
            })
        }
    }
}

async fn offered(app: &App, key: &Key) -> Result<Vec<Offered>, Refusal> {
    let offers = exchange::offered(&app.gateway, key, now()).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "prices cannot be read");
        Refusal::Storage
    })?;
    Ok(offers.iter().map(|offer| described(app, offer)).collect())
}

fn described(app: &App, offer: &Offer) -> Offered {
    let price = &offer.price;
    let markup = app.gateway.billing.markup;
    let rate = |class: Class| price.rates.get(&class).map(|rate| rate.charged(markup));
    let tokens = |count: Option<u32>| count.map(|count| Tokens::saturating(u64::from(count)));
    Offered {
        name: offer.name.clone(),
        created: offer.since.map_or(0, |since| since.as_second()),
        owned_by: offer.upstream.clone(),
        purpose: if price.kind == Kind::Embedding {
            Purpose::Other
        } else {
            Purpose::Answers
        },
        speaks: Speaks::of(app.gateway.upstreams[offer.target.upstream].base_url()),
        rates: rate(Class::Input).map(|input| Rates {
            input,
            cached_input: rate(Class::CachedInput),
            output: rate(Class::Output),
        }),
        max_input: tokens(price.max_input),
        max_output: tokens(price.max_output),
    }
}

fn respond(headers: &HeaderMap, document: &Value) -> Response<Body> {
    let body = document.to_string();
    let tag = models::etag(body.as_bytes());
    let known = headers
        .get(IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = Response::new(if known { Body::empty() } else { Body::from(body) });
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response
}
