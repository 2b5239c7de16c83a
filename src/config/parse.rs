//! Texts to typed values of settings; each error says what would be right.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::{LogFormat, UpstreamAuth};
use crate::hold;
use crate::pricing::{Factor, ListName};
use crate::usage::Tokens;

/// What is wrong with a value, and what would be right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) fix: String,
}

pub(super) type Parsed<T> = Result<T, Problem>;

pub(super) fn problem<T>(what: impl Into<String>, fix: impl Into<String>) -> Parsed<T> {
    Err(Problem {
        what: what.into(),
        fix: fix.into(),
    })
}

/// The longest wait a setting may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// `10s`, `5m`, `300ms`, `1h`: more than nothing, at most a day.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(unit_at);
    let millis: Option<u64> = match unit {
        "ms" => Some(1),
        "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let wait = millis
        .and_then(|unit| count.parse::<u64>().ok()?.checked_mul(unit))
        .map(Duration::from_millis);
    match wait {
        Some(wait) if !wait.is_zero() && wait <= LONGEST => Ok(wait),
        Some(_) => problem(format!("`{text}` is out of range"), "at least \"1ms\", at most \"24h\""),
        None => problem(
            format!("`{text}` is not a time"),
            "write a number with its unit: \"300ms\", \"10s\", \"5m\" or \"1h\"",
        ),
    }
}

/// The smallest and the largest body that may be allowed, in bytes.
const SIZES: std::ops::RangeInclusive<u64> = 1024..=1 << 30;

/// The most space that may be kept free, in bytes: a TiB.
const MAX_SPACE: u64 = 1 << 40;

/// `64MiB`, `512KiB`, `1GiB`, or bytes.
pub(super) fn size(text: &str) -> Parsed<usize> {
    let bytes = bytes(text)?;
    match (SIZES.contains(&bytes), usize::try_from(bytes)) {
        (true, Ok(bytes)) => Ok(bytes),
        _ => problem(
            format!("`{text}` is out of range"),
            "at least \"1KiB\", at most \"1GiB\"",
        ),
    }
}

/// Space on a disk in bytes; 0 is none.
pub(super) fn space(text: &str) -> Parsed<u64> {
    match bytes(text)? {
        bytes if bytes <= MAX_SPACE => Ok(bytes),
        _ => problem(format!("`{text}` is out of range"), "at most \"1024GiB\""),
    }
}

fn bytes(text: &str) -> Parsed<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (count, unit) = text.split_at(unit_at);
    let factor: Option<u64> = match unit {
        "" | "B" => Some(1),
        "KiB" => Some(1 << 10),
        "MiB" => Some(1 << 20),
        "GiB" => Some(1 << 30),
        _ => None,
    };
    let bytes = factor.and_then(|factor| count.parse::<u64>().ok()?.checked_mul(factor));
    match bytes {
        Some(bytes) => Ok(bytes),
        None => problem(
            format!("`{text}` is not a size"),
            "write \"64MiB\", \"512KiB\" or a number of bytes",
        ),
    }
}

/// `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`.
pub(super) fn listen(text: &str) -> Parsed<SocketAddr> {
    let numeric = match text.strip_prefix("localhost:") {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    };
    numeric.parse().or_else(|_| {
        problem(
            format!("`{text}` is not an address to listen on"),
            "write IP:PORT: \"127.0.0.1:8080\" for this machine only, \"0.0.0.0:8080\" for all",
        )
    })
}

/// Networks, or single addresses.
pub(super) fn network(text: &str) -> Parsed<IpNet> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .or_else(|_| {
            problem(
                format!("`{text}` is not an address range"),
                "write \"10.0.0.0/8\" or \"192.0.2.7\"",
            )
        })
}

/// A URL that other paths are put behind: http or https, a host, and neither password nor query.
pub(super) fn base_url(text: &str) -> Parsed<String> {
    let example = "write it like \"https://api.openai.com/v1\"";
    let Ok(url) = Url::parse(text) else {
        return problem(format!("`{}` is not a URL", without_userinfo(text)), example);
    };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return problem("the URL is neither http:// nor https:// with a host", example);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return problem(
            "the URL holds a user name or a password",
            "take it out, and put the credential into `api_key`",
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return problem(
            "the URL holds a query or a fragment",
            "take out what follows `?` or `#`",
        );
    }
    let base = text.trim_end_matches('/');
    if ["/chat/completions", "/responses", "/completions", "/embeddings"]
        .iter()
        .any(|end| base.ends_with(end))
    {
        return problem(
            "the URL names an endpoint",
            "end it before the endpoint, usually with /v1",
        );
    }
    Ok(base.to_owned())
}

/// A proxy's URL. It may hold a password, and is therefore a secret.
pub(super) fn proxy(text: &str) -> Parsed<String> {
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https" | "socks5" | "socks5h") && url.has_host() => {
            Ok(text.to_owned())
        }
        _ => problem(
            "not a proxy's URL",
            "write it like \"http://proxy:3128\" or \"socks5://127.0.0.1:1080\"",
        ),
    }
}

fn without_userinfo(text: &str) -> &str {
    text.rsplit_once('@').map_or(text, |(_, rest)| rest)
}

/// The host of a URL that [`base_url`] has accepted, in lower case.
pub(super) fn host_of(base_url: &str) -> String {
    Url::parse(base_url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned))
        .unwrap_or_default()
}

/// The price list that a vendor's host stands for.
pub(super) fn list_of_host(host: &str) -> Option<&'static str> {
    let is = |name: &str| host == name || host.strip_suffix(name).is_some_and(|before| before.ends_with('.'));
    let vendors = [
        ("api.openai.com", "openai"),
        ("api.deepseek.com", "deepseek"),
        ("api.x.ai", "xai"),
        ("api.mistral.ai", "mistral"),
        ("generativelanguage.googleapis.com", "gemini"),
        ("api.groq.com", "groq"),
        ("api.anthropic.com", "anthropic"),
        ("api.moonshot.ai", "moonshot"),
        ("api.moonshot.cn", "moonshot"),
        ("api.z.ai", "zai"),
        ("open.bigmodel.cn", "zai"),
        ("api.minimax.io", "minimax"),
        ("api.minimaxi.com", "minimax"),
        ("api.minimax.chat", "minimax"),
        ("api.cerebras.ai", "cerebras"),
        ("api.perplexity.ai", "perplexity"),
    ];
    let by_name = vendors.iter().find(|(name, _)| is(name)).map(|(_, list)| *list);
    by_name.or_else(|| (host.starts_with("dashscope") && host.ends_with(".aliyuncs.com")).then_some("dashscope"))
}

/// The region in `eu.api.openai.com`.
pub(super) fn region_of_host(host: &str) -> Option<String> {
    let region = host.strip_suffix(".api.openai.com")?;
    (!region.is_empty() && !region.contains('.')).then(|| region.to_owned())
}

/// Most characters in the name of an upstream or a region.
const LONGEST_NAME: usize = 64;

/// A short name: letters, digits, `-`, `_`, `.`.
pub(super) fn name(text: &str) -> Parsed<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if !text.is_empty() && text.len() <= LONGEST_NAME && text.chars().all(fine) {
        return Ok(text.to_owned());
    }
    problem(
        format!("`{text}` is not a name"),
        "use letters, digits, `-`, `_` and `.`, at most 64 of them",
    )
}

/// A price list's name.
pub(super) fn list(text: &str) -> Parsed<ListName> {
    ListName::parse(text)
        .or_else(|error| problem(error.to_string(), "name a price list such as \"openai\", or \"free\""))
}

/// A multiplier of money.
pub(super) fn factor(text: &str) -> Parsed<Factor> {
    Factor::parse(text).or_else(|error| {
        problem(
            error.to_string(),
            "write a decimal with at most six places: 1 charges what a call costs, 1.2 a fifth more",
        )
    })
}

/// Above 0, at most 1, in millionths.
pub(super) fn share_ppm(text: &str) -> Parsed<u32> {
    let million = Decimal::from(1_000_000);
    let ppm = Decimal::from_str_exact(text)
        .ok()
        .and_then(|share| share.checked_mul(million));
    match ppm.filter(Decimal::is_integer).and_then(|ppm| ppm.to_u32()) {
        Some(ppm @ 1..=1_000_000) => Ok(ppm),
        _ => problem(
            format!("`{text}` is not a share"),
            "write a decimal above 0 and at most 1, with at most six places: 0.25",
        ),
    }
}

/// A count of tokens, from 1 to a million.
pub(super) fn tokens(text: &str) -> Parsed<Tokens> {
    match text
        .parse::<u64>()
        .ok()
        .filter(|count| (hold::MIN_LIMIT.get()..=1_000_000).contains(count))
        .and_then(Tokens::new)
    {
        Some(tokens) => Ok(tokens),
        None => problem(
            format!("`{text}` is not a count of tokens"),
            "write a whole number from 16, the least that upstreams take as a limit, to 1000000",
        ),
    }
}

/// `bearer` or `api-key`.
pub(super) fn auth(text: &str) -> Parsed<UpstreamAuth> {
    match text {
        "bearer" => Ok(UpstreamAuth::Bearer),
        "api-key" => Ok(UpstreamAuth::ApiKey),
        _ => problem(
            format!("`{text}` is no way to authenticate"),
            "write \"bearer\" (Authorization: Bearer …) or \"api-key\" (as Azure does)",
        ),
    }
}

/// `text` or `json`.
pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => problem(format!("`{text}` is no log format"), "write \"text\" or \"json\""),
    }
}

/// A `tracing` filter.
pub(super) fn log_level(text: &str) -> Parsed<String> {
    let fix =
        "write \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or a filter such as \"info,codex_gateway=debug\"";
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        _ => problem(format!("`{text}` is no log level"), fix),
    }
}

/// A glob over models.
pub(super) fn glob(text: &str) -> Parsed<String> {
    if text.is_empty() {
        return problem(
            "an empty text is not a pattern of models",
            "write a model's name, or a pattern such as \"gpt-*\"",
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_need_a_unit() {
        assert_eq!(duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(duration("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("24h"), Ok(LONGEST));
        for wrong in ["", "10", "s", "1d", "-1s", "1.5s", "0s", "25h", "99999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_binary_units_or_bytes() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("2048"), Ok(2048));
        for wrong in ["", "64MB", "64 MiB", "1", "2GiB", "-1", "1e9"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_share_is_exact_and_not_above_one() {
        assert_eq!(share_ppm("0.25"), Ok(250_000));
        assert_eq!(share_ppm("1"), Ok(1_000_000));
        assert_eq!(share_ppm("0.000001"), Ok(1));
        for wrong in ["0", "1.000001", "0.0000001", "-0.5", "1/4", "nan"] {
            assert!(share_ppm(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_base_url_holds_no_credential_and_no_endpoint() {
        assert_eq!(
            base_url("https://api.openai.com/v1/"),
            Ok("https://api.openai.com/v1".into())
        );
        for wrong in [
            "api.openai.com",
            "ftp://x",
            "https://",
            "https://me:secret@x/v1",
            "https://x/v1?key=secret",
            "https://x/v1/chat/completions",
        ] {
            let error = base_url(wrong).expect_err(wrong);
            assert!(!error.what.contains("secret"), "{}", error.what);
        }
    }

    #[test]
    fn a_vendors_host_names_its_price_list() {
        for (host, list) in [
            ("api.openai.com", Some("openai")),
            ("eu.api.openai.com", Some("openai")),
            ("evilapi.openai.com", None),
            ("api.moonshot.cn", Some("moonshot")),
            ("dashscope-intl.aliyuncs.com", Some("dashscope")),
            ("localhost", None),
        ] {
            assert_eq!(list_of_host(host), list, "{host}");
        }
        assert_eq!(region_of_host("eu.api.openai.com"), Some("eu".into()));
        assert_eq!(region_of_host("api.openai.com"), None);
    }
}
