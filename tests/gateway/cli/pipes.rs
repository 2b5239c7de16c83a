//! Servers and clients, whoever reads what they say.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use codex_gateway::store::usage_log::State;
use serde_json::json;

use super::{Home, piped, served_at, simulated, stopped};
use crate::books::Books;
use crate::client::{MODEL, http};

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
fn every_client_is_only_printed_with_print_and_is_a_document_with_json() {
    let home = Home::new();
    for app in [
        "codex",
        "aider",
        "continue",
        "cline",
        "open-webui",
        "opencode",
        "claude-code",
        "env",
    ] {
        let print = format!("connect {app} --url http://127.0.0.1:9 --print");
        let printed = home.ok(&print);
        let document = home.json(&print);
        assert_eq!(
            (&document["app"], &document["settings"]),
            (&json!(app), &json!(printed))
        );
        let file = document["file"].as_str();
        assert_eq!(file.is_some(), !matches!(app, "cline" | "env"), "{document}");
        let none = home.run_with(&format!("{print} --key-stdin"), &[], "\n");
        let fix = none
            .err
            .lines()
            .find_map(|line| line.split_once("--url URL "))
            .map(|(_, rest)| rest);
        assert_eq!((none.code, fix), (2, Some("--key-stdin")), "{}", none.err);
    }
    assert!(!home.path().join(".codex").exists());
}
