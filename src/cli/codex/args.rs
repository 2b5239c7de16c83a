//! Codex's command line: what the user's ARGS say, and the overrides that are put before them.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::KEY_VARIABLE;
use super::model::any_from_openai;

/// The name of the model provider: not `openai`, whose built-in form cannot be overridden.
const PROVIDER: &str = "codex-gateway";

/// The own commands of Codex 0.169: with one of these, ARGS say themselves what is to be done.
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

/// The options of Codex 0.169 that take a value as the next argument.
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

/// The model that ARGS ask for.
pub(super) fn asked_model(args: &[OsString]) -> Option<String> {
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

/// Whether ARGS leave open what Codex is to do: then, without a terminal, it is `codex exec`.
pub(super) fn needs_exec(args: &[OsString]) -> bool {
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

/// What of Codex's own settings matters here.
#[derive(Debug, Default)]
pub struct CodexHome {
    /// The model they name.
    pub model: Option<String>,
    excluded_variables: Vec<String>,
}

impl CodexHome {
    /// From `config.toml`, and the profile if ARGS name one. What cannot be read is Codex's to complain about.
    pub fn read(args: &[OsString]) -> CodexHome {
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

/// The overrides that lead Codex here.
pub fn overrides(url: &str, home: &CodexHome, list: &Value, catalogue: Option<&Path>) -> Vec<OsString> {
    let mut settings = vec![
        format!("model_provider={}", toml_text(PROVIDER)),
        format!("model_providers.{PROVIDER}={{{}}}", provider(url, catalogue)),
        format!("shell_environment_policy.exclude={}", excluded(home)),
    ];
    settings.extend(catalogue.map(|path| format!("model_catalog_json={}", toml_text(&path.to_string_lossy()))));
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
        format!("name={}", toml_text("Codex Gateway")),
        format!("base_url={}", toml_text(&format!("{url}/v1"))),
        format!("env_key={}", toml_text(KEY_VARIABLE)),
        format!("wire_api={}", toml_text("responses")),
        "supports_websockets=false".to_owned(),
    ];
    if catalogue.is_none() {
        pairs.push(format!("model_catalog_url={}", toml_text(&format!("{url}/v1/models"))));
    }
    pairs.join(",")
}

/// The key is Codex's, not for the commands its agent runs.
fn excluded(home: &CodexHome) -> String {
    let names = home.excluded_variables.iter().map(String::as_str).chain([KEY_VARIABLE]);
    format!("[{}]", names.map(toml_text).collect::<Vec<_>>().join(","))
}

/// A TOML string.
pub fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
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
}
