//! What a user and a key may spend at most: no call takes more, however many come at once, and what is left is told.

use std::time::Duration;

use codex_gateway::simulator::Gate;
use codex_gateway::time;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::campaign::{self, Dice};
use crate::client::{Answer, Client, chat};
use crate::concurrency::{DOLLAR_MODEL, DOLLAR_PRICE, dollar_call, gated, next, rush};
use crate::harness::Harness;

/// Calls of each key in a race: more than any of the limits pays for.
const CALLS: usize = 20;

async fn dollars() -> Harness {
    Harness::builder().price(DOLLAR_MODEL, DOLLAR_PRICE).start().await
}

async fn call_for_a_dollar(client: &Client) -> Answer {
    client.post("/v1/chat/completions", &dollar_call()).await.expect(200)
}

/// Midnight of the next day, UTC, as it is told.
fn midnight() -> String {
    let now = time::now().to_zoned_datetime(TimeZone::UTC);
    let next = now.tomorrow().and_then(|day| day.start_of_day());
    next.expect("a day").timestamp().to_string()
}

/// One race: a balance, a budget of the user and one of each of two keys, all in dollars, and many calls of both keys.
async fn race(harness: &Harness, gate: &Gate, number: usize, dice: &mut Dice) -> usize {
    let [balance, of_user, of_first, of_second] = [(); 4].map(|()| 1 + dice.roll(7));
    let period = ["day", "month", "total"][dice.roll(3)];
    let name = format!("user-{number}");
    let first = harness.add_client(&name, &balance.to_string());
    let issue = format!("key issue {name} --budget {of_second}/{period}");
    let second = Client {
        key: harness.operate(&issue)["key"].as_str().expect("a key").to_owned(),
        ..first.clone()
    };
    harness.operate(&format!("user set {name} --budget {of_user}/{period}"));
    harness.operate(&format!("key set {} --budget {of_first}/{period}", first.key));
    let paid = balance.min(of_user).min(of_first + of_second);
    let before = harness.served().len();
    let mut calls = rush(
        &[first.clone(), second.clone()],
        2 * CALLS,
        "/v1/chat/completions",
        &dollar_call(),
    );
    let refused = next(&mut calls, 2 * CALLS - paid).await;
    assert!(refused.iter().all(|answer| answer.status == 429));
    assert_eq!(
        harness.simulator.arrived(before + paid).await.len(),
        before + paid,
        "race {number}"
    );
    gate.let_through(paid);
    for answer in next(&mut calls, paid).await {
        answer.expect(200);
    }
    let spent = |document: &Value| -> usize {
        let text = document["budgets"][0]["spent"].as_str().expect("an amount");
        text.parse().expect("whole dollars")
    };
    let user = harness.operate(&format!("user show {name}"));
    assert_eq!(spent(&user), paid, "race {number}");
    let keys = [(&first, of_first), (&second, of_second)];
    let spent_by = keys.map(|(client, limit)| {
        let spent = spent(&harness.operate(&format!("key show {}", client.key)));
        assert!(spent <= limit, "race {number}: {spent} of {limit}");
        spent
    });
    assert_eq!(spent_by.iter().sum::<usize>(), paid, "race {number}");
    paid
}

#[tokio::test(flavor = "multi_thread")]
async fn parallel_calls_go_over_neither_the_keys_budgets_nor_the_users_nor_the_balance() {
    let gate = Gate::closed();
    let harness = Harness::builder()
        .playwright(gated(&gate))
        .price(DOLLAR_MODEL, DOLLAR_PRICE)
        .start()
        .await;
    let mut dice = Dice(campaign::seed());
    let mut paid = 0;
    for number in 0..campaign::size("GATEWAY_BUDGET_RACES", 50) {
        paid += race(&harness, &gate, number, &mut dice).await;
    }
    assert_eq!(harness.finish().await.exchanges.len(), paid);
}

#[tokio::test]
async fn a_refusal_names_the_budget_what_is_left_of_it_and_when_it_is_whole_again() {
    let harness = dollars().await;
    let key = harness.client.key.clone();
    harness.operate(&format!("key set {key} --budget 1.5/day --budget 4"));
    call_for_a_dollar(&harness.client).await;
    let refused = harness
        .client
        .post("/v1/chat/completions", &dollar_call())
        .await
        .expect(429);
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("insufficient_quota"), &json!("usage_limit_reached"))
    );
    let gateway = &error["gateway"];
    assert_eq!(gateway["limit"], "key_budget_day", "{error}");
    assert_eq!(
        (&gateway["available"], &gateway["needed"]),
        (&json!("0.5"), &json!("1"))
    );
    assert_eq!(gateway["resets_at"], midnight(), "{error}");
    assert_eq!(
        (refused.header("x-should-retry"), refused.header("retry-after")),
        ("false", "")
    );
    let message = error["message"].as_str().expect("words");
    for word in ["budget", "day", "$0.50", "$1.00", "gateway key set"] {
        assert!(message.contains(word), "{word}: {message}");
    }
    harness.operate(&format!("key set {key} --no-budget day"));
    call_for_a_dollar(&harness.client).await;
    harness.finish().await;
}

#[tokio::test]
async fn a_budget_that_is_only_held_is_a_rate_limit() {
    let gate = Gate::closed();
    let harness = Harness::builder()
        .playwright(gated(&gate))
        .price(DOLLAR_MODEL, DOLLAR_PRICE)
        .start()
        .await;
    harness.operate("user set alice --budget 1/month");
    let mut calls = rush(
        std::slice::from_ref(&harness.client),
        2,
        "/v1/chat/completions",
        &dollar_call(),
    );
    let refused = next(&mut calls, 1).await.remove(0).expect(429);
    let error = &refused.json()["error"];
    assert_eq!(
        (&error["code"], &error["gateway"]["limit"]),
        (&json!("rate_limit_exceeded"), &json!("user_budget_month"))
    );
    assert_ne!(refused.header("retry-after"), "");
    gate.open();
    next(&mut calls, 1).await.remove(0).expect(200);
    harness.finish().await;
}

#[tokio::test]
async fn what_is_left_of_each_budget_is_shown_and_a_rotated_key_has_what_the_old_one_left() {
    let harness = dollars().await;
    let key = harness.client.key.clone();
    harness.operate(&format!("key set {key} --budget 3/day"));
    harness.operate("user set alice --budget 20/month --markup 1.5 --credit-line 2");
    call_for_a_dollar(&harness.client).await;
    let user = harness.operate("user show alice");
    assert_eq!(
        (&user["markup"], &user["credit_line"], &user["balance"]),
        (&json!("1.5"), &json!("2"), &json!("3.5"))
    );
    assert_eq!(
        (&user["budgets"][0]["left"], &user["budgets"][0]["spent"]),
        (&json!("18.5"), &json!("1.5"))
    );
    let heir = harness.operate(&format!("key rotate {key} --grace 1h"));
    let shown = harness.operate(&format!("key show {}", heir["prefix"].as_str().expect("a prefix")));
    assert_eq!(
        shown["budgets"],
        json!([{"period": "day", "limit": "3", "spent": "1.5", "held": "0", "left": "1.5", "resets_at": midnight()}])
    );
    let heir = Client {
        key: heir["key"].as_str().expect("a key").to_owned(),
        ..harness.client.clone()
    };
    call_for_a_dollar(&heir).await;
    let old = harness
        .client
        .post("/v1/chat/completions", &dollar_call())
        .await
        .expect(429);
    assert_eq!(
        old.json()["error"]["gateway"]["limit"],
        "key_budget_day",
        "the old one in its grace"
    );
    harness.finish().await;
}

#[tokio::test]
async fn a_models_markup_and_a_users_own_are_what_calls_are_charged() {
    let harness = Harness::builder()
        .price(DOLLAR_MODEL, DOLLAR_PRICE)
        .settings(&format!(
            "[billing]\nmarkup = 1.1\nmodel_markup = {{ \"{DOLLAR_MODEL}\" = 1.25 }}"
        ))
        .start()
        .await;
    let rates = |document: &Value| document.to_string();
    let charge = |answer: &Answer| answer.header("x-gateway-cost").to_owned();
    let by_model = call_for_a_dollar(&harness.client).await;
    assert_eq!(charge(&by_model), "1.25");
    let listed = rates(&harness.client.get("/v1/models").await.expect(200).json());
    let general = harness
        .client
        .post("/v1/chat/completions", &chat("sim:words-16", &json!({})))
        .await
        .expect(200);
    harness.operate("user set alice --markup 0.5");
    // A running server knows within a second.
    let mut calls = 1;
    loop {
        let own = call_for_a_dollar(&harness.client).await;
        calls += 1;
        match charge(&own).as_str() {
            "0.5" => break,
            before => assert_eq!((before, calls < 4), ("1.25", true), "{calls} calls"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_ne!(
        rates(&harness.client.get("/v1/models").await.expect(200).json()),
        listed,
        "rates are after markup"
    );
    let usage = harness.operate("usage --by model");
    let of_dollars = usage["items"]
        .as_array()
        .expect("items")
        .iter()
        .find(|item| item["model"] == DOLLAR_MODEL);
    let of_dollars = of_dollars.expect("the model");
    let usd = |field: &str| -> f64 {
        let text = of_dollars[field].as_str().expect("an amount");
        text.parse().expect("a number")
    };
    let charges = 1.25 * f64::from(calls - 1) + 0.5;
    let cost = f64::from(calls);
    assert_eq!(
        (usd("cost"), usd("charge"), usd("margin")),
        (cost, charges, charges - cost)
    );
    let receipt = harness.receipt(general.exchange());
    assert_eq!(receipt.markup, "1.1");
    harness.finish().await;
}

#[tokio::test]
async fn with_only_a_key_the_payer_reads_what_is_left_of_each_budget_also_when_it_is_nothing() {
    let harness = dollars().await;
    let client = harness.client.clone();
    harness.operate(&format!("key set {} --budget 1/day", client.key));
    harness.operate("user set alice --budget 1.5/month --budget 2");
    let called = call_for_a_dollar(&client).await;
    client.post("/v1/chat/completions", &dollar_call()).await.expect(429);
    harness.operate("user suspend alice");
    let me = client.get("/v1/gateway/me").await.expect(200).json();
    let left = |budget: &Value| {
        json!([
            budget["of"],
            budget["period"],
            budget["limit"],
            budget["spent"],
            budget["left"]
        ])
    };
    let budgets: Vec<Value> = me["budgets"].as_array().expect("budgets").iter().map(left).collect();
    assert_eq!(
        budgets,
        [
            json!(["key", "day", "1", "1", "0"]),
            json!(["user", "month", "1.5", "1", "0.5"]),
            json!(["user", "total", "2", "1", "1"]),
        ]
    );
    assert_eq!(me["budgets"][0]["resets_at"], midnight());
    assert_eq!(me["budgets"][2]["resets_at"], Value::Null);
    let receipt = format!("/v1/gateway/requests/{}", called.exchange());
    assert_eq!(client.get(&receipt).await.expect(200).json()["charge"], "1");
    let other = harness.add_client("bob", "5");
    other.get(&receipt).await.expect(404);
    let theirs = other.get("/v1/gateway/me").await.expect(200).json();
    assert_eq!(theirs["budgets"], json!([]), "never another's");
    harness.finish().await;
}
