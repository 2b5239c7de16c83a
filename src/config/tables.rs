//! The tables of the settings: `[server]`, `[database]`, `[billing]`, `[limits]`, `[log]`, `[metrics]`, with their defaults.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;

use super::error::ConfigError;
use super::loader::{Loader, Table, any_text};
use super::parse::{self, Parsed, of_value};
use super::source::Place;
use super::{
    BillingConfig, DiskConfig, LimitsConfig, LogConfig, Markup, MetricsConfig, OnHangup, ServerConfig, TlsFiles,
};
use crate::bilingual;
use crate::hold;
use crate::limits::Rates;
use crate::usage::Tokens;

impl Loader<'_> {
    pub(super) fn server(&mut self, table: &mut Table) -> Result<ServerConfig, ConfigError> {
        Ok(ServerConfig {
            listen: self.value(table, "listen", "127.0.0.1:8080", parse::listen)?,
            public_url: self.optional(table, "public_url", parse::base_url),
            trusted_proxies: self.list(table, "trusted_proxies", &[], parse::network),
            tls: self.tls(table),
            max_connections: self.value(table, "max_connections", "10000", parse::connections)?,
            max_connections_per_address: self.value(table, "max_connections_per_address", "256", parse::connections)?,
            max_body: self.value(table, "max_body", "64MiB", parse::size)?,
            max_response: self.value(table, "max_response", "32MiB", parse::size)?,
            header_timeout: self.value(table, "header_timeout", "10s", parse::duration)?,
            body_timeout: self.value(table, "body_timeout", "60s", parse::duration)?,
            drain_timeout: self.value(table, "drain_timeout", "300s", parse::duration)?,
            websocket: self.value(table, "websocket", "true", parse::truth)?,
        })
    }

    /// Both files, or neither.
    fn tls(&mut self, table: &mut Table) -> Option<TlsFiles> {
        let place = |key: &str, other: &Table| other.nodes.get(key).map(|node| node.key.clone());
        let places = (place("tls_cert", table), place("tls_key", table));
        let (cert, key) = (self.path(table, "tls_cert"), self.path(table, "tls_key"));
        let alone = match places {
            (Some(place), None) => Some((place, "tls_cert", "tls_key")),
            (None, Some(place)) => Some((place, "tls_key", "tls_cert")),
            _ => None,
        };
        if let Some((place, key, other)) = alone {
            let fix = bilingual!(
                en: "set {other} too, or neither of them to serve plain HTTP",
                zh: "请同时设置 {other}，或两者都不设置以使用明文 HTTP",
            );
            let what =
                bilingual!(en: "`{key}` is nothing without `{other}`", zh: "只有 `{key}` 而没有 `{other}` 不起作用");
            self.refuse(&place, what, fix);
        }
        cert.zip(key).map(|(cert, key)| TlsFiles { cert, key })
    }

    /// A file that may be named: in the settings file relative to that, elsewhere to the current folder.
    fn path(&mut self, table: &mut Table, key: &str) -> Option<PathBuf> {
        let in_file = matches!(table.nodes.get(key), Some(node) if matches!(node.place, Place::Span(_)));
        let text = self.optional(table, key, any_text)?;
        Some(match in_file {
            true => self.beside_file(&text),
            false => PathBuf::from(text),
        })
    }

    pub(super) fn database(&mut self, table: &mut Table) -> Result<PathBuf, ConfigError> {
        let Some(node) = table.nodes.remove("path") else {
            let path = self.default_database()?;
            self.note(table, "path", Some(path.display().to_string()), &Place::Default);
            return Ok(path);
        };
        let read = self.one("path", &node, any_text).map(|(text, _)| text);
        let text = self.or_instead(read, String::new());
        let path = match node.place {
            Place::Span(_) => self.beside_file(&text),
            Place::Env(_) | Place::Flag(_) | Place::Default => PathBuf::from(text),
        };
        self.note(table, "path", Some(path.display().to_string()), &node.place);
        Ok(path)
    }

    pub(super) fn disk(&mut self, table: &mut Table) -> Result<DiskConfig, ConfigError> {
        Ok(DiskConfig {
            min_free: self.value(table, "min_free", "256MiB", parse::space)?,
            ballast: self.value(table, "ballast", "64MiB", parse::space)?,
        })
    }

    /// Where the XDG base directory specification puts data; a relative `XDG_DATA_HOME` does not count.
    pub(super) fn default_database(&self) -> Result<PathBuf, ConfigError> {
        let folder = |name: &str| self.env.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = folder("XDG_DATA_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/share")));
        match data {
            Some(data) => Ok(data.join("codex-gateway").join("gateway.db")),
            None => Err(self.at(
                &Place::Default,
                bilingual!(en: "no folder for the database: neither XDG_DATA_HOME nor HOME is set", zh: "没有放数据库的文件夹：XDG_DATA_HOME 和 HOME 都没有设置"),
                bilingual!(en: "name one: --database FILE", zh: "请指明一个：--database FILE"),
            )),
        }
    }

    pub(super) fn billing(&mut self, table: &mut Table) -> Result<BillingConfig, ConfigError> {
        let on_hangup = |text: &str| {
            let fix = || bilingual!(en: "write \"drain\" (read on, take the upstream's usage) or \"cancel\" (stop, estimate)", zh: "请写 \"drain\"（继续读取，采用上游的用量）或 \"cancel\"（停止，估算）");
            text.parse::<OnHangup>().or_else(|error| of_value(&error, fix()))
        };
        let share_ppm = self.value(table, "hold_share", "0.25", parse::share_ppm)?;
        let min_output: Tokens = self.value(table, "min_output_tokens", "8192", parse::tokens)?;
        Ok(BillingConfig {
            hold: hold::Policy { share_ppm, min_output },
            on_hangup: self.value(table, "on_hangup", "drain", on_hangup)?,
            markup: Markup {
                general: self.value(table, "markup", "1", parse::factor)?,
                models: self.by_model(table, "model_markup", parse::factor),
            },
            record_answers: self.value(table, "record_answers", "false", parse::truth)?,
        })
    }

    pub(super) fn limits(&mut self, table: &mut Table) -> LimitsConfig {
        LimitsConfig {
            key: Rates {
                rpm: self.optional(table, "rpm", parse::limit),
                tpm: self.optional(table, "tpm", parse::limit),
                concurrency: self.optional(table, "concurrency", parse::limit),
            },
            model_rpm: self.by_model(table, "model_rpm", parse::limit),
            model_tpm: self.by_model(table, "model_tpm", parse::limit),
            model_concurrency: self.by_model(table, "model_concurrency", parse::limit),
        }
    }

    /// A table of globs of models.
    fn by_model<T: Display>(
        &mut self,
        table: &mut Table,
        key: &str,
        parse: impl Fn(&str) -> Parsed<T>,
    ) -> BTreeMap<String, T> {
        let (nodes, place) = self.entries(table, key);
        let mut by_glob = BTreeMap::new();
        for (glob, node) in nodes {
            let read = self.scalar(&glob, &node);
            let read = read.and_then(|text| self.parsed(&node, key, &text, &parse).map(Some));
            if let Some(value) = self.or_instead(read, None) {
                by_glob.insert(glob, value);
            }
        }
        let shown: Vec<String> = by_glob
            .iter()
            .map(|(glob, value)| format!("{glob} = {value}"))
            .collect();
        self.note(table, key, Some(shown.join(", ")), &place);
        by_glob
    }

    pub(super) fn log(&mut self, table: &mut Table) -> Result<LogConfig, ConfigError> {
        Ok(LogConfig {
            format: self.value(table, "format", "text", parse::log_format)?,
            level: self.value(table, "level", "info", parse::log_level)?,
        })
    }

    pub(super) fn metrics(&mut self, table: &mut Table) -> MetricsConfig {
        MetricsConfig {
            listen: self.optional(table, "listen", parse::listen),
        }
    }
}
