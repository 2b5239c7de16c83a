//! Refusals as HTTP: the table's row and its words as a response, in the language of who is refused.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode};
use http::HeaderMap;
use http::header::{ACCEPT_LANGUAGE, ALLOW, CONNECTION, CONTENT_LANGUAGE, CONTENT_TYPE, RETRY_AFTER};
use serde_json::{Value, json};

use super::rates;
use crate::call::Endpoint;
use crate::exchange::Declined;
use crate::limits::Standing;
use crate::metrics::Metrics;
use crate::refusal::{Refusal, Told};
use crate::store::ExchangeId;
use crate::texts::{self, Language};

/// A refusal, and the language that the user has set, once it is known who is refused.
#[derive(Debug)]
pub(super) struct Refused {
    declined: Declined,
    of_user: Option<Language>,
    standing: Standing,
}

impl Refused {
    /// Of a user with this setting.
    pub(super) fn to(of_user: Option<Language>) -> impl Fn(Refusal) -> Refused {
        move |refusal| Refused::by(refusal.into(), of_user)
    }

    /// By an exchange, of a user with this setting.
    pub(super) fn by(declined: Declined, of_user: Option<Language>) -> Refused {
        Refused {
            declined,
            of_user,
            standing: Standing::default(),
        }
    }

    /// With what is left of the rate limits.
    pub(super) fn with(self, standing: Standing) -> Refused {
        Refused { standing, ..self }
    }
}

/// Of nobody that is known.
impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused::by(refusal.into(), None)
    }
}

/// What a client asks for: `Accept-Language`.
pub(super) fn accepted(headers: &HeaderMap) -> Option<Language> {
    let values = headers.get_all(ACCEPT_LANGUAGE).iter();
    Language::accepted(values.filter_map(|value| value.to_str().ok()))
}

/// The document of a refusal.
fn body(refusal: &Refusal, told: &Told, language: Language) -> Value {
    let gateway = serde_json::to_value(&told.gateway).unwrap_or_default();
    json!({"error": {
        "message": texts::message(refusal, language), "type": told.kind, "param": told.param, "code": told.code, "gateway": gateway,
    }})
}

/// A refusal of a connection of which nothing was read, as bytes.
pub(super) fn raw(refusal: &Refusal) -> Vec<u8> {
    let told = refusal.told(None);
    let status = StatusCode::from_u16(told.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let after = told
        .retry_after
        .map(|after| format!("Retry-After: {}\r\n", after.as_secs()));
    let body = body(refusal, &told, Language::default()).to_string();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        after.unwrap_or_default(),
        body.len(),
    )
    .into_bytes()
}

/// A refusal as it leaves, whatever carries it.
pub(super) struct Words {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// `{"error": …}`
    pub(super) body: Value,
}

/// What is said to who is refused, in the user's language, else in the one that the client accepts; it is counted and
/// logged.
pub(super) fn words(
    metrics: &Metrics,
    refused: &Refused,
    accepted: Option<Language>,
    endpoint: Option<Endpoint>,
    id: ExchangeId,
) -> Words {
    let Refused {
        declined,
        of_user,
        standing,
    } = refused;
    let refusal = &declined.refusal;
    let language = Language::choose(*of_user, accepted);
    let told = refusal.told(endpoint);
    let mut body = body(refusal, &told, language);
    if told.gateway.exchange.is_none() {
        body["error"]["gateway"]["exchange"] = json!(id.to_string());
    }
    metrics.refused(told.gateway.code);
    if !declined.settled {
        tracing::info!(exchange = %id, status = told.status, code = told.gateway.code.name(), "refused");
    }
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LANGUAGE, HeaderValue::from_static(language.name()));
    rates::tell(standing, &mut headers);
    if let Some(after) = told.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    if let Refusal::Method { allowed } = refusal {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    if let Refusal::Malformed(_) = refusal {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if told.promo
        && let Some(promo) = texts::promo(refusal).and_then(|promo| HeaderValue::from_str(&promo).ok())
    {
        headers.insert("x-codex-promo-message", promo);
    }
    if told.is_final {
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    Words {
        status: StatusCode::from_u16(told.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        headers,
        body,
    }
}

/// The response to a refusal.
pub(super) fn respond(
    metrics: &Metrics,
    refused: &Refused,
    accepted: Option<Language>,
    endpoint: Option<Endpoint>,
    id: ExchangeId,
) -> Response<Body> {
    let Words { status, headers, body } = words(metrics, refused, accepted, endpoint, id);
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}
