//! Parallel calls never spend more than there is, and never anybody else's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Playwright, Request, Step};
use codex_gateway::store::usage_log::{Basis, State};
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use crate::campaign::{self, Dice};
use crate::client::{Answer, Client, MODEL, chat, response};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge};

/// 16 tokens of output cost $1 and nothing else costs anything, so that hold = charge = $1.
pub const DOLLAR_MODEL: &str = "one-dollar";
pub const DOLLAR_PRICE: &str = r#"{"kind":"text","rates":{"input":"0","output":"62500"},"max_output":128000}"#;
const DOLLAR: i64 = 1_000_000_000;

/// No call takes so long to be decided.
const PATIENCE: Duration = Duration::from_secs(30);

/// A call that costs exactly $1 and says so beforehand.
pub fn dollar_call() -> Value {
    let dollar = json!({"model": DOLLAR_MODEL, "max_completion_tokens": 16});
    chat("sim:words-16", &dollar)
}

/// Answers as usual, each as the gate lets it through.
pub fn gated(gate: &Gate) -> Playwright {
    let (gate, inner) = (gate.clone(), standard(Pace::default()));
    Arc::new(move |request: &Request| inner(request).first(Step::Wait(gate.clone())))
}

/// Sends the same call `count` times at once, the clients taking turns.
pub fn rush(clients: &[Client], count: usize, path: &'static str, body: &Value) -> JoinSet<Answer> {
    let barrier = Arc::new(Barrier::new(count));
    let mut calls = JoinSet::new();
    for client in clients.iter().cycle().take(count) {
        let (client, barrier, body) = (client.clone(), Arc::clone(&barrier), body.clone());
        calls.spawn(async move {
            barrier.wait().await;
            client.post(path, &body).await
        });
    }
    calls
}

/// The next answers, in the order they come; while the gate is closed only refusals do.
pub async fn next(calls: &mut JoinSet<Answer>, count: usize) -> Vec<Answer> {
    let mut answers = Vec::new();
    while answers.len() < count {
        let next = tokio::time::timeout(PATIENCE, calls.join_next()).await;
        let next = next.unwrap_or_else(|_| panic!("{} of {count} calls are answered, and no more", answers.len()));
        answers.push(next.expect("a call is left").expect("it ended"));
    }
    answers
}

/// The money is only held by running calls: come again.
fn assert_held(answer: &Answer) {
    assert_eq!(answer.status.as_u16(), 429, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["code"], &error["gateway"]["code"]),
        (&json!("rate_limit_exceeded"), &json!("rate_limit_exceeded"))
    );
    assert_eq!(error["gateway"]["needed"], "1", "{error}");
    assert!(
        matches!(answer.header("retry-after").parse(), Ok(1..=10)),
        "{:?}",
        answer.headers
    );
    assert_eq!(answer.header("x-should-retry"), "", "it may be repeated");
}

/// The money is gone: repeating helps nobody, and the user reads why.
fn assert_gone(answer: &Answer) {
    assert_eq!(answer.status.as_u16(), 429, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["code"], &error["type"]),
        (&json!("insufficient_quota"), &json!("usage_limit_reached"))
    );
    assert_eq!(
        (
            &error["gateway"]["available"],
            &error["gateway"]["held"],
            &error["gateway"]["needed"]
        ),
        (&json!("0"), &json!("0"), &json!("1"))
    );
    assert_eq!(
        (answer.header("x-should-retry"), answer.header("retry-after")),
        ("false", "")
    );
    let promo = answer.header("x-codex-promo-message");
    assert!(promo.contains("$1.00") && promo.contains("$0.00"), "{promo}");
}

/// Ten times as many calls as there is money for, at once.
const CALLS_PER_DOLLAR: usize = 10;

/// Races on one server: its log of what it served is searched for each.
const RACES_PER_SERVER: usize = 100;

/// A race: dollars for so many of ten times as many calls.
struct Race {
    dollars: usize,
    path: &'static str,
    body: Value,
}

impl Race {
    fn random(dice: &mut Dice) -> Race {
        let streamed = json!({"stream": dice.roll(2) == 0, "model": DOLLAR_MODEL});
        let (path, mut body) = match dice.roll(2) {
            0 => ("/v1/chat/completions", chat("sim:words-16", &streamed)),
            _ => ("/v1/responses", response("sim:words-16", &streamed)),
        };
        let limit = ["max_completion_tokens", "max_output_tokens"][usize::from(path.ends_with("responses"))];
        body[limit] = json!(16);
        Race {
            dollars: 1 + dice.roll(7),
            path,
            body,
        }
    }

    fn calls(&self) -> usize {
        self.dollars * CALLS_PER_DOLLAR
    }

    /// Nobody is answered before everybody is decided.
    async fn run(&self, harness: &Harness, gate: &Gate, number: usize, served: &mut usize) {
        let user = harness.add_client(&format!("user-{number}"), &self.dollars.to_string());
        let mut calls = rush(std::slice::from_ref(&user), self.calls(), self.path, &self.body);
        let refused = next(&mut calls, self.calls() - self.dollars).await;
        refused.iter().for_each(assert_held);
        *served += self.dollars;
        let seen = harness.simulator.arrived(*served).await.len();
        assert_eq!(seen, *served, "race {number}: {} of {}", self.dollars, self.calls());
        gate.let_through(self.dollars);
        for answer in next(&mut calls, self.dollars).await {
            answer.expect(200);
        }
        assert_gone(&user.post(self.path, &self.body).await);
        assert_eq!(harness.served().len(), *served, "race {number}");
    }
}

/// Runs races on a server of their own; how many calls they were.
async fn race(races: &[Race]) -> usize {
    let gate = Gate::closed();
    let builder = Harness::builder()
        .playwright(gated(&gate))
        .price(DOLLAR_MODEL, DOLLAR_PRICE);
    let harness = builder.start().await;
    let mut served = 0;
    for (number, race) in races.iter().enumerate() {
        race.run(&harness, &gate, number, &mut served).await;
    }
    let books = harness.finish().await;
    assert_eq!(books.exchanges.len(), served);
    for row in &books.exchanges {
        assert_eq!((row.state, row.basis), (State::Completed, Basis::Reported));
        assert_eq!(
            (row.held.nanos(), row.charge.nanos(), row.uncollected.nanos()),
            (DOLLAR, DOLLAR, 0)
        );
    }
    let spent = books.users.iter().filter(|user| user.name.starts_with("user-"));
    assert!(spent.clone().count() == races.len() && spent.clone().all(|user| user.balance.nanos() == 0));
    races.iter().map(Race::calls).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn money_for_some_of_many_calls_at_once_pays_for_exactly_those() {
    let mut dice = Dice(campaign::seed());
    let count = campaign::size("GATEWAY_RACES", 10);
    let races: Vec<Race> = (0..count).map(|_| Race::random(&mut dice)).collect();
    let mut calls = 0;
    for races in races.chunks(RACES_PER_SERVER) {
        calls += race(races).await;
    }
    let paid: usize = races.iter().map(|race| race.dollars).sum();
    campaign::report("races", json!({"races": races.len(), "calls": calls, "paid": paid}));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_dollar_is_spent_once_whichever_key_asks() {
    let harness = Harness::builder()
        .balance("7")
        .price(DOLLAR_MODEL, DOLLAR_PRICE)
        .start()
        .await;
    let clients = [
        harness.client.clone(),
        harness.issue("--name second"),
        harness.issue("--name third"),
    ];
    let mut calls = rush(
        &clients,
        90,
        "/v1/responses",
        &response("sim:words-16", &json!({"model": DOLLAR_MODEL, "max_output_tokens": 16})),
    );
    let answers = next(&mut calls, 90).await;
    let paid = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(
        (paid, harness.served().len()),
        (7, 7),
        "by whichever of the user's keys"
    );
    assert_eq!(answers.iter().filter(|answer| answer.status == 429).count(), 83);
    let books = harness.finish().await;
    assert_eq!((books.exchanges.len(), books.charged()), (7, 7 * i128::from(DOLLAR)));
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_pays_for_another_users_calls() {
    let gate = Gate::closed();
    let builder = Harness::builder()
        .playwright(gated(&gate))
        .price(DOLLAR_MODEL, DOLLAR_PRICE);
    let harness = builder.start().await;
    let rich = harness.add_client("rich", "1000000");
    let users: Vec<Client> = (1..=5)
        .map(|dollars| harness.add_client(&format!("has-{dollars}"), &dollars.to_string()))
        .collect();
    let mut calls = rush(&users, 100, "/v1/chat/completions", &dollar_call());
    next(&mut calls, 100 - 15).await.iter().for_each(assert_held);
    assert_eq!(harness.simulator.arrived(15).await.len(), 15);
    let of = |client: &Client| {
        harness
            .store
            .find_user(&client.user.0.to_string())
            .expect("read")
            .expect("there")
    };
    for (user, dollars) in users.iter().zip(1..) {
        assert_eq!(
            (of(user).held.nanos(), of(user).balance.nanos()),
            (dollars * DOLLAR, dollars * DOLLAR)
        );
    }
    for bystander in [&rich, &harness.client] {
        assert_eq!(of(bystander).held.nanos(), 0, "while the others' calls run");
    }
    gate.open();
    next(&mut calls, 15)
        .await
        .into_iter()
        .for_each(|answer| drop(answer.expect(200)));
    let alice = harness.client.clone();
    let books = harness.finish().await;
    let mut paid: BTreeMap<_, i64> = BTreeMap::new();
    books
        .exchanges
        .iter()
        .for_each(|row| *paid.entry(row.user.0).or_default() += row.charge.nanos());
    let expected = users
        .iter()
        .zip(1..)
        .map(|(user, dollars)| (user.user.0, dollars * DOLLAR));
    assert_eq!(paid, expected.collect());
    let balance = |client: &Client| {
        books
            .users
            .iter()
            .find(|user| user.id == client.user)
            .map(|user| user.balance.nanos())
    };
    assert_eq!(
        (balance(&rich), balance(&alice)),
        (Some(1_000_000 * DOLLAR), Some(5 * DOLLAR))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_without_a_limit_share_a_small_balance_and_the_bills_are_the_upstreams() {
    let harness = Harness::builder().balance("0.5").start().await;
    let mut calls = rush(
        std::slice::from_ref(&harness.client),
        60,
        "/v1/responses",
        &response("Hello", &json!({})),
    );
    let answers = next(&mut calls, 60).await;
    let (paid, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert!(paid.len() > 1, "one call does not lock the whole balance");
    for answer in refused {
        assert_eq!(
            answer.json()["error"]["code"],
            "rate_limit_exceeded",
            "{}",
            answer.text()
        );
    }
    let served = harness.served();
    assert_eq!(served.len(), paid.len());
    let price = catalogue("openai", MODEL);
    let expected = served.iter().filter_map(|served| served.usage.as_ref());
    let expected: i128 = expected.map(|usage| expected_charge(usage, &price, "1")).sum();
    assert_eq!(harness.finish().await.charged(), expected);
}
