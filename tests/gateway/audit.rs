//! The audit log: every act of an operator leaves one row for each thing that it changes, and nothing else leaves any.

use std::collections::BTreeMap;
use std::fs;

use clap::{Command, CommandFactory};
use codex_gateway::cli::Cli;
use codex_gateway::money::Usd;
use serde_json::{Value, json};

use crate::cli::{Home, exchange};

/// What a command does to the books. In the lines, `KEY`, `EXCHANGE` and `CODE` stand for ids.
enum Does {
    /// Nothing: with each of these.
    Reads(&'static [&'static str]),
    /// With each of these it acts, and leaves rows of these actions: `+` before what is new and has no state before it.
    Acts(&'static [(&'static str, &'static [&'static str])]),
    /// It runs or serves something, or works on whole files; what it does to the books has tests of its own.
    Elsewhere,
}

use Does::{Acts, Elsewhere, Reads};

/// Every command, in an order in which each finds what it needs. A new one has to say what it does.
const COMMANDS: &[(&str, Does)] = &[
    (
        "user add",
        Acts(&[
            ("user add bob", &["+user.add"]),
            ("user add eve --balance 3", &["+user.add", "ledger.credit"]),
        ]),
    ),
    (
        "user set",
        Acts(&[
            ("user set bob --markup 1.2", &["user.set"]),
            ("user set bob --budget 5/day", &["+budget.set"]),
            ("user set bob --no-budget day", &["budget.set"]),
        ]),
    ),
    (
        "user suspend",
        Acts(&[("user suspend bob", &["user.status"]), ("user suspend bob", &[])]),
    ),
    ("user activate", Acts(&[("user activate bob", &["user.status"])])),
    (
        "user credit",
        Acts(&[
            ("user credit bob 3 --reference r", &["ledger.credit"]),
            ("user credit bob 3 --reference r", &[]),
            ("user credit bob -1 --adjust", &["ledger.adjust"]),
        ]),
    ),
    ("user list", Reads(&["user list"])),
    ("user show", Reads(&["user show bob"])),
    ("key issue", Acts(&[("key issue bob", &["+key.issue"])])),
    (
        "key set",
        Acts(&[
            ("key set KEY --name desk", &["key.set"]),
            ("key set KEY --budget 5/day", &["+budget.set"]),
        ]),
    ),
    ("key list", Reads(&["key list"])),
    ("key show", Reads(&["key show KEY"])),
    (
        "price set",
        Acts(&[
            ("price set mine --input 1 --output 2", &["+price.set"]),
            ("price set mine --output 3", &["price.set"]),
        ]),
    ),
    (
        "price import",
        Acts(&[("price import prices.json --yes", &["price.set"])]),
    ),
    ("price list", Reads(&["price list"])),
    ("price diff", Reads(&["price diff prices.json"])),
    ("price history", Reads(&["price history mine"])),
    ("price export", Reads(&["price export"])),
    ("price check", Reads(&["price check"])),
    (
        "refund",
        Acts(&[
            ("refund EXCHANGE --amount 0.001", &["ledger.refund"]),
            ("refund EXCHANGE", &["ledger.refund"]),
        ]),
    ),
    (
        "code create",
        Acts(&[("code create --amount 3 --count 2", &["+code.create", "+code.create"])]),
    ),
    ("code list", Reads(&["code list"])),
    (
        "code revoke",
        Acts(&[("code revoke CODE", &["code.revoke"]), ("code revoke CODE", &[])]),
    ),
    ("sink list", Reads(&["sink list"])),
    ("sink test", Elsewhere),
    ("usage", Reads(&["usage --by key"])),
    ("request list", Reads(&["request list"])),
    ("request show", Reads(&["request show EXCHANGE"])),
    ("session list", Reads(&["session list"])),
    ("session show", Reads(&["session show ses-7"])),
    // It does not end by itself.
    ("request tail", Reads(&[])),
    ("ledger list", Reads(&["ledger list alice"])),
    ("ledger verify", Reads(&["ledger verify"])),
    ("ledger seal", Reads(&["ledger seal"])),
    ("statement", Reads(&["statement alice --month 2026-11"])),
    ("audit list", Reads(&["audit list", "audit list --jsonl"])),
    ("config check", Reads(&["config check"])),
    ("config show", Reads(&["config show"])),
    ("config path", Reads(&["config path"])),
    ("doctor", Reads(&["doctor"])),
    ("explain", Reads(&["explain insufficient_quota"])),
    ("healthcheck", Reads(&["healthcheck"])),
    ("completions", Reads(&["completions bash"])),
    ("man", Reads(&["man"])),
    ("key rotate", Acts(&[("key rotate KEY", &["key.rotate", "+key.issue"])])),
    (
        "key revoke",
        Acts(&[("key revoke SPARE", &["key.revoke"]), ("key revoke SPARE", &[])]),
    ),
    ("backup", Elsewhere),
    ("restore", Elsewhere),
    ("serve", Elsewhere),
    ("status", Elsewhere),
    ("top", Elsewhere),
    ("demo", Elsewhere),
    ("codex", Elsewhere),
    ("connect codex", Elsewhere),
    ("connect aider", Elsewhere),
    ("connect continue", Elsewhere),
    ("connect cline", Elsewhere),
    ("connect open-webui", Elsewhere),
    ("connect opencode", Elsewhere),
    ("connect claude-code", Elsewhere),
    ("connect env", Elsewhere),
    ("turn-cost", Elsewhere),
    ("upstream list", Reads(&["upstream list"])),
    ("upstream test", Elsewhere),
    ("upstream simulate", Elsewhere),
];

/// The commands that have none below them: `user add`.
fn leaves(command: &Command, path: &str, found: &mut Vec<String>) {
    let below: Vec<&Command> = command
        .get_subcommands()
        .filter(|below| below.get_name() != "help")
        .collect();
    if below.is_empty() {
        found.push(path.trim_start().to_owned());
    }
    for command in below {
        leaves(command, &format!("{path} {}", command.get_name()), found);
    }
}

/// All acts, and how many transactions there were.
fn books(home: &Home) -> (Vec<Value>, i64) {
    let acts = home.ok("audit list --jsonl");
    let acts = acts
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    #[expect(
        clippy::disallowed_methods,
        reason = "the count as it stands, not as the store reads it"
    )]
    let file = rusqlite::Connection::open(home.database()).expect("it opens");
    let commits = file.query_row("SELECT count FROM commits", [], |row| row.get(0));
    (acts, commits.expect("a count"))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_says_what_it_does_to_the_books_and_does_that() {
    let mut there = Vec::new();
    leaves(&Cli::command(), "", &mut there);
    let mut known: Vec<&str> = COMMANDS.iter().map(|(name, _)| *name).collect();
    there.sort();
    known.sort_unstable();
    assert_eq!(there, known, "every command has to be in the table, and nothing else");

    let home = Home::with_alice();
    let key = home.json("key issue alice")["id"].clone();
    let id = exchange(&home, Usd::ZERO).await;
    let code = home.json("code create --amount 1")["items"][0]["id"].clone();
    let spare = home.json("key issue alice --name spare")["id"].clone();
    let prices = r#"{"mine": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 1e-06,
                              "output_cost_per_token": 2e-06}}"#;
    fs::write(home.path().join("prices.json"), prices).expect("written");
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    names.insert("KEY", key.as_str().expect("an id").to_owned());
    names.insert("SPARE", spare.as_str().expect("an id").to_owned());
    names.insert("CODE", code.as_str().expect("an id").to_owned());
    names.insert("EXCHANGE", id);
    let filled = |line: &str| {
        let name = |line: String, (name, id): (&&str, &String)| line.replace(*name, id);
        names.iter().fold(line.to_owned(), name)
    };
    for (_, does) in COMMANDS {
        let lines: Vec<(&str, Option<&[&str]>)> = match does {
            Reads(lines) => lines.iter().map(|line| (*line, None)).collect(),
            Acts(lines) => lines.iter().map(|(line, actions)| (*line, Some(*actions))).collect(),
            Elsewhere => Vec::new(),
        };
        for (line, actions) in lines {
            let (before, commits) = books(&home);
            // What is read may say by its code that something is wrong.
            let ran = home.run(&filled(line));
            assert!(
                ran.code == 0 || (ran.code != 2 && actions.is_none()),
                "{line}: {}",
                ran.err
            );
            let (after, commits_after) = books(&home);
            let new = &after[before.len()..];
            let mut left: Vec<String> = new.iter().map(told).collect();
            let mut wanted: Vec<String> = actions
                .unwrap_or_default()
                .iter()
                .map(|action| (*action).to_owned())
                .collect();
            left.sort();
            wanted.sort();
            assert_eq!(left, wanted, "{line}");
            if actions.is_none() {
                assert_eq!(commits, commits_after, "{line} writes");
            }
            for act in new {
                assert_ne!(act["before"], act["after"], "{line}: {act}");
                assert!(
                    act["actor"]
                        .as_str()
                        .is_some_and(|actor| actor.starts_with("cli:tester@")),
                    "{act}"
                );
                assert!(act["after"].as_object().is_some_and(|after| !after.is_empty()), "{act}");
            }
        }
    }
    home.ok("ledger verify");
}

/// The action of a row, with `+` when there was no state before it.
fn told(act: &Value) -> String {
    let new = if act["before"].is_null() { "+" } else { "" };
    format!("{new}{}", act["action"].as_str().expect("an action"))
}

#[test]
fn acts_are_listed_with_what_changed_and_by_whom() {
    let home = Home::with_alice();
    home.ok("user credit alice 2");
    home.ok("user suspend alice");
    let text = home.ok("audit list --action user.*");
    assert_eq!(text.lines().count(), 3, "{text}");
    assert!(
        text.lines()
            .last()
            .is_some_and(|line| line.ends_with("status: active → suspended")),
        "{text}"
    );
    let actions = |flags: &str| {
        let list = home.json(&format!("audit list {flags}"));
        let items = list["items"].as_array().expect("acts").iter();
        items
            .map(|act| act["action"].as_str().expect("an action").to_owned())
            .collect::<Vec<_>>()
    };
    let all = ["user.add", "ledger.credit", "ledger.credit", "user.status"];
    assert_eq!(actions(""), all);
    assert_eq!(actions("--subject alice"), all);
    assert_eq!(actions("--limit 2"), all[2..]);
    assert_eq!(actions("--actor cli:tester@* --action ledger.*"), all[1..3]);
    assert_eq!(actions("--since 1h"), all);
    assert!(
        actions("--until 1h").is_empty() && actions("--actor server").is_empty() && actions("--subject x").is_empty()
    );
    let lines = home.ok("audit list --jsonl --limit 1");
    let act: Value = serde_json::from_str(&lines).expect("one document");
    assert_eq!(
        (&act["seq"], &act["before"]["status"], &act["after"]["status"]),
        (&json!(4), &json!("active"), &json!("suspended"))
    );
    assert_eq!(home.ok("audit list --jsonl").lines().count(), 4);
}
