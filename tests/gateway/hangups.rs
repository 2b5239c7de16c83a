//! A client that leaves pays for what it used: under `drain` what the upstream reports, under `cancel` an estimate.

use std::sync::Arc;
use std::time::Duration;

use codex_gateway::config::OnHangup;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Ended, Gate, Playwright, Request, Script, Served, ServedUsage, Step, Wire, always};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::{MODEL, chat, drain, response};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge};
use crate::upstreams::black_hole;

/// Long enough for an answer of this machine, however busy it is.
const PATIENCE: Duration = Duration::from_secs(20);

/// A prompt of a hundred tokens or so, so that a token of the frame is less than 5 % of a call; then the play.
fn prompt() -> String {
    format!(
        "{} sim:words-48",
        "The quick brown fox jumps over the lazy dog. ".repeat(10)
    )
}

/// A gate for each call, in the order of arrival: before its head, and before each event but the first.
struct Gates(Vec<Gate>);

impl Gates {
    fn new(count: usize) -> Gates {
        Gates((0..count).map(|_| Gate::closed()).collect())
    }

    fn playwright(&self) -> Playwright {
        let (gates, inner) = (self.0.clone(), standard(Pace::default()));
        Arc::new(move |request: &Request| {
            let gate = &gates[usize::try_from(request.id).expect("a small number")];
            let wait = Step::Wait(gate.clone());
            inner(request).between(&wait).first(wait)
        })
    }
}

/// The calls that are hung up on: path, body, and how many events their streams have.
fn streams() -> [(&'static str, Value, usize); 2] {
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    [
        // The role, 48 words, finish, usage, `[DONE]`.
        ("/v1/chat/completions", chat(&prompt(), &asked), 52),
        // created, in_progress, item, part, 48 words, the ends of text, part and item, completed.
        ("/v1/responses", response(&prompt(), &json!({"stream": true})), 56),
    ]
}

/// Reads until so many events have come; the framing of chunks has no empty line of two line feeds.
async fn read_events(socket: &mut TcpStream, count: usize) {
    let mut arrived = Vec::new();
    let ends = |bytes: &[u8]| bytes.windows(2).filter(|pair| pair == b"\n\n").count();
    while ends(&arrived) < count {
        let read = timeout(PATIENCE, socket.read_buf(&mut arrived)).await;
        assert_ne!(read.expect("an event in time").expect("bytes"), 0, "the stream goes on");
    }
    assert_eq!(ends(&arrived), count, "no event comes before it is let through");
}

/// Leaves, and waits until the gateway has noticed: it closes its side then.
pub async fn hang_up(mut socket: TcpStream) {
    socket.shutdown().await.expect("half a connection");
    let mut rest = Vec::new();
    // A reset says the same as an end.
    timeout(PATIENCE, socket.read_to_end(&mut rest))
        .await
        .expect("the gateway notices")
        .unwrap_or(0);
    // The socket is closed a moment before the answer is let go of, which nothing tells.
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Hangs up after `events` events (0: before the head) of the call of this number.
async fn leave_after(harness: &Harness, gate: &Gate, number: usize, path: &str, body: &Value, events: usize) {
    let mut socket = harness.client.raw(path, body).await;
    let written = |served: &[Served]| served.get(number).is_some_and(|served| served.usage.is_some());
    timeout(PATIENCE, harness.simulator.until(written))
        .await
        .expect("a call upstream");
    gate.let_through(events);
    read_events(&mut socket, events).await;
    hang_up(socket).await;
}

/// Hangs up at every event before the last of both kinds of stream, and before the head of unary answers.
async fn leave_everywhere(harness: &Harness, gates: &Gates, mut then: impl AsyncFnMut(&Harness, u64)) -> usize {
    let mut number = 0;
    let mut leave = async |path: &str, body: &Value, events: usize| {
        let gate = &gates.0[number];
        leave_after(harness, gate, number, path, body, events).await;
        then(harness, u64::try_from(number).expect("a small number")).await;
        number += 1;
    };
    for (path, body, events) in streams() {
        for after in 0..events {
            leave(path, &body, after).await;
        }
    }
    leave("/v1/chat/completions", &chat(&prompt(), &json!({})), 0).await;
    leave("/v1/responses", &response(&prompt(), &json!({})), 0).await;
    number
}

fn nanos(row: &ExchangeRow) -> (i128, i128) {
    let charge = i128::from(row.charge.nanos());
    (charge, charge - i128::from(row.uncollected.nanos()))
}

#[tokio::test(flavor = "multi_thread")]
async fn under_drain_a_client_that_leaves_pays_exactly_what_the_upstream_reports() {
    let gates = Gates::new(128);
    let harness = Harness::builder().playwright(gates.playwright()).start().await;
    let left = leave_everywhere(&harness, &gates, async |harness, number| {
        gates.0[usize::try_from(number).expect("a small number")].open();
        let served = timeout(PATIENCE, harness.simulator.ended(number))
            .await
            .expect("an end");
        assert_eq!(served.ended, Some(Ended::Completed), "{number}: read to its end");
    })
    .await;
    let served = harness.served();
    let books = harness.finish().await;
    assert_eq!((left, served.len(), books.exchanges.len()), (110, 110, 110));
    let price = catalogue("openai", MODEL);
    for (row, served) in books.exchanges.iter().zip(&served) {
        let expected = expected_charge(served.usage.as_ref().expect("a usage"), &price, "1");
        assert_eq!(row.basis, Basis::Reported, "{}", served.id);
        assert_eq!(nanos(row), (expected, expected), "{}", served.id);
    }
    // On a busy machine an answer may end before its exchange has heard that nobody reads it.
    let left = books.exchanges.iter().filter(|row| row.state == State::Left).count();
    assert!(left >= 100, "{left} of 110 are known to be left");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_cancel_a_client_that_leaves_before_there_is_a_connection_pays_nothing() {
    let (address, _listener, _waiting) = black_hole().await;
    let harness = Harness::builder()
        .on_hangup(OnHangup::Cancel)
        .tweak(|config| config.upstreams[0].base_url = address)
        .start()
        .await;
    let call = chat(&prompt(), &json!({"stream": true}));
    let socket = harness.client.raw("/v1/chat/completions", &call).await;
    while harness.user().held.nanos() == 0 {
        tokio::task::yield_now().await;
    }
    hang_up(socket).await;
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!(
        (row.state, row.charge.nanos(), row.usage.input_tokens.get()),
        (State::Left, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn under_cancel_a_client_that_leaves_pays_an_estimate_and_the_upstream_is_closed_within_a_second() {
    let gates = Gates::new(128);
    let harness = Harness::builder()
        .playwright(gates.playwright())
        .on_hangup(OnHangup::Cancel)
        .start()
        .await;
    leave_everywhere(&harness, &gates, async |harness, number| {
        let closed = timeout(Duration::from_secs(1), harness.simulator.closed(number)).await;
        let served = closed.unwrap_or_else(|_| panic!("{number}: the upstream is still open"));
        assert_eq!(served.ended, Some(Ended::ClientGone), "{number}");
    })
    .await;
    let served = harness.served();
    let books = harness.finish().await;
    assert_eq!((served.len(), books.exchanges.len()), (110, 110));
    let price = catalogue("openai", MODEL);
    for (row, served) in books.exchanges.iter().zip(&served) {
        let usage = served.usage.clone().expect("a usage");
        let so_far = ServedUsage {
            output: served.output_sent,
            ..usage.clone()
        };
        let (charge, expected) = (nanos(row).0, expected_charge(&so_far, &price, "1"));
        assert_eq!(row.state, State::Left, "{}", served.id);
        if row.basis == Basis::Reported {
            assert_eq!(served.output_sent, usage.output, "{}: the usage has passed", served.id);
        }
        assert!(charge >= expected, "{}: {charge} for {expected}", served.id);
        assert!(
            (charge - expected) * 20 <= expected,
            "{}: {charge} for {expected}",
            served.id
        );
        assert!(row.charge <= row.held && row.uncollected.nanos() == 0, "{}", served.id);
    }
    let reported = books
        .exchanges
        .iter()
        .filter(|row| row.basis == Basis::Reported)
        .count();
    assert_eq!(reported, 1, "only where the usage came before the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_key_says_of_leaving_counts_more_than_the_setting() {
    for (setting, of_key) in [(OnHangup::Cancel, OnHangup::Drain), (OnHangup::Drain, OnHangup::Cancel)] {
        let gates = Gates::new(1);
        let builder = Harness::builder().playwright(gates.playwright()).on_hangup(setting);
        let mut harness = builder.start().await;
        harness.client = harness.add_client_who("bob", "5", of_key);
        let (path, body, _) = &streams()[0];
        leave_after(&harness, &gates.0[0], 0, path, body, 3).await;
        if of_key == OnHangup::Drain {
            gates.0[0].open();
        }
        let served = timeout(PATIENCE, harness.simulator.ended(0)).await.expect("an end");
        let books = harness.finish().await;
        let expected = match of_key {
            OnHangup::Drain => (Some(Ended::Completed), Basis::Reported),
            OnHangup::Cancel => (Some(Ended::ClientGone), Basis::Estimated),
        };
        assert_eq!((served.ended, books.only().basis), expected);
        assert_eq!(books.only().state, State::Left);
    }
}

/// Events that show no output, 64 KiB each.
fn padding(count: u64) -> Step {
    Step::Repeat {
        bytes: format!(
            "data: {{\"choices\":[],\"pad\":\"{}\"}}\n\n",
            "x".repeat(64 * 1024 - 40)
        )
        .into(),
        times: count,
    }
}

fn end() -> [Step; 2] {
    let usage = json!({"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10});
    [
        Step::data(&json!({"choices": [], "usage": usage}), 0),
        Step::send("data: [DONE]\n\n"),
    ]
}

/// Waits until the upstream has got rid of nothing more for a while; how many bytes it has then.
async fn waits(harness: &Harness) -> u64 {
    let mut sent = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = harness.served().first().map_or(0, |served| served.bytes_sent);
        if now == sent && now > 0 {
            return sent;
        }
        sent = now;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn while_a_client_reads_nothing_its_upstream_waits_and_nothing_is_lost() {
    let mut steps = vec![padding(1_024)];
    steps.extend(end());
    let usage = ServedUsage {
        input: 9,
        output: 1,
        ..ServedUsage::default()
    };
    let playwright = always(Script::sse(steps).using(usage.clone()));
    let harness = Harness::builder().playwright(playwright).start().await;
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = harness
        .client
        .send("/v1/chat/completions", &chat("Hello", &asked))
        .await;
    let sent = waits(&harness).await;
    assert!(
        sent < 32 << 20,
        "{sent} of 64 MiB are on their way although nobody reads them"
    );
    let (arrived, ended) = drain(answer).await;
    ended.expect("a clean end");
    let served = harness.simulator.ended(0).await;
    assert_eq!(u64::try_from(arrived.len()).expect("a length"), served.bytes_sent);
    assert_eq!(arrived[..served.sent.len()], served.sent);
    let books = harness.finish().await;
    assert_eq!(
        books.charged(),
        expected_charge(&usage, &catalogue("openai", MODEL), "1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_the_gateway_waits_for_it_has_left() {
    let playwright = always(Script::sse(vec![padding(u64::MAX)]));
    let harness = Harness::builder()
        .playwright(playwright)
        .on_hangup(OnHangup::Cancel)
        .start()
        .await;
    let answer = harness
        .client
        .send("/v1/chat/completions", &chat("Hello", &json!({"stream": true})))
        .await;
    waits(&harness).await;
    drop(answer);
    let closed = timeout(Duration::from_secs(5), harness.simulator.closed(0)).await;
    assert_eq!(closed.expect("the upstream is closed").ended, Some(Ended::ClientGone));
    let books = harness.finish().await;
    assert_eq!(
        (books.only().state, books.only().basis),
        (State::Left, Basis::Estimated)
    );
}

/// A stream of one-token words that does not end.
fn endless_words() -> Playwright {
    Arc::new(|request: &Request| {
        let word = match request.wire() {
            Some(Wire::Responses) => Step::event(&json!({"type": "response.output_text.delta", "delta": " and"}), 1),
            _ => Step::data(&json!({"choices": [{"index": 0, "delta": {"content": " and"}}]}), 1),
        };
        let Step::Send { bytes, .. } = &word else {
            unreachable!()
        };
        Script::sse(vec![Step::Repeat {
            bytes: bytes.clone(),
            times: u64::MAX,
        }])
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endless_answer_is_drained_no_further_than_its_limit() {
    let harness = Harness::builder().playwright(endless_words()).start().await;
    for (number, (path, mut body, _)) in streams().into_iter().enumerate() {
        let field = if path.ends_with("responses") {
            "max_output_tokens"
        } else {
            "max_completion_tokens"
        };
        body[field] = 1_000.into();
        let mut socket = harness.client.raw(path, &body).await;
        let mut first = [0; 16];
        socket.read_exact(&mut first).await.expect("a head");
        hang_up(socket).await;
        let number = u64::try_from(number).expect("a small number");
        let closed = timeout(PATIENCE, harness.simulator.closed(number)).await;
        assert_eq!(closed.expect("an end").ended, Some(Ended::ClientGone));
    }
    let books = harness.finish().await;
    assert_eq!(books.exchanges.len(), 2);
    for row in &books.exchanges {
        assert_eq!((row.state, row.basis), (State::Left, Basis::Estimated));
        assert!(nanos(row).1 <= i128::from(row.held.nanos()));
        let output = row.usage.output_tokens.get();
        assert!((1_000..=1_064).contains(&output), "{output} tokens of a limit of 1,000");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_that_nobody_stayed_for_costs_nothing() {
    let gate = Gate::closed();
    let error = json!({"code": "server_error", "message": "It broke."});
    let failed = json!({"id": "resp_1", "object": "response", "status": "failed", "error": error});
    let event = json!({"type": "response.failed", "response": failed});
    let (unary, streamed) = (
        Script::json(http::StatusCode::OK, &failed),
        Script::sse(vec![Step::event(&event, 0)]),
    );
    let gated = gate.clone();
    let playwright: Playwright = Arc::new(move |request: &Request| {
        let script = if request.streamed() { &streamed } else { &unary };
        script
            .clone()
            .first(Step::Wait(gated.clone()))
            .using(ServedUsage::default())
    });
    let harness = Harness::builder().playwright(playwright).start().await;
    for (number, stream) in [false, true].into_iter().enumerate() {
        let body = response(&prompt(), &json!({"stream": stream}));
        leave_after(&harness, &gate, number, "/v1/responses", &body, 0).await;
        gate.let_through(1);
        harness
            .simulator
            .ended(u64::try_from(number).expect("a small number"))
            .await;
    }
    let books = harness.finish().await;
    assert_eq!((books.exchanges.len(), books.charged()), (2, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_does_not_hold_up_a_stop() {
    let word = Step::data(&json!({"choices": [{"index": 0, "delta": {"content": "Hello"}}]}), 1);
    let playwright = always(Script::sse(vec![word, padding(u64::MAX)]));
    let builder = Harness::builder().playwright(playwright);
    let harness = builder
        .tweak(|config| config.server.drain_timeout = Duration::from_millis(200))
        .start()
        .await;
    let answer = harness
        .client
        .send("/v1/chat/completions", &chat("Hello", &json!({"stream": true})))
        .await;
    waits(&harness).await;
    let books = timeout(PATIENCE, harness.finish()).await.expect("it stops");
    assert_eq!(
        (books.only().state, books.only().basis),
        (State::Cancelled, Basis::Estimated)
    );
    drop(answer);
}
