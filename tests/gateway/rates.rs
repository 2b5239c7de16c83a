//! Rate limits of keys, users and models: requests and tokens a minute, calls at once.

use std::time::{Duration, Instant};

use codex_gateway::config::OnHangup;
use codex_gateway::simulator::Gate;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::client::{Answer, Client, chat, drain, response};
use crate::concurrency::{gated, next, rush};
use crate::harness::Harness;

/// No call takes so long to be decided.
const PATIENCE: Duration = Duration::from_secs(30);

const CHAT: &str = "/v1/chat/completions";

/// A call that says how long its answer may get.
fn at_most(model: &str, tokens: u32) -> Value {
    chat("Hello", &json!({"model": model, "max_completion_tokens": tokens}))
}

/// Whose limit is tried, and who shares it.
struct Shared {
    whose: &'static str,
    model: &'static str,
    /// Two who share the limit.
    callers: [Client; 2],
    /// One who does not.
    other: Client,
    /// What the other asks for.
    others_model: &'static str,
}

const MODELS: &str = "
[limits]
model_rpm = { \"gpt-5.5\" = 2, \"gpt-5*\" = 50 }
model_tpm = { \"gpt-5.4\" = 2000 }
model_concurrency = { \"gpt-5.2\" = 2 }
";

/// A key (and the one that it was rotated from), a user and a model that have one limit, as flags and as a model.
fn everybody(harness: &Harness, flag: &str, model: &'static str) -> [Shared; 3] {
    let first = harness.issue(flag);
    let rotated = harness.operate(&format!("key rotate {} --grace 1h", first.key_id));
    let heir = Client {
        key: rotated["key"].as_str().expect("a key").to_owned(),
        ..first.clone()
    };
    let other = || harness.add_client(&format!("other-{model}-{}", uuid::Uuid::now_v7().simple()), "5");
    let bob = harness.add_client(&format!("bob-{model}"), "5");
    harness.operate(&format!("user set bob-{model} {flag}"));
    let bobs = harness.operate(&format!("key issue bob-{model}"));
    let second = Client {
        key: bobs["key"].as_str().expect("a key").to_owned(),
        ..bob.clone()
    };
    let free = "gpt-6.1-sol";
    [
        Shared {
            whose: "key",
            model: free,
            callers: [first, heir],
            other: harness.issue(""),
            others_model: free,
        },
        Shared {
            whose: "user",
            model: free,
            callers: [bob, second],
            other: harness.client.clone(),
            others_model: free,
        },
        Shared {
            whose: "model",
            model,
            callers: [other(), other()],
            other: harness.client.clone(),
            others_model: free,
        },
    ]
}

/// The wait that a refusal tells, in seconds; it names the limit and its number.
fn refused(answer: &Answer, limit: &str, number: u32) -> u64 {
    assert_eq!(answer.status.as_u16(), 429, "{}", answer.text());
    let error = &answer.json()["error"];
    assert_eq!(
        (&error["code"], &error["type"], &error["gateway"]["limit"]),
        (&json!("rate_limit_exceeded"), &json!("rate_limit_error"), &json!(limit)),
    );
    let message = error["message"].as_str().expect("a message");
    let wait = answer.header("retry-after").parse().expect("seconds");
    assert!(message.contains(&format!("{number} ")), "{message}");
    assert!(message.ends_with(&format!("Please try again in {wait}s.")), "{message}");
    assert_eq!(answer.header("x-should-retry"), "", "it may be repeated");
    wait
}

/// What is left, and of how many, by the headers.
fn left(answer: &Answer, of: &str) -> (u32, u32) {
    let number = |name: &str| answer.header(&format!("x-ratelimit-{name}-{of}")).parse();
    let reset = answer.header(&format!("x-ratelimit-reset-{of}"));
    assert!(
        reset.ends_with('s') && reset.starts_with(|c: char| c.is_ascii_digit()),
        "{reset:?}"
    );
    (
        number("remaining").expect("what is left"),
        number("limit").expect("the limit"),
    )
}

fn has_limits(answer: &Answer) -> bool {
    answer
        .headers
        .keys()
        .any(|name| name.as_str().starts_with("x-ratelimit-"))
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_a_minute_are_those_of_a_key_a_user_and_a_model() {
    let harness = Harness::builder().settings(MODELS).start().await;
    for shared in everybody(&harness, "--rpm 2", "gpt-5.5") {
        let [one, two] = &shared.callers;
        let call = at_most(shared.model, 16);
        let first = one.post(CHAT, &call).await.expect(200);
        assert_eq!(left(&first, "requests"), (1, 2), "{}", shared.whose);
        let second = two.post(CHAT, &call).await.expect(200);
        assert_eq!(left(&second, "requests"), (0, 2), "{}", shared.whose);
        for caller in [one, two] {
            let answer = caller.post(CHAT, &call).await;
            let wait = refused(&answer, &format!("{}_rpm", shared.whose), 2);
            assert!((1..=30).contains(&wait), "{wait}: one of two a minute");
            assert_eq!(left(&answer, "requests"), (0, 2));
        }
        let free = shared
            .other
            .post(CHAT, &at_most(shared.others_model, 16))
            .await
            .expect(200);
        assert!(!has_limits(&free), "{:?}", free.headers);
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_not_use_a_model_uses_up_nothing_of_its_limit() {
    let harness = Harness::builder().settings(MODELS).start().await;
    let stranger = harness.issue("--model gpt-6*");
    for _ in 0..3 {
        stranger.post(CHAT, &at_most("gpt-5.5", 16)).await.expect(404);
    }
    for rest in [1, 0] {
        let answer = harness.client.post(CHAT, &at_most("gpt-5.5", 16)).await.expect(200);
        assert_eq!(left(&answer, "requests"), (rest, 2));
    }
    // Nor is it told what others have left of it.
    let answer = stranger.post(CHAT, &at_most("gpt-5.5", 16)).await.expect(404);
    assert!(!has_limits(&answer), "{:?}", answer.headers);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_a_minute_are_estimated_and_what_was_used_takes_the_place_of_the_estimate() {
    let gate = Gate::closed();
    let harness = Harness::builder()
        .settings(MODELS)
        .playwright(gated(&gate))
        .start()
        .await;
    for shared in everybody(&harness, "--tpm 2000", "gpt-5.4") {
        let [one, two] = &shared.callers;
        let call = at_most(shared.model, 1_500);
        let name = format!("{}_tpm", shared.whose);
        for _ in 0..3 {
            // What the answer does not use of its 1,500 tokens is given back before its end leaves.
            gate.let_through(1);
            let answer = one.post(CHAT, &call).await.expect(200);
            let (remaining, limit) = left(&answer, "tokens");
            assert!(limit == 2_000 && (300..500).contains(&remaining), "{remaining}");
        }
        let mut running = rush(std::slice::from_ref(one), 1, CHAT, &call);
        let arrived = harness.served().len() + 1;
        timeout(PATIENCE, harness.simulator.until(move |served| served.len() >= arrived))
            .await
            .expect("a call upstream");
        let answer = two.post(CHAT, &call).await;
        let wait = refused(&answer, &name, 2_000);
        assert!((1..=60).contains(&wait), "{wait}");
        gate.let_through(1);
        next(&mut running, 1).await.remove(0).expect(200);
        gate.let_through(1);
        two.post(CHAT, &call).await.expect(200);
        // It states no limit, so nobody knows that it is long.
        gate.let_through(1);
        let long = chat("sim:words-5000", &json!({"model": shared.model}));
        one.post(CHAT, &long).await.expect(200);
        let wait = refused(&two.post(CHAT, &call).await, &name, 2_000);
        assert!(
            (120..=160).contains(&wait),
            "{wait}: 5,000 and more of 2,000 a minute were used"
        );
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_no_minute_has_tokens_for_is_told_so_and_not_to_come_again() {
    let harness = Harness::start().await;
    let client = harness.issue("--tpm 1000");
    let large = client.post(CHAT, &at_most("gpt-6.1-sol", 1_000)).await.expect(413);
    let error = large.json()["error"].clone();
    assert_eq!(
        (&error["code"], &error["gateway"]["limit"]),
        (&json!("request_too_large"), &json!("key_tpm"))
    );
    let message = error["message"].as_str().expect("a message");
    assert!(
        message.contains("1000 tokens a minute") && message.contains("it needs 10"),
        "{message}"
    );
    assert_eq!(large.header("retry-after"), "");
    assert_eq!(left(&large, "tokens"), (1_000, 1_000), "it has taken nothing");
    let codex = response("Hello", &json!({"max_output_tokens": 1_000}));
    let codex = client.post("/v1/responses", &codex).await.expect(400);
    assert_eq!(
        codex.json()["error"]["code"],
        "invalid_prompt",
        "what Codex does not repeat"
    );
    client
        .chat("without a limit it may be as short as it has to")
        .await
        .expect(200);
    assert!(harness.served().len() == 1);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_once_exactly_as_many_run_as_may() {
    const MANY: usize = 16;
    let gate = Gate::closed();
    let harness = Harness::builder()
        .settings(MODELS)
        .playwright(gated(&gate))
        .start()
        .await;
    for shared in everybody(&harness, "--concurrency 2", "gpt-5.2") {
        let call = at_most(shared.model, 16);
        let mut calls = rush(&shared.callers, MANY, CHAT, &call);
        for answer in next(&mut calls, MANY - 2).await {
            let wait = refused(&answer, &format!("{}_concurrency", shared.whose), 2);
            assert!((1..=10).contains(&wait), "{wait}");
        }
        gate.let_through(3);
        shared
            .other
            .post(CHAT, &at_most(shared.others_model, 16))
            .await
            .expect(200);
        for answer in next(&mut calls, 2).await {
            answer.expect(200);
        }
        for caller in shared.callers.iter().cycle().take(6) {
            gate.let_through(1);
            caller.post(CHAT, &call).await.expect(200);
        }
    }
    harness.finish().await;
}

/// Calls until it is not refused.
async fn until_admitted(client: &Client) {
    let start = Instant::now();
    while client.chat("Hello").await.status == 429 {
        assert!(start.elapsed() < PATIENCE, "the permit is not given back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_is_free_before_the_client_has_read_the_end() {
    let harness = Harness::start().await;
    let client = harness.issue("--concurrency 1");
    let streamed = json!({"stream": true});
    for round in 0..20 {
        for path in [CHAT, "/v1/responses"] {
            let body = match path {
                CHAT => chat("Hello", &streamed),
                _ => response("Hello", &streamed),
            };
            let answer = client.send(path, &body).await;
            assert_eq!(answer.status().as_u16(), 200, "{round}");
            drain(answer).await.1.expect("a whole stream");
            client.chat("Hello").await.expect(200);
        }
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permit_is_free_after_a_fault_and_a_refusal() {
    let harness = Harness::start().await;
    let client = harness.issue("--concurrency 1");
    for play in ["500", "429", "refuse", "cut", "break", "broken-json", "quota", "400"] {
        for more in [json!({}), json!({"stream": true})] {
            let sent = client.try_send(CHAT, &chat(&format!("sim:{play}"), &more)).await;
            let answer = drain(sent.expect("a head")).await;
            assert!(answer.1.is_ok() || play != "500", "{play}");
        }
        // What is torn is torn a moment before its exchange has ended.
        until_admitted(&client).await;
        client.chat("Hello").await.expect(200);
    }
    let nowhere = chat("Hello", &json!({"model": "gpt-0-nonsense"}));
    client.post(CHAT, &nowhere).await.expect(404);
    client.chat("Hello").await.expect(200);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_hangs_up_has_its_permit_back_when_its_call_has_ended() {
    for on_hangup in [OnHangup::Cancel, OnHangup::Drain] {
        let gate = Gate::closed();
        let harness = Harness::builder().playwright(gated(&gate)).start().await;
        let client = harness.issue(&format!("--concurrency 1 --on-hangup {on_hangup}"));
        let mut socket = client.raw(CHAT, &chat("Hello", &json!({"stream": true}))).await;
        timeout(PATIENCE, harness.simulator.until(|served| !served.is_empty()))
            .await
            .expect("a call upstream");
        refused(&client.chat("Hello").await, "key_concurrency", 1);
        socket.shutdown().await.expect("half a connection");
        drop(socket);
        if on_hangup == OnHangup::Drain {
            refused(&client.chat("Hello").await, "key_concurrency", 1);
            gate.open();
            until_admitted(&client).await;
        } else {
            // The next call waits upstream for the gate, or is not admitted yet.
            let mut next = JoinSet::new();
            next.spawn(async move { until_admitted(&client).await });
            timeout(PATIENCE, harness.simulator.until(|served| served.len() == 2))
                .await
                .expect("a call upstream while nothing has been answered");
            gate.open();
            next.join_next().await.expect("a call").expect("it is answered");
        }
        harness.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_changed_while_the_server_runs() {
    let harness = Harness::builder().settings("[limits]\nrpm = 1000").start().await;
    let client = harness.issue("");
    let of = |answer: &Answer| left(answer, "requests").1;
    assert_eq!(
        of(&client.chat("Hello").await.expect(200)),
        1_000,
        "as the settings say"
    );
    let until = async |number: u32| {
        let start = Instant::now();
        while of(&client.chat("Hello").await) != number {
            assert!(start.elapsed() < Duration::from_secs(5), "{number} is not in force");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    harness.operate(&format!("key set {} --rpm 500", client.key_id));
    until(500).await;
    harness.operate("user set alice --rpm 300");
    until(300).await;
    harness.operate(&format!("key set {} --rpm 2", client.key_id));
    until(2).await;
    client.chat("Hello").await;
    refused(&client.chat("Hello").await, "key_rpm", 2);
    harness.operate(&format!("key set {} --rpm default", client.key_id));
    harness.operate("user set alice --rpm none");
    until(1_000).await;
    client.chat("Hello").await.expect(200);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_money_refuses_has_been_a_request_and_nothing_else() {
    let harness = Harness::builder().balance("0").start().await;
    let client = harness.issue("--rpm 5 --tpm 2000 --concurrency 1");
    for used in 1..=5 {
        let answer = client.post(CHAT, &at_most("gpt-6.1-sol", 1_500)).await.expect(429);
        assert_eq!(answer.json()["error"]["code"], "insufficient_quota");
        assert_eq!(left(&answer, "requests"), (5 - used, 5));
        let (remaining, _) = left(&answer, "tokens");
        assert!(
            (300..500).contains(&remaining),
            "the tokens of those before are given back: {remaining}"
        );
    }
    refused(&client.chat("Hello").await, "key_rpm", 5);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_money_uses_up_nothing_of_a_models_limit() {
    let harness = Harness::builder().settings(MODELS).start().await;
    let poor = harness.add_client("poor", "0");
    for _ in 0..3 {
        let answer = poor.post(CHAT, &at_most("gpt-5.5", 16)).await.expect(429);
        assert_eq!(answer.json()["error"]["code"], "insufficient_quota");
    }
    let answer = harness.client.post(CHAT, &at_most("gpt-5.5", 16)).await.expect(200);
    assert_eq!(left(&answer, "requests"), (1, 2));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_call_is_a_request_and_nothing_else() {
    let harness = Harness::builder()
        .settings("[billing]\nrecord_answers = true")
        .start()
        .await;
    let client = harness.issue("--rpm 4 --tpm 2000 --concurrency 1");
    let body = at_most("gpt-6.1-sol", 1_500);
    let again = async || {
        let request = client
            .request(http::Method::POST, CHAT)
            .header("idempotency-key", "one");
        let request = request
            .header("content-type", "application/json")
            .body(body.to_string());
        Answer::of(request.send().await.expect("an answer")).await
    };
    let first = again().await.expect(200);
    for used in 2..=4 {
        let answer = again().await.expect(200);
        assert_eq!(answer.header("idempotent-replayed"), "true");
        assert_eq!(answer.body, first.body);
        assert_eq!(left(&answer, "requests"), (4 - used, 4), "what is left now, not then");
        assert!(left(&answer, "tokens").0 > 300);
    }
    refused(&client.chat("Hello").await, "key_rpm", 4);
    let answer = again().await.expect(200);
    assert_eq!(answer.body, first.body, "what became of it is told all the same");
    assert_eq!(harness.served().len(), 1);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_reads_its_limits() {
    let harness = Harness::builder()
        .settings("[limits]\nrpm = 60\nconcurrency = 4\nmodel_rpm = { \"gpt-6*\" = 7 }")
        .start()
        .await;
    harness.operate("user set alice --tpm 5000");
    let client = harness.issue("--concurrency 2");
    let me = client.get("/v1/gateway/me").await.expect(200).json();
    assert_eq!(me["limits"]["key"], json!({"rpm": 60, "tpm": null, "concurrency": 2}));
    assert_eq!(
        me["limits"]["user"],
        json!({"rpm": null, "tpm": 5_000, "concurrency": null})
    );
    let models = me["limits"]["models"].as_object().expect("models");
    assert_eq!(
        models["gpt-6.1-sol"],
        json!({"rpm": 7, "tpm": null, "concurrency": null})
    );
    assert!(models.keys().all(|model| model.starts_with("gpt-6")), "{models:?}");
    assert!(!has_limits(&client.get("/v1/models").await), "it is no billed endpoint");
    let shown = harness.operate(&format!("key show {}", client.key_id));
    assert_eq!(
        (&shown["rpm"], &shown["concurrency"]),
        (&Value::Null, &json!(2)),
        "its own"
    );
    assert_eq!(harness.operate("user show alice")["tpm"], 5_000);
    let nowhere = chat("Hello", &json!({"model": "gpt-0-nonsense"}));
    let nowhere = client.post(CHAT, &nowhere).await.expect(404);
    assert_eq!(left(&nowhere, "requests"), (59, 60), "refusals say it, too");
    harness.finish().await;
}
