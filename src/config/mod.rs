//! Settings: text and variables in, [`Config`] out.

mod error;
mod load;
mod loader;
mod parse;
mod source;
mod tables;
mod upstreams;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

pub use self::error::{ConfigError, ConfigErrors, Excerpt};
pub use self::load::{Flag, Loaded, Setting, Sources};
pub use self::source::Origin;
use crate::call::ChatLimitField;
use crate::hold;
use crate::pricing::{Factor, ListName};

/// An address to listen on, as the settings and `--listen` take it.
///
/// # Errors
/// What is wrong with it, and what would be right.
pub fn listen(text: &str) -> Result<SocketAddr, String> {
    parse::listen(text).map_err(|parse::Problem { what, fix }| format!("{what}; {fix}"))
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
    /// `[[upstream]]`, in order; the first that serves a model is taken.
    pub upstreams: Vec<UpstreamConfig>,
    /// `[log]`
    pub log: LogConfig,
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
    /// The largest request body, decompressed, in bytes (64 MiB).
    pub max_body: usize,
    /// The largest unary answer, in bytes (32 MiB).
    pub max_response: usize,
    /// How long a client may take to send its request head (10 s).
    pub header_timeout: Duration,
    /// How long a client may take to send its body (60 s).
    pub body_timeout: Duration,
    /// How long streams may go on after SIGTERM (300 s).
    pub drain_timeout: Duration,
}

impl ServerConfig {
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
        format!("http://{addr}")
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
    /// What the user pays per dollar of cost.
    pub markup: Factor,
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
    type Err = String;

    /// Reads `drain` or `cancel`; the error names both.
    fn from_str(text: &str) -> Result<OnHangup, String> {
        match text {
            "drain" => Ok(OnHangup::Drain),
            "cancel" => Ok(OnHangup::Cancel),
            _ => Err(format!("`{text}` is neither drain nor cancel")),
        }
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

/// `[log]`
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// A `tracing` filter, such as `info`.
    pub level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}
