//! Sources to settings: flags beat the environment, which beats the file, which beats the default.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use http::{HeaderName, HeaderValue};

use super::error::{ConfigError, Show};
use super::parse::{self, Parsed, Problem, problem};
use super::source::{Document, Node, Origin, Place, Value};
use super::{BillingConfig, Config, LogConfig, OnHangup, Pricing, Secret, ServerConfig, UpstreamConfig};
use crate::hold;
use crate::pricing::ListName;
use crate::usage::Tokens;

/// The tables and their keys. Each can be set by `GATEWAY_<TABLE>__<KEY>`.
const TABLES: [(&str, &[&str]); 4] = [
    (
        "server",
        &[
            "listen",
            "public_url",
            "trusted_proxies",
            "max_body",
            "max_response",
            "header_timeout",
            "body_timeout",
            "drain_timeout",
        ],
    ),
    ("database", &["path"]),
    ("billing", &["hold_share", "min_output_tokens", "on_hangup", "markup"]),
    ("log", &["format", "level"]),
];

/// The keys of an `[[upstream]]`.
const UPSTREAM: &[&str] = &[
    "name",
    "base_url",
    "api_key",
    "auth",
    "models",
    "aliases",
    "prices",
    "region",
    "proxy",
    "ca_file",
    "connect_timeout",
    "first_byte_timeout",
    "idle_timeout",
    "headers",
];

/// Headers that the gateway or the connection sets.
const OWN_HEADERS: [&str; 7] = [
    "authorization",
    "api-key",
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
];

/// What a hidden value is shown as.
const MASK: &str = "••••";

/// The variable that makes an upstream when none is configured.
const OPENAI_KEY: &str = "OPENAI_API_KEY";

/// Everything settings are made of.
pub struct Sources<'a> {
    /// The settings file and its text.
    pub file: Option<(PathBuf, String)>,
    /// The environment.
    pub env: &'a BTreeMap<String, String>,
    /// Flags that stand for a setting.
    pub flags: Vec<Flag>,
    /// Reads the file of a `file:PATH` secret; the error is for people.
    pub read: &'a dyn Fn(&Path) -> Result<String, String>,
}

/// A flag that stands for a setting of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flag {
    /// The flag as typed: `--listen`.
    pub name: &'static str,
    /// The table: `server`.
    pub table: &'static str,
    /// The key: `listen`.
    pub key: &'static str,
    /// The value.
    pub value: String,
}

/// One effective setting, for `config show`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// `server.listen`, `upstream.openai.base_url`.
    pub key: String,
    /// Its value as it would be written, secrets masked; `None`: not set, and there is no default.
    pub value: Option<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// Settings, and how they came about.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// Each with its origin.
    pub settings: Vec<Setting>,
    /// Secrets that could not be resolved (`env:NAME` unset, `file:PATH` unreadable). Only who calls upstreams needs
    /// them, so commands beside a running server go on without.
    pub missing: Vec<ConfigError>,
}

impl Loaded {
    /// The settings for a process that calls upstreams.
    ///
    /// # Errors
    /// The first secret that could not be resolved.
    pub fn complete(self) -> Result<Config, ConfigError> {
        match self.missing.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(self.config),
        }
    }
}

impl Config {
    /// Settings from their sources.
    ///
    /// # Errors
    /// The first setting that is unknown or wrong, with its position and what to do.
    pub fn load(sources: Sources<'_>) -> Result<Loaded, ConfigError> {
        let mut loader = Loader {
            document: sources.file.map(|(path, text)| Document { path, text }),
            env: sources.env,
            read: sources.read,
            settings: Vec::new(),
            missing: Vec::new(),
        };
        let mut tables = loader.file_tables()?;
        let upstreams = tables.remove("upstream");
        loader.add_env(&mut tables)?;
        for flag in sources.flags {
            let table = tables.entry(flag.table.to_owned()).or_default();
            table.insert(
                flag.key.to_owned(),
                text_node(flag.value, Place::Flag(flag.name.to_owned())),
            );
        }
        let mut table = |name: &str| Table {
            name: name.to_owned(),
            nodes: tables.remove(name).unwrap_or_default(),
        };
        let config = Config {
            server: loader.server(&mut table("server"))?,
            database: loader.database(&mut table("database"))?,
            billing: loader.billing(&mut table("billing"))?,
            log: loader.log(&mut table("log"))?,
            upstreams: loader.upstreams(upstreams)?,
        };
        Ok(Loaded {
            config,
            settings: loader.settings,
            missing: loader.missing,
        })
    }
}

/// A table while it is read.
struct Table {
    name: String,
    nodes: BTreeMap<String, Node>,
}

struct Loader<'a> {
    document: Option<Document>,
    env: &'a BTreeMap<String, String>,
    read: &'a dyn Fn(&Path) -> Result<String, String>,
    settings: Vec<Setting>,
    missing: Vec<ConfigError>,
}

type Nodes = BTreeMap<String, Node>;

fn text_node(text: String, place: Place) -> Node {
    Node {
        value: Value::Text(text),
        key: place.clone(),
        place,
    }
}

/// What is known, and in which table, in the words of a fix.
fn unknown_fix(table: Option<&str>, keys: &[&str], wanted: &str) -> String {
    if let Some(near) = nearest(wanted, keys.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    let elsewhere = TABLES
        .iter()
        .find(|(name, keys)| Some(*name) != table && keys.contains(&wanted));
    match elsewhere {
        Some((name, _)) => format!("`{wanted}` belongs into [{name}]"),
        None => format!("known here: {}", keys.join(", ")),
    }
}

/// The name among `names` nearest to `wanted`, if one is near enough to be meant.
fn nearest<'n>(wanted: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let plain = |text: &str| text.to_ascii_lowercase().replace(['_', '-'], "");
    let wanted = plain(wanted);
    let far = wanted.len() / 3 + 1;
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&wanted, &plain(name)), name))
        .filter(|(distance, _)| *distance <= far)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Raw values.
impl Loader<'_> {
    /// The file's tables, every name in them known.
    fn file_tables(&self) -> Result<BTreeMap<String, Nodes>, ConfigError> {
        let Some(document) = &self.document else {
            return Ok(BTreeMap::new());
        };
        let mut tables = BTreeMap::new();
        for (name, node) in document.parse()? {
            let nodes = match (TABLES.iter().find(|(known, _)| *known == name), node.value) {
                (Some((_, keys)), Value::Table(nodes)) => {
                    self.refuse_unknown(Some(&name), keys, &nodes)?;
                    nodes
                }
                (Some(_), _) => {
                    return Err(self.at(
                        &node.key,
                        format!("`{name}` is a table"),
                        format!("write [{name}] above its keys"),
                    ));
                }
                (None, value) if name == "upstream" => {
                    let node = Node { value, ..node };
                    BTreeMap::from([(String::new(), node)])
                }
                (None, _) => {
                    let mut known: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
                    known.push("upstream");
                    let fix = unknown_fix(None, &known, &name);
                    return Err(self.at(&node.key, format!("unknown table or key `{name}`"), fix));
                }
            };
            tables.insert(name, nodes);
        }
        Ok(tables)
    }

    fn refuse_unknown(&self, table: Option<&str>, keys: &[&str], nodes: &Nodes) -> Result<(), ConfigError> {
        let Some((name, node)) = nodes.iter().find(|(name, _)| !keys.contains(&name.as_str())) else {
            return Ok(());
        };
        let title = table.map_or("[[upstream]]".to_owned(), |table| format!("[{table}]"));
        let fix = unknown_fix(table, keys, name);
        Err(self.at(&node.key, format!("unknown key `{name}` in {title}"), fix))
    }

    /// `GATEWAY_<TABLE>__<KEY>`. Other names that start with `GATEWAY_` belong to somebody else.
    fn add_env(&self, tables: &mut BTreeMap<String, Nodes>) -> Result<(), ConfigError> {
        for (variable, value) in self.env {
            let Some((table, key)) = variable.strip_prefix("GATEWAY_").and_then(|rest| rest.split_once("__")) else {
                continue;
            };
            let (table, key) = (table.to_ascii_lowercase(), key.to_ascii_lowercase());
            let known = TABLES
                .iter()
                .any(|(name, keys)| *name == table && keys.contains(&key.as_str()));
            if !known || *variable != variable.to_ascii_uppercase() {
                return Err(self.at(
                    &Place::Env(variable.clone()),
                    "this variable sets nothing".into(),
                    unknown_variable(variable, &table),
                ));
            }
            let node = text_node(value.clone(), Place::Env(variable.clone()));
            tables.entry(table).or_default().insert(key, node);
        }
        Ok(())
    }

    /// An error at a place, which may be quoted.
    fn at(&self, place: &Place, what: String, fix: String) -> ConfigError {
        self.error(place, Show::Span, what, fix)
    }

    fn error(&self, place: &Place, show: Show, what: String, fix: String) -> ConfigError {
        let elsewhere = |name: &str| ConfigError {
            place: name.to_owned(),
            what: what.clone(),
            excerpt: None,
            fix: fix.clone(),
        };
        match (place, &self.document) {
            (Place::Span(span), Some(document)) => document.error(span, show, what, fix),
            (Place::Span(_), None) | (Place::Default, _) => elsewhere("default"),
            (Place::Env(name) | Place::Flag(name), _) => elsewhere(name),
        }
    }

    fn origin(&self, place: &Place) -> Origin {
        match (place, &self.document) {
            (Place::Span(span), Some(document)) => Origin::File {
                path: document.path.clone(),
                line: document.line(span),
            },
            (Place::Span(_), None) | (Place::Default, _) => Origin::Default,
            (Place::Env(name), _) => Origin::Env(name.clone()),
            (Place::Flag(name), _) => Origin::Flag(name.clone()),
        }
    }

    fn note(&mut self, table: &Table, key: &str, value: Option<String>, place: &Place) {
        self.settings.push(Setting {
            key: format!("{}.{key}", table.name),
            value,
            origin: self.origin(place),
        });
    }
}

fn unknown_variable(variable: &str, table: &str) -> String {
    if table == "upstream" {
        return "upstreams are set in the file; a key may be read from a variable: api_key = \"env:NAME\"".into();
    }
    let names: Vec<String> = TABLES
        .iter()
        .flat_map(|(table, keys)| {
            keys.iter()
                .map(move |key| format!("GATEWAY_{table}__{key}").to_ascii_uppercase())
        })
        .collect();
    match nearest(variable, names.iter().map(String::as_str)) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("take it out; known are {} …", names[..3].join(", ")),
    }
}

/// Typed values. Defaults are written as in the file and pass through the same parsers.
impl Loader<'_> {
    fn scalar(&self, key: &str, node: &Node) -> Result<String, ConfigError> {
        match &node.value {
            Value::Text(text) | Value::Number(text) => Ok(text.clone()),
            Value::List(_) => Err(self.wrong_kind(key, node, "a list")),
            Value::Table(_) => Err(self.wrong_kind(key, node, "a table")),
            Value::Other(kind) => Err(self.wrong_kind(key, node, kind)),
        }
    }

    fn wrong_kind(&self, key: &str, node: &Node, kind: &str) -> ConfigError {
        let (what, fix) = (
            format!("`{key}` is {kind}, not one value"),
            format!("write {key} = \"…\""),
        );
        self.error(&node.key, Show::KeyOnly, what, fix)
    }

    fn parsed<T>(
        &self,
        node: &Node,
        key: &str,
        text: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<T, ConfigError> {
        parse(text).map_err(|Problem { what, fix }| self.at(&node.place, format!("{key}: {what}"), fix))
    }

    /// A setting with a default.
    fn value<T>(
        &mut self,
        table: &mut Table,
        key: &str,
        default: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<T, ConfigError> {
        let node = table.nodes.remove(key);
        let node = node.unwrap_or_else(|| text_node(default.to_owned(), Place::Default));
        let text = self.scalar(key, &node)?;
        let value = self.parsed(&node, key, &text, parse)?;
        self.note(table, key, Some(text), &node.place);
        Ok(value)
    }

    /// A setting that may be absent.
    fn optional<T>(
        &mut self,
        table: &mut Table,
        key: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Option<T>, ConfigError> {
        if table.nodes.contains_key(key) {
            return self.value(table, key, "", parse).map(Some);
        }
        self.note(table, key, None, &Place::Default);
        Ok(None)
    }

    /// A list; a variable separates its parts by commas.
    fn list<T>(
        &mut self,
        table: &mut Table,
        key: &str,
        default: &[&str],
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let (parts, place) = match table.nodes.remove(key) {
            None => (
                default
                    .iter()
                    .map(|part| text_node((*part).to_owned(), Place::Default))
                    .collect(),
                Place::Default,
            ),
            Some(Node {
                value: Value::List(parts),
                place,
                ..
            }) => (parts, place),
            Some(node) => {
                let text = self.scalar(key, &node)?;
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                (
                    parts
                        .map(|part| text_node(part.to_owned(), node.place.clone()))
                        .collect(),
                    node.place,
                )
            }
        };
        let texts = parts
            .iter()
            .map(|part| self.scalar(key, part))
            .collect::<Result<Vec<_>, _>>()?;
        let values = parts
            .iter()
            .zip(&texts)
            .map(|(part, text)| self.parsed(part, key, text, &parse))
            .collect();
        self.note(table, key, Some(texts.join(", ")), &place);
        values
    }

    /// The entries of a table inside a table.
    fn entries(&self, table: &mut Table, key: &str) -> Result<(Nodes, Place), ConfigError> {
        match table.nodes.remove(key) {
            None => Ok((BTreeMap::new(), Place::Default)),
            Some(Node {
                value: Value::Table(nodes),
                key,
                ..
            }) => Ok((nodes, key)),
            Some(node) => {
                let (what, fix) = (
                    format!("`{key}` is a table"),
                    format!("write {key} = {{ \"name\" = \"value\" }}"),
                );
                Err(self.error(&node.key, Show::KeyOnly, what, fix))
            }
        }
    }

    /// `env:NAME`, `file:PATH` or the secret itself, with where it came from; `None` when it cannot be resolved now.
    fn secret(&mut self, key: &str, node: &Node) -> Result<Option<(Secret, String)>, ConfigError> {
        let text = self.scalar(key, node)?;
        let (found, origin) = if let Some(name) = text.strip_prefix("env:") {
            let unset = || format!("the variable {name} is not set");
            (self.env.get(name).cloned().ok_or_else(unset), name.to_owned())
        } else if let Some(path) = text.strip_prefix("file:") {
            let path = self.beside_file(path);
            ((self.read)(&path), path.display().to_string())
        } else {
            (Ok(text.clone()), self.origin(&node.place).to_string())
        };
        let usable = |secret: &String| !secret.is_empty() && HeaderValue::from_str(secret).is_ok();
        let found = found.map(|secret| secret.trim_end().to_owned());
        match found.and_then(|secret| {
            Some(secret)
                .filter(usable)
                .ok_or_else(|| format!("{origin} holds no usable text"))
        }) {
            Ok(secret) => Ok(Some((Secret::new(secret), origin))),
            Err(why) => {
                let fix = format!("set {key} to env:NAME, file:PATH or the text itself, and see that it can be read");
                let error = self.error(&node.key, Show::KeyOnly, format!("{key}: {why}"), fix);
                self.missing.push(error);
                Ok(None)
            }
        }
    }

    /// A path of the file, relative to the folder the file lies in.
    fn beside_file(&self, path: &str) -> PathBuf {
        let folder = self.document.as_ref().and_then(|document| document.path.parent());
        folder.unwrap_or(Path::new("")).join(path)
    }
}

/// How a secret is shown: a reference as it is, anything else not at all.
fn masked(node: &Node) -> String {
    match &node.value {
        Value::Text(text) if text.starts_with("env:") || text.starts_with("file:") => text.clone(),
        _ => MASK.to_owned(),
    }
}

fn any_text(text: &str) -> Parsed<String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return problem("the text is empty or holds control characters", "write some text");
    }
    Ok(text.to_owned())
}

/// The tables.
impl Loader<'_> {
    fn server(&mut self, table: &mut Table) -> Result<ServerConfig, ConfigError> {
        Ok(ServerConfig {
            listen: self.value(table, "listen", "127.0.0.1:8080", parse::listen)?,
            public_url: self.optional(table, "public_url", parse::base_url)?,
            trusted_proxies: self.list(table, "trusted_proxies", &[], parse::network)?,
            max_body: self.value(table, "max_body", "64MiB", parse::size)?,
            max_response: self.value(table, "max_response", "32MiB", parse::size)?,
            header_timeout: self.value(table, "header_timeout", "10s", parse::duration)?,
            body_timeout: self.value(table, "body_timeout", "60s", parse::duration)?,
            drain_timeout: self.value(table, "drain_timeout", "300s", parse::duration)?,
        })
    }

    fn database(&mut self, table: &mut Table) -> Result<PathBuf, ConfigError> {
        let Some(node) = table.nodes.remove("path") else {
            let path = self.default_database()?;
            self.note(table, "path", Some(path.display().to_string()), &Place::Default);
            return Ok(path);
        };
        let text = self.scalar("path", &node)?;
        let text = self.parsed(&node, "path", &text, any_text)?;
        let path = match node.place {
            Place::Span(_) => self.beside_file(&text),
            Place::Env(_) | Place::Flag(_) | Place::Default => PathBuf::from(text),
        };
        self.note(table, "path", Some(path.display().to_string()), &node.place);
        Ok(path)
    }

    /// Where the XDG base directory specification puts data; a relative `XDG_DATA_HOME` does not count.
    fn default_database(&self) -> Result<PathBuf, ConfigError> {
        let folder = |name: &str| self.env.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = folder("XDG_DATA_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/share")));
        match data {
            Some(data) => Ok(data.join("codex-gateway").join("gateway.db")),
            None => Err(self.at(
                &Place::Default,
                "no folder for the database: neither XDG_DATA_HOME nor HOME is set".into(),
                "name one: --database FILE".into(),
            )),
        }
    }

    fn billing(&mut self, table: &mut Table) -> Result<BillingConfig, ConfigError> {
        let on_hangup = |text: &str| {
            let fix = "write \"drain\" (read on, take the upstream's usage) or \"cancel\" (stop, estimate)";
            text.parse::<OnHangup>().or_else(|what| problem(what, fix))
        };
        let share_ppm = self.value(table, "hold_share", "0.25", parse::share_ppm)?;
        let min_output: Tokens = self.value(table, "min_output_tokens", "8192", parse::tokens)?;
        Ok(BillingConfig {
            hold: hold::Policy { share_ppm, min_output },
            on_hangup: self.value(table, "on_hangup", "drain", on_hangup)?,
            markup: self.value(table, "markup", "1", parse::factor)?,
        })
    }

    fn log(&mut self, table: &mut Table) -> Result<LogConfig, ConfigError> {
        Ok(LogConfig {
            format: self.value(table, "format", "text", parse::log_format)?,
            level: self.value(table, "level", "info", parse::log_level)?,
        })
    }
}

/// The upstreams.
impl Loader<'_> {
    fn upstreams(&mut self, raw: Option<Nodes>) -> Result<Vec<UpstreamConfig>, ConfigError> {
        let Some(node) = raw.and_then(|mut raw| raw.remove("")) else {
            return self.upstream_of_env();
        };
        let Value::List(items) = node.value else {
            let fix = "write [[upstream]], in double brackets: there may be several";
            return Err(self.at(&node.key, "`upstream` is not a list of tables".into(), fix.into()));
        };
        let mut names = BTreeSet::new();
        let mut upstreams = Vec::new();
        for item in items {
            let Value::Table(nodes) = item.value else {
                let fix = "write [[upstream]] above the keys of each";
                return Err(self.at(&item.place, "`upstream` is not a list of tables".into(), fix.into()));
            };
            self.refuse_unknown(None, UPSTREAM, &nodes)?;
            let name_at = nodes
                .get("name")
                .map_or_else(|| item.place.clone(), |name| name.place.clone());
            let upstream = self.upstream(nodes, &item.place)?;
            if !names.insert(upstream.name.clone()) {
                let what = format!("two upstreams are called `{}`", upstream.name);
                return Err(self.at(&name_at, what, "give each a name of its own".into()));
            }
            upstreams.push(upstream);
        }
        Ok(upstreams)
    }

    /// With nothing configured, `OPENAI_API_KEY` makes OpenAI the upstream.
    fn upstream_of_env(&mut self) -> Result<Vec<UpstreamConfig>, ConfigError> {
        if self.env.get(OPENAI_KEY).is_none_or(|key| key.trim().is_empty()) {
            return Ok(Vec::new());
        }
        let default = |text: &str| text_node(text.to_owned(), Place::Default);
        let key = text_node(format!("env:{OPENAI_KEY}"), Place::Env(OPENAI_KEY.to_owned()));
        let nodes = BTreeMap::from([
            ("name".to_owned(), default("openai")),
            ("base_url".to_owned(), default("https://api.openai.com/v1")),
            ("api_key".to_owned(), key),
        ]);
        Ok(vec![self.upstream(nodes, &Place::Default)?])
    }

    fn upstream(&mut self, mut nodes: Nodes, place: &Place) -> Result<UpstreamConfig, ConfigError> {
        let name = self.required(&mut nodes, place, "name", parse::name)?.0;
        let (base_url, url_place) = self.required(&mut nodes, place, "base_url", parse::base_url)?;
        let table = &mut Table {
            name: format!("upstream.{name}"),
            nodes,
        };
        self.note(table, "base_url", Some(base_url.clone()), &url_place);
        let host = parse::host_of(&base_url);
        let (api_key, api_key_origin) = self.api_key(table)?.unzip();
        Ok(UpstreamConfig {
            auth: self.value(table, "auth", "bearer", parse::auth)?,
            models: self.list(table, "models", &["*"], parse::glob)?,
            aliases: self.aliases(table)?,
            prices: self.prices(table, &host, &name)?,
            region: self.region(table, &host)?,
            proxy: self.proxy(table)?,
            ca_file: self
                .optional(table, "ca_file", any_text)?
                .map(|path| self.beside_file(&path)),
            connect_timeout: self.value(table, "connect_timeout", "10s", parse::duration)?,
            first_byte_timeout: self.value(table, "first_byte_timeout", "600s", parse::duration)?,
            idle_timeout: self.value(table, "idle_timeout", "300s", parse::duration)?,
            headers: self.headers(table)?,
            name,
            base_url,
            api_key,
            api_key_origin,
        })
    }

    fn required<T>(
        &self,
        nodes: &mut Nodes,
        place: &Place,
        key: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<(T, Place), ConfigError> {
        let Some(node) = nodes.remove(key) else {
            let example = match key {
                "name" => "openai",
                _ => "https://api.openai.com/v1",
            };
            let (what, fix) = (
                format!("this upstream has no `{key}`"),
                format!("add {key} = \"{example}\""),
            );
            return Err(self.at(place, what, fix));
        };
        let text = self.scalar(key, &node)?;
        // A URL may hold a password where none belongs.
        let value = parse(&text)
            .map_err(|Problem { what, fix }| self.error(&node.key, Show::KeyOnly, format!("{key}: {what}"), fix))?;
        Ok((value, node.place))
    }

    fn api_key(&mut self, table: &mut Table) -> Result<Option<(Secret, String)>, ConfigError> {
        let Some(node) = table.nodes.remove("api_key") else {
            self.note(table, "api_key", None, &Place::Default);
            return Ok(None);
        };
        self.note(table, "api_key", Some(masked(&node)), &node.place);
        self.secret("api_key", &node)
    }

    fn proxy(&mut self, table: &mut Table) -> Result<Option<String>, ConfigError> {
        let Some(node) = table.nodes.remove("proxy") else {
            self.note(table, "proxy", None, &Place::Default);
            return Ok(None);
        };
        let text = self.scalar("proxy", &node)?;
        let proxy = parse::proxy(&text)
            .map_err(|Problem { what, fix }| self.error(&node.key, Show::KeyOnly, format!("proxy: {what}"), fix))?;
        let shown = match proxy.rsplit_once('@') {
            Some((_, host)) => format!("{MASK}@{host}"),
            None => proxy.clone(),
        };
        self.note(table, "proxy", Some(shown), &node.place);
        Ok(Some(proxy))
    }

    fn prices(&mut self, table: &mut Table, host: &str, name: &str) -> Result<Pricing, ConfigError> {
        let default = parse::list_of_host(host).map_or_else(|| name.to_ascii_lowercase(), str::to_owned);
        self.value(table, "prices", &default, |text| match text {
            "free" => Ok(Pricing::Free),
            list => parse::list(list).map(Pricing::List),
        })
    }

    fn region(&mut self, table: &mut Table, host: &str) -> Result<Option<String>, ConfigError> {
        match parse::region_of_host(host) {
            Some(region) => self.value(table, "region", &region, parse::name).map(Some),
            None => self.optional(table, "region", parse::name),
        }
    }

    fn aliases(&mut self, table: &mut Table) -> Result<BTreeMap<String, String>, ConfigError> {
        let (nodes, place) = self.entries(table, "aliases")?;
        let mut aliases = BTreeMap::new();
        for (alias, node) in nodes {
            let text = self.scalar(&alias, &node)?;
            let model = self.parsed(&node, "aliases", &text, any_text)?;
            if alias == model {
                let fix = "an alias is another name; the model's own needs no line".into();
                return Err(self.at(&node.place, format!("`{alias}` is an alias of itself"), fix));
            }
            aliases.insert(alias, model);
        }
        let shown: Vec<String> = aliases
            .iter()
            .map(|(alias, model)| format!("{alias} = {model}"))
            .collect();
        self.note(table, "aliases", Some(shown.join(", ")), &place);
        Ok(aliases)
    }

    fn headers(&mut self, table: &mut Table) -> Result<BTreeMap<String, Secret>, ConfigError> {
        let (nodes, place) = self.entries(table, "headers")?;
        let mut headers = BTreeMap::new();
        let mut shown = Vec::new();
        for (name, node) in nodes {
            let lower = name.to_ascii_lowercase();
            if HeaderName::from_bytes(lower.as_bytes()).is_err() || OWN_HEADERS.contains(&lower.as_str()) {
                let what = format!("the header `{name}` cannot be set here");
                let fix = "use a header of the vendor's; a credential goes into `api_key`";
                return Err(self.error(&node.key, Show::KeyOnly, what, fix.into()));
            }
            shown.push(format!("{lower} = {}", masked(&node)));
            if let Some((secret, _)) = self.secret(&name, &node)? {
                headers.insert(lower, secret);
            }
        }
        self.note(table, "headers", Some(shown.join(", ")), &place);
        Ok(headers)
    }
}

impl UpstreamConfig {
    /// The name of its price list; `None` when it is free.
    pub fn list(&self) -> Option<&ListName> {
        match &self.prices {
            Pricing::List(list) => Some(list),
            Pricing::Free => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::call::ChatLimitField;

    type Env = BTreeMap<String, String>;

    fn env(pairs: &[(&str, &str)]) -> Env {
        let home = [("HOME", "/home/me")];
        let all = home.iter().chain(pairs);
        all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn load_with(text: &str, env: &Env, flags: Vec<Flag>) -> Result<Loaded, ConfigError> {
        let read = |path: &Path| match path.to_str() {
            Some("/etc/gw/key.txt") => Ok("sk-from-file\n".to_owned()),
            _ => Err(format!("{} cannot be read", path.display())),
        };
        Config::load(Sources {
            file: Some(("/etc/gw/gateway.toml".into(), text.to_owned())),
            env,
            flags,
            read: &read,
        })
    }

    fn load(text: &str) -> Result<Loaded, ConfigError> {
        load_with(text, &env(&[]), Vec::new())
    }

    fn refusal(text: &str) -> String {
        load(text).map(|_| ()).expect_err(text).to_string()
    }

    fn upstream(text: &str) -> UpstreamConfig {
        let text = format!("[[upstream]]\nname = \"u\"\n{text}");
        load(&text).expect(&text).config.upstreams.remove(0)
    }

    fn setting(loaded: &Loaded, key: &str) -> (Option<String>, String) {
        let setting = loaded.settings.iter().find(|setting| setting.key == key).expect(key);
        (setting.value.clone(), setting.origin.to_string())
    }

    #[test]
    fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
        let file = "[server]\nlisten = \"127.0.0.1:1\"\n";
        let variable = env(&[("GATEWAY_SERVER__LISTEN", "127.0.0.1:2")]);
        let flag = Flag {
            name: "--listen",
            table: "server",
            key: "listen",
            value: "127.0.0.1:3".into(),
        };
        let port = |loaded: Loaded| (loaded.config.server.listen.port(), setting(&loaded, "server.listen").1);
        let none = load("").expect("defaults");
        assert_eq!(port(none), (8080, "default".into()));
        assert_eq!(port(load(file).expect("file")), (1, "/etc/gw/gateway.toml:2".into()));
        let over = load_with(file, &variable, Vec::new()).expect("variable");
        assert_eq!(port(over), (2, "GATEWAY_SERVER__LISTEN".into()));
        let over = load_with(file, &variable, vec![flag]).expect("flag");
        assert_eq!(port(over), (3, "--listen".into()));
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_place_and_the_nearest_name() {
        let text = refusal("[billing]\nmark_up = 1.04\n");
        assert_eq!(
            text,
            "/etc/gw/gateway.toml:2:1: unknown key `mark_up` in [billing]\n  2 │ mark_up = 1.04\n    │ ^^^^^^^\n  fix   did you mean `markup`?"
        );
        assert!(refusal("[server]\nmarkup = 1").contains("`markup` belongs into [billing]"));
        assert!(refusal("[sever]\n").contains("did you mean `server`?"));
        assert!(refusal("[limits]\nrpm = 3").contains("unknown table or key `limits`"));
        assert!(refusal("[[upstream]]\nbaseurl = \"x\"").contains("did you mean `base_url`?"));
        assert!(refusal("[upstream]\nname = \"x\"").contains("[[upstream]]"));
        assert!(refusal("server = 3").contains("write [server]"));
    }

    #[test]
    fn an_unknown_variable_is_refused_and_foreign_ones_are_left_alone() {
        let with = |name: &str| load_with("", &env(&[(name, "1")]), Vec::new()).map(|_| ());
        let refused = |name: &str| with(name).expect_err(name).to_string();
        assert!(refused("GATEWAY_SERVER__LISTEM").contains("did you mean GATEWAY_SERVER__LISTEN?"));
        assert!(refused("GATEWAY_SERVER__listen").contains("did you mean GATEWAY_SERVER__LISTEN?"));
        assert!(refused("GATEWAY_UPSTREAM__API_KEY").contains("env:NAME"));
        for foreign in ["GATEWAY_FIXTURES", "GATEWAY_LOG", "CODEX_GATEWAY__X", "PATH"] {
            assert!(with(foreign).is_ok(), "{foreign}");
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_its_place_and_what_would_be_right() {
        let text = refusal("[server]\nheader_timeout = 10");
        assert!(
            text.starts_with("/etc/gw/gateway.toml:2:18: header_timeout: `10` is not a time"),
            "{text}"
        );
        assert!(text.contains("\"10s\""), "{text}");
        for wrong in [
            "[billing]\nmarkup = -1",
            "[billing]\nmarkup = 1.0000001",
            "[billing]\nmarkup = [1]",
            "[billing]\nhold_share = 0",
            "[billing]\non_hangup = \"wait\"",
            "[server]\nlisten = 8080",
            "[server]\nmax_body = true",
            "[server]\ntrusted_proxies = [\"ten\"]",
            "[database]\npath = \"\"",
            "[log]\nlevel = \"loud=very\"",
            "[log]\nformat = \"xml\"",
            "[[upstream]]\nbase_url = \"https://x\"",
            "[[upstream]]\nname = \"x\"",
            "[[upstream]]\nname = \"a b\"\nbase_url = \"https://x\"",
            "[[upstream]]\nname = \"x\"\nbase_url = \"https://x\"\nheaders = { Host = \"y\" }",
            "[[upstream]]\nname = \"x\"\nbase_url = \"https://x\"\naliases = { a = \"a\" }",
            "[[upstream]]\nname = \"x\"\nbase_url = \"https://x\"\nproxy = \"proxy\"",
            "[[upstream]]\nname = \"x\"\nbase_url = \"https://x\"\n[[upstream]]\nname = \"x\"\nbase_url = \"https://y\"",
        ] {
            assert!(
                refusal(wrong).starts_with("/etc/gw/gateway.toml:"),
                "{}",
                refusal(wrong)
            );
        }
    }

    #[test]
    fn decimals_never_pass_through_a_float() {
        let loaded = load("[billing]\nmarkup = 1.000001\nhold_share = 0.000001").expect("exact");
        assert_eq!(loaded.config.billing.markup.to_string(), "1.000001");
        assert_eq!(loaded.config.billing.hold.share_ppm, 1);
    }

    #[test]
    fn no_secret_is_ever_quoted() {
        let base = "[[upstream]]\nname = \"u\"\nbase_url = \"https://x\"\n";
        for wrong in [
            "api_key = sk-secret",
            "apikey = \"sk-secret\"",
            "api_key = [\"sk-secret\"]",
            "api_key = \"sk-secret\\nx\"\nbogus = 1",
            "proxy = \"me:sk-secret@host\"",
            "headers = { Authorization = \"sk-secret\" }",
            "headers = \"sk-secret\"",
            "models = [\"[\"]\nheaders = { x = \"sk-secret\" }",
        ] {
            let text = refusal(&format!("{base}{wrong}"));
            assert!(!text.contains("sk-secret"), "{text}");
        }
        let twice = "[[upstream]]\nname = \"u\"\nbase_url = \"https://me:sk-secret@x/v1\"\n";
        assert!(!refusal(twice).contains("sk-secret"));
        let fine = load(&format!(
            "{base}api_key = \"sk-secret\"\nproxy = \"http://me:sk-secret@host\"\nheaders = {{ x = \"sk-secret\" }}"
        ));
        let fine = fine.expect("fine");
        assert_eq!(fine.config.upstreams[0].headers["x"].reveal(), "sk-secret");
        assert!(!format!("{:?}", fine.settings).contains("sk-secret"));
        assert!(!format!("{:?}", fine.config.upstreams[0].api_key).contains("sk-secret"));
    }

    #[test]
    fn a_secret_comes_from_a_variable_a_file_or_the_text() {
        let base = "base_url = \"https://x\"\n";
        let of = |key: &str| {
            let upstream = upstream(&format!("{base}api_key = \"{key}\""));
            let key = upstream.api_key.map(|key| key.reveal().to_owned());
            (key, upstream.api_key_origin)
        };
        assert_eq!(of("sk-x"), (Some("sk-x".into()), Some("/etc/gw/gateway.toml:4".into())));
        assert_eq!(
            of("file:key.txt"),
            (Some("sk-from-file".into()), Some("/etc/gw/key.txt".into()))
        );
        assert_eq!(of("env:HOME"), (Some("/home/me".into()), Some("HOME".into())));
    }

    #[test]
    fn a_missing_secret_stops_only_who_needs_it() {
        let text = "[[upstream]]\nname = \"u\"\nbase_url = \"https://x\"\napi_key = \"env:NOPE\"";
        let loaded = load(text).expect("other commands go on");
        assert_eq!(loaded.config.upstreams[0].api_key, None);
        let error = loaded.complete().expect_err("a server does not").to_string();
        assert!(error.contains("the variable NOPE is not set"), "{error}");
    }

    #[test]
    fn openai_is_the_upstream_when_only_its_key_is_there() {
        let loaded = load_with("", &env(&[("OPENAI_API_KEY", "sk-x")]), Vec::new()).expect("fine");
        let openai = &loaded.config.upstreams[0];
        assert_eq!(
            (openai.name.as_str(), openai.base_url.as_str()),
            ("openai", "https://api.openai.com/v1")
        );
        assert_eq!(openai.api_key_origin.as_deref(), Some("OPENAI_API_KEY"));
        assert_eq!(openai.list(), Some(&ListName::openai()));
        assert_eq!(openai.chat_limit_field(), ChatLimitField::MaxCompletionTokens);
        assert!(load("").expect("fine").config.upstreams.is_empty());
        assert!(
            load_with("", &env(&[("OPENAI_API_KEY", " ")]), Vec::new())
                .expect("fine")
                .config
                .upstreams
                .is_empty()
        );
    }

    #[test]
    fn an_upstream_is_priced_and_placed_by_its_host_unless_told() {
        let eu = upstream("base_url = \"https://eu.api.openai.com/v1/\"");
        assert_eq!(
            (eu.region.as_deref(), eu.base_url.as_str()),
            (Some("eu"), "https://eu.api.openai.com/v1")
        );
        let own = upstream("base_url = \"http://127.0.0.1:9/v1\"");
        assert_eq!(own.list().map(ListName::as_str), Some("u"));
        assert_eq!(own.chat_limit_field(), ChatLimitField::MaxTokens);
        assert_eq!(
            upstream("base_url = \"http://x\"\nprices = \"free\"").prices,
            Pricing::Free
        );
        let told = upstream("base_url = \"http://x\"\nprices = \"xai\"\nidle_timeout = \"1s\"");
        assert_eq!(told.list().map(ListName::as_str), Some("xai"));
        assert_eq!(told.idle_timeout, Duration::from_secs(1));
    }

    #[test]
    fn the_database_is_the_same_from_any_folder() {
        let path = |text: &str, pairs: &[(&str, &str)]| {
            load_with(text, &env(pairs), Vec::new()).expect("fine").config.database
        };
        assert_eq!(
            path("", &[]),
            Path::new("/home/me/.local/share/codex-gateway/gateway.db")
        );
        assert_eq!(
            path("", &[("XDG_DATA_HOME", "/data")]),
            Path::new("/data/codex-gateway/gateway.db")
        );
        assert_eq!(
            path("", &[("XDG_DATA_HOME", "data")]),
            path("", &[]),
            "a relative one does not count"
        );
        assert_eq!(path("[database]\npath = \"gw.db\"", &[]), Path::new("/etc/gw/gw.db"));
        assert_eq!(path("", &[("GATEWAY_DATABASE__PATH", "/x.db")]), Path::new("/x.db"));
    }

    const EXAMPLE: &str = include_str!("../../gateway.toml.example");

    /// The example with the commented settings in force: one `#` for defaults, two for what has none.
    fn uncommented(marks: &[&str]) -> String {
        let line = |line: &str| match marks.iter().find_map(|mark| line.strip_prefix(mark)) {
            Some(rest) if !rest.is_empty() && !rest.starts_with([' ', '#']) => rest.to_owned(),
            _ => line.to_owned(),
        };
        EXAMPLE.lines().map(|text| line(text) + "\n").collect()
    }

    #[test]
    fn the_example_says_the_defaults() {
        let key = env(&[("OPENAI_API_KEY", "sk-x")]);
        let values = |text: &str| {
            let loaded = load_with(text, &key, Vec::new()).expect("the example parses");
            let values = loaded.settings.into_iter().map(|setting| (setting.key, setting.value));
            values.collect::<BTreeMap<_, _>>()
        };
        assert_eq!(values(&uncommented(&["#"])), values(""));
    }

    #[test]
    fn the_example_names_every_setting_and_no_other() {
        let key = env(&[("OPENAI_API_KEY", "sk-x")]);
        let loaded = load_with(&uncommented(&["## ", "#"]), &key, Vec::new()).expect("the example parses");
        let named: BTreeSet<String> = loaded
            .settings
            .iter()
            .filter(|setting| matches!(setting.origin, Origin::File { .. }))
            .map(|setting| setting.key.clone())
            .collect();
        let of = |name: &str, keys: &[&str]| keys.iter().map(|key| format!("{name}.{key}")).collect::<Vec<_>>();
        let mut known: BTreeSet<String> = TABLES.iter().flat_map(|(name, keys)| of(name, keys)).collect();
        known.extend(of("upstream.openai", UPSTREAM));
        known.remove("upstream.openai.name");
        assert_eq!(named, known);
    }
}
