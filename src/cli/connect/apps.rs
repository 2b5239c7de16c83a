//! The settings of clients other than Codex, as text: where they go is said on stderr, so that stdout can be put there.
//!
//! ```text
//! gateway's model list → Settings → aider        YAML
//!                                   Continue     YAML
//!                                   Cline        a line of a shell
//!                                   Open WebUI   a file of variables, as `docker run --env-file` reads it
//!                                   opencode     JSON
//!                                   Claude Code  JSON of claude-code-router: it speaks Anthropic's protocol only
//!                                   env          lines of a shell
//! ```
//!
//! With a key the gateway is asked what it offers to it; without one the settings name Codex's own default model, and the
//! variable that the client reads the key from.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Asked;
use crate::cli::codex::KEY_VARIABLE;
use crate::cli::codex::access::{fetch_models, is_loopback};
use crate::cli::codex::model::{CODEX_DEFAULT, entries};
use crate::cli::{Global, language, output};
use crate::language::Said;
use crate::said;

/// The name of the provider in settings that give it one.
const PROVIDER: &str = "codex-gateway";

/// A client that is set up by what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Client {
    Aider,
    Continue,
    Cline,
    OpenWebui,
    Opencode,
    ClaudeCode,
    Env,
}

impl Client {
    #[cfg(test)]
    const ALL: [Client; 7] = [
        Client::Aider,
        Client::Continue,
        Client::Cline,
        Client::OpenWebui,
        Client::Opencode,
        Client::ClaudeCode,
        Client::Env,
    ];

    /// As it is named on the command line.
    fn name(self) -> &'static str {
        match self {
            Client::Aider => "aider",
            Client::Continue => "continue",
            Client::Cline => "cline",
            Client::OpenWebui => "open-webui",
            Client::Opencode => "opencode",
            Client::ClaudeCode => "claude-code",
            Client::Env => "env",
        }
    }

    /// Where its settings go; `None`: into a shell.
    fn file(self) -> Option<&'static str> {
        match self {
            Client::Aider => Some("~/.aider.conf.yml"),
            Client::Continue => Some("~/.continue/config.yaml"),
            Client::OpenWebui => Some("open-webui.env"),
            Client::Opencode => Some("~/.config/opencode/opencode.json"),
            Client::ClaudeCode => Some("~/.claude-code-router/config.json"),
            Client::Cline | Client::Env => None,
        }
    }

    fn format(self) -> &'static str {
        match self {
            Client::Aider | Client::Continue => "yaml",
            Client::Opencode | Client::ClaudeCode => "json",
            Client::OpenWebui => "env",
            Client::Cline | Client::Env => "sh",
        }
    }

    /// What to do with what is printed.
    fn advice(self) -> Said {
        let language = language();
        match self {
            Client::Aider => said!(
                language,
                en: "For ~/.aider.conf.yml, or .aider.conf.yml in a project.",
                zh: "用于 ~/.aider.conf.yml，或项目中的 .aider.conf.yml。",
            ),
            Client::Continue => said!(
                language,
                en: "For ~/.continue/config.yaml; where there is one, add the entries of `models` to it.",
                zh: "用于 ~/.continue/config.yaml；如已有该文件，把 `models` 中的条目加进去。",
            ),
            Client::Cline => said!(
                language,
                en: "Run this once. In the editor: API Provider \"OpenAI Compatible\" with the same address, key and model.",
                zh: "运行一次即可。在编辑器中：API Provider 选 \"OpenAI Compatible\"，填入相同的地址、密钥和模型。",
            ),
            Client::OpenWebui => said!(
                language,
                en: "For a file open-webui.env: docker run --env-file open-webui.env … ; it counts at Open WebUI's first start.",
                zh: "存为文件 open-webui.env：docker run --env-file open-webui.env … ；在 Open WebUI 首次启动时生效。",
            ),
            Client::Opencode => said!(
                language,
                en: "For ~/.config/opencode/opencode.json, or opencode.json in a project.",
                zh: "用于 ~/.config/opencode/opencode.json，或项目中的 opencode.json。",
            ),
            Client::ClaudeCode => said!(
                language,
                en: "Claude Code speaks Anthropic's protocol, which this gateway does not; claude-code-router translates. This is \
                     its ~/.claude-code-router/config.json; then run: ccr code",
                zh: "Claude Code 使用 Anthropic 的协议，本网关不支持；由 claude-code-router 转换。以下是它的 \
                     ~/.claude-code-router/config.json；然后运行：ccr code",
            ),
            Client::Env => said!(
                language,
                en: "For a shell: eval \"$(gateway connect env …)\", or a line each in its profile.",
                zh: "用于 shell：eval \"$(gateway connect env …)\"，或逐行写入其配置文件。",
            ),
        }
    }
}

/// A model for a client's list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Model {
    name: String,
    /// What it reads, and what it writes at most.
    limits: Option<(u64, u64)>,
}

/// What every client needs to know.
struct Settings {
    base_url: String,
    key: Option<String>,
    models: Vec<Model>,
}

/// `connect APP --json`
#[derive(Serialize)]
pub(super) struct Document<'a> {
    pub(super) app: &'static str,
    /// Where they go.
    pub(super) file: Option<&'a str>,
    pub(super) format: &'static str,
    pub(super) settings: &'a str,
}

/// Prints what a client needs.
pub(super) async fn connect(client: Client, asked: &Asked, global: &Global) -> anyhow::Result<()> {
    let url = asked.url(client.name(), global)?;
    let key = asked.key(client.name(), &url)?;
    let models = match &key {
        Some(key) => models(&fetch_models(&url, key).await?),
        None => {
            global.say(&said!(
                language(),
                en: "Without --key-stdin the gateway cannot be asked for its models; the key is read from {KEY_VARIABLE}.",
                zh: "没有 --key-stdin 就无法向网关询问模型；密钥从 {KEY_VARIABLE} 读取。",
            ));
            vec![Model {
                name: CODEX_DEFAULT.to_owned(),
                limits: None,
            }]
        }
    };
    global.say(&client.advice());
    if client == Client::OpenWebui && is_loopback(&url) {
        global.say(&said!(
            language(),
            en: "A container does not reach {url}: name an address of this machine that it reaches (--url).",
            zh: "容器无法访问 {url}：请指定它能访问的本机地址（--url）。",
        ));
    }
    let settings = Settings {
        base_url: format!("{url}/v1"),
        key,
        models,
    };
    let text = settings.text(client);
    if global.json {
        return output::json(&Document {
            app: client.name(),
            file: client.file(),
            format: client.format(),
            settings: &text,
        });
    }
    output::print(&text).map(drop)
}

/// The models that Codex's picker shows: the others answer by name.
fn models(list: &Value) -> Vec<Model> {
    let data = || list["data"].as_array().into_iter().flatten();
    let shown = entries(list).filter(|entry| entry["visibility"] == "list");
    let named = shown.filter_map(|entry| entry["slug"].as_str());
    let model = |name: &str| {
        let one = data().find(|one| one["id"] == name);
        let limit = |field: &str| one.and_then(|one| one[field].as_u64());
        Model {
            name: name.to_owned(),
            limits: limit("context_window").zip(limit("max_output_tokens")),
        }
    };
    named.map(model).collect()
}

impl Settings {
    fn text(&self, client: Client) -> String {
        match client {
            Client::Aider => self.aider(),
            Client::Continue => self.of_continue(),
            Client::Cline => self.cline(),
            Client::OpenWebui => self.open_webui(),
            Client::Opencode => pretty(&self.opencode()),
            Client::ClaudeCode => pretty(&self.claude_code_router()),
            Client::Env => self.env(),
        }
    }

    /// The model for a client that has one.
    fn first(&self) -> &str {
        self.models.first().map_or(CODEX_DEFAULT, |model| &model.name)
    }

    /// The key as a word of a shell.
    fn key_word(&self) -> String {
        let variable = || format!("\"${KEY_VARIABLE}\"");
        self.key.as_deref().map_or_else(variable, output::shell_word)
    }

    fn aider(&self) -> String {
        let key = match &self.key {
            Some(key) => format!("openai-api-key: {}", quoted(key)),
            None => format!("# the key: export AIDER_OPENAI_API_KEY=\"${KEY_VARIABLE}\""),
        };
        let (base, model) = (quoted(&self.base_url), quoted(&format!("openai/{}", self.first())));
        format!("openai-api-base: {base}\n{key}\nmodel: {model}\n")
    }

    fn of_continue(&self) -> String {
        let variable = || format!("${{{{ secrets.{KEY_VARIABLE} }}}}");
        let (base, key) = (
            quoted(&self.base_url),
            quoted(&self.key.clone().unwrap_or_else(variable)),
        );
        let model = |model: &Model| {
            let name = quoted(&model.name);
            format!(
                "  - name: {name}\n    provider: openai\n    model: {name}\n    apiBase: {base}\n    apiKey: {key}\n    \
                 roles: [chat, edit, apply]\n"
            )
        };
        let models: String = self.models.iter().map(model).collect();
        format!("name: Codex Gateway\nversion: 1.0.0\nschema: v1\nmodels:\n{models}")
    }

    fn cline(&self) -> String {
        let (key, model, base) = (
            self.key_word(),
            output::shell_word(self.first()),
            output::shell_word(&self.base_url),
        );
        format!("cline auth --provider openai --apikey {key} --modelid {model} --baseurl {base}\n")
    }

    /// Docker takes what is behind the `=` as it is, quotes and all.
    fn open_webui(&self) -> String {
        let key = match &self.key {
            Some(key) => format!("OPENAI_API_KEY={key}"),
            None => format!("# the key: docker run -e OPENAI_API_KEY=\"${KEY_VARIABLE}\" …"),
        };
        format!("OPENAI_API_BASE_URL={}\n{key}\n", self.base_url)
    }

    fn opencode(&self) -> Value {
        let variable = || format!("{{env:{KEY_VARIABLE}}}");
        let model = |model: &Model| {
            let entry = match model.limits {
                Some((context, output)) => {
                    json!({"name": model.name, "limit": {"context": context, "output": output}})
                }
                None => json!({"name": model.name}),
            };
            (model.name.clone(), entry)
        };
        let models: Map<String, Value> = self.models.iter().map(model).collect();
        json!({
            "$schema": "https://opencode.ai/config.json",
            "provider": {PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Codex Gateway",
                "options": {"baseURL": self.base_url, "apiKey": self.key.clone().unwrap_or_else(variable)},
                "models": models,
            }},
            "model": format!("{PROVIDER}/{}", self.first()),
        })
    }

    fn claude_code_router(&self) -> Value {
        let models: Vec<&str> = self.models.iter().map(|model| model.name.as_str()).collect();
        json!({
            "Providers": [{
                "name": PROVIDER,
                "api_base_url": format!("{}/chat/completions", self.base_url),
                "api_key": self.key.clone().unwrap_or_else(|| format!("${KEY_VARIABLE}")),
                "models": models,
            }],
            "Router": {"default": format!("{PROVIDER},{}", self.first())},
        })
    }

    fn env(&self) -> String {
        let (base, key) = (output::shell_word(&self.base_url), self.key_word());
        format!("export OPENAI_BASE_URL={base}\nexport OPENAI_API_BASE={base}\nexport OPENAI_API_KEY={key}\n")
    }
}

/// A text as JSON and YAML quote it.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn pretty(document: &Value) -> String {
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(key: Option<&str>) -> Settings {
        let list = json!({
            "data": [{"id": "a/b", "context_window": 1000, "max_output_tokens": 100}, {"id": "hidden"}, {"id": "c"}],
            "models": [
                {"slug": "a/b", "visibility": "list"},
                {"slug": "hidden", "visibility": "hide"},
                {"slug": "c", "visibility": "list"},
            ],
        });
        Settings {
            base_url: "http://h:1/v1".into(),
            key: key.map(str::to_owned),
            models: models(&list),
        }
    }

    #[test]
    fn json_clients_get_every_model_of_the_picker() {
        let opencode: Value = serde_json::from_str(&settings(Some("sk-gw-x")).text(Client::Opencode)).expect("JSON");
        let provider = &opencode["provider"][PROVIDER];
        assert_eq!(
            provider["options"],
            json!({"baseURL": "http://h:1/v1", "apiKey": "sk-gw-x"})
        );
        assert_eq!(
            provider["models"]["a/b"]["limit"],
            json!({"context": 1000, "output": 100})
        );
        assert_eq!(provider["models"].as_object().map(Map::len), Some(2));
        assert_eq!(opencode["model"], "codex-gateway/a/b");
        let router: Value = serde_json::from_str(&settings(None).text(Client::ClaudeCode)).expect("JSON");
        assert_eq!(router["Providers"][0]["models"], json!(["a/b", "c"]));
        assert_eq!(router["Providers"][0]["api_base_url"], "http://h:1/v1/chat/completions");
        assert_eq!(router["Providers"][0]["api_key"], "$CODEX_GATEWAY_API_KEY");
    }

    /// What a shell makes of the lines: `show` is run behind them.
    fn shell(lines: &str, show: &str) -> String {
        let mut run = std::process::Command::new("sh");
        run.args(["-c", &format!("{lines}{show}")])
            .env(KEY_VARIABLE, "sk-gw-of variable");
        let output = run.output().expect("a shell");
        assert!(output.status.success(), "{lines}");
        String::from_utf8(output.stdout).expect("text")
    }

    #[test]
    fn a_shell_reads_what_is_meant() {
        let show = "printf '%s|' \"$OPENAI_BASE_URL\" \"$OPENAI_API_BASE\" \"$OPENAI_API_KEY\"";
        let odd = settings(Some("sk-gw-$(id)'\""));
        assert_eq!(
            shell(&odd.text(Client::Env), show),
            "http://h:1/v1|http://h:1/v1|sk-gw-$(id)'\"|"
        );
        assert!(shell(&settings(None).text(Client::Env), show).ends_with("|sk-gw-of variable|"));
        let cline = "cline() { printf '%s|' \"$@\"; }\n".to_owned() + &odd.text(Client::Cline);
        assert_eq!(
            shell(&cline, ""),
            "auth|--provider|openai|--apikey|sk-gw-$(id)'\"|--modelid|a/b|--baseurl|http://h:1/v1|"
        );
    }

    #[test]
    fn a_key_that_is_not_given_is_in_no_settings() {
        for client in Client::ALL {
            let (with, without) = (settings(Some("sk-gw-x")).text(client), settings(None).text(client));
            assert!(
                with.contains("sk-gw-x") && !without.contains("sk-gw-"),
                "{with}{without}"
            );
            assert!(without.contains(KEY_VARIABLE) && with.ends_with('\n'), "{without}");
        }
    }
}
