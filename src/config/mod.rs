//! Settings: text and variables in, [`Config`] out.

mod error;
mod load;
mod loader;
mod parse;
mod reload;
mod sinks;
mod source;
mod tables;
mod upstreams;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;

pub use self::error::{ConfigError, ConfigErrors, Excerpt};
pub use self::load::{Flag, Loaded, Setting, Sources};
pub use self::reload::{differences, waits};
pub use self::sinks::is_public;
pub use self::source::Origin;
use crate::call::ChatLimitField;
use crate::event::Kind;
use crate::hold;
use crate::language::{Bilingual, Language, Said, Tell};
use crate::limits::{AtMost, Rates};
use crate::money::Usd;
use crate::pricing::{Factor, ListName};
use crate::route::closest;
use crate::said;
use crate::translate::Wires;

/// An address to listen on, as the settings and `--listen` take it.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn listen(text: &str) -> Result<SocketAddr, Bilingual> {
    parse::listen(text).map_err(|parse::Problem { what, fix }| {
        Bilingual::each(|language| {
            let (what, fix) = (what.of(language), fix.of(language));
            said!(language, en: "{what}; {fix}", zh: "{what}；{fix}")
        })
    })
}

/// A secret: never shown by `Debug` or `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The secret itself, where it has to be used.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("••••")
    }
}

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`
    pub server: ServerConfig,
    /// `[database] path`
    pub database: PathBuf,
    /// `[database]`, the rest of it
    pub disk: DiskConfig,
    /// `[billing]`
    pub billing: BillingConfig,
    /// `[limits]`
    pub limits: LimitsConfig,
    /// `[[upstream]]`, in order.
    pub upstreams: Vec<UpstreamConfig>,
    /// `[events]`
    pub events: EventsConfig,
    /// `[[sink]]`, in order; one whose secret cannot be resolved is missing, as [`Loaded::missing`] tells.
    pub sinks: Vec<SinkConfig>,
    /// `[log]`
    pub log: LogConfig,
    /// `[metrics]`
    pub metrics: MetricsConfig,
}

/// `[server]`
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// The address clients reach the server by, used in all printed text.
    pub public_url: Option<String>,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The certificate to serve TLS with; `None`: plain HTTP.
    pub tls: Option<TlsFiles>,
    /// Connections in all, beyond which others are turned away (10,000).
    pub max_connections: usize,
    /// Connections of one client address, beyond which its others are turned away (256).
    pub max_connections_per_address: usize,
    /// The largest request body, decompressed, in bytes (64 MiB).
    pub max_body: usize,
    /// The largest unary answer, in bytes (32 MiB).
    pub max_response: usize,
    /// How long a client may take for the TLS handshake, and to send its request head (10 s).
    pub header_timeout: Duration,
    /// How long a client may take to send its body (60 s), and ten seconds more for each MiB that has come.
    pub body_timeout: Duration,
    /// How long streams may go on after SIGTERM (300 s).
    pub drain_timeout: Duration,
    /// Whether `GET /v1/responses` opens a WebSocket.
    pub websocket: bool,
}

/// Where a certificate and its key are, as PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and its authority.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl ServerConfig {
    /// Whether keys and prompts would reach the listener in the clear, over a network: it is not on loopback, serves no
    /// TLS, and knows no proxy that would.
    pub fn in_the_clear(&self) -> bool {
        !self.listen.ip().to_canonical().is_loopback() && self.tls.is_none() && self.trusted_proxies.is_empty()
    }

    /// `http`, or `https` with a certificate.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Where clients reach the gateway, without a slash or `/v1` at the end. Without a `public_url` it is the address
    /// it listens on, as seen from this machine.
    pub fn url(&self) -> String {
        if let Some(url) = &self.public_url {
            return url.strip_suffix("/v1").unwrap_or(url).to_owned();
        }
        let mut addr = self.listen;
        match addr.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => addr.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => addr.set_ip(Ipv6Addr::LOCALHOST.into()),
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
        format!("{}://{addr}", self.scheme())
    }
}

/// `[database]`: the disk below it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskConfig {
    /// No new calls below this much free space, in bytes (256 MiB).
    pub min_free: u64,
    /// What is kept for settlements on a full disk, in bytes (64 MiB).
    pub ballast: u64,
}

/// What happens to an answer whose client has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnHangup {
    /// Read on, within the hold and 120 s, and take the upstream's usage.
    #[default]
    Drain,
    /// Close the upstream and settle by estimate.
    Cancel,
}

/// `[billing]`
#[derive(Clone, Debug)]
pub struct BillingConfig {
    /// `hold_share` and `min_output_tokens`.
    pub hold: hold::Policy,
    /// What happens when a client leaves.
    pub on_hangup: OnHangup,
    /// What users pay per dollar of cost.
    pub markup: Markup,
    /// Whether answers to calls with an `Idempotency-Key` are recorded, for those who send them again.
    pub record_answers: bool,
}

/// What users pay per dollar of cost: by user, else by model, else all the same.
#[derive(Clone, Debug)]
pub struct Markup {
    /// Whoever and whatever has none of its own.
    pub general: Factor,
    /// Globs of models, as clients call them. Of those that match, the longest counts, and a name before a pattern.
    pub models: BTreeMap<String, Factor>,
}

impl Markup {
    /// What a user with this markup of their own, or none, pays for a model.
    pub fn of(&self, user: Option<Factor>, model: &str) -> Factor {
        user.or_else(|| closest(&self.models, model).copied())
            .unwrap_or(self.general)
    }
}

/// `[limits]`: how often and how much at once.
#[derive(Clone, Debug, Default)]
pub struct LimitsConfig {
    /// Of each key that has none of its own.
    pub key: Rates,
    /// Requests a minute of a model, everybody together; globs as in [`Markup::models`].
    pub model_rpm: BTreeMap<String, AtMost>,
    /// Tokens a minute of a model.
    pub model_tpm: BTreeMap<String, AtMost>,
    /// Calls at once of a model.
    pub model_concurrency: BTreeMap<String, AtMost>,
}

impl LimitsConfig {
    /// The limits of a model, as clients call it.
    pub fn of_model(&self, model: &str) -> Rates {
        let of = |limits| closest(limits, model).copied();
        Rates {
            rpm: of(&self.model_rpm),
            tpm: of(&self.model_tpm),
            concurrency: of(&self.model_concurrency),
        }
    }
}

/// How the upstream wants its credential.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamAuth {
    /// `Authorization: Bearer …`
    #[default]
    Bearer,
    /// `api-key: …`, as Azure does.
    ApiKey,
}

/// How an upstream's calls are priced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pricing {
    /// By a price list.
    List(ListName),
    /// Not at all: someone wrote `free`.
    Free,
}

impl fmt::Display for OnHangup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnHangup::Drain => "drain",
            OnHangup::Cancel => "cancel",
        })
    }
}

impl std::str::FromStr for OnHangup {
    type Err = NotOnHangup;

    /// Reads `drain` or `cancel`; the error names both.
    fn from_str(text: &str) -> Result<OnHangup, NotOnHangup> {
        match text {
            "drain" => Ok(OnHangup::Drain),
            "cancel" => Ok(OnHangup::Cancel),
            _ => Err(NotOnHangup(text.to_owned())),
        }
    }
}

/// A text that is neither `drain` nor `cancel`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotOnHangup(String);

impl Tell for NotOnHangup {
    fn told(&self, language: Language) -> Said {
        let NotOnHangup(text) = self;
        said!(
            language,
            en: "`{text}` is neither drain nor cancel",
            zh: "`{text}` 既不是 drain 也不是 cancel",
        )
    }
}

/// One `[[upstream]]`.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Its name in logs, receipts and reports.
    pub name: String,
    /// Base URL, ending before `/chat/completions`, without a trailing slash.
    pub base_url: String,
    /// The credential; `None` for upstreams that need none.
    pub api_key: Option<Secret>,
    /// Where the credential came from, for `serve`'s first lines: `OPENAI_API_KEY`, `gateway.toml` …
    pub api_key_origin: Option<String>,
    /// How it is sent.
    pub auth: UpstreamAuth,
    /// Globs of the models it serves (default `*`).
    pub models: Vec<String>,
    /// Alias → the upstream's model.
    pub aliases: BTreeMap<String, String>,
    /// Its price list.
    pub prices: Pricing,
    /// Which of the wire formats of text generation it speaks (both).
    pub wire: Wires,
    /// A region that carries the uplift, such as `eu`.
    pub region: Option<String>,
    /// A proxy to reach it through (http, https, socks5).
    pub proxy: Option<String>,
    /// More certificate authorities, PEM.
    pub ca_file: Option<PathBuf>,
    /// TCP and TLS (10 s).
    pub connect_timeout: Duration,
    /// Until the head of the answer (600 s).
    pub first_byte_timeout: Duration,
    /// Between two chunks of an answer (300 s).
    pub idle_timeout: Duration,
    /// Upstreams of a lower number are asked first (0).
    pub priority: u32,
    /// Its share of the calls, beside others of the same priority (1).
    pub weight: u32,
    /// Calls under way at it, at most.
    pub max_concurrency: Option<u32>,
    /// How long it is left alone once it keeps failing (10 s).
    pub breaker_interval: Duration,
    /// Whether a 502 or 504 says that the call was not taken, so that it may be sent once more.
    pub retry_gateway_errors: bool,
    /// Whether a client's WebSocket goes on to it as one.
    pub websocket: bool,
    /// Headers added to every request.
    pub headers: BTreeMap<String, Secret>,
}

impl UpstreamConfig {
    /// Which field limits a chat answer here: OpenAI and Azure take `max_completion_tokens`, everybody else `max_tokens`.
    pub fn chat_limit_field(&self) -> ChatLimitField {
        let host = parse::host_of(&self.base_url);
        if host.ends_with("api.openai.com") || host.ends_with(".azure.com") {
            ChatLimitField::MaxCompletionTokens
        } else {
            ChatLimitField::MaxTokens
        }
    }
}

/// `[events]`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventsConfig {
    /// A balance that falls below it is told; `None`: none is.
    pub low_balance: Option<Usd>,
    /// A budget is told as spent when so much of it is, in millionths (900,000).
    pub spent_share_ppm: u32,
    /// Events that may wait for a sink; of more, the oldest are lost to it (1,000,000).
    pub max_waiting: i64,
}

/// One `[[sink]]`: where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SinkConfig {
    /// Its name in logs, and in the database.
    pub name: String,
    /// Where.
    pub target: SinkTarget,
    /// Which events; empty: all.
    pub types: Vec<Kind>,
}

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkTarget {
    /// They are posted.
    Webhook {
        /// Where to.
        url: Url,
        /// What they are signed with.
        secret: Secret,
        /// Whether that may be an address that is not of the public internet.
        allow_private: bool,
    },
    /// They are appended to a file, one a line.
    File(PathBuf),
}

impl fmt::Display for SinkTarget {
    /// Where, without what may be secret in a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SinkTarget::Webhook { url, .. } => f.write_str(&sinks::shown(url)),
            SinkTarget::File(path) => path.display().fmt(f),
        }
    }
}

impl Secret {
    /// The bytes that a webhook's secret stands for: of base64 after `whsec_`, else its own.
    pub fn signing_key(&self) -> Vec<u8> {
        sinks::signing_key(self).unwrap_or_default()
    }
}

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A `tracing` filter, such as `info`.
    pub level: String,
}

/// `[metrics]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MetricsConfig {
    /// Where `/metrics` is served, if it is.
    pub listen: Option<SocketAddr>,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
