//! `gateway code …`

use clap::Subcommand;
use jiff::Timestamp;
use serde::Serialize;

use super::failure::{Exit, Failure};
use super::output::{self, Column, Items, Pipe};
use super::values::{self, When};
use super::{Global, actor, language};
use crate::admin::{self, CodeSpec};
use crate::language::Said;
use crate::money::Usd;
use crate::said;
use crate::store::codes::{CodeState, StoredCode};
use crate::store::{Create, Store};
use crate::time::now;

/// What to do with redemption codes. CODE is an id, or what is shown of a code.
#[derive(Debug, Subcommand)]
pub enum CodeCommand {
    /// Make codes; they are shown this once, one a line
    Create(CreateArgs),
    /// The codes, what became of each, and by whom
    List {
        /// Only those that may be redeemed
        #[arg(long)]
        open: bool,
        /// All of them, as without a flag
        #[arg(long, conflicts_with = "open")]
        all: bool,
    },
    /// Let nobody redeem a code any more
    Revoke {
        /// An id, or what is shown of a code
        code: String,
    },
}

/// `gateway code create`
#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// What each is worth
    #[arg(long, value_name = "USD", allow_negative_numbers = true, value_parser = values::typed::<Usd>)]
    amount: Usd,
    /// How many
    #[arg(long, default_value_t = 1)]
    count: u32,
    /// When they expire: a span such as 90d, or a date (midnight UTC) [default: never]
    #[arg(long, value_name = "90d|DATE", value_parser = When::parse)]
    expires: Option<When>,
    /// A note, for the ledger too
    #[arg(long, value_name = "TEXT")]
    note: Option<String>,
}

/// A code that was just made.
#[derive(Serialize)]
struct Made {
    id: String,
    prefix: String,
    code: String,
    amount: Usd,
    expires_at: Option<Timestamp>,
}

/// `code list`
#[derive(Serialize)]
struct CodeView {
    id: String,
    prefix: String,
    state: &'static str,
    amount: Usd,
    note: Option<String>,
    expires_at: Option<Timestamp>,
    created_at: Timestamp,
    revoked_at: Option<Timestamp>,
    redeemed_at: Option<Timestamp>,
    user: Option<String>,
    entry: Option<i64>,
}

impl CodeView {
    fn new(code: &StoredCode, now: Timestamp) -> CodeView {
        let redeemed = code.redeemed.as_ref();
        CodeView {
            id: code.id.to_string(),
            prefix: code.prefix.clone(),
            state: code.state(now).name(),
            amount: code.amount,
            note: code.note.clone(),
            expires_at: code.expires_at,
            created_at: code.created_at,
            revoked_at: code.revoked_at,
            redeemed_at: redeemed.map(|by| by.at),
            user: redeemed.map(|by| by.user_name.clone()),
            entry: redeemed.map(|by| by.entry),
        }
    }
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: CodeCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        CodeCommand::Create(args) => create(args, global),
        CodeCommand::List { open, all: _ } => list(open, global),
        CodeCommand::Revoke { code } => {
            let store = global.store(Create::Never)?;
            let code = admin::revoke_code(&store, &code, &actor(), now()).map_err(Failure::from)?;
            if global.json {
                return output::json(&CodeView::new(&code, now()));
            }
            let prefix = &code.prefix;
            global.say(&said!(language(), en: "code {prefix} is revoked", zh: "兑换码 {prefix} 已吊销"));
            Ok(())
        }
    }
}

/// The one time the codes are shown: they alone on stdout.
fn create(args: CreateArgs, global: &Global) -> anyhow::Result<()> {
    let at = now();
    let spec = CodeSpec {
        amount: args.amount,
        count: args.count,
        expires_at: args.expires.map(|when| when.ahead(at)),
        note: args.note,
    };
    let store = global.store(Create::Never)?;
    let made = admin::create_codes(&store, &spec, &actor(), at).map_err(Failure::from)?;
    let codes: Vec<StoredCode> = made.iter().map(|(_, code)| code.clone()).collect();
    if global.json {
        let made = made.iter().map(|(secret, code)| Made {
            id: code.id.to_string(),
            prefix: code.prefix.clone(),
            code: secret.reveal(),
            amount: code.amount,
            expires_at: code.expires_at,
        });
        let items = made.collect();
        return hand_over(&output::json_text(&Items { items })?, &codes, &store);
    }
    let lines: String = made.iter().map(|(secret, _)| secret.reveal() + "\n").collect();
    hand_over(&lines, &codes, &store)?;
    let amount = spec.amount;
    global.say(&said!(
        language(),
        en: "shown this once; whoever has a key redeems one: POST /v1/gateway/redeem {{\"code\":\"…\"}} for {amount:#}",
        zh: "只显示这一次；任何持有密钥的人都可兑换一个：POST /v1/gateway/redeem {{\"code\":\"…\"}}，面额 {amount:#}",
    ));
    Ok(())
}

/// Prints new codes. What nobody can have read is nobody's, and is revoked.
fn hand_over(text: &str, codes: &[StoredCode], store: &Store) -> anyhow::Result<()> {
    let why = match output::print(text) {
        Ok(Pipe::Open) => return Ok(()),
        Ok(Pipe::Closed) => output::unread(),
        Err(error) => Said::verbatim(error.to_string()),
    };
    let revoke = |code: &&StoredCode| admin::revoke_code(store, &code.id.to_string(), &actor(), now()).is_err();
    let valid: Vec<&str> = codes.iter().filter(revoke).map(|code| code.prefix.as_str()).collect();
    let what = match valid.is_empty() {
        true => said!(
            language(),
            en: "the new codes could not be shown and are revoked: make others",
            zh: "新的兑换码无法显示，已吊销：请另外制作",
        ),
        false => {
            let valid = valid.join(" ");
            said!(
                language(),
                en: "the new codes could not be shown; revoke them: {valid}",
                zh: "新的兑换码无法显示；请吊销它们：{valid}",
            )
        }
    };
    Err(Failure::new(Exit::Failed, what).why(why).into())
}

fn list(open: bool, global: &Global) -> anyhow::Result<()> {
    let at = now();
    let mut codes = global.store(Create::Never)?.codes().map_err(Failure::from)?;
    codes.retain(|code| !open || code.state(at) == CodeState::Open);
    if global.json {
        let items = codes.iter().map(|code| CodeView::new(code, at)).collect();
        return output::json(&Items { items });
    }
    let columns = [
        Column::Left("code"),
        Column::Left("state"),
        Column::Right("amount"),
        Column::Left("by"),
        Column::Left("made (UTC)"),
        Column::Left("expires (UTC)"),
        Column::Left("note"),
        Column::Left("id"),
    ];
    let row = |code: &StoredCode| {
        vec![
            code.prefix.clone(),
            code.state(at).name().to_owned(),
            format!("{:#}", code.amount),
            code.redeemed
                .as_ref()
                .map_or_else(String::new, |by| by.user_name.clone()),
            output::time(code.created_at),
            code.expires_at.map_or_else(|| "never".to_owned(), output::time),
            output::plain(code.note.as_deref().unwrap_or_default()),
            code.id.to_string(),
        ]
    };
    output::table(&columns, codes.iter().map(row).collect())
}
