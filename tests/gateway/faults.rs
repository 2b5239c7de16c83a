//! What an upstream does wrong is told as the client can use it, and charged only as far as something was delivered.

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Playwright, Request, Script, Step, Wire, always};
use codex_gateway::store::usage_log::{Basis, State};
use flate2::Compression;
use flate2::write::GzEncoder;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL, chat, drain, events, exchange_of, response};
use crate::harness::{Builder, Harness};
use crate::price::{catalogue, expected_charge};

/// The two kinds of clients that are told differently.
const PATHS: [&str; 2] = ["/v1/chat/completions", "/v1/responses"];

fn body(path: &str, prompt: &str, more: &Value) -> Value {
    if path.ends_with("responses") {
        response(prompt, more)
    } else {
        chat(prompt, more)
    }
}

async fn ask(client: &Client, path: &str, prompt: &str) -> Answer {
    client.post(path, &body(path, prompt, &json!({}))).await
}

/// A fault of the upstream's, as both kinds of clients are told, with `Retry-After`; nothing is charged.
async fn assert_fault(harness: &Harness, prompt: &str, status: u16, code: &str) {
    for path in PATHS {
        let answer = ask(&harness.client, path, prompt).await;
        let told = answer.json();
        let error = &told["error"];
        let codex = path == "/v1/responses";
        let expected = if codex {
            (503, "server_is_overloaded")
        } else {
            (status, code)
        };
        assert_eq!(
            (answer.status.as_u16(), error["code"].as_str()),
            (expected.0, Some(expected.1)),
            "{prompt} {told}"
        );
        assert_eq!(
            (&error["type"], &error["gateway"]["code"]),
            (&json!("server_error"), &json!(code)),
            "{prompt}"
        );
        assert_eq!(error["gateway"]["exchange"], answer.exchange(), "{prompt}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|message| message.contains("Nothing was charged")),
            "{told}"
        );
        // Codex takes any `Retry-After` beside this code for its own waiting, thirty times over.
        let waits = !codex && status == 503;
        assert_eq!(answer.headers.contains_key("retry-after"), waits, "{prompt} {path}");
        let row = harness.receipt(answer.exchange());
        assert!(
            matches!(row.state, State::Refused | State::Failed | State::Broken),
            "{prompt}: {:?}",
            row.state
        );
        assert_eq!((row.charge.nanos(), row.cost.nanos()), (0, 0), "{prompt} {path}");
    }
}

async fn finish_unpaid(harness: Harness) {
    let (balance, books) = (harness.user().balance, harness.finish().await);
    assert_eq!(
        (balance.nanos(), books.charged()),
        (5_000_000_000, 0),
        "nothing was charged"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_can_do_nothing_about_is_told_as_trouble_upstream() {
    let harness = Harness::start().await;
    for (play, status, code) in [
        ("401", 502, "upstream_error"),
        ("500", 502, "upstream_error"),
        ("502", 502, "upstream_error"),
        ("503", 503, "server_is_overloaded"),
        ("529", 503, "server_is_overloaded"),
        ("quota", 503, "server_is_overloaded"),
        ("refuse", 502, "upstream_error"),
    ] {
        assert_fault(&harness, &format!("sim:{play}"), status, code).await;
    }
    finish_unpaid(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_statuses_of_trouble_are_translated_too() {
    let error = |status, code| {
        Script::error(
            status,
            "invalid_request_error",
            code,
            "Incorrect API key provided: sk-…9",
        )
    };
    let moved = Script::body(StatusCode::FOUND, "text/html", "moved".into()).header("location", "http://127.0.0.1:1/");
    for (script, status, code) in [
        (error(StatusCode::FORBIDDEN, "invalid_api_key"), 502, "upstream_error"),
        (error(StatusCode::PAYMENT_REQUIRED, "x"), 503, "server_is_overloaded"),
        (error(StatusCode::GATEWAY_TIMEOUT, "x"), 504, "upstream_timeout"),
        (moved, 502, "upstream_error"),
    ] {
        let harness = Harness::builder().playwright(always(script)).start().await;
        assert_fault(&harness, "Hello", status, code).await;
        assert_eq!(harness.served().len(), 2, "nothing is followed, nothing is repeated");
        finish_unpaid(harness).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_reached_or_does_not_answer_costs_nothing() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = nobody.local_addr().expect("an address");
    drop(nobody);
    let builder = Harness::builder();
    let harness = builder
        .tweak(move |config| config.upstreams[0].base_url = format!("http://{address}/v1"))
        .start()
        .await;
    assert_fault(&harness, "Hello", 502, "upstream_error").await;
    finish_unpaid(harness).await;
    let slow = |builder: Builder| {
        builder.tweak(|config| {
            config.upstreams[0].first_byte_timeout = Duration::from_millis(300);
            config.upstreams[0].idle_timeout = Duration::from_millis(300);
        })
    };
    let harness = slow(Harness::builder()).start().await;
    assert_fault(&harness, "sim:hang", 504, "upstream_timeout").await;
    finish_unpaid(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unary_answer_that_breaks_off_costs_nothing() {
    for play in ["sim:cut", "sim:break"] {
        let harness = Harness::start().await;
        assert_fault(&harness, play, 502, "upstream_error").await;
        let books = harness.finish().await;
        assert!(books.exchanges.iter().all(|row| row.state == State::Broken));
        assert_eq!(books.charged(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_longer_than_the_setting_is_not_passed_and_costs_nothing() {
    let harness = Harness::builder()
        .settings("[server]\nmax_response = \"1MiB\"")
        .start()
        .await;
    assert_fault(&harness, "sim:huge", 502, "upstream_error").await;
    finish_unpaid(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_about_the_request_pass_unchanged() {
    let harness = Harness::start().await;
    for (play, status) in [("400", 400), ("403", 403), ("404", 404), ("429", 429)] {
        for path in PATHS {
            let answer = ask(&harness.client, path, &format!("sim:{play}")).await.expect(status);
            let served = harness.served().pop().expect("a call upstream");
            assert_eq!(answer.body, served.sent, "{play}: byte for byte");
            assert_eq!(answer.header("content-type"), "application/json");
            assert_eq!(answer.header("retry-after"), if play == "429" { "1" } else { "" });
            let row = harness.receipt(answer.exchange());
            assert_eq!((row.state, row.upstream_status), (State::Refused, Some(status)));
        }
    }
    finish_unpaid(harness).await;
}

/// How a stream fails: what it sends, and whether something of an answer has come before.
fn failing(path: &'static str, delivers: bool, failure: Step) -> Playwright {
    let first = match (path, delivers) {
        (_, false) => Step::send(": nothing yet\n\n"),
        ("/v1/responses", true) => Step::event(&json!({"type": "response.output_text.delta", "delta": "Hello"}), 1),
        (_, true) => Step::data(&json!({"choices": [{"index": 0, "delta": {"content": "Hello"}}]}), 1),
    };
    always(Script::sse(vec![first, failure]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_fails_costs_what_was_delivered_of_it() {
    let error = json!({"message": "It broke.", "type": "server_error", "param": null, "code": "server_error"});
    let failed = json!({"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "error": error}});
    for (path, failure) in [
        ("/v1/chat/completions", Step::data(&json!({"error": error}), 0)),
        (
            "/v1/responses",
            Step::event(&json!({"type": "error", "error": error}), 0),
        ),
        ("/v1/responses", Step::event(&failed, 0)),
    ] {
        for delivers in [false, true] {
            let harness = Harness::builder()
                .playwright(failing(path, delivers, failure.clone()))
                .start()
                .await;
            let answer = harness
                .client
                .send(path, &body(path, "Hello", &json!({"stream": true})))
                .await;
            let (arrived, end) = drain(answer).await;
            end.expect("a clean end");
            assert_eq!(arrived, harness.simulator.ended(0).await.sent, "{path}: byte for byte");
            let books = harness.finish().await;
            let row = books.only();
            assert_eq!(row.state, State::Failed, "{path}");
            if delivers {
                assert_eq!(
                    (row.basis, row.usage.output_tokens.get()),
                    (Basis::Estimated, 1),
                    "{path}"
                );
                assert!(row.charge.nanos() > 0, "{path}");
            } else {
                assert_eq!(row.charge.nanos(), 0, "{path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_fails_with_a_usage_costs_that() {
    let usage = json!({"input_tokens": 100, "output_tokens": 40, "total_tokens": 140});
    let failed = json!({"type": "response.failed", "response": {"id": "resp_1", "status": "failed", "usage": usage}});
    let playwright = failing("/v1/responses", false, Step::event(&failed, 0));
    let harness = Harness::builder().playwright(playwright).start().await;
    let (_, end) = drain(
        harness
            .client
            .send("/v1/responses", &response("Hello", &json!({"stream": true})))
            .await,
    )
    .await;
    end.expect("a clean end");
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!((row.state, row.basis), (State::Failed, Basis::Reported));
    // 100 × $2 + 40 × $10 per million.
    assert_eq!(books.charged(), 600_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_inside_a_200_passes_and_costs_nothing() {
    let error = json!({"error": {"message": "It broke.", "type": "server_error", "code": "server_error"}});
    let harness = Harness::builder()
        .playwright(always(Script::json(StatusCode::OK, &error)))
        .start()
        .await;
    for path in PATHS {
        let answer = ask(&harness.client, path, "Hello").await.expect(200);
        assert_eq!(answer.json(), error);
        assert_eq!(harness.receipt(answer.exchange()).state, State::Failed);
    }
    finish_unpaid(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_answer_that_failed_costs_what_was_delivered_of_it() {
    let error = json!({"message": "It broke.", "type": "server_error", "code": "server_error"});
    let said = json!({"role": "assistant", "content": "Hello there"});
    let chat = json!({"id": "chatcmpl-1", "choices": [{"index": 0, "message": said}], "error": error});
    let item = json!({"id": "msg_1", "type": "message", "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello there"}]});
    let failed = json!({"id": "resp_1", "object": "response", "status": "failed", "error": error, "output": [item]});
    for (path, told) in [("/v1/chat/completions", chat), ("/v1/responses", failed)] {
        let playwright = always(Script::json(StatusCode::OK, &told));
        let harness = Harness::builder().playwright(playwright).start().await;
        let answer = ask(&harness.client, path, "Hello").await.expect(200);
        assert_eq!(answer.json(), told, "{path}");
        let books = harness.finish().await;
        let row = books.only();
        assert_eq!((row.state, row.basis), (State::Failed, Basis::Estimated), "{path}");
        assert_eq!(row.usage.output_tokens.get(), 2, "{path}");
        assert!(row.charge.nanos() > 0 && row.charge <= row.held, "{path}");
    }
}

/// A chat answer with this usage; without the field when there is none.
fn answer_with(usage: Option<Value>, streamed: bool) -> Script {
    let said = json!({"role": "assistant", "content": "Hello"});
    if streamed {
        let choice = json!({"index": 0, "delta": said, "finish_reason": "stop"});
        let mut steps = vec![Step::data(&json!({"id": "chatcmpl-1", "choices": [choice]}), 1)];
        steps.extend(usage.map(|usage| Step::data(&json!({"id": "chatcmpl-1", "choices": [], "usage": usage}), 0)));
        steps.push(Step::send("data: [DONE]\n\n"));
        return Script::sse(steps);
    }
    let mut whole = json!({"id": "chatcmpl-1", "choices": [{"index": 0, "message": said, "finish_reason": "stop"}]});
    if let Some(usage) = usage {
        whole["usage"] = usage;
    }
    Script::json(StatusCode::OK, &whole)
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_that_is_zero_null_or_absent_is_three_things() {
    let zero = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
    for streamed in [false, true] {
        for (usage, basis) in [
            (Some(zero.clone()), Basis::Reported),
            (Some(Value::Null), Basis::Estimated),
            (None, Basis::Estimated),
        ] {
            let script = answer_with(usage.clone(), streamed);
            let harness = Harness::builder().playwright(always(script)).start().await;
            let asked = json!({"stream": streamed, "stream_options": {"include_usage": true}});
            let asked = if streamed { asked } else { json!({}) };
            let answer = harness
                .client
                .send("/v1/chat/completions", &chat("Hello", &asked))
                .await;
            let (arrived, end) = drain(answer).await;
            end.expect("a clean end");
            let served = harness.simulator.ended(0).await;
            assert_eq!(arrived, served.sent, "{usage:?}: byte for byte, a null too");
            let books = harness.finish().await;
            let row = books.only();
            assert_eq!(
                (row.state, row.basis),
                (State::Completed, basis),
                "{usage:?} {streamed}"
            );
            assert_eq!(
                row.charge.nanos() == 0,
                basis == Basis::Reported,
                "{usage:?}: {}",
                row.charge
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_null_does_not_take_back_the_usage_before_it() {
    let inner = standard(Pace::default());
    let playwright = Arc::new(move |request: &Request| {
        let script = inner(request);
        let null = Step::data(&json!({"id": "chatcmpl-1", "choices": [], "usage": null}), 0);
        let end = script.steps.len() - 1;
        script.at(end, null)
    });
    let harness = Harness::builder().playwright(playwright).start().await;
    let (_, end) = drain(
        harness
            .client
            .send("/v1/chat/completions", &chat("Hello", &json!({"stream": true})))
            .await,
    )
    .await;
    end.expect("a clean end");
    let usage = harness.simulator.ended(0).await.usage.expect("a usage");
    let books = harness.finish().await;
    assert_eq!(books.only().basis, Basis::Reported);
    assert_eq!(
        books.charged(),
        expected_charge(&usage, &catalogue("openai", MODEL), "1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_json_passes_and_is_settled_by_counting() {
    let harness = Harness::start().await;
    for path in PATHS {
        let answer = ask(&harness.client, path, "sim:broken-json").await.expect(200);
        assert_eq!(answer.body, harness.served().pop().expect("a call").sent);
        let row = harness.receipt(answer.exchange());
        assert_eq!(row.basis, Basis::Estimated, "{path}");
        let asked = json!({"stream": true});
        let (arrived, _) = drain(harness.client.send(path, &body(path, "sim:broken-json", &asked)).await).await;
        let sent = harness.served().pop().expect("a call").sent;
        assert!(arrived.starts_with(&sent[..sent.len() - 20]), "{path}");
    }
    harness.finish().await;
}

/// Headers of an upstream's answer that tell of the operator's account, or end at this connection.
const KEPT_BACK: [(&str, &str); 12] = [
    ("set-cookie", "__cf_bm=secret"),
    ("openai-organization", "org-secret"),
    ("openai-project", "proj_secret"),
    ("openai-model", "gpt-secret"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-remaining-tokens", "9"),
    ("cf-ray", "8f"),
    ("server", "cloudflare"),
    ("alt-svc", "h3=\":443\""),
    ("proxy-authenticate", "Basic"),
    ("x-anything-else", "secret"),
    ("access-control-allow-origin", "*"),
];

/// Headers that reach the client, and under which name.
const PASSED: [(&str, &str); 4] = [
    ("openai-processing-ms", "openai-processing-ms"),
    ("openai-version", "openai-version"),
    ("x-codex-turn-state", "x-codex-turn-state"),
    ("x-request-id", "x-upstream-request-id"),
];

#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_tells_of_the_operators_account_never_reaches_the_client() {
    let inner = standard(Pace::default());
    let playwright = Arc::new(move |request: &Request| {
        let mut script = inner(request);
        script.headers.retain(|(name, _)| name != "x-request-id");
        let kept = KEPT_BACK
            .iter()
            .fold(script, |script, (name, value)| script.header(name, value));
        PASSED
            .iter()
            .fold(kept, |script, (name, _)| script.header(name, "told"))
    });
    let harness = Harness::builder().playwright(playwright).start().await;
    for path in PATHS {
        for (prompt, more) in [
            ("Hello", json!({})),
            ("Hello", json!({"stream": true})),
            ("sim:400", json!({})),
        ] {
            let answer = harness.client.send(path, &body(path, prompt, &more)).await;
            let headers = answer.headers().clone();
            drain(answer).await.1.expect("a clean end");
            for (name, value) in KEPT_BACK {
                assert_ne!(
                    headers.get(name).and_then(|told| told.to_str().ok()),
                    Some(value),
                    "{prompt}: {name}"
                );
            }
            for (_, name) in PASSED {
                assert_eq!(headers[name], "told", "{prompt}");
            }
            assert_ne!(headers["x-request-id"], "told", "the gateway's own");
        }
    }
    harness.finish().await;
}

/// Headers of a client that end here: its key, what tells of other sites and hops, and what is on no list.
const STOPPED: [(&str, &str); 16] = [
    ("cookie", "session=secret"),
    ("api-key", "secret"),
    ("x-api-key", "secret"),
    ("x-forwarded-for", "203.0.113.9"),
    ("x-forwarded-host", "secret"),
    ("forwarded", "for=203.0.113.9"),
    ("x-real-ip", "203.0.113.9"),
    ("via", "1.1 secret"),
    ("proxy-authorization", "Basic secret"),
    ("te", "trailers"),
    ("openai-organization", "org-of-client"),
    ("openai-project", "proj_of_client"),
    ("origin", "https://secret.example"),
    ("referer", "https://secret.example"),
    ("x-anything-else", "secret"),
    ("x-codex-hop", "named by Connection"),
];

/// Headers of a client that go on.
const FORWARDED: [&str; 8] = [
    "user-agent",
    "originator",
    "openai-beta",
    "session_id",
    "thread-id",
    "x-codex-beta-features",
    "x-client-request-id",
    "accept",
];

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_headers_of_a_client_reach_the_upstream_and_never_its_key() {
    let harness = Harness::start().await;
    let key = harness.client.key.clone();
    for path in PATHS {
        let mut request = harness.client.request(reqwest::Method::POST, path);
        for (name, value) in STOPPED {
            request = request.header(name, value);
        }
        for name in FORWARDED {
            request = request.header(name, "goes-on");
        }
        let request = request
            .header("connection", "x-codex-hop")
            .header("idempotency-key", path)
            .header("accept-encoding", "gzip, br");
        let body = body(path, "Hello", &json!({})).to_string();
        let answer = request
            .header("content-type", "application/json; charset=utf-8")
            .body(body)
            .send()
            .await;
        Answer::of(answer.expect("an answer")).await.expect(200);
        let headers: HeaderMap = harness.served().pop().expect("a call upstream").headers;
        for name in STOPPED.map(|(name, _)| name).into_iter().chain(["idempotency-key"]) {
            assert!(!headers.contains_key(name), "{path}: {name}");
        }
        for name in FORWARDED {
            assert_eq!(headers[name], "goes-on", "{path}");
        }
        assert_eq!(
            headers["authorization"], "Bearer sk-upstream-secret",
            "the operator's own credential"
        );
        assert_eq!(headers["accept-encoding"], "identity");
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(headers["host"], harness.simulator.address().to_string());
        let all: Vec<String> = headers
            .values()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into())
            .collect();
        assert!(
            !all.iter().any(|value| value.contains(&key)),
            "the client's key stays here"
        );
        let known = [
            "authorization",
            "accept-encoding",
            "content-type",
            "content-length",
            "host",
            "x-request-id",
        ];
        let others = headers
            .keys()
            .filter(|name| !known.contains(&name.as_str()) && !FORWARDED.contains(&name.as_str()));
        assert_eq!(
            others.collect::<Vec<_>>(),
            Vec::<&http::HeaderName>::new(),
            "nothing else"
        );
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_stream_does_not_wait_for_an_upstream_that_keeps_its_connection_open() {
    let inner = standard(Pace::default());
    let playwright = Arc::new(move |request: &Request| {
        let script = inner(request);
        let end = script.steps.len();
        script.at(end, Step::Wait(Gate::closed()))
    });
    let harness = Harness::builder().playwright(playwright).start().await;
    for path in PATHS {
        let answer = harness
            .client
            .send(path, &body(path, "Hello", &json!({"stream": true})))
            .await;
        let (arrived, end) = tokio::time::timeout(Duration::from_secs(10), drain(answer))
            .await
            .expect("an end");
        end.expect("a clean end");
        assert!(!events(&arrived).is_empty());
    }
    let books = harness.finish().await;
    assert!(
        books
            .exchanges
            .iter()
            .all(|row| (row.state, row.basis) == (State::Completed, Basis::Reported))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_a_client_takes_is_not_the_upstreams_silence() {
    // More than the sockets hold, so that the relay has to wait for its client; and an upstream that may pause little.
    let pad = format!("data: {{\"pad\":\"{}\"}}\n\n", "x".repeat(64 * 1024));
    let playwright: Playwright = Arc::new(move |request: &Request| {
        let inner = standard(Pace::default());
        assert_eq!(request.wire(), Some(Wire::ChatCompletions));
        inner(request).at(
            2,
            Step::Repeat {
                bytes: pad.clone().into(),
                times: 512,
            },
        )
    });
    let builder = Harness::builder().playwright(playwright);
    let builder = builder.tweak(|config| config.upstreams[0].idle_timeout = Duration::from_millis(500));
    let harness = builder.start().await;
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = harness
        .client
        .send("/v1/chat/completions", &chat("Hello", &asked))
        .await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    let (arrived, end) = drain(answer).await;
    end.expect("a clean end");
    assert!(arrived.ends_with(b"data: [DONE]\n\n"));
    let books = harness.finish().await;
    assert_eq!(books.only().state, State::Completed);
}

/// Compresses an answer step by step, as an upstream does that ignores `identity`.
fn compressed(script: Script) -> Script {
    let mut coder = GzEncoder::new(Vec::new(), Compression::default());
    let mut taken = 0;
    let mut steps = Vec::new();
    for step in &script.steps {
        let Step::Send { bytes, output_tokens } = step else {
            steps.push(step.clone());
            continue;
        };
        coder.write_all(bytes).and_then(|()| coder.flush()).expect("memory");
        let bytes = coder.get_ref()[taken..].to_vec().into();
        taken = coder.get_ref().len();
        steps.push(Step::Send {
            bytes,
            output_tokens: *output_tokens,
        });
    }
    steps.push(Step::send(coder.finish().expect("memory")[taken..].to_vec()));
    let mut script = Script { steps, ..script }.header("content-encoding", "gzip");
    script.headers.retain(|(name, _)| name != "content-length");
    script
}

/// The steps of a script that are written, in bytes, but for the last: the end of the coding.
fn until_trailer(served: &[u8]) -> usize {
    // The last block, and the checksum and length.
    const TRAILER: usize = 10;
    served.len() - TRAILER
}

fn compressing(play: Playwright) -> Playwright {
    Arc::new(move |request: &Request| compressed(play(request)))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_compressed_passes_as_it_is_and_is_read_all_the_same() {
    let harness = Harness::builder()
        .playwright(compressing(standard(Pace::default())))
        .start()
        .await;
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    for (path, more) in [
        ("/v1/chat/completions", json!({})),
        ("/v1/responses", json!({})),
        ("/v1/chat/completions", asked),
        ("/v1/responses", json!({"stream": true})),
    ] {
        let mut answer = harness.client.send(path, &body(path, "Hello", &more)).await;
        assert_eq!(answer.headers()["content-encoding"], "gzip");
        let id = exchange_of(&answer);
        let mut arrived = Vec::new();
        while let Some(piece) = answer.chunk().await.expect("a piece") {
            arrived.extend_from_slice(&piece);
            let served = harness.served().pop().expect("a call upstream");
            if served.ended.is_some() && arrived.len() >= until_trailer(&served.sent) {
                assert_eq!(
                    harness.receipt(&id).basis,
                    Basis::Reported,
                    "{path}: the end waits for the charge"
                );
            }
        }
        assert_eq!(
            arrived,
            harness.served().pop().expect("a call upstream").sent,
            "{path}: byte for byte"
        );
        assert_eq!(harness.receipt(&id).state, State::Completed, "{path}");
    }
    let usages = harness.served().into_iter().filter_map(|served| served.usage);
    let expected: i128 = usages
        .map(|usage| expected_charge(&usage, &catalogue("openai", MODEL), "1"))
        .sum();
    assert_eq!(harness.finish().await.charged(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_compressed_stream_does_not_pass_its_limit_either() {
    let inner = standard(Pace::default());
    let playwright = compressing(Arc::new(move |request: &Request| {
        let script = inner(request);
        let end = script.steps.len() - 4;
        script.at(end, Step::Wait(Gate::closed()))
    }));
    let harness = Harness::builder().playwright(playwright).start().await;
    let asked = json!({"stream": true, "max_completion_tokens": 200});
    let answer = harness
        .client
        .send("/v1/chat/completions", &chat("sim:overrun", &asked))
        .await;
    drain(answer).await.1.expect_err("nothing of ours can end it");
    let books = harness.finish().await;
    let row = books.only();
    assert_eq!((row.state, row.basis), (State::Limited, Basis::Estimated));
    let output = row.usage.output_tokens.get();
    // Compressed pieces pass whole, so it may be fewer.
    assert!((200..=264).contains(&output), "{output}");
}
