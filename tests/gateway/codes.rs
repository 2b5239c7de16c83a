//! Redemption codes: made by operators, redeemed once, over HTTP with a gateway key.

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::cli::{Home, Ran, nowhere};
use crate::client::{Answer, Client};
use crate::harness::Harness;

const REDEEM: &str = "/v1/gateway/redeem";

async fn redeem(client: &Client, code: &str) -> Answer {
    client.post(REDEEM, &json!({ "code": code })).await
}

/// Codes that an operator makes.
fn create(harness: &Harness, flags: &str) -> Vec<Value> {
    let made = harness.operate(&format!("code create {flags}"));
    made["items"].as_array().expect("codes").clone()
}

fn text(code: &Value) -> &str {
    code["code"].as_str().expect("a code")
}

#[test]
fn codes_that_could_not_be_shown_are_nobodys() {
    let home = Home::with_alice();
    let lines = ["code create --amount 1 --count 3", "code create --amount 1 --json"];
    for (line, stdout) in lines.into_iter().zip(nowhere()) {
        let Ran { code, err: said, .. } = home.run_into(line, stdout);
        assert_eq!(code, 1, "{line}: {said}");
        assert!(said.contains("could not be shown and are revoked"), "{line}: {said}");
    }
    let codes = home.json("code list");
    let states: Vec<_> = codes["items"]
        .as_array()
        .expect("codes")
        .iter()
        .map(|code| &code["state"])
        .collect();
    assert_eq!(states, [&json!("revoked"); 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_that_is_sent_for_ever_has_to_wait() {
    let harness = Harness::start().await;
    let made = create(&harness, "--amount 1");
    for _ in 0..11 {
        redeem(&harness.client, text(&made[0])).await.expect(200);
    }
    let slowed = redeem(&harness.client, text(&made[0])).await.expect(429);
    assert_ne!(slowed.header("retry-after"), "");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_code_is_money_once_for_whoever_redeems_it_first() {
    let harness = Harness::start().await;
    let (alice, other) = (harness.client.clone(), harness.add_client("other", "0"));
    let made = create(&harness, "--amount 2.5 --count 2 --note autumn");
    assert_eq!(made.len(), 2);
    let first = redeem(&alice, &text(&made[0]).to_lowercase().replace('-', " "))
        .await
        .expect(200);
    assert_eq!(first.header("cache-control"), "no-store");
    let done = first.json();
    assert_eq!(
        (
            &done["amount"],
            &done["balance"],
            &done["available"],
            &done["redeemed"],
            &done["code"]
        ),
        (
            &json!("2.5"),
            &json!("7.5"),
            &json!("7.5"),
            &json!("now"),
            &made[0]["prefix"]
        )
    );
    let colleague = harness.issue("--name colleague");
    for client in [&alice, &colleague] {
        let again = redeem(client, text(&made[0])).await.expect(200).json();
        assert_eq!(
            (&again["redeemed"], &again["balance"]),
            (&json!("before"), &json!("7.5"))
        );
        assert_eq!(again["redeemed_at"], done["redeemed_at"]);
    }
    // A suspended user has the money, too.
    harness.operate("user suspend other");
    let suspended = redeem(&other, text(&made[1])).await.expect(200).json();
    assert_eq!(suspended["balance"], "2.5");
    let codes = harness.operate("code list");
    let seen: Vec<_> = codes["items"]
        .as_array()
        .expect("codes")
        .iter()
        .map(|code| (&code["state"], &code["user"]))
        .collect();
    let redeemed = json!("redeemed");
    assert_eq!(seen, [(&redeemed, &json!("alice")), (&redeemed, &json!("other"))]);
    let entry = harness.operate("ledger list alice --limit 1")["items"][0].clone();
    let id = made[0]["id"].as_str().expect("an id");
    assert_eq!(
        (&entry["kind"], &entry["reference"], &entry["note"]),
        (&json!("credit"), &json!(format!("code {id}")), &json!("autumn"))
    );
    let acts = harness.operate(&format!("audit list --subject {id}"));
    let acts: Vec<_> = acts["items"]
        .as_array()
        .expect("acts")
        .iter()
        .map(|act| (&act["action"], &act["actor"]))
        .collect();
    let key = json!(format!("key:{}", alice.key_id.0));
    assert_eq!(acts[1], (&json!("code.redeem"), &key));
    assert_eq!((acts.len(), acts[0].0), (2, &json!("code.create")));
    harness.finish().await;
}

/// All that is seen of an answer but the ids that every answer has of its own.
fn seen(answer: &Answer) -> (StatusCode, String) {
    (answer.status, answer.text().replace(answer.exchange(), "ID"))
}

#[tokio::test(flavor = "multi_thread")]
async fn whether_a_code_exists_is_not_told_and_guessing_has_to_wait() {
    let harness = Harness::start().await;
    let other = harness.add_client("other", "0");
    let made = create(&harness, "--amount 1 --count 4");
    redeem(&harness.client, text(&made[0])).await.expect(200);
    harness.operate(&format!("code revoke {}", made[1]["id"].as_str().expect("an id")));
    harness.alter(&format!(
        "UPDATE codes SET expires_at = 1 WHERE prefix = '{}'",
        made[2]["prefix"].as_str().expect("a prefix")
    ));
    let nowhere = "gwc-0000-0000-0000-0000-0000-0000-0000";
    let none = seen(&redeem(&other, nowhere).await);
    assert_eq!(none.0, 404);
    assert!(none.1.contains("code_not_found"), "{}", none.1);
    for code in [text(&made[0]), text(&made[1]), text(&made[2]), "gwc-", "", "ü"] {
        assert_eq!(seen(&redeem(&other, code).await), none, "{code}");
    }
    for _ in 7..10 {
        redeem(&other, nowhere).await.expect(404);
    }
    let wait = redeem(&other, text(&made[3])).await.expect(429);
    let seconds: u64 = wait.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&seconds), "{seconds}");
    assert_eq!(wait.json()["error"]["code"], "rate_limit_exceeded");
    // Others need not.
    for _ in 0..10 {
        redeem(&harness.client, text(&made[3])).await.expect(200);
    }
    harness.alter("UPDATE codes SET expires_at = NULL WHERE redeemed_at IS NULL AND revoked_at IS NULL");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_question_is_refused() {
    let harness = Harness::start().await;
    let long = format!("{{\"code\":\"{}\"}}", "0".repeat(5_000));
    for body in [
        "",
        "{}",
        "[]",
        "{\"code\":1}",
        "{\"code\":\"a\",\"user\":\"b\"}",
        &long,
        "\u{fe}",
    ] {
        let request = harness.client.request(Method::POST, REDEEM).body(body.to_owned());
        let answer = Answer::of(request.send().await.expect("an answer")).await.expect(400);
        assert_eq!(answer.json()["error"]["param"], "code", "{body}");
    }
    let query = harness
        .client
        .post(&format!("{REDEEM}?code=x"), &json!({"code": "x"}))
        .await;
    assert_eq!(query.expect(400).json()["error"]["param"], "code");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_who_redeem_at_once_one_has_the_money() {
    let harness = Harness::start().await;
    // Two users for each code: whoever asks again and again has to wait in the end, which is another test's.
    for (round, code) in create(&harness, "--amount 1 --count 5").iter().enumerate() {
        let names = ["a", "b"].map(|side| format!("{side}{round}"));
        let clients = names.each_ref().map(|name| harness.add_client(name, "5"));
        let asked = (0..8).map(|n| redeem(&clients[n % 2], text(code)));
        let mut answers = join_all(asked).await;
        // Turns may be waited for in vain when the machine is slow; whoever asks again is told.
        answers.retain(|answer| answer.status != 429);
        let now = answers
            .iter()
            .filter(|answer| answer.status == 200 && answer.json()["redeemed"] == "now");
        assert_eq!(now.count(), 1);
        assert!(
            answers
                .iter()
                .all(|answer| [200, 404].contains(&answer.status.as_u16()))
        );
        let mut balances = names.map(|name| harness.operate(&format!("user show {name}"))["balance"].clone());
        balances.sort_by_key(ToString::to_string);
        assert_eq!(balances, ["5", "6"]);
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_books_cannot_be_written_a_code_stays_whole() {
    let harness = Harness::start().await;
    let code = create(&harness, "--amount 1 --count 1").remove(0);
    let file = harness.database();
    #[expect(clippy::disallowed_methods, reason = "another process that holds the lock")]
    let busy = rusqlite::Connection::open(file).expect("it opens");
    busy.busy_timeout(Duration::from_secs(5)).expect("patience");
    busy.execute_batch("BEGIN IMMEDIATE").expect("locked");
    let refused = redeem(&harness.client, text(&code)).await.expect(503);
    assert_eq!(refused.json()["error"]["code"], "storage_unavailable");
    busy.execute_batch("ROLLBACK").expect("free");
    let done = redeem(&harness.client, text(&code)).await.expect(200).json();
    assert_eq!((&done["redeemed"], &done["balance"]), (&json!("now"), &json!("6")));
    harness.finish().await;
}

#[test]
fn codes_are_shown_once_listed_and_revoked() {
    let home = Home::with_alice();
    let made = home.ok("code create --amount 10 --count 3 --expires 90d");
    let codes: Vec<&str> = made.lines().collect();
    assert_eq!(codes.len(), 3);
    assert!(
        codes
            .iter()
            .all(|code| code.len() == 3 + 7 * 5 && code.starts_with("gwc-")),
        "{made}"
    );
    let listed = home.ok("code list");
    assert!(
        codes
            .iter()
            .all(|code| listed.contains(&code[..11]) && !listed.contains(code)),
        "{listed}"
    );
    assert!(!home.run("code revoke gwc-").err.contains(codes[0]));
    // The whole code names it, too, and is not repeated.
    let revoked = home.run(&format!("code revoke {} -v", codes[0].to_lowercase()));
    assert!(revoked.code == 0 && !revoked.err.contains(codes[0]), "{}", revoked.err);
    home.ok(&format!("code revoke {}", codes[0]));
    let states = home.json("code list");
    assert_eq!(states["items"][0]["state"], "revoked");
    assert_eq!(home.json("code list --open")["items"].as_array().map(Vec::len), Some(2));
    let unknown = home.fails("code revoke gwc-0000-0000-0000-0000-0000-0000-0000", 5);
    assert!(
        unknown.contains("'gwc-0000-00'") && unknown.contains("gateway code list"),
        "{unknown}"
    );
    for wrong in [
        "code create --amount 0",
        "code create --amount -1",
        "code create --amount 1 --count 0",
        "code create --amount 1 --count 10001",
        "code create --amount 1 --expires 2020-01-01",
    ] {
        home.fails(wrong, 2);
    }
    home.ok("ledger verify");
}
