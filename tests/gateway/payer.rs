//! The payer's view: any valid key reads its balance, receipts and usage, exactly; and nothing of another key.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use codex_gateway::call::Endpoint;
use codex_gateway::money::Usd;
use codex_gateway::time;
use http::{Method, StatusCode};
use jiff::SignedDuration;
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::client::{Answer, Client, FROM_ANYWHERE, MODEL, chat, nth_address, response};
use crate::harness::Harness;

/// Who asks, in the order of the columns of [`MATRIX`].
const IDENTITIES: [&str; 8] = [
    "none",
    "malformed",
    "key",
    "other",
    "revoked",
    "expired",
    "suspended",
    "poor",
];

const OPEN: [u16; 8] = [200; 8];
const READ: [u16; 8] = [401, 401, 200, 200, 401, 401, 200, 200];
const BILLED: [u16; 8] = [401, 401, 200, 200, 401, 401, 403, 429];
/// A document where a form is wanted.
const NO_FORM: [u16; 8] = [401, 401, 400, 400, 401, 401, 403, 400];
const FREE: [u16; 8] = [401, 401, 200, 200, 401, 401, 403, 200];
/// No upstream here is free.
const UNTOLD: [u16; 8] = [401, 401, 403, 403, 401, 401, 403, 403];
const FREE_TO_CODEX: [u16; 8] = [401, 401, 200, 200, 401, 401, 400, 200];
const NOBODYS: [u16; 8] = [401, 401, 404, 404, 401, 401, 403, 404];
const NOBODYS_TO_CODEX: [u16; 8] = [401, 401, 404, 404, 401, 401, 400, 404];

/// Every route, how it is asked here, and what each identity gets. A route without a row fails, here and in review.
const MATRIX: [(&str, &str, [u16; 8]); 53] = [
    ("GET /healthz", "/healthz", OPEN),
    ("GET /readyz", "/readyz", OPEN),
    ("GET /openapi.json", "/openapi.json", OPEN),
    // Codex repeats a 403, so that its endpoint says 400 to a suspended user.
    (
        "POST /v1/responses",
        "/v1/responses",
        [401, 401, 200, 200, 401, 401, 400, 429],
    ),
    ("GET /v1/responses", "/v1/responses", [426; 8]),
    ("POST /v1/chat/completions", "/v1/chat/completions", BILLED),
    ("POST /v1/completions", "/v1/completions", BILLED),
    ("POST /v1/embeddings", "/v1/embeddings", BILLED),
    (
        "POST /v1/responses/compact",
        "/v1/responses/compact",
        [401, 401, 200, 200, 401, 401, 400, 429],
    ),
    ("POST /v1/images/generations", "/v1/images/generations", BILLED),
    ("POST /v1/images/edits", "/v1/images/edits", BILLED),
    ("POST /v1/audio/speech", "/v1/audio/speech", BILLED),
    ("POST /v1/audio/transcriptions", "/v1/audio/transcriptions", NO_FORM),
    ("POST /v1/audio/translations", "/v1/audio/translations", NO_FORM),
    ("POST /v1/moderations", "/v1/moderations", FREE),
    ("POST /v1/alpha/search", "/v1/alpha/search", UNTOLD),
    (
        "POST /v1/memories/trace_summarize",
        "/v1/memories/trace_summarize",
        UNTOLD,
    ),
    (
        "POST /v1/responses/input_tokens",
        "/v1/responses/input_tokens",
        FREE_TO_CODEX,
    ),
    (
        "GET /v1/responses/{response_id}",
        "/v1/responses/resp_1",
        NOBODYS_TO_CODEX,
    ),
    (
        "DELETE /v1/responses/{response_id}",
        "/v1/responses/resp_1",
        NOBODYS_TO_CODEX,
    ),
    (
        "POST /v1/responses/{response_id}/cancel",
        "/v1/responses/resp_1/cancel",
        NOBODYS_TO_CODEX,
    ),
    (
        "GET /v1/responses/{response_id}/input_items",
        "/v1/responses/resp_1/input_items",
        NOBODYS_TO_CODEX,
    ),
    ("POST /v1/conversations", "/v1/conversations", FREE),
    (
        "GET /v1/conversations/{conversation_id}",
        "/v1/conversations/c",
        NOBODYS,
    ),
    (
        "POST /v1/conversations/{conversation_id}",
        "/v1/conversations/c",
        NOBODYS,
    ),
    (
        "DELETE /v1/conversations/{conversation_id}",
        "/v1/conversations/c",
        NOBODYS,
    ),
    (
        "GET /v1/conversations/{conversation_id}/items",
        "/v1/conversations/c/items",
        NOBODYS,
    ),
    (
        "POST /v1/conversations/{conversation_id}/items",
        "/v1/conversations/c/items",
        NOBODYS,
    ),
    (
        "GET /v1/conversations/{conversation_id}/items/{item_id}",
        "/v1/conversations/c/items/i",
        NOBODYS,
    ),
    (
        "DELETE /v1/conversations/{conversation_id}/items/{item_id}",
        "/v1/conversations/c/items/i",
        NOBODYS,
    ),
    // A document that is no form: the upstream says so.
    ("POST /v1/files", "/v1/files", [401, 401, 400, 400, 401, 401, 403, 400]),
    ("GET /v1/files", "/v1/files", FREE),
    ("GET /v1/files/{file_id}", "/v1/files/f", NOBODYS),
    ("DELETE /v1/files/{file_id}", "/v1/files/f", NOBODYS),
    ("GET /v1/files/{file_id}/content", "/v1/files/f/content", NOBODYS),
    ("POST /v1/uploads", "/v1/uploads", FREE),
    ("POST /v1/uploads/{upload_id}/parts", "/v1/uploads/u/parts", NOBODYS),
    (
        "POST /v1/uploads/{upload_id}/complete",
        "/v1/uploads/u/complete",
        NOBODYS,
    ),
    ("POST /v1/uploads/{upload_id}/cancel", "/v1/uploads/u/cancel", NOBODYS),
    ("GET /v1/models", "/v1/models", READ),
    ("GET /v1/models/{model}", "/v1/models/gpt-5.5", READ),
    ("GET /v1/gateway/me", "/v1/gateway/me", READ),
    ("GET /v1/gateway/requests", "/v1/gateway/requests", READ),
    (
        "GET /v1/gateway/requests/{id}",
        "/v1/gateway/requests/OWN",
        [401, 401, 200, 404, 401, 401, 404, 404],
    ),
    ("GET /v1/gateway/usage", "/v1/gateway/usage?by=model", READ),
    ("GET /v1/gateway/sessions", "/v1/gateway/sessions", READ),
    (
        "GET /v1/gateway/sessions/{id}",
        "/v1/gateway/sessions/SESSION",
        [401, 401, 200, 404, 401, 401, 404, 404],
    ),
    // A code that is nobody's.
    (
        "POST /v1/gateway/redeem",
        "/v1/gateway/redeem",
        [401, 401, 404, 404, 401, 401, 404, 404],
    ),
    (
        "GET /v1/dashboard/billing/subscription",
        "/v1/dashboard/billing/subscription",
        READ,
    ),
    (
        "GET /v1/dashboard/billing/usage",
        "/v1/dashboard/billing/usage?start_date=2026-01-01",
        READ,
    ),
    (
        "GET /v1/dashboard/billing/credit_grants",
        "/v1/dashboard/billing/credit_grants",
        READ,
    ),
    (
        "GET /v1/organization/usage/completions",
        "/v1/organization/usage/completions?start_time=1700000000",
        READ,
    ),
    (
        "GET /v1/organization/costs",
        "/v1/organization/costs?start_time=1700000000",
        READ,
    ),
];

fn with_key(client: &Client, key: &str) -> Client {
    Client {
        key: key.to_owned(),
        ..client.clone()
    }
}

/// The clients of [`IDENTITIES`].
fn identities(harness: &Harness) -> [Client; 8] {
    let key = harness.client.clone();
    let revoked = harness.issue("--name gone");
    harness.operate(&format!("key revoke {}", revoked.key_id.0));
    let past = time::now() - SignedDuration::from_secs(1);
    let expired = harness.add_limited("expired", |key| key.expires_at = Some(past));
    let suspended = harness.add_client("suspended", "5");
    harness.operate("user suspend suspended");
    [
        with_key(&key, ""),
        with_key(&key, "sk-gw-nonsense"),
        key,
        harness.add_client("other", "5"),
        revoked,
        expired,
        suspended,
        harness.add_client("poor", "0"),
    ]
}

fn body(path: &str) -> Value {
    match path {
        "/v1/responses" | "/v1/responses/compact" => response("Hello", &json!({})),
        "/v1/chat/completions" => chat("Hello", &json!({})),
        "/v1/images/generations" | "/v1/images/edits" => json!({"model": "gpt-image-2", "prompt": "A cat"}),
        "/v1/audio/speech" => json!({"model": "tts-1", "input": "Hello", "voice": "alloy"}),
        "/v1/completions" => json!({"model": MODEL, "prompt": "Hello"}),
        "/v1/gateway/redeem" => json!({"code": "gwc-0000-0000-0000-0000-0000-0000-0000"}),
        _ => json!({"model": "text-embedding-3-small", "input": "Hello"}),
    }
}

async fn ask(client: &Client, method: &Method, path: &str) -> Answer {
    let mut request = client
        .http
        .request(method.clone(), format!("{}{path}", client.base_url));
    if !client.key.is_empty() {
        request = request.bearer_auth(&client.key);
    }
    static ASKED: AtomicU32 = AtomicU32::new(0);
    request = request.header("x-forwarded-for", nth_address(ASKED.fetch_add(1, Ordering::Relaxed)));
    if method == Method::POST {
        request = request
            .header("content-type", "application/json")
            .body(body(path).to_string());
    }
    Answer::of(request.send().await.expect("an answer")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_answers_every_identity_as_its_row_says() {
    let harness = Harness::builder().settings(FROM_ANYWHERE).start().await;
    let document = ask(&harness.client, &Method::GET, "/openapi.json")
        .await
        .expect(200)
        .json();
    let paths = document["paths"].as_object().expect("paths").iter();
    let documented: BTreeSet<String> = paths
        .flat_map(|(path, of)| {
            let methods = of.as_object().expect("operations").keys();
            methods.map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    let rows: BTreeSet<String> = MATRIX.iter().map(|(route, ..)| (*route).to_owned()).collect();
    assert_eq!(documented, rows, "every route has a row, and every row a route");
    let of_receipt = &document["components"]["schemas"]["Receipt"]["properties"]["endpoint"]["enum"];
    assert_eq!(*of_receipt, json!(Endpoint::ALL.map(Endpoint::path)));
    let clients = identities(&harness);
    let own = harness
        .client
        .request(Method::POST, "/v1/responses")
        .header("session-id", "ses-1");
    let own = own
        .header("content-type", "application/json")
        .body(response("Hello", &json!({})).to_string());
    let own = Answer::of(own.send().await.expect("an answer")).await.expect(200);
    let own = own.exchange().to_owned();
    for (route, path, statuses) in MATRIX {
        let method: Method = route.split(' ').next().and_then(|m| m.parse().ok()).expect("a method");
        let path = path.replace("OWN", &own).replace("SESSION", "ses-1");
        for ((client, who), status) in clients.iter().zip(IDENTITIES).zip(statuses) {
            let answer = ask(client, &method, &path).await;
            assert_eq!(answer.status, status, "{route} as {who}: {}", answer.text());
            if method == Method::GET {
                let head = ask(client, &Method::HEAD, &path).await;
                let wanted = if status == 426 { 405 } else { status };
                assert_eq!(
                    (head.status.as_u16(), head.body.len()),
                    (wanted, 0),
                    "HEAD {path} as {who}"
                );
                let short = path.strip_prefix("/v1").unwrap_or(&path);
                assert_eq!(ask(client, &method, short).await.status, status, "{short} as {who}");
            }
        }
        let wrong = ask(&harness.client, &Method::PATCH, &path).await;
        assert_eq!(wrong.status, 405, "{route}");
        assert!(!wrong.header("allow").is_empty(), "{route}");
    }
    harness.finish().await;
}

/// A JSON number as it is written: without a float between.
fn number(document: &Answer, name: &str) -> Decimal {
    let (text, name) = (document.text(), format!("\"{name}\":"));
    let from = text.find(&name).map(|at| at + name.len()).expect("the field");
    let end = text[from..].find([',', '}']).expect("an end");
    Decimal::from_str_exact(&text[from..from + end]).expect("an exact number")
}

fn decimal(value: &Value) -> Decimal {
    Decimal::from_str_exact(value.as_str().expect("a string")).expect("a decimal")
}

/// What the ledger says was charged to a key.
fn charged(harness: &Harness, client: &Client) -> Decimal {
    let file = harness.database();
    #[expect(
        clippy::disallowed_methods,
        reason = "the ledger as it stands, not as the store reads it"
    )]
    let conn = rusqlite::Connection::open(file).expect("it opens");
    let sql = "SELECT COALESCE(-SUM(e.amount_nanos), 0) FROM ledger_entries e JOIN usage_logs u USING (exchange_id)
               WHERE u.key_id = ?1";
    let nanos = conn.query_row(sql, [client.key_id.0.as_bytes()], |row| row.get(0));
    Decimal::new(nanos.expect("a sum"), 9).normalize()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_reads_what_is_left_and_the_receipt_of_its_call_after_markup_and_without_cost() {
    let harness = Harness::builder().settings("[billing]\nmarkup = 1.037").start().await;
    let client = &harness.client;
    let called = client.respond("Hello").await.expect(200);
    let receipt = client
        .get(&format!("/v1/gateway/requests/{}", called.exchange()))
        .await
        .expect(200);
    assert_eq!(receipt.header("cache-control"), "no-store");
    for hidden in ["cost", "markup", "uplift", "upstream"] {
        assert!(!receipt.text().contains(hidden), "{hidden}: {}", receipt.text());
    }
    let of = receipt.json();
    assert_eq!(of["id"], json!(called.exchange()));
    assert_eq!(of["charge"], json!(called.header("x-gateway-cost")));
    assert_eq!(of["balance_after"], json!(called.header("x-gateway-balance")));
    let lines = of["lines"].as_array().expect("lines");
    let mut sum = Decimal::ZERO;
    for line in lines {
        let amount = Decimal::from(line["quantity"].as_u64().expect("a count")) * decimal(&line["rate"]);
        assert_eq!(amount / Decimal::from(1_000_000), decimal(&line["amount"]));
        sum += decimal(&line["amount"]);
    }
    let half_up = rust_decimal::RoundingStrategy::MidpointAwayFromZero;
    assert_eq!(sum.round_dp_with_strategy(9, half_up), decimal(&of["priced"]));
    assert_eq!(decimal(&of["charge"]), charged(&harness, client));
    // The same by the id in the answer's body.
    let body = called.json();
    let by_response = format!("/v1/gateway/requests/{}", body["id"].as_str().expect("an id"));
    assert_eq!(client.get(&by_response).await.expect(200).json(), of);

    let me = client.get("/v1/gateway/me").await.expect(200).json();
    let user = harness.user();
    let usd = |usd: Usd| json!(usd.to_string());
    for (name, value) in [
        ("user", json!("alice")),
        ("status", json!("active")),
        ("balance", usd(user.balance)),
        ("credit_line", json!("0")),
        ("held", json!("0")),
        ("available", json!(called.header("x-gateway-balance"))),
    ] {
        assert_eq!(me[name], value, "{name}");
    }
    assert_eq!(me["key"]["id"], json!(client.key_id.0.to_string()));
    assert_eq!(
        me["key"]["prefix"],
        json!(client.key[..me["key"]["prefix"].as_str().expect("a prefix").len()])
    );
    let models = client.get("/v1/models").await.expect(200).json();
    let names = models["data"]
        .as_array()
        .expect("models")
        .iter()
        .map(|model| &model["id"]);
    let mut names: Vec<&Value> = names.collect();
    names.sort_by_key(|name| name.as_str());
    assert_eq!(
        me["models"].as_array().expect("models").iter().collect::<Vec<_>>(),
        names
    );
    harness.finish().await;
}

/// All that is seen of an answer but the ids that every answer has of its own.
fn seen(answer: &Answer) -> (StatusCode, String) {
    (answer.status, answer.text().replace(answer.exchange(), "ID"))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_keys_exchange_is_answered_like_one_that_does_not_exist() {
    let harness = Harness::start().await;
    let called = harness.client.respond("Hello").await.expect(200);
    let other = harness.add_client("other", "5");
    let colleague = harness.issue("--name colleague");
    let response = called.json()["id"].as_str().expect("an id").to_owned();
    for client in [&other, &colleague] {
        let receipt = async |id: &str| seen(&client.get(&format!("/v1/gateway/requests/{id}")).await);
        let nowhere = receipt("01a20e17-373e-7416-b9e4-5d1cf3900119").await;
        assert_eq!(nowhere.0, 404);
        for id in [called.exchange(), &response, "resp_none", "%FF", "'%20OR%201=1"] {
            assert_eq!(receipt(id).await, nowhere, "{id}");
        }
        let list = client.get("/v1/gateway/requests").await.expect(200).json();
        assert_eq!(list, json!({"items": [], "next_page": null}));
        let usage = client.get("/v1/gateway/usage").await.expect(200).json();
        assert_eq!((&usage["items"], &usage["total"]["charge"]), (&json!([]), &json!("0")));
        let used = client.get("/v1/dashboard/billing/usage").await.expect(200);
        assert_eq!(used.json()["total_usage"], 0);
        let ids = format!(
            "/v1/organization/costs?start_time=1700000000&limit=1&api_key_ids={}",
            harness.client.key_id.0
        );
        assert_eq!(
            client.get(&ids).await.expect(200).json()["data"][0]["results"],
            json!([])
        );
    }
    let beginning = called.exchange()[..13].to_owned();
    let started = harness.client.get(&format!("/v1/gateway/requests/{beginning}")).await;
    assert_eq!(started.status, 404, "an id is a whole id");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sum_is_what_the_ledger_says_of_this_key() {
    let harness = Harness::builder()
        .settings("[billing]\nmarkup = 1.000001")
        .credit_line("2")
        .start()
        .await;
    let client = harness.client.clone();
    let colleague = harness.issue("--name colleague");
    let start = time::now().as_second();
    for model in [MODEL, "gpt-5.5", "gpt-5.5"] {
        client
            .post("/v1/chat/completions", &chat("Hello", &json!({"model": model})))
            .await
            .expect(200);
    }
    client.post("/v1/embeddings", &body("/v1/embeddings")).await.expect(200);
    let image = json!({"model": "gpt-image-2", "prompt": "A cat"});
    client.post("/v1/images/generations", &image).await.expect(200);
    colleague.respond("Hello").await.expect(200);
    let sum = charged(&harness, &client);
    assert!(sum > Decimal::ZERO && charged(&harness, &colleague) > Decimal::ZERO);
    for (by, groups) in [("day", 1), ("model", 3)] {
        let usage = client
            .get(&format!("/v1/gateway/usage?by={by}"))
            .await
            .expect(200)
            .json();
        let items = usage["items"].as_array().expect("items");
        assert!(items.len() >= groups, "{usage}");
        assert_eq!(
            items.iter().map(|item| decimal(&item["charge"])).sum::<Decimal>(),
            sum,
            "{by}"
        );
        assert_eq!(
            (decimal(&usage["total"]["charge"]), &usage["total"]["exchanges"]),
            (sum, &json!(5))
        );
    }
    let costs = client
        .get(&format!(
            "/v1/organization/costs?start_time={start}&group_by[]=line_item&group_by[]=api_key_id"
        ))
        .await
        .expect(200);
    let values = costs.text();
    let values = values
        .split("\"value\":")
        .skip(1)
        .filter_map(|rest| rest.split(',').next());
    assert_eq!(
        values
            .map(|value| Decimal::from_str_exact(value).expect("exact"))
            .sum::<Decimal>(),
        sum
    );
    assert!(costs.text().contains(&client.key_id.0.to_string()));
    let usage = format!("/v1/organization/usage/completions?start_time={start}&bucket_width=1h");
    let usage = client.get(&usage).await.expect(200).json();
    let buckets = usage["data"].as_array().expect("buckets").iter();
    let results: Vec<&Value> = buckets
        .flat_map(|bucket| bucket["results"].as_array().expect("results"))
        .collect();
    let total = |name: &str| {
        results
            .iter()
            .map(|result| result[name].as_u64().expect("a count"))
            .sum::<u64>()
    };
    let chats = harness
        .served()
        .into_iter()
        .filter(|served| served.path == "/v1/chat/completions")
        .count();
    assert_eq!(
        total("num_model_requests"),
        chats as u64,
        "embeddings and images are no completions"
    );
    assert_eq!(
        total("input_tokens"),
        total("input_uncached_tokens") + total("input_cached_tokens") + total("input_cache_write_tokens")
    );

    let limit = client.get("/v1/dashboard/billing/subscription?x=1").await.expect(200);
    let used = client
        .get("/dashboard/billing/usage?start_date=2026-11-01&end_date=2026-11-02")
        .await
        .expect(200);
    let grants = client.get("/v1/dashboard/billing/credit_grants").await.expect(200);
    let left = Decimal::new(harness.user().available().nanos(), 9);
    assert_eq!(number(&used, "total_usage") / Decimal::ONE_HUNDRED, sum);
    assert_eq!(
        number(&limit, "hard_limit_usd") - number(&used, "total_usage") / Decimal::ONE_HUNDRED,
        left
    );
    assert_eq!(number(&grants, "total_granted") - number(&grants, "total_used"), left);
    assert_eq!(number(&grants, "total_available"), left);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_go_on_where_they_stopped_while_new_calls_come() {
    let harness = Harness::start().await;
    let client = &harness.client;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.insert(0, client.respond("Hello").await.expect(200).exchange().to_owned());
    }
    let page = async |query: &str| {
        let page = client
            .get(&format!("/v1/gateway/requests?limit=2{query}"))
            .await
            .expect(200)
            .json();
        let items = page["items"].as_array().expect("items").iter();
        let ids: Vec<String> = items
            .map(|item| item["id"].as_str().expect("an id").to_owned())
            .collect();
        (ids, page["next_page"].as_str().map(str::to_owned))
    };
    let mut read = Vec::new();
    let (mut ids, mut next) = page("").await;
    loop {
        read.append(&mut ids);
        let Some(at) = next else { break };
        client.respond("Hello").await.expect(200);
        (ids, next) = page(&format!("&page={at}")).await;
    }
    assert_eq!(read, made, "each once, and none that came later");
    let third = harness.receipt(&made[2]).started_at;
    let since = page(&format!("&since={third}&page={}", made[0])).await;
    assert_eq!(since, (made[1..3].to_vec(), None));
    for (query, param) in [
        ("limit=101", "limit"),
        ("limit=0", "limit"),
        ("page=x", "page"),
        ("since=soon", "since"),
        ("user=other", "user"),
    ] {
        let refused = client
            .get(&format!("/v1/gateway/requests?{query}"))
            .await
            .expect(400)
            .json();
        assert_eq!(
            (&refused["error"]["code"], &refused["error"]["param"]),
            (&json!("invalid_value"), &json!(param))
        );
    }
    harness.finish().await;
}
