//! `gateway connect codex`: a profile file of its own for Codex, and the way back.
//!
//! The profile is `$CODEX_HOME/gateway.config.toml`, which `codex -p gateway` lays over `config.toml`; nothing else is
//! touched. The key stands in the profile (0600) as the provider's bearer token: with Codex 0.169 that works beside
//! `model_catalog_url`, gives no warning, and needs no other program, whatever directory Codex is started from. With
//! `--turn-cost` it also names a hook that Codex runs at the end of each turn ([`crate::cli::turn_cost`]); Codex asks once
//! whether it may.

use std::fs;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::apps::Document;
use super::{Asked, PROFILE};
use crate::cli::codex::access::fetch_models;
use crate::cli::codex::args::{codex_home, toml_text};
use crate::cli::codex::model::{any_from_openai, bundled, codex_default, entries};
use crate::cli::codex::{KEY_VARIABLE, failure, find_program};
use crate::cli::failure::{Exit, Failure};
use crate::cli::prompt::{self, Consent};
use crate::cli::{Global, language, output, runtime};
use crate::language::Said;
use crate::said;

/// The first line of every profile written here: what does not begin so is somebody else's, and is kept.
const MARK: &str = "# Written by `gateway connect codex`";

/// How many profiles of others are kept at most.
const MOST_KEPT: u32 = 99;

/// How long Codex waits for the hook, in seconds; the hook itself gives up sooner.
const HOOK_SECONDS: u32 = 10;

/// How Codex is set up.
#[derive(Clone, Debug, clap::Args)]
pub struct CodexProfile {
    #[command(flatten)]
    pub asked: Asked,
    /// Show under each answer what its turn was charged, and the balance: a hook that Codex asks once to trust
    #[arg(long)]
    pub turn_cost: bool,
    /// Write nothing; print the profile
    #[arg(long)]
    pub print: bool,
    /// Do not ask before writing; without a terminal and a key on stdin nothing is written unless this is given
    #[arg(long)]
    pub yes: bool,
    /// Bring back what was there before
    #[arg(long, conflicts_with_all = ["key_stdin", "print", "turn_cost"])]
    pub undo: bool,
}

impl CodexProfile {
    /// Whoever hands the key in by a pipe has said what it is for; everybody else is asked.
    fn agreed(&self, global: &Global) -> anyhow::Result<bool> {
        let piped = self.asked.key_stdin && !io::stdin().is_terminal();
        prompt::agreed(
            &said!(language(), en: "Write it?", zh: "写入吗？"),
            Consent::from(self.yes || piped),
            global,
        )
    }
}

/// Sets up Codex, or undoes it. Data goes to stdout (`--print`), everything else to stderr.
pub(super) async fn connect(args: &CodexProfile, global: &Global) -> anyhow::Result<()> {
    let home = codex_home().ok_or_else(no_home)?;
    let place = Place::in_home(&home);
    if args.undo {
        global.say(&place.undo()?);
        return Ok(());
    }
    let url = args.asked.url("codex", global)?;
    let key = args.asked.key("codex", &url)?;
    let choices = Choices::ask(&url, key.as_deref(), global).await?;
    let mut profile = profile(&url, key.as_deref(), &choices);
    if args.turn_cost {
        profile.push_str(&hook(&program_file()?, &place.profile));
    }
    let file = place.profile.display();
    if args.print && global.json {
        return output::json(&Document {
            app: "codex",
            file: Some(&file.to_string()),
            format: "toml",
            settings: &profile,
        });
    }
    if args.print {
        return output::print(&profile).map(drop);
    }
    global.say(&said!(
        language(),
        en: "This goes into {file} (config.toml stays as it is):\n",
        zh: "以下内容写入 {file}（config.toml 保持不变）：\n",
    ));
    global.say(&Said::verbatim(shown(&profile, key.as_deref())));
    if !args.agreed(global)? {
        return Ok(());
    }
    place.write(&profile)?;
    let program = output::program();
    global.say(&said!(
        language(),
        en: "Use it:   codex -p {PROFILE}\nUndo:     {program} connect codex --undo",
        zh: "使用：  codex -p {PROFILE}\n撤销：  {program} connect codex --undo",
    ));
    Ok(())
}

/// Where the profile lies. What it replaced is kept beside it, each under a name of its own.
struct Place {
    home: PathBuf,
    profile: PathBuf,
}

impl Place {
    fn in_home(home: &Path) -> Place {
        Place {
            home: home.to_owned(),
            profile: home.join(format!("{PROFILE}.config.toml")),
        }
    }

    /// Where what was replaced is kept: the first time, the second time, and so on.
    fn kept(&self, number: u32) -> PathBuf {
        let again = if number == 1 {
            String::new()
        } else {
            format!("-{number}")
        };
        self.home.join(format!("{PROFILE}.config.toml.before-gateway{again}"))
    }

    /// The last one that was kept.
    fn last_kept(&self) -> io::Result<Option<u32>> {
        for number in (1..=MOST_KEPT).rev() {
            if self.kept(number).try_exists()? {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    /// Where the next one is kept: nothing that was kept is written over.
    fn next_kept(&self) -> io::Result<PathBuf> {
        match self.last_kept()?.unwrap_or(0) + 1 {
            number @ ..=MOST_KEPT => Ok(self.kept(number)),
            _ => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!(
                    "{} are there already; take away what nobody needs",
                    self.kept(MOST_KEPT).display()
                ),
            )),
        }
    }

    /// Keeps a profile that is not ours before writing over it; ours is written over.
    fn write(&self, profile: &str) -> Result<(), Failure> {
        let write = || {
            fs::create_dir_all(&self.home)?;
            if self.holds_something_else()? {
                fs::rename(&self.profile, self.next_kept()?)?;
            }
            runtime::write_private(&self.profile, profile.as_bytes())
        };
        write().map_err(|error| {
            let what = said!(language(), en: "the profile was not written", zh: "配置没有写入");
            failed(what, &error)
        })
    }

    fn holds_something_else(&self) -> io::Result<bool> {
        match fs::read(&self.profile) {
            Ok(bytes) => Ok(!bytes.starts_with(MARK.as_bytes())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes our profile away, or puts back what it replaced, and says which.
    fn undo(&self) -> Result<Said, Failure> {
        let language = language();
        let undo = || -> io::Result<Said> {
            let profile = self.profile.display();
            if self.holds_something_else()? {
                return Ok(said!(
                    language,
                    en: "{profile} was not written by `gateway connect`; it stays as it is.",
                    zh: "{profile} 不是由 `gateway connect` 写入的；保持不变。",
                ));
            }
            if let Some(last) = self.last_kept()? {
                fs::rename(self.kept(last), &self.profile)?;
                return Ok(said!(language, en: "{profile} is what it was before.", zh: "{profile} 已恢复原样。"));
            }
            match fs::remove_file(&self.profile) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Ok(said!(language, en: "There is no {profile}.", zh: "没有 {profile}。"))
                }
                removed => removed
                    .map(|()| said!(language, en: "{profile} is gone, as it was before.", zh: "{profile} 已删除，恢复原样。")),
            }
        };
        undo().map_err(|error| {
            failed(
                said!(language, en: "nothing was undone", zh: "没有撤销任何内容"),
                &error,
            )
        })
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
            global.say(&said!(
                language(),
                en: "Without --key-stdin the gateway cannot be asked; Codex will read {KEY_VARIABLE}.",
                zh: "没有 --key-stdin 就无法询问网关；Codex 将读取 {KEY_VARIABLE}。",
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
        let count = entries(&list).count();
        global.say(&said!(
            language(),
            en: "Asked {url} for its models: {count} for Codex.",
            zh: "已向 {url} 询问模型：{count} 个可用于 Codex。",
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

/// What Codex runs at the end of each turn. The path is absolute: it is run from whatever folder the user works in. The key
/// is not on its command line; it is read from the profile, as Codex reads it.
fn hook(program: &Path, profile: &Path) -> String {
    let word = |path: &Path| output::shell_word(&path.display().to_string());
    let command = format!("{} turn-cost --profile {}", word(program), word(profile));
    format!(
        "\n[[hooks.Stop]]\n[[hooks.Stop.hooks]]\ntype = \"command\"\ncommand = {}\ntimeout = {HOOK_SECONDS}\n",
        toml_text(&command)
    )
}

/// This program's file, wherever it is started from.
fn program_file() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| failed(super::not_set_up(), &error))
}

/// The profile as it is shown on a terminal: with the start of the key.
fn shown(profile: &str, key: Option<&str>) -> String {
    let Some(key) = key else {
        return profile.to_owned();
    };
    let start: String = key.chars().take(10).collect();
    profile.replace(key, &format!("{start}…"))
}

fn no_home() -> Failure {
    failure(
        Exit::Settings,
        super::not_set_up(),
        said!(language(), en: "neither CODEX_HOME nor HOME is set", zh: "CODEX_HOME 和 HOME 都没有设置"),
        "CODEX_HOME=DIR gateway connect codex …",
    )
}

fn failed(what: Said, error: &io::Error) -> Failure {
    failure(
        Exit::Failed,
        what,
        Said::verbatim(error.to_string()),
        "gateway connect codex --print …",
    )
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
    fn what_was_kept_is_never_written_over_and_comes_back_one_by_one() {
        let (_dir, place) = place();
        fs::create_dir_all(&place.home).expect("home");
        let ours = profile("http://h:1", None, &PUBLIC);
        let now = || fs::read_to_string(&place.profile).expect("text");
        for mine in ["mine = 1\n", "mine = 2\n", "mine = 3\n"] {
            fs::write(&place.profile, mine).expect("mine");
            place.write(&ours).expect("write");
            place.write(&ours).expect("write again");
        }
        for mine in ["mine = 3\n", "mine = 2\n", "mine = 1\n"] {
            assert_eq!(now(), ours);
            place.undo().expect("undo");
            assert_eq!(now(), mine);
            fs::remove_file(&place.profile).expect("gone");
            if mine != "mine = 1\n" {
                place.write(&ours).expect("write");
            }
        }
        assert_eq!(fs::read_dir(&place.home).expect("home").count(), 0);

        fs::write(place.kept(MOST_KEPT), "the last").expect("there");
        fs::write(&place.profile, "mine = 4\n").expect("mine");
        place.write(&ours).expect_err("there is no name left");
        assert_eq!(now(), "mine = 4\n");
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
    fn the_hook_is_in_the_profile_and_names_no_key() {
        let text = profile("http://h:1", Some(KEY), &PUBLIC);
        let hook = hook(
            Path::new("/opt/my tools/gateway"),
            Path::new("/home/me/.codex/gateway.config.toml"),
        );
        assert!(!hook.contains(KEY));
        let table: toml::Table = (text + &hook).parse().expect("TOML");
        let hook = &table["hooks"]["Stop"][0]["hooks"][0];
        assert_eq!(
            hook["command"].as_str(),
            Some("'/opt/my tools/gateway' turn-cost --profile /home/me/.codex/gateway.config.toml")
        );
        assert_eq!(hook["type"].as_str(), Some("command"));
        assert_eq!(
            table["model_provider"].as_str(),
            Some("gateway"),
            "it stands behind everything else"
        );
    }
}
