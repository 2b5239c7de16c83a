//! Where the gateway is, and with which key it is used.

use std::env;
use std::net::IpAddr;

use jiff::SignedDuration;
use serde_json::Value;

use super::model::entries;
use super::{CodexArgs, KEY_VARIABLE, PATIENCE, URL_VARIABLE, failure, not_started};
use crate::admin::{self, KeySpec};
use crate::cli::failure::{Exit, Failure};
use crate::cli::{actor, host, language, runtime};
use crate::config::Config;
use crate::language::Said;
use crate::limits::Rates;
use crate::said;
use crate::store::users::User;
use crate::store::{Create, KeyId, OpenError, Store};
use crate::time;

/// How long a key lives that is issued for one run of Codex, in hours. It is revoked at the end; this is for kills.
const KEY_HOURS: i64 = 24;

/// Where the gateway is, and with which key it is used.
pub(super) struct Access {
    pub(super) url: String,
    pub(super) key: String,
    /// With which key, as the end of a sentence.
    pub(super) by: Said,
    pub(super) issued: Option<Issued>,
}

/// From flags and variables, a running demo, or this machine's database, in this order.
///
/// # Errors
/// No gateway answers there, or there is no key for it.
pub(super) async fn access(args: &CodexArgs, config: &Config) -> Result<Access, Failure> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let url = args
        .url
        .clone()
        .or_else(|| variable(URL_VARIABLE))
        .map(|url| base(&url));
    if args.user.is_none()
        && let Some(key) = variable(KEY_VARIABLE)
    {
        let url = url.unwrap_or_else(|| config.server.url());
        return Ok(Access {
            url,
            key,
            by: said!(language(), en: "with the key of {KEY_VARIABLE}", zh: "使用 {KEY_VARIABLE} 中的密钥"),
            issued: None,
        });
    }
    if url.is_none()
        && args.user.is_none()
        && let Some(demo) = runtime::read()
    {
        return Ok(Access {
            url: base(&demo.url),
            key: demo.key,
            by: said!(language(), en: "with the demo's key", zh: "使用演示的密钥"),
            issued: None,
        });
    }
    let url = url.unwrap_or_else(|| config.server.url());
    if !is_loopback(&url) && url != config.server.url() {
        return Err(no_key(&url));
    }
    check_alive(&url).await?;
    let (issued, key) = Issued::issue(config, args.user.as_deref()).await?;
    let (user, name) = (&issued.user, &issued.name);
    let by = said!(
        language(),
        en: "as {user} (key {name}, {KEY_HOURS} h, revoked at exit)",
        zh: "身份为 {user}（密钥 {name}，{KEY_HOURS} h，退出时吊销）",
    );
    Ok(Access {
        url,
        key,
        by,
        issued: Some(issued),
    })
}

/// An address without a trailing slash and without `/v1`, whichever way it was written.
pub fn base(url: &str) -> String {
    let url = url.trim().trim_end_matches('/');
    url.strip_suffix("/v1").unwrap_or(url).to_owned()
}

/// Whether a URL's host is this machine, and no proxy may stand in between.
pub fn is_loopback(url: &str) -> bool {
    let host = reqwest::Url::parse(url)
        .ok()
        .and_then(|url| url.host_str().map(str::to_owned));
    host.is_some_and(|host| {
        let host = host.trim_matches(['[', ']']);
        host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

/// A key issued for one run of Codex.
pub(super) struct Issued {
    store: Store,
    id: KeyId,
    name: String,
    user: String,
}

impl Issued {
    async fn issue(config: &Config, user: Option<&str>) -> Result<(Issued, String), Failure> {
        let store = Store::open(&config.database, Create::Never).map_err(no_database)?;
        let user = user.map(str::to_owned);
        let issued = store.blocking(move |store| issue(store, user.as_deref())).await?;
        let key = issued.secret.reveal().to_owned();
        let admin::Issued { key: stored, .. } = issued;
        Ok((
            Issued {
                store,
                id: stored.id,
                name: stored.name,
                user: stored.user_name,
            },
            key,
        ))
    }

    pub(super) async fn revoke(self) -> Result<(), Failure> {
        let id = self.id.0.to_string();
        let revoked = self
            .store
            .blocking(move |store| admin::revoke_key(store, &id, &actor(), time::now()))
            .await;
        revoked.map(|_| ()).map_err(Failure::from)
    }
}

fn issue(store: &Store, user: Option<&str>) -> Result<admin::Issued, Failure> {
    let now = time::now();
    let owner = owner(store, user)?;
    let spec = KeySpec {
        name: Some(format!("codex@{}", host())),
        expires_at: now.checked_add(SignedDuration::from_hours(KEY_HOURS)).ok(),
        models: Vec::new(),
        ips: Vec::new(),
        on_hangup: None,
        budgets: Vec::new(),
        rates: Rates::default(),
    };
    Ok(admin::issue_key(store, &owner.name, &spec, &actor(), now)?)
}

/// Who pays: the named user, or the only one there is.
fn owner(store: &Store, wanted: Option<&str>) -> Result<User, Failure> {
    if let Some(name) = wanted {
        return Ok(admin::user(store, name)?);
    }
    let mut users = store.users()?;
    match users.len() {
        1 => Ok(users.remove(0)),
        0 => Err(failure(
            Exit::NotFound,
            not_started(),
            said!(language(), en: "there is no user yet", zh: "还没有用户"),
            "gateway user add you --balance 5",
        )),
        _ => Err(several(&users)),
    }
}

fn several(users: &[User]) -> Failure {
    let names: Vec<&str> = users.iter().take(8).map(|user| user.name.as_str()).collect();
    let more = if users.len() > names.len() { ", …" } else { "" };
    let shown = names.join(", ");
    let why = said!(language(), en: "there are several users: {shown}{more}", zh: "有多个用户：{shown}{more}");
    let fix = format!("gateway codex --user {} …", names.first().unwrap_or(&"NAME"));
    let what = said!(
        language(),
        en: "Codex was not started: whose balance pays?",
        zh: "Codex 没有启动：由谁的余额支付？",
    );
    failure(Exit::Usage, what, why, fix)
}

fn no_key(url: &str) -> Failure {
    let why = said!(
        language(),
        en: "there is no key for {url}, and only its own machine can issue one",
        zh: "没有用于 {url} 的密钥，而只有它所在的机器才能签发",
    );
    failure(
        Exit::NotAllowed,
        not_started(),
        why,
        format!("{KEY_VARIABLE}=sk-gw-… gateway codex --url {url} …"),
    )
}

/// On a machine without a gateway of its own, what helps is the address of another one, or the demo.
fn no_database(error: OpenError) -> Failure {
    let missing = matches!(error, OpenError::Missing(_));
    let failure = Failure::from(error);
    if !missing {
        return failure;
    }
    failure
        .why(said!(
            language(),
            en: "without a key or a running demo, one is issued from this machine's database",
            zh: "没有密钥，也没有运行中的演示时，会从本机的数据库签发密钥",
        ))
        .fix(said!(
            language(),
            en: "gateway demo --serve   (or: {KEY_VARIABLE}=sk-gw-… gateway codex --url URL …)",
            zh: "gateway demo --serve   （或：{KEY_VARIABLE}=sk-gw-… gateway codex --url URL …）",
        ))
}

/// A client for the gateway itself: the environment's proxies hold, except for this machine.
pub fn http_client(url: &str) -> Result<reqwest::Client, Failure> {
    // Twice is fine: the first provider stays.
    rustls::crypto::ring::default_provider().install_default().ok();
    let roots = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    let roots = roots.filter_map(|root| reqwest::Certificate::from_der(root).ok());
    let mut builder = reqwest::Client::builder().timeout(PATIENCE).tls_certs_merge(roots);
    if is_loopback(url) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| {
        let what = said!(language(), en: "no HTTP client could be made", zh: "无法创建 HTTP 客户端");
        Failure::new(Exit::Upstream, what).why(Said::verbatim(error.to_string()))
    })
}

async fn check_alive(url: &str) -> Result<(), Failure> {
    let answer = http_client(url)?.get(format!("{url}/healthz")).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => {
            let status = answer.status();
            let why = said!(language(), en: "it answers {status} to /healthz", zh: "它对 /healthz 返回 {status}");
            Err(no_gateway(url, why))
        }
        Err(error) => Err(no_gateway(url, cause(&error))),
    }
}

fn no_gateway(url: &str, why: Said) -> Failure {
    let what = said!(language(), en: "no gateway runs at {url}", zh: "{url} 处没有运行网关");
    Failure::new(Exit::Upstream, what).why(why).fix(said!(
        language(),
        en: "gateway serve   (in another terminal; or name where it runs: --url URL)",
        zh: "gateway serve   （在另一个终端中；或指明它在何处运行：--url URL）",
    ))
}

/// The innermost reason: reqwest's own words only say that sending failed.
fn cause(error: &dyn std::error::Error) -> Said {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    Said::verbatim(cause.to_string())
}

/// What the gateway offers to this key.
///
/// # Errors
/// It does not answer (7), the key is not valid (4), or it offers nothing that Codex could use (5).
pub async fn fetch_models(url: &str, key: &str) -> Result<Value, Failure> {
    let request = http_client(url)?.get(format!("{url}/v1/models")).bearer_auth(key);
    let answer = request.send().await.map_err(|error| no_gateway(url, cause(&error)))?;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    if !status.is_success() {
        let why = body["error"]["message"].as_str().map_or_else(
            || said!(language(), en: "no reason was given", zh: "没有给出原因"),
            Said::verbatim,
        );
        let exit = if status.as_u16() == 401 {
            Exit::NotAllowed
        } else {
            Exit::Upstream
        };
        return Err(failure(
            exit,
            said!(language(), en: "{url} answers {status}", zh: "{url} 返回 {status}"),
            why,
            "gateway key issue USER",
        ));
    }
    if entries(&body).next().is_none() {
        let what = said!(language(), en: "{url} offers no model for Codex", zh: "{url} 没有提供 Codex 可用的模型");
        return Err(Failure::new(Exit::NotFound, what)
            .why(said!(
                language(),
                en: "its list is empty for this key",
                zh: "对此密钥，它的列表是空的",
            ))
            .fix(said!(
                language(),
                en: "gateway price check   (a model without a price is not offered)",
                zh: "gateway price check   （没有价格的模型不会提供）",
            )));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_understood_however_it_is_written() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(base(url), "http://h:1");
        }
        assert!(
            is_loopback("http://127.0.0.1:8080") && is_loopback("http://localhost") && is_loopback("http://[::1]:1")
        );
        assert!(!is_loopback("http://gw.example.com"));
    }
}
