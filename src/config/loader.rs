//! Raw values to typed ones: every name is known, every value is parsed at its place, and its origin noted.

use crate::route::nearest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use http::HeaderValue;

use super::Secret;
use super::error::{ConfigError, Show};
use super::load::Setting;
use super::parse::{Parsed, Problem, problem};
use super::source::{Document, Node, Origin, Place, Value};

/// The tables and their keys. Each can be set by `GATEWAY_<TABLE>__<KEY>`.
pub(super) const TABLES: [(&str, &[&str]); 4] = [
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
    ("database", &["path", "min_free", "ballast"]),
    ("billing", &["hold_share", "min_output_tokens", "on_hangup", "markup"]),
    ("log", &["format", "level"]),
];

/// The keys of an `[[upstream]]`.
pub(super) const UPSTREAM: &[&str] = &[
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

/// What a hidden value is shown as.
pub(super) const MASK: &str = "••••";

/// A table while it is read.
pub(super) struct Table {
    pub(super) name: String,
    pub(super) nodes: BTreeMap<String, Node>,
}

pub(super) struct Loader<'a> {
    pub(super) document: Option<Document>,
    pub(super) env: &'a BTreeMap<String, String>,
    pub(super) read: &'a dyn Fn(&Path) -> Result<String, String>,
    pub(super) settings: Vec<Setting>,
    pub(super) missing: Vec<ConfigError>,
}

pub(super) type Nodes = BTreeMap<String, Node>;

pub(super) fn text_node(text: String, place: Place) -> Node {
    Node {
        value: Value::Text(text),
        key: place.clone(),
        place,
    }
}

/// What is known, and in which table, in the words of a fix.
pub(super) fn unknown_fix(table: Option<&str>, keys: &[&str], wanted: &str) -> String {
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

/// Raw values.
impl Loader<'_> {
    /// The file's tables, every name in them known.
    pub(super) fn file_tables(&self) -> Result<BTreeMap<String, Nodes>, ConfigError> {
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

    pub(super) fn refuse_unknown(&self, table: Option<&str>, keys: &[&str], nodes: &Nodes) -> Result<(), ConfigError> {
        let Some((name, node)) = nodes.iter().find(|(name, _)| !keys.contains(&name.as_str())) else {
            return Ok(());
        };
        let title = table.map_or("[[upstream]]".to_owned(), |table| format!("[{table}]"));
        let fix = unknown_fix(table, keys, name);
        Err(self.at(&node.key, format!("unknown key `{name}` in {title}"), fix))
    }

    /// `GATEWAY_<TABLE>__<KEY>`. Other names that start with `GATEWAY_` belong to somebody else.
    pub(super) fn add_env(&self, tables: &mut BTreeMap<String, Nodes>) -> Result<(), ConfigError> {
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
    pub(super) fn at(&self, place: &Place, what: String, fix: String) -> ConfigError {
        self.error(place, Show::Span, what, fix)
    }

    pub(super) fn error(&self, place: &Place, show: Show, what: String, fix: String) -> ConfigError {
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

    pub(super) fn origin(&self, place: &Place) -> Origin {
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

    pub(super) fn note(&mut self, table: &Table, key: &str, value: Option<String>, place: &Place) {
        self.settings.push(Setting {
            key: format!("{}.{key}", table.name),
            value,
            origin: self.origin(place),
        });
    }
}

pub(super) fn unknown_variable(variable: &str, table: &str) -> String {
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
    pub(super) fn scalar(&self, key: &str, node: &Node) -> Result<String, ConfigError> {
        match &node.value {
            Value::Text(text) | Value::Number(text) => Ok(text.clone()),
            Value::List(_) => Err(self.wrong_kind(key, node, "a list")),
            Value::Table(_) => Err(self.wrong_kind(key, node, "a table")),
            Value::Other(kind) => Err(self.wrong_kind(key, node, kind)),
        }
    }

    pub(super) fn wrong_kind(&self, key: &str, node: &Node, kind: &str) -> ConfigError {
        let (what, fix) = (
            format!("`{key}` is {kind}, not one value"),
            format!("write {key} = \"…\""),
        );
        self.error(&node.key, Show::KeyOnly, what, fix)
    }

    pub(super) fn parsed<T>(
        &self,
        node: &Node,
        key: &str,
        text: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<T, ConfigError> {
        parse(text).map_err(|Problem { what, fix }| self.at(&node.place, format!("{key}: {what}"), fix))
    }

    /// A setting with a default.
    pub(super) fn value<T>(
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
    pub(super) fn optional<T>(
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
    pub(super) fn list<T>(
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
    pub(super) fn entries(&self, table: &mut Table, key: &str) -> Result<(Nodes, Place), ConfigError> {
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
    pub(super) fn secret(&mut self, key: &str, node: &Node) -> Result<Option<(Secret, String)>, ConfigError> {
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
    pub(super) fn beside_file(&self, path: &str) -> PathBuf {
        let folder = self.document.as_ref().and_then(|document| document.path.parent());
        folder.unwrap_or(Path::new("")).join(path)
    }
}

/// How a secret is shown: a reference as it is, anything else not at all.
pub(super) fn masked(node: &Node) -> String {
    match &node.value {
        Value::Text(text) if text.starts_with("env:") || text.starts_with("file:") => text.clone(),
        _ => MASK.to_owned(),
    }
}

pub(super) fn any_text(text: &str) -> Parsed<String> {
    if text.is_empty() || text.chars().any(char::is_control) {
        return problem("the text is empty or holds control characters", "write some text");
    }
    Ok(text.to_owned())
}
