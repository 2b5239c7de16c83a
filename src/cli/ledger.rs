//! `gateway ledger …`

use clap::Subcommand;
use serde::Serialize;

use super::failure::{self, Exit, Failure};
use super::output::{self, Column, EntryView, Items};
use super::{Global, language, values};
use crate::admin;
use crate::language::Said;
use crate::said;
use crate::store::Create;
use crate::store::entries::Entry;
use crate::store::seal::Seal;
use crate::store::verify::{Finding, Verification};

/// What to do with the ledger.
#[derive(Debug, Subcommand)]
pub enum LedgerCommand {
    /// The entries of a user's balance, newest first
    List {
        /// Name, e-mail address or id
        user: String,
        /// At most so many
        #[arg(long, default_value_t = 100)]
        limit: u32,
        /// Only entries before this number, to go on from a list
        #[arg(long, value_name = "SEQ")]
        before: Option<i64>,
    },
    /// Recompute every balance, hold and hash; exit code 8 when the books do not balance
    Verify {
        /// What `ledger seal` printed before: also check that entries were only added since
        #[arg(long, value_name = "SEQUENCE:DIGEST", value_parser = values::typed::<Seal>)]
        seal: Option<Seal>,
    },
    /// Print what the ledger is now, in one line; kept elsewhere, it shows later that history was not changed
    Seal,
}

/// Runs the command.
///
/// # Errors
/// The failure, with its exit code.
pub fn run(command: LedgerCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        LedgerCommand::List { user, limit, before } => list(&user, before, limit, global),
        LedgerCommand::Verify { seal } => verify(seal.as_ref(), global),
        LedgerCommand::Seal => seal(global),
    }
}

fn list(who: &str, before: Option<i64>, limit: u32, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let user = admin::user(&store, who).map_err(Failure::from)?;
    let entries = store.entries(user.id, before, limit).map_err(Failure::from)?;
    if global.json {
        let items = entries.iter().map(EntryView::new).collect();
        return output::json(&Items { items });
    }
    let columns = [
        Column::Right("seq"),
        Column::Left("time (UTC)"),
        Column::Left("kind"),
        Column::Right("amount"),
        Column::Right("balance"),
        Column::Left("for"),
    ];
    output::table(&columns, entries.iter().map(row).collect())
}

fn row(entry: &Entry) -> Vec<String> {
    vec![
        entry.seq.to_string(),
        output::time(entry.at),
        entry.kind.clone(),
        format!("{:#}", entry.amount),
        format!("{:#}", entry.balance_after),
        output::about(entry),
    ]
}

/// `ledger verify --json`.
#[derive(Serialize)]
struct VerificationView {
    balanced: bool,
    users: u64,
    entries: u64,
    exchanges: u64,
    open_holds: u64,
    findings: Vec<FindingView>,
}

#[derive(Serialize)]
struct FindingView {
    table: &'static str,
    row: String,
    problem: String,
}

fn verify(seal: Option<&Seal>, global: &Global) -> anyhow::Result<()> {
    let store = global.store(Create::Never)?;
    let found = store.verify_sealed(seal).map_err(Failure::from)?;
    if global.json {
        output::json(&view(&found))?;
    }
    let Some(first) = found.findings.first() else {
        return match global.json {
            true => Ok(()),
            false => output::print(&balanced(&found, seal)).map(drop),
        };
    };
    let language = language();
    let more = match found.findings.len() - 1 {
        0 => Said::default(),
        more => said!(
            language,
            en: " (and {more} more: --json lists them)",
            zh: "（另有 {more} 处：--json 会列出）",
        ),
    };
    let Finding { table, row, problem } = first;
    let what = said!(
        language,
        en: "the books do not balance: table {table}, row {row}: {problem}{more}",
        zh: "账目不平：表 {table}，行 {row}：{problem}{more}",
    );
    Err(Failure::new(Exit::Books, what)
        .why(failure::altered(language))
        .fix(said!(
            language,
            en: "keep a copy of the database before anything else",
            zh: "在做其他任何事之前，先保留一份数据库副本",
        ))
        .into())
}

fn balanced(found: &Verification, seal: Option<&Seal>) -> String {
    let Verification {
        users,
        entries,
        exchanges,
        open_holds,
        ..
    } = found;
    let balance = said!(
        language(),
        en: "the books balance (users {users}, entries {entries}, requests {exchanges}, open holds {open_holds})",
        zh: "账目平衡（用户 {users}，条目 {entries}，请求 {exchanges}，未关闭的预留 {open_holds}）",
    );
    let since = seal.map_or_else(String::new, |Seal { sequence, .. }| {
        let since = said!(
            language(),
            en: "entries were only added since entry {sequence} was sealed",
            zh: "自条目 {sequence} 封存以来，只增加了条目",
        );
        format!("{since}\n")
    });
    format!("{balance}\n{since}")
}

/// `ledger seal --json`.
#[derive(Serialize)]
struct SealView {
    seal: String,
    sequence: i64,
    digest: String,
}

fn seal(global: &Global) -> anyhow::Result<()> {
    let seal = global.store(Create::Never)?.seal().map_err(Failure::from)?;
    let text = seal.to_string();
    if !global.json {
        return output::print(&format!("{text}\n")).map(drop);
    }
    output::json(&SealView {
        sequence: seal.sequence,
        digest: text.rsplit(':').next().unwrap_or_default().to_owned(),
        seal: text,
    })
}

fn view(found: &Verification) -> VerificationView {
    let finding = |finding: &Finding| FindingView {
        table: finding.table,
        row: finding.row.clone(),
        problem: finding.problem.clone(),
    };
    VerificationView {
        balanced: found.findings.is_empty(),
        users: found.users,
        entries: found.entries,
        exchanges: found.exchanges,
        open_holds: found.open_holds,
        findings: found.findings.iter().map(finding).collect(),
    }
}
