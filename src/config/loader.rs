//! Raw values to typed ones: every name is known, every value is parsed at its place, and its origin noted.

use crate::route::nearest;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use http::HeaderValue;

use super::Secret;
use super::error::{ConfigError, Show, after};
use super::load::Setting;
use super::parse::{Parsed, Problem, problem};
use super::source::{Document, Node, Origin, Place, Value};
use crate::bilingual;
use crate::language::Bilingual;

/// The tables and their keys. Each can be set by `GATEWAY_<TABLE>__<KEY>`.
pub(super) const TABLES: [(&str, &[&str]); 7] = [
    (
        "server",
        &[
            "listen",
            "public_url",
            "trusted_proxies",
            "tls_cert",
            "tls_key",
            "max_connections",
            "max_connections_per_address",
            "max_body",
            "max_response",
            "header_timeout",
            "body_timeout",
            "drain_timeout",
            "websocket",
        ],
    ),
    ("database", &["path", "min_free", "ballast"]),
    (
        "billing",
        &[
            "hold_share",
            "min_output_tokens",
            "on_hangup",
            "markup",
            "model_markup",
            "record_answers",
        ],
    ),
    (
        "limits",
        &[
            "rpm",
            "tpm",
            "concurrency",
            "model_rpm",
            "model_tpm",
            "model_concurrency",
        ],
    ),
    ("log", &["format", "level"]),
    ("events", &["low_balance", "spent_share", "max_waiting"]),
    ("metrics", &["listen"]),
];

/// The keys of a `[[sink]]`.
pub(super) const SINK: &[&str] = &["name", "url", "secret", "allow_private", "file", "types"];

/// The keys of an `[[upstream]]`.
pub(super) const UPSTREAM: &[&str] = &[
    "name",
    "base_url",
    "api_key",
    "auth",
    "models",
    "aliases",
    "prices",
    "wire",
    "region",
    "proxy",
    "ca_file",
    "connect_timeout",
    "first_byte_timeout",
    "idle_timeout",
    "priority",
    "weight",
    "max_concurrency",
    "breaker_interval",
    "retry_gateway_errors",
    "websocket",
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
    pub(super) read: &'a dyn Fn(&Path) -> Result<String, Bilingual>,
    pub(super) settings: Vec<Setting>,
    pub(super) missing: Vec<ConfigError>,
    /// What is wrong. Reading goes on with something else in its place, to find the rest; nothing comes of that.
    pub(super) wrong: Vec<ConfigError>,
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
pub(super) fn unknown_fix(table: Option<&str>, keys: &[&str], wanted: &str) -> Bilingual {
    if let Some(near) = nearest(wanted, keys.iter().copied()) {
        return bilingual!(en: "did you mean `{near}`?", zh: "是否想写 `{near}`？");
    }
    let elsewhere = TABLES
        .iter()
        .find(|(name, keys)| Some(*name) != table && keys.contains(&wanted));
    match elsewhere {
        Some((name, _)) => bilingual!(en: "`{wanted}` belongs into [{name}]", zh: "`{wanted}` 属于 [{name}]"),
        None => {
            let keys = keys.join(", ");
            bilingual!(en: "known here: {keys}", zh: "此处已知：{keys}")
        }
    }
}

/// Raw values.
impl Loader<'_> {
    /// The file's tables, every name in them known.
    pub(super) fn file_tables(&mut self) -> BTreeMap<String, Nodes> {
        let read = self.document.as_ref().map_or(Ok(BTreeMap::new()), Document::parse);
        let mut tables = BTreeMap::new();
        for (name, node) in self.or_instead(read, BTreeMap::new()) {
            let nodes = match (TABLES.iter().find(|(known, _)| *known == name), node.value) {
                (Some((_, keys)), Value::Table(nodes)) => {
                    self.refuse_unknown(Some(&name), &format!("[{name}]"), keys, &nodes);
                    nodes
                }
                (Some(_), _) => {
                    let fix = bilingual!(en: "write [{name}] above its keys", zh: "请在其键之上写 [{name}]");
                    self.refuse(
                        &node.key,
                        bilingual!(en: "`{name}` is a table", zh: "`{name}` 是表"),
                        fix,
                    );
                    continue;
                }
                (None, value) if name == "upstream" || name == "sink" => {
                    let node = Node { value, ..node };
                    BTreeMap::from([(String::new(), node)])
                }
                (None, _) => {
                    let mut known: Vec<&str> = TABLES.iter().map(|(name, _)| *name).collect();
                    known.extend(["upstream", "sink"]);
                    let fix = unknown_fix(None, &known, &name);
                    self.refuse(
                        &node.key,
                        bilingual!(en: "unknown table or key `{name}`", zh: "未知的表或键 `{name}`"),
                        fix,
                    );
                    continue;
                }
            };
            tables.insert(name, nodes);
        }
        tables
    }

    pub(super) fn refuse_unknown(&mut self, table: Option<&str>, title: &str, keys: &[&str], nodes: &Nodes) {
        for (name, node) in nodes.iter().filter(|(name, _)| !keys.contains(&name.as_str())) {
            let fix = unknown_fix(table, keys, name);
            self.refuse(
                &node.key,
                bilingual!(en: "unknown key `{name}` in {title}", zh: "{title} 中有未知的键 `{name}`"),
                fix,
            );
        }
    }

    /// Notes what is wrong at a place, which may be quoted.
    pub(super) fn refuse(&mut self, place: &Place, what: Bilingual, fix: Bilingual) {
        let error = self.at(place, what, fix);
        self.wrong.push(error);
    }

    /// What was read; when it is wrong, that is noted, and `instead` is gone on with.
    pub(super) fn or_instead<T>(&mut self, read: Result<T, ConfigError>, instead: T) -> T {
        read.unwrap_or_else(|error| {
            self.wrong.push(error);
            instead
        })
    }

    /// `GATEWAY_<TABLE>__<KEY>`. Other names that start with `GATEWAY_` belong to somebody else.
    pub(super) fn add_env(&mut self, tables: &mut BTreeMap<String, Nodes>) {
        for (variable, value) in self.env {
            let Some((table, key)) = variable.strip_prefix("GATEWAY_").and_then(|rest| rest.split_once("__")) else {
                continue;
            };
            let (table, key) = (table.to_ascii_lowercase(), key.to_ascii_lowercase());
            let known = TABLES
                .iter()
                .any(|(name, keys)| *name == table && keys.contains(&key.as_str()));
            if !known || *variable != variable.to_ascii_uppercase() {
                let fix = unknown_variable(variable, &table);
                let what = bilingual!(en: "this variable sets nothing", zh: "此变量不设置任何内容");
                self.refuse(&Place::Env(variable.clone()), what, fix);
                continue;
            }
            let node = text_node(value.clone(), Place::Env(variable.clone()));
            tables.entry(table).or_default().insert(key, node);
        }
    }

    /// An error at a place, which may be quoted.
    pub(super) fn at(&self, place: &Place, what: Bilingual, fix: Bilingual) -> ConfigError {
        self.error(place, Show::Span, what, fix)
    }

    pub(super) fn error(&self, place: &Place, show: Show, what: Bilingual, fix: Bilingual) -> ConfigError {
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

pub(super) fn unknown_variable(variable: &str, table: &str) -> Bilingual {
    if table == "upstream" {
        return bilingual!(en: "upstreams are set in the file; a key may be read from a variable: api_key = \"env:NAME\"", zh: "上游在文件中设置；密钥可以从变量读取：api_key = \"env:NAME\"");
    }
    if table == "sink" {
        return bilingual!(en: "sinks are set in the file; a secret may be read from a variable: secret = \"env:NAME\"", zh: "事件去向在文件中设置；密钥可以从变量读取：secret = \"env:NAME\"");
    }
    let names: Vec<String> = TABLES
        .iter()
        .flat_map(|(table, keys)| {
            keys.iter()
                .map(move |key| format!("GATEWAY_{table}__{key}").to_ascii_uppercase())
        })
        .collect();
    match nearest(variable, names.iter().map(String::as_str)) {
        Some(near) => bilingual!(en: "did you mean {near}?", zh: "是否想写 {near}？"),
        None => {
            let names = names[..3].join(", ");
            bilingual!(en: "take it out; known are {names} …", zh: "请去掉；已知的有 {names} …")
        }
    }
}

/// Typed values. Defaults are written as in the file and pass through the same parsers.
impl Loader<'_> {
    pub(super) fn scalar(&self, key: &str, node: &Node) -> Result<String, ConfigError> {
        match &node.value {
            Value::Text(text) | Value::Number(text) => Ok(text.clone()),
            Value::List(_) => Err(self.wrong_kind(
                node,
                bilingual!(en: "`{key}` is a list, not one value", zh: "`{key}` 是列表，不是单个值"),
                key,
            )),
            Value::Table(_) => Err(self.wrong_kind(
                node,
                bilingual!(en: "`{key}` is a table, not one value", zh: "`{key}` 是表，不是单个值"),
                key,
            )),
            Value::Other(kind) => Err(self.wrong_kind(
                node,
                bilingual!(en: "`{key}` is {kind}, not one value", zh: "`{key}` 是 {kind}，不是单个值"),
                key,
            )),
        }
    }

    fn wrong_kind(&self, node: &Node, what: Bilingual, key: &str) -> ConfigError {
        let fix = bilingual!(en: "write {key} = \"…\"", zh: "请写 {key} = \"…\"");
        self.error(&node.key, Show::KeyOnly, what, fix)
    }

    pub(super) fn parsed<T>(
        &self,
        node: &Node,
        key: &str,
        text: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<T, ConfigError> {
        parse(text).map_err(|Problem { what, fix }| match node.place {
            // The place is the name.
            Place::Env(_) | Place::Flag(_) => self.at(&node.place, what, fix),
            Place::Span(_) | Place::Default => self.at(&node.place, after(key, &what), fix),
        })
    }

    /// A setting with a default, which is taken in place of a wrong one.
    pub(super) fn value<T>(
        &mut self,
        table: &mut Table,
        key: &str,
        default: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<T, ConfigError> {
        if let Some(node) = table.nodes.remove(key) {
            match self.one(key, &node, &parse) {
                Ok((value, text)) => {
                    self.note(table, key, Some(text), &node.place);
                    return Ok(value);
                }
                Err(error) => self.wrong.push(error),
            }
        }
        let (value, text) = self.one(key, &text_node(default.to_owned(), Place::Default), &parse)?;
        self.note(table, key, Some(text), &Place::Default);
        Ok(value)
    }

    /// A value, and its text.
    pub(super) fn one<T>(
        &self,
        key: &str,
        node: &Node,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Result<(T, String), ConfigError> {
        let text = self.scalar(key, node)?;
        Ok((self.parsed(node, key, &text, parse)?, text))
    }

    /// A setting that may be absent.
    pub(super) fn optional<T>(&mut self, table: &mut Table, key: &str, parse: impl Fn(&str) -> Parsed<T>) -> Option<T> {
        let node = table.nodes.remove(key);
        let read = node.as_ref().map(|node| self.one(key, node, parse)).transpose();
        let (value, text) = self.or_instead(read, None).unzip();
        let place = node
            .filter(|_| text.is_some())
            .map_or(Place::Default, |node| node.place);
        self.note(table, key, text, &place);
        value
    }

    /// A list, without the parts of it that are wrong; a variable separates its parts by commas.
    pub(super) fn list<T>(
        &mut self,
        table: &mut Table,
        key: &str,
        default: &[&str],
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> Vec<T> {
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
                let text = self.scalar(key, &node);
                let text = self.or_instead(text, String::new());
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                (
                    parts
                        .map(|part| text_node(part.to_owned(), node.place.clone()))
                        .collect(),
                    node.place,
                )
            }
        };
        let (mut values, mut texts) = (Vec::new(), Vec::new());
        for part in &parts {
            let read = self.one(key, part, &parse).map(Some);
            if let Some((value, text)) = self.or_instead(read, None) {
                values.push(value);
                texts.push(text);
            }
        }
        self.note(table, key, Some(texts.join(", ")), &place);
        values
    }

    /// The entries of a table inside a table.
    pub(super) fn entries(&mut self, table: &mut Table, key: &str) -> (Nodes, Place) {
        match table.nodes.remove(key) {
            None => (BTreeMap::new(), Place::Default),
            Some(Node {
                value: Value::Table(nodes),
                key,
                ..
            }) => (nodes, key),
            Some(node) => {
                let (what, fix) = (
                    bilingual!(en: "`{key}` is a table", zh: "`{key}` 是表"),
                    bilingual!(en: "write {key} = {{ \"name\" = \"value\" }}", zh: "请写 {key} = {{ \"name\" = \"value\" }}"),
                );
                let error = self.error(&node.key, Show::KeyOnly, what, fix);
                self.or_instead(Err(error), (BTreeMap::new(), Place::Default))
            }
        }
    }

    /// `env:NAME`, `file:PATH` or the secret itself, with where it came from; `None` when it is wrong, or cannot be
    /// resolved now.
    pub(super) fn secret(&mut self, key: &str, node: &Node) -> Option<(Secret, String)> {
        let text = self.scalar(key, node).map(Some);
        let text = self.or_instead(text, None)?;
        let (found, origin) = if let Some(name) = text.strip_prefix("env:") {
            let unset = || bilingual!(en: "the variable {name} is not set", zh: "变量 {name} 没有设置");
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
                .ok_or_else(|| bilingual!(en: "{origin} holds no usable text", zh: "{origin} 中没有可用的文本"))
        }) {
            Ok(secret) => Some((Secret::new(secret), origin)),
            Err(why) => {
                let fix = bilingual!(en: "set {key} to env:NAME, file:PATH or the text itself, and see that it can be read", zh: "请将 {key} 设为 env:NAME、file:PATH 或文本本身，并确保可以读取");
                let error = self.error(&node.key, Show::KeyOnly, after(key, &why), fix);
                self.missing.push(error);
                None
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
        return problem(
            bilingual!(en: "the text is empty or holds control characters", zh: "文本为空或含有控制字符"),
            bilingual!(en: "write some text", zh: "请写一些文本"),
        );
    }
    Ok(text.to_owned())
}
