//! Texts to typed values of settings; each error says what would be right.

use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use reqwest::Url;
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;

use super::{LogFormat, UpstreamAuth};
use crate::bilingual;
use crate::hold;
use crate::language::{Bilingual, Tell};
use crate::limits::AtMost;
use crate::money::Usd;
use crate::pricing::{Factor, ListName};
use crate::translate::{Wire, Wires};
use crate::usage::Tokens;

/// What is wrong with a value, and what would be right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) what: Bilingual,
    pub(super) fix: Bilingual,
}

pub(super) type Parsed<T> = Result<T, Problem>;

pub(super) fn problem<T>(what: Bilingual, fix: Bilingual) -> Parsed<T> {
    Err(Problem { what, fix })
}

/// What a value says of itself.
pub(super) fn of_value<T>(error: &impl Tell, fix: Bilingual) -> Parsed<T> {
    problem(Bilingual::each(|language| error.told(language)), fix)
}

/// `true`, `false`.
pub(super) fn truth(text: &str) -> Parsed<bool> {
    text.parse().or_else(|_| {
        problem(
            bilingual!(en: "`{text}` is neither true nor false", zh: "`{text}` 既不是 true 也不是 false"),
            bilingual!(en: "write true or false", zh: "请写 true 或 false"),
        )
    })
}

/// A whole number within bounds.
pub(super) fn number(bounds: std::ops::RangeInclusive<u32>) -> impl Fn(&str) -> Parsed<u32> {
    let (least, most) = bounds.into_inner();
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => problem(
            bilingual!(
                en: "`{text}` is not a whole number from {least} to {most}",
                zh: "`{text}` 不是 {least} 到 {most} 的整数",
            ),
            bilingual!(en: "write a number, such as {least}", zh: "请写一个数字，例如 {least}"),
        ),
    }
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
        Some(_) => problem(
            bilingual!(en: "`{text}` is out of range", zh: "`{text}` 超出范围"),
            bilingual!(en: "at least \"1ms\", at most \"24h\"", zh: "最少 \"1ms\"，最多 \"24h\""),
        ),
        None => problem(
            bilingual!(en: "`{text}` is not a time", zh: "`{text}` 不是时长"),
            bilingual!(en: "write a number with its unit: \"300ms\", \"10s\", \"5m\" or \"1h\"", zh: "请写带单位的数字：\"300ms\"、\"10s\"、\"5m\" 或 \"1h\""),
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
            bilingual!(en: "`{text}` is out of range", zh: "`{text}` 超出范围"),
            bilingual!(en: "at least \"1KiB\", at most \"1GiB\"", zh: "最少 \"1KiB\"，最多 \"1GiB\""),
        ),
    }
}

/// A count of connections, from 1 to a million.
pub(super) fn connections(text: &str) -> Parsed<usize> {
    match text.parse().ok().filter(|count| (1..=1_000_000).contains(count)) {
        Some(count) => Ok(count),
        None => problem(
            bilingual!(en: "`{text}` is not a count of connections", zh: "`{text}` 不是连接数"),
            bilingual!(en: "write a whole number from 1 to 1000000", zh: "请写 1 到 1000000 之间的整数"),
        ),
    }
}

/// Space on a disk in bytes; 0 is none.
pub(super) fn space(text: &str) -> Parsed<u64> {
    match bytes(text)? {
        bytes if bytes <= MAX_SPACE => Ok(bytes),
        _ => problem(
            bilingual!(en: "`{text}` is out of range", zh: "`{text}` 超出范围"),
            bilingual!(en: "at most \"1024GiB\"", zh: "最多 \"1024GiB\""),
        ),
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
            bilingual!(en: "`{text}` is not a size", zh: "`{text}` 不是大小"),
            bilingual!(en: "write \"64MiB\", \"512KiB\" or a number of bytes", zh: "请写 \"64MiB\"、\"512KiB\" 或字节数"),
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
            bilingual!(en: "`{text}` is not an address to listen on", zh: "`{text}` 不是可监听的地址"),
            bilingual!(en: "write IP:PORT: \"127.0.0.1:8080\" for this machine only, \"0.0.0.0:8080\" for all", zh: "请写 IP:PORT：\"127.0.0.1:8080\" 仅限本机，\"0.0.0.0:8080\" 面向所有"),
        )
    })
}

/// Networks, or single addresses.
pub(super) fn network(text: &str) -> Parsed<IpNet> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .or_else(|_| {
            problem(
                bilingual!(en: "`{text}` is not an address range", zh: "`{text}` 不是地址网段"),
                bilingual!(en: "write \"10.0.0.0/8\" or \"192.0.2.7\"", zh: "请写 \"10.0.0.0/8\" 或 \"192.0.2.7\""),
            )
        })
}

/// A URL that other paths are put behind: http or https, a host, and neither password nor query.
pub(super) fn base_url(text: &str) -> Parsed<String> {
    let example = || bilingual!(en: "write it like \"https://api.openai.com/v1\"", zh: "请写成 \"https://api.openai.com/v1\" 这样");
    let Ok(url) = Url::parse(text) else {
        let shown = without_userinfo(text);
        return problem(
            bilingual!(en: "`{shown}` is not a URL", zh: "`{shown}` 不是 URL"),
            example(),
        );
    };
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return problem(
            bilingual!(en: "the URL is neither http:// nor https:// with a host", zh: "URL 不是带主机的 http:// 或 https://"),
            example(),
        );
    }
    if !url.username().is_empty() || url.password().is_some() {
        return problem(
            bilingual!(en: "the URL holds a user name or a password", zh: "URL 中含有用户名或密码"),
            bilingual!(en: "take it out, and put the credential into `api_key`", zh: "请去掉，并把凭证写入 `api_key`"),
        );
    }
    if url.query().is_some() || url.fragment().is_some() {
        return problem(
            bilingual!(en: "the URL holds a query or a fragment", zh: "URL 中含有查询或片段"),
            bilingual!(en: "take out what follows `?` or `#`", zh: "请去掉 `?` 或 `#` 之后的部分"),
        );
    }
    let base = text.trim_end_matches('/');
    if ["/chat/completions", "/responses", "/completions", "/embeddings"]
        .iter()
        .any(|end| base.ends_with(end))
    {
        return problem(
            bilingual!(en: "the URL names an endpoint", zh: "URL 指明了端点"),
            bilingual!(en: "end it before the endpoint, usually with /v1", zh: "请在端点之前结束，通常以 /v1 结尾"),
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
            bilingual!(en: "not a proxy's URL", zh: "不是代理的 URL"),
            bilingual!(en: "write it like \"http://proxy:3128\" or \"socks5://127.0.0.1:1080\"", zh: "请写成 \"http://proxy:3128\" 或 \"socks5://127.0.0.1:1080\" 这样"),
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
        bilingual!(en: "`{text}` is not a name", zh: "`{text}` 不是名称"),
        bilingual!(en: "use letters, digits, `-`, `_` and `.`, at most 64 of them", zh: "请使用字母、数字、`-`、`_` 和 `.`，最多 64 个"),
    )
}

/// A price list's name.
pub(super) fn list(text: &str) -> Parsed<ListName> {
    ListName::parse(text)
        .or_else(|error| of_value(&error, bilingual!(en: "name a price list such as \"openai\", or \"free\"", zh: "请写 \"openai\" 这样的价目表名称，或 \"free\"")))
}

/// An amount of money, not below zero.
pub(super) fn amount(text: &str) -> Parsed<Usd> {
    match text.parse::<Usd>() {
        Ok(amount) if !amount.is_negative() => Ok(amount),
        Ok(_) => problem(
            bilingual!(en: "`{text}` is below zero", zh: "`{text}` 小于零"),
            bilingual!(en: "write dollars like \"5\" or \"0.25\"", zh: "请写美元金额，如 \"5\" 或 \"0.25\""),
        ),
        Err(error) => of_value(
            &error,
            bilingual!(en: "write dollars like \"5\" or \"0.25\"", zh: "请写美元金额，如 \"5\" 或 \"0.25\""),
        ),
    }
}

/// A multiplier of money.
pub(super) fn factor(text: &str) -> Parsed<Factor> {
    Factor::parse(text).or_else(|error| {
        of_value(
            &error,
            bilingual!(en: "write a decimal with at most six places: 1 charges what a call costs, 1.2 a fifth more", zh: "请写最多六位小数的数：1 按调用的成本收费，1.2 多收五分之一"),
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
            bilingual!(en: "`{text}` is not a share", zh: "`{text}` 不是份额"),
            bilingual!(en: "write a decimal above 0 and at most 1, with at most six places: 0.25", zh: "请写大于 0、不超过 1、最多六位小数的数：0.25"),
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
            bilingual!(en: "`{text}` is not a count of tokens", zh: "`{text}` 不是 token 数"),
            bilingual!(en: "write a whole number from 16, the least that upstreams take as a limit, to 1000000", zh: "请写 16（上游接受的最小上限）到 1000000 的整数"),
        ),
    }
}

/// A limit: a whole number of at least 1.
pub(super) fn limit(text: &str) -> Parsed<AtMost> {
    text.parse::<AtMost>()
        .or_else(|fix| problem(bilingual!(en: "`{text}` is not a limit", zh: "`{text}` 不是限额"), fix))
}

/// `bearer` or `api-key`.
pub(super) fn auth(text: &str) -> Parsed<UpstreamAuth> {
    match text {
        "bearer" => Ok(UpstreamAuth::Bearer),
        "api-key" => Ok(UpstreamAuth::ApiKey),
        _ => problem(
            bilingual!(en: "`{text}` is no way to authenticate", zh: "`{text}` 不是认证方式"),
            bilingual!(en: "write \"bearer\" (Authorization: Bearer …) or \"api-key\" (as Azure does)", zh: "请写 \"bearer\"（Authorization: Bearer …）或 \"api-key\"（如 Azure）"),
        ),
    }
}

/// `responses+chat`, `responses` or `chat`.
pub(super) fn wire(text: &str) -> Parsed<Wires> {
    match text {
        "responses+chat" => Ok(Wires::Both),
        "responses" => Ok(Wires::Only(Wire::Responses)),
        "chat" => Ok(Wires::Only(Wire::Chat)),
        _ => problem(
            bilingual!(en: "`{text}` is no wire format", zh: "`{text}` 不是线路格式"),
            bilingual!(en: "write \"responses+chat\", \"responses\" or \"chat\": which of /responses and /chat/completions it has", zh: "请写 \"responses+chat\"、\"responses\" 或 \"chat\"：它有 /responses 与 /chat/completions 中的哪些"),
        ),
    }
}

/// `text` or `json`.
pub(super) fn log_format(text: &str) -> Parsed<LogFormat> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => problem(
            bilingual!(en: "`{text}` is no log format", zh: "`{text}` 不是日志格式"),
            bilingual!(en: "write \"text\" or \"json\"", zh: "请写 \"text\" 或 \"json\""),
        ),
    }
}

/// A `tracing` filter.
pub(super) fn log_level(text: &str) -> Parsed<String> {
    let fix = bilingual!(en: "write \"error\", \"warn\", \"info\", \"debug\" or \"trace\", or a filter such as \"info,codex_gateway=debug\"", zh: "请写 \"error\"、\"warn\"、\"info\"、\"debug\" 或 \"trace\"，或 \"info,codex_gateway=debug\" 这样的过滤器");
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) if !text.trim().is_empty() => Ok(text.to_owned()),
        _ => problem(
            bilingual!(en: "`{text}` is no log level", zh: "`{text}` 不是日志级别"),
            fix,
        ),
    }
}

/// A glob over models.
pub(super) fn glob(text: &str) -> Parsed<String> {
    if text.is_empty() {
        return problem(
            bilingual!(en: "an empty text is not a pattern of models", zh: "空文本不是模型的模式"),
            bilingual!(en: "write a model's name, or a pattern such as \"gpt-*\"", zh: "请写模型的名称，或 \"gpt-*\" 这样的模式"),
        );
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::language::Language;

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
            let what = error.what.of(Language::English);
            assert!(!what.contains("secret"), "{what}");
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
