//! `gateway key …`

use clap::Subcommand;
use ipnet::IpNet;
use jiff::SignedDuration;
use serde::Serialize;

use super::failure::{Exit, Failure, command_on};
use super::output::{self, Column, Items, KeyView, Pipe, WithBudgets};
use super::values::{self, Rate, When};
use super::{Global, actor, language};
use crate::admin::{self, Issued, KeySpec};
use crate::budget::{Budget, Period};
use crate::config::{Config, OnHangup};
use crate::language::Said;
use crate::limits::{AtMost, Rates};
use crate::said;
use crate::store::budgets::Spender;
use crate::store::keys::{Key, KeyChange};
use crate::store::{Create, Store};
use crate::time::now;

/// What to do with keys. KEY is an id, the start of one, or a prefix as it is shown.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Issue a key; it is shown this once
    Issue(IssueArgs),
    /// The keys of a user, or all
    List {
        /// Name, e-mail address or id of a user
        user: Option<String>,
    },
    /// One key, without its secret
    Show {
        /// An id or a prefix
        key: String,
    },
    /// Change what a key may do; a running server knows at once
    Set(SetArgs),
    /// Stop a key for good; a running server knows within a second
    Revoke {
        /// An id or a prefix
        key: String,
    },
    /// Issue a key with the same permissions in place of another
    Rotate {
        /// An id or a prefix
        key: String,
        /// How long the old key stays valid, such as 1h
        #[arg(long, value_name = "SPAN", default_value = "0s", value_parser = values::span)]
        grace: SignedDuration,
    },
}

/// `gateway key issue`
#[derive(Debug, clap::Args)]
pub struct IssueArgs {
    /// Name, e-mail address or id of its user
    user: String,
    /// What to call it [default: key N]
    #[arg(long)]
    name: Option<String>,
    /// When it stops working: a span such as 30d, or a date (midnight UTC)
    #[arg(long, value_name = "30d|DATE", value_parser = When::parse)]
    expires: Option<When>,
    /// A model it may use, or a pattern such as 'gpt-*'; may be given several times [default: all]
    #[arg(long = "model", value_name = "GLOB")]
    models: Vec<String>,
    /// Where it may be used from, such as 10.0.0.0/8; may be given several times [default: anywhere]
    #[arg(long = "ip", value_name = "CIDR", value_parser = values::network)]
    ips: Vec<IpNet>,
    /// What happens when its client leaves in the middle of an answer [default: as the settings say]
    #[arg(long, value_name = "drain|cancel", value_parser = values::typed::<OnHangup>)]
    on_hangup: Option<OnHangup>,
    /// What it may spend at most: 20, 5/day or 100/month; may be given for each period
    #[arg(long = "budget", value_name = "USD[/day|/month|/total]", value_parser = values::typed::<Budget>)]
    budgets: Vec<Budget>,
    /// Requests a minute [default: as the settings say]
    #[arg(long, value_name = "N", value_parser = values::typed::<AtMost>)]
    rpm: Option<AtMost>,
    /// Tokens a minute, input and output [default: as the settings say]
    #[arg(long, value_name = "N", value_parser = values::typed::<AtMost>)]
    tpm: Option<AtMost>,
    /// Calls at once [default: as the settings say]
    #[arg(long, value_name = "N", value_parser = values::typed::<AtMost>)]
    concurrency: Option<AtMost>,
}

/// `gateway key set`
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
pub struct SetArgs {
    /// An id or a prefix
    key: String,
    /// What it may spend at most: 20, 5/day or 100/month; may be given for each period
    #[arg(long = "budget", value_name = "USD[/day|/month|/total]", group = "change", value_parser = values::typed::<Budget>)]
    budgets: Vec<Budget>,
    /// Take a budget away
    #[arg(long = "no-budget", value_name = "day|month|total", group = "change", value_parser = values::typed::<Period>)]
    no_budgets: Vec<Period>,
    /// What to call it
    #[arg(long, group = "change")]
    name: Option<String>,
    /// When it stops working: a span such as 30d, a date (midnight UTC), or never
    #[arg(long, value_name = "30d|DATE|never", value_parser = End::parse, group = "change")]
    expires: Option<End>,
    /// The models it may use, instead of those it may: names or patterns such as 'gpt-*'; '*' for all
    #[arg(long = "model", value_name = "GLOB", group = "change")]
    models: Vec<String>,
    /// Where it may be used from, instead of where it may: ranges such as 10.0.0.0/8; 0.0.0.0/0 and ::/0 for anywhere
    #[arg(long = "ip", value_name = "CIDR", value_parser = values::network, group = "change")]
    ips: Vec<IpNet>,
    /// What happens when its client leaves in the middle of an answer
    #[arg(long, value_name = "drain|cancel", group = "change", value_parser = values::typed::<OnHangup>)]
    on_hangup: Option<OnHangup>,
    /// Requests a minute, or 'default' for what the settings say
    #[arg(long, value_name = "N|default", value_parser = values::key_rate, group = "change")]
    rpm: Option<Rate>,
    /// Tokens a minute, input and output, or 'default' for what the settings say
    #[arg(long, value_name = "N|default", value_parser = values::key_rate, group = "change")]
    tpm: Option<Rate>,
    /// Calls at once, or 'default' for what the settings say
    #[arg(long, value_name = "N|default", value_parser = values::key_rate, group = "change")]
    concurrency: Option<Rate>,
}

/// When a key is to end.
#[derive(Clone, Copy, Debug)]
enum End {
    At(When),
    Never,
}

impl End {
    fn parse(text: &str) -> Result<End, String> {
        match text {
            "never" => Ok(End::Never),
            other => When::parse(other).map(End::At),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: KeyCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        KeyCommand::Issue(args) => issue(args, global),
        KeyCommand::List { user } => list(user.as_deref(), global),
        KeyCommand::Show { key } => {
            let store = global.store(Create::Never)?;
            let key = admin::key(&store, &key).map_err(Failure::from)?;
            show(&store, &key, global)
        }
        KeyCommand::Set(args) => set(args, global),
        KeyCommand::Revoke { key } => {
            let store = global.store(Create::Never)?;
            let key = admin::revoke_key(&store, &key, &actor(), now()).map_err(Failure::from)?;
            if global.json {
                return output::json(&KeyView::new(&key, now()));
            }
            let (prefix, name, user) = (&key.prefix, output::plain(&key.name), &key.user_name);
            global.say(&said!(
                language(),
                en: "key {prefix} ({name}) of {user} is revoked",
                zh: "{user} 的密钥 {prefix}（{name}）已吊销",
            ));
            Ok(())
        }
        KeyCommand::Rotate { key, grace } => rotate(&key, grace, global),
    }
}

fn issue(args: IssueArgs, global: &Global) -> anyhow::Result<()> {
    let config = global.settings_as_served()?;
    let store = super::open(&config.database, Create::Never)?;
    let at = now();
    let spec = KeySpec {
        name: args.name,
        expires_at: args.expires.map(|when| when.ahead(at)),
        models: args.models,
        ips: args.ips,
        on_hangup: args.on_hangup,
        budgets: args.budgets,
        rates: Rates {
            rpm: args.rpm,
            tpm: args.tpm,
            concurrency: args.concurrency,
        },
    };
    let issued = admin::issue_key(&store, &args.user, &spec, &actor(), at).map_err(Failure::from)?;
    hand_over(&issued, &config, &store, global)
}

fn set(args: SetArgs, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let at = now();
    let change = KeyChange {
        name: args.name,
        expires_at: args.expires.map(|end| match end {
            End::At(when) => Some(when.ahead(at)),
            End::Never => None,
        }),
        models: (!args.models.is_empty()).then_some(args.models),
        ips: (!args.ips.is_empty()).then_some(args.ips),
        on_hangup: args.on_hangup.map(Some),
        budgets: values::budget_changes(&args.budgets, &args.no_budgets),
        rates: values::rates_change(args.rpm, args.tpm, args.concurrency),
    };
    let key = admin::change_key(&store, &args.key, &change, &actor(), at).map_err(Failure::from)?;
    show(&store, &key, global)
}

fn rotate(which: &str, grace: SignedDuration, global: &Global) -> anyhow::Result<()> {
    let config = global.settings_as_served()?;
    let store = super::open(&config.database, Create::Never)?;
    let at = now();
    let old_until = When::Span(grace).ahead(at);
    let issued = admin::rotate_key(&store, which, old_until, &actor(), at).map_err(Failure::from)?;
    if !global.json {
        let end = output::time(old_until);
        global.say(&said!(
            language(),
            en: "the old key is valid until {end} UTC",
            zh: "旧密钥的有效期至 {end} UTC",
        ));
    }
    hand_over(&issued, &config, &store, global)
}

/// `key issue --json`.
#[derive(Serialize)]
struct IssuedView<'a> {
    id: String,
    key: &'a str,
    prefix: &'a str,
    user: &'a str,
    name: &'a str,
    expires_at: Option<jiff::Timestamp>,
    url: String,
}

/// The one time the key is shown: it alone on stdout, what to do with it on stderr.
fn hand_over(issued: &Issued, config: &Config, store: &Store, global: &Global) -> anyhow::Result<()> {
    let key = &issued.key;
    let url = config.server.url();
    if global.json {
        let view = IssuedView {
            id: key.id.0.to_string(),
            key: issued.secret.reveal(),
            prefix: &key.prefix,
            user: &key.user_name,
            name: &key.name,
            expires_at: key.expires_at,
            url,
        };
        return print_key(&output::json_text(&view)?, key, store);
    }
    let (language, user, name) = (language(), &key.user_name, output::plain(&key.name));
    let end = match key.expires_at.map(output::time) {
        Some(end) => said!(language, en: "valid until {end} UTC", zh: "有效期至 {end} UTC"),
        None => said!(language, en: "valid until it is revoked", zh: "吊销之前一直有效"),
    };
    global.say(&said!(
        language,
        en: "key '{name}' of {user}, {end}; shown this once, only its hash is kept:",
        zh: "{user} 的密钥 '{name}'，{end}；只显示这一次，仅保存其哈希：",
    ));
    print_key(&format!("{}\n", issued.secret.reveal()), key, store)?;
    global.say(&said!(
        language,
        en: "for Codex, where {user} works (it asks for the key):",
        zh: "用于 Codex，在 {user} 工作的机器上（会询问密钥）：",
    ));
    let program = output::program();
    global.say(&Said::verbatim(format!(
        "  {program} connect codex --url {url} --key-stdin"
    )));
    global.say(&said!(language, en: "for other OpenAI clients:", zh: "用于其他 OpenAI 客户端："));
    global.say(&Said::verbatim(format!(
        "  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=THE_KEY"
    )));
    Ok(())
}

/// Prints a new key. One that nobody can have read is nobody's, and is revoked.
fn print_key(text: &str, key: &Key, store: &Store) -> anyhow::Result<()> {
    let why = match output::print(text) {
        Ok(Pipe::Open) => return Ok(()),
        Ok(Pipe::Closed) => output::unread(),
        Err(error) => Said::verbatim(error.to_string()),
    };
    let (language, prefix) = (language(), &key.prefix);
    let failure = |what, words: String| {
        let failure = Failure::new(Exit::Failed, what).why(why);
        failure.fix(Said::verbatim(command_on(store.path(), &words)))
    };
    let failure = match admin::revoke_key(store, &key.id.0.to_string(), &actor(), now()) {
        Ok(_) => {
            let issue = format!("key issue {}", output::shell_word(&key.user_name));
            let what = said!(
                language,
                en: "the new key {prefix} could not be shown and is revoked: issue another",
                zh: "新密钥 {prefix} 无法显示，已吊销：请另外签发",
            );
            failure(what, issue)
        }
        Err(_) => {
            let what = said!(
                language,
                en: "the new key {prefix} could not be shown and is valid all the same: revoke it",
                zh: "新密钥 {prefix} 无法显示，但仍然有效：请吊销它",
            );
            failure(what, format!("key revoke {prefix}"))
        }
    };
    Err(failure.into())
}

fn restrictions(key: &Key) -> String {
    let parts = [
        (!key.models.is_empty()).then(|| format!("models {}", key.models.join(" "))),
        (!key.ips.is_empty()).then(|| {
            let ips: Vec<String> = key.ips.iter().map(ToString::to_string).collect();
            format!("from {}", ips.join(" "))
        }),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        "-".to_owned()
    } else {
        output::plain(&parts.join(", "))
    }
}

fn show(store: &Store, key: &Key, global: &Global) -> anyhow::Result<()> {
    let at = now();
    let budgets = store.budgets(Spender::Key(key.budgets), at).map_err(Failure::from)?;
    if global.json {
        return output::json(&WithBudgets::new(KeyView::new(key, at), &budgets));
    }
    let time = |at: Option<jiff::Timestamp>| at.map_or("-".to_owned(), output::time);
    let mut lines = vec![
        ("key", key.prefix.clone()),
        ("id", key.id.0.to_string()),
        ("user", key.user_name.clone()),
        ("name", output::plain(&key.name)),
        ("state", output::key_state(key, at).to_owned()),
        ("issued", output::time(key.created_at)),
        ("expires", time(key.expires_at)),
        ("revoked", time(key.revoked_at)),
        ("last used", key.last_used_at.map_or("never".to_owned(), output::time)),
        ("may use", restrictions(key)),
        (
            "on hangup",
            key.on_hangup
                .map_or("as the settings say".to_owned(), |choice| choice.to_string()),
        ),
    ];
    lines.extend(output::rates(key.rates, "as the settings say"));
    lines.extend(budgets.iter().map(output::budget));
    output::fields(&lines)
}

fn list(who: Option<&str>, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let at = now();
    let owner = who
        .map(|who| admin::user(&store, who))
        .transpose()
        .map_err(Failure::from)?;
    let keys = store.keys(owner.map(|user| user.id)).map_err(Failure::from)?;
    if global.json {
        let items = keys.iter().map(|key| KeyView::new(key, at)).collect();
        return output::json(&Items { items });
    }
    let columns = ["key", "user", "name", "state", "last used", "expires", "may use", "id"].map(Column::Left);
    let row = |key: &Key| {
        vec![
            key.prefix.clone(),
            key.user_name.clone(),
            output::plain(&key.name),
            output::key_state(key, at).to_owned(),
            key.last_used_at.map_or("never".to_owned(), output::time),
            key.expires_at.map_or("never".to_owned(), output::time),
            restrictions(key),
            key.id.0.to_string(),
        ]
    };
    output::table(&columns, keys.iter().map(row).collect())
}
