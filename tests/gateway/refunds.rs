//! Refunds: what they give back, what they refuse, and where they are seen.

use codex_gateway::money::Usd;
use serde_json::{Value, json};

use crate::cli::{Home, exchange};
use crate::harness::Harness;

#[tokio::test(flavor = "multi_thread")]
async fn a_refund_is_seen_in_receipt_ledger_and_usage() {
    let home = Home::with_alice();
    home.ok("key issue alice");
    let id = exchange(&home, Usd::ZERO).await;
    assert!(!home.ok(&format!("request show {id}")).contains("refunded"));
    let part = home.json(&format!("refund {id} --amount 0.001 --note sorry --reference ticket-7"));
    assert_eq!(
        (
            &part["entry"]["kind"],
            &part["entry"]["refunds"],
            &part["entry"]["amount"],
            &part["left"]
        ),
        (&json!("refund"), &json!(id), &json!("0.001"), &json!("0.002"))
    );
    assert_eq!(
        (&part["user"]["balance"], &part["repeated"]),
        (&json!("4.998"), &json!(false))
    );
    let again = home.json(&format!("refund {id} --reference ticket-7"));
    assert_eq!((&again["entry"], &again["repeated"]), (&part["entry"], &json!(true)));
    // The rest, by the upstream's id.
    let rest = home.ok("refund chatcmpl-1");
    assert!(
        rest.contains("refunded    $0.002") && rest.contains("left of it  $0.00"),
        "{rest}"
    );
    let receipt = home.ok(&format!("request show {id}"));
    assert!(
        receipt.contains("refunded            $0.003 of the charge"),
        "{receipt}"
    );
    assert_eq!(home.json(&format!("request show {id}"))["refunded"], "0.003");
    let ledger = home.ok("ledger list alice");
    assert!(
        ledger.contains("refund") && ledger.contains(&format!("{id} · ticket-7 · sorry")),
        "{ledger}"
    );
    for by in ["day", "user", "key", "model", "upstream"] {
        let usage = home.json(&format!("usage --by {by}"));
        for sums in [&usage["items"][0], &usage["total"]] {
            assert_eq!(
                (&sums["charge"], &sums["refunded"], &sums["margin"]),
                (&json!("0.003"), &json!("0.003"), &json!("-0.0025")),
                "{by}"
            );
        }
    }
    assert_eq!(
        home.ok("usage --csv --by model").lines().nth(1),
        Some("gpt-4o,1,1000,400,50,0.0025,0.003,-0.0025,0,0.003")
    );
    assert!(home.ok("usage").contains("refunded"));
    home.ok("ledger verify");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_given_back_is_refused_with_what_can() {
    let home = Home::with_alice();
    home.ok("key issue alice");
    let id = exchange(&home, Usd::from_nanos(1_000_000_000)).await;
    let all = home.fails(&format!("refund {id} --amount 0.003000001"), 4);
    assert!(all.contains("$0.003 is left") && all.contains("at most 0.003"), "{all}");
    assert!(
        home.fails(&format!("refund {id} --amount 0"), 2)
            .contains("more than zero")
    );
    assert!(
        home.fails(&format!("refund {id} --amount -1"), 2)
            .contains("more than zero")
    );
    assert!(home.fails("refund ffff", 5).contains("no request"));
    let open = codex_gateway::store::Store::open(&home.database(), codex_gateway::store::Create::Never);
    let open = open.expect("the database").open_holds().expect("read").remove(0);
    let running = home.fails(&format!("refund {open}"), 4);
    assert!(running.contains("still running"), "{running}");
    home.ok("user credit alice 1 --reference invoice-1");
    assert!(
        home.fails(&format!("refund {id} --reference invoice-1"), 6)
            .contains("different entry")
    );
    home.ok(&format!("refund {id} --amount 0.001 --reference ticket-1"));
    assert!(
        home.fails(&format!("refund {id} --amount 0.002 --reference ticket-1"), 6)
            .contains("ticket-1")
    );
    home.fails("user credit alice 0.001 --reference ticket-1", 6);
    home.ok(&format!("refund {id}"));
    assert!(home.fails(&format!("refund {id}"), 4).contains("given back before"));
    let large = exchange(&home, Usd::ZERO).await;
    let balance: Usd = home.json("user show alice")["balance"]
        .as_str()
        .and_then(|usd| usd.parse().ok())
        .expect("USD");
    let most = codex_gateway::store::entries::MAX_BALANCE.saturating_sub(balance);
    home.ok(&format!("user credit alice {most}"));
    assert!(home.fails(&format!("refund {large}"), 4).contains("become larger"));
    home.ok("ledger verify");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payer_sees_the_refund_and_has_the_money_and_the_budget_again() {
    let harness = Harness::start().await;
    let client = harness.issue("--name capped --budget 1/day");
    let called = client.respond("Hello").await.expect(200);
    let charge = called.header("x-gateway-cost").to_owned();
    let (before, left) = (
        harness.user().balance,
        budget_left(&harness, &client.key_id.0.to_string()),
    );
    harness.operate(&format!("refund {}", called.exchange()));
    let usd = |text: &str| text.parse::<Usd>().expect("USD");
    assert_eq!(before.checked_add(usd(&charge)), Some(harness.user().balance));
    assert_eq!(usd(&left).checked_add(usd(&charge)), Some(usd("1")));
    assert_eq!(budget_left(&harness, &client.key_id.0.to_string()), "1");
    let receipt = client
        .get(&format!("/v1/gateway/requests/{}", called.exchange()))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&receipt["charge"], &receipt["refunded"]),
        (&json!(charge), &json!(charge))
    );
    let listed = client.get("/v1/gateway/requests").await.expect(200).json();
    assert_eq!(listed["items"][0], receipt);
    for by in ["day", "model"] {
        let usage = client
            .get(&format!("/v1/gateway/usage?by={by}"))
            .await
            .expect(200)
            .json();
        for sums in [&usage["items"][0], &usage["total"]] {
            assert_eq!(
                (&sums["charge"], &sums["refunded"]),
                (&json!(charge), &json!(charge)),
                "{usage}"
            );
        }
    }
    let used = client.get("/v1/dashboard/billing/usage").await.expect(200).json();
    assert_eq!(used["total_usage"], 0, "what was given back was not spent");
    let costs = client
        .get("/v1/organization/costs?start_time=1700000000&limit=180")
        .await
        .expect(200)
        .text();
    assert!(!costs.contains(&charge), "{costs}");
    harness.finish().await;
}

/// What is left of the one budget of a key.
fn budget_left(harness: &Harness, key: &str) -> String {
    let shown = harness.operate(&format!("key show {key}"));
    let left: &Value = &shown["budgets"][0]["left"];
    left.as_str().unwrap_or_else(|| panic!("a budget: {shown}")).to_owned()
}
