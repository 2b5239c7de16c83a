//! Streams pass as they are, minus what nobody asked for, and end only when they are paid for.

use std::sync::Arc;
use std::time::Duration;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Request, Script, ServedUsage, Step, always};
use codex_gateway::store::usage_log::{Basis, State};
use serde_json::json;

use crate::client::{MODEL, chat, drain, events, exchange_of, response};
use crate::harness::Harness;
use crate::price::{catalogue, expected_charge};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_asks_for_usage_gets_the_upstreams_bytes() {
    let harness = Harness::start().await;
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (path, body) in [
        ("/v1/chat/completions", chat("Hello", &asked)),
        (
            "/v1/completions",
            json!({"model": MODEL, "prompt": "Hello", "stream": true, "stream_options": {"include_usage": true}}),
        ),
        ("/v1/responses", response("Hello", &json!({"stream": true}))),
    ] {
        let (arrived, end) = drain(harness.client.send(path, &body).await).await;
        end.expect("a clean end");
        let served = harness.served().pop().expect("a call upstream");
        assert!(!arrived.is_empty());
        assert_eq!(arrived, served.sent, "{path}: byte for byte");
    }
    let price = catalogue("openai", MODEL);
    let served = harness.served();
    let books = harness.finish().await;
    let expected = served.iter().filter_map(|served| served.usage.as_ref());
    let expected: i128 = expected.map(|usage| expected_charge(usage, &price, "1")).sum();
    assert_eq!((books.exchanges.len(), books.charged()), (3, expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_event_that_nobody_asked_for_is_taken_out_again() {
    let harness = Harness::start().await;
    let (arrived, end) = drain(
        harness
            .client
            .send("/v1/chat/completions", &chat("Hello", &json!({"stream": true})))
            .await,
    )
    .await;
    end.expect("a clean end");
    let served = harness.simulator.ended(0).await;
    let asked: serde_json::Value = serde_json::from_slice(&served.body).expect("JSON");
    assert_eq!(
        asked["stream_options"]["include_usage"], true,
        "the upstream is asked for usage"
    );
    let sent = String::from_utf8(served.sent.clone()).expect("text");
    let usage_event = sent
        .split_inclusive("\n\n")
        .find(|event| event.contains("\"choices\":[]"))
        .expect("a usage event");
    assert_eq!(String::from_utf8_lossy(&arrived), sent.replace(usage_event, ""));
    let usage = served.usage.expect("a usage");
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!((row.state, row.basis), (State::Completed, Basis::Reported));
    assert_eq!(
        i128::from(row.charge.nanos()),
        expected_charge(&usage, &catalogue("openai", MODEL), "1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_event_leaves_as_it_comes() {
    let gate = Gate::closed();
    let inner = standard(Pace::default());
    let gated = gate.clone();
    let playwright = Arc::new(move |request: &Request| inner(request).between(&Step::Wait(gated.clone())));
    let harness = Harness::builder().playwright(playwright).start().await;
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let mut answer = harness
        .client
        .send("/v1/chat/completions", &chat("Hello", &asked))
        .await;
    let first = answer.chunk().await.expect("an event").expect("not the end");
    assert_eq!(
        events(&first).len(),
        1,
        "the first event comes while the second has not been sent"
    );
    for _ in 0..5 {
        gate.let_through(1);
        let next = answer.chunk().await.expect("an event").expect("not the end");
        assert_eq!(events(&next).len(), 1);
    }
    gate.open();
    let (_, end) = drain(answer).await;
    end.expect("a clean end");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_stream_leaves_after_its_charge_is_durable() {
    let harness = Harness::start().await;
    for (path, body, terminal) in [
        (
            "/v1/chat/completions",
            chat("Hello", &json!({"stream": true})),
            "data: [DONE]\n\n",
        ),
        (
            "/v1/responses",
            response("Hello", &json!({"stream": true})),
            "event: response.completed\n",
        ),
    ] {
        let mut answer = harness.client.send(path, &body).await;
        let id = exchange_of(&answer);
        let mut arrived = String::new();
        while !arrived.contains(terminal) {
            let piece = answer.chunk().await.expect("a piece").expect("not the end");
            arrived.push_str(&String::from_utf8_lossy(&piece));
        }
        // The connection is still open: nothing but the terminal event says that it is paid for.
        let row = harness.receipt(&id);
        assert_eq!(row.state, State::Completed, "{path}");
        assert_eq!(harness.user().held.nanos(), 0, "{path}");
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_any_usage_is_settled_by_counting() {
    let harness = Harness::builder().playwright(always_words(200)).start().await;
    let (arrived, end) = drain(
        harness
            .client
            .send("/v1/responses", &response("sim:no-usage", &json!({"stream": true})))
            .await,
    )
    .await;
    end.expect("a clean end");
    assert!(!arrived.is_empty());
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!((row.state, row.basis), (State::Completed, Basis::Estimated));
    assert_eq!(row.usage.output_tokens.get(), 200);
}

/// A response of so many one-token words, with no usage.
fn always_words(count: u64) -> codex_gateway::simulator::Playwright {
    let inner = standard(Pace::default());
    Arc::new(move |request: &Request| {
        let mut request = request.clone();
        request.model = format!("sim-words-{count}");
        let mut script = inner(&request);
        for step in &mut script.steps {
            if let Step::Send { bytes, .. } = step {
                let text = String::from_utf8_lossy(bytes);
                let Some(start) = text.find(",\"usage\":{") else {
                    continue;
                };
                let end = text.rfind("},\"user\"").map_or(start, |end| end + 1);
                *bytes = format!("{}{}", &text[..start], &text[end..]).into();
            }
        }
        script
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_breaks_is_not_made_to_look_complete() {
    for last in [Step::Reset, Step::Break] {
        let cut = last.clone();
        let inner = standard(Pace::default());
        let playwright = Arc::new(move |request: &Request| inner(request).cut(8, cut.clone()));
        let harness = Harness::builder().playwright(playwright).start().await;
        let (arrived, _) = drain(
            harness
                .client
                .send("/v1/responses", &response("Hello", &json!({"stream": true})))
                .await,
        )
        .await;
        let names: Vec<String> = events(&arrived)
            .iter()
            .filter_map(|event| event["type"].as_str().map(str::to_owned))
            .collect();
        assert_eq!(
            names.last().map(String::as_str),
            Some("response.failed"),
            "{last:?} {names:?}"
        );
        assert!(!names.iter().any(|name| name == "response.completed"));
        let (arrived, _) = drain(
            harness
                .client
                .send("/v1/chat/completions", &chat("Hello", &json!({"stream": true})))
                .await,
        )
        .await;
        let text = String::from_utf8_lossy(&arrived);
        assert!(text.contains("\"error\"") && !text.contains("[DONE]"), "{text}");
        let books = harness.finish().await;
        let ends: Vec<_> = books.exchanges.iter().map(|row| (row.state, row.basis)).collect();
        assert_eq!(ends, [(State::Broken, Basis::Estimated); 2]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_written_in_odd_pieces_arrive_whole_and_unchanged() {
    let whole = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"h\u{e9}llo \u{1f600}\"}}]}\r\n\r\n\
                 : a comment\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
                 data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2,\"total_tokens\":5}}\n\ndata: [DONE]\n\n";
    for size in [1, 2, 3, 7, 64, 1_000] {
        let steps = whole
            .as_bytes()
            .chunks(size)
            .map(|piece| Step::send(piece.to_vec()))
            .collect();
        let usage = ServedUsage {
            input: 3,
            output: 2,
            ..ServedUsage::default()
        };
        let harness = Harness::builder()
            .playwright(always(Script::sse(steps).using(usage.clone())))
            .start()
            .await;
        let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
        let (arrived, end) = drain(
            harness
                .client
                .send("/v1/chat/completions", &chat("Hello", &asked))
                .await,
        )
        .await;
        end.expect("a clean end");
        assert_eq!(String::from_utf8_lossy(&arrived), whole, "pieces of {size}");
        let books = harness.finish().await;
        assert_eq!(
            books.charged(),
            expected_charge(&usage, &catalogue("openai", MODEL), "1")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_say_that_they_are_not_to_be_buffered_and_carry_no_cost() {
    let harness = Harness::start().await;
    let answer = harness
        .client
        .send("/v1/responses", &response("Hello", &json!({"stream": true})))
        .await;
    assert_eq!(answer.headers()["cache-control"], "no-cache");
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    assert!(!answer.headers().contains_key("x-gateway-cost"));
    let (_, end) = drain(answer).await;
    end.expect("a clean end");
    let plain = harness.client.respond("Hello").await.expect(200);
    let receipt = harness.receipt(plain.exchange());
    assert_eq!(plain.header("x-gateway-cost"), receipt.charge.to_string());
    assert_eq!(plain.header("x-gateway-balance"), receipt.balance_after.to_string());
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_is_kept_alive_between_two_events() {
    let gate = Gate::closed();
    let inner = standard(Pace::default());
    let gated = gate.clone();
    let playwright = Arc::new(move |request: &Request| inner(request).at(3, Step::Wait(gated.clone())));
    let harness = Harness::builder().playwright(playwright).start().await;
    let mut answer = harness
        .client
        .send("/v1/responses", &response("Hello", &json!({"stream": true})))
        .await;
    let mut arrived = Vec::new();
    let alive = b"data: {\"type\":\"keepalive\"}\n\n";
    let patience = tokio::time::timeout(Duration::from_secs(30), async {
        while !arrived.windows(alive.len()).any(|part| part == alive) {
            arrived.extend_from_slice(&answer.chunk().await.expect("a piece").expect("not the end"));
        }
    });
    patience.await.expect("a keep-alive after 15 s of silence");
    gate.open();
    let (rest, end) = drain(answer).await;
    end.expect("a clean end");
    arrived.extend(rest);
    let sent = harness.simulator.ended(0).await.sent;
    let without = String::from_utf8_lossy(&arrived).replace("data: {\"type\":\"keepalive\"}\n\n", "");
    assert_eq!(without, String::from_utf8_lossy(&sent));
    harness.finish().await;
}
