//! The tables of the settings: `[server]`, `[database]`, `[billing]`, `[log]`, with their defaults.

use std::path::PathBuf;

use super::error::ConfigError;
use super::loader::{Loader, Table, any_text};
use super::parse::{self, problem};
use super::source::Place;
use super::{BillingConfig, DiskConfig, LogConfig, OnHangup, ServerConfig};
use crate::hold;
use crate::usage::Tokens;

impl Loader<'_> {
    pub(super) fn server(&mut self, table: &mut Table) -> Result<ServerConfig, ConfigError> {
        Ok(ServerConfig {
            listen: self.value(table, "listen", "127.0.0.1:8080", parse::listen)?,
            public_url: self.optional(table, "public_url", parse::base_url),
            trusted_proxies: self.list(table, "trusted_proxies", &[], parse::network),
            max_body: self.value(table, "max_body", "64MiB", parse::size)?,
            max_response: self.value(table, "max_response", "32MiB", parse::size)?,
            header_timeout: self.value(table, "header_timeout", "10s", parse::duration)?,
            body_timeout: self.value(table, "body_timeout", "60s", parse::duration)?,
            drain_timeout: self.value(table, "drain_timeout", "300s", parse::duration)?,
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
                "no folder for the database: neither XDG_DATA_HOME nor HOME is set".into(),
                "name one: --database FILE".into(),
            )),
        }
    }

    pub(super) fn billing(&mut self, table: &mut Table) -> Result<BillingConfig, ConfigError> {
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

    pub(super) fn log(&mut self, table: &mut Table) -> Result<LogConfig, ConfigError> {
        Ok(LogConfig {
            format: self.value(table, "format", "text", parse::log_format)?,
            level: self.value(table, "level", "info", parse::log_level)?,
        })
    }
}
