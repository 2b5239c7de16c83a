//! An upstream: its connection, what is sent to it, and what of its answer may reach the client.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, DATE, HeaderName, HeaderValue,
};
use http::{HeaderMap, Method, StatusCode};
use jiff::Timestamp;
use reqwest::{Client, Proxy, RequestBuilder, Response, Url, redirect};
use tokio::time::{Instant, timeout};

use super::health::{Health, Turn};
use super::passing::Carried;
use super::sending::{self, Asked};
use super::stock::{self, Stock};
use super::{Admitted, tunnel};
use crate::bilingual;
use crate::breaker::{self, Others, Verdict};
use crate::call::{Call, ChatLimitField, Edits, Endpoint};
use crate::config::{Pricing, UpstreamAuth, UpstreamConfig};
use crate::language::{Bilingual, Language, Said};
use crate::refusal::UpstreamFault;
use crate::said;
use crate::store::ExchangeId;
use crate::store::usage_log::State;
use crate::time::now;
use crate::translate::Wire;
use crate::usage::Dialect;

/// Connections are closed by us before the peer does (nginx 75 s, load balancers 60 s): a request on a connection
/// that the peer is closing cannot be told from one it has read.
const POOL_IDLE: Duration = Duration::from_secs(25);

/// Client headers that go on to every upstream. `Idempotency-Key` does not: two users may choose the same, and an upstream
/// that keeps it would give one the other's answer.
const FORWARDED: [&str; 3] = ["user-agent", "originator", "openai-beta"];

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
#[error("{}", self.told(Language::English))]
pub struct UpstreamError {
    /// Which.
    pub name: String,
    /// What is wrong.
    pub what: Bilingual,
}

impl UpstreamError {
    /// Which upstream, and what is wrong with it.
    pub fn told(&self, language: Language) -> Said {
        let (name, what) = (&self.name, self.what.of(language));
        said!(language, en: "upstream '{name}': {what}", zh: "上游 '{name}'：{what}")
    }
}

/// What an upstream answers whoever asks for its models.
#[derive(Debug)]
pub struct Probe {
    /// Its status.
    pub status: StatusCode,
    /// The time of its clock, when it tells.
    pub date: Option<jiff::Timestamp>,
}

/// A request that costs nothing, as it goes on.
#[derive(Clone, Debug)]
pub(super) struct Free<'a> {
    /// The exchange's id.
    pub(super) id: ExchangeId,
    pub(super) method: &'a Method,
    /// Below the base URL.
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    /// The client's headers; only those on a list go on.
    pub(super) headers: &'a HeaderMap,
}

/// Why there is no answer to a request that costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotPassed {
    /// The upstream did not do its part.
    Upstream(UpstreamFault),
    /// The client's body is too long.
    TooLong,
    /// The client's body did not come whole.
    BodyLost,
}

impl NotPassed {
    /// What was wrong with the client's body, if it is to blame.
    fn of_body(error: &reqwest::Error) -> Option<NotPassed> {
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            if cause.is::<http_body_util::LengthLimitError>() {
                return Some(NotPassed::TooLong);
            }
            if cause.is::<axum::Error>() {
                return Some(NotPassed::BodyLost);
            }
            source = cause.source();
        }
        None
    }
}

/// Where an upstream takes the calls of each endpoint: URLs that are parsed once.
#[derive(Debug)]
struct Urls([Url; Endpoint::ALL.len()]);

impl Urls {
    fn below(base: &Url) -> Urls {
        Urls(Endpoint::ALL.map(|endpoint| below(base, endpoint.path())))
    }

    fn of(&self, endpoint: Endpoint) -> &Url {
        &self.0[endpoint as usize]
    }
}

fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}{path}", base.path().trim_end_matches('/')));
    url
}

/// What connections depend on: with another of these they are made anew.
#[derive(Debug, PartialEq, Eq)]
struct Way {
    proxy: Option<String>,
    /// The content of `ca_file`.
    ca: Option<Vec<u8>>,
    connect_timeout: Duration,
}

impl Way {
    fn client(&self) -> Result<Client, Bilingual> {
        install_crypto();
        let builder = Client::builder()
            .tls_certs_only(roots(self.ca.as_deref())?)
            .redirect(redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .tcp_nodelay(true)
            .connect_timeout(self.connect_timeout)
            .pool_idle_timeout(POOL_IDLE);
        let builder = match &self.proxy {
            Some(proxy) => builder.proxy(
                Proxy::all(proxy).map_err(|e| bilingual!(en: "the proxy is not usable: {e}", zh: "代理不可用：{e}"))?,
            ),
            None => builder.no_proxy(),
        };
        builder
            .build()
            .map_err(|e| bilingual!(en: "no client can be made: {e}", zh: "无法创建客户端：{e}"))
    }
}

/// How the last call ended: a second and a state in one word, so that no call waits for another to note it.
#[derive(Debug, Default)]
struct LastResult(AtomicU64);

impl LastResult {
    fn note(&self, state: State, at: Timestamp) {
        let second = u64::try_from(at.as_second()).unwrap_or(0);
        self.0.store(second << 8 | u64::from(state as u8), Ordering::Relaxed);
    }

    fn read(&self) -> Option<(State, Timestamp)> {
        let word = self.0.load(Ordering::Relaxed);
        let state = State::ALL
            .into_iter()
            .find(|state| u64::from(*state as u8) == word & 0xff)?;
        let second = i64::try_from(word >> 8).ok().filter(|second| *second > 0)?;
        Some((state, Timestamp::from_second(second).ok()?))
    }
}

/// A configured upstream with its connection pool.
#[derive(Debug)]
pub struct Upstream {
    config: UpstreamConfig,
    way: Way,
    health: Arc<Health>,
    client: Client,
    headers: HeaderMap,
    base_url: Url,
    urls: Urls,
    /// Whether it is one of OpenAI's own servers.
    is_openai: bool,
    chat_limit_field: ChatLimitField,
    last: Arc<LastResult>,
    /// Shared with those before it that are the same upstream, asked with the same headers the same way: what is open to
    /// one is open to the other.
    account: Arc<()>,
    /// Shared likewise.
    stock: Arc<Stock>,
    /// Whether its total of tokens covers reasoning that its output does not.
    total_covers_reasoning: bool,
}

impl Upstream {
    /// Builds the client, or takes that of `before` if it leads the same way; what is known of how that one does holds if it
    /// is at the same place. `ca` is the content of `ca_file`.
    pub fn new(
        config: &UpstreamConfig,
        ca: Option<Vec<u8>>,
        before: Option<&Upstream>,
    ) -> Result<Upstream, UpstreamError> {
        let wrong = |what: Bilingual| UpstreamError {
            name: config.name.clone(),
            what,
        };
        let way = Way {
            proxy: config.proxy.clone(),
            ca,
            connect_timeout: config.connect_timeout,
        };
        let client = match before.filter(|before| before.way == way) {
            Some(before) => before.client.clone(),
            None => way.client().map_err(wrong)?,
        };
        let headers = own_headers(config).map_err(wrong)?;
        let base_url = Url::parse(&config.base_url)
            .map_err(|e| wrong(bilingual!(en: "the base_url is not usable: {e}", zh: "base_url 不可用：{e}")))?;
        let is_priced_by =
            |lists: &[&str]| matches!(&config.prices, Pricing::List(list) if lists.contains(&list.as_str()));
        let same =
            before.filter(|before| before.way == way && before.headers == headers && before.base_url == base_url);
        Ok(Upstream {
            urls: Urls::below(&base_url),
            is_openai: is_at(&base_url, &["openai.com"]),
            total_covers_reasoning: is_at(&base_url, &["x.ai", "googleapis.com"]) || is_priced_by(&["xai", "gemini"]),
            chat_limit_field: config.chat_limit_field(),
            last: before.map(|before| Arc::clone(&before.last)).unwrap_or_default(),
            account: same.map(|before| Arc::clone(&before.account)).unwrap_or_default(),
            stock: same.map(|before| Arc::clone(&before.stock)).unwrap_or_default(),
            health: match before.filter(|before| before.is_known_as(config)) {
                Some(before) => Arc::clone(&before.health),
                None => Arc::new(Health::new(config.breaker_interval)),
            },
            config: config.clone(),
            way,
            client,
            headers,
            base_url,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// Whether what is known of how it does holds for an upstream of these settings.
    fn is_known_as(&self, config: &UpstreamConfig) -> bool {
        self.config.base_url == config.base_url
    }

    /// It takes the calls from here on, in the place of one that it may share what is known with.
    pub fn comes_into_force(&self) {
        self.health.set_breaker_interval(self.config.breaker_interval);
    }

    /// Whether its connections are those of the same upstream before it.
    pub fn shares_connections_of(&self, before: &Upstream) -> bool {
        self.way == before.way
    }

    /// How the last of its calls that ended did end, and when.
    pub fn last(&self) -> Option<(State, Timestamp)> {
        self.last.read()
    }

    /// Notes how a call has ended.
    pub(super) fn note(&self, state: State) {
        self.last.note(state, now());
    }

    /// Its base URL.
    pub fn base_url(&self) -> &str {
        &self.config.base_url
    }

    /// Its base URL, parsed.
    pub fn url(&self) -> &Url {
        &self.base_url
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

    /// Whether its calls cost, and write their usage, as another one's do.
    pub(super) fn has_terms_of(&self, other: &Upstream, endpoint: Endpoint) -> bool {
        let translates_to = self.translates_to(endpoint);
        let sent = translates_to.map_or(endpoint, |(wire, _)| wire.endpoint());
        self.pricing() == other.pricing()
            && self.region() == other.region()
            && translates_to == other.translates_to(endpoint)
            && self.dialect(sent) == other.dialect(sent)
    }

    /// The format that a call to this endpoint has to be translated to, and the name by which a chat limit is taken.
    pub(super) fn translates_to(&self, endpoint: Endpoint) -> Option<(Wire, ChatLimitField)> {
        let wire = self.config.wire.other_than(endpoint)?;
        Some((wire, self.chat_limit_field))
    }

    /// Whether a WebSocket goes on to it as one.
    pub fn speaks_websocket(&self) -> bool {
        self.config.websocket
    }

    /// Whether a 502 or 504 of its says that the call was not taken.
    pub(super) fn retries_gateway_errors(&self) -> bool {
        self.config.retry_gateway_errors
    }

    /// Calls under way at it.
    pub fn under_way(&self) -> u32 {
        self.health.under_way()
    }

    /// How the circuit breaker of the model at which it stands worst does.
    pub fn breaker_state(&self) -> breaker::State {
        self.health.state()
    }

    /// Whether nothing is to be had of it at the moment, for any model.
    pub fn is_down(&self) -> bool {
        self.health.is_down()
    }

    /// Whether there is a place for one more call.
    pub(super) fn has_place(&self) -> bool {
        self.config.max_concurrency.is_none_or(|most| self.under_way() < most)
    }

    /// A place for a call, if there is one.
    pub(super) fn turn(&self, others: Others) -> Option<Turn> {
        self.health.turn(self.config.max_concurrency, others)
    }

    /// How long until its circuit breaker would let a call through, and until which it asked to be left alone.
    pub(super) fn wait(&self, model: &str, others: Others) -> Duration {
        self.health.wait(model, others)
    }

    /// Lets a call through its circuit breaker, or not.
    pub(super) fn admit(&self, model: &str, others: Others) -> bool {
        self.health.admit(model, others)
    }

    /// The time that [`Upstream::note_sent`] goes by.
    pub(super) fn now(&self) -> Duration {
        self.health.now()
    }

    /// Notes what became of a call that was sent at `sent`. Returns whether that opened or closed a breaker.
    pub(super) fn note_sent(&self, model: &str, sent: Duration, verdict: Verdict) -> bool {
        self.health.note(model, sent, verdict)
    }

    /// Sends the call once, with what may go on of the client's headers, and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        admitted: &Admitted,
        of_client: &HeaderMap,
        asked: &Asked,
    ) -> Result<Response, UpstreamFault> {
        if let Some(tunnelled) = &admitted.tunnelled
            && self.speaks_websocket()
            && admitted.sent.endpoint == Endpoint::Responses
        {
            let way = tunnel::Way {
                client: &self.client,
                url: self.urls.of(admitted.call.endpoint),
                account: &self.account,
                headers: self.request_headers(admitted.id(), of_client),
                patience: tunnel::OPENING.min(self.config.first_byte_timeout / 2),
            };
            let edits = self.edits(admitted);
            let body = |follows: Option<&Call>| follows.unwrap_or(&admitted.call).upstream_body(&edits);
            let sending = tunnelled.send(way, asked, body);
            match timeout(self.config.first_byte_timeout, sending).await {
                Err(_) => return Err(UpstreamFault::Timeout),
                Ok(Err(fault)) => return Err(fault),
                Ok(Ok(Some(response))) => return Ok(response),
                Ok(Ok(None)) => {}
            }
        }
        let body = self.body(admitted);
        let sending = sending::send(self.request(admitted, of_client), body, asked);
        match timeout(self.config.first_byte_timeout, sending).await {
            Err(_) => Err(UpstreamFault::Timeout),
            Ok(Err(_)) => Err(UpstreamFault::Broken),
            Ok(Ok(sent)) => self.answered(sent),
        }
    }

    /// The request of a call over HTTP, without its body.
    pub(super) fn request(&self, admitted: &Admitted, of_client: &HeaderMap) -> RequestBuilder {
        let mut headers = self.request_headers(admitted.id(), of_client);
        if let Some(Ok(kind)) = admitted.sent.form.as_ref().map(HeaderValue::try_from) {
            headers.insert(CONTENT_TYPE, kind);
        }
        self.client
            .post(self.urls.of(admitted.sent.endpoint).clone())
            .headers(headers)
    }

    /// The head of an answer, or what was wrong with the upstream instead.
    pub(super) fn answered(&self, sent: reqwest::Result<Response>) -> Result<Response, UpstreamFault> {
        sent.map_err(|error| {
            tracing::warn!(
                upstream = self.name(),
                error = chain(&error),
                "the upstream did not answer"
            );
            if error.is_connect() {
                UpstreamFault::Unreachable
            } else {
                UpstreamFault::Broken
            }
        })
    }

    /// The body of a call as this upstream takes it.
    pub(super) fn body(&self, admitted: &Admitted) -> Bytes {
        admitted.sent.upstream_body(&self.edits(admitted))
    }

    /// How long it may take to answer once it has been handed all of a call.
    pub(super) fn first_byte_timeout(&self) -> Duration {
        self.config.first_byte_timeout
    }

    /// Sends a request that costs nothing, and waits for the head of the answer. The type of the body is the client's.
    ///
    /// # Errors
    /// What the upstream did wrong; or the client, whose body is read while it is sent.
    pub(super) async fn pass(&self, free: Free<'_>, body: Carried) -> Result<Response, NotPassed> {
        let mut url = below(&self.base_url, free.path);
        if let Some(query) = free.query {
            let own = self.base_url.query().map(|own| format!("{own}&"));
            url.set_query(Some(&format!("{}{query}", own.unwrap_or_default())));
        }
        let mut headers = self.request_headers(free.id, free.headers);
        headers.remove(CONTENT_TYPE);
        if !matches!(body, Carried::Nothing)
            && let Some(kind) = free.headers.get(CONTENT_TYPE)
        {
            headers.insert(CONTENT_TYPE, kind.clone());
        }
        let mut request = self.client.request(free.method.clone(), url);
        let (head, mut guard) = (self.config.first_byte_timeout, None);
        match body {
            Carried::Nothing => {}
            Carried::Document(document) => request = request.body(document),
            Carried::File { upload, length } => {
                headers.extend(length.map(|length| (CONTENT_LENGTH, length)));
                guard = Some(upload.guard(self.config.idle_timeout, head));
                request = request.body(reqwest::Body::wrap_stream(upload));
            }
        }
        let sending = request.headers(headers).send();
        let sent = match guard {
            Some(guard) => guard.watch(sending).await,
            None => timeout(head, sending)
                .await
                .map_err(|_| NotPassed::Upstream(UpstreamFault::Timeout)),
        };
        match sent {
            Err(late) => Err(late),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) if error.is_connect() => Err(NotPassed::Upstream(UpstreamFault::Unreachable)),
            Ok(Err(error)) => Err(NotPassed::of_body(&error).unwrap_or_else(|| {
                tracing::warn!(
                    upstream = self.name(),
                    error = chain(&error.without_url()),
                    "the upstream did not answer"
                );
                NotPassed::Upstream(UpstreamFault::Broken)
            })),
        }
    }

    /// Asks for its models, which costs nothing.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn probe(&self, patience: Duration) -> Result<Probe, String> {
        let url = below(&self.base_url, "/models");
        let request = self.client.get(url).headers(self.headers.clone()).timeout(patience);
        let response = request.send().await.map_err(|error| chain(&error.without_url()))?;
        let date = response.headers().get(DATE).and_then(|date| date.to_str().ok());
        Ok(Probe {
            status: response.status(),
            date: date.and_then(|date| Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())),
        })
    }

    /// The models that it lists itself, as far as that is known.
    pub(super) async fn own_models(&self) -> Arc<[String]> {
        let asking = async {
            let request = self.client.get(below(&self.base_url, "/models"));
            let mut response = request.headers(self.headers.clone()).send().await.ok()?;
            let body = read_whole(&mut response, stock::MOST_BYTES, stock::PATIENCE)
                .await
                .ok()?;
            response.status().is_success().then(|| stock::read(&body)).flatten()
        };
        let asking = async {
            let listed = timeout(stock::PATIENCE, asking).await.ok().flatten();
            if listed.is_none() {
                tracing::debug!(upstream = self.name(), "it does not say which models it has");
            }
            listed
        };
        self.stock.names(Instant::now(), asking).await
    }

    fn edits(&self, admitted: &Admitted) -> Edits {
        let call = &admitted.sent;
        Edits {
            model: admitted.target.aliased.then(|| admitted.target.model.clone()),
            output_limit: admitted.limit.written(),
            include_usage: asks_for_usage(call.endpoint) && call.stream && !call.include_usage,
            chat_limit_field: self.chat_limit_field,
        }
    }

    /// A request is built anew: our credential, the exchange's id, and only those of the client's headers that are on the
    /// list.
    fn request_headers(&self, exchange: ExchangeId, of_client: &HeaderMap) -> HeaderMap {
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
        // What an upstream logs of a call can be found by it. OpenAI takes a name of its own for that, and finds a call by
        // it that was never answered; Codex gives one by itself.
        if let Ok(id) = HeaderValue::try_from(exchange.to_string()) {
            if self.is_openai {
                headers.entry("x-client-request-id").or_insert_with(|| id.clone());
            }
            headers.entry("x-request-id").or_insert(id);
        }
        headers
    }

    /// Translates the two refusals a client can do nothing about, and every 5xx; `None`: the answer passes.
    pub(super) fn fault(
        &self,
        status: StatusCode,
        retry_after: Option<Duration>,
        body: &[u8],
    ) -> Option<UpstreamFault> {
        let fault = match status.as_u16() {
            300..=399 => UpstreamFault::Redirect,
            401 => UpstreamFault::Credential,
            403 if about_the_credential(body) => UpstreamFault::Credential,
            402 => UpstreamFault::Quota { retry_after },
            429 if about_the_account(body) => UpstreamFault::Quota { retry_after },
            504 => UpstreamFault::Timeout,
            503 | 529 => UpstreamFault::Overloaded { retry_after },
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
/// Makes `ring` the cryptography of TLS, once.
pub(crate) fn install_crypto() {
    if rustls::crypto::CryptoProvider::get_default().is_none()
        && rustls::crypto::ring::default_provider().install_default().is_err()
    {
        tracing::debug!("another thread installed the cryptography first");
    }
}

/// The certificate authorities to trust: those of the public web, and those of a PEM bundle.
pub(crate) fn roots(ca: Option<&[u8]>) -> Result<Vec<reqwest::Certificate>, Bilingual> {
    let known = webpki_root_certs::TLS_SERVER_ROOT_CERTS
        .iter()
        .map(|der| reqwest::Certificate::from_der(der));
    let mut roots = known
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| bilingual!(en: "the built-in certificates cannot be read: {e}", zh: "无法读取内置的证书：{e}"))?;
    if let Some(pem) = ca {
        let more = reqwest::Certificate::from_pem_bundle(pem)
            .map_err(|e| bilingual!(en: "ca_file is no PEM bundle: {e}", zh: "ca_file 不是 PEM 证书包：{e}"))?;
        if more.is_empty() {
            return Err(bilingual!(en: "ca_file holds no certificate", zh: "ca_file 中没有证书"));
        }
        roots.extend(more);
    }
    Ok(roots)
}

fn own_headers(config: &UpstreamConfig) -> Result<HeaderMap, Bilingual> {
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
            secret_value(&text).ok_or_else(
                || bilingual!(en: "the api_key cannot be sent in a header", zh: "api_key 无法放入请求头"),
            )?,
        );
    }
    for (name, value) in &config.headers {
        let name: HeaderName = name
            .parse()
            .map_err(|_| bilingual!(en: "{name:?} is no name of a header", zh: "{name:?} 不是请求头的名称"))?;
        let value = secret_value(value.reveal()).ok_or_else(
            || bilingual!(en: "the value of the header {name} cannot be sent", zh: "请求头 {name} 的值无法发送"),
        )?;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Config, Sources};

    #[test]
    fn the_last_result_is_read_back_as_it_was_noted() {
        let last = LastResult::default();
        assert_eq!(last.read(), None);
        let at = Timestamp::from_second(1_795_000_000).expect("a time");
        for state in State::ALL {
            last.note(state, at);
            assert_eq!(last.read(), Some((state, at)));
        }
    }

    fn configured(more: &str) -> UpstreamConfig {
        let text = format!("[[upstream]]\nname = \"one\"\n{more}");
        let sources = Sources {
            file: Some(("gateway.toml".into(), text)),
            env: &BTreeMap::from([("HOME".to_owned(), "/home/me".to_owned())]),
            flags: Vec::new(),
            read: &|_| Err(bilingual!(en: "nothing is read", zh: "不读取任何文件")),
        };
        Config::load(sources).expect("settings").config.upstreams.remove(0)
    }

    #[test]
    fn what_is_open_to_an_upstream_is_for_those_alone_that_ask_it_as_the_same_account() {
        let here = "base_url = \"http://127.0.0.1:1\"\napi_key = \"one\"";
        let one = Upstream::new(&configured(here), None, None).expect("an upstream");
        for (settings, same) in [
            (format!("{here}\nweight = 2"), true),
            (here.replace("\"one\"", "\"two\""), false),
            (here.replace("127.0.0.1", "127.0.0.2"), false),
            (format!("{here}\nauth = \"api-key\""), false),
            (format!("{here}\nproxy = \"http://127.0.0.1:2\""), false),
            (
                format!("{here}\nheaders = {{ \"openai-organization\" = \"org\" }}"),
                false,
            ),
        ] {
            let next = Upstream::new(&configured(&settings), None, Some(&one)).expect("an upstream");
            assert_eq!(Arc::ptr_eq(&next.account, &one.account), same, "{settings}");
        }
        let beside = Upstream::new(&configured(here), None, None).expect("an upstream");
        assert!(!Arc::ptr_eq(&beside.account, &one.account));
    }

    #[test]
    fn what_is_known_of_an_upstream_outlives_a_change_of_its_settings() {
        let here = "base_url = \"http://127.0.0.1:1\"";
        let one = Upstream::new(&configured(here), None, None).expect("an upstream");
        let turn = one.turn(Others::Some).expect("a place");
        for _ in 0..5 {
            one.note_sent("m", one.now(), Verdict::Unreachable);
        }
        for (settings, known) in [
            (
                format!("{here}\nweight = 2\nmax_concurrency = 1\nmodels = [\"m\"]"),
                true,
            ),
            (format!("{here}\nmax_concurrency = 1\nbreaker_interval = \"1h\""), true),
            (here.replace("127.0.0.1", "127.0.0.2"), false),
        ] {
            let next = Upstream::new(&configured(&settings), None, Some(&one)).expect("an upstream");
            assert_eq!(next.breaker_state() == breaker::State::Open, known, "{settings}");
            assert_eq!((next.under_way() == 1, !next.has_place()), (known, known), "{settings}");
        }
        let patient = configured(&format!("{here}\nbreaker_interval = \"1h\""));
        let next = Upstream::new(&patient, None, Some(&one)).expect("an upstream");
        next.comes_into_force();
        next.note_sent("m", next.now(), Verdict::Unreachable);
        assert!(next.wait("m", Others::Some) > Duration::from_secs(3_000));
        drop(turn);
        assert_eq!(one.under_way(), 0);
    }
}
