//! Users: their database, their names, and what is put into their balances.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use super::Home;

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

#[test]
fn what_comes_next_runs_as_it_is_printed() {
    let home = Home::new();
    fs::write(home.path().join("my settings.toml"), "").expect("settings written");
    let flags = ["--database", "other books.db", "--config", "my settings.toml"];
    let run = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", home.path()).current_dir(home.path());
        command.args(args).output().expect("it starts")
    };
    let added = run(
        env!("CARGO_BIN_EXE_gateway"),
        &[&["user", "add", "alice"], &flags[..]].concat(),
    );
    let said = String::from_utf8(added.stderr).expect("text");
    let next = said.lines().find_map(|line| line.strip_prefix("next: ")).expect(&said);
    let issued = run("/bin/sh", &["-c", next]);
    assert!(
        issued.status.success() && issued.stdout.starts_with(b"sk-gw-"),
        "{next}: {issued:?}"
    );
}
