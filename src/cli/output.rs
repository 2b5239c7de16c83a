//! What commands print: one JSON document, or plain tables; a closed pipe ends them quietly.

use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::Serialize;

use super::language;
use crate::budget::Period;
use crate::language::{Language, Said};
use crate::limits::Rates;
use crate::said;
use crate::store::budgets::Standing;
use crate::store::entries::Entry;
use crate::store::keys::Key;
use crate::store::users::User;

/// Writes to stdout. Who closed the pipe has seen enough: that is no failure.
///
/// # Errors
/// Anything else, such as a full disk.
pub fn print(text: &str) -> anyhow::Result<Pipe> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Pipe::Open),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Pipe::Closed),
        Err(error) => Err(error.into()),
    }
}

/// Writes to stderr. A message that nobody can read stops no work.
pub fn tell(text: &str) {
    io::stderr().lock().write_all(text.as_bytes()).unwrap_or(());
}

/// That what is shown once was shown to nobody.
pub fn unread() -> Said {
    said!(
        language(),
        en: "nobody reads what this command writes",
        zh: "没有人读取此命令的输出",
    )
}

/// Whether somebody still reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pipe {
    /// Yes.
    Open,
    /// No.
    Closed,
}

/// Writes one JSON document.
///
/// # Errors
/// As [`print()`].
pub fn json(document: &impl Serialize) -> anyhow::Result<()> {
    print(&json_text(document)?).map(drop)
}

/// The text of a JSON document as it is written.
///
/// # Errors
/// It cannot be written as JSON.
pub fn json_text(document: &impl Serialize) -> anyhow::Result<String> {
    Ok(format!("{}\n", serde_json::to_string_pretty(document)?))
}

/// A list as a JSON document.
#[derive(Debug, Serialize)]
pub struct Items<T> {
    /// Its elements.
    pub items: Vec<T>,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub enum Column {
    /// Text, from the left.
    Left(&'static str),
    /// Numbers and money, from the right.
    Right(&'static str),
}

/// A plain table.
///
/// # Errors
/// As [`print()`].
pub fn table(columns: &[Column], rows: Vec<Vec<String>>) -> anyhow::Result<()> {
    print(&format!("{}\n", table_text(columns, rows))).map(drop)
}

/// The lines of a plain table, without the end of the last.
pub fn table_text(columns: &[Column], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|column| match column {
        Column::Left(name) | Column::Right(name) => *name,
    }));
    table.add_rows(rows);
    for (column, shown) in columns.iter().zip(table.column_iter_mut()) {
        shown.set_padding((0, 2));
        shown.set_cell_alignment(match column {
            Column::Left(_) => CellAlignment::Left,
            Column::Right(_) => CellAlignment::Right,
        });
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n")
}

/// Names and values, a line each.
///
/// # Errors
/// As [`print()`].
pub fn fields(lines: &[(&str, String)]) -> anyhow::Result<()> {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let text: String = lines
        .iter()
        .map(|(name, value)| format!("{name:<width$}  {value}\n"))
        .collect();
    print(&text).map(drop)
}

/// A time as people read it: `2026-11-24 10:00:00`, UTC.
pub fn time(at: Timestamp) -> String {
    at.to_zoned_datetime(TimeZone::UTC)
        .strftime("%Y-%m-%d %H:%M:%S")
        .to_string()
}

/// A count with separators: `39,901`.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// So many of what is named: `1 price`, `2 prices`.
pub fn counted(n: usize, name: &str) -> String {
    let end = if n == 1 { "" } else { "s" };
    format!("{n} {name}{end}")
}

/// A text of somebody else's for the terminal: control characters, which could move the cursor, are shown as `?`.
pub fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The program as it was started, fit to be pasted: it need not be on the path.
pub fn program() -> String {
    let started = std::env::args_os().next();
    shell_word(&started.map_or_else(|| "gateway".into(), |path| path.to_string_lossy().into_owned()))
}

/// A cell of comma-separated values as RFC 4180 wants it. A text that a spreadsheet would run as a formula gets a quote
/// in front.
pub fn csv_cell(text: &str) -> String {
    let text = match text.chars().next() {
        Some('=' | '+' | '-' | '@') => format!("'{text}"),
        _ => text.to_owned(),
    };
    if text.contains(['"', ',', '\n', '\r']) {
        return format!("\"{}\"", text.replace('"', "\"\""));
    }
    text
}

/// A text as one word of a shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// `user show`.
#[derive(Debug, Serialize)]
pub struct UserView {
    id: String,
    name: String,
    email: Option<String>,
    status: &'static str,
    balance: String,
    credit_line: String,
    held: String,
    available: String,
    /// None of their own: `null`.
    markup: Option<String>,
    /// None of their own: `null`.
    language: Option<&'static str>,
    /// No limit: `null`.
    #[serde(flatten)]
    rates: Rates,
    created_at: Timestamp,
}

impl UserView {
    /// Of a user.
    pub fn new(user: &User) -> UserView {
        UserView {
            id: user.id.0.to_string(),
            name: user.name.clone(),
            email: user.email.clone(),
            status: user.status.name(),
            balance: user.balance.to_string(),
            credit_line: user.credit_line.to_string(),
            held: user.held.to_string(),
            available: user.available().to_string(),
            markup: user.markup.map(|markup| markup.to_string()),
            language: user.language.map(Language::name),
            rates: user.rates,
            created_at: user.created_at,
        }
    }
}

/// A budget, as documents have it.
#[derive(Debug, Serialize)]
pub struct BudgetView {
    period: Period,
    limit: String,
    spent: String,
    held: String,
    left: String,
    resets_at: Option<Timestamp>,
}

impl BudgetView {
    /// Of a budget.
    pub fn new(budget: &Standing) -> BudgetView {
        BudgetView {
            period: budget.period,
            limit: budget.limit.to_string(),
            spent: budget.spent.to_string(),
            held: budget.held.to_string(),
            left: budget.left().to_string(),
            resets_at: budget.resets_at,
        }
    }
}

/// A user or a key, with what is left of its budgets.
#[derive(Debug, Serialize)]
pub struct WithBudgets<V> {
    #[serde(flatten)]
    view: V,
    budgets: Vec<BudgetView>,
}

impl<V> WithBudgets<V> {
    /// Of a view.
    pub fn new(view: V, budgets: &[Standing]) -> WithBudgets<V> {
        WithBudgets {
            view,
            budgets: budgets.iter().map(BudgetView::new).collect(),
        }
    }
}

/// A budget as a line of [`fields`].
pub fn budget(budget: &Standing) -> (&'static str, String) {
    let name = match budget.period {
        Period::Total => "budget",
        Period::Day => "budget a day",
        Period::Month => "budget a month",
    };
    let (limit, left, spent, held) = (budget.limit, budget.left(), budget.spent, budget.held);
    let reset = budget
        .resets_at
        .map_or(String::new(), |at| format!(", whole again at {} UTC", time(at)));
    (
        name,
        format!("{limit:#}, {left:#} left ({spent:#} spent, {held:#} held){reset}"),
    )
}

/// Limits as lines of [`fields`], with what stands for those that are not set.
pub fn rates(rates: Rates, unset: &'static str) -> [(&'static str, String); 3] {
    rates.named().map(|(name, limit)| {
        let name = match name {
            "rpm" => "requests a minute",
            "tpm" => "tokens a minute",
            _ => "calls at once",
        };
        (
            name,
            limit.map_or(unset.to_owned(), |limit| count(u64::from(limit.get()))),
        )
    })
}

/// `key show`.
#[derive(Debug, Serialize)]
pub struct KeyView {
    id: String,
    prefix: String,
    user: String,
    name: String,
    state: &'static str,
    expires_at: Option<Timestamp>,
    revoked_at: Option<Timestamp>,
    models: Vec<String>,
    ips: Vec<String>,
    on_hangup: Option<String>,
    /// Not of its own: `null`.
    #[serde(flatten)]
    rates: Rates,
    created_at: Timestamp,
    last_used_at: Option<Timestamp>,
}

impl KeyView {
    /// Of a key, at a time.
    pub fn new(key: &Key, now: Timestamp) -> KeyView {
        KeyView {
            id: key.id.0.to_string(),
            prefix: key.prefix.clone(),
            user: key.user_name.clone(),
            name: key.name.clone(),
            state: key_state(key, now),
            expires_at: key.expires_at,
            revoked_at: key.revoked_at,
            models: key.models.clone(),
            ips: key.ips.iter().map(ToString::to_string).collect(),
            on_hangup: key.on_hangup.map(|choice| choice.to_string()),
            rates: key.rates,
            created_at: key.created_at,
            last_used_at: key.last_used_at,
        }
    }
}

/// `valid`, `revoked`, `expired`, or that its user is suspended.
pub fn key_state(key: &Key, now: Timestamp) -> &'static str {
    if key.revoked_at.is_some_and(|at| at <= now) {
        "revoked"
    } else if key.expires_at.is_some_and(|at| at <= now) {
        "expired"
    } else if key.user_suspended {
        "user suspended"
    } else {
        "valid"
    }
}

/// `ledger list`.
#[derive(Debug, Serialize)]
pub struct EntryView {
    seq: i64,
    kind: String,
    amount: String,
    balance_after: String,
    exchange: Option<String>,
    refunds: Option<String>,
    reference: Option<String>,
    note: Option<String>,
    at: Timestamp,
    hash: String,
}

impl EntryView {
    /// Of an entry.
    pub fn new(entry: &Entry) -> EntryView {
        EntryView {
            seq: entry.seq,
            kind: entry.kind.clone(),
            amount: entry.amount.to_string(),
            balance_after: entry.balance_after.to_string(),
            exchange: entry.exchange.map(|id| id.0.to_string()),
            refunds: entry.refunds.map(|id| id.0.to_string()),
            reference: entry.reference.clone(),
            note: entry.note.clone(),
            at: entry.at,
            hash: entry.hash.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// What an entry is for: its exchange, its reference, its note.
pub fn about(entry: &Entry) -> String {
    let exchange = entry.exchange.or(entry.refunds).map(|id| id.to_string());
    let parts = [exchange, entry.reference.clone(), entry.note.clone()];
    plain(&parts.into_iter().flatten().collect::<Vec<_>>().join(" · "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_and_numbers_stand_right() {
        let text = table_text(
            &[Column::Left("user"), Column::Right("balance")],
            vec![vec!["alice".into(), "$5.00".into()], vec!["bo".into(), "$12.50".into()]],
        );
        assert_eq!(text, "user   balance\nalice    $5.00\nbo      $12.50");
    }

    #[test]
    fn a_cell_is_neither_split_nor_run() {
        assert_eq!(csv_cell("a,b"), "\"a,b\"");
        assert_eq!(csv_cell("a\"b"), "\"a\"\"b\"");
        assert_eq!(csv_cell("=1+1"), "'=1+1");
    }

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(shell_word("./target/release/gateway"), "./target/release/gateway");
        assert_eq!(shell_word("/my files/it's"), r"'/my files/it'\''s'");
    }

    #[test]
    fn counts_have_separators() {
        for (n, text) in [(0, "0"), (999, "999"), (1_000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(count(n), text);
        }
    }

    #[test]
    fn a_foreign_text_cannot_move_the_cursor() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a?[2Jb?");
    }
}
