//! Receipts, reports, and books that balance or do not.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use codex_gateway::money::Usd;
use serde_json::{Value, json};

use super::{Home, alter, exchange};

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
