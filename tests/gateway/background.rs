//! Background responses: answered at once, charged once when they are over, whatever comes between; and seen by their user
//! only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use codex_gateway::config::OnHangup;
use codex_gateway::exchange::MOST_IN_BACKGROUND;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Playwright, Request, Script, Served, Step, always};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use codex_gateway::store::users::UserStatus;
use http::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL, events, exchange_of, response};
use crate::hangups::hang_up;
use crate::harness::{Harness, committed, operator};
use crate::price::{catalogue, expected_charge};
use crate::shutdown::Office;

/// Long enough for what the gateway does by itself, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the upstream says of its background responses.
#[derive(Clone, Debug)]
enum Says {
    /// This status, with no usage and no output.
    Status(&'static str),
    /// It is over.
    Whole,
    /// It is over, with another status.
    WholeAs(&'static str),
    /// An error.
    Error(u16),
}

/// An upstream whose background responses are as the test says.
#[derive(Clone)]
struct Stage {
    says: Arc<Mutex<Says>>,
    /// Before each event of a stream but the first.
    gate: Gate,
    wholes: Arc<Mutex<BTreeMap<String, Value>>>,
}

impl Stage {
    fn new() -> Stage {
        let gate = Gate::closed();
        gate.open();
        Stage {
            says: Arc::new(Mutex::new(Says::Status("in_progress"))),
            gate,
            wholes: Arc::default(),
        }
    }

    fn gated() -> Stage {
        Stage {
            gate: Gate::closed(),
            ..Stage::new()
        }
    }

    fn says(&self, says: Says) {
        *self.says.lock().expect("a lock") = says;
    }

    fn playwright(&self) -> Playwright {
        let (stage, inner) = (self.clone(), standard(Pace::default()));
        Arc::new(move |request: &Request| {
            let parts: Vec<&str> = request.route().split('/').skip(1).collect();
            let post = request.method == Method::POST;
            match parts[..] {
                ["responses"] if post && request.json["background"] == true => stage.begin(request, &inner),
                ["responses", id] if request.method == Method::GET => stage.tell(id),
                ["responses", id, "cancel"] if post => {
                    if matches!(*stage.says.lock().expect("a lock"), Says::Status("in_progress")) {
                        stage.says(Says::Status("cancelled"));
                    }
                    stage.tell(id)
                }
                _ => inner(request),
            }
        })
    }

    fn begin(&self, request: &Request, inner: &Playwright) -> Script {
        let mut at_once = request.clone();
        at_once.json["background"] = json!(false);
        let script = inner(&at_once);
        let send = |step: &Step| match step {
            Step::Send { bytes, .. } => Some(bytes.clone()),
            _ => None,
        };
        let sent: Vec<u8> = script.steps.iter().filter_map(send).flatten().collect();
        let whole = match request.streamed() {
            true => events(&sent).last().expect("an end")["response"].clone(),
            false => serde_json::from_slice(&sent).expect("a document"),
        };
        let id = whole["id"].as_str().expect("an id").to_owned();
        self.wholes.lock().expect("a lock").insert(id.clone(), whole);
        if request.streamed() {
            return script.between(&Step::Wait(self.gate.clone()));
        }
        Script {
            usage: script.usage,
            response_id: script.response_id,
            ..Script::json(StatusCode::OK, &self.now(&id, "queued"))
        }
    }

    /// As it is before its end.
    fn now(&self, id: &str, status: &str) -> Value {
        let mut now = self.wholes.lock().expect("a lock")[id].clone();
        for (member, value) in [("status", json!(status)), ("usage", Value::Null), ("output", json!([]))] {
            now[member] = value;
        }
        now
    }

    fn tell(&self, id: &str) -> Script {
        let says = self.says.lock().expect("a lock").clone();
        let mut whole = self.wholes.lock().expect("a lock")[id].clone();
        match says {
            Says::Status(status) => Script::json(StatusCode::OK, &self.now(id, status)),
            Says::Whole => Script::json(StatusCode::OK, &whole),
            Says::WholeAs(status) => {
                whole["status"] = json!(status);
                Script::json(StatusCode::OK, &whole)
            }
            Says::Error(status) => {
                let status = StatusCode::from_u16(status).expect("a status");
                Script::error(status, "invalid_request_error", "not_found", "Not to be had.")
            }
        }
    }

    async fn harness(&self) -> Harness {
        Harness::builder().playwright(self.playwright()).start().await
    }
}

fn body(more: &Value) -> Value {
    let mut body = response("Hello", more);
    body["background"] = json!(true);
    body
}

async fn create(client: &Client) -> (Answer, String) {
    let answer = client.post("/v1/responses", &body(&json!({}))).await.expect(200);
    let id = answer.json()["id"].as_str().expect("an id").to_owned();
    (answer, id)
}

/// A stream whose first event has come, its exchange, and its response's id.
async fn begun(client: &Client, body: &Value) -> (reqwest::Response, String, String) {
    let mut stream = client.send("/v1/responses", body).await;
    let exchange = exchange_of(&stream);
    let first = stream.chunk().await.expect("it comes").expect("an event");
    let id = events(&first)[0]["response"]["id"].as_str().expect("an id").to_owned();
    (stream, exchange, id)
}

async fn ask(client: &Client, method: Method, path: &str) -> Answer {
    let request = client.request(method, &format!("/v1/responses/{path}"));
    Answer::of(request.send().await.expect("the gateway answers")).await
}

/// Waits for what the gateway does by itself.
async fn settled(harness: &Harness, exchange: &str) -> ExchangeRow {
    let waits = async {
        loop {
            if let Some(row) = harness.store.find_exchange(exchange).expect("it reads") {
                return row;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("it is settled")
}

fn is_open(harness: &Harness, exchange: &str) -> bool {
    harness.store.find_exchange(exchange).expect("it reads").is_none()
}

/// What the calls that were made come to, by the upstream's own count.
fn expected(served: &[Served]) -> i128 {
    let price = catalogue("openai", MODEL);
    let usages = served.iter().filter_map(|served| served.usage.as_ref());
    usages.map(|usage| expected_charge(usage, &price, "1")).sum()
}

fn charge(row: &ExchangeRow) -> i128 {
    i128::from(row.charge.nanos())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_response_is_charged_when_it_is_over_and_not_before() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let (answer, id) = create(&harness.client).await;
    assert_eq!(
        (&answer.json()["status"], &answer.json()["usage"]),
        (&json!("queued"), &Value::Null)
    );
    assert!(!answer.headers.contains_key("x-gateway-cost"), "nothing is known yet");
    let exchange = answer.exchange().to_owned();
    harness.server_is_idle().await;
    let held = harness.user().held;
    assert!(held.nanos() > 0 && is_open(&harness, &exchange));
    let now = ask(&harness.client, Method::GET, &id).await.expect(200);
    assert_eq!(now.json()["status"], "in_progress");
    assert_eq!((harness.user().held, is_open(&harness, &exchange)), (held, true));
    let receipt = harness.client.get(&format!("/v1/gateway/requests/{exchange}")).await;
    assert_eq!(receipt.status, 404);

    stage.says(Says::Whole);
    let over = ask(&harness.client, Method::GET, &id).await.expect(200);
    assert_eq!(over.json()["status"], "completed");
    // Its receipt is there as soon as that it is over is told.
    let receipt = harness
        .client
        .get(&format!("/v1/gateway/requests/{id}"))
        .await
        .expect(200);
    assert_eq!(receipt.json()["id"], exchange);
    let row = harness.receipt(&exchange);
    assert_eq!((row.state, row.basis), (State::Completed, Basis::Reported));
    assert_eq!(charge(&row), expected(&harness.served()));
    assert_eq!(row.response_id.as_deref(), Some(&*id));
    assert_eq!(row.upstream_status, Some(200));
    assert_eq!(harness.user().held.nanos(), 0);
    // It may be leaned on, and asked for as any other.
    let more = response("And then?", &json!({"previous_response_id": id}));
    harness.client.post("/v1/responses", &more).await.expect(200);
    let asked = harness.served().len();
    ask(&harness.client, Method::GET, &id).await.expect(200);
    assert_eq!(harness.served().len(), asked + 1, "nobody else asks for it any more");
    let served = harness.served();
    assert!(
        served
            .iter()
            .all(|served| served.headers["authorization"] == "Bearer sk-upstream-secret")
    );
    let books = harness.finish().await;
    assert_eq!((books.exchanges.len(), books.charged()), (2, expected(&served)));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_nobody_asks_for_is_settled_all_the_same() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let (answer, _) = create(&harness.client).await;
    stage.says(Says::WholeAs("incomplete"));
    let row = settled(&harness, answer.exchange()).await;
    assert_eq!((row.state, row.basis), (State::Incomplete, Basis::Reported));
    let served = harness.served();
    assert_eq!(harness.finish().await.charged(), expected(&served));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_leaves_it_running_and_the_next_start_settles_it_once() {
    let stage = Stage::new();
    let mut harness = stage.harness().await;
    let (answer, id) = create(&harness.client).await;
    let held = harness.user().held;
    harness.stop().await;
    assert!(is_open(&harness, answer.exchange()));
    let found = harness.store.verify().expect("it verifies");
    assert_eq!((found.findings, found.open_holds), (Vec::new(), 1));
    harness.start_again().await;
    assert_eq!(
        (harness.user().held, is_open(&harness, answer.exchange())),
        (held, true)
    );
    stage.says(Says::Whole);
    ask(&harness.client, Method::GET, &id).await.expect(200);
    let row = harness.receipt(answer.exchange());
    assert_eq!((row.state, row.attempts), (State::Completed, 1));
    let served = harness.served();
    assert_eq!(harness.finish().await.charged(), expected(&served));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_killed_goes_on_with_what_runs_in_the_background() {
    let office = Office::new("").await;
    office.gate.open();
    let mut serving = office.serve();
    let client = office.client(&serving);
    let endless = response("sim:endless", &json!({"background": true}));
    let endless = client.post("/v1/responses", &endless).await.expect(200);
    let (answer, id) = create(&client).await;
    serving.signal(Signal::KILL);
    serving.end().await;
    assert!(office.alice().held.nanos() > 0, "the money is set aside");

    let serving = office.serve();
    let client = Client {
        base_url: serving.url.clone(),
        ..client
    };
    let waits = async {
        while ask(&client, Method::GET, &id).await.json()["status"] != "completed" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("it is over");
    let running = endless.json()["id"].as_str().expect("an id").to_owned();
    let cancelled = ask(&client, Method::POST, &format!("{running}/cancel"))
        .await
        .expect(200);
    assert_eq!(cancelled.json()["status"], "cancelled");
    serving.stop().await;
    let books = crate::books::Books::checked(&office.database());
    let row = books.exchange(answer.exchange());
    let price = catalogue("openai", MODEL);
    let served = office.simulator.served();
    let made = served.iter().find(|served| served.response_id.as_ref() == Some(&id));
    let usage = made.and_then(|served| served.usage.clone()).expect("a usage");
    assert_eq!(
        (row.state, charge(row)),
        (State::Completed, expected_charge(&usage, &price, "1"))
    );
    let row = books.exchange(endless.exchange());
    assert_eq!((row.state, row.basis), (State::Cancelled, Basis::Estimated));
    assert_eq!(books.exchanges.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_failed_or_cancelled_one_costs_is_what_the_upstream_says_of_it() {
    for (says, state, basis, is_whole) in [
        (Says::Status("failed"), State::Failed, Basis::Reported, false),
        (Says::WholeAs("failed"), State::Failed, Basis::Reported, true),
        (Says::WholeAs("cancelled"), State::Cancelled, Basis::Reported, true),
        (Says::Status("cancelled"), State::Cancelled, Basis::Estimated, false),
    ] {
        let stage = Stage::new();
        let harness = stage.harness().await;
        let (answer, id) = create(&harness.client).await;
        stage.says(says.clone());
        ask(&harness.client, Method::GET, &id).await.expect(200);
        let row = harness.receipt(answer.exchange());
        assert_eq!((row.state, row.basis), (state, basis), "{says:?}");
        assert_eq!(charge(&row) == expected(&harness.served()), is_whole, "{says:?}");
        assert_eq!(charge(&row) == 0, !is_whole && basis == Basis::Reported, "{says:?}");
        assert!(row.charge <= row.held, "{says:?}");
        let books = harness.finish().await;
        assert_eq!(books.charged(), charge(&row));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_its_user_cancels_is_settled_with_the_answer() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let (answer, id) = create(&harness.client).await;
    let cancelled = ask(&harness.client, Method::POST, &format!("{id}/cancel"))
        .await
        .expect(200);
    assert_eq!(cancelled.json()["status"], "cancelled");
    let row = harness.receipt(answer.exchange());
    assert_eq!((row.state, row.basis), (State::Cancelled, Basis::Estimated));
    assert!(charge(&row) > 0 && row.usage.output_tokens.get() == 0, "what it read");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_its_upstream_has_forgotten_is_settled_by_estimate() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let (answer, id) = create(&harness.client).await;
    stage.says(Says::Error(404));
    let began = Instant::now();
    let waits = async {
        while is_open(&harness, answer.exchange()) {
            assert_eq!(ask(&harness.client, Method::GET, &id).await.status, 404);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waits).await.expect("it is settled");
    let took = began.elapsed();
    assert!(
        took >= Duration::from_secs(2),
        "not sooner, however often it is asked for: {took:?}"
    );
    let row = harness.receipt(answer.exchange());
    assert_eq!((row.state, row.basis), (State::Broken, Basis::Estimated));
    assert!(charge(&row) > 0 && row.charge <= row.held, "{row:?}");
    let asked = harness
        .served()
        .iter()
        .filter(|served| served.method == Method::GET)
        .count();
    assert!(asked >= 3, "an upstream may find it a moment later: {asked}");
    harness.finish().await;
}

/// The trigger is there so that nobody does what the tests do here.
fn alter(harness: &Harness, set: &str) {
    harness.alter(&format!(
        "BEGIN; DROP TRIGGER background_responses_are_final; UPDATE background_responses SET {set};
         CREATE TRIGGER background_responses_are_final BEFORE UPDATE ON background_responses
         BEGIN SELECT RAISE(ABORT, 'what a background response is billed by is never changed'); END; COMMIT"
    ));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_waited_for_until_the_deadline_and_then_estimated() {
    for (says, upstream, state) in [
        (Says::Error(500), None, State::Broken),
        // It is told to cancel first, so that nobody gets it for what was read.
        (Says::Status("in_progress"), None, State::Cancelled),
        (Says::Whole, Some("gone"), State::Broken),
    ] {
        let stage = Stage::new();
        let mut harness = stage.harness().await;
        let (answer, id) = create(&harness.client).await;
        if upstream.is_none() {
            stage.says(says.clone());
            ask(&harness.client, Method::GET, &id).await;
        }
        harness.stop().await;
        if let Some(upstream) = upstream {
            alter(&harness, &format!("upstream = '{upstream}'"));
            // Nobody asks the one that has it.
            stage.says(says);
            harness.start_again().await;
            assert_eq!(ask(&harness.client, Method::GET, &id).await.status, 404);
            harness.stop().await;
        }
        assert!(is_open(&harness, answer.exchange()), "it is asked for again");
        alter(&harness, "deadline_at = (SELECT placed_at FROM holds)");
        harness.start_again().await;
        let row = settled(&harness, answer.exchange()).await;
        assert_eq!((row.state, row.basis), (state, Basis::Estimated));
        assert!(charge(&row) > 0 && row.charge <= row.held, "{row:?}");
        let served = harness.served();
        let cancelled = served.iter().filter(|served| served.path.ends_with("/cancel")).count();
        assert_eq!(cancelled, usize::from(state == State::Cancelled));
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_user_sees_nothing_of_it_and_its_own_user_all() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let bob = harness.add_client("bob", "5");
    let (_, id) = create(&harness.client).await;
    let paths = [
        (Method::GET, id.clone()),
        (Method::GET, format!("{id}?stream=true&starting_after=1")),
        (Method::GET, format!("{id}/input_items")),
        (Method::POST, format!("{id}/cancel")),
        (Method::DELETE, id.clone()),
    ];
    for says in [Says::Status("in_progress"), Says::Whole] {
        stage.says(says);
        for (method, path) in &paths {
            let told = ask(&bob, method.clone(), path).await;
            assert_eq!(
                (told.status, &told.json()["error"]["code"]),
                (StatusCode::NOT_FOUND, &json!("not_found"))
            );
        }
    }
    ask(&harness.client, Method::GET, &id).await.expect(200);
    for (method, path) in &paths {
        assert_eq!(ask(&bob, method.clone(), path).await.status, 404, "settled as well");
        ask(&harness.client, method.clone(), path).await.expect(200);
    }
    let lean = response("Hi", &json!({"previous_response_id": id}));
    assert_eq!(bob.post("/v1/responses", &lean).await.status, 400);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_runs_is_not_deleted_and_one_that_is_over_is_settled_first() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let (answer, id) = create(&harness.client).await;
    let refused = ask(&harness.client, Method::DELETE, &id).await.expect(400);
    assert_eq!(refused.json()["error"]["code"], "response_in_progress");
    assert!(harness.served().iter().all(|served| served.method != Method::DELETE));
    stage.says(Says::Whole);
    ask(&harness.client, Method::DELETE, &id).await.expect(200);
    assert_eq!(charge(&harness.receipt(answer.exchange())), expected(&harness.served()));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_ask_for_it_at_once_it_is_settled_once() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let (answer, id) = create(&harness.client).await;
    stage.says(Says::Whole);
    let asks = (0..16).map(|_| ask(&harness.client, Method::GET, &id));
    for told in futures_util::future::join_all(asks).await {
        assert_eq!(told.expect(200).json()["status"], "completed");
    }
    harness.receipt(answer.exchange());
    let served = harness.served();
    let books = harness.finish().await;
    assert_eq!((books.exchanges.len(), books.charged()), (1, expected(&served)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_one_is_settled_by_its_own_end() {
    let harness = Harness::start().await;
    let streamed = harness
        .client
        .post("/v1/responses", &body(&json!({"stream": true})))
        .await
        .expect(200);
    let end = events(&streamed.body).pop().expect("an end");
    assert_eq!(end["type"], "response.completed");
    let row = harness.receipt(streamed.exchange());
    assert_eq!(
        (row.state, charge(&row)),
        (State::Completed, expected(&harness.served()))
    );
    // It is read once more from there on, for nothing.
    let id = end["response"]["id"].as_str().expect("an id");
    let again = ask(
        &harness.client,
        Method::GET,
        &format!("{id}?stream=true&starting_after=3"),
    )
    .await
    .expect(200);
    let read = events(&again.body);
    assert_eq!((&read[0]["sequence_number"], read.last()), (&json!(4), Some(&end)));
    assert_eq!(harness.finish().await.exchanges.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_its_client_leaves_runs_on_and_is_charged_for_all_of_it() {
    for on_hangup in [OnHangup::Drain, OnHangup::Cancel] {
        let stage = Stage::gated();
        let builder = Harness::builder().playwright(stage.playwright());
        let harness = builder.on_hangup(on_hangup).start().await;
        let (stream, exchange, id) = begun(&harness.client, &body(&json!({"stream": true}))).await;
        drop(stream);
        // The gateway lets go of it at once, and has it settled when it is over.
        harness.simulator.closed(0).await;
        harness.server_is_idle().await;
        assert!(is_open(&harness, &exchange) && harness.user().held.nanos() > 0);
        let now = ask(&harness.client, Method::GET, &id).await.expect(200);
        assert_eq!(now.json()["status"], "in_progress");
        stage.says(Says::Whole);
        ask(&harness.client, Method::GET, &id).await.expect(200);
        let row = harness.receipt(&exchange);
        assert_eq!((row.state, row.basis), (State::Completed, Basis::Reported));
        assert_eq!(charge(&row), expected(&harness.served()));
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_or_is_cut_is_torn_and_its_response_settled_when_it_is_over() {
    for breaks in [true, false] {
        let stage = Stage::gated();
        let inner = stage.playwright();
        let broken: Playwright = Arc::new(move |request: &Request| match breaks && request.streamed() {
            true => inner(request).cut(5, Step::Break),
            false => inner(request),
        });
        let mut harness = Harness::builder().playwright(broken).start().await;
        let (stream, exchange, id) = begun(&harness.client, &body(&json!({"stream": true}))).await;
        match breaks {
            true => stage.gate.open(),
            false => harness.cut_off(),
        }
        let (rest, end) = crate::client::drain(stream).await;
        assert!(end.is_err(), "it has not ended");
        let told = String::from_utf8_lossy(&rest).into_owned();
        assert!(!told.contains("response.failed"), "nor has the response failed: {told}");
        harness.stop().await;
        assert!(is_open(&harness, &exchange));
        harness.start_again().await;
        stage.says(Says::Whole);
        ask(&harness.client, Method::GET, &id).await.expect(200);
        let row = harness.receipt(&exchange);
        assert_eq!(
            (row.state, charge(&row)),
            (State::Completed, expected(&harness.served()))
        );
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resumed_stream_ends_when_its_response_is_settled() {
    let harness = Harness::start().await;
    let slow = response("sim:slow", &json!({"background": true, "stream": true}));
    let (stream, exchange, id) = begun(&harness.client, &slow).await;
    drop(stream);
    harness.simulator.closed(0).await;
    let resumed = ask(
        &harness.client,
        Method::GET,
        &format!("{id}?stream=true&starting_after=1"),
    )
    .await
    .expect(200);
    assert_eq!(
        events(&resumed.body).last().expect("an end")["type"],
        "response.completed"
    );
    let row = harness.receipt(&exchange);
    assert_eq!(
        (row.state, charge(&row)),
        (State::Completed, expected(&harness.served()))
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_settled_though_its_user_is_suspended_and_its_key_revoked() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let (answer, _) = create(&harness.client).await;
    let (store, client) = (&harness.store, &harness.client);
    let now = codex_gateway::time::now();
    committed(store.set_user_status(client.user, UserStatus::Suspended, &operator(), now));
    committed(store.revoke_key(client.key_id, &operator(), now));
    stage.says(Says::Whole);
    let row = settled(&harness, answer.exchange()).await;
    assert_eq!(charge(&row), expected(&harness.served()));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_runs_in_the_background_is_no_running_call_of_its_key() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let limited = harness.issue("--name one --concurrency 1");
    let (_, first) = create(&limited).await;
    let (_, second) = create(&limited).await;
    stage.says(Says::Whole);
    for id in [first, second] {
        ask(&limited, Method::GET, &id).await.expect(200);
    }
    let served = harness.served();
    assert_eq!(harness.finish().await.charged(), expected(&served));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_stands_for_it_from_its_create_on() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let call = async || {
        let request = harness.client.request(Method::POST, "/v1/responses");
        let request = request
            .header("idempotency-key", "once")
            .header("content-type", "application/json");
        let answer = request.body(body(&json!({})).to_string()).send().await;
        Answer::of(answer.expect("the gateway answers")).await
    };
    let first = call().await.expect(200);
    let again = call().await.expect(409);
    assert_eq!(again.json()["error"]["code"], "idempotency_in_progress");
    assert_eq!(again.json()["error"]["gateway"]["exchange"], first.exchange());
    stage.says(Says::Whole);
    let id = first.json()["id"].as_str().expect("an id").to_owned();
    ask(&harness.client, Method::GET, &id).await.expect(200);
    assert_eq!(call().await.json()["error"]["gateway"]["code"], "already_done");
    let served = harness.served();
    assert_eq!(harness.finish().await.charged(), expected(&served));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_of_chat_completions_has_none_and_other_endpoints_neither() {
    let harness = Harness::builder().upstream("wire = \"chat\"").start().await;
    let refused = harness
        .client
        .post("/v1/responses", &body(&json!({})))
        .await
        .expect(400);
    let error = refused.json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("unsupported_parameter"), &json!("background"))
    );
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.contains("another model")),
        "{error}"
    );
    let chat = crate::client::chat("Hello", &json!({"background": true}));
    let refused = harness.client.post("/v1/chat/completions", &chat).await.expect(400);
    let error = refused.json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["param"]),
        (&json!("unsupported_parameter"), &json!("background"))
    );
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|text| text.contains("/v1/responses")),
        "{error}"
    );
    assert_eq!(harness.served().len(), 0);
    assert_eq!(harness.finish().await.exchanges, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_whose_client_leaves_before_it_is_answered_is_charged_when_it_is_over() {
    for on_hangup in [OnHangup::Drain, OnHangup::Cancel] {
        let stage = Stage::new();
        let (gate, inner) = (Gate::closed(), stage.playwright());
        let waits = Step::Wait(gate.clone());
        let playwright: Playwright = Arc::new(move |request: &Request| match request.method == Method::POST {
            true => inner(request).first(waits.clone()),
            false => inner(request),
        });
        let builder = Harness::builder().playwright(playwright);
        let harness = builder.on_hangup(on_hangup).start().await;
        let socket = harness.client.raw("/v1/responses", &body(&json!({}))).await;
        harness.simulator.arrived(1).await;
        hang_up(socket).await;
        gate.open();
        harness.server_is_idle().await;
        let run = || {
            harness
                .store
                .background_responses_of(harness.client.user)
                .expect("it reads")
        };
        assert_eq!(run(), 1, "{on_hangup:?}: it runs on at its upstream");
        stage.says(Says::Whole);
        let is_settled = async {
            while run() > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, is_settled).await.expect("it is settled");
        let served = harness.served();
        let books = harness.finish().await;
        let row = books.only();
        assert_eq!(
            (row.state, row.basis),
            (State::Completed, Basis::Reported),
            "{on_hangup:?}"
        );
        assert_eq!(charge(row), expected(&served), "{on_hangup:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_with_a_long_id_is_asked_for_like_any_other() {
    let told = |status: &str, usage: Value| {
        json!({"id": format!("resp_{}", "a".repeat(800)), "object": "response", "model": MODEL, "status": status,
            "output": [], "usage": usage})
    };
    let usage = json!({"input_tokens": 100, "output_tokens": 40, "total_tokens": 140});
    let (queued, whole) = (told("queued", Value::Null), told("completed", usage));
    let playwright: Playwright = Arc::new(move |request: &Request| match request.method == Method::POST {
        true => Script::json(StatusCode::OK, &queued),
        false => Script::json(StatusCode::OK, &whole),
    });
    let harness = Harness::builder().playwright(playwright).start().await;
    let (answer, id) = create(&harness.client).await;
    let over = ask(&harness.client, Method::GET, &id).await.expect(200);
    assert_eq!(over.json()["status"], "completed");
    let row = harness.receipt(answer.exchange());
    // 100 × $2 + 40 × $10 per million.
    assert_eq!(
        (row.state, row.basis, charge(&row)),
        (State::Completed, Basis::Reported, 600_000)
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_nobody_could_ask_for_is_no_answer() {
    for id in [json!("resp/1"), Value::Null] {
        let queued = json!({"id": id, "object": "response", "status": "queued", "output": [], "usage": null});
        let playwright = always(Script::json(StatusCode::OK, &queued));
        let harness = Harness::builder().playwright(playwright).start().await;
        let answer = harness
            .client
            .post("/v1/responses", &body(&json!({})))
            .await
            .expect(503);
        assert!(answer.text().contains("othing was charged"), "{}", answer.text());
        let row = harness.receipt(answer.exchange());
        assert_eq!((row.state, charge(&row)), (State::Failed, 0));
        harness.finish().await;
    }
}

/// How often a response was asked for.
fn asked(served: &[Served]) -> usize {
    served.iter().filter(|served| served.method == Method::GET).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_runs_is_asked_for_at_a_slow_pace() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let (answer, _) = create(&harness.client).await;
    let began = Instant::now();
    let times = harness.simulator.until(|served| asked(served) >= 3);
    tokio::time::timeout(PATIENCE, times).await.expect("it is asked for");
    // Each second at first.
    assert!(began.elapsed() >= Duration::from_millis(2_900), "{:?}", began.elapsed());
    stage.says(Says::Whole);
    settled(&harness, answer.exchange()).await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_run_only_some_are_asked_for_at_once() {
    const AT_ONCE: usize = 16;
    let stage = Stage::new();
    let (gate, inner) = (Gate::closed(), stage.playwright());
    let waits = Step::Wait(gate.clone());
    let playwright: Playwright = Arc::new(move |request: &Request| match request.method == Method::GET {
        true => inner(request).first(waits.clone()),
        false => inner(request),
    });
    let harness = Harness::builder().balance("100").playwright(playwright).start().await;
    let mut exchanges = Vec::new();
    for _ in 0..AT_ONCE + 4 {
        exchanges.push(create(&harness.client).await.0.exchange().to_owned());
    }
    let all = harness.simulator.until(|served| asked(served) >= AT_ONCE);
    tokio::time::timeout(PATIENCE, all).await.expect("they are asked for");
    // By now the others would be, too.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(asked(&harness.served()), AT_ONCE);
    stage.says(Says::Whole);
    gate.open();
    for exchange in &exchanges {
        settled(&harness, exchange).await;
    }
    let served = harness.served();
    assert_eq!(harness.finish().await.charged(), expected(&served));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_so_many_that_run_and_no_more() {
    let stage = Stage::new();
    let harness = stage.harness().await;
    let bob = harness.add_client("bob", "5");
    let (answer, _) = create(&harness.client).await;
    // Rows without holds, as no gateway makes them, in the place of as many calls.
    let more = MOST_IN_BACKGROUND - 2;
    harness.alter(&format!(
        "PRAGMA foreign_keys = OFF; BEGIN; DROP TRIGGER background_responses_are_held;
         WITH RECURSIVE numbers (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM numbers WHERE number < {more})
         INSERT INTO background_responses
         SELECT randomblob(16), user_id, 'other-' || number, upstream, deadline_at, tier, cache_ttl, price, price_from,
                image_price, search, region, markup, input_tokens, upstream_request_id, upstream_status, attempts,
                first_byte_us, tries
         FROM background_responses, numbers; COMMIT"
    ));
    let (last, _) = create(&harness.client).await;
    let refused = harness
        .client
        .post("/v1/responses", &body(&json!({})))
        .await
        .expect(429);
    assert!(refused.text().contains("1000"), "{}", refused.text());
    let (bobs, _) = create(&bob).await;
    let posted = harness
        .served()
        .iter()
        .filter(|served| served.method == Method::POST)
        .count();
    assert_eq!(posted, 3, "the one that is refused reaches no upstream");
    harness.alter(
        "PRAGMA foreign_keys = OFF; BEGIN; DELETE FROM background_responses WHERE response_id LIKE 'other-%';
         CREATE TRIGGER background_responses_are_held BEFORE INSERT ON background_responses
         WHEN (SELECT state FROM holds WHERE exchange_id = NEW.exchange_id AND user_id = NEW.user_id) IS NOT 'open'
         BEGIN SELECT RAISE(ABORT, 'a background response has an open hold'); END; COMMIT",
    );
    let (again, _) = create(&harness.client).await;
    stage.says(Says::Whole);
    for answer in [&answer, &last, &bobs, &again] {
        settled(&harness, answer.exchange()).await;
    }
    harness.finish().await;
}
