//! Which request heads are taken: what two readers might take for two different requests is refused, whatever it asks.
//!
//! hyper has refused before what cannot be parsed: lengths that differ, a transfer coding that is not `chunked` at its
//! end or comes with HTTP/1.0, folded lines, a space before a colon, NUL, more than 100 lines. Of a body with both a
//! length and a transfer coding it reads the chunks and then closes the connection (RFC 9112 §6.3), and a lone LF ends
//! a line (§2.2). The route is decided by the path of the request line alone, as it is written; nothing else of the
//! head, `Host` included, has a part in it.

use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, Method, Uri, Version};
use http::header::{AUTHORIZATION, CONTENT_ENCODING, EXPECT, HOST, TRANSFER_ENCODING};
use percent_encoding::percent_decode_str;

use crate::refusal::{Ambiguity, Refusal};

/// Headers of which the first line would count and another be overlooked.
const SINGLE: [HeaderName; 3] = [AUTHORIZATION, HeaderName::from_static("api-key"), CONTENT_ENCODING];

/// Whether a request may go on to its route.
///
/// # Errors
/// [`Refusal::Malformed`], after which its connection is closed.
pub(super) fn check(head: &Parts) -> Result<(), Refusal> {
    method(&head.method)
        .and_then(|()| host(&head.headers, &head.uri, head.version))
        .and_then(|()| path(head.uri.path()))
        .and_then(|()| headers(&head.headers))
        .map_err(Refusal::Malformed)
}

fn method(method: &Method) -> Result<(), Ambiguity> {
    match *method {
        Method::CONNECT | Method::TRACE => Err(Ambiguity::Proxy),
        _ => Ok(()),
    }
}

/// Exactly one `Host`, which an absolute target has to agree with (RFC 9112 §3.2). HTTP/1.0 knows none: load balancers
/// ask for `/healthz` like that.
fn host(headers: &HeaderMap, uri: &Uri, version: Version) -> Result<(), Ambiguity> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => host.to_str().unwrap_or_default(),
        (None, _) if version == Version::HTTP_10 && uri.authority().is_none() => return Ok(()),
        (None, _) => return Err(Ambiguity::NoHost),
        (Some(_), Some(_)) => return Err(Ambiguity::Hosts),
    };
    if host.contains('@') || host.parse::<Authority>().is_err() {
        return Err(Ambiguity::NotAHost);
    }
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => Ok(()),
        (Some("http" | "https"), Some(target)) if target.as_str().eq_ignore_ascii_case(host) => Ok(()),
        _ => Err(Ambiguity::OtherServer),
    }
}

/// No path that somebody else might normalise to another one.
fn path(path: &str) -> Result<(), Ambiguity> {
    if !path.starts_with('/') {
        return Err(Ambiguity::NotAPath);
    }
    let plain: Vec<u8> = percent_decode_str(path).collect();
    if plain.iter().any(|byte| byte.is_ascii_control() || *byte == b'\\') {
        return Err(Ambiguity::Control);
    }
    if plain.windows(2).any(|pair| pair == b"//") {
        return Err(Ambiguity::DoubleSlash);
    }
    if plain
        .split(|byte| *byte == b'/')
        .any(|part| matches!(part, b"." | b".."))
    {
        return Err(Ambiguity::Dots);
    }
    // A model's name may have slashes of its own, which clients write like that.
    let names_a_model = path.starts_with("/v1/models/") || path.starts_with("/models/");
    if !names_a_model && path.to_ascii_lowercase().contains("%2f") {
        return Err(Ambiguity::EncodedSlash);
    }
    Ok(())
}

fn headers(headers: &HeaderMap) -> Result<(), Ambiguity> {
    if SINGLE.iter().any(|name| headers.get_all(name).iter().nth(1).is_some()) {
        return Err(Ambiguity::Repeated);
    }
    let is = |name: HeaderName, only: &str| {
        let mut values = headers.get_all(name).iter();
        values.all(|value| value.as_bytes().eq_ignore_ascii_case(only.as_bytes()))
    };
    if !is(TRANSFER_ENCODING, "chunked") || headers.get_all(TRANSFER_ENCODING).iter().nth(1).is_some() {
        return Err(Ambiguity::TransferCoding);
    }
    if !is(EXPECT, "100-continue") {
        return Err(Ambiguity::Expectation);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use proptest::prelude::*;

    use super::*;

    fn checked(method: &str, target: &str, version: Version, headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let builder = Request::builder().method(method).uri(target).version(version);
        let request = headers
            .iter()
            .fold(builder, |builder, (name, value)| builder.header(*name, *value));
        check(&request.body(()).expect("a request").into_parts().0)
    }

    fn get(target: &str) -> Result<(), Refusal> {
        checked("GET", target, Version::HTTP_11, &[("host", "gw:1")])
    }

    fn post(headers: &[(&str, &str)]) -> Result<(), Refusal> {
        let headers = [&[("host", "gw:1")], headers].concat();
        checked("POST", "/v1/responses", Version::HTTP_11, &headers)
    }

    #[test]
    fn what_clients_send_passes() {
        for target in [
            "/",
            "/healthz",
            "/v1/responses",
            "/v1/chat/completions?api-version=2026-01-01&x=//..",
            "/v1/models/",
            "/v1/models/gpt-6.1-sol",
            "/v1/models/anthropic/claude..5",
            "/v1/models/anthropic%2Fclaude-5",
            "/v1/models/a%20b%C3%A9",
            "/v1/...",
            "http://gw:1/v1/models",
            "HTTPS://GW:1/v1/models",
        ] {
            assert_eq!(get(target), Ok(()), "{target}");
        }
        for headers in [
            &[("transfer-encoding", "Chunked")][..],
            &[("expect", "100-Continue")],
            &[("upgrade", "h2c"), ("connection", "upgrade, http2-settings")],
            &[
                ("authorization", "Bearer a"),
                ("api-key", "b"),
                ("content-encoding", "zstd"),
            ],
            &[
                ("accept", "a"),
                ("accept", "b"),
                ("x-forwarded-for", "1"),
                ("x-forwarded-for", "2"),
            ],
        ] {
            assert_eq!(post(headers), Ok(()), "{headers:?}");
        }
        assert_eq!(checked("GET", "/healthz", Version::HTTP_10, &[]), Ok(()));
    }

    #[test]
    fn a_host_is_there_once_and_is_the_targets() {
        let hosts = |target: &str, version, hosts: &[&str]| {
            let headers: Vec<_> = hosts.iter().map(|host| ("host", *host)).collect();
            checked("GET", target, version, &headers).is_ok()
        };
        for (target, names) in [
            ("/", &[][..]),
            ("/", &["a", "a"]),
            ("/", &[""]),
            ("/", &["a b"]),
            ("/", &["me@a"]),
            ("/", &["a/v1"]),
            ("http://a/", &["b"]),
            ("http://a/", &["a:80"]),
            ("http://me@a/", &["me@a"]),
            ("http://a/", &[]),
            ("ftp://a/", &["a"]),
        ] {
            assert!(!hosts(target, Version::HTTP_11, names), "{target} {names:?}");
        }
        assert!(!hosts("/", Version::HTTP_10, &["a", "b"]));
        assert!(!hosts("http://a/", Version::HTTP_10, &[]));
    }

    #[test]
    fn no_path_may_be_read_as_another() {
        for target in [
            "/v1/../v1/responses",
            "/v1/./responses",
            "/v1/responses/..",
            "/v1/%2e%2e/responses",
            "/v1/.%2E/responses",
            "/v1%2fresponses",
            "/v1/chat%2Fcompletions",
            "/v1//responses",
            "//v1/responses",
            "/v1/models//x",
            "/v1/models/..%2fresponses",
            "/v1/models/x%2f%2e%2e",
            "/v1\\responses",
            "/v1%5cresponses",
            "/v1/responses%00",
            "/v1/responses%0d%0a",
            "/v1/responses%7f",
            "*",
        ] {
            assert!(get(target).is_err(), "{target}");
        }
    }

    #[test]
    fn headers_that_count_once_come_once() {
        for headers in [
            &[("authorization", "Bearer a"), ("authorization", "Bearer b")][..],
            &[("api-key", "a"), ("api-key", "a")],
            &[("content-encoding", "identity"), ("content-encoding", "gzip")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked, chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "\tchunked")],
            &[("expect", "100-continue, x")],
            &[("expect", "100-continue"), ("expect", "x")],
            &[("expect", "")],
        ] {
            assert!(post(headers).is_err(), "{headers:?}");
        }
        for method in ["CONNECT", "TRACE"] {
            assert!(checked(method, "/v1/responses", Version::HTTP_11, &[("host", "a")]).is_err());
        }
    }

    proptest! {
        #[test]
        fn a_path_that_passes_is_its_own_normal_form(path in "(/(v1|models|responses|[.]{1,3}|%2[eEfF]|%5c|%00|\\\\|a)?){1,6}") {
            if get(&path).is_ok() {
                let plain = percent_decode_str(&path).decode_utf8().expect("ASCII").into_owned();
                let url = reqwest::Url::parse(&format!("http://gw{plain}")).expect("a URL");
                prop_assert_eq!(url.path(), plain.as_str());
            }
        }
    }
}
