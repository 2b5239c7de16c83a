//! Who may call: good keys, within what they were issued for; everybody else learns nothing from the answer.

use std::time::{Duration, Instant};

use codex_gateway::key::GatewayKey;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::client::{Answer, Client, MODEL, chat, response};
use crate::harness::Harness;

/// A change that an operator makes in another process is in force within this time.
const IN_FORCE: Duration = Duration::from_secs(1);

/// The same caller with another token.
fn with_token(client: &Client, token: &str) -> Client {
    Client {
        key: token.to_owned(),
        ..client.clone()
    }
}

/// A well-formed key that nobody issued.
fn unknown_key() -> String {
    let mut entropy = [0; 32];
    getrandom::fill(&mut entropy).expect("random numbers");
    GatewayKey::from_entropy(entropy).reveal().to_owned()
}

/// The answer to a small call on chat, with the client's key.
async fn call(client: &Client) -> Answer {
    client.chat("Hello").await
}

async fn status(client: &Client) -> u16 {
    call(client).await.status.as_u16()
}

/// Calls until the answer has this status; gives when that was.
async fn until_status(client: &Client, wanted: u16, within: Duration) -> Instant {
    let start = Instant::now();
    while status(client).await != wanted {
        assert!(start.elapsed() < within, "not {wanted} after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Instant::now()
}

/// Calls until the key is refused; gives when that was. The hold's transaction refuses it too: what takes no hold shows
/// that it does not come so far.
async fn until_refused(client: &Client, within: Duration) -> Instant {
    let start = Instant::now();
    while client.get("/v1/models").await.status != 401 {
        assert!(start.elapsed() < within, "still good after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let refused = Instant::now();
    assert_eq!(status(client).await, 401);
    refused
}

/// All that a client sees of an answer, apart from what differs from one answer to the next of the same kind.
fn visible(answer: &Answer) -> (StatusCode, Vec<(String, String)>, String) {
    let id = answer.exchange().to_owned();
    assert!(id.len() == 36, "{id}");
    let mut headers: Vec<_> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), format!("{value:?}")))
        .collect();
    headers.retain(|(name, _)| name != "x-request-id" && name != "date");
    (answer.status, headers, answer.text().replace(&id, "ID"))
}

fn code(answer: &Answer) -> (u16, Value) {
    (answer.status.as_u16(), answer.json()["error"]["code"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_revoked_expired_and_missing_keys_get_the_same_bytes() {
    let harness = Harness::start().await;
    let revoked = harness.issue("--name gone");
    harness.operate(&format!("key revoke {}", revoked.key_id.0));
    let expired = harness.issue("--expires 1s");
    until_refused(&expired, Duration::from_secs(5)).await;
    let seen = harness.served().len();
    let paths = ["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/responses"];
    for (path, from) in paths.into_iter().zip(2..) {
        // So many of one address would have to wait.
        let from = harness.client.at(from);
        let post = async |token: &str| {
            let client = with_token(&from, token);
            visible(
                &client
                    .post(path, &json!({"model": MODEL, "input": "x", "messages": []}))
                    .await,
            )
        };
        let unknown = post(&unknown_key()).await;
        assert_eq!(unknown.0, 401);
        for token in [&revoked.key, &expired.key, &unknown_key()] {
            assert_eq!(post(token).await, unknown, "{path}");
        }
        for token in ["", "sk-gw-", "sk-gw-short", "nonsense", &harness.client.key[..54]] {
            assert_eq!(post(token).await, unknown, "{path}: {token}");
        }
        let none = from
            .http
            .post(format!("{}{path}", harness.base_url()))
            .body("{}")
            .send()
            .await;
        assert_eq!(
            visible(&Answer::of(none.expect("an answer")).await),
            unknown,
            "{path}: no key"
        );
    }
    for path in ["/v1/models", "/v1/models/gpt-5.5", "/models"] {
        let unknown = visible(&with_token(&harness.client, &unknown_key()).get(path).await);
        assert_eq!(unknown.0, 401);
        for client in [&revoked, &expired] {
            assert_eq!(visible(&client.get(path).await), unknown, "{path}");
        }
    }
    assert_eq!(harness.served().len(), seen, "nothing reached the upstream");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_plainly_something_else_is_told_so() {
    let harness = Harness::start().await;
    for (token, what) in [
        ("eyJhbGciOiJSUzI1NiJ9.e30.c2ln", "ChatGPT session token"),
        ("sk-proj-abcdefghijklmnop", "OpenAI key"),
        ("sk-ant-api03-abcdef", "Anthropic key"),
        ("sk-0123456789abcdef", "OpenAI"),
    ] {
        let answer = call(&with_token(&harness.client, token)).await;
        assert_eq!(code(&answer), (401, json!("invalid_api_key")));
        let text = answer.text();
        assert!(
            text.contains(what) && text.contains("sk-gw-") && !text.contains(token),
            "{text}"
        );
    }
    assert!(harness.served().is_empty());
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_checksum_is_refused_before_any_look_up() {
    let harness = Harness::start().await;
    let key = harness.client.key.clone();
    let last = if key.ends_with('0') { "1" } else { "0" };
    let mistyped = with_token(&harness.client, &format!("{}{last}", &key[..key.len() - 1]));
    let unknown = with_token(&harness.client, &unknown_key());
    let before = visible(&call(&unknown).await);
    // With the table of keys out of the way every look-up fails, and shows itself by that.
    harness.alter("ALTER TABLE api_keys RENAME TO hidden");
    let looked_up = call(&with_token(&harness.client, &unknown_key())).await;
    assert_eq!(code(&looked_up), (503, json!("storage_unavailable")));
    let mistyped = call(&mistyped).await;
    assert_eq!(visible(&mistyped), before, "the same answer, without a look-up");
    assert_eq!(code(&call(&with_token(&harness.client, "sk-proj-x")).await).0, 401);
    harness.alter("ALTER TABLE hidden RENAME TO api_keys");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_issues_and_revokes_keys_beside_the_running_server() {
    let harness = Harness::start().await;
    let issued = harness.issue("--name laptop");
    assert_eq!(status(&issued).await, 200, "at once");
    assert_eq!(status(&issued).await, 200, "known by now");
    harness.operate(&format!("key revoke {}", issued.key_id.0));
    until_refused(&issued, IN_FORCE).await;
    assert_eq!(status(&harness.client).await, 200, "no other key is touched");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_works_until_its_grace_ends_and_no_longer() {
    let harness = Harness::start().await;
    let old = harness.issue("--name laptop");
    assert_eq!(status(&old).await, 200);
    let start = Instant::now();
    let rotated = harness.operate(&format!("key rotate {} --grace 3s", old.key_id.0));
    let new = with_token(&old, rotated["key"].as_str().expect("a key"));
    assert_eq!(
        (status(&new).await, status(&old).await),
        (200, 200),
        "both, while the grace lasts"
    );
    let ended = until_refused(&old, Duration::from_secs(8)).await;
    assert!(
        ended.duration_since(start) >= Duration::from_millis(2_500),
        "the grace was kept"
    );
    assert_eq!(status(&new).await, 200);
    let rotated = harness.operate(&format!("key rotate {}", rotated["id"].as_str().expect("an id")));
    until_refused(&new, IN_FORCE).await;
    assert_eq!(
        status(&with_token(&old, rotated["key"].as_str().expect("a key"))).await,
        200
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_expires_by_itself_although_it_is_known() {
    let harness = Harness::start().await;
    let start = Instant::now();
    let short = harness.issue("--expires 2s");
    assert_eq!(status(&short).await, 200);
    let ended = until_refused(&short, Duration::from_secs(6)).await;
    assert!(
        ended.duration_since(start) >= Duration::from_secs(1),
        "not before its time"
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_some_models_uses_and_sees_only_these() {
    let harness = Harness::start().await;
    let narrow = harness.issue("--model gpt-5.5 --model gpt-6.1-t*");
    let ask = async |client: &Client, model: &str| {
        client
            .post("/v1/responses", &response("Hello", &json!({"model": model})))
            .await
    };
    for model in ["gpt-5.5", "gpt-6.1-terra"] {
        ask(&narrow, model).await.expect(200);
    }
    ask(&harness.client, "gpt-5.4").await.expect(200);
    let seen = harness.served().len();
    let refused = ask(&narrow, "gpt-5.4").await;
    assert_eq!(code(&refused), (404, json!("model_not_found")));
    assert_eq!(refused.json()["error"]["param"], "model");
    let text = refused.text();
    assert!(text.contains("'gpt-5.5'"), "names the nearest that it may use: {text}");
    assert_eq!(code(&ask(&narrow, "GPT-5.5").await).0, 404, "case counts");
    assert_eq!(harness.served().len(), seen, "nothing reached the upstream");
    let listed = async |client: &Client| -> Vec<String> {
        let document = client.get("/v1/models").await.expect(200).json();
        let ids = document["data"].as_array().expect("a list").iter();
        ids.map(|model| model["id"].as_str().expect("an id").to_owned())
            .collect()
    };
    let (of_narrow, of_all) = (listed(&narrow).await, listed(&harness.client).await);
    assert!(
        of_narrow
            .iter()
            .all(|name| name == "gpt-5.5" || name.starts_with("gpt-6.1-t")),
        "{of_narrow:?}"
    );
    assert!(of_narrow.contains(&"gpt-5.5".to_owned()) && of_narrow.contains(&"gpt-6.1-terra".to_owned()));
    assert!(of_all.len() > of_narrow.len() && of_all.contains(&"gpt-5.4".to_owned()));
    narrow.get("/v1/models/gpt-5.5").await.expect(200);
    narrow.get("/v1/models/gpt-5.4").await.expect(404);
    harness.client.get("/v1/models/gpt-5.4").await.expect(200);
    harness.finish().await;
}

/// Calls with what proxies say of where the client is.
async fn forwarded(client: &Client, path: &str, lines: &[&str]) -> Answer {
    let mut request = client.request(Method::POST, path);
    for line in lines {
        request = request.header("x-forwarded-for", *line);
    }
    let body = response("Hello", &json!({"messages": [{"role": "user", "content": "Hello"}]}));
    Answer::of(request.body(body.to_string()).send().await.expect("an answer")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_for_some_addresses_believes_only_trusted_proxies() {
    let builder = Harness::builder().settings("[server]\ntrusted_proxies = [\"127.0.0.0/8\", \"10.0.0.0/8\"]");
    let behind = builder.start().await;
    let key = behind.issue("--ip 203.0.113.0/24 --ip 2001:db8::/32");
    for (lines, allowed) in [
        (vec!["203.0.113.7"], true),
        (vec!["2001:db8::9"], true),
        (vec!["198.51.100.1", "203.0.113.7, 10.0.0.2"], true),
        (vec![], false),
        (vec!["198.51.100.1"], false),
        (vec!["203.0.113.7, 198.51.100.1"], false),
        (vec!["203.0.113.7", "198.51.100.1"], false),
        (vec!["203.0.113.7, nonsense"], false),
    ] {
        let answer = forwarded(&key, "/v1/chat/completions", &lines).await;
        let expected = if allowed {
            (200, Value::Null)
        } else {
            (403, json!("ip_not_allowed"))
        };
        assert_eq!(code(&answer), expected, "{lines:?}");
    }
    let codex = forwarded(&key, "/v1/responses", &["198.51.100.1"]).await;
    assert_eq!(code(&codex), (400, json!("invalid_prompt")), "Codex repeats a 403");
    assert_eq!(codex.json()["error"]["gateway"]["code"], "ip_not_allowed");
    assert_eq!(behind.served().len(), 3);
    behind.finish().await;

    let open = Harness::start().await;
    let (elsewhere, here) = (open.issue("--ip 203.0.113.0/24"), open.issue("--ip 127.0.0.1/32"));
    let spoofed = forwarded(&elsewhere, "/v1/chat/completions", &["203.0.113.7"]).await;
    assert_eq!(
        code(&spoofed),
        (403, json!("ip_not_allowed")),
        "anybody can write that header"
    );
    assert_eq!(
        forwarded(&here, "/v1/chat/completions", &["203.0.113.7"]).await.status,
        200
    );
    open.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_comes_in_azures_header_too_and_never_goes_upstream() {
    let harness = Harness::start().await;
    let url = format!("{}/v1/chat/completions", harness.base_url());
    let call = harness
        .client
        .http
        .post(&url)
        .header("api-key", &harness.client.key)
        .body(chat("Hello", &json!({})).to_string());
    assert_eq!(Answer::of(call.send().await.expect("an answer")).await.status, 200);
    status(&harness.client).await;
    for served in harness.served() {
        assert_eq!(served.headers["authorization"], "Bearer sk-upstream-secret");
        assert!(!served.headers.contains_key("api-key"));
        let secret = &harness.client.key["sk-gw-".len()..];
        assert!(!format!("{:?}{:?}", served.headers, served.body).contains(secret));
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_suspended_user_cannot_call_until_activated() {
    let harness = Harness::start().await;
    let bob = harness.add_client("bob", "5");
    assert_eq!(status(&harness.client).await, 200);
    harness.operate("user suspend alice");
    until_status(&harness.client, 403, IN_FORCE).await;
    let seen = harness.served().len();
    let refused = call(&harness.client).await;
    assert_eq!(code(&refused), (403, json!("user_suspended")));
    assert!(
        refused.text().contains("gateway user activate alice"),
        "{}",
        refused.text()
    );
    let codex = harness.client.respond("Hello").await;
    assert_eq!(code(&codex), (400, json!("invalid_prompt")), "Codex repeats a 403");
    assert_eq!(codex.json()["error"]["gateway"]["code"], "user_suspended");
    let unreadable = harness.client.post("/v1/chat/completions", &json!([])).await;
    assert_eq!(
        code(&unreadable),
        (403, json!("user_suspended")),
        "before the call is read"
    );
    assert_eq!(harness.served().len(), seen, "nothing reached the upstream");
    assert_eq!(status(&bob).await, 200);
    harness.operate("user activate alice");
    until_status(&harness.client, 200, IN_FORCE).await;
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_has_its_answer_and_every_answer_its_id() {
    let harness = Harness::start().await;
    let (get, head, post) = (Method::GET, Method::HEAD, Method::POST);
    let cases: [(&Method, &str, u16, &str); 21] = [
        (&get, "/healthz", 200, ""),
        (&head, "/healthz", 200, ""),
        (&get, "/readyz", 200, ""),
        (&head, "/readyz", 200, ""),
        (&get, "/v1/models", 401, "invalid_api_key"),
        (&head, "/v1/models", 401, ""),
        (&get, "/models", 401, "invalid_api_key"),
        (&head, "/v1/responses", 405, ""),
        (&get, "/v1/responses", 426, "upgrade_required"),
        (&get, "/responses", 426, "upgrade_required"),
        (&get, "/v1/chat/completions", 405, "method_not_allowed"),
        (&Method::DELETE, "/v1/embeddings", 405, "method_not_allowed"),
        (&post, "/v1/chat/completions", 401, "invalid_api_key"),
        (&post, "/responses", 401, "invalid_api_key"),
        (&post, "/v1/images/generations", 401, "invalid_api_key"),
        (&post, "/v1/images/variations", 403, "endpoint_not_supported"),
        (&get, "/v1/files/file-1", 401, "invalid_api_key"),
        (&post, "/v1/responses/other", 405, "method_not_allowed"),
        (&post, "/v1/responses/a/b", 400, "invalid_prompt"),
        (&get, "/v1/nothing", 404, "not_found"),
        (&get, "/", 404, "not_found"),
    ];
    for (method, path, status, code) in cases {
        let url = format!("{}{path}", harness.base_url());
        let answer = harness.client.http.request(method.clone(), url).send().await;
        let answer = Answer::of(answer.expect("an answer")).await;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.text());
        assert_eq!(answer.exchange().len(), 36, "{method} {path}");
        assert_eq!(
            answer.header("allow"),
            match (status, path) {
                (405, "/v1/responses/other") => "GET, HEAD, DELETE",
                (405, _) => "POST",
                _ => "",
            },
            "{method} {path}"
        );
        assert!(!answer.header("content-type").is_empty(), "{method} {path}");
        if !code.is_empty() {
            let error = &answer.json()["error"];
            assert_eq!(
                (&error["code"], &error["gateway"]["exchange"]),
                (&json!(code), &json!(answer.exchange()))
            );
        }
    }
    assert!(harness.served().is_empty());
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_that_is_switched_off_is_answered_so_that_codex_falls_back_at_once() {
    let harness = Harness::builder().settings("[server]\nwebsocket = false").start().await;
    for path in ["/v1/responses", "/responses"] {
        let request = harness.client.request(Method::GET, path);
        let upgrade = request
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let answer = Answer::of(upgrade.send().await.expect("an answer")).await;
        assert_eq!(code(&answer), (426, json!("upgrade_required")));
        assert_eq!(answer.exchange().len(), 36);
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_prefix_the_paths_are_the_same() {
    let harness = Harness::start().await;
    let client = &harness.client;
    client
        .post("/responses", &response("Hello", &json!({})))
        .await
        .expect(200);
    client
        .post("/chat/completions", &chat("Hello", &json!({})))
        .await
        .expect(200);
    client
        .post("/completions", &json!({"model": MODEL, "prompt": "Hello"}))
        .await
        .expect(200);
    client
        .post(
            "/embeddings",
            &json!({"model": "text-embedding-3-small", "input": "Hello"}),
        )
        .await
        .expect(200);
    client.get("/models").await.expect(200);
    let paths: Vec<String> = harness.served().into_iter().map(|served| served.path).collect();
    assert_eq!(
        paths,
        [
            "/v1/responses",
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/embeddings"
        ]
    );
    assert_eq!(harness.finish().await.exchanges.len(), 4);
}
