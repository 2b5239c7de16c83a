//! The handshake of a WebSocket (RFC 6455 §4.2). Pure.
//!
//! No extension is taken: the library has no compression.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION,
    TRANSFER_ENCODING, UPGRADE,
};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::server::auth::WEBSOCKET_KEY;

/// The answer to a request that asks for a WebSocket; `None`: it does not, or not in a way that is understood.
pub(super) fn accept(head: &Parts) -> Option<Response<Body>> {
    let headers = &head.headers;
    let asks = head.version == Version::HTTP_11
        && has(headers, &CONNECTION, "upgrade")
        && has(headers, &UPGRADE, "websocket")
        && headers
            .get(SEC_WEBSOCKET_VERSION)
            .is_some_and(|version| version == "13");
    // What follows the head would be read as frames, by one of us.
    let has_body =
        headers.contains_key(TRANSFER_ENCODING) || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    let mut keys = headers.get_all(SEC_WEBSOCKET_KEY).iter();
    let (Some(key), None) = (keys.next(), keys.next()) else {
        return None;
    };
    if !asks || has_body || key.len() != 24 {
        return None;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
    answer.insert(SEC_WEBSOCKET_ACCEPT, derive_accept_key(key.as_bytes()).parse().ok()?);
    if let Some(protocol) = protocol(headers) {
        answer.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Some(response)
}

fn listed<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

fn has(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    listed(headers, name).any(|found| found.eq_ignore_ascii_case(token))
}

/// One of the protocols that are offered: clients that offer any insist on an answer. Where the key is all there is, its
/// sender gets it back.
fn protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let offered = || listed(headers, &SEC_WEBSOCKET_PROTOCOL);
    let chosen = offered().find(|protocol| !protocol.starts_with(WEBSOCKET_KEY));
    chosen.or_else(|| offered().next())?.parse().ok()
}

#[cfg(test)]
mod tests {
    use axum::http::Request;

    use super::*;

    /// The example of RFC 6455, with other headers.
    fn asked(others: &[(&str, &str)]) -> Option<Response<Body>> {
        let usual = [
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let mut request = Request::builder();
        for (name, value) in usual
            .iter()
            .filter(|(name, _)| !others.iter().any(|(other, _)| other == name))
        {
            request = request.header(*name, *value);
        }
        for (name, value) in others.iter().filter(|(_, value)| !value.is_empty()) {
            request = request.header(*name, *value);
        }
        accept(&request.body(()).expect("a request").into_parts().0)
    }

    #[test]
    fn what_asks_for_a_websocket_gets_one() {
        let response = asked(&[]).expect("it asks");
        assert_eq!(response.status(), 101);
        assert_eq!(
            response.headers()["sec-websocket-accept"],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert!(!response.headers().contains_key("sec-websocket-protocol"));
    }

    #[test]
    fn what_does_not_or_brings_a_body_gets_none() {
        for other in [
            ("connection", "keep-alive"),
            ("upgrade", "h2c"),
            ("sec-websocket-version", "8"),
            ("sec-websocket-key", ""),
            ("sec-websocket-key", "short"),
            ("content-length", "3"),
            ("transfer-encoding", "chunked"),
        ] {
            assert!(asked(&[other]).is_none(), "{other:?}");
        }
        assert!(asked(&[("content-length", "0")]).is_some());
    }

    #[test]
    fn a_protocol_is_chosen_and_the_key_only_where_there_is_no_other() {
        let key = "openai-insecure-api-key.sk-gw-1";
        for (offered, chosen) in [(format!("{key}, realtime"), "realtime"), (key.to_owned(), key)] {
            let response = asked(&[("sec-websocket-protocol", &offered)]).expect("it asks");
            assert_eq!(response.headers()["sec-websocket-protocol"], chosen);
        }
    }
}
