//! Calls at the same time cannot spend more than there is.

use std::sync::Arc;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Playwright, Request, Step};
use futures_util::future::{join, join_all};
use serde_json::json;
use tokio::sync::watch;

use crate::client::{Answer, Client};
use crate::harness::Harness;

/// Reading is free and a token written costs 1/16 dollar: 16 tokens are exactly a dollar.
const DOLLAR: &str = r#"{"kind":"text","rates":{"input":"0","output":"62500"},"max_input":100000,"max_output":1000}"#;

/// Everybody who calls at once.
const CALLS: usize = 200;

/// Answers with as many tokens as are allowed, once the gate is open.
fn gated(gate: &Gate) -> Playwright {
    let (inner, gate) = (standard(Pace::default()), gate.clone());
    Arc::new(move |request: &Request| {
        let wordy = Request {
            model: "sim-words-100".into(),
            ..request.clone()
        };
        inner(&wordy).first(Step::Wait(gate.clone()))
    })
}

/// One call that costs a dollar; a refusal is counted at once.
async fn call(client: &Client, refused: &watch::Sender<usize>) -> Answer {
    let body = json!({"model": "dollar", "messages": [{"role": "user", "content": "Go"}], "max_tokens": 16});
    let answer = client.post("/v1/chat/completions", &body).await;
    if answer.status != 200 {
        refused.send_modify(|count| *count += 1);
    }
    answer
}

/// All calls of one user at once; nobody is answered before all are decided. Returns how many went upstream.
async fn rush(harness: &Harness, client: &Client, gate: &Gate) -> usize {
    let before = harness.served().len();
    let (refused, _) = watch::channel(0);
    let calls = join_all((0..CALLS).map(|_| call(client, &refused)));
    let decided = async {
        let mut refusals = refused.subscribe();
        loop {
            let waiting = CALLS - *refusals.borrow_and_update();
            tokio::select! {
                _ = harness.simulator.arrived(before + waiting) => break,
                _ = refusals.changed() => {}
            }
        }
        gate.let_through(CALLS);
    };
    let (answers, ()) = join(calls, decided).await;
    let paid = answers.iter().filter(|answer| answer.status == 200).count();
    for answer in answers.iter().filter(|answer| answer.status != 200) {
        assert_eq!(answer.status, 429, "{}", answer.text());
        assert_eq!(
            answer.json()["error"]["code"],
            "rate_limit_exceeded",
            "the money is held, not gone"
        );
        assert!(!answer.header("retry-after").is_empty());
    }
    assert_eq!(harness.served().len() - before, paid, "what went upstream was answered");
    paid
}

#[tokio::test(flavor = "multi_thread")]
async fn seven_dollars_pay_for_seven_of_two_hundred_calls_at_once() {
    let gate = Gate::closed();
    for run in 0..50 {
        let gate = if run == 0 { gate.clone() } else { Gate::closed() };
        let harness = Harness::builder()
            .balance("7")
            .price("dollar", DOLLAR)
            .playwright(gated(&gate))
            .start()
            .await;
        assert_eq!(rush(&harness, &harness.client, &gate).await, 7, "run {run}");
        assert_eq!(harness.user().balance.nanos(), 0);
        let books = harness.finish().await;
        assert_eq!(books.charged(), 7_000_000_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_do_not_wait_for_each_others_money() {
    let gate = Gate::closed();
    let harness = Harness::builder()
        .balance("3")
        .price("dollar", DOLLAR)
        .playwright(gated(&gate))
        .start()
        .await;
    let other = harness.add_client("bob", "2");
    let (refused, _) = watch::channel(0);
    let many = |client: Client| {
        join_all((0..10).map(move |_| client.clone()).map(|client| {
            let refused = refused.clone();
            async move { call(&client, &refused).await.status.as_u16() }
        }))
    };
    let open = async {
        harness.simulator.arrived(5).await;
        refused
            .subscribe()
            .wait_for(|count| *count == 15)
            .await
            .expect("a sender");
        gate.open();
    };
    let ((first, second), ()) = join(join(many(harness.client.clone()), many(other)), open).await;
    let paid = |statuses: &[u16]| statuses.iter().filter(|status| **status == 200).count();
    assert_eq!((paid(&first), paid(&second)), (3, 2));
    let books = harness.finish().await;
    assert!(
        books
            .users
            .iter()
            .all(|user| user.balance.nanos() == 0 && user.held.nanos() == 0)
    );
}
