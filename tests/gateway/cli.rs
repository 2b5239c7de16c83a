//! The command line: what commands print, how they fail, and what scripts may rely on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use assert_cmd::Command;
use codex_gateway::call::{Endpoint, HostedTools};
use codex_gateway::config::DiskConfig;
use codex_gateway::hold::{self, Ask, Policy};
use codex_gateway::money::Usd;
use codex_gateway::origin::{Client, Kind, Label, Origin};
use codex_gateway::pricing::{Factor, ListName, SearchTool, Terms, bill};
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Simulator};
use codex_gateway::store::ledger::{CloseHold, Excess, PlaceHold};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use codex_gateway::store::{Create, ExchangeId, Outcome, Store};
use codex_gateway::time::now;
use codex_gateway::usage::{CacheTtl, Tier, Tokens, Usage};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::books::Books;
use crate::client::{MODEL, http};

/// A home folder of its own, and nothing else in the environment.
pub struct Home {
    folder: TempDir,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Home {
    pub fn new() -> Home {
        Home {
            folder: tempfile::tempdir().expect("a folder"),
        }
    }

    /// With a user alice, who has $5.
    pub fn with_alice() -> Home {
        let home = Home::new();
        home.ok("user add alice --balance 5");
        home
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn database(&self) -> PathBuf {
        self.path().join(".local/share/codex-gateway/gateway.db")
    }

    pub fn settings(&self, text: &str) {
        fs::write(self.path().join("gateway.toml"), text).expect("settings written");
    }

    pub fn run_with(&self, line: &str, env: &[(&str, &str)], stdin: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
        command
            .env_clear()
            .env("HOME", self.path())
            .env("USER", "tester")
            .envs(env.iter().copied());
        command
            .current_dir(self.path())
            .args(line.split_whitespace())
            .write_stdin(stdin);
        let output = command.output().expect("the program starts");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        Ran {
            code: output.status.code().expect("an exit code"),
            out: text(output.stdout),
            err: text(output.stderr),
        }
    }

    pub fn run(&self, line: &str) -> Ran {
        self.run_with(line, &[], "")
    }

    pub fn ok(&self, line: &str) -> String {
        let ran = self.run(line);
        assert_eq!(ran.code, 0, "{line}: {}", ran.err);
        ran.out
    }

    /// The one JSON document that is all of stdout.
    pub fn json(&self, line: &str) -> Value {
        let out = self.ok(&format!("{line} --json"));
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{line}: {error}: {out}"))
    }

    /// A failure: its code, at most four lines on stderr, nothing on stdout.
    pub fn fails(&self, line: &str, code: i32) -> String {
        let ran = self.run(line);
        assert_eq!((ran.code, ran.out.as_str()), (code, ""), "{line}: {}", ran.err);
        assert!(ran.err.starts_with("error: "), "{line}: {}", ran.err);
        assert!(ran.err.lines().count() <= 4, "{line}: {}", ran.err);
        ran.err
    }

    fn balance(&self, user: &str) -> Value {
        self.json(&format!("user show {user}"))["balance"].clone()
    }
}

#[test]
fn only_user_add_makes_a_database_and_others_name_the_path_they_looked_at() {
    let home = Home::new();
    for line in [
        "user list",
        "user credit alice 5",
        "key issue alice",
        "key list",
        "price list",
        "price check",
        "usage",
        "request list",
        "ledger list alice",
        "ledger verify",
        "ledger seal",
    ] {
        let error = home.fails(line, 5);
        assert!(
            error.contains(home.database().to_str().expect("text")),
            "{line}: {error}"
        );
        assert!(!home.database().exists(), "{line}");
    }
    home.ok("user add alice");
    assert!(home.database().exists());
}

#[cfg(unix)]
#[test]
fn the_database_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let home = Home::with_alice();
    let mode = fs::metadata(home.database()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_database_is_named_by_flag_variable_and_settings_in_this_order() {
    let home = Home::new();
    let path = |line: &str, env: &[(&str, &str)]| {
        let ran = home.run_with(&format!("config path --json {line}"), env, "");
        let paths: Value = serde_json::from_str(&ran.out).expect("JSON");
        paths["database"].as_str().expect("a path").to_owned()
    };
    let variable: &[(&str, &str)] = &[("GATEWAY_DATABASE__PATH", "/from/variable.db")];
    assert_eq!(
        path("", &[("XDG_DATA_HOME", "/data")]),
        "/data/codex-gateway/gateway.db"
    );
    home.settings("[database]\npath = \"/from/file.db\"\n");
    assert_eq!(path("", &[]), "/from/file.db");
    assert_eq!(path("", variable), "/from/variable.db");
    assert_eq!(path("--database /from/flag.db", variable), "/from/flag.db");
}

#[test]
fn a_user_is_added_once_and_found_by_name_address_and_id() {
    let home = Home::new();
    let added = home.json("user add alice --email alice@example.com --balance $5 --credit-line 0.25");
    assert_eq!(
        (
            &added["name"],
            &added["balance"],
            &added["credit_line"],
            &added["held"],
            &added["available"]
        ),
        (
            &json!("alice"),
            &json!("5"),
            &json!("0.25"),
            &json!("0"),
            &json!("5.25")
        )
    );
    let id = added["id"].as_str().expect("an id");
    for who in ["alice", "alice@example.com", id] {
        assert_eq!(home.json(&format!("user show {who}"))["id"], added["id"], "{who}");
    }
    assert!(home.fails("user add alice", 6).contains("already a user 'alice'"));
    assert!(
        home.fails("user add bob --email alice@example.com", 6)
            .contains("alice@example.com")
    );
    assert!(home.fails("user show alcie", 5).contains("near  alice"));
    assert_eq!(home.json("user list")["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn what_cannot_be_meant_is_wrong_usage() {
    let home = Home::with_alice();
    for line in [
        "user add a@b.example",
        "user add bob --balance -1",
        "user add bob --balance 0.0000000001",
        "user add bob --balance 1e3",
        "user add 0190f0a0-0000-7000-8000-000000000000",
        "user credit alice 0",
        "user credit alice five",
        "user add",
        "user",
        "nonsense",
        "key issue alice --expires yesterday",
        "key issue alice --expires 2020-01-01",
        "key issue alice --ip ten",
        "key issue alice --on-hangup wait",
        "price set m --input -1 --output 1",
        "usage --by colour",
        "usage --csv --json",
        "usage --since 2026-02-01 --until 2026-01-01",
        "usage --since 1d --until 2d",
        "request list --since 2026-02-01 --until 2026-01-01",
    ] {
        let ran = home.run(line);
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{line}: {}", ran.err);
    }
    assert_eq!(home.json("user list")["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn the_same_reference_credits_once() {
    let home = Home::with_alice();
    let first = home.json("user credit alice 2.50 --reference invoice-7 --note thanks");
    let again = home.json("user credit alice 2.50 --reference invoice-7");
    assert_eq!((&first["repeated"], &again["repeated"]), (&json!(false), &json!(true)));
    assert_eq!(first["entry"]["seq"], again["entry"]["seq"]);
    assert_eq!(home.balance("alice"), "7.5");
    home.fails("user credit alice 3 --reference invoice-7", 6);
    assert_eq!(home.balance("alice"), "7.5");
}

#[test]
fn money_is_only_taken_out_by_an_adjustment() {
    let home = Home::with_alice();
    let error = home.fails("user credit alice -1", 4);
    assert!(error.contains("gateway user credit alice -1 --adjust"), "{error}");
    home.ok("user credit alice -1 --adjust");
    assert_eq!(home.balance("alice"), "4");
    assert!(
        home.fails("user credit alice -4.000000001 --adjust", 4)
            .contains("take out at most 4\n")
    );
    let entries = home.json("ledger list alice");
    let amounts: Vec<&Value> = entries["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|entry| &entry["amount"])
        .collect();
    assert_eq!(amounts, [&json!("-1"), &json!("5")]);
}

#[test]
fn a_credit_line_is_not_paid_out() {
    let home = Home::new();
    home.ok("user add alice --balance 5 --credit-line 10");
    let error = home.fails("user credit alice -6 --adjust", 4);
    assert!(error.contains("take out at most 5\n"), "{error}");
    home.ok("user credit alice -5 --adjust");
    let error = home.fails("user credit alice -1 --adjust", 4);
    assert!(error.contains("a credit line is not paid out"), "{error}");
    assert_eq!(home.json("user show alice")["available"], "10");
}

#[test]
fn an_amount_that_no_balance_holds_is_refused_with_the_largest() {
    let home = Home::with_alice();
    for line in [
        "user add bob --balance 4000000000.000000001",
        "user add bob --credit-line 9000000000",
        "user add bob --balance -5",
        "user add bob --credit-line -5",
    ] {
        let error = home.fails(line, 2);
        assert!(error.contains("from 0 to 4000000000\n"), "{line}: {error}");
    }
    let error = home.fails("user credit alice 4000000000", 2);
    assert!(error.contains("credit at most 3999999995\n"), "{error}");
    home.ok("user credit alice 3999999995");
    home.ok("user add bob --balance 4000000000 --credit-line 4000000000");
    assert_eq!(home.json("user show bob")["available"], "8000000000");
    assert_eq!(home.json("ledger verify")["balanced"], true);
}

#[test]
fn a_key_is_shown_once_and_never_again() {
    let home = Home::with_alice();
    let issued =
        home.json("key issue alice --name laptop --expires 30d --model gpt-* --ip 10.0.0.0/8 --on-hangup cancel");
    let key = issued["key"].as_str().expect("a key");
    assert!(key.starts_with("sk-gw-") && key.starts_with(issued["prefix"].as_str().expect("a prefix")));
    assert_eq!((&issued["user"], &issued["name"]), (&json!("alice"), &json!("laptop")));
    let shown = home.json(&format!("key show {}", issued["id"].as_str().expect("an id")));
    assert_eq!(
        (&shown["models"], &shown["ips"], &shown["on_hangup"], &shown["state"]),
        (
            &json!(["gpt-*"]),
            &json!(["10.0.0.0/8"]),
            &json!("cancel"),
            &json!("valid")
        )
    );
    for line in ["key list", "key list --json", "key show laptop --json"] {
        let ran = home.run(line);
        assert!(!ran.out.contains(key) && !ran.err.contains(key), "{line}");
    }
    let stored = fs::read(home.database()).expect("the database");
    assert!(
        !stored.windows(key.len()).any(|part| part == key.as_bytes()),
        "only its hash is kept"
    );
}

#[test]
fn a_key_that_could_not_be_shown_is_nobodys() {
    let home = Home::with_alice();
    let (reader, closed) = std::io::pipe().expect("a pipe");
    drop(reader);
    let full = fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux has it");
    let nowhere: [(&str, Stdio); 3] = [
        ("key issue alice", full.try_clone().expect("a second one").into()),
        ("key issue alice --json", closed.into()),
        ("key rotate alice --grace 1h", full.into()),
    ];
    for (line, stdout) in nowhere {
        let line = match line.contains("rotate") {
            true => line.replace(
                "alice",
                home.json("key issue alice")["prefix"].as_str().expect("a prefix"),
            ),
            false => line.to_owned(),
        };
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
        command.env_clear().env("HOME", home.path()).current_dir(home.path());
        let ran = command
            .args(line.split(' '))
            .stdout(stdout)
            .output()
            .expect("the program starts");
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{line}: {said}");
        assert!(said.contains("could not be shown and is revoked"), "{line}: {said}");
        assert!(
            said.contains("--database") && said.contains("key issue alice"),
            "{line}: {said}"
        );
    }
    let keys = home.json("key list alice");
    let states = keys["items"]
        .as_array()
        .expect("keys")
        .iter()
        .map(|key| key["state"].as_str());
    let mut states: Vec<_> = states.map(|state| state.expect("a state")).collect();
    states.sort_unstable();
    assert_eq!(
        states,
        ["revoked", "revoked", "revoked", "valid"],
        "what was rotated has an hour"
    );
    let shown = home.ok(&format!(
        "key show {}",
        keys["items"][0]["prefix"].as_str().expect("a prefix")
    ));
    let used = shown.lines().find_map(|line| line.strip_prefix("last used"));
    assert_eq!(used.map(str::trim), Some("never"), "{shown}");
}

#[test]
fn a_key_alone_stands_on_stdout_and_what_to_do_with_it_on_stderr() {
    let home = Home::with_alice();
    let ran = home.run("key issue alice");
    let key = ran.out.strip_suffix('\n').expect("one line");
    assert!(key.starts_with("sk-gw-") && !key.contains(char::is_whitespace), "{key}");
    let program = env!("CARGO_BIN_EXE_gateway");
    let paste = format!("  {program} connect codex --url http://127.0.0.1:8080 --key-stdin\n");
    assert!(ran.err.contains(&paste), "as it was started: {}", ran.err);
    let quiet = home.run("key issue alice --quiet");
    assert_eq!(quiet.err, "");
    let names = home.json("key list alice");
    let names: Vec<&Value> = names["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|key| &key["name"])
        .collect();
    assert!(
        names.contains(&&json!("key 1")) && names.contains(&&json!("key 2")),
        "{names:?}"
    );
}

#[test]
fn a_key_is_revoked_by_prefix_and_a_wrong_one_names_the_nearest() {
    let home = Home::with_alice();
    let issued = home.json("key issue alice");
    let prefix = issued["prefix"].as_str().expect("a prefix");
    home.ok(&format!("key revoke {prefix}"));
    home.ok(&format!("key revoke {prefix}"));
    assert_eq!(home.json(&format!("key show {prefix}"))["state"], "revoked");
    let wrong = format!("{}!", &prefix[..prefix.len() - 1]);
    assert!(home.fails(&format!("key show {wrong}"), 5).contains(prefix));
    home.fails(&format!("key rotate {prefix}"), 4);
    let secret = issued["key"].as_str().expect("a key");
    let typo = format!("sk-gw-0{}", &secret["sk-gw-".len()..]);
    let error = home.fails(&format!("key show {typo}"), 5);
    assert!(
        !error.contains(&secret[20..]),
        "a key is not repeated in messages: {error}"
    );
}

#[test]
fn the_start_of_a_keys_prefix_will_do_as_long_as_it_is_one_keys() {
    let home = Home::with_alice();
    let first = home.json("key issue alice --name laptop");
    let shown = first["prefix"].as_str().expect("a prefix");
    let start = &shown[..shown.len() - 3];
    assert_eq!(home.json(&format!("key show {start}"))["id"], first["id"]);
    home.json("key issue alice --name desk");
    let error = home.fails("key show sk-gw-", 2);
    assert!(
        error.contains("alice/laptop") && error.contains("alice/desk"),
        "{error}"
    );
}

#[test]
fn a_rotated_key_keeps_its_permissions_and_its_grace() {
    let home = Home::with_alice();
    let old = home.json("key issue alice --name laptop --model gpt-4o");
    let old_id = old["id"].as_str().expect("an id");
    let new = home.json(&format!("key rotate {old_id} --grace 1h"));
    assert_ne!(old["key"], new["key"]);
    let shown = |id: &Value| home.json(&format!("key show {}", id.as_str().expect("an id")));
    assert_eq!(
        (&shown(&new["id"])["models"], &shown(&new["id"])["name"]),
        (&json!(["gpt-4o"]), &json!("laptop"))
    );
    assert_eq!(shown(&old["id"])["state"], "valid");
    assert!(shown(&old["id"])["expires_at"].is_string(), "the grace ends");
    let third = home.json(&format!("key rotate {}", new["id"].as_str().expect("an id")));
    assert_eq!(shown(&new["id"])["state"], "expired", "without a grace at once");
    assert_eq!(shown(&third["id"])["state"], "valid");
}

#[test]
fn a_key_is_rotated_once_and_its_heir_has_its_own_end() {
    let home = Home::with_alice();
    let old = home.json("key issue alice --expires 2099-01-01");
    let id = |of: &Value| of["id"].as_str().expect("an id").to_owned();
    let heir = home.json(&format!("key rotate {} --grace 1h", id(&old)));
    assert_eq!(heir["expires_at"], "2099-01-01T00:00:00Z");
    let error = home.fails(&format!("key rotate {} --grace 1h", id(&old)), 4);
    assert!(error.contains("has been rotated before"), "{error}");
    let ran = home.run(&format!("key rotate {}", id(&heir)));
    assert!(ran.err.contains("valid until 2099-01-01 00:00:00 UTC"), "{}", ran.err);
    assert!(home.run("key issue alice").err.contains("valid until it is revoked"));
}

#[test]
fn a_suspended_user_is_shown_as_such() {
    let home = Home::with_alice();
    home.ok("key issue alice");
    home.ok("user suspend alice");
    assert_eq!(home.json("user show alice")["status"], "suspended");
    assert_eq!(home.json("key list")["items"][0]["state"], "user suspended");
    home.ok("user activate alice");
    assert_eq!(home.json("user show alice")["status"], "active");
    home.fails("user suspend alcie", 5);
}

fn rates(home: &Home, model: &str) -> Value {
    home.json(&format!("price list {model}"))["items"][0]["price"]["rates"].clone()
}

#[test]
fn prices_are_set_over_what_there_is_and_like_another() {
    let home = Home::with_alice();
    let first = home.json("price set mine --input 2.5 --cached-input 0.25 --output 10");
    assert_eq!(first["items"][0]["before"], Value::Null);
    let second = home.json("price set mine --output 12");
    assert_eq!(
        second["items"].as_array().map(Vec::len),
        Some(1),
        "only what differs is shown"
    );
    assert_eq!(
        (&second["items"][0]["field"], &second["items"][0]["before"]),
        (&json!("rates.output"), &json!("10"))
    );
    assert_eq!(
        rates(&home, "mine"),
        json!({"input":"2.5","cached_input":"0.25","output":"12"})
    );
    home.ok("price set other --like openai:mine --input 3 --list elsewhere");
    assert_eq!(rates(&home, "other")["input"], "3");
    assert_eq!(home.json("price list other")["items"][0]["list"], "elsewhere");
    assert!(home.fails("price set more --like mime", 5).contains("near  mine"));
    assert!(home.fails("price set half --input 1", 2).contains("output"));
    assert!(home.fails("price list mime", 5).contains("near  mine"));
}

#[test]
fn the_operators_price_wins_over_the_catalogue() {
    let home = Home::with_alice();
    assert_eq!(
        home.json("price list gpt-4o --list openai")["items"][0]["source"],
        "catalogue"
    );
    home.ok("price set gpt-4o --input 1.75");
    let row = &home.json("price list gpt-4o --list openai")["items"][0];
    assert_eq!(
        (&row["source"], &row["price"]["rates"]["input"]),
        (&json!("operator"), &json!("1.75"))
    );
    assert_eq!(row["price"]["rates"]["output"], "10", "what was not given stays");
}

#[test]
fn a_price_equal_to_the_catalogues_can_be_pinned() {
    let home = Home::with_alice();
    let pinned = home.json("price set gpt-4o --input 2.5");
    assert_eq!(
        (&pinned["items"][0]["field"], &pinned["items"][0]["after"]),
        (&json!("by"), &json!("operator"))
    );
    assert_eq!(
        home.json("price list gpt-4o --list openai")["items"][0]["source"],
        "operator"
    );
    assert!(home.run("price set gpt-4o --input 2.5").err.contains("nothing differs"));
    let other = Home::with_alice();
    let moved = other.run_with("price import - --yes --json", &[], &home.ok("price export"));
    let moved: Value = serde_json::from_str(&moved.out).expect("JSON");
    assert_eq!(
        moved["items"].as_array().map(Vec::len),
        Some(1),
        "the pin moves, the catalogue does not: {moved}"
    );
}

#[test]
fn an_export_holds_what_was_and_what_will_be() {
    let home = Home::with_alice();
    for (from, rate) in [("2026-01-01", "1"), ("2026-02-01", "2"), ("2099-01-01", "1")] {
        home.ok(&format!("price set mine --input {rate} --output 1 --from {from}"));
    }
    let export = home.ok("price export");
    assert!(
        home.run_with("price import -", &[], &export)
            .err
            .contains("nothing differs")
    );
    let other = Home::with_alice();
    other.ok("price set mine --input 1 --output 1 --from 2025-01-01");
    assert_eq!(other.run_with("price import - --yes", &[], &export).code, 0);
    let mine = |home: &Home| {
        let all: Value = serde_json::from_str(&home.ok("price export")).expect("JSON");
        let rows = all["prices"].as_array().expect("a list").iter();
        let mine = rows.filter(|row| row["model"] == "mine");
        mine.map(|row| (row["from"].clone(), row["price"]["rates"]["input"].clone()))
            .collect::<Vec<_>>()
    };
    let (theirs, ours) = (mine(&other), mine(&home));
    assert_eq!(
        theirs[1..],
        ours[1..],
        "what is the same since 2025 need not be there twice"
    );
    assert_eq!(ours.len(), 3);
    let third = Home::with_alice();
    assert_eq!(
        third
            .run_with("price import - --yes --from 2026-03-01 --list openai", &[], &export)
            .code,
        0
    );
    assert_eq!(mine(&third), [(json!("2026-03-01T00:00:00Z"), json!("2"))]);
}

#[test]
fn what_is_typed_wrong_is_told_in_our_words() {
    let home = Home::with_alice();
    home.settings("[[upstream]]\nname = \"u\"\nbase_url = \"http://127.0.0.1:9\"\n");
    let negative = home.fails("price set m --input -1 --output 1", 2);
    assert!(
        negative.contains("'--input <USD>'") && !negative.contains("use '--"),
        "{negative}"
    );
    let address = home.fails("serve --listen foo", 2);
    assert!(
        address.contains("'--listen <ADDR>'") && address.contains("write IP:PORT"),
        "{address}"
    );
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address");
    for command in ["serve", "upstream simulate"] {
        let error = home.fails(&format!("{command} --listen {addr}"), 1);
        let again = format!("{} {command} --listen 127.0.0.1:0", env!("CARGO_BIN_EXE_gateway"));
        assert!(
            error.contains(&format!("cannot listen on {addr}")) && error.contains(&again),
            "{error}"
        );
    }
}

#[test]
fn an_import_shows_the_differences_and_writes_only_with_consent() {
    let home = Home::with_alice();
    home.ok("price set mine --input 2.5 --output 10");
    let export = home.ok("price export");
    assert!(
        home.run_with("price import -", &[], &export)
            .err
            .contains("nothing differs")
    );
    fs::write(home.path().join("map.json"), LITELLM).expect("written");
    let shown = home.run("price import map.json");
    assert_eq!(shown.code, 2, "{}", shown.err);
    assert!(
        shown.out.contains("gpt-new") && shown.out.contains("0.075"),
        "{}",
        shown.out
    );
    assert!(shown.err.contains("nothing was written; add --yes"), "{}", shown.err);
    assert!(shown.err.contains("left out gpt-odd"), "{}", shown.err);
    home.fails("price list gpt-new", 5);
    let none = home.run("price import map.json --list groq");
    assert_eq!((none.code, none.out.as_str()), (5, ""), "{}", none.err);
    assert!(
        none.err.contains("list 'groq'") && none.err.contains("one of openai"),
        "{}",
        none.err
    );
    let written = home.run("price import map.json --yes");
    assert!(written.err.contains("\n1 price written"), "{}", written.err);
    assert_eq!(
        rates(&home, "gpt-new"),
        json!({"input":"0.3","cached_input":"0.075","output":"1.2"})
    );
    assert!(home.run("price import map.json --yes").err.contains("nothing differs"));
    let other = Home::with_alice();
    other.run_with("price import - --yes", &[], &home.ok("price export"));
    assert_eq!(
        other.json("price list gpt-new")["items"][0]["price"],
        home.json("price list gpt-new")["items"][0]["price"]
    );
}

/// A price map in LiteLLM's form, its numbers as JSON writers print them.
const LITELLM: &str = r#"{"gpt-new":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":3e-07,
    "cache_read_input_token_cost":7.5e-08,"output_cost_per_token":0.0000012},
  "gpt-odd":{"litellm_provider":"openai","mode":"chat","input_cost_per_token":3e-07,"output_cost_per_token":3e-07,
    "output_cost_per_dream":1e-06}}"#;

#[test]
fn an_import_that_is_no_price_list_is_refused() {
    let home = Home::with_alice();
    home.fails("price import nowhere.json", 5);
    for (name, text) in [
        ("a.json", "{}"),
        ("b.json", "not JSON"),
        (
            "c.json",
            r#"{"prices":[{"list":"openai","model":"m","from":"2026-01-01T00:00:00Z","price":{"kind":"text","rates":{"input":1}}}]}"#,
        ),
    ] {
        fs::write(home.path().join(name), text).expect("written");
        assert!(
            home.fails(&format!("price import {name} --yes"), 2)
                .contains("nothing was imported"),
            "{name}"
        );
    }
}

#[test]
fn price_check_names_configured_models_without_a_price() {
    let home = Home::with_alice();
    home.settings(
        "[[upstream]]\nname = \"local\"\nbase_url = \"http://127.0.0.1:9/v1\"\nmodels = [\"mine\", \"own-*\"]\naliases = { fast = \"mini\" }\n",
    );
    let ran = home.run("price check --json");
    let found: Value = serde_json::from_str(&ran.out).expect("JSON");
    let models: Vec<&Value> = found["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|item| &item["model"])
        .collect();
    assert_eq!(
        (ran.code, models),
        (1, vec![&json!("mine"), &json!("own-*"), &json!("mini")])
    );
    for model in ["mine", "own-1", "mini"] {
        home.ok(&format!("price set {model} --input 1 --output 2"));
    }
    assert!(home.ok("price check").contains("every configured model has a price"));
    assert_eq!(
        home.json("price list mine")["items"][0]["list"],
        "local",
        "the first upstream's list"
    );
}

#[test]
fn a_price_list_that_there_is_not_is_told() {
    let home = Home::with_alice();
    for line in [
        "price list --list openia",
        "price list gpt-4o --list openia",
        "price export --list openia",
    ] {
        let error = home.fails(line, 5);
        assert!(
            error.contains("no price list 'openia'") && error.contains("near  openai"),
            "{line}: {error}"
        );
    }
    home.ok("price set mine --list own --input 1 --output 1 --from 2099-01-01");
    assert_eq!(
        home.json("price list --list own")["items"],
        json!([]),
        "it has none yet"
    );
}

#[test]
fn without_an_upstream_there_is_no_price_to_check() {
    let home = Home::with_alice();
    assert_eq!(
        home.ok("price check"),
        "no upstream is configured, so there is nothing to check\n"
    );
    assert_eq!(home.json("price check")["items"], json!([]));
}

#[test]
fn settings_that_are_not_valid_are_a_document_too_and_their_place_is_still_shown() {
    let home = Home::new();
    home.settings("[billing]\nmark_up = 1.04\n");
    let ran = home.run("config check --json");
    let checked: Value = serde_json::from_str(&ran.out).expect("one document");
    assert_eq!((ran.code, &checked["valid"]), (3, &json!(false)));
    let error = checked["error"].as_str().expect("an error");
    assert!(
        error.contains("gateway.toml:2:1") && error.contains("did you mean `markup`?"),
        "{error}"
    );
    assert!(home.ok("config path").contains("gateway.toml"));
    let paths = home.json("config path");
    assert_eq!(
        (&paths["config"], &paths["database"]),
        (&json!("gateway.toml"), &Value::Null)
    );
    home.settings("[billing]\nmark_up = 1.04\nhold_share = 2\n[[upstream]]\nname = \"u\"\n");
    let all = home.run("config check");
    assert_eq!(all.code, 3);
    for place in [":2:1: ", ":3:14: ", ":4:1: "] {
        assert!(all.err.contains(&format!("gateway.toml{place}")), "{place} {}", all.err);
    }
    home.settings("");
    assert_eq!(home.json("config check")["error"], Value::Null);
}

#[test]
fn a_relative_path_of_the_database_is_shown_as_a_whole() {
    let home = Home::new();
    let here = fs::canonicalize(home.path()).expect("a folder");
    let whole = |name: &str| json!(here.join(name));
    let of = |line: &str, env: &[(&str, &str)]| {
        let ran = home.run_with(line, env, "");
        serde_json::from_str::<Value>(&ran.out).expect("JSON")
    };
    let variable: &[(&str, &str)] = &[("GATEWAY_DATABASE__PATH", "a.db")];
    assert_eq!(of("config path --json", variable)["database"], whole("a.db"));
    assert_eq!(
        of("config path --json --database b.db", variable)["database"],
        whole("b.db")
    );
    let shown = of("config show --json", variable);
    let mut items = shown["items"].as_array().expect("a list").iter();
    assert_eq!(
        items.find(|item| item["key"] == "database.path").expect("there")["value"],
        whole("a.db")
    );
    fs::create_dir(home.path().join("sub")).expect("a folder");
    fs::write(home.path().join("sub/own.toml"), "[database]\npath = \"c.db\"\n").expect("written");
    assert_eq!(
        of("config path --json --config sub/own.toml", &[])["database"],
        whole("sub/c.db")
    );
}

#[test]
fn what_cannot_be_done_says_what_can() {
    let home = Home::with_alice();
    fs::write(
        home.path().join("text"),
        "not a database, and longer than a header of one".repeat(9),
    )
    .expect("written");
    fs::create_dir(home.path().join("folder")).expect("a folder");
    for (line, code, fix) in [
        ("user list --database folder", 1, "--database FILE"),
        ("user list --database text", 1, "--database FILE"),
        ("user add bob --database /proc/x/y.db", 1, "a folder you may write to"),
        ("price import nowhere.json", 5, "price export"),
    ] {
        let error = home.fails(line, code);
        assert!(error.contains("\n  fix   ") && error.contains(fix), "{line}: {error}");
    }
    let far = home.run("user add bob --xyz 5");
    assert!(far.code == 2 && !far.err.contains("--quiet"), "{}", far.err);
    let near = home.run("user add bob --balence 5");
    assert!(near.code == 2 && near.err.contains("'--balance'"), "{}", near.err);
}

#[test]
fn a_setting_that_is_not_valid_is_told_with_position_and_nearest_name() {
    let home = Home::with_alice();
    home.settings("# mine\n[billing]\nmark_up = 1.04\n");
    for line in ["config check", "user list"] {
        assert_eq!(
            home.fails(line, 3),
            "error: the settings are not valid: gateway.toml:3:1: unknown key `mark_up` in [billing]\n  3 │ mark_up = 1.04\n    │ ^^^^^^^\n  fix   did you mean `markup`?\n"
        );
    }
    home.settings("[server]\nlisten = \"here\"\n");
    assert!(home.fails("config show", 3).contains("gateway.toml:2:10"));
    home.settings("[server\n");
    assert!(home.fails("config check", 3).contains("gateway.toml:1:"));
    home.settings("");
    let ran = home.run_with("config check", &[("GATEWAY_SERVER__LISTEM", "x")], "");
    assert_eq!(ran.code, 3);
    assert!(ran.err.contains("did you mean GATEWAY_SERVER__LISTEN?"), "{}", ran.err);
    assert!(
        home.fails("config check --config nowhere.toml", 3)
            .contains("nowhere.toml")
    );
}

#[test]
fn settings_are_shown_with_their_origin_and_without_their_secrets() {
    let home = Home::new();
    home.settings(
        "[[upstream]]\nname = \"own\"\nbase_url = \"https://x.example/v1\"\napi_key = \"sk-topsecret\"\nproxy = \"http://me:sk-topsecret@p\"\nheaders = { x-team = \"sk-topsecret\" }\n",
    );
    let env: &[(&str, &str)] = &[("GATEWAY_LOG__LEVEL", "warn"), ("OPENAI_API_KEY", "sk-topsecret")];
    for line in [
        "config show",
        "config show --json",
        "config check",
        "config check --json",
        "config show -vv",
    ] {
        let ran = home.run_with(line, env, "");
        assert_eq!(ran.code, 0, "{line}: {}", ran.err);
        assert!(
            !ran.out.contains("topsecret") && !ran.err.contains("topsecret"),
            "{line}"
        );
    }
    let ran = home.run_with("config show --json", env, "");
    let shown: Value = serde_json::from_str(&ran.out).expect("JSON");
    let origin = |key: &str| {
        let items = shown["items"].as_array().expect("a list");
        items.iter().find(|item| item["key"] == key).expect(key)["origin"].clone()
    };
    assert_eq!(origin("log.level"), "GATEWAY_LOG__LEVEL");
    assert_eq!(origin("upstream.own.api_key"), "gateway.toml:4");
    assert_eq!(origin("server.listen"), "default");
}

#[test]
fn a_missing_secret_stops_the_check_but_no_other_command() {
    let home = Home::with_alice();
    home.settings("[[upstream]]\nname = \"own\"\nbase_url = \"https://x.example/v1\"\napi_key = \"env:NOPE\"\n");
    assert!(home.fails("config check", 3).contains("the variable NOPE is not set"));
    home.ok("user list");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let home = Home::with_alice();
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
        .env_clear()
        .env("HOME", home.path())
        .args(["price", "export"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A program with its stdout and its stderr on pipes.
pub fn piped(home: &Home, line: &str) -> Child {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"));
    program.env_clear().env("HOME", home.path()).env("USER", "tester");
    program.current_dir(home.path()).args(line.split_whitespace());
    let child = program
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    child.spawn().expect("the program starts")
}

/// The exit code of a program that is asked to stop; it has to end in time.
pub async fn stopped(mut child: Child) -> Option<i32> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), Signal::TERM).expect("the signal is sent");
    for _ in 0..2_000 {
        if let Some(status) = child.try_wait().expect("a child") {
            return status.code();
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    child.kill().and_then(|()| child.wait()).expect("ended");
    None
}

/// Where a server says that it listens.
pub fn served_at(child: &mut Child) -> String {
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().expect("a pipe"));
    out.read_line(&mut line).expect("text");
    line.trim_end()
        .strip_prefix("listening on ")
        .expect("an address")
        .to_owned()
}

/// Settings with a simulated upstream.
pub async fn simulated(home: &Home) -> Simulator {
    let anywhere = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let simulator = Simulator::start(anywhere, standard(Pace::default()), Options::default());
    let simulator = simulator.await.expect("a free port");
    home.settings(&format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"first\"\nbase_url = \"{}\"\nprices = \"openai\"\n",
        simulator.base_url()
    ));
    simulator
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_messages_nobody_reads_serves_settles_and_stops() {
    let home = Home::with_alice();
    let _simulator = simulated(&home).await;
    let key = home.json("key issue alice")["key"].as_str().expect("a key").to_owned();
    let mut child = piped(&home, "serve -v");
    drop(child.stderr.take());
    let url = served_at(&mut child);
    let ask = |key: String, model: &str| {
        let call = http().post(format!("{url}/v1/chat/completions")).bearer_auth(key);
        let body = json!({"model": model, "messages": [{"role": "user", "content": "Hello"}]});
        let call = call.header("content-type", "application/json").body(body.to_string());
        async { call.send().await.expect("an answer").status().as_u16() }
    };
    assert_eq!(ask("sk-gw-wrong".into(), MODEL).await, 401);
    assert_eq!(ask(key.clone(), "no-such-model").await, 404);
    let connected = key.clone();
    assert_eq!(ask(key, MODEL).await, 200);
    let connect = home.run_with(&format!("connect codex --url {url} --key-stdin"), &[], &connected);
    assert_eq!(connect.code, 0, "{}", connect.err);
    let profile = fs::read_to_string(home.path().join(".codex/gateway.config.toml")).expect("a profile");
    assert!(profile.contains(&connected) && !connect.err.contains(&connected));
    assert_eq!(stopped(child).await, Some(0));
    let books = Books::checked(&home.database());
    assert_eq!(books.only().state, State::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_starts_although_nobody_reads_its_address() {
    let home = Home::with_alice();
    let _simulator = simulated(&home).await;
    let mut child = piped(&home, "serve");
    drop(child.stdout.take());
    let mut said = BufReader::new(child.stderr.take().expect("a pipe")).lines();
    let introduced = said.any(|line| line.expect("text").starts_with("database  "));
    assert!(introduced, "it says where its books are");
    assert_eq!(stopped(child).await, Some(0));
}

#[test]
fn a_client_is_set_up_with_consent_only_and_a_piped_key_is_consent() {
    let home = Home::new();
    let profile = home.path().join(".codex/gateway.config.toml");
    let connect = "connect codex --url http://127.0.0.1:9";
    let asked = home.run(connect);
    assert_eq!(asked.code, 2, "{}", asked.err);
    assert!(asked.err.contains("nothing was written; add --yes"), "{}", asked.err);
    assert!(!profile.exists());
    home.ok(&format!("{connect} --yes"));
    assert!(profile.exists());
    let ran = home.run_with(&format!("{connect} --key-stdin"), &[], "sk-gw-x\n");
    assert_eq!(ran.code, 7, "{}", ran.err);
    assert!(
        ran.err.contains("gateway serve") && ran.err.contains("--url URL"),
        "{}",
        ran.err
    );
    let mut child = piped(&home, &format!("{connect} --print"));
    drop(child.stdout.take());
    assert!(
        child.wait().expect("it ends").success(),
        "who closed the pipe has seen enough"
    );
}

/// One settled exchange of alice's, of $0.003, and, when asked, one hold that stays open.
pub async fn exchange(home: &Home, hold_open: Usd) -> String {
    let store = Store::open(&home.database(), Create::Never).expect("the database");
    let tracker = TaskTracker::new();
    let writer = store.start_writer(&tracker, DiskConfig::default());
    let user = store.find_user("alice").expect("read").expect("alice");
    let key = store.keys(Some(user.id)).expect("read").remove(0);
    let at = now();
    let row = store
        .price(&ListName::openai(), "gpt-4o", at)
        .expect("read")
        .expect("a price");
    let terms = Terms {
        price: &row.price,
        image_price: None,
        search: SearchTool::Current,
        tier: Tier::Standard,
        region: None,
        markup: Factor::parse("1.2").expect("a factor"),
        at,
    };
    let place = |input: u64| {
        let ask = Ask {
            input: Tokens::saturating(input),
            rejected: Tokens::ZERO,
            stated: Some(Tokens::saturating(100)),
            cache_ttl: CacheTtl::Minutes30,
            choices: 1,
            tools: &HostedTools::default(),
            medium: codex_gateway::call::Medium::Text,
        };
        PlaceHold {
            exchange: ExchangeId(Uuid::now_v7()),
            user: user.id,
            key: key.id,
            budgets: key.budgets,
            quote: hold::quote(&ask, &terms).expect("a quote"),
            policy: Policy {
                share_ppm: 250_000,
                min_output: Tokens::saturating(8_192),
            },
            endpoint: Endpoint::ChatCompletions,
            streamed: false,
            model: "gpt-4o".into(),
            priced_model: "gpt-4o".into(),
            upstream: "openai".into(),
            list: Some(ListName::openai()),
            origin: codex_gateway::origin::Origin::default(),
            once: None,
            now: at,
        }
    };
    let (taken, right) = match writer.hold(place(10_000)).await.expect("not busy") {
        Outcome::Committed(taken) => taken,
        other => panic!("{other:?}"),
    };
    let usage = Usage {
        input_tokens: Tokens::saturating(1_000),
        cached_tokens: Tokens::saturating(400),
        output_tokens: Tokens::saturating(50),
        ..Usage::default()
    };
    let billed = bill(&usage, &terms).expect("a bill");
    let id = taken.exchange.0.to_string();
    let close = CloseHold {
        row: ExchangeRow {
            id: taken.exchange,
            user: user.id,
            key: key.id,
            endpoint: Endpoint::ChatCompletions,
            streamed: false,
            model: "gpt-4o".into(),
            priced_model: "gpt-4o".into(),
            answered_model: Some("gpt-4o-2024-11-20".into()),
            upstream: "openai".into(),
            list: Some(ListName::openai()),
            price_from: Some(row.from),
            tier: Tier::Standard,
            state: State::Completed,
            basis: Basis::Reported,
            usage,
            lines: billed.lines,
            uplift: None,
            markup: "1.2".into(),
            cost: billed.cost,
            charge: billed.charge,
            uncollected: Usd::ZERO,
            held: taken.amount,
            output_limit: None,
            balance_after: Usd::ZERO,
            response_id: Some("chatcmpl-1".into()),
            item_ids: Vec::new(),
            upstream_request_id: Some("req_1".into()),
            upstream_status: Some(200),
            attempts: 1,
            started_at: at,
            first_byte: None,
            duration: std::time::Duration::from_millis(5),
            origin: Origin {
                session: Label::new("ses-7"),
                turn: Label::new("t-1"),
                agent: Label::new("a-1"),
                kind: Some(Kind::SubAgent),
                client: Client::parse("codex_exec/0.169.0"),
            },
        },
        excess: Excess::Collect,
        attempts: Vec::new(),
    };
    writer.close(taken, right, close).await.expect("settled");
    if hold_open > Usd::ZERO {
        // 1.2 × 2.5 dollars per million tokens of input are 3 dollars per million.
        let tokens = hold_open.nanos().unsigned_abs() / 3_000;
        assert!(matches!(writer.hold(place(tokens)).await, Ok(Outcome::Committed(_))));
    }
    drop(writer);
    tracker.close();
    tracker.wait().await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_shows_how_the_charge_came_about() {
    let home = Home::with_alice();
    home.ok("key issue alice --name laptop");
    let id = exchange(&home, Usd::ZERO).await;
    // 600 × 2.5 + 400 × 1.25 + 50 × 10 dollars per million = 0.0025; × 1.2 = 0.003.
    let receipt = home.json(&format!("request show {id}"));
    assert_eq!(
        (&receipt["cost"], &receipt["charge"], &receipt["balance_after"]),
        (&json!("0.0025"), &json!("0.003"), &json!("4.997"))
    );
    assert_eq!(
        (&receipt["state"], &receipt["estimated"], &receipt["attempts"]),
        (&json!("completed"), &json!(false), &json!(1))
    );
    let lines: Vec<(&Value, &Value, &Value)> = receipt["lines"]
        .as_array()
        .expect("lines")
        .iter()
        .map(|line| (&line["class"], &line["quantity"], &line["amount"]))
        .collect();
    assert_eq!(
        lines,
        [
            (&json!("input"), &json!(600), &json!("0.0015")),
            (&json!("cached_input"), &json!(400), &json!("0.0005")),
            (&json!("output"), &json!(50), &json!("0.0005")),
        ]
    );
    let text = home.ok(&format!("request show {}", &id[..id.len() - 4]));
    assert!(text.contains("0.0025 × markup 1.2 = $0.003, rounded once"), "{text}");
    assert!(home.ok("request show chatcmpl-1").contains(&id));
    assert_eq!(home.json("request list --user alice")["items"][0]["id"], json!(id));
    assert_eq!(
        home.json("request list --since 2020-01-01 --until 2020-01-02")["items"],
        json!([])
    );
    home.fails("request list --user alcie", 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_adds_up_to_the_ledger_in_every_form() {
    let home = Home::with_alice();
    home.ok("key issue alice");
    let first = exchange(&home, Usd::ZERO).await;
    let second = exchange(&home, Usd::ZERO).await;
    let error = home.fails(&format!("request show {}", &first[..4]), 2);
    assert!(error.contains(&first) && error.contains(&second), "{error}");
    home.fails("request show ffff", 5);
    for by in ["day", "user", "key", "model", "upstream"] {
        let usage = home.json(&format!("usage --by {by} --user alice"));
        let item = &usage["items"][0];
        assert!(item[by].as_str().is_some_and(|group| !group.is_empty()), "{usage}");
        assert_eq!(
            (&item["charge"], &usage["total"]["charge"]),
            (&json!("0.006"), &json!("0.006"))
        );
        assert_eq!(
            (&item["cost"], &item["margin"], &item["exchanges"]),
            (&json!("0.005"), &json!("0.001"), &json!(2))
        );
    }
    let by_key = home.json("usage --by key")["items"][0].clone();
    assert_eq!(
        (&by_key["user"], &by_key["key_name"]),
        (&json!("alice"), &json!("key 1"))
    );
    let key = home.json("key list")["items"][0]["id"].clone();
    assert_eq!(by_key["key"], key);
    let text = home.ok("usage --by key");
    assert!(
        text.lines()
            .nth(1)
            .is_some_and(|line| line.starts_with("alice/key 1  ")),
        "{text}"
    );
    let csv = home.ok("usage --csv --by model");
    assert_eq!(csv.lines().nth(1), Some("gpt-4o,2,2000,800,100,0.005,0.006,0.001,0,0"));
    assert_eq!(home.balance("alice"), "4.994");
    let entries = home.json("ledger list alice");
    assert_eq!(
        (&entries["items"][0]["kind"], &entries["items"][0]["amount"]),
        (&json!("charge"), &json!("-0.003"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tail_shows_a_request_when_it_ends() {
    let home = Home::with_alice();
    home.ok("key issue alice");
    let first = exchange(&home, Usd::ZERO).await;
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_gateway"))
        .env_clear()
        .env("HOME", home.path())
        .args(["request", "tail", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut next = || -> Value {
        let line = lines.next().expect("a line").expect("text");
        serde_json::from_str(&line).expect("a document a line")
    };
    assert_eq!(next()["id"], json!(first));
    let second = exchange(&home, Usd::ZERO).await;
    assert_eq!(next()["id"], json!(second));
    child.kill().and_then(|()| child.wait()).expect("ended");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adjustment_never_takes_what_is_held() {
    let home = Home::with_alice();
    home.ok("key issue alice");
    exchange(&home, Usd::from_nanos(3_000_000_000)).await;
    let user = home.json("user show alice");
    let available = user["available"].as_str().expect("money");
    assert_ne!(user["held"], "0");
    let error = home.fails("user credit alice -4 --adjust", 4);
    let unheld = format!("take out at most {available}\n");
    assert!(
        error.contains("held by running calls") && error.contains(&unheld),
        "{error}"
    );
    home.ok(&format!("user credit alice -{available} --adjust"));
    assert_eq!(home.json("user show alice")["available"], "0");
}

#[test]
fn books_that_balance_say_so_and_what_they_looked_at() {
    let home = Home::with_alice();
    let verified = home.json("ledger verify");
    assert_eq!(
        (&verified["balanced"], &verified["users"], &verified["entries"]),
        (&json!(true), &json!(1), &json!(1))
    );
    assert!(
        home.ok("ledger verify")
            .starts_with("the books balance (users 1, entries 1,")
    );
}

#[test]
fn a_changed_row_is_found_with_its_table() {
    let home = Home::with_alice();
    alter(&home.database(), "UPDATE users SET balance_nanos = balance_nanos + 1");
    let error = home.fails("ledger verify", 8);
    assert!(error.contains("the books do not balance: table users"), "{error}");
    let ran = home.run("ledger verify --json");
    let found: Value = serde_json::from_str(&ran.out).expect("one document");
    assert_eq!(
        (ran.code, &found["balanced"], &found["findings"][0]["table"]),
        (8, &json!(false), &json!("users"))
    );
}

/// Changes rows behind the gateway's back: the triggers that forbid it are dropped first.
#[expect(clippy::disallowed_methods, reason = "what the store would never do is done here")]
pub fn alter(database: &Path, sql: &str) {
    let database = rusqlite::Connection::open(database).expect("opened");
    let names = "SELECT name FROM sqlite_master WHERE type = 'trigger'";
    let mut statement = database.prepare(names).expect("a statement");
    let names = statement.query_map([], |row| row.get::<_, String>(0)).expect("names");
    let names: Vec<String> = names.collect::<Result<_, _>>().expect("names");
    for name in names {
        database
            .execute_batch(&format!("DROP TRIGGER {name}"))
            .expect("dropped");
    }
    database.execute_batch(sql).expect("changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_name_the_address_a_running_server_has() {
    let home = Home::with_alice();
    let _simulator = simulated(&home).await;
    let mut child = piped(&home, "serve");
    let url = served_at(&mut child);
    assert_eq!(home.json("key issue alice")["url"], json!(url));
    let profile = home.ok("connect codex --print");
    assert!(profile.contains(&format!("base_url = \"{url}/v1\"")), "{profile}");
    assert_eq!(stopped(child).await, Some(0));
    assert_eq!(home.json("key issue alice")["url"], json!("http://127.0.0.1:0"));
}

#[test]
fn a_price_that_is_set_names_what_keeps_its_own_rates_and_when_it_begins() {
    let home = Home::with_alice();
    let ran = home.run("price set gpt-5.4 --input 3 --from 2099-01-01");
    assert_eq!(ran.code, 0, "{}", ran.err);
    for part in ["rates of their own: ", "flex", "in force from 2099-01-01"] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    let plain = home.run("price set mine --input 3 --output 4");
    assert_eq!(plain.err, "");
    home.ok("price set mine --input 5 --from 2099-01-01");
    let export = home.ok("price export");
    let other = Home::with_alice();
    let shown = other.run_with("price import - --list openai", &[], &export);
    assert!(
        shown.out.lines().next().is_some_and(|head| head.ends_with("from")),
        "{}",
        shown.out
    );
    assert!(shown.out.contains("2099-01-01"), "{}", shown.out);
}
