//! `gateway config …`

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;

use super::failure::Failure;
use super::output::{self, Column, Items};
use super::{Global, environment, language, settings_places};
use crate::config::{Loaded, Pricing, Setting, UpstreamConfig};
use crate::said;

/// What to do with the settings.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check the settings; exit code 3 with the position of what is wrong
    Check,
    /// The effective settings and where each comes from, secrets masked
    Show,
    /// The files in use
    Path,
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: ConfigCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Check => check(global),
        ConfigCommand::Show => show(global),
        ConfigCommand::Path => path(global),
    }
}

/// `config check --json`.
#[derive(Serialize)]
struct Checked {
    valid: bool,
    file: Option<PathBuf>,
    /// Why it is not.
    error: Option<String>,
    upstreams: Vec<UpstreamView>,
}

#[derive(Serialize)]
struct UpstreamView {
    name: String,
    base_url: String,
    api_key_from: Option<String>,
    prices: String,
}

impl UpstreamView {
    fn new(upstream: &UpstreamConfig) -> UpstreamView {
        UpstreamView {
            name: upstream.name.clone(),
            base_url: upstream.base_url.clone(),
            api_key_from: upstream.api_key_origin.clone(),
            prices: match &upstream.prices {
                Pricing::List(list) => list.to_string(),
                Pricing::Free => "free".to_owned(),
            },
        }
    }
}

fn check(global: &Global) -> anyhow::Result<()> {
    let file = global.settings_path();
    let complete = |loaded: Loaded| Ok(loaded.complete().map_err(Failure::from)?);
    let config = match global.settings(Vec::new()).and_then(complete) {
        Ok(config) => config,
        Err(error) => {
            if global.json {
                output::json(&Checked {
                    valid: false,
                    file,
                    error: Some(error.to_string()),
                    upstreams: Vec::new(),
                })?;
            }
            return Err(error);
        }
    };
    if config.upstreams.is_empty() {
        global.say(&said!(
            language(),
            en: "no upstream: `gateway serve` needs an [[upstream]], or OPENAI_API_KEY in its environment",
            zh: "没有上游：`gateway serve` 需要 [[upstream]]，或环境变量 OPENAI_API_KEY",
        ));
    }
    if global.json {
        return output::json(&Checked {
            valid: true,
            file,
            error: None,
            upstreams: config.upstreams.iter().map(UpstreamView::new).collect(),
        });
    }
    let valid = match file.as_deref().map(Path::display) {
        Some(file) => said!(language(), en: "the settings are valid ({file})", zh: "设置有效（{file}）"),
        None => said!(
            language(),
            en: "the settings are valid (no file, defaults only)",
            zh: "设置有效（没有文件，仅使用默认值）",
        ),
    };
    output::print(&format!("{valid}\n")).map(drop)
}

#[derive(Serialize)]
struct SettingView {
    key: String,
    value: Option<String>,
    origin: String,
}

fn show(global: &Global) -> anyhow::Result<()> {
    let Loaded { settings, missing, .. } = global.settings(Vec::new())?;
    if global.json {
        let view = |setting: Setting| SettingView {
            key: setting.key,
            value: setting.value,
            origin: setting.origin.to_string(),
        };
        let items = settings.into_iter().map(view).collect();
        output::json(&Items { items })?;
    } else {
        let columns = ["setting", "value", "from"].map(Column::Left);
        let row = |setting: Setting| {
            let value = setting.value.unwrap_or_else(|| "-".to_owned());
            vec![setting.key, output::plain(&value), setting.origin.to_string()]
        };
        output::table(&columns, settings.into_iter().map(row).collect())?;
    }
    missing.iter().for_each(|error| warn(&error.told(language()), global));
    Ok(())
}

fn warn(error: &str, global: &Global) {
    global.say(&said!(language(), en: "warning: {error}", zh: "警告：{error}"));
}

/// `config path --json`.
#[derive(Serialize)]
struct Paths {
    config: Option<PathBuf>,
    looked_for: Vec<PathBuf>,
    /// Not known when the settings are not valid.
    database: Option<PathBuf>,
}

fn path(global: &Global) -> anyhow::Result<()> {
    let database = match global.settings(Vec::new()) {
        Ok(loaded) => Some(loaded.config.database),
        Err(error) => {
            warn(&error.to_string(), global);
            None
        }
    };
    let paths = Paths {
        config: global.settings_path(),
        looked_for: settings_places(&environment()),
        database,
    };
    if global.json {
        return output::json(&paths);
    }
    let looked: Vec<String> = paths.looked_for.iter().map(|path| path.display().to_string()).collect();
    let (looked, language) = (looked.join(", "), language());
    let none = || said!(language, en: "none (looked for {looked})", zh: "无（查找过 {looked}）").into();
    output::fields(&[
        (
            "config",
            paths.config.map_or_else(none, |path| path.display().to_string()),
        ),
        (
            "database",
            paths.database.map_or_else(
                || said!(language, en: "not known: the settings are not valid", zh: "未知：设置无效").into(),
                |path| path.display().to_string(),
            ),
        ),
    ])
}
