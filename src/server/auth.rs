//! Who is calling: the token of a request, checked against the keys.
//!
//! Unknown, revoked and expired keys are one answer after the same work. A token that cannot be a key of ours is
//! refused before any look-up. Too many of either from one address are another answer (`failures.rs`).

use std::net::IpAddr;
use std::sync::Arc;

use http::HeaderMap;
use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use ipnet::IpNet;

use super::{App, Arrival};
use crate::key::{GatewayKey, KeyHash, NotAKey};
use crate::refusal::Refusal;
use crate::store::keys::Key;
use crate::texts::Language;
use crate::time::now;

/// How OpenAI's browser clients send a key with a WebSocket.
pub(super) const WEBSOCKET_KEY: &str = "openai-insecure-api-key.";

/// The key of a request, known to be good from this address.
pub(super) async fn authenticate(app: &App, arrival: &Arrival, headers: &HeaderMap) -> Result<Arc<Key>, Refusal> {
    let ip = || client_ip(arrival.peer.ip(), headers, &arrival.live.config.server.trusted_proxies);
    match good(app, headers, ip).await {
        Err(refusal @ (Refusal::BadKey | Refusal::ForeignKey(_))) => Err(app.failures.tell(ip(), refusal)),
        told => told,
    }
}

async fn good(app: &App, headers: &HeaderMap, ip: impl Fn() -> IpAddr) -> Result<Arc<Key>, Refusal> {
    let key = presented(headers)?;
    let found = match app.gateway.store.known_key(&key.hash()) {
        Some(known) => known,
        None => read(app, key.hash(), ip()).await?,
    };
    let now = now();
    let valid = |key: &Arc<Key>| key.revoked_at.is_none_or(|at| at > now) && key.expires_at.is_none_or(|at| at > now);
    let key = found.filter(valid).ok_or(Refusal::BadKey)?;
    if !key.ips.is_empty() {
        let ip = ip();
        if !key.ips.iter().any(|range| range.contains(&ip)) {
            return Err(Refusal::Ip);
        }
    }
    app.used_keys.note(key.id, now);
    Ok(key)
}

/// A key that is not in memory, from the database; in its turn, if many from there were none.
async fn read(app: &App, hash: KeyHash, ip: IpAddr) -> Result<Option<Arc<Key>>, Refusal> {
    let _turn = app.failures.turn(ip).await;
    app.gateway.store.look_up_key(hash).await.map_err(|error| {
        tracing::error!(error = &error as &dyn std::error::Error, "keys cannot be read");
        Refusal::Storage
    })
}

/// The language that the key's user has set.
pub(super) fn language(key: &Key) -> Option<Language> {
    key.user_language
}

/// The key of a request, as it was sent.
pub(super) fn presented(headers: &HeaderMap) -> Result<GatewayKey, Refusal> {
    let token = token(headers).ok_or(Refusal::BadKey)?;
    GatewayKey::parse(token).map_err(|error| match error {
        NotAKey::Foreign(whose) => Refusal::ForeignKey(whose),
        NotAKey::Malformed => Refusal::BadKey,
    })
}

/// `Authorization: Bearer`, `api-key`, or the subprotocol of OpenAI's browser clients.
fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| {
            let (scheme, token) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
        });
    let api_key = || headers.get("api-key").and_then(|value| value.to_str().ok());
    let protocol = || {
        let offered = headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .filter_map(|value| value.to_str().ok());
        offered
            .flat_map(|value| value.split(','))
            .find_map(|protocol| protocol.trim().strip_prefix(WEBSOCKET_KEY))
    };
    bearer.or_else(api_key).or_else(protocol)
}

/// The client's address: the right-most of `X-Forwarded-For` that is no trusted proxy, when the peer is one.
fn client_ip(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |ip: &IpAddr| trusted.iter().any(|range| range.contains(ip));
    let peer = peer.to_canonical();
    if !is_trusted(&peer) {
        return peer;
    }
    let lines = headers.get_all("x-forwarded-for").iter();
    let hops: Vec<&[u8]> = lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .collect();
    let mut client = peer;
    for hop in hops.into_iter().rev() {
        // A hop that is no address was not written by a proxy of ours, nor is what stands before it.
        let ip = std::str::from_utf8(hop)
            .ok()
            .and_then(|hop| hop.trim().parse::<IpAddr>().ok());
        let Some(ip) = ip else { break };
        client = ip.to_canonical();
        if !is_trusted(&client) {
            break;
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn a_line_that_is_no_text_ends_the_chain_and_does_not_vanish() {
        let (proxy, trusted) = (ip("10.0.0.1"), ["10.0.0.0/8".parse().expect("a range")]);
        let mut headers = forwarded(&["203.0.113.7"]);
        let append = |headers: &mut HeaderMap, line: &[u8]| {
            let line = axum::http::HeaderValue::from_bytes(line).expect("a value");
            headers.append("x-forwarded-for", line);
        };
        append(&mut headers, b"\xff");
        assert_eq!(client_ip(proxy, &headers, &trusted), proxy);
        append(&mut headers, b"\xff, 198.51.100.2");
        assert_eq!(client_ip(proxy, &headers, &trusted), ip("198.51.100.2"));
    }

    fn forwarded(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", line.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn only_a_trusted_proxy_is_believed_and_only_about_the_hop_before_it() {
        let trusted = ["10.0.0.0/8".parse().expect("a range")];
        let seen = |peer: &str, lines: &[&str]| client_ip(ip(peer), &forwarded(lines), &trusted).to_string();
        assert_eq!(
            seen("203.0.113.9", &["198.51.100.1"]),
            "203.0.113.9",
            "anybody may write the header"
        );
        assert_eq!(seen("10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
        assert_eq!(
            seen("10.0.0.1", &["1.2.3.4, 198.51.100.1, 10.0.0.2"]),
            "198.51.100.1",
            "the left part is the client's"
        );
        assert_eq!(seen("10.0.0.1", &["1.2.3.4", "198.51.100.1"]), "198.51.100.1");
        assert_eq!(seen("10.0.0.1", &["198.51.100.1, rubbish"]), "10.0.0.1");
        assert_eq!(seen("::ffff:10.0.0.1", &["198.51.100.1"]), "198.51.100.1");
    }

    #[test]
    fn a_key_is_found_where_openais_clients_put_it() {
        let of = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().expect("a value"));
            token(&headers).map(str::to_owned)
        };
        assert_eq!(of("authorization", "Bearer sk-gw-1").as_deref(), Some("sk-gw-1"));
        assert_eq!(of("authorization", "bearer  sk-gw-1 ").as_deref(), Some("sk-gw-1"));
        assert_eq!(of("authorization", "Basic abc"), None);
        assert_eq!(of("api-key", "sk-gw-1").as_deref(), Some("sk-gw-1"));
        let protocols = "realtime, openai-insecure-api-key.sk-gw-1, openai-beta.realtime-v1";
        assert_eq!(of("sec-websocket-protocol", protocols).as_deref(), Some("sk-gw-1"));
    }
}
