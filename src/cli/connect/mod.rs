//! `gateway connect APP`: what a client needs to use this gateway.
//!
//! ```text
//! Asked     where the gateway is, and the key for it     --url, --key-stdin
//! codex     a profile of its own: shown, written, undone
//! apps      every other client: its settings, printed; nothing is written
//! ```

mod apps;
mod codex;

use std::io::{self, IsTerminal, Read};

use super::codex::access::base;
use super::codex::failure;
use super::failure::{Exit, Failure};
use super::{Global, block_on, language, prompt};
use crate::language::Said;
use crate::said;
use apps::Client;

/// The name of Codex's profile, `codex -p gateway`, and of the provider in it.
pub const PROFILE: &str = "gateway";

/// A key is some fifty characters; more on stdin is not one.
const MAX_KEY: u64 = 4096;

/// Set up a client for this gateway.
#[derive(Clone, Debug, clap::Args)]
pub struct ConnectArgs {
    /// Which client
    #[command(subcommand)]
    pub app: App,
}

/// The clients that can be set up.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum App {
    /// Write the profile that `codex -p gateway` uses; config.toml stays as it is
    Codex(codex::CodexProfile),
    /// Print settings for aider
    Aider(Printed),
    /// Print settings for Continue
    Continue(Printed),
    /// Print the command that sets up Cline
    Cline(Printed),
    /// Print the environment for Open WebUI
    OpenWebui(Printed),
    /// Print settings for opencode
    Opencode(Printed),
    /// Print settings for Claude Code by way of claude-code-router, which translates for it
    ClaudeCode(Printed),
    /// Print the variables that OpenAI's SDKs and most other clients read
    Env(Printed),
}

/// What is asked of a client whose settings are printed.
#[derive(Clone, Debug, clap::Args)]
pub struct Printed {
    #[command(flatten)]
    asked: Asked,
    /// Print the settings: nothing else is ever done with them, with this or without
    #[arg(long)]
    print: bool,
}

/// Where the gateway is, and the key for it.
#[derive(Clone, Debug, clap::Args)]
pub struct Asked {
    /// The gateway's address, such as `https://gw.example.com` [default: this machine's]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Put the key into the settings: asked for on a terminal, else read from stdin, which for Codex is consent to write
    /// it. Without this the client reads it from CODEX_GATEWAY_API_KEY
    #[arg(long)]
    pub key_stdin: bool,
}

impl Asked {
    /// The gateway's address.
    fn url(&self, app: &str, global: &Global) -> anyhow::Result<String> {
        let url = match &self.url {
            Some(url) => base(url),
            None => global.settings_as_served()?.server.url(),
        };
        check_url(app, &url)?;
        Ok(url)
    }

    /// The key, if it is to be put into the settings.
    fn key(&self, app: &str, url: &str) -> Result<Option<String>, Failure> {
        if !self.key_stdin {
            return Ok(None);
        }
        if io::stdin().is_terminal() {
            let question = said!(language(), en: "Key for {url} (not shown)", zh: "{url} 的密钥（不显示）");
            return check_key(app, &prompt::secret(&question)?).map(Some);
        }
        read_key(app, io::stdin().lock()).map(Some)
    }
}

/// Sets up a client.
///
/// # Errors
/// No home directory, an unusable key or address, a gateway that does not answer, a file that cannot be written.
pub fn run(args: &ConnectArgs, global: &Global) -> anyhow::Result<()> {
    let (client, printed) = match &args.app {
        App::Codex(profile) => return block_on(codex::connect(profile, global)),
        App::Aider(printed) => (Client::Aider, printed),
        App::Continue(printed) => (Client::Continue, printed),
        App::Cline(printed) => (Client::Cline, printed),
        App::OpenWebui(printed) => (Client::OpenWebui, printed),
        App::Opencode(printed) => (Client::Opencode, printed),
        App::ClaudeCode(printed) => (Client::ClaudeCode, printed),
        App::Env(printed) => (Client::Env, printed),
    };
    block_on(apps::connect(client, &printed.asked, global))
}

fn read_key(app: &str, input: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = input.take(MAX_KEY).read_to_string(&mut text);
    read.map_err(|error| {
        let why = Said::verbatim(error.to_string());
        failure(Exit::Failed, no_key(), why, format!("gateway connect {app} --print …"))
    })?;
    check_key(app, &text)
}

fn check_key(app: &str, text: &str) -> Result<String, Failure> {
    let key = text.trim();
    let printable = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    let fix = format!("printf %s \"$KEY\" | gateway connect {app} --url URL --key-stdin");
    printable.then(|| key.to_owned()).ok_or_else(|| {
        let why = said!(language(), en: "what was given is no key", zh: "给出的不是密钥");
        failure(Exit::Usage, no_key(), why, fix)
    })
}

fn no_key() -> Said {
    said!(language(), en: "no key was read", zh: "没有读到密钥")
}

fn check_url(app: &str, url: &str) -> Result<(), Failure> {
    let parsed = reqwest::Url::parse(url).ok();
    let usable = parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    usable.then_some(()).ok_or_else(|| {
        let why = said!(
            language(),
            en: "'{url}' is not an address like https://gw.example.com",
            zh: "'{url}' 不是 https://gw.example.com 这样的地址",
        );
        failure(
            Exit::Usage,
            not_set_up(),
            why,
            format!("gateway connect {app} --url http://127.0.0.1:8080 --key-stdin"),
        )
    })
}

fn not_set_up() -> Said {
    said!(language(), en: "nothing was set up", zh: "没有进行任何设置")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_key_or_address_is_refused() {
        assert_eq!(read_key("codex", " sk-gw-a\n".as_bytes()).expect("a key"), "sk-gw-a");
        assert_eq!(read_key("codex", "\n".as_bytes()).expect_err("none").exit, Exit::Usage);
        assert_eq!(
            read_key("codex", "two words".as_bytes()).expect_err("none").exit,
            Exit::Usage
        );
        assert!(check_url("codex", "https://gw.example.com").is_ok());
        let failed = check_url("aider", "").expect_err("none");
        assert!(
            failed.fix.iter().any(|fix| fix.contains("connect aider ")),
            "{failed:?}"
        );
        assert!(check_url("codex", "gw.example.com").is_err() && check_url("codex", "").is_err());
    }
}
