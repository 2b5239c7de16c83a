//! Where settings come from: a TOML file with its positions, variables and flags, brought to one form.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Excerpt, Show, position};
use crate::bilingual;
use crate::language::{Bilingual, Said};

/// Where an effective value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// A variable.
    Env(String),
    /// A flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::File { path, line } => write!(f, "{}:{line}", path.display()),
            Origin::Env(name) | Origin::Flag(name) => f.write_str(name),
        }
    }
}

/// Where a raw value stands.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In the file.
    Span(Range<usize>),
    /// In a variable.
    Env(String),
    /// On the command line.
    Flag(String),
    /// Nowhere: the default.
    Default,
}

/// A value before it is understood. Numbers keep their text, so that no decimal passes through a float.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Text(String),
    Number(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
    Other(&'static str),
}

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
    /// Where its key stands; the same as `place` outside of files.
    pub(super) key: Place,
}

/// The file, to name places in it.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

impl Document {
    /// The whole file as nodes, or its first syntax error.
    pub(super) fn parse(&self) -> Result<BTreeMap<String, Node>, ConfigError> {
        DeTable::parse(&self.text)
            .map(|table| nodes(table.get_ref()))
            .map_err(|error| {
                let span = error.span().unwrap_or(0..0);
                let what = match error.message().lines().next() {
                    // The parser's own words are what they are.
                    Some(what) => Bilingual::each(|_| Said::verbatim(what)),
                    None => bilingual!(en: "not TOML", zh: "不是 TOML"),
                };
                self.error(
                    &span,
                    Show::KeyOnly,
                    what,
                    bilingual!(en: "correct the line; texts stand in quotes: key = \"text\"", zh: "请改正此行；文本要加引号：key = \"text\""),
                )
            })
    }

    /// An error at a place of the file.
    pub(super) fn error(&self, span: &Range<usize>, show: Show, what: Bilingual, fix: Bilingual) -> ConfigError {
        let (line, column) = position(&self.text, span.start);
        ConfigError {
            place: format!("{}:{line}:{column}", self.path.display()),
            what,
            excerpt: Some(Excerpt::new(&self.text, span, show)),
            fix,
        }
    }

    /// The line of a place.
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        position(&self.text, span.start).0
    }
}

fn nodes(table: &DeTable<'_>) -> BTreeMap<String, Node> {
    table
        .iter()
        .map(|(key, value)| {
            let mut node = node(value);
            node.key = Place::Span(key.span());
            (key.get_ref().to_string(), node)
        })
        .collect()
}

fn node(value: &Spanned<DeValue<'_>>) -> Node {
    let place = Place::Span(value.span());
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Value::Number(number.as_str().to_owned()),
        DeValue::Float(number) => Value::Number(number.as_str().to_owned()),
        DeValue::Boolean(truth) => Value::Text(truth.to_string()),
        DeValue::Array(values) => Value::List(values.iter().map(node).collect()),
        DeValue::Table(table) => Value::Table(nodes(table)),
        other => Value::Other(other.type_str()),
    };
    Node {
        value,
        key: place.clone(),
        place,
    }
}
