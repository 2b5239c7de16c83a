//! Output limits: what a hold pays for is written into the request, told to the client, and not passed.

use std::sync::Arc;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Playwright, Request, Script, ServedUsage, Step, always};
use codex_gateway::store::usage_log::{Basis, ExchangeRow, State};
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::{MODEL, chat, drain, events, exchange_of, response};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge, nanos};

/// A stream is ended before the event that would carry it so many tokens beyond its limit.
const SLACK: u64 = 64;

/// The calls whose limits are watched: path, the field of the limit, choices, body.
fn calls(model: &str) -> Vec<(&'static str, &'static str, u64, Value)> {
    let more = |n: u64| json!({"model": model, "stream": true, "n": n});
    vec![
        (
            "/v1/chat/completions",
            "max_completion_tokens",
            1,
            chat("Hello", &more(1)),
        ),
        ("/v1/chat/completions", "max_tokens", 2, chat("Hello", &more(2))),
        (
            "/v1/responses",
            "max_output_tokens",
            1,
            response("Hello", &json!({"model": model, "stream": true})),
        ),
        (
            "/v1/completions",
            "max_tokens",
            1,
            json!({"model": model, "prompt": "Hello", "stream": true}),
        ),
    ]
}

/// Answers with so many one-token words for each token of the limit's hundred, whatever the limit says; with `gate`
/// it falls silent before it tells its usage.
fn ignoring(words: impl Fn(u64) -> u64 + Send + Sync + 'static, gate: Option<Gate>) -> Playwright {
    let inner = standard(Pace::default());
    Arc::new(move |request: &Request| {
        let limit = request.output_limit().expect("a limit");
        let mut free = request.clone();
        free.model = format!("sim-words-{}", words(limit));
        for field in ["max_output_tokens", "max_completion_tokens", "max_tokens"] {
            free.json[field] = Value::Null;
        }
        let script = inner(&free);
        let end = script.steps.iter().position(|step| match step {
            Step::Send { bytes, .. } => {
                let text = String::from_utf8_lossy(bytes);
                text.contains("finish_reason\":\"") || text.contains("output_text.done")
            }
            _ => false,
        });
        match &gate {
            Some(gate) => script.at(end.expect("an end"), Step::Wait(gate.clone())),
            None => script,
        }
    })
}

/// Tokens of visible output: each event with some brings one.
fn words(arrived: &[u8]) -> u64 {
    let is_word = |event: &&Value| {
        let choice = &event["choices"][0];
        [&choice["delta"]["content"], &choice["text"], &event["delta"]]
            .into_iter()
            .any(|text| *text == " and")
    };
    u64::try_from(events(arrived).iter().filter(is_word).count()).expect("a small number")
}

/// The protocol's own terminal event, after which nothing comes.
fn assert_says_length(arrived: &[u8], path: &str, choices: u64) {
    let (text, events) = (String::from_utf8_lossy(arrived), events(arrived));
    let last = events.last().expect("events");
    if path == "/v1/responses" {
        assert!(text.contains("event: response.incomplete\n"), "{text}");
        assert_eq!(last["type"], "response.incomplete");
        assert_eq!(last["response"]["status"], "incomplete");
        assert_eq!(
            last["response"]["incomplete_details"],
            json!({"reason": "max_output_tokens"})
        );
        assert_eq!(last["response"]["id"], events[0]["response"]["id"]);
        let number = |event: &Value| event["sequence_number"].as_u64();
        assert!(number(last) > number(&events[events.len() - 2]), "{last}");
        return;
    }
    assert!(text.ends_with("\n\ndata: [DONE]\n\n"), "{text}");
    let finished = last["choices"].as_array().expect("choices").iter();
    let finished: Vec<_> = finished
        .map(|choice| (choice["index"].as_u64(), &choice["finish_reason"]))
        .collect();
    let length = json!("length");
    let expected: Vec<_> = (0..choices).map(|index| (Some(index), &length)).collect();
    assert_eq!((finished, &last["id"]), (expected, &events[0]["id"]), "{path}");
}

/// What a row charged, collected, and could not collect, in nano-dollars.
fn money(row: &ExchangeRow) -> (i128, i128, i128) {
    let (charge, uncollected) = (i128::from(row.charge.nanos()), i128::from(row.uncollected.nanos()));
    (charge, charge - uncollected, uncollected)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ignores_a_stated_limit_is_ended_there_and_costs_no_more_than_its_hold() {
    let gate = Gate::closed();
    let harness = Harness::builder()
        .playwright(ignoring(|limit| 3 * limit, Some(gate.clone())))
        .start()
        .await;
    for (path, field, choices, mut body) in calls(MODEL) {
        body[field] = 200.into();
        let answer = harness.client.send(path, &body).await;
        assert!(
            !answer.headers().contains_key("x-gateway-output-limit"),
            "{path}: it is the client's own"
        );
        let (arrived, end) = drain(answer).await;
        end.expect("a clean end");
        assert_eq!(words(&arrived), 200 * choices + SLACK, "{path}");
        assert_says_length(&arrived, path, choices);
    }
    let served = harness.served();
    let books = harness.finish().await;
    let price = catalogue("openai", MODEL);
    assert_eq!(books.exchanges.len(), 4);
    for ((row, served), (path, field, choices, _)) in books.exchanges.iter().zip(&served).zip(calls(MODEL)) {
        let asked: Value = serde_json::from_slice(&served.body).expect("JSON");
        assert_eq!(asked[field], 200, "{path}: a stated limit is never changed");
        assert_eq!(
            (row.state, row.basis, row.output_limit),
            (State::Limited, Basis::Estimated, None),
            "{path}"
        );
        let usage = ServedUsage {
            input: row.usage.input_tokens.get(),
            output: 200 * choices + SLACK,
            ..ServedUsage::default()
        };
        let (charge, collected, uncollected) = money(row);
        assert_eq!(
            charge,
            expected_charge(&usage, &price, "1"),
            "{path}: what was delivered"
        );
        assert_eq!(
            collected,
            charge.min(row.held.nanos().into()),
            "{path}: no more than the hold"
        );
        assert!(uncollected > 0, "{path}: the rest is on the receipt");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ignores_the_limit_the_gateway_wrote_is_ended_there() {
    // A fortieth of $0.1 pays for some 250 tokens of output.
    let settings = "[billing]\nhold_share = 0.025\nmin_output_tokens = 16";
    let playwright = ignoring(|limit| 3 * limit, None);
    let harness = Harness::builder()
        .balance("0.1")
        .settings(settings)
        .playwright(playwright)
        .start()
        .await;
    for (number, (path, _, choices, body)) in calls(MODEL).into_iter().enumerate() {
        if path == "/v1/completions" {
            // OpenAI's own default there is a limit of 16.
            continue;
        }
        let answer = harness.client.send(path, &body).await;
        let id = exchange_of(&answer);
        let told = answer.headers()["x-gateway-output-limit"]
            .to_str()
            .expect("text")
            .to_owned();
        let (arrived, end) = drain(answer).await;
        end.expect("a clean end");
        let limit: u64 = told.parse().expect("a number");
        assert!((50..250).contains(&limit), "{path}: {limit}");
        assert_eq!(words(&arrived), limit * choices + SLACK, "{path}");
        assert_says_length(&arrived, path, choices);
        let asked: Value = serde_json::from_slice(&harness.served()[number].body).expect("JSON");
        let field = if path == "/v1/responses" {
            "max_output_tokens"
        } else {
            "max_tokens"
        };
        assert_eq!(asked[field], limit, "{path}: the upstream is told");
        let row = harness.receipt(&id);
        assert_eq!(
            (row.state, row.output_limit.map(|limit| limit.get())),
            (State::Limited, Some(limit)),
            "{path}"
        );
        let (_, collected, _) = money(&row);
        assert!(collected <= row.held.nanos().into(), "{path}");
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_of_a_limited_stream_is_taken_when_it_comes_at_once_and_capped_by_the_hold() {
    let harness = Harness::builder()
        .playwright(ignoring(|limit| limit + SLACK + 1, None))
        .start()
        .await;
    for (path, field, _, mut body) in calls(MODEL).into_iter().filter(|(_, _, choices, _)| *choices == 1) {
        body[field] = 100.into();
        let (arrived, end) = drain(harness.client.send(path, &body).await).await;
        end.expect("a clean end");
        assert_eq!(words(&arrived), 100 + SLACK, "{path}");
    }
    let served = harness.served();
    let books = harness.finish().await;
    for (row, served) in books.exchanges.iter().zip(&served) {
        assert_eq!((row.state, row.basis), (State::Limited, Basis::Reported));
        let usage = served.usage.as_ref().expect("a usage");
        let (charge, collected, _) = money(row);
        assert_eq!(charge, expected_charge(usage, &catalogue("openai", MODEL), "1"));
        assert_eq!(collected, charge.min(row.held.nanos().into()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_within_its_limit_and_the_slack_is_not_ended() {
    let harness = Harness::builder()
        .playwright(ignoring(|limit| limit + SLACK, None))
        .start()
        .await;
    for (path, field, choices, mut body) in calls(MODEL) {
        if choices > 1 {
            // The slack is for all choices together.
            continue;
        }
        body[field] = 100.into();
        let (arrived, end) = drain(harness.client.send(path, &body).await).await;
        end.expect("a clean end");
        assert_eq!(words(&arrived), 100 + SLACK, "{path}");
    }
    let books = harness.finish().await;
    for row in &books.exchanges {
        assert_eq!((row.state, row.basis), (State::Completed, Basis::Reported));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_vocabulary_is_not_known_a_stream_may_go_half_as_far_again() {
    const PRICE: &str = r#"{"kind": "text", "rates": {"input": "2", "output": "10"}, "max_output": 100000}"#;
    let builder = Harness::builder().price("acme-large", PRICE);
    let harness = builder
        .playwright(ignoring(|limit| 3 * limit, Some(Gate::closed())))
        .start()
        .await;
    for (path, field, choices, mut body) in calls("acme-large") {
        body[field] = 200.into();
        let (arrived, end) = drain(harness.client.send(path, &body).await).await;
        end.expect("a clean end");
        assert_eq!(words(&arrived), 300 * choices + SLACK, "{path}");
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_names_the_largest_limit_that_fits_and_that_limit_is_admitted() {
    for (path, field) in [
        ("/v1/chat/completions", "max_completion_tokens"),
        ("/v1/responses", "max_output_tokens"),
    ] {
        let harness = Harness::builder().balance("0.1").start().await;
        let body = |limit: u64| match path {
            "/v1/responses" => response("Hello", &json!({field: limit})),
            _ => chat("Hello", &json!({field: limit})),
        };
        let refused = harness.client.post(path, &body(100_000)).await.expect(429).json();
        assert_eq!(refused["error"]["code"], "insufficient_quota");
        let largest = refused["error"]["gateway"]["largest_limit"].as_u64().expect("a limit");
        let message = refused["error"]["message"].as_str().expect("a message");
        assert!(
            message.contains(&format!("largest output limit that fits is {largest} tokens")),
            "{message}"
        );
        harness.client.post(path, &body(largest + 1)).await.expect(429);
        assert_eq!(harness.served().len(), 0, "nothing was sent");
        let answer = harness.client.post(path, &body(largest)).await.expect(200);
        let asked: Value = serde_json::from_slice(&harness.served()[0].body).expect("JSON");
        assert_eq!(asked, body(largest), "a stated limit is never lowered");
        assert_eq!(answer.header("x-gateway-output-limit"), "");
        let books = harness.finish().await;
        let held = i128::from(books.only().held.nanos());
        assert!(
            held <= nanos("0.1") && held > nanos("0.1") - nanos("0.00001"),
            "{held}: one token more is too much"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_limit_a_call_takes_its_share_and_at_least_what_an_answer_needs() {
    let settings = "[billing]\nhold_share = 0.5\nmin_output_tokens = 2000";
    // 2,000 tokens of output cost $0.02.
    for (balance, held) in [("0.1", Some("0.05")), ("0.021", Some("0.02")), ("0.0199", None)] {
        let harness = Harness::builder().balance(balance).settings(settings).start().await;
        let answer = harness.client.chat("Hello").await;
        let Some(held) = held else {
            let refused = answer.expect(429).json();
            assert_eq!(refused["error"]["code"], "insufficient_quota");
            assert_eq!(harness.served().len(), 0);
            harness.finish().await;
            continue;
        };
        let answer = answer.expect(200);
        let limit: u64 = answer.header("x-gateway-output-limit").parse().expect("a limit");
        let asked: Value = serde_json::from_slice(&harness.served()[0].body).expect("JSON");
        assert_eq!(asked["max_tokens"], limit);
        let books = harness.finish().await;
        let row = books.only();
        let beyond = i128::from(row.held.nanos()) - nanos(held);
        assert!((0..nanos("0.001")).contains(&beyond), "{balance}: {}", row.held);
        assert!(limit >= 2_000, "{balance}: {limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_above_the_hold_is_collected_from_what_is_there_and_the_rest_is_recorded() {
    let price = catalogue("openai", MODEL);
    // 100,000 tokens of output cost $1; the second time less than that is left.
    let usage = ServedUsage {
        input: 7,
        output: 100_000,
        ..ServedUsage::default()
    };
    let body = json!({
        "id": "chatcmpl-1", "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 100_000, "total_tokens": 100_007},
    });
    let playwright = always(Script::json(StatusCode::OK, &body).using(usage.clone()));
    let harness = Harness::builder().balance("1.5").playwright(playwright).start().await;
    let limited = chat("Hello", &json!({"max_completion_tokens": 100}));
    for _ in 0..2 {
        harness.client.post("/v1/chat/completions", &limited).await.expect(200);
    }
    let left = harness.client.post("/v1/chat/completions", &limited).await;
    assert_eq!(left.status, StatusCode::TOO_MANY_REQUESTS, "nothing is left");
    let books = harness.finish().await;
    let cost = expected_charge(&usage, &price, "1");
    let rest = nanos("1.5") - cost;
    let rows: Vec<_> = books.exchanges.iter().map(money).collect();
    assert_eq!(rows, [(cost, cost, 0), (cost, rest, cost - rest)]);
    assert!(
        books
            .exchanges
            .iter()
            .all(|row| row.charge > row.held && row.state == State::Completed)
    );
    assert_eq!(books.users[0].balance.nanos(), 0);
}
