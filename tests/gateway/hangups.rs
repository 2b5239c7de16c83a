//! A client that hangs up pays for what it used: to the nano-dollar under drain, by a close estimate under cancel.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use codex_gateway::config::OnHangup;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Ended, Gate, Playwright, Request, Served, Step};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::client::{Client, MODEL, chat, events, response};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge};

/// Words of each answer: one token and one event each.
const WORDS: usize = 100;

/// A gate for each prompt, between every two events of its answer.
#[derive(Clone, Default)]
struct Gates(Arc<Mutex<HashMap<String, Gate>>>);

impl Gates {
    fn of(&self, prompt: &str) -> Gate {
        let mut gates = self.0.lock().expect("no panic before");
        gates.entry(prompt.to_owned()).or_insert_with(Gate::closed).clone()
    }

    fn playwright(&self) -> Playwright {
        let (inner, gates) = (standard(Pace::default()), self.clone());
        Arc::new(move |request: &Request| {
            let gate = gates.of(&request.prompt().0);
            let wordy = Request {
                model: format!("sim-words-{WORDS}"),
                ..request.clone()
            };
            inner(&wordy).between(&Step::Wait(gate))
        })
    }
}

/// Reads so many events and hangs up; gives the exchange's id.
async fn read_and_leave(
    client: &Client,
    gates: &Gates,
    path: &str,
    body: &Value,
    prompt: &str,
    count: usize,
) -> String {
    gates.of(prompt).let_through(count - 1);
    let mut answer = client.send(path, body).await;
    let id = answer.headers()["x-request-id"].to_str().expect("text").to_owned();
    let mut arrived = Vec::new();
    while events(&arrived).len() < count {
        let piece = answer.chunk().await.expect("a piece").expect("not the end");
        arrived.extend_from_slice(&piece);
    }
    id
}

/// The upstream's side of an exchange, by the prompt.
fn served(harness: &Harness, prompt: &str) -> Served {
    let quoted = format!("\"{prompt}\"");
    let all = harness.served().into_iter();
    let mut found = all.filter(|served| String::from_utf8_lossy(&served.body).contains(&quoted));
    found.next().expect("it went upstream")
}

fn calls(number: usize) -> [(&'static str, String, Value); 2] {
    let stream = json!({"stream": true, "stream_options": {"include_usage": true}});
    // Long enough that the few tokens around a message, which estimates round up, are within the 5 %.
    let long = " and".repeat(100);
    let (first, second) = (format!("chat {number}{long}"), format!("response {number}{long}"));
    [
        ("/v1/chat/completions", first.clone(), chat(&first, &stream)),
        (
            "/v1/responses",
            second.clone(),
            response(&second, &json!({"stream": true})),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn under_drain_a_client_that_leaves_at_any_event_pays_what_the_upstream_reports() {
    let gates = Gates::default();
    let harness = Harness::builder()
        .balance("500")
        .playwright(gates.playwright())
        .start()
        .await;
    let leave = |number: usize| {
        let (harness, gates) = (&harness, &gates);
        async move {
            let mut left = Vec::new();
            for (path, prompt, body) in calls(number) {
                let id = read_and_leave(&harness.client, gates, path, &body, &prompt, number).await;
                gates.of(&prompt).open();
                let ended = harness.simulator.ended(served(harness, &prompt).id).await;
                assert_eq!(ended.ended, Some(Ended::Completed), "{prompt}: read to its end");
                left.push((id, ended.usage.expect("a usage")));
            }
            left
        }
    };
    let left: Vec<_> = join_all((1..=WORDS).map(leave)).await.into_iter().flatten().collect();
    let books = harness.finish().await;
    let price = catalogue("openai", MODEL);
    assert_eq!((left.len(), books.exchanges.len()), (2 * WORDS, 2 * WORDS));
    assert!(books.exchanges.iter().any(|row| row.state == State::Left));
    for (id, usage) in left {
        let row = books.exchange(&id);
        // The rest may fit into the socket's buffer before the close is noticed: then nobody can tell that it was unread.
        assert!(
            matches!(row.state, State::Left | State::Completed),
            "{id}: {:?}",
            row.state
        );
        assert_eq!(row.basis, Basis::Reported, "{id}");
        assert_eq!(
            i128::from(row.charge.nanos()),
            expected_charge(&usage, &price, "1"),
            "{id}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_cancel_a_client_that_leaves_at_any_event_pays_a_close_estimate() {
    let gates = Gates::default();
    let builder = Harness::builder().balance("500").on_hangup(OnHangup::Cancel);
    let harness = builder.playwright(gates.playwright()).start().await;
    let mut left = Vec::new();
    for number in 1..=WORDS {
        for (path, prompt, body) in calls(number) {
            let id = read_and_leave(&harness.client, &gates, path, &body, &prompt, number).await;
            let closing = harness.simulator.closed(served(&harness, &prompt).id);
            let closed = tokio::time::timeout(Duration::from_secs(1), closing).await;
            let closed = closed.unwrap_or_else(|_| panic!("{prompt}: the upstream's connection stays open"));
            assert_eq!(closed.ended, Some(Ended::ClientGone), "{prompt}");
            left.push((id, closed));
        }
    }
    let books = harness.finish().await;
    for (id, served) in left {
        check_estimate(books.exchange(&id), &served);
    }
}

/// At least what was counted, within 5 % of the upstream's own count, and never more than was held.
fn check_estimate(row: &ExchangeRow, served: &Served) {
    assert_eq!((row.state, row.basis), (State::Left, Basis::Estimated));
    assert!(row.charge <= row.held);
    let input = served.usage.as_ref().expect("a usage").input;
    let near = |estimate: u64, count: u64, what: &str| {
        assert!(
            estimate >= count && estimate * 20 <= count * 21,
            "{what}: {estimate} for {count}"
        );
    };
    near(row.usage.input_tokens.get(), input, "input");
    near(row.usage.output_tokens.get(), served.output_sent, "output");
}
