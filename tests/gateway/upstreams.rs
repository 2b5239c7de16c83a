//! Several upstreams for a model: who is asked, what is sent once more and what never is, and that it is paid once.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use codex_gateway::config::{Config, Pricing};
use codex_gateway::pricing::ListName;
use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Playwright, Request, Script, Served, Step, always};
use codex_gateway::store::usage_log::{ExchangeRow, State};
use futures_util::StreamExt;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Answer, Client, MODEL, chat, drain, events, response};
use crate::harness::{Builder, Harness};
use crate::price::{catalogue, expected_charge};

/// Extra calls that there are to begin with.
const SAVED: usize = 10;

/// Two upstreams of the same priority, with these settings each.
fn equals(first: &str, second: &str) -> Builder {
    Harness::builder()
        .second(standard(Pace::default()))
        .upstream(&format!("priority = 0\n{first}"))
        .of_second(&format!("priority = 0\n{second}"))
}

/// An address at which nobody listens.
fn nobody() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    format!("http://{}/v1", listener.local_addr().expect("an address"))
}

/// The same, with its first upstream dead, and other settings changed too.
fn first_is_dead(builder: Builder, more: impl FnOnce(&mut Config) + Send + 'static) -> Builder {
    let address = nobody();
    builder.tweak(move |config| {
        config.upstreams[0].base_url = address;
        more(config);
    })
}

fn served_by_second(harness: &Harness) -> Vec<Served> {
    harness.second.as_ref().expect("a second upstream").served()
}

fn extra(rows: &[ExchangeRow]) -> usize {
    let extra = rows.iter().map(|row| row.attempts.saturating_sub(1));
    usize::try_from(extra.sum::<u32>()).expect("a count")
}

/// An error with a `Retry-After` of no time.
fn busy(status: StatusCode) -> Script {
    Script::error(status, "server_error", "server_is_overloaded", "Not now.").header("retry-after", "0")
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_of_two_dead_calls_succeed_and_few_are_extra() {
    const CALLS: usize = 400;
    let harness = first_is_dead(equals("", ""), |_| {}).start().await;
    let bob = harness.add_client("bob", "5");
    let calls = (0..CALLS).map(|number| {
        let client = if number % 2 == 0 { &harness.client } else { &bob };
        let body = chat("Hello", &json!({"max_completion_tokens": 8}));
        async move { client.post("/v1/chat/completions", &body).await.status.as_u16() }
    });
    let statuses: Vec<u16> = futures_util::stream::iter(calls).buffer_unordered(8).collect().await;
    let good = statuses.iter().filter(|status| **status == 200).count();
    assert!(good * 100 >= CALLS * 99, "{good} of {CALLS}");
    let books = harness.finish().await;
    let extra = extra(&books.exchanges);
    assert!(extra > 0 && extra * 5 <= CALLS, "{extra} extra calls");
    let moved = books.exchanges.iter().filter(|row| row.state == State::Completed);
    assert!(moved.into_iter().all(|row| row.upstream == "second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_heals_gets_its_calls_back() {
    let sick = Arc::new(AtomicBool::new(true));
    let (answers, is_sick) = (standard(Pace::default()), Arc::clone(&sick));
    let playwright: Playwright = Arc::new(move |request: &Request| match is_sick.load(Ordering::SeqCst) {
        true => busy(StatusCode::SERVICE_UNAVAILABLE),
        false => answers(request),
    });
    let harness = equals("breaker_interval = \"100ms\"", "")
        .playwright(playwright)
        .start()
        .await;
    let bob = harness.add_client("bob", "5");
    for _ in 0..20 {
        for client in [&harness.client, &bob] {
            client.chat("Hello").await.expect(200);
        }
    }
    let while_sick = harness.served().len();
    assert!(
        (5..20).contains(&while_sick),
        "{while_sick} calls of 40 before it was left alone"
    );
    sick.store(false, Ordering::SeqCst);
    while harness
        .served()
        .iter()
        .filter(|served| served.status == Some(StatusCode::OK))
        .count()
        < 5
    {
        harness.client.chat("Hello").await.expect(200);
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receipt_lists_every_attempt_and_one_is_paid() {
    let harness = first_is_dead(equals("", ""), |config| config.upstreams[1].priority = 1);
    let harness = harness.start().await;
    let answer = harness.client.chat("Hello").await.expect(200);
    let id = answer.exchange().to_owned();
    let shown = harness.operate(&format!("request show {id}"));
    let tries = shown["tries"].as_array().expect("a list").clone();
    let told: Vec<_> = tries
        .iter()
        .map(|tried| (tried["upstream"].as_str(), tried["outcome"].as_str(), &tried["status"]))
        .collect();
    assert_eq!(
        told,
        [
            (Some("first"), Some("unreachable"), &Value::Null),
            (Some("second"), Some("answered"), &json!(200)),
        ]
    );
    assert_eq!((&tries[0]["cost"], &tries[1]["cost"]), (&json!("0"), &shown["cost"]));
    assert_eq!((&shown["attempts"], &shown["upstream"]), (&json!(2), &json!("second")));
    let own = harness
        .client
        .get(&format!("/v1/gateway/requests/{id}"))
        .await
        .expect(200)
        .json();
    assert_eq!(
        (&own["tries"][0]["charge"], &own["tries"][1]["charge"]),
        (&json!("0"), &own["charge"])
    );
    assert!(
        own["tries"][1]["upstream"].is_null(),
        "whose upstream it was is not the payer's to know"
    );
    let books = harness.finish().await;
    assert_eq!((books.charged() > 0, books.only().upstream.as_str()), (true, "second"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_names_the_upstream_that_a_call_moved_to() {
    let gate = Gate::closed();
    let (opens, answers) = (gate.clone(), standard(Pace::default()));
    let harness = equals("", "").playwright(always(busy(StatusCode::SERVICE_UNAVAILABLE)));
    let harness = harness
        .second(Arc::new(move |request: &Request| {
            answers(request).first(Step::Wait(gate.clone()))
        }))
        .tweak(|config| config.upstreams[1].priority = 1)
        .start()
        .await;
    let client = harness.client.clone();
    let mut running = JoinSet::new();
    running.spawn(async move { client.chat("Hello").await });
    harness.second.as_ref().expect("a second upstream").arrived(1).await;
    let status = harness.operate("status");
    let shown = &status["exchanges"][0];
    assert_eq!(
        (&shown["upstream"], &shown["state"]),
        (&json!("second"), &json!("waiting"))
    );
    opens.open();
    let call = running.join_next().await.expect("a call");
    call.expect("it does not panic").expect(200);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_stays_with_its_upstream_while_that_is_healthy() {
    let harness = equals("", "").start().await;
    let count = |harness: &Harness| (harness.served().len(), served_by_second(harness).len());
    for (number, path) in (0..16).zip(["/v1/chat/completions", "/v1/responses"].into_iter().cycle()) {
        let before = count(&harness);
        for _ in 0..3 {
            let key = json!({"prompt_cache_key": format!("thread-{number}")});
            let body = if path.ends_with("responses") {
                response("Hello", &key)
            } else {
                chat("Hello", &key)
            };
            harness.client.post(path, &body).await.expect(200);
        }
        // Codex names the same thread in a header, where there is no such field.
        let request = harness.client.request(reqwest::Method::POST, path);
        let body = if path.ends_with("responses") {
            response("Hello", &json!({}))
        } else {
            chat("Hello", &json!({}))
        };
        let sent = request
            .header("thread-id", format!("thread-{number}"))
            .json(&body)
            .send()
            .await;
        Answer::of(sent.expect("an answer")).await.expect(200);
        let after = count(&harness);
        let moved = (after.0 - before.0, after.1 - before.1);
        assert!(moved == (4, 0) || moved == (0, 4), "thread {number}: {moved:?}");
    }
    let (first, second) = count(&harness);
    assert!(first > 0 && second > 0, "{first} {second}");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_refuses_another_takes_but_what_only_it_can_read_waits_for_it() {
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
        let harness = equals("", "").playwright(always(busy(status))).start().await;
        let served = |harness: &Harness| (harness.served().len(), served_by_second(harness).len());
        let mut waited = 0;
        for number in 0..64 {
            // Each takes of what there is for extra calls, and of that there is only so much.
            if waited == 2 {
                break;
            }
            let thread = format!("thread-{number}");
            let before = served(&harness);
            let bound = harness.client.post("/v1/responses", &encrypted(&thread)).await;
            let after = served(&harness);
            let sent = (after.0 - before.0, after.1 - before.1);
            if bound.status == StatusCode::OK {
                assert_eq!(sent, (0, 1), "thread {number}");
                continue;
            }
            // Once more there, while there is something left for extra calls.
            assert!((1..=2).contains(&sent.0) && sent.1 == 0, "thread {number}: {sent:?}");
            let free = harness.client.post("/v1/responses", &turn(&thread, "Hello")).await;
            assert_eq!(harness.receipt(free.expect(200).exchange()).upstream, "second");
            waited += 1;
        }
        assert_eq!(waited, 2, "threads of 64 that are the first one's");
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_says_when_to_come_again_gets_no_call_before_while_another_takes_them() {
    for status in [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE] {
        let limited = Script::error(status, "rate_limit_error", "rate_limit_exceeded", "Not now.");
        let limited = limited.header("retry-after", "60");
        let harness = equals("", "").playwright(always(limited)).start().await;
        for _ in 0..40 {
            harness.client.chat("Hello").await.expect(200);
        }
        assert_eq!(harness.served().len(), 1, "{status}");
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_is_alone_is_asked_whatever_it_said_and_its_word_reaches_the_client() {
    for (status, told) in [
        (StatusCode::TOO_MANY_REQUESTS, 429),
        (StatusCode::SERVICE_UNAVAILABLE, 503),
    ] {
        let limited = Script::error(status, "rate_limit_error", "rate_limit_exceeded", "Not now.");
        let limited = limited.header("retry-after", "17");
        let harness = Harness::builder().playwright(always(limited)).start().await;
        for _ in 0..3 {
            let answer = harness.client.chat("Hello").await.expect(told);
            assert_eq!(answer.header("retry-after"), "17");
        }
        assert_eq!(harness.served().len(), 3);
        harness.finish().await;
    }
}

/// A listener that lets nobody connect any more, as one behind a firewall that drops what comes; until it is dropped.
pub async fn black_hole() -> (String, tokio::net::TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((Ipv4Addr::LOCALHOST, 0).into()).expect("a port");
    let listener = socket.listen(1).expect("it listens");
    let address = listener.local_addr().expect("an address");
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(200), TcpStream::connect(address)).await {
        waiting.push(connected.expect("a connection"));
    }
    (format!("http://{address}/v1"), listener, waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_had_a_connection_takes_nothing_of_what_there_is_for_extra_calls() {
    let (address, _listener, _waiting) = black_hole().await;
    let settings = "connect_timeout = \"1s\"";
    let harness = equals(settings, "").tweak(|config| config.upstreams[0].base_url = address);
    let harness = harness.balance("100").start().await;
    let mut running = JoinSet::new();
    for _ in 0..8 * SAVED {
        let client = harness.client.clone();
        running.spawn(async move { client.post("/v1/chat/completions", &small()).await });
    }
    while let Some(call) = running.join_next().await {
        call.expect("it does not panic").expect(200);
    }
    let books = harness.finish().await;
    assert!(extra(&books.exchanges) > 2 * SAVED, "many began at the dead one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_under_which_the_breaker_opens_waits_for_the_next_that_is_let_through() {
    let harness = first_is_dead(Harness::builder(), |_| {}).start().await;
    for _ in 0..3 {
        let answer = harness.client.chat("Hello").await.expect(502);
        // The fifth failure, the first of the third call, opens it.
        assert_eq!(harness.receipt(answer.exchange()).attempts, 2);
    }
    let resting = harness.client.chat("Hello").await.expect(503);
    assert_eq!(resting.header("retry-after"), "1");
    harness.finish().await;
}

/// A turn that holds what an earlier one left.
fn encrypted(thread: &str) -> Value {
    let item = json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAAAB"});
    let input = json!([item, {"type": "message", "role": "user", "content": "And?"}]);
    json!({"model": MODEL, "input": input, "prompt_cache_key": thread, "max_output_tokens": 8})
}

/// A first turn.
fn turn(thread: &str, prompt: &str) -> Value {
    response(prompt, &json!({"prompt_cache_key": thread, "max_output_tokens": 8}))
}

/// Names of two threads that the first upstream gets, without having been there with a response.
async fn of_first(harness: &Harness) -> [String; 2] {
    let mut found = Vec::new();
    for number in 0..64 {
        let thread = format!("thread-{number}");
        let body = chat(
            "Hello",
            &json!({"prompt_cache_key": thread, "max_completion_tokens": 8}),
        );
        let answer = harness.client.post("/v1/chat/completions", &body).await.expect(200);
        if harness.receipt(answer.exchange()).upstream == "first" {
            found.push(thread);
        }
    }
    found.truncate(2);
    found.try_into().expect("two of them")
}

/// Answers at once, but for what says "wait here": that waits for the gate.
fn gated() -> (Gate, Playwright) {
    let gate = Gate::closed();
    let (opens, answers) = (gate.clone(), standard(Pace::default()));
    let gated = move |request: &Request| match String::from_utf8_lossy(&request.body).contains("wait here") {
        true => answers(request).first(Step::Wait(gate.clone())),
        false => answers(request),
    };
    (opens, Arc::new(gated))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encrypted_for_an_account_goes_nowhere_else_and_a_thread_that_moved_stays_where_it_went() {
    let (opens, gated) = gated();
    let harness = equals("max_concurrency = 1", "").playwright(gated).start().await;
    let [stays, moves] = of_first(&harness).await;
    let before = harness.served().len();
    let client = harness.client.clone();
    let body = turn(&stays, "wait here");
    let mut running = JoinSet::new();
    running.spawn(async move { client.post("/v1/responses", &body).await });
    harness.simulator.arrived(before + 1).await;

    let served = served_by_second(&harness).len();
    let call = async |body: Value| harness.client.post("/v1/responses", &body).await;
    let full = call(encrypted(&stays)).await.expect(503);
    assert_eq!(full.json()["error"]["code"], "server_is_overloaded");
    assert_eq!(served_by_second(&harness).len(), served, "nobody else can read it");
    let at = async |body: Value| harness.receipt(call(body).await.expect(200).exchange()).upstream;
    assert_eq!(at(turn(&moves, "Hello")).await, "second", "the first one is full");

    opens.open();
    let call = running.join_next().await.expect("a call");
    call.expect("it does not panic").expect(200);
    assert_eq!(at(encrypted(&stays)).await, "first");
    assert_eq!(at(encrypted(&moves)).await, "second");
    assert_eq!(at(turn(&moves, "Hello again")).await, "second");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_conversations_that_share_a_name_each_goes_to_who_made_what_it_holds() {
    let (opens, gated) = gated();
    let harness = equals("max_concurrency = 1", "").playwright(gated).start().await;
    let [other, shared] = of_first(&harness).await;
    let call = async |thread: &str, input: Value, stream: bool| {
        let include = ["reasoning.encrypted_content"];
        let body =
            json!({"model": MODEL, "input": input, "prompt_cache_key": thread, "include": include, "stream": stream});
        let answer = harness.client.post("/v1/responses", &body).await.expect(200);
        let upstream = harness.receipt(answer.exchange()).upstream;
        let whole = match stream {
            true => events(&answer.body).pop().expect("an end")["response"].clone(),
            false => answer.json(),
        };
        (upstream, whole["output"].clone())
    };
    let (upstream, of_first) = call(&shared, json!("sim:reasoning One"), false).await;
    assert_eq!(upstream, "first");

    let before = harness.served().len();
    let (client, body) = (harness.client.clone(), turn(&other, "wait here"));
    let mut running = JoinSet::new();
    running.spawn(async move { client.post("/v1/responses", &body).await });
    harness.simulator.arrived(before + 1).await;
    let (upstream, of_second) = call(&shared, json!("sim:reasoning Two"), true).await;
    assert_eq!(upstream, "second", "the first one is full");
    opens.open();
    let waited = running.join_next().await.expect("a call");
    waited.expect("it does not panic").expect(200);

    for (output, maker) in [(&of_first, "first"), (&of_second, "second"), (&of_first, "first")] {
        assert!(output[0]["encrypted_content"].is_string(), "{output}");
        let mut input = output.as_array().expect("items").clone();
        input.push(json!({"type": "message", "role": "user", "content": "And?"}));
        for thread in [&shared, &other, "a copy"] {
            assert_eq!(call(thread, json!(input), false).await.0, maker, "{thread}");
        }
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_goes_back_from_an_upstream_that_only_stood_in_and_then_lives_there() {
    let (opens, gated) = gated();
    let builder = Harness::builder().playwright(gated).second(standard(Pace::default()));
    let builder = builder.upstream("priority = 0\nmax_concurrency = 1");
    let harness = builder.of_second("priority = 1").start().await;
    let client = harness.client.clone();
    let mut running = JoinSet::new();
    running.spawn(async move { client.post("/v1/responses", &turn("other", "wait here")).await });
    harness.simulator.arrived(1).await;

    let at = async |body: Value| {
        let answer = harness.client.post("/v1/responses", &body).await.expect(200);
        harness.receipt(answer.exchange()).upstream
    };
    assert_eq!(at(turn("thread", "Hello")).await, "second", "the first one is full");
    opens.open();
    let call = running.join_next().await.expect("a call");
    call.expect("it does not panic").expect(200);
    assert_eq!(at(encrypted("thread")).await, "second", "nobody else can read it");
    assert_eq!(at(turn("thread", "Hello again")).await, "first");
    assert_eq!(at(encrypted("thread")).await, "first", "what it holds was made there");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_encrypted_for_the_account_of_a_dead_upstream_is_not_sent_to_another() {
    let harness = first_is_dead(equals("", ""), |_| {}).start().await;
    let mut refused = 0;
    for number in 0..12 {
        let before = served_by_second(&harness).len();
        let answer = harness
            .client
            .post("/v1/responses", &encrypted(&number.to_string()))
            .await;
        let sent = served_by_second(&harness).len() - before;
        match answer.status.as_u16() {
            200 => assert_eq!(sent, 1),
            _ => {
                answer.expect(503);
                assert_eq!(sent, 0, "thread {number}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0, "one of twelve threads is the first one's");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_no_thread_are_shared_by_weight() {
    let harness = equals("weight = 3", "weight = 1").start().await;
    for _ in 0..80 {
        harness.client.chat("Hello").await.expect(200);
    }
    let second = served_by_second(&harness).len();
    assert!((5..40).contains(&second), "{second} of 80, where 20 are expected");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_leans_on_an_earlier_answer_goes_where_that_was_made() {
    let harness = equals("", "").start().await;
    let mut made_at = BTreeMap::new();
    for _ in 0..12 {
        let answer = harness.client.respond("Hello").await.expect(200);
        let row = harness.receipt(answer.exchange());
        let id = answer.json()["id"].as_str().expect("an id").to_owned();
        let next = response("And?", &json!({"previous_response_id": id}));
        let next = harness.client.post("/v1/responses", &next).await.expect(200);
        assert_eq!(harness.receipt(next.exchange()).upstream, row.upstream);
        made_at.insert(row.upstream, id);
    }
    assert_eq!(made_at.len(), 2, "both were asked");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_upstream_gets_no_more_and_when_all_are_full_the_call_is_refused() {
    let gate = Gate::closed();
    let (opens, answers) = (gate.clone(), standard(Pace::default()));
    let gated: Playwright = Arc::new(move |request: &Request| answers(request).first(Step::Wait(gate.clone())));
    let harness = Harness::builder()
        .playwright(Arc::clone(&gated))
        .second(gated)
        .upstream("priority = 0\nmax_concurrency = 2")
        .of_second("priority = 0\nmax_concurrency = 1")
        .start()
        .await;
    let mut running = JoinSet::new();
    for _ in 0..3 {
        let client = harness.client.clone();
        running.spawn(async move { client.post("/v1/chat/completions", &small()).await });
    }
    let second = harness.second.as_ref().expect("a second upstream");
    harness.simulator.arrived(2).await;
    second.arrived(1).await;
    let held = harness.user().held;
    for (path, body, waits) in [
        ("/v1/chat/completions", small(), true),
        (
            "/v1/responses",
            response("Hello", &json!({"max_output_tokens": 8})),
            false,
        ),
    ] {
        let refused = harness.client.post(path, &body).await.expect(503);
        assert_eq!(refused.json()["error"]["code"], "server_is_overloaded");
        assert_eq!(refused.headers.contains_key("retry-after"), waits, "{path}");
    }
    assert_eq!(harness.user().held, held, "no hold was taken for what was refused");
    opens.open();
    while let Some(call) = running.join_next().await {
        call.expect("it does not panic").expect(200);
    }
    harness.client.post("/v1/chat/completions", &small()).await.expect(200);
    assert_eq!(
        (
            harness.served().len() + second.served().len(),
            harness.finish().await.exchanges.len()
        ),
        (4, 4)
    );
}

/// A call with a small hold.
fn small() -> Value {
    chat("Hello", &json!({"max_completion_tokens": 8}))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_of_other_terms_is_chosen_for_a_call_but_never_for_its_repetition() {
    let harness = first_is_dead(equals("", ""), |config| {
        config.upstreams[1].priority = 1;
        config.upstreams[1].prices = Pricing::Free;
    });
    let harness = harness.start().await;
    let mut unreachable = 0;
    let free = loop {
        let answer = harness.client.chat("Hello").await;
        match answer.status.as_u16() {
            502 => unreachable += 1,
            _ => break answer.expect(200),
        }
    };
    // Each was sent to the same upstream twice; five failures open its breaker.
    assert_eq!(unreachable, 3);
    assert_eq!(harness.receipt(free.exchange()).upstream, "second");
    let books = harness.finish().await;
    assert_eq!(books.charged(), 0);
    assert!(
        books
            .exchanges
            .iter()
            .all(|row| row.upstream == "second" || row.list.is_some())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_without_a_price_for_the_model_is_passed_over_while_another_has_one() {
    let harness = equals("", "").tweak(|config| {
        let list = ListName::parse("nobodys").expect("a name");
        config.upstreams[0].prices = Pricing::List(list);
    });
    let harness = harness.start().await;
    for _ in 0..10 {
        let answer = harness.client.chat("Hello").await.expect(200);
        assert_eq!(harness.receipt(answer.exchange()).upstream, "second");
    }
    assert!(harness.client.get("/v1/models").await.text().contains(MODEL));
    assert_eq!(harness.served().len(), 0);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_only_upstream_is_left_alone_calls_are_told_so_and_nothing_is_held() {
    let harness = first_is_dead(Harness::builder(), |_| {}).start().await;
    let overloaded = loop {
        let answer = harness.client.chat("Hello").await;
        match answer.status.as_u16() {
            502 => {}
            _ => break answer.expect(503),
        }
    };
    let error = &overloaded.json()["error"];
    assert_eq!(error["code"], "server_is_overloaded");
    assert!(overloaded.headers.contains_key("retry-after"));
    assert_eq!(harness.user().held.nanos(), 0);
    assert_eq!(harness.finish().await.charged(), 0);
}

/// What `/readyz` answers.
async fn readiness(harness: &Harness) -> (u16, String) {
    let answer = harness.client.get("/readyz").await;
    (answer.status.as_u16(), answer.text().trim_end().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_of_which_no_upstream_answers_is_not_ready_and_one_with_another_is() {
    let ready = (200, "ready".to_owned());
    let alone = first_is_dead(Harness::builder(), |_| {}).start().await;
    assert_eq!(readiness(&alone).await, ready, "nobody knows yet");
    while alone.client.chat("Hello").await.status != StatusCode::SERVICE_UNAVAILABLE {}
    assert_eq!(
        readiness(&alone).await,
        (503, "not ready: no upstream answers: first".to_owned())
    );
    assert_eq!(alone.operate("status")["upstreams"][0]["breaker"], "open");
    alone.finish().await;

    let harness = first_is_dead(equals("", ""), |_| {}).start().await;
    for _ in 0..40 {
        harness.client.chat("Hello").await.expect(200);
    }
    let status = harness.operate("status");
    let breakers = [0, 1].map(|at| status["upstreams"][at]["breaker"].clone());
    assert_eq!(breakers, [json!("open"), json!("closed")]);
    assert_eq!(readiness(&harness).await, ready);
    harness.finish().await;
}

/// Which call a request is, by its prompt.
fn number(body: &[u8]) -> usize {
    let text = String::from_utf8_lossy(body);
    let (_, rest) = text.split_once("call-").expect("a number");
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().expect("a number")
}

/// Fails at half of the calls, each tenth in a way of its own.
fn half_bad(request: &Request, answers: &Playwright) -> Script {
    match number(&request.body) % 10 {
        0 => busy(StatusCode::SERVICE_UNAVAILABLE),
        1 => busy(StatusCode::TOO_MANY_REQUESTS),
        2 => Script::error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "server_error",
            "server_error",
            "It failed.",
        ),
        // Silence, beyond the time for the head.
        3 => Script::refuse().first(Step::Wait(Gate::closed())),
        4 => Script::refuse(),
        5 => answers(request).cut(2, Step::Reset),
        _ => answers(request),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_upstream_does_no_call_is_taken_twice_and_nothing_is_charged_wrongly() {
    const CALLS: usize = 2_000;
    let answers = standard(Pace::default());
    let (of_first, of_second) = (Arc::clone(&answers), answers);
    // Breakers that let every other call through: they are not what is tried here.
    let settings = "breaker_interval = \"1ms\"\nfirst_byte_timeout = \"300ms\"";
    let harness = equals(settings, settings)
        .playwright(Arc::new(move |request: &Request| half_bad(request, &of_first)))
        .second(Arc::new(move |request: &Request| match number(&request.body) % 100 {
            50 => busy(StatusCode::SERVICE_UNAVAILABLE),
            _ => of_second(request),
        }))
        .start()
        .await;
    let clients: Vec<Client> = (0..4)
        .map(|n| harness.add_client(&format!("user-{n}"), "1000"))
        .collect();
    let calls = (0..CALLS).map(|number| {
        let client = &clients[number % clients.len()];
        let (prompt, streamed) = (format!("call-{number} and so on"), number % 3 != 0);
        let (path, body) = match number % 2 {
            0 => (
                "/v1/responses",
                response(&prompt, &json!({"stream": streamed, "max_output_tokens": 40})),
            ),
            _ => (
                "/v1/chat/completions",
                chat(&prompt, &json!({"stream": streamed, "max_completion_tokens": 40})),
            ),
        };
        async move {
            let answer = client.send(path, &body).await;
            let status = answer.status();
            let torn = drain(answer).await.1.is_err();
            assert!(status.is_success() || !torn, "call {number}: a refusal that is torn");
            status
        }
    });
    let statuses: Vec<StatusCode> = futures_util::stream::iter(calls).buffer_unordered(16).collect().await;
    let good = statuses.iter().filter(|status| status.is_success()).count();
    let served: Vec<Served> = harness.served().into_iter().chain(served_by_second(&harness)).collect();
    let books = harness.finish().await;
    assert_eq!(books.exchanges.len(), CALLS);
    assert!(good > CALLS * 3 / 4, "{good} of {CALLS} were answered");
    let mut taken = vec![0; CALLS];
    for call in &served {
        let refused = [
            Some(StatusCode::TOO_MANY_REQUESTS),
            Some(StatusCode::SERVICE_UNAVAILABLE),
        ];
        taken[number(&call.body)] += u32::from(!refused.contains(&call.status));
    }
    assert_eq!(taken.iter().filter(|count| **count > 1).count(), 0, "taken twice");
    // What was sent on a connection that was just being closed never arrived.
    let sent: u32 = books.exchanges.iter().map(|row| row.attempts).sum();
    assert!(
        usize::try_from(sent).is_ok_and(|sent| sent >= served.len()),
        "{sent} attempts in receipts"
    );
    let extra = extra(&books.exchanges);
    assert!(extra > 0 && extra <= CALLS / 5 + SAVED, "{extra} extra calls");
    let by_id: BTreeMap<&str, &Served> = served
        .iter()
        .filter_map(|served| Some((served.response_id.as_deref()?, served)))
        .collect();
    let price = catalogue("openai", MODEL);
    let mut completed = 0;
    for row in &books.exchanges {
        match row.state {
            State::Completed | State::Incomplete => {
                completed += 1;
                let served = by_id[row.response_id.as_deref().expect("an id")];
                let usage = served.usage.as_ref().expect("a usage");
                assert_eq!(
                    i128::from(row.charge.nanos()),
                    expected_charge(usage, &price, "1"),
                    "{}",
                    row.id
                );
            }
            State::Failed | State::Refused => assert_eq!(row.charge.nanos(), 0, "{}", row.id),
            State::Broken => assert!(row.charge <= row.held, "{}", row.id),
            other => panic!("{}: {other:?}", row.id),
        }
    }
    assert!(completed > CALLS / 2, "{completed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_502_is_sent_once_more_only_where_the_operator_says_that_nobody_took_it() {
    let bad = Script::error(StatusCode::BAD_GATEWAY, "server_error", "server_error", "Nobody there.");
    for retries in [false, true] {
        let settings = format!("retry_gateway_errors = {retries}");
        let harness = equals(&settings, "").playwright(always(bad.clone()));
        let harness = harness.tweak(|config| config.upstreams[1].priority = 1).start().await;
        let answer = harness
            .client
            .chat("Hello")
            .await
            .expect(if retries { 200 } else { 502 });
        assert_eq!(harness.receipt(answer.exchange()).attempts, 1 + u32::from(retries));
        harness.finish().await;
    }
}

/// Runs `upstream …` with these settings: its exit code, and what it printed on stdout and stderr.
fn operate(settings: &std::path::Path, line: &str) -> (Option<i32>, String, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_gateway"));
    program.env_clear().env("HOME", settings.parent().expect("a folder"));
    program.arg("--config").arg(settings);
    let ran = program.arg("upstream").args(line.split_whitespace()).output();
    let ran = ran.expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (ran.status.code(), text(ran.stdout), text(ran.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_which_upstreams_there_are_and_whether_they_answer() {
    let harness = Harness::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("gateway.toml");
    let (good, dead) = (harness.simulator.base_url(), nobody());
    let settings = format!(
        "[[upstream]]\nname = \"spare\"\nbase_url = \"{dead}\"\nwire = \"chat\"\npriority = 1\nmax_concurrency = 7\n\
         [[upstream]]\nname = \"good\"\nbase_url = \"{good}\"\napi_key = \"sk-of-the-operator\"\nweight = 3\n"
    );
    std::fs::write(&file, settings).expect("settings");
    let (code, listed, said) = operate(&file, "list --json");
    let listed: Value = serde_json::from_str(&listed).expect(&said);
    let shown: Vec<_> = ["name", "wire", "websocket", "priority", "weight", "max_concurrency"]
        .iter()
        .map(|field| (&listed["items"][0][field], &listed["items"][1][field]))
        .collect();
    assert_eq!(
        shown,
        [
            (&json!("good"), &json!("spare")),
            (&json!("responses+chat"), &json!("chat")),
            (&json!(false), &json!(false)),
            (&json!(0), &json!(1)),
            (&json!(3), &json!(1)),
            (&Value::Null, &json!(7)),
        ]
    );
    assert_eq!((code, listed.to_string().contains("sk-of")), (Some(0), false));
    let (code, table, _) = operate(&file, "list");
    assert!(code == Some(0) && table.lines().count() == 3, "{table}");
    let (code, tested, said) = operate(&file, "test good --json");
    let tested: Value = serde_json::from_str(&tested).expect("one document");
    let good = &tested["items"][0];
    assert_eq!(
        (code, &good["ok"], &good["status"]),
        (Some(0), &json!(true), &json!(200)),
        "{said}"
    );
    assert!(
        good["latency_ms"].is_u64() && good["clock_ahead_seconds"].is_i64(),
        "{good}"
    );
    let asked = harness.served().pop().expect("a question");
    assert_eq!(
        (asked.path.as_str(), asked.headers["authorization"].to_str().ok()),
        ("/v1/models", Some("Bearer sk-of-the-operator"))
    );
    let (code, table, said) = operate(&file, "test");
    assert_eq!(code, Some(7), "{table}{said}");
    assert!(
        table.contains("good") && said.contains("these upstreams fail: spare"),
        "{table}{said}"
    );
    let (code, _, said) = operate(&file, "test goood");
    assert!(code == Some(5) && said.contains("near  good"), "{said}");
    harness.finish().await;
}
