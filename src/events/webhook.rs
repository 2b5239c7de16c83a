//! A webhook: events are posted, signed as the Standard Webhooks have it (standardwebhooks.com).

use std::error::Error;
use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use hmac::{Hmac, KeyInit, Mac};
use http::StatusCode;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Url, redirect};
use serde::Serialize;
use sha2::Sha256;

use super::Failed;
use crate::bilingual;
use crate::config::{Secret, is_public};
use crate::exchange::{install_crypto, roots};
use crate::language::Bilingual;
use crate::store::events::Event;

/// How long a connection may take, and the whole request.
const CONNECT: Duration = Duration::from_secs(10);
const WHOLE: Duration = Duration::from_secs(30);

/// Where events are posted.
#[derive(Debug)]
pub(super) struct Webhook {
    url: Url,
    secret: Secret,
    client: Client,
}

/// What is posted.
#[derive(Serialize)]
struct Body<'a> {
    events: &'a [&'a Event],
}

impl Webhook {
    pub(super) fn new(url: &Url, secret: &Secret, allow_private: bool) -> Result<Webhook, Bilingual> {
        install_crypto();
        let mut builder = Client::builder()
            .tls_certs_only(roots(None)?)
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .user_agent(concat!("codex-gateway/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .timeout(WHOLE);
        if !allow_private {
            builder = builder.dns_resolver(PublicOnly);
        }
        Ok(Webhook {
            url: url.clone(),
            secret: secret.clone(),
            client: builder
                .build()
                .map_err(|error| bilingual!(en: "no client can be made: {error}", zh: "无法建立客户端：{error}"))?,
        })
    }

    /// Posts events, in one request. A 2xx says that the receiver has them, anything else that it does not.
    pub(super) async fn post(&self, events: &[&Event], now: Timestamp) -> Result<(), Failed> {
        let body = serde_json::to_vec(&Body { events }).map_err(|error| Failed::of(error.to_string()))?;
        let id = events.last().map(|event| event.id.to_string()).unwrap_or_default();
        let at = now.as_second();
        let signature = signature(&self.secret.signing_key(), &id, at, &body);
        let request = self
            .client
            .post(self.url.clone())
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", at)
            .header("webhook-signature", signature)
            .body(body);
        let answer = request
            .send()
            .await
            .map_err(|error| Failed::of(chain(&error.without_url())))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(());
        }
        let told = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        Err(Failed {
            why: refused(status),
            after: told.and_then(|told| asked(told, now)),
        })
    }
}

fn refused(status: StatusCode) -> String {
    match status.is_redirection() {
        true => format!("the receiver answered {status}, and redirects are not followed"),
        false => format!("the receiver answered {status}"),
    }
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// `v1,` and the HMAC-SHA256 of `ID.SECONDS.BODY` in base64.
fn signature(key: &[u8], id: &str, at: i64, body: &[u8]) -> String {
    // It takes a key of any length.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else {
        return String::new();
    };
    mac.update(format!("{id}.{at}.").as_bytes());
    mac.update(body);
    let signed = mac.finalize().into_bytes();
    format!("v1,{}", base64::engine::general_purpose::STANDARD.encode(signed))
}

/// How long a `Retry-After` wants to be waited: seconds, or until a date.
fn asked(told: &str, now: Timestamp) -> Option<Duration> {
    let told = told.trim();
    if let Ok(seconds) = told.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let until = rfc2822::DateTimeParser::new().parse_timestamp(told).ok()?;
    Duration::try_from(now.duration_until(until)).ok()
}

/// Looks names up, and knows only their public addresses: a name that leads elsewhere, now or later, leads nowhere. What
/// is connected to is what was looked up here.
#[derive(Debug)]
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let public: Vec<SocketAddr> = found.into_iter().filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err("the host has no address of the public internet, and allow_private is not set".into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks' own libraries.
    #[test]
    fn a_signature_is_that_of_the_standard() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned());
        let signed = signature(
            &secret.signing_key(),
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signed, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_receiver_asks_for_seconds_or_until_a_date() {
        let now = "2026-11-28T12:00:00Z".parse().expect("a time");
        let seconds = |told| asked(told, now).map(|wait| wait.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds("Sat, 28 Nov 2026 12:00:30 GMT"), Some(30));
        assert_eq!(seconds("Sat, 28 Nov 2026 11:00:00 GMT"), None);
        assert_eq!(seconds("soon"), None);
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_private_address_leads_nowhere() {
        let name = "localhost".parse().expect("a name");
        let error = PublicOnly.resolve(name).await.err().expect("it is this machine");
        assert!(error.to_string().contains("allow_private"), "{error}");
    }
}
