//! `gateway codex`: starts Codex through this gateway, and leaves no file changed.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use jiff::SignedDuration;
use rustix::process;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::failure::{Exit, Failure};
use super::{Global, actor, block_on, runtime};
use crate::admin::{self, KeySpec};
use crate::config::Config;
use crate::store::users::User;
use crate::store::{Create, KeyId, OpenError, Store};
use crate::time;

/// The variable Codex reads the key from.
pub const KEY_VARIABLE: &str = "CODEX_GATEWAY_API_KEY";

/// The variable that names the gateway.
pub const URL_VARIABLE: &str = "CODEX_GATEWAY_URL";

/// The name of the model provider: not `openai`, whose built-in form cannot be overridden.
const PROVIDER: &str = "codex-gateway";

/// What Codex 0.169 starts with when nothing else is said, for a Codex that cannot be asked.
const CODEX_DEFAULT: &str = "gpt-6.1-sol";

/// How long a key lives that is issued for one run of Codex, in hours. It is revoked at the end; this is for kills.
const KEY_HOURS: i64 = 24;

/// What happened, when it did not come to Codex.
const NOT_STARTED: &str = "Codex was not started";

/// The exit code of a command that was interrupted before Codex ran.
const INTERRUPTED: u8 = 130;

/// How long the gateway may take to say that it is there, and to list its models.
const PATIENCE: Duration = Duration::from_secs(10);

/// Codex's own commands: with one of these, ARGS say themselves what is to be done.
const COMMANDS: [&str; 27] = [
    "agents",
    "exec",
    "e",
    "review",
    "login",
    "logout",
    "mcp",
    "plugin",
    "app-server",
    "remote-control",
    "completion",
    "update",
    "doctor",
    "sandbox",
    "debug",
    "apply",
    "a",
    "resume",
    "queue",
    "archive",
    "delete",
    "unarchive",
    "fork",
    "cloud",
    "exec-server",
    "features",
    "help",
];

/// Codex's options that take a value as the next argument.
const VALUED: [&str; 19] = [
    "-c",
    "--config",
    "--enable",
    "--disable",
    "--remote",
    "-i",
    "--image",
    "-m",
    "--model",
    "--local-provider",
    "-p",
    "--profile",
    "-s",
    "--sandbox",
    "-C",
    "--cd",
    "--add-dir",
    "-a",
    "--ask-for-approval",
];

/// Start Codex through this gateway; changes no file.
#[derive(Clone, Debug, clap::Args)]
pub struct CodexArgs {
    /// The gateway's address, such as `https://gw.example.com`
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Whose balance pays, when the key is issued from this machine's database
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Everything else goes to Codex as it is
    #[arg(value_name = "ARGS", trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

/// A failure with what happened, why, and a command that can be pasted.
pub fn failure(exit: Exit, what: impl Into<String>, why: impl Into<String>, fix: impl Into<String>) -> Failure {
    Failure::new(exit, what).why(why).fix(fix)
}

/// Runs Codex, and ends as it ends (128 + the signal that killed it).
///
/// # Errors
/// Codex is not installed, no gateway answers, no key can be had, or the asked model is not offered.
pub fn run(args: &CodexArgs, global: &Global) -> anyhow::Result<u8> {
    let config = global.settings(Vec::new())?.config;
    block_on(async { Ok(through(args, &config, global).await?) })
}

async fn through(args: &CodexArgs, config: &Config, global: &Global) -> Result<u8, Failure> {
    let program = find_program("codex", env::var_os("PATH").as_deref()).ok_or_else(not_installed)?;
    // From here on a stop signal ends Codex, not this process: the key has to be revoked.
    let mut signals = Signals::watch()?;
    let access = access(args, config).await?;
    let result = tokio::select! {
        prepared = prepare(&program, &access, args) => match prepared {
            Ok(prepared) => start(prepared, &access, &mut signals, global).await,
            Err(failure) => Err(failure),
        },
        () = signals.any() => Ok(INTERRUPTED),
    };
    if let Some(issued) = access.issued
        && let Err(failure) = issued.revoke().await
    {
        global.say(&failure.to_string());
    }
    result
}

/// Codex's command line, ready to run.
struct Prepared {
    command: Command,
    note: Option<String>,
    /// Lives as long as Codex may read it.
    catalogue: Option<CatalogueFile>,
}

async fn prepare(program: &Path, access: &Access, args: &CodexArgs) -> Result<Prepared, Failure> {
    let (list, bundle) = tokio::join!(fetch_models(&access.url, &access.key), bundled(program));
    let list = list?;
    let home = CodexHome::read(&args.args);
    let model = choose_model(
        asked_model(&args.args).as_deref(),
        home.model.as_deref(),
        &codex_default(&bundle),
        &list,
    )?;
    let catalogue = CatalogueFile::compose(&list, &bundle);
    let mut command = Command::new(program);
    command.args(overrides(
        &access.url,
        &home,
        &list,
        catalogue.as_ref().map(|file| file.0.as_path()),
    ));
    command.args(
        model
            .pass
            .iter()
            .flat_map(|name| ["-c".to_owned(), format!("model={}", quoted(name))]),
    );
    if needs_exec(&args.args) && !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        command.arg("exec");
    }
    command.args(&args.args).env(KEY_VARIABLE, &access.key);
    if is_loopback(&access.url) {
        command.envs(no_proxy(env::var("NO_PROXY").or_else(|_| env::var("no_proxy")).ok()));
    }
    Ok(Prepared {
        command,
        note: model.note,
        catalogue,
    })
}

async fn start(mut prepared: Prepared, access: &Access, signals: &mut Signals, global: &Global) -> Result<u8, Failure> {
    prepared.note.iter().for_each(|note| global.say(note));
    global.say(&format!(
        "Codex through {} {}. No file was changed.",
        access.url, access.by
    ));
    let child = prepared.command.spawn();
    let child = child.map_err(|error| {
        failure(
            Exit::Failed,
            "Codex could not be started",
            error.to_string(),
            "codex --version",
        )
    })?;
    let code = wait(child, signals).await;
    drop(prepared.catalogue);
    code
}

/// Where the gateway is, and with which key it is used.
struct Access {
    url: String,
    key: String,
    by: String,
    issued: Option<Issued>,
}

async fn access(args: &CodexArgs, config: &Config) -> Result<Access, Failure> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let url = args
        .url
        .clone()
        .or_else(|| variable(URL_VARIABLE))
        .map(|url| base(&url));
    if args.user.is_none()
        && let Some(key) = variable(KEY_VARIABLE)
    {
        let url = url.unwrap_or_else(|| here(config));
        return Ok(Access {
            url,
            key,
            by: format!("with the key of {KEY_VARIABLE}"),
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
            by: "with the demo's key".into(),
            issued: None,
        });
    }
    let url = url.unwrap_or_else(|| here(config));
    if !is_loopback(&url) && url != here(config) {
        return Err(no_key(&url));
    }
    check_alive(&url).await?;
    let (issued, key) = Issued::issue(config, args.user.as_deref()).await?;
    let by = format!(
        "as {} (key {}, {KEY_HOURS} h, revoked at exit)",
        issued.user, issued.name
    );
    Ok(Access {
        url,
        key,
        by,
        issued: Some(issued),
    })
}

/// The address of the server that the settings describe.
fn here(config: &Config) -> String {
    config
        .server
        .public_url
        .as_deref()
        .map_or_else(|| listening(config.server.listen), base)
}

/// How a client on this machine reaches a listener.
fn listening(mut listen: SocketAddr) -> String {
    if listen.ip().is_unspecified() {
        listen.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    format!("http://{listen}")
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
struct Issued {
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

    async fn revoke(self) -> Result<(), Failure> {
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
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let spec = KeySpec {
        name: Some(format!("codex@{host}")),
        expires_at: now.checked_add(SignedDuration::from_hours(KEY_HOURS)).ok(),
        models: Vec::new(),
        ips: Vec::new(),
        on_hangup: None,
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
            NOT_STARTED,
            "there is no user yet",
            "gateway user add you --balance 5",
        )),
        _ => Err(several(&users)),
    }
}

fn several(users: &[User]) -> Failure {
    let names: Vec<&str> = users.iter().take(8).map(|user| user.name.as_str()).collect();
    let more = if users.len() > names.len() { ", …" } else { "" };
    let why = format!("there are several users: {}{more}", names.join(", "));
    let fix = format!("gateway codex --user {} …", names.first().unwrap_or(&"NAME"));
    failure(Exit::Usage, "Codex was not started: whose balance pays?", why, fix)
}

fn no_key(url: &str) -> Failure {
    let why = format!("there is no key for {url}, and only its own machine can issue one");
    failure(
        Exit::NotAllowed,
        NOT_STARTED,
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
        .why("without a key or a running demo, one is issued from this machine's database")
        .fix(format!(
            "gateway demo --serve   (or: {KEY_VARIABLE}=sk-gw-… gateway codex --url URL …)"
        ))
}

fn not_installed() -> Failure {
    failure(
        Exit::NotFound,
        NOT_STARTED,
        "there is no `codex` on the PATH",
        "npm install -g @openai/codex",
    )
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
    builder
        .build()
        .map_err(|error| failure(Exit::Upstream, "no HTTP client could be made", error.to_string(), ""))
}

async fn check_alive(url: &str) -> Result<(), Failure> {
    let answer = http_client(url)?.get(format!("{url}/healthz")).send().await;
    match answer {
        Ok(answer) if answer.status().is_success() => Ok(()),
        Ok(answer) => Err(no_gateway(url, &format!("it answers {} to /healthz", answer.status()))),
        Err(error) => Err(no_gateway(url, &cause(&error))),
    }
}

fn no_gateway(url: &str, why: &str) -> Failure {
    let fix = "gateway serve   (in another terminal; or name its address: gateway codex --url URL …)";
    failure(Exit::Upstream, format!("no gateway runs at {url}"), why, fix)
}

/// The innermost reason: reqwest's own words only say that sending failed.
fn cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// What the gateway offers to this key.
///
/// # Errors
/// It does not answer (7), the key is not valid (4), or it offers nothing that Codex could use (5).
pub async fn fetch_models(url: &str, key: &str) -> Result<Value, Failure> {
    let request = http_client(url)?.get(format!("{url}/v1/models")).bearer_auth(key);
    let answer = request.send().await.map_err(|error| no_gateway(url, &cause(&error)))?;
    let status = answer.status();
    let body: Value = answer.json().await.unwrap_or_default();
    if !status.is_success() {
        let why = body["error"]["message"]
            .as_str()
            .unwrap_or("no reason was given")
            .to_owned();
        let exit = if status.as_u16() == 401 {
            Exit::NotAllowed
        } else {
            Exit::Upstream
        };
        return Err(failure(
            exit,
            format!("{url} answers {status}"),
            why,
            "gateway key issue USER",
        ));
    }
    if entries(&body).next().is_none() {
        let fix = "gateway price check   (a model without a price is not offered)";
        return Err(failure(
            Exit::NotFound,
            format!("{url} offers no model for Codex"),
            "its list is empty for this key",
            fix,
        ));
    }
    Ok(body)
}

/// The catalogue entries of a model list.
pub fn entries(list: &Value) -> impl Iterator<Item = &Value> {
    list["models"].as_array().into_iter().flatten()
}

/// Whether any model on the list is served by OpenAI itself.
pub fn any_from_openai(list: &Value) -> bool {
    entries(list).any(from_openai)
}

fn from_openai(entry: &Value) -> bool {
    entry["gateway"]["speaks"] == "codex"
}

fn slug(entry: &Value) -> &str {
    entry["slug"].as_str().unwrap_or_default()
}

/// The model list inside the installed Codex; empty when it cannot be asked.
pub async fn bundled(program: &Path) -> Vec<Value> {
    let mut command = Command::new(program);
    command
        .args(["debug", "models", "--bundled"])
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await;
    let stdout = output
        .ok()
        .and_then(Result::ok)
        .map(|output| output.stdout)
        .unwrap_or_default();
    let list: Value = serde_json::from_slice(&stdout).unwrap_or_default();
    entries(&list).cloned().collect()
}

/// What Codex itself would start with.
pub fn codex_default(bundle: &[Value]) -> String {
    let listed = bundle.iter().filter(|entry| entry["visibility"] == "list");
    let first = listed.min_by_key(|entry| entry["priority"].as_i64().unwrap_or(i64::MAX));
    first.map_or(CODEX_DEFAULT, slug).to_owned()
}

/// A catalogue for this run: where OpenAI itself answers, Codex keeps its own entry of a model (instructions, tools,
/// request shape), with the gateway's price beside the name; elsewhere the gateway's entry holds.
struct CatalogueFile(PathBuf);

impl CatalogueFile {
    /// `None` when Codex's entries play no part: it then asks the gateway itself.
    fn compose(list: &Value, bundle: &[Value]) -> Option<CatalogueFile> {
        let catalogue = compose(list, bundle)?;
        let dir = runtime::directory();
        runtime::private_directory(&dir).ok()?;
        let path = dir.join(format!("models-{}.json", std::process::id()));
        runtime::write_private(&path, catalogue.to_string().as_bytes()).ok()?;
        Some(CatalogueFile(path))
    }
}

impl Drop for CatalogueFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn compose(list: &Value, bundle: &[Value]) -> Option<Value> {
    let own = |entry: &Value| {
        bundle
            .iter()
            .find(|known| from_openai(entry) && slug(known) == slug(entry))
    };
    entries(list).any(|entry| own(entry).is_some()).then(|| {
        let merged: Vec<Value> = entries(list)
            .map(|entry| own(entry).map_or_else(|| entry.clone(), |own| merge(own, entry)))
            .collect();
        serde_json::json!({ "models": merged })
    })
}

/// Codex's entry with our price and place; without the advice to move to a model that may not be offered, and without
/// a faster tier as the default, which would cost twice as much unasked.
fn merge(own: &Value, ours: &Value) -> Value {
    let mut entry = own.clone();
    for key in ["description", "visibility", "priority"] {
        entry[key] = ours[key].clone();
    }
    if let Some(entry) = entry.as_object_mut() {
        for key in ["upgrade", "availability_nux", "default_service_tier"] {
            entry.remove(key);
        }
    }
    entry
}

/// What of Codex's own settings matters here.
#[derive(Debug, Default)]
struct CodexHome {
    model: Option<String>,
    excluded_variables: Vec<String>,
}

impl CodexHome {
    /// From `config.toml`, and the profile if ARGS name one. What cannot be read is Codex's to complain about.
    fn read(args: &[OsString]) -> CodexHome {
        let Some(home) = codex_home() else {
            return CodexHome::default();
        };
        let profile = value_of(args, "-p", "--profile").map(|name| format!("{name}.config.toml"));
        let mut found = CodexHome::default();
        for file in [Some("config.toml".to_owned()), profile].into_iter().flatten() {
            let text = std::fs::read_to_string(home.join(file)).unwrap_or_default();
            found.add(&text.parse().unwrap_or_default());
        }
        found
    }

    fn add(&mut self, table: &toml::Table) {
        if let Some(model) = table.get("model").and_then(toml::Value::as_str) {
            self.model = Some(model.to_owned());
        }
        let policy = table
            .get("shell_environment_policy")
            .and_then(|policy| policy.get("exclude"));
        let names = policy.and_then(toml::Value::as_array).into_iter().flatten();
        self.excluded_variables
            .extend(names.filter_map(toml::Value::as_str).map(str::to_owned));
    }
}

/// `$CODEX_HOME`, else `~/.codex`.
pub fn codex_home() -> Option<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("CODEX_HOME").or_else(|| set("HOME").map(|home| home.join(".codex")))
}

/// The model that ARGS ask for.
fn asked_model(args: &[OsString]) -> Option<String> {
    let set = values_of(args, "-c", "--config").into_iter().rev();
    let set = set.filter_map(|pair| {
        pair.strip_prefix("model=")
            .map(|name| name.trim_matches(['"', '\'']).to_owned())
    });
    value_of(args, "-m", "--model").or_else(|| set.into_iter().next())
}

fn value_of(args: &[OsString], short: &str, long: &str) -> Option<String> {
    values_of(args, short, long).pop()
}

/// The values of an option, in each way it can be written: `-m X`, `-mX`, `--model X`, `--model=X`.
fn values_of(args: &[OsString], short: &str, long: &str) -> Vec<String> {
    let args: Vec<_> = args
        .iter()
        .map(|arg| arg.to_string_lossy())
        .take_while(|arg| arg != "--")
        .collect();
    let mut values = Vec::new();
    for (at, arg) in args.iter().enumerate() {
        if arg == short || arg == long {
            values.extend(args.get(at + 1).map(ToString::to_string));
        } else if let Some(value) = arg.strip_prefix(long).and_then(|rest| rest.strip_prefix('=')) {
            values.push(value.to_owned());
        } else if let Some(value) = arg.strip_prefix(short).filter(|_| !arg.starts_with("--")) {
            values.push(value.trim_start_matches('=').to_owned());
        }
    }
    values
}

/// The model of this run.
#[derive(Debug, PartialEq, Eq)]
struct Model {
    /// To be passed to Codex, unless it takes it by itself.
    pass: Option<String>,
    /// What to say about it.
    note: Option<String>,
}

/// A model that was typed has to be offered. One that Codex would take by itself is replaced when it is not.
fn choose_model(asked: Option<&str>, set: Option<&str>, own: &str, list: &Value) -> Result<Model, Failure> {
    let offered = |name: &str| entries(list).any(|entry| slug(entry) == name);
    if let Some(name) = asked {
        return if offered(name) {
            Ok(Model { pass: None, note: None })
        } else {
            Err(not_offered(name, list))
        };
    }
    let wanted = set.unwrap_or(own);
    if offered(wanted) {
        return Ok(Model {
            pass: set.is_none().then(|| wanted.to_owned()),
            note: None,
        });
    }
    let first = entries(list).next().map(slug).unwrap_or_default().to_owned();
    let note = format!("The model {wanted} is not offered here; using {first} (another: gateway codex -m MODEL …)");
    Ok(Model {
        pass: Some(first),
        note: Some(note),
    })
}

fn not_offered(name: &str, list: &Value) -> Failure {
    let names: Vec<&str> = entries(list).map(slug).collect();
    let shown = names.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    let near = crate::route::nearest(name, names.iter().copied())
        .or(names.first().copied())
        .unwrap_or("MODEL");
    let why = format!("the model '{name}' is not offered to this key; these are: {shown}");
    failure(Exit::NotFound, NOT_STARTED, why, format!("gateway codex -m {near} …"))
}

/// The overrides that lead Codex here.
fn overrides(url: &str, home: &CodexHome, list: &Value, catalogue: Option<&Path>) -> Vec<OsString> {
    let mut settings = vec![
        format!("model_provider={}", quoted(PROVIDER)),
        format!("model_providers.{PROVIDER}={{{}}}", provider(url, catalogue)),
        format!("shell_environment_policy.exclude={}", excluded(home)),
    ];
    settings.extend(catalogue.map(|path| format!("model_catalog_json={}", quoted(&path.to_string_lossy()))));
    if !any_from_openai(list) {
        // A hosted tool of OpenAI's: compatible servers refuse the whole request for it. A later `-c` wins.
        settings.push("web_search=\"disabled\"".to_owned());
    }
    settings
        .into_iter()
        .flat_map(|setting| [OsString::from("-c"), setting.into()])
        .collect()
}

fn provider(url: &str, catalogue: Option<&Path>) -> String {
    let mut pairs = vec![
        format!("name={}", quoted("Codex Gateway")),
        format!("base_url={}", quoted(&format!("{url}/v1"))),
        format!("env_key={}", quoted(KEY_VARIABLE)),
        format!("wire_api={}", quoted("responses")),
        "supports_websockets=false".to_owned(),
    ];
    if catalogue.is_none() {
        pairs.push(format!("model_catalog_url={}", quoted(&format!("{url}/v1/models"))));
    }
    pairs.join(",")
}

/// The key is Codex's, not for the commands its agent runs.
fn excluded(home: &CodexHome) -> String {
    let names = home.excluded_variables.iter().map(String::as_str).chain([KEY_VARIABLE]);
    format!("[{}]", names.map(quoted).collect::<Vec<_>>().join(","))
}

/// A TOML string.
pub fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Whether ARGS leave open what Codex is to do: then, without a terminal, it is `codex exec`.
fn needs_exec(args: &[OsString]) -> bool {
    let mut rest = args.iter().map(|arg| arg.to_string_lossy());
    while let Some(arg) = rest.next() {
        match arg.as_ref() {
            "-h" | "--help" | "-V" | "--version" => return false,
            "--" => return true,
            valued if VALUED.contains(&valued) => drop(rest.next()),
            flag if flag.starts_with('-') => {}
            word => return !COMMANDS.contains(&word),
        }
    }
    true
}

/// The variables that keep a proxy out of the way to this machine.
fn no_proxy(set: Option<String>) -> [(&'static str, String); 2] {
    let mut hosts: Vec<&str> = set
        .as_deref()
        .unwrap_or_default()
        .split(',')
        .filter(|host| !host.is_empty())
        .collect();
    hosts.extend(["127.0.0.1", "localhost", "::1"]);
    let value = hosts.join(",");
    [("NO_PROXY", value.clone()), ("no_proxy", value)]
}

/// The first executable file of this name on the path.
pub fn find_program(name: &str, path: Option<&OsStr>) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    env::split_paths(path?)
        .map(|dir| dir.join(name))
        .find(|file| std::fs::metadata(file).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0))
}

/// The signals that ask to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn watch() -> Result<Signals, Failure> {
        let watch = |kind| signal(kind).map_err(unwatched);
        Ok(Signals {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hangup: watch(SignalKind::hangup())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

fn unwatched(error: std::io::Error) -> Failure {
    failure(
        Exit::Failed,
        "Codex could not be watched",
        error.to_string(),
        "codex --version",
    )
}

/// Waits for Codex. Ctrl-C reaches it through the terminal; other stop signals are passed on.
async fn wait(mut child: Child, signals: &mut Signals) -> Result<u8, Failure> {
    loop {
        tokio::select! {
            status = child.wait() => return status.map(exit_code).map_err(unwatched),
            _ = signals.interrupt.recv() => {}
            _ = signals.terminate.recv() => pass_on(&child, process::Signal::TERM),
            _ = signals.hangup.recv() => pass_on(&child, process::Signal::HUP),
        }
    }
}

fn pass_on(child: &Child, signal: process::Signal) {
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(process::Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended in between, which is what was wanted.
        process::kill_process(pid, signal).ok();
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    fn list(slugs: &[&str], speaks: &str) -> Value {
        let models: Vec<Value> = slugs.iter().map(|slug| json!({"slug": slug, "description": "$1 in", "visibility": "list", "priority": 1, "gateway": {"speaks": speaks}})).collect();
        json!({ "models": models })
    }

    #[test]
    fn without_a_terminal_a_prompt_is_for_exec_and_a_command_is_not() {
        assert!(needs_exec(&args(&["fix the test"])));
        assert!(needs_exec(&args(&["-m", "exec", "fix"])), "a value is not a command");
        assert!(needs_exec(&args(&[])));
        assert!(!needs_exec(&args(&["exec", "fix"])));
        assert!(!needs_exec(&args(&["-c", "a=b", "doctor"])));
        assert!(!needs_exec(&args(&["--version"])));
    }

    #[test]
    fn the_model_that_was_typed_is_found_however_it_is_written() {
        for words in [
            ["-m", "a"].as_slice(),
            &["-ma"],
            &["--model", "a"],
            &["--model=a"],
            &["-c", "model=\"a\""],
            &["--config=model=a"],
        ] {
            assert_eq!(asked_model(&args(words)), Some("a".into()), "{words:?}");
        }
        assert_eq!(asked_model(&args(&["-c", "model_provider=x", "--", "-m", "a"])), None);
    }

    #[test]
    fn codex_keeps_its_own_model_where_it_is_offered() {
        let list = list(&["b", "a"], "public");
        let own = choose_model(None, None, "a", &list).expect("offered");
        assert_eq!(
            own,
            Model {
                pass: Some("a".into()),
                note: None
            }
        );
        let set = choose_model(None, Some("b"), "a", &list).expect("offered");
        assert_eq!(set, Model { pass: None, note: None });
    }

    #[test]
    fn a_model_that_is_not_offered_is_replaced_aloud_unless_it_was_typed() {
        let list = list(&["b"], "public");
        let other = choose_model(None, Some("z"), "a", &list).expect("replaced");
        assert_eq!(other.pass.as_deref(), Some("b"));
        assert!(other.note.expect("said").contains("z is not offered"));
        assert_eq!(
            choose_model(Some("z"), None, "a", &list).expect_err("typed").exit,
            Exit::NotFound
        );
    }

    #[test]
    fn where_openai_answers_codex_keeps_its_own_entry_with_our_price() {
        let own = json!({"slug": "a", "base_instructions": "theirs", "description": "old", "priority": 7, "upgrade": {"model": "x"}, "visibility": "list"});
        let merged = compose(&list(&["a", "b"], "codex"), std::slice::from_ref(&own)).expect("a catalogue");
        assert_eq!(merged["models"][0]["base_instructions"], "theirs");
        assert_eq!(merged["models"][0]["description"], "$1 in");
        assert!(merged["models"][0]["upgrade"].is_null());
        assert_eq!(merged["models"][1]["slug"], "b");
        assert_eq!(compose(&list(&["a"], "public"), &[own]), None);
    }

    #[test]
    fn the_overrides_are_toml_that_codex_reads() {
        let home = CodexHome {
            model: None,
            excluded_variables: vec!["MINE".into()],
        };
        let words = overrides("http://127.0.0.1:8080", &home, &list(&["a"], "public"), None);
        let text: Vec<String> = words
            .iter()
            .filter(|word| *word != "-c")
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let table: toml::Table = text.join("\n").parse().expect("TOML");
        assert_eq!(
            table["model_providers"][PROVIDER]["base_url"].as_str(),
            Some("http://127.0.0.1:8080/v1")
        );
        assert_eq!(
            table["shell_environment_policy"]["exclude"].as_array().map(Vec::len),
            Some(2)
        );
        assert!(
            !text.join(" ").contains("sk-gw-x"),
            "the key is not on the command line"
        );
    }

    #[test]
    fn an_address_is_understood_however_it_is_written() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"] {
            assert_eq!(base(url), "http://h:1");
        }
        assert!(
            is_loopback("http://127.0.0.1:8080") && is_loopback("http://localhost") && is_loopback("http://[::1]:1")
        );
        assert!(!is_loopback("http://gw.example.com"));
        assert_eq!(listening(SocketAddr::from(([0, 0, 0, 0], 80))), "http://127.0.0.1:80");
    }

    #[test]
    fn a_proxy_stays_out_of_the_way_to_this_machine() {
        assert_eq!(no_proxy(Some("corp".into()))[0].1, "corp,127.0.0.1,localhost,::1");
        assert_eq!(no_proxy(None)[1].0, "no_proxy");
    }

    #[test]
    fn codex_s_exit_code_is_ours() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(9)), 137);
    }
}
