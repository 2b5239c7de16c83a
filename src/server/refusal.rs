//! Refusals as HTTP: the table's row as a response.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode};
use http::header::{ALLOW, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use serde_json::json;

use crate::call::Endpoint;
use crate::refusal::Refusal;
use crate::store::ExchangeId;

/// The response to a refusal.
pub(super) fn respond(refusal: &Refusal, endpoint: Option<Endpoint>, id: ExchangeId) -> Response<Body> {
    let told = refusal.told(endpoint);
    let mut gateway = serde_json::to_value(&told.gateway).unwrap_or_default();
    gateway["exchange"] = json!(id.to_string());
    let body = json!({"error": {
        "message": told.message, "type": told.kind, "param": told.param, "code": told.code, "gateway": gateway,
    }});
    tracing::info!(exchange = %id, status = told.status, code = told.gateway.code, "refused");
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(told.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some(after) = told.retry_after {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_secs()));
    }
    if let Refusal::Method { allowed } = refusal {
        headers.insert(ALLOW, HeaderValue::from_static(allowed));
    }
    if let Refusal::Malformed(_) = refusal {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(promo) = told.promo.and_then(|promo| HeaderValue::from_str(&promo).ok()) {
        headers.insert("x-codex-promo-message", promo);
        headers.insert("x-should-retry", HeaderValue::from_static("false"));
    }
    response
}
