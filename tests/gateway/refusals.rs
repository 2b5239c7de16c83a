//! Refusals: each row of the table as a client sees it; nothing of it reaches the upstream, nothing is charged.

use std::sync::Arc;
use std::time::Duration;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Gate, Request, Script, Step, always};
use codex_gateway::store::Actor;
use codex_gateway::store::usage_log::State;
use codex_gateway::store::users::UserStatus;
use codex_gateway::time::now;
use futures_util::future::join;
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL, chat, response};
use crate::harness::{Harness, committed};
use crate::price::nanos;

const CHAT: &str = "/v1/chat/completions";
const RESPONSES: &str = "/v1/responses";

/// A row of the table: status, `error.type`, `error.code`.
type Row = (u16, &'static str, &'static str);

const INVALID: &str = "invalid_request_error";

/// What Codex is told of a policy, so that it shows our sentence after one request.
const CODEX_POLICY: Row = (400, INVALID, "invalid_prompt");

/// What Codex is told of an upstream's trouble.
const CODEX_TROUBLE: Row = (503, "server_error", "server_is_overloaded");

/// The smallest good call to an endpoint.
fn good(path: &str) -> Value {
    if path.ends_with("responses") {
        response("Hello", &json!({}))
    } else {
        chat("Hello", &json!({}))
    }
}

/// Checks a refusal against its row; `reason` is what programs may act on. Returns the error.
fn check(answer: &Answer, row: Row, reason: &str) -> Value {
    let error = answer.json()["error"].clone();
    let told = (answer.status.as_u16(), error["type"].as_str(), error["code"].as_str());
    assert_eq!(told, (row.0, Some(row.1), Some(row.2)), "{error}");
    assert_eq!(error["gateway"]["code"], reason, "{error}");
    assert_eq!(error["gateway"]["exchange"], answer.exchange(), "{error}");
    assert_eq!(answer.header("content-type"), "application/json");
    assert!(
        error["message"].as_str().is_some_and(|message| message.len() > 20),
        "{error}"
    );
    error
}

/// Insists that the message tells what to do.
fn says(error: &Value, words: &[&str]) {
    let message = error["message"].as_str().expect("a message");
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

/// Nothing reached the upstream, and nothing was charged or even held.
async fn untouched(harness: Harness) {
    assert_eq!(harness.served().len(), 0, "nothing reached the upstream");
    assert_eq!(harness.finish().await.exchanges, []);
}

async fn post_text(client: &Client, path: &str, body: &str) -> Answer {
    let request = client.request(reqwest::Method::POST, path).body(body.to_owned());
    Answer::of(request.send().await.expect("the gateway answers")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_call_is_a_400_that_names_what_is_wrong() {
    let harness = Harness::start().await;
    for path in [CHAT, RESPONSES] {
        for (body, code, param) in [
            ("", "invalid_json", json!(null)),
            ("{", "invalid_json", json!(null)),
            ("[]", "invalid_json", json!(null)),
            ("{}", "missing_required_parameter", json!("model")),
            (r#"{"model":""}"#, "invalid_value", json!("model")),
            (r#"{"model":7}"#, "invalid_type", json!("model")),
            (
                r#"{"model":"cheap","Model":"dear"}"#,
                "unknown_parameter",
                json!("model"),
            ),
            (
                r#"{"model":"cheap","model":"dear"}"#,
                "duplicate_parameter",
                json!("model"),
            ),
            (r#"{"model":"m","stream":"true"}"#, "invalid_type", json!("stream")),
            (
                r#"{"model":"m","service_tier":"turbo"}"#,
                "invalid_value",
                json!("service_tier"),
            ),
        ] {
            let answer = post_text(&harness.client, path, body).await;
            let error = check(&answer, (400, INVALID, code), code);
            assert_eq!(error["param"], param, "{body}: {error}");
        }
        let coded = harness
            .client
            .request(reqwest::Method::POST, path)
            .header("content-encoding", "gzip");
        let coded = Answer::of(coded.body("not gzip").send().await.expect("an answer")).await;
        check(&coded, (400, INVALID, "unsupported_encoding"), "unsupported_encoding");
    }
    untouched(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_key_is_one_answer_whatever_is_wrong_with_it() {
    let harness = Harness::start().await;
    let operator = Actor("test".into());
    let revoked = harness.add_client("revoked", "5");
    committed(harness.store.revoke_key(revoked.key_id, &operator, now()));
    let expired = harness.add_limited("expired", |key| key.expires_at = Some(now() - Duration::from_secs(1)));
    let mut entropy = [7; 32];
    entropy[0] = 1;
    let unknown = codex_gateway::key::GatewayKey::from_entropy(entropy)
        .reveal()
        .to_owned();
    let mut wrong_checksum = unknown.clone();
    let last = wrong_checksum.pop().expect("a letter");
    wrong_checksum.push(if last == 'a' { 'b' } else { 'a' });
    for path in [CHAT, RESPONSES] {
        let with = async |key: Option<&str>| {
            let request = harness.client.http.post(format!("{}{path}", harness.base_url()));
            let request = match key {
                Some(key) => request.bearer_auth(key),
                None => request,
            };
            Answer::of(request.body(good(path).to_string()).send().await.expect("an answer")).await
        };
        let mut messages = Vec::new();
        for key in [
            None,
            Some("sk-gw-short"),
            Some(&unknown),
            Some(&wrong_checksum),
            Some(&revoked.key),
            Some(&expired.key),
        ] {
            let answer = with(key).await;
            let error = check(&answer, (401, INVALID, "invalid_api_key"), "invalid_api_key");
            says(&error, &["sk-gw-", "gateway key issue"]);
            messages.push(error["message"].clone());
        }
        // Where no hold looks at the key once more, it is the same.
        for client in [&revoked, &expired] {
            let answer = client.get("/v1/models").await;
            let error = check(&answer, (401, INVALID, "invalid_api_key"), "invalid_api_key");
            messages.push(error["message"].clone());
        }
        messages.dedup();
        assert_eq!(messages.len(), 1, "no hint which: {messages:?}");
        for (key, whose) in [
            ("sk-proj-abcdefghijklmnop", "OpenAI"),
            ("eyJhbGciOiJSUzI1NiJ9.e30.x", "ChatGPT session"),
        ] {
            let error = check(
                &with(Some(key)).await,
                (401, INVALID, "invalid_api_key"),
                "invalid_api_key",
            );
            says(&error, &["sk-gw-", "ask its operator", whose]);
        }
    }
    untouched(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_is_gone_is_a_quota_refusal_that_nobody_repeats() {
    let harness = Harness::builder().balance("0.01").start().await;
    for path in [CHAT, RESPONSES] {
        let limit = if path == CHAT {
            "max_completion_tokens"
        } else {
            "max_output_tokens"
        };
        let mut body = good(path);
        body[limit] = json!(100_000);
        let answer = harness.client.post(path, &body).await;
        let error = check(
            &answer,
            (429, "usage_limit_reached", "insufficient_quota"),
            "insufficient_quota",
        );
        assert_eq!(answer.header("x-should-retry"), "false");
        assert_eq!(answer.header("retry-after"), "");
        let promo = answer.header("x-codex-promo-message");
        assert!(
            promo.is_ascii() && promo.contains("alice") && !promo.ends_with('.'),
            "{promo}"
        );
        assert_eq!(
            (&error["gateway"]["limit"], &error["gateway"]["available"]),
            (&json!("balance"), &json!("0.01"))
        );
        let needed = nanos(error["gateway"]["needed"].as_str().expect("an amount"));
        assert!(needed > 1_000_000_000, "{error}");
        says(
            &error,
            &[
                "alice",
                "$0.01",
                "gateway user credit alice AMOUNT",
                "largest output limit that fits is",
            ],
        );

        // The limit that the message names fits, and one more does not.
        let largest = error["gateway"]["largest_limit"].as_u64().expect("a limit");
        says(&error, &[&largest.to_string()]);
        body[limit] = json!(largest + 1);
        assert_eq!(harness.client.post(path, &body).await.status, 429);
        // Without a limit a useful answer does not fit either.
        let error = check(
            &harness.client.post(path, &good(path)).await,
            (429, "usage_limit_reached", "insufficient_quota"),
            "insufficient_quota",
        );
        assert_eq!(error["gateway"]["largest_limit"], Value::Null);
    }
    untouched(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_limit_that_a_refusal_names_is_admitted() {
    let harness = Harness::builder().balance("0.01").start().await;
    let mut body = good(CHAT);
    body["max_completion_tokens"] = json!(100_000);
    let refused = harness.client.post(CHAT, &body).await.expect(429).json();
    body["max_completion_tokens"] = refused["error"]["gateway"]["largest_limit"].clone();
    harness.client.post(CHAT, &body).await.expect(200);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn money_that_running_calls_hold_is_a_rate_limit() {
    let gate = Gate::closed();
    let (inner, gated) = (standard(Pace::default()), gate.clone());
    let playwright = Arc::new(move |request: &Request| inner(request).first(Step::Wait(gated.clone())));
    let harness = Harness::builder().balance("1").playwright(playwright).start().await;
    // 80,000 × $10 per million is most of the dollar.
    let body = chat("Hello", &json!({"max_tokens": 80_000}));
    let first = harness.client.post(CHAT, &body);
    let meanwhile = async {
        harness.simulator.arrived(1).await;
        for (path, limit) in [(CHAT, "max_tokens"), (RESPONSES, "max_output_tokens")] {
            let mut body = good(path);
            body[limit] = json!(80_000);
            let answer = harness.client.post(path, &body).await;
            let error = check(
                &answer,
                (429, "rate_limit_error", "rate_limit_exceeded"),
                "rate_limit_exceeded",
            );
            let after: u64 = answer.header("retry-after").parse().expect("seconds");
            assert!((1..=10).contains(&after));
            assert_eq!(answer.header("x-codex-promo-message"), "");
            says(&error, &["alice", "hold", "try again in 5s"]);
            for field in ["available", "held", "needed"] {
                assert!(error["gateway"][field].is_string(), "{error}");
            }
        }
        assert_eq!(harness.served().len(), 1, "only the first reached the upstream");
        gate.open();
    };
    let (first, ()) = join(first, meanwhile).await;
    first.expect(200);
    assert_eq!(harness.finish().await.exchanges.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_forbids_is_a_403_and_for_codex_a_400_that_it_shows() {
    let harness = Harness::start().await;
    let operator = Actor("test".into());
    let bob = harness.add_client("bob", "5");
    committed(
        harness
            .store
            .set_user_status(bob.user, UserStatus::Suspended, &operator, now()),
    );
    let elsewhere = harness.add_limited("carol", |key| key.ips = vec!["10.0.0.0/8".parse().expect("a range")]);
    for (path, row) in [(CHAT, (403, INVALID, "")), (RESPONSES, CODEX_POLICY)] {
        let row = |code| if path == CHAT { (row.0, row.1, code) } else { row };
        let error = check(
            &bob.post(path, &good(path)).await,
            row("user_suspended"),
            "user_suspended",
        );
        says(&error, &["bob", "gateway user activate bob"]);
        let error = check(
            &elsewhere.post(path, &good(path)).await,
            row("ip_not_allowed"),
            "ip_not_allowed",
        );
        says(&error, &["address", "operator"]);
    }
    for path in ["/v1/images/variations", "/v1/audio/voices", "/v1/batches"] {
        let answer = harness.client.post(path, &json!({"model": MODEL})).await;
        let error = check(
            &answer,
            (403, INVALID, "endpoint_not_supported"),
            "endpoint_not_supported",
        );
        says(&error, &[path, "cannot be metered"]);
    }
    // What is called below /responses is told in the words that Codex shows.
    let answer = harness.client.post("/v1/responses/a/b", &json!({"model": MODEL})).await;
    check(&answer, (400, INVALID, "invalid_prompt"), "endpoint_not_supported");
    let answer = harness.client.post("/v1/nonsense", &json!({})).await;
    says(
        &check(&answer, (404, INVALID, "not_found"), "not_found"),
        &["POST /v1/responses"],
    );
    let answer = harness.client.get(CHAT).await;
    check(&answer, (405, INVALID, "method_not_allowed"), "method_not_allowed");
    assert_eq!(answer.header("allow"), "POST");
    let answer = harness.client.get(RESPONSES).await;
    check(&answer, (426, INVALID, "upgrade_required"), "upgrade_required");
    untouched(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_is_not_offered_is_a_404_that_names_the_nearest() {
    let aliases = "models = [\"gpt-*\", \"kimi-k3\"]\naliases = { \"house\" = \"gpt-unpriced\" }";
    let harness = Harness::builder().upstream(aliases).start().await;
    let limited = harness.add_limited("dave", |key| key.models = vec!["gpt-5*".into()]);
    let missing = (404, INVALID, "model_not_found");
    for path in [CHAT, RESPONSES] {
        let ask = async |client: &Client, model: &str| {
            let mut body = good(path);
            body["model"] = json!(model);
            let error = check(&client.post(path, &body).await, missing, "model_not_found");
            assert_eq!(error["param"], "model");
            error
        };
        // Served by no upstream.
        says(
            &ask(&harness.client, "claude-9").await,
            &["'claude-9'", "GET /v1/models"],
        );
        // Served, but not priced: a misspelling, an alias, and one that is priced in another list only.
        says(
            &ask(&harness.client, "gpt-6.1-soll").await,
            &[
                "no price",
                "'gpt-6.1-sol'",
                "gateway price set gpt-6.1-soll --list openai",
                "nothing was charged",
            ],
        );
        says(
            &ask(&harness.client, "house").await,
            &["'house'", "gateway price set gpt-unpriced --list openai"],
        );
        says(
            &ask(&harness.client, "kimi-k3").await,
            &["no price", "gateway price set kimi-k3 --list openai"],
        );
        // Served and priced, but this key may not use it.
        let error = ask(&limited, MODEL).await;
        says(&error, &["not offered here to this key", "GET /v1/models"]);
        let nearest = error["message"]
            .as_str()
            .and_then(|message| message.split("nearest that it may use is '").nth(1));
        assert!(nearest.is_none_or(|name| name.starts_with("gpt-5")), "{error}");
    }
    untouched(harness).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_too_large_is_a_413_also_when_it_only_unpacks_to_that() {
    let harness = Harness::builder()
        .settings("[server]\nmax_body = \"4KiB\"")
        .start()
        .await;
    let long = "a".repeat(5_000);
    for (path, row) in [(CHAT, (413, INVALID, "request_too_large")), (RESPONSES, CODEX_POLICY)] {
        let body = if path == CHAT {
            chat(&long, &json!({}))
        } else {
            response(&long, &json!({}))
        };
        let packed = zstd::encode_all(body.to_string().as_bytes(), 3).expect("memory");
        assert!(packed.len() < 1_000);
        let request = harness
            .client
            .request(reqwest::Method::POST, path)
            .header("content-encoding", "zstd");
        let packed = Answer::of(request.body(packed).send().await.expect("an answer")).await;
        for answer in [harness.client.post(path, &body).await, packed] {
            let error = check(&answer, row, "request_too_large");
            assert_eq!(error["gateway"]["limit"], "max_body");
            says(&error, &["4096 bytes decompressed", "max_body"]);
        }
    }
    untouched(harness).await;
}

/// A fault of the upstream, as chat clients are told.
fn faults() -> Vec<(&'static str, Script, Row, &'static str)> {
    let error = |status, kind, code, message| Script::error(status, kind, code, message);
    let bad = (502, "server_error", "upstream_error");
    let busy = (503, "server_error", "server_is_overloaded");
    let late = (504, "server_error", "upstream_timeout");
    let status = |code| StatusCode::from_u16(code).expect("a status");
    let coded = Script::body(StatusCode::OK, "application/json", "not gzip".into()).header("content-encoding", "gzip");
    vec![
        ("hangs up", Script::refuse(), bad, "broke off"),
        (
            "breaks",
            Script::json(StatusCode::OK, &json!({})).cut(0, Step::Break),
            bad,
            "broke off",
        ),
        (
            "our credential",
            error(status(401), INVALID, "invalid_api_key", "Incorrect API key"),
            bad,
            "credential",
        ),
        (
            "our account",
            error(
                status(429),
                "insufficient_quota",
                "insufficient_quota",
                "You exceeded your quota",
            ),
            busy,
            "account",
        ),
        (
            "payment",
            error(status(402), INVALID, "billing", "Pay"),
            busy,
            "account",
        ),
        (
            "fails",
            error(status(500), "server_error", "oops", "Oops"),
            bad,
            "failed",
        ),
        (
            "overloaded",
            error(status(503), "server_error", "slow", "Slow"),
            busy,
            "overloaded",
        ),
        (
            "bad gateway",
            Script::body(status(502), "text/html", "<html>".into()),
            bad,
            "failed",
        ),
        (
            "gateway timeout",
            Script::body(status(504), "text/html", "<html>".into()),
            late,
            "in time",
        ),
        (
            "redirects",
            Script::body(status(302), "text/html", "".into()).header("location", "http://127.0.0.1:1/"),
            bad,
            "redirect",
        ),
        ("undecodable", coded, bad, "compressed"),
        (
            "too long",
            Script::body(StatusCode::OK, "application/json", vec![b' '; 5_000].into()),
            bad,
            "max_response",
        ),
        (
            "too late",
            Script::json(StatusCode::OK, &json!({})).first(Step::Pause(Duration::from_secs(3))),
            late,
            "in time",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_fault_is_told_as_ours_and_costs_nothing() {
    for (name, script, row, word) in faults() {
        let builder = Harness::builder().settings("[server]\nmax_response = \"4KiB\"");
        let harness = builder
            .upstream("first_byte_timeout = \"1s\"")
            .playwright(always(script))
            .start()
            .await;
        for path in [CHAT, RESPONSES] {
            let answer = harness.client.post(path, &good(path)).await;
            let row = if path == CHAT { row } else { CODEX_TROUBLE };
            let reason = answer.json()["error"]["gateway"]["code"]
                .as_str()
                .expect("a reason")
                .to_owned();
            let error = check(&answer, row, &reason);
            says(&error, &[word, "Nothing was charged"]);
            let after = answer.header("retry-after");
            match (path, row.0) {
                (CHAT, 503) => assert!(after.parse::<u64>().is_ok_and(|after| after <= 10), "{name}: {after}"),
                _ => assert_eq!(after, "", "{name}"),
            }
            assert!(
                !answer.text().contains("sk-upstream") && !answer.headers.contains_key("x-gateway-cost"),
                "{name}"
            );
        }
        let books = harness.finish().await;
        assert_eq!((books.exchanges.len(), books.charged()), (2, 0), "{name}");
        assert!(
            books.exchanges.iter().all(|row| row.state != State::Completed),
            "{name}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_cannot_be_reached_is_a_502() {
    let harness = Harness::builder()
        .tweak(|config| config.upstreams[0].base_url = "http://127.0.0.1:1/v1".into())
        .start()
        .await;
    check(
        &harness.client.post(CHAT, &good(CHAT)).await,
        (502, "server_error", "upstream_error"),
        "upstream_error",
    );
    check(
        &harness.client.post(RESPONSES, &good(RESPONSES)).await,
        CODEX_TROUBLE,
        "upstream_error",
    );
    assert_eq!(harness.finish().await.charged(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstreams_own_refusal_passes_unchanged() {
    let body = br#"{ "error" : {"message":"Unknown parameter: 'x'.","type":"invalid_request_error","param":"x","code":"unknown_parameter"} }"#;
    for status in [400, 403, 404, 409, 413, 422, 429] {
        let status = StatusCode::from_u16(status).expect("a status");
        let script = Script::body(status, "application/json", body.as_slice().into())
            .header("retry-after", "7")
            .header("openai-organization", "org-secret");
        let harness = Harness::builder().playwright(always(script)).start().await;
        for path in [CHAT, RESPONSES] {
            let answer = harness.client.post(path, &good(path)).await;
            assert_eq!((answer.status, &answer.body[..]), (status, &body[..]));
            assert_eq!(
                (answer.header("retry-after"), answer.header("openai-organization")),
                ("7", "")
            );
        }
        let books = harness.finish().await;
        let ends: Vec<_> = books
            .exchanges
            .iter()
            .map(|row| (row.state, row.charge.nanos()))
            .collect();
        assert_eq!(ends, [(State::Refused, 0); 2]);
    }
}
