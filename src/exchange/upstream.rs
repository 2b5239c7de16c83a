//! An upstream: its connection, what is sent to it, and what of its answer may reach the client.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use reqwest::{Client, Proxy, Response, Url, redirect};
use tokio::time::timeout;

use super::{Admitted, Watch, sending};
use crate::call::{ChatLimitField, Edits, Endpoint};
use crate::config::{Pricing, UpstreamAuth, UpstreamConfig};
use crate::refusal::UpstreamFault;
use crate::usage::Dialect;

/// Connections are closed by us before the peer does (nginx 75 s, load balancers 60 s): a request on a connection
/// that the peer is closing cannot be told from one it has read.
const POOL_IDLE: Duration = Duration::from_secs(25);

/// How often a call is sent when no connection came about: nothing can have been accepted then.
const ATTEMPTS: u32 = 2;

/// Client headers that go on to every upstream.
const FORWARDED: [&str; 4] = ["user-agent", "originator", "openai-beta", "idempotency-key"];

/// Client headers that go on by the start of their names: Codex's and OpenAI's own.
const FORWARDED_PREFIXES: [&str; 5] = ["x-codex-", "x-openai-", "session", "thread-id", "x-client-request-id"];

/// Holds paths and remotes of the user's work tree: only OpenAI's own servers get it.
const TURN_METADATA: &str = "x-codex-turn-metadata";

/// Headers of an answer that reach the client. What tells of the operator's account does not.
const RETURNED: [&str; 8] = [
    "content-type",
    "content-encoding",
    "openai-processing-ms",
    "openai-version",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-codex-turn-state",
];

/// Why an upstream cannot be used as it is set.
#[derive(Debug, thiserror::Error)]
#[error("upstream '{name}': {what}")]
pub struct UpstreamError {
    /// Which.
    pub name: String,
    /// What is wrong.
    pub what: String,
}

/// A configured upstream with its connection pool.
#[derive(Debug)]
pub struct Upstream {
    config: UpstreamConfig,
    client: Client,
    headers: HeaderMap,
    base_url: Url,
    /// Whether it is one of OpenAI's own servers.
    is_openai: bool,
    chat_limit_field: ChatLimitField,
    /// Whether its total of tokens covers reasoning that its output does not.
    total_covers_reasoning: bool,
}

impl Upstream {
    /// Builds the client. `ca` is the content of `ca_file`.
    pub fn new(config: &UpstreamConfig, ca: Option<&[u8]>) -> Result<Upstream, UpstreamError> {
        install_crypto();
        let wrong = |what: String| UpstreamError {
            name: config.name.clone(),
            what,
        };
        let mut builder = Client::builder()
            .tls_certs_only(roots(ca).map_err(wrong)?)
            .redirect(redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .tcp_nodelay(true)
            .connect_timeout(config.connect_timeout)
            .pool_idle_timeout(POOL_IDLE);
        builder = match &config.proxy {
            Some(proxy) => {
                builder.proxy(Proxy::all(proxy).map_err(|e| wrong(format!("the proxy is not usable: {e}")))?)
            }
            None => builder.no_proxy(),
        };
        let client = builder
            .build()
            .map_err(|e| wrong(format!("no client can be made: {e}")))?;
        let headers = own_headers(config).map_err(wrong)?;
        let base_url = Url::parse(&config.base_url).map_err(|e| wrong(format!("the base_url is not usable: {e}")))?;
        let is_priced_by =
            |lists: &[&str]| matches!(&config.prices, Pricing::List(list) if lists.contains(&list.as_str()));
        Ok(Upstream {
            is_openai: is_at(&base_url, &["openai.com"]),
            total_covers_reasoning: is_at(&base_url, &["x.ai", "googleapis.com"]) || is_priced_by(&["xai", "gemini"]),
            chat_limit_field: config.chat_limit_field(),
            config: config.clone(),
            client,
            headers,
            base_url,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Its base URL.
    pub fn base_url(&self) -> &str {
        &self.config.base_url
    }

    /// How its calls are priced.
    pub fn pricing(&self) -> &Pricing {
        &self.config.prices
    }

    /// A region that may carry an uplift.
    pub fn region(&self) -> Option<&str> {
        self.config.region.as_deref()
    }

    /// Globs of the models it serves.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.config.models.iter().map(String::as_str)
    }

    /// How long its answer may pause.
    pub(super) fn idle_timeout(&self) -> Duration {
        self.config.idle_timeout
    }

    /// How it writes usage: by who it is, whatever list it is priced by.
    pub(super) fn dialect(&self, endpoint: Endpoint) -> Dialect {
        match endpoint {
            Endpoint::ChatCompletions | Endpoint::Completions if self.total_covers_reasoning => {
                Dialect::TotalCoversReasoning
            }
            _ => Dialect::OpenAi,
        }
    }

    /// Where it takes calls of an endpoint.
    fn url(&self, endpoint: Endpoint) -> Url {
        let mut url = self.base_url.clone();
        url.set_path(&format!(
            "{}{}",
            self.base_url.path().trim_end_matches('/'),
            endpoint.path()
        ));
        url
    }

    /// Sends the call with what may go on of the client's headers, and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        admitted: &Admitted,
        of_client: HeaderMap,
        watch: &mut Watch,
    ) -> Result<Response, UpstreamFault> {
        let url = self.url(admitted.call.endpoint);
        let body = admitted.call.upstream_body(&self.edits(admitted));
        let headers = self.request_headers(&of_client);
        let response = loop {
            watch.attempts += 1;
            let request = self.client.post(url.clone()).headers(headers.clone());
            let sent = timeout(self.config.first_byte_timeout, sending::send(request, body.clone())).await;
            match sent {
                Err(_) => return Err(UpstreamFault::Timeout),
                Ok(Err(_)) => return Err(UpstreamFault::Broken),
                Ok(Ok(Ok(response))) => break response,
                Ok(Ok(Err(error))) if error.is_connect() && watch.attempts < ATTEMPTS => {
                    tracing::info!(
                        upstream = self.name(),
                        error = chain(&error),
                        "no connection; trying once more"
                    );
                }
                Ok(Ok(Err(error))) => {
                    tracing::warn!(
                        upstream = self.name(),
                        error = chain(&error),
                        "the upstream did not answer"
                    );
                    return Err(if error.is_connect() {
                        UpstreamFault::Unreachable
                    } else {
                        UpstreamFault::Broken
                    });
                }
            }
        };
        watch.first_byte_now();
        watch.status = Some(response.status());
        let id = response.headers().get("x-request-id");
        watch.upstream_request_id = id.and_then(|value| value.to_str().ok()).map(str::to_owned);
        Ok(response)
    }

    fn edits(&self, admitted: &Admitted) -> Edits {
        let call = &admitted.call;
        Edits {
            model: admitted.target.aliased.then(|| admitted.target.model.clone()),
            output_limit: admitted.limit.written(),
            include_usage: asks_for_usage(call.endpoint) && call.stream && !call.include_usage,
            chat_limit_field: self.chat_limit_field,
        }
    }

    /// A request is built anew: our credential, and only those of the client's headers that are on the list.
    fn request_headers(&self, of_client: &HeaderMap) -> HeaderMap {
        let mut headers = self.headers.clone();
        let hops = named_by_connection(of_client);
        for (name, value) in of_client {
            let name_text = name.as_str();
            let listed =
                FORWARDED.contains(&name_text) || FORWARDED_PREFIXES.iter().any(|start| name_text.starts_with(start));
            let ends_here = hops.iter().any(|hop| hop == name_text);
            if listed
                && !ends_here
                && (name_text != TURN_METADATA || self.is_openai)
                && !self.headers.contains_key(name)
            {
                headers.append(name.clone(), value.clone());
            }
        }
        headers.insert(
            ACCEPT,
            of_client
                .get(ACCEPT)
                .cloned()
                .unwrap_or(HeaderValue::from_static("*/*")),
        );
        headers
    }

    /// Translates the two refusals a client can do nothing about, and every 5xx; `None`: the answer passes.
    pub(super) fn fault(&self, status: StatusCode, body: &[u8]) -> Option<UpstreamFault> {
        let fault = match status.as_u16() {
            300..=399 => UpstreamFault::Redirect,
            401 => UpstreamFault::Credential,
            403 if about_the_credential(body) => UpstreamFault::Credential,
            402 => UpstreamFault::Quota,
            429 if about_the_account(body) => UpstreamFault::Quota,
            504 => UpstreamFault::Timeout,
            503 | 529 => UpstreamFault::Overloaded,
            500.. => UpstreamFault::Failed,
            _ => return None,
        };
        tracing::warn!(
            upstream = self.name(),
            status = status.as_u16(),
            ?fault,
            "the upstream refused"
        );
        Some(fault)
    }
}

/// Whether a server is in one of these domains or below one.
fn is_at(url: &Url, domains: &[&str]) -> bool {
    let host = url.host_str().unwrap_or("");
    domains.iter().any(|domain| {
        host.strip_suffix(domain)
            .is_some_and(|sub| sub.is_empty() || sub.ends_with('.'))
    })
}

/// Headers that `Connection` names are for this hop only (RFC 9110 §7.6.1). In lower case.
fn named_by_connection(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(CONNECTION).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts
        .flat_map(|text| text.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect()
}

/// Whether the usage of a stream comes only when it is asked for.
pub(super) fn asks_for_usage(endpoint: Endpoint) -> bool {
    matches!(endpoint, Endpoint::ChatCompletions | Endpoint::Completions)
}

/// What the client gets of the upstream's headers.
pub(super) fn returned_headers(of_upstream: &HeaderMap) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in RETURNED {
        for value in of_upstream.get_all(name) {
            headers.append(HeaderName::from_static(name), value.clone());
        }
    }
    if let Some(id) = of_upstream.get("x-request-id") {
        headers.insert("x-upstream-request-id", id.clone());
    }
    headers
}

/// Causes in a line, without the URL.
pub(super) fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
    } else {
        "failed".to_owned()
    };
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// rustls takes its cryptography from the process; whoever comes first installs it.
fn install_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider().install_default().is_err()
    {
        tracing::debug!("another thread installed the cryptography first");
    }
}

fn roots(ca: Option<&[u8]>) -> Result<Vec<reqwest::Certificate>, String> {
    let known = webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .map(|der| reqwest::Certificate::from_der(der));
    let mut roots = known.collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())?;
    if let Some(pem) = ca {
        let more = reqwest::Certificate::from_pem_bundle(pem).map_err(|e| format!("ca_file is no PEM bundle: {e}"))?;
        if more.is_empty() {
            return Err("ca_file holds no certificate".into());
        }
        roots.extend(more);
    }
    Ok(roots)
}

fn own_headers(config: &UpstreamConfig) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some(key) = &config.api_key {
        let (name, text) = match config.auth {
            UpstreamAuth::Bearer => (AUTHORIZATION, format!("Bearer {}", key.reveal())),
            UpstreamAuth::ApiKey => (HeaderName::from_static("api-key"), key.reveal().to_owned()),
        };
        headers.insert(
            name,
            secret_value(&text).ok_or("the api_key cannot be sent in a header")?,
        );
    }
    for (name, value) in &config.headers {
        let name: HeaderName = name.parse().map_err(|_| format!("{name:?} is no name of a header"))?;
        let value = secret_value(value.reveal()).ok_or(format!("the value of the header {name} cannot be sent"))?;
        headers.insert(name, value);
    }
    Ok(headers)
}

fn secret_value(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `type`, `code` and `message` of an error in OpenAI's shape.
fn error_words(body: &[u8]) -> String {
    let Ok(body) = serde_json::from_slice::<serde_json::Value>(body) else {
        return String::new();
    };
    let error = body.get("error").unwrap_or(&body);
    ["type", "code", "message"]
        .iter()
        .filter_map(|name| error.get(name)?.as_str())
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase()
}

fn about_the_credential(body: &[u8]) -> bool {
    let words = error_words(body);
    [
        "api key",
        "api_key",
        "apikey",
        "credential",
        "authenticat",
        "unauthorized",
    ]
    .iter()
    .any(|word| words.contains(word))
}

fn about_the_account(body: &[u8]) -> bool {
    let words = error_words(body);
    let codes = [
        "insufficient_quota",
        "credit_balance_exhausted",
        "spend_limit_exceeded",
        "usage_limit_exceeded",
    ];
    codes.iter().any(|code| words.contains(code))
}

/// The whole body, up to a limit.
pub(super) async fn read_whole(response: &mut Response, limit: usize, idle: Duration) -> Result<Bytes, UpstreamFault> {
    let mut whole = bytes::BytesMut::new();
    loop {
        match timeout(idle, response.chunk()).await {
            Err(_) => return Err(UpstreamFault::Timeout),
            Ok(Err(_)) => return Err(UpstreamFault::Broken),
            Ok(Ok(None)) => return Ok(whole.freeze()),
            Ok(Ok(Some(chunk))) if whole.len() + chunk.len() > limit => {
                drop(chunk);
                return Err(UpstreamFault::TooLong);
            }
            Ok(Ok(Some(chunk))) => whole.extend_from_slice(&chunk),
        }
    }
}
