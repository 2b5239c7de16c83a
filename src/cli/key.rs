//! `gateway key …`

use clap::Subcommand;
use ipnet::IpNet;
use jiff::SignedDuration;
use serde::Serialize;

use super::failure::{Exit, Failure, command_on};
use super::output::{self, Column, Items, KeyView, Pipe};
use super::values::{self, When};
use super::{Global, actor};
use crate::admin::{self, Issued, KeySpec};
use crate::config::{Config, OnHangup};
use crate::store::keys::Key;
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
    #[arg(long, value_name = "drain|cancel")]
    on_hangup: Option<OnHangup>,
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
            show(&admin::key(&store, &key).map_err(Failure::from)?, global)
        }
        KeyCommand::Revoke { key } => {
            let store = global.store(Create::Never)?;
            let key = admin::revoke_key(&store, &key, &actor(), now()).map_err(Failure::from)?;
            if global.json {
                return output::json(&KeyView::new(&key, now()));
            }
            global.say(&format!(
                "key {} ({}) of {} is revoked",
                key.prefix,
                output::plain(&key.name),
                key.user_name
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
    };
    let issued = admin::issue_key(&store, &args.user, &spec, &actor(), at).map_err(Failure::from)?;
    hand_over(&issued, &config, &store, global)
}

fn rotate(which: &str, grace: SignedDuration, global: &Global) -> anyhow::Result<()> {
    let config = global.settings_as_served()?;
    let store = super::open(&config.database, Create::Never)?;
    let at = now();
    let old_until = When::Span(grace).ahead(at);
    let issued = admin::rotate_key(&store, which, old_until, &actor(), at).map_err(Failure::from)?;
    if !global.json {
        global.say(&format!("the old key is valid until {} UTC", output::time(old_until)));
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
    let end = match key.expires_at {
        Some(end) => format!("valid until {} UTC", output::time(end)),
        None => "valid until it is revoked".to_owned(),
    };
    global.say(&format!(
        "key '{}' of {}, {end}; shown this once, only its hash is kept:",
        output::plain(&key.name),
        key.user_name
    ));
    print_key(&format!("{}\n", issued.secret.reveal()), key, store)?;
    global.say(&format!(
        "for Codex, where {} works (it asks for the key):",
        key.user_name
    ));
    global.say(&format!(
        "  {} connect codex --url {url} --key-stdin",
        output::program()
    ));
    global.say("for other OpenAI clients:");
    global.say(&format!("  export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY=THE_KEY"));
    Ok(())
}

/// Prints a new key. One that nobody can have read is nobody's, and is revoked.
fn print_key(text: &str, key: &Key, store: &Store) -> anyhow::Result<()> {
    let why = match output::print(text) {
        Ok(Pipe::Open) => return Ok(()),
        Ok(Pipe::Closed) => "nobody reads what this command writes".to_owned(),
        Err(error) => error.to_string(),
    };
    let failure = |what: &str, words: String| {
        let failure = Failure::new(
            Exit::Failed,
            format!("the new key {} could not be shown {what}", key.prefix),
        );
        failure.why(why).fix(command_on(store.path(), &words))
    };
    let failure = match admin::revoke_key(store, &key.id.0.to_string(), &actor(), now()) {
        Ok(_) => {
            let issue = format!("key issue {}", output::shell_word(&key.user_name));
            failure("and is revoked: issue another", issue)
        }
        Err(_) => failure(
            "and is valid all the same: revoke it",
            format!("key revoke {}", key.prefix),
        ),
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

fn show(key: &Key, global: &Global) -> anyhow::Result<()> {
    let at = now();
    if global.json {
        return output::json(&KeyView::new(key, at));
    }
    let time = |at: Option<jiff::Timestamp>| at.map_or("-".to_owned(), output::time);
    output::fields(&[
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
    ])
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
