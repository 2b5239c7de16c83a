//! `gateway connect codex`: a profile file of its own for Codex, and the way back.
//!
//! The profile is `$CODEX_HOME/gateway.config.toml`, which `codex -p gateway` lays over `config.toml`; nothing else is
//! touched. The key stands in the profile (0600) as the provider's bearer token: with Codex 0.169 that works beside
//! `model_catalog_url`, gives no warning, and needs no other program, whatever directory Codex is started from.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::codex::access::{base, fetch_models};
use super::codex::args::{codex_home, toml_text};
use super::codex::model::{any_from_openai, bundled, codex_default, entries};
use super::codex::{KEY_VARIABLE, failure, find_program};
use super::failure::{Exit, Failure};
use super::prompt::{self, Consent};
use super::{Global, block_on, output, runtime};

/// The profile's name: `codex -p gateway`.
const PROFILE: &str = "gateway";

/// The first line of every profile written here: what does not begin so is somebody else's, and is kept.
const MARK: &str = "# Written by `gateway connect codex`";

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
    Codex(CodexProfile),
}

/// How Codex is set up.
#[derive(Clone, Debug, clap::Args)]
pub struct CodexProfile {
    /// The gateway's address, such as `https://gw.example.com` [default: this machine's]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Keep the key in the profile: asked for on a terminal, else read from stdin, which is consent to write it.
    /// Without this Codex reads it from CODEX_GATEWAY_API_KEY
    #[arg(long, conflicts_with = "undo")]
    pub key_stdin: bool,
    /// Write nothing; print the profile
    #[arg(long, conflicts_with = "undo")]
    pub print: bool,
    /// Do not ask before writing; without a terminal and a key on stdin nothing is written unless this is given
    #[arg(long)]
    pub yes: bool,
    /// Bring back what was there before
    #[arg(long)]
    pub undo: bool,
}

impl CodexProfile {
    /// Whoever hands the key in by a pipe has said what it is for; everybody else is asked.
    fn agreed(&self, global: &Global) -> anyhow::Result<bool> {
        let piped = self.key_stdin && !io::stdin().is_terminal();
        prompt::agreed("Write it?", Consent::from(self.yes || piped), global)
    }
}

/// Sets up Codex, or undoes it. Data goes to stdout (`--print`), everything else to stderr.
///
/// # Errors
/// No home directory, an unusable key or address, a gateway that does not answer, a file that cannot be written.
pub fn run(args: &ConnectArgs, global: &Global) -> anyhow::Result<()> {
    let App::Codex(args) = &args.app;
    block_on(connect(args, global))
}

async fn connect(args: &CodexProfile, global: &Global) -> anyhow::Result<()> {
    let home = codex_home().ok_or_else(no_home)?;
    let place = Place::in_home(&home);
    if args.undo {
        global.say(&place.undo()?);
        return Ok(());
    }
    let url = match &args.url {
        Some(url) => base(url),
        None => global.settings_as_served()?.server.url(),
    };
    check_url(&url)?;
    let key = match args.key_stdin {
        true if io::stdin().is_terminal() => Some(check_key(&prompt::secret(&format!("Key for {url} (not shown)"))?)?),
        true => Some(read_key(io::stdin().lock())?),
        false => None,
    };
    let choices = Choices::ask(&url, key.as_deref(), global).await?;
    let profile = profile(&url, key.as_deref(), &choices);
    if args.print {
        return output::print(&profile).map(drop);
    }
    global.say(&format!(
        "This goes into {} (config.toml stays as it is):\n",
        place.profile.display()
    ));
    global.say(&shown(&profile, key.as_deref()));
    if !args.agreed(global)? {
        return Ok(());
    }
    place.write(&profile)?;
    global.say(&format!(
        "Use it:   codex -p {PROFILE}\nUndo:     {} connect codex --undo",
        output::program()
    ));
    Ok(())
}

/// Where the profile lies, and where what it replaced is kept.
struct Place {
    home: PathBuf,
    profile: PathBuf,
    before: PathBuf,
}

impl Place {
    fn in_home(home: &Path) -> Place {
        let file = |end: &str| home.join(format!("{PROFILE}.config.toml{end}"));
        Place {
            home: home.to_owned(),
            profile: file(""),
            before: file(".before-gateway"),
        }
    }

    /// Keeps a profile that is not ours before writing over it; ours is written over.
    fn write(&self, profile: &str) -> Result<(), Failure> {
        let write = || {
            fs::create_dir_all(&self.home)?;
            if self.holds_something_else()? {
                fs::rename(&self.profile, &self.before)?;
            }
            runtime::write_private(&self.profile, profile.as_bytes())
        };
        write().map_err(|error| failed("the profile was not written", &error))
    }

    fn holds_something_else(&self) -> io::Result<bool> {
        match fs::read(&self.profile) {
            Ok(bytes) => Ok(!bytes.starts_with(MARK.as_bytes())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes our profile away, or puts back what it replaced, and says which.
    fn undo(&self) -> Result<String, Failure> {
        let undo = || -> io::Result<String> {
            let profile = self.profile.display();
            if self.holds_something_else()? {
                return Ok(format!(
                    "{profile} was not written by `gateway connect`; it stays as it is."
                ));
            }
            if self.before.try_exists()? {
                fs::rename(&self.before, &self.profile)?;
                return Ok(format!("{profile} is what it was before."));
            }
            match fs::remove_file(&self.profile) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(format!("There is no {profile}.")),
                removed => removed.map(|()| format!("{profile} is gone, as it was before.")),
            }
        };
        undo().map_err(|error| failed("nothing was undone", &error))
    }
}

/// What the gateway's list decides about the profile.
struct Choices {
    /// The model to name, when Codex's own is not offered.
    model: Option<String>,
    /// Whether OpenAI itself answers: then Codex's own knowledge of the models holds.
    openai: bool,
}

impl Choices {
    /// Asks the gateway with the key; without one nothing can be asked, and the gateway's catalogue decides.
    async fn ask(url: &str, key: Option<&str>, global: &Global) -> Result<Choices, Failure> {
        let Some(key) = key else {
            global.say(&format!(
                "Without --key-stdin the gateway cannot be asked; Codex will read {KEY_VARIABLE}."
            ));
            return Ok(Choices {
                model: None,
                openai: false,
            });
        };
        let list = fetch_models(url, key).await?;
        let program = find_program("codex", std::env::var_os("PATH").as_deref());
        let bundle = match program {
            Some(program) => bundled(&program).await,
            None => Vec::new(),
        };
        global.say(&format!(
            "Asked {url} for its models: {} for Codex.",
            entries(&list).count()
        ));
        Ok(Choices::from_list(&list, &codex_default(&bundle)))
    }

    fn from_list(list: &Value, own: &str) -> Choices {
        let slugs: Vec<&str> = entries(list).filter_map(|entry| entry["slug"].as_str()).collect();
        let first = slugs.first().map(|first| (*first).to_owned());
        let model = if slugs.contains(&own) { None } else { first };
        Choices {
            openai: model.is_none() && any_from_openai(list),
            model,
        }
    }
}

/// The profile's text.
fn profile(url: &str, key: Option<&str>, choices: &Choices) -> String {
    let mut lines = vec![format!("{MARK}; use it with: codex -p {PROFILE}")];
    lines.extend(
        choices
            .model
            .iter()
            .map(|model| format!("model = {}", toml_text(model))),
    );
    lines.push(format!("model_provider = {}", toml_text(PROFILE)));
    if !choices.openai {
        lines.push("# a hosted tool that only OpenAI has; \"live\" turns it on".to_owned());
        lines.push("web_search = \"disabled\"".to_owned());
    }
    lines.push(format!("\n[model_providers.{PROFILE}]"));
    lines.push(format!("name = {}", toml_text("Codex Gateway")));
    lines.push(format!("base_url = {}", toml_text(&format!("{url}/v1"))));
    lines.push(format!("wire_api = {}", toml_text("responses")));
    lines.push("supports_websockets = false".to_owned());
    if !choices.openai {
        lines.push(format!(
            "model_catalog_url = {}",
            toml_text(&format!("{url}/v1/models"))
        ));
    }
    lines.extend(credential(key));
    lines.join("\n") + "\n"
}

fn credential(key: Option<&str>) -> Vec<String> {
    match key {
        Some(key) => vec![format!("experimental_bearer_token = {}", toml_text(key))],
        None => vec![
            format!("env_key = {}", toml_text(KEY_VARIABLE)),
            format!(
                "env_key_instructions = {}",
                toml_text("Ask who runs the gateway for a key (gateway key issue USER), and export it.")
            ),
        ],
    }
}

/// The profile as it is shown on a terminal: with the start of the key.
fn shown(profile: &str, key: Option<&str>) -> String {
    let Some(key) = key else {
        return profile.to_owned();
    };
    let start: String = key.chars().take(10).collect();
    profile.replace(key, &format!("{start}…"))
}

fn read_key(input: impl Read) -> Result<String, Failure> {
    let mut text = String::new();
    input
        .take(MAX_KEY)
        .read_to_string(&mut text)
        .map_err(|error| failed("no key was read", &error))?;
    check_key(&text)
}

fn check_key(text: &str) -> Result<String, Failure> {
    let key = text.trim();
    let printable = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
    let fix = "printf %s \"$KEY\" | gateway connect codex --url URL --key-stdin";
    printable
        .then(|| key.to_owned())
        .ok_or_else(|| failure(Exit::Usage, "no key was read", "what was given is no key", fix))
}

fn check_url(url: &str) -> Result<(), Failure> {
    let parsed = reqwest::Url::parse(url).ok();
    let usable = parsed.is_some_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    let why = format!("'{url}' is not an address like https://gw.example.com");
    usable.then_some(()).ok_or_else(|| {
        failure(
            Exit::Usage,
            "Codex was not set up",
            why,
            "gateway connect codex --url http://127.0.0.1:8080 --key-stdin",
        )
    })
}

fn no_home() -> Failure {
    failure(
        Exit::Settings,
        "Codex was not set up",
        "neither CODEX_HOME nor HOME is set",
        "CODEX_HOME=DIR gateway connect codex …",
    )
}

fn failed(what: &str, error: &io::Error) -> Failure {
    failure(Exit::Failed, what, error.to_string(), "gateway connect codex --print …")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    const KEY: &str = "sk-gw-0123456789";
    const PUBLIC: Choices = Choices {
        model: None,
        openai: false,
    };

    fn place() -> (tempfile::TempDir, Place) {
        let dir = tempfile::tempdir().expect("dir");
        let place = Place::in_home(&dir.path().join("codex"));
        (dir, place)
    }

    #[test]
    fn the_profile_holds_the_key_and_nobody_else_reads_it() {
        let (_dir, place) = place();
        place.write(&profile("http://h:1", Some(KEY), &PUBLIC)).expect("write");
        let mode = fs::metadata(&place.profile).expect("meta").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let table: toml::Table = fs::read_to_string(&place.profile).expect("text").parse().expect("TOML");
        let provider = &table["model_providers"]["gateway"];
        assert_eq!(provider["experimental_bearer_token"].as_str(), Some(KEY));
        assert_eq!(provider["model_catalog_url"].as_str(), Some("http://h:1/v1/models"));
        assert!(provider.get("env_key").is_none());
    }

    #[test]
    fn the_key_is_not_shown_on_the_terminal() {
        let text = profile("http://h:1", Some(KEY), &PUBLIC);
        assert!(text.contains(KEY) && !shown(&text, Some(KEY)).contains(KEY));
    }

    #[test]
    fn undo_brings_back_what_was_there_before() {
        let (_dir, place) = place();
        fs::create_dir_all(&place.home).expect("home");
        fs::write(&place.profile, "mine = 1\n").expect("mine");
        place.write(&profile("http://h:1", None, &PUBLIC)).expect("write");
        place.write(&profile("http://h:2", None, &PUBLIC)).expect("write again");
        place.undo().expect("undo");
        assert_eq!(fs::read_to_string(&place.profile).expect("text"), "mine = 1\n");
        place.undo().expect("undo again");
        assert_eq!(
            fs::read_to_string(&place.profile).expect("text"),
            "mine = 1\n",
            "not ours to remove"
        );
    }

    #[test]
    fn undo_leaves_nothing_where_nothing_was() {
        let (_dir, place) = place();
        place.write(&profile("http://h:1", None, &PUBLIC)).expect("write");
        place.undo().expect("undo");
        assert_eq!(fs::read_dir(&place.home).expect("home").count(), 0);
    }

    #[test]
    fn where_openai_answers_codex_keeps_its_own_knowledge_of_the_models() {
        let list = json!({"models": [{"slug": "gpt-6.1-sol", "gateway": {"speaks": "codex"}}]});
        let text = profile("http://h:1", None, &Choices::from_list(&list, "gpt-6.1-sol"));
        assert!(!text.contains("model_catalog_url") && !text.contains("web_search"));
        let text = profile("http://h:1", None, &Choices::from_list(&list, "other"));
        assert!(text.contains("model = \"gpt-6.1-sol\"") && text.contains("model_catalog_url"));
    }

    #[test]
    fn what_is_no_key_or_address_is_refused() {
        assert_eq!(read_key(" sk-gw-a\n".as_bytes()).expect("a key"), "sk-gw-a");
        assert_eq!(read_key("\n".as_bytes()).expect_err("none").exit, Exit::Usage);
        assert_eq!(read_key("two words".as_bytes()).expect_err("none").exit, Exit::Usage);
        assert!(check_url("https://gw.example.com").is_ok());
        assert!(check_url("gw.example.com").is_err() && check_url("").is_err());
    }
}
