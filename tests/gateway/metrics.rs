//! What operators watch: the numbers are those of the books and of the upstream, no label grows with what clients send, and
//! the log has one line for each exchange.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Stdio};

use codex_gateway::simulator::Gate;
use codex_gateway::store::usage_log::ExchangeRow;
use http::StatusCode;
use serde_json::{Value, json};

use crate::client::{MODEL, chat, drain, http, response};
use crate::concurrency::{gated, next, rush};
use crate::harness::{Builder, Harness};
use crate::price::nanos;
use crate::shutdown::{Office, failure_of};

/// All that there is.
const NAMES: [&str; 24] = [
    "gateway_exchanges_total",
    "gateway_exchange_duration_seconds",
    "gateway_time_to_first_byte_seconds",
    "gateway_overhead_seconds",
    "gateway_tokens_total",
    "gateway_charged_usd_total",
    "gateway_uncollected_usd_total",
    "gateway_open_holds",
    "gateway_held_usd",
    "gateway_background_responses",
    "gateway_refusals_total",
    "gateway_upstream_attempts_total",
    "gateway_upstream_breaker_state",
    "gateway_commit_duration_seconds",
    "gateway_commit_batch_size",
    "gateway_write_queue_depth",
    "gateway_connections",
    "gateway_ready",
    "gateway_build_info",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
];

const LISTEN: &str = "[metrics]\nlisten = \"127.0.0.1:0\"";

/// A page, read.
struct Page {
    text: String,
    /// By name and labels, as they are written.
    samples: BTreeMap<String, String>,
    /// The names of families, with their types.
    families: BTreeMap<String, String>,
}

impl Page {
    fn read(text: String) -> Page {
        let (mut samples, mut families) = (BTreeMap::new(), BTreeMap::new());
        for line in text.lines() {
            if let Some(family) = line.strip_prefix("# TYPE ") {
                let (name, kind) = family.split_once(' ').expect("a type");
                assert!(
                    families.insert(name.to_owned(), kind.to_owned()).is_none(),
                    "{name} is there twice"
                );
            } else if !line.starts_with('#') {
                let (series, value) = line.rsplit_once(' ').expect("a value");
                assert!(
                    samples.insert(series.to_owned(), value.to_owned()).is_none(),
                    "{series} is there twice"
                );
            }
        }
        Page {
            text,
            samples,
            families,
        }
    }

    async fn of(harness: &Harness) -> Page {
        let url = harness.metrics_url().expect("metrics are served");
        let answer = http().get(url).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(
            answer.headers()["content-type"],
            "text/plain; version=0.0.4; charset=utf-8"
        );
        Page::read(answer.text().await.expect("a page"))
    }

    /// One value; nothing counted is zero.
    fn value(&self, series: &str) -> &str {
        self.samples.get(series).map_or("0", String::as_str)
    }

    fn count(&self, series: &str) -> u64 {
        let value = self.value(series);
        let whole = value.strip_suffix(".0").unwrap_or(value);
        whole
            .parse()
            .unwrap_or_else(|error| panic!("{series} {value}: {error}"))
    }

    /// The sum of all series of a family with all these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> u64 {
        let of = |series: &&String| {
            let (family, rest) = series.split_once('{').unwrap_or((series, ""));
            family == name && labels.iter().all(|label| rest.contains(label))
        };
        self.samples.keys().filter(of).map(|series| self.count(series)).sum()
    }

    /// The values of a label.
    fn labels(&self, label: &str) -> BTreeSet<String> {
        let start = format!("{label}=\"");
        let of = |series: &String| {
            let (_, rest) = series.split_once(&start)?;
            rest.split('"').next().map(str::to_owned)
        };
        self.samples.keys().filter_map(of).collect()
    }
}

fn watched() -> Builder {
    Harness::builder().settings(LISTEN)
}

fn total(rows: &[ExchangeRow], of: impl Fn(&ExchangeRow) -> u64) -> u64 {
    rows.iter().map(of).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_numbers_are_those_of_the_books_and_of_the_upstream() {
    let harness = watched().vendor_with("free", &["sim-free"], "").start().await;
    let client = &harness.client.clone();
    let streamed = json!({"stream": true});
    for prompt in ["Hello", "sim:reasoning", "sim:words-100"] {
        client.chat(prompt).await.expect(200);
        client.respond(prompt).await.expect(200);
        for (path, body) in [
            ("/v1/chat/completions", chat(prompt, &streamed)),
            ("/v1/responses", response(prompt, &streamed)),
        ] {
            drain(client.send(path, &body).await).await.1.expect("a clean end");
        }
    }
    let embedded = json!({"model": "text-embedding-3-small", "input": "Hello"});
    client.post("/v1/embeddings", &embedded).await.expect(200);
    client
        .post("/v1/chat/completions", &chat("Hello", &json!({"model": "sim-free"})))
        .await
        .expect(200);
    client.chat("sim:400").await.expect(400);
    client.chat("sim:500").await.expect(502);
    client.chat("sim:refuse").await.expect(502);
    let broken = client.send("/v1/responses", &response("sim:break", &streamed)).await;
    drop(drain(broken).await);
    // What never takes a hold.
    client.chat("").await;
    client
        .post("/v1/chat/completions", &json!({"messages": []}))
        .await
        .expect(400);
    client
        .post("/v1/chat/completions", &chat("Hello", &json!({"model": "none"})))
        .await
        .expect(404);
    harness.add_client("poor", "0").chat("Hello").await.expect(429);
    client.get("/v1/nowhere").await.expect(404);

    let page = Page::of(&harness).await;
    let tries = u64::try_from(harness.served().len()).expect("a small number");
    let books = harness.finish().await;
    let rows = &books.exchanges;
    assert!(rows.len() >= 18, "{}", rows.len());

    let mut ends: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for row in rows {
        *ends.entry((row.endpoint.path(), row.state.name())).or_default() += 1;
    }
    for ((endpoint, state), count) in &ends {
        let labels = [&*format!("endpoint=\"{endpoint}\""), &*format!("outcome=\"{state}\"")];
        assert_eq!(page.sum("gateway_exchanges_total", &labels), *count, "{labels:?}");
    }
    let all = u64::try_from(rows.len()).expect("a small number");
    assert_eq!(page.sum("gateway_exchanges_total", &[]), all);
    assert_eq!(page.count("gateway_exchange_duration_seconds_count"), all);
    assert_eq!(page.count("gateway_overhead_seconds_count"), all);
    let answered = total(rows, |row| u64::from(row.first_byte.is_some()));
    assert_eq!(page.count("gateway_time_to_first_byte_seconds_count"), answered);

    let tokens = |classes: &[&str]| -> u64 {
        let of = |class: &&str| page.sum("gateway_tokens_total", &[&format!("class=\"{class}\"")]);
        classes.iter().map(of).sum()
    };
    let input = ["input", "cached_input", "cache_write", "cache_write_12h", "audio_input"];
    assert_eq!(tokens(&input), total(rows, |row| row.usage.input_tokens.get()));
    assert_eq!(
        tokens(&["cached_input"]),
        total(rows, |row| row.usage.cached_tokens.get())
    );
    let output = ["output", "reasoning_output", "audio_output"];
    assert_eq!(tokens(&output), total(rows, |row| row.usage.output_tokens.get()));
    let reasoning = total(rows, |row| row.usage.reasoning_tokens.get());
    assert!(reasoning > 0, "something was thought");
    assert_eq!(tokens(&["reasoning_output"]), reasoning);

    assert!(books.charged() > 0);
    assert_eq!(
        nanos(page.value("gateway_charged_usd_total")),
        books.charged(),
        "to the nano-dollar"
    );
    let uncollected: i128 = rows.iter().map(|row| i128::from(row.uncollected.nanos())).sum();
    assert_eq!(nanos(page.value("gateway_uncollected_usd_total")), uncollected);
    assert_eq!(
        (page.count("gateway_open_holds"), nanos(page.value("gateway_held_usd"))),
        (0, 0)
    );

    let attempts = |outcome: &str| page.sum("gateway_upstream_attempts_total", &[&format!("outcome=\"{outcome}\"")]);
    assert_eq!(page.sum("gateway_upstream_attempts_total", &[]), tries);
    assert_eq!((attempts("refused"), attempts("failed"), attempts("broken")), (1, 1, 1));
    assert_eq!(attempts("answered"), tries - 3);
    let refusals = |code: &str| page.count(&format!("gateway_refusals_total{{code=\"{code}\"}}"));
    assert_eq!(refusals("missing_required_parameter"), 1);
    assert_eq!(
        (
            refusals("model_not_found"),
            refusals("insufficient_quota"),
            refusals("not_found")
        ),
        (1, 1, 1)
    );
    assert_eq!((refusals("upstream_error"), refusals("internal_error")), (2, 0));
    assert_eq!(page.labels("upstream"), ["first", "free"].map(str::to_owned).into());
    // A hold and a settlement each, and whatever else was written.
    assert!(page.count("gateway_commit_batch_size_sum") >= 2 * all, "{}", page.text);
    assert_eq!(
        page.value("gateway_commit_batch_size_count"),
        page.value("gateway_commit_duration_seconds_count")
    );
    assert_eq!(
        (page.count("gateway_write_queue_depth"), page.count("gateway_ready")),
        (0, 1)
    );
    assert!(!page.text.contains(&client.key[..12]) && !page.text.contains("alice"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_is_seen_while_it_runs() {
    let gate = Gate::closed();
    let harness = watched().playwright(gated(&gate)).start().await;
    let body = chat("Hello", &json!({"max_completion_tokens": 100}));
    let mut calls = rush(std::slice::from_ref(&harness.client), 1, "/v1/chat/completions", &body);
    harness.simulator.arrived(1).await;
    let page = Page::of(&harness).await;
    assert_eq!(
        (page.count("gateway_open_holds"), page.count("gateway_connections")),
        (1, 1)
    );
    assert_eq!(
        nanos(page.value("gateway_held_usd")),
        i128::from(harness.user().held.nanos())
    );
    assert!(harness.user().held.nanos() > 0);
    assert_eq!(page.sum("gateway_exchanges_total", &[]), 0, "it has not ended");
    gate.open();
    next(&mut calls, 1).await.remove(0).expect(200);
    let page = Page::of(&harness).await;
    assert_eq!(
        (
            page.count("gateway_open_holds"),
            page.sum("gateway_exchanges_total", &[])
        ),
        (0, 1)
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_label_grows_with_what_clients_send() {
    let harness = watched().vendor("free", &["local", "any-*"]).start().await;
    let call = |model: String| {
        let client = harness.client.clone();
        async move {
            client
                .post("/v1/chat/completions", &chat("Hello", &json!({"model": model})))
                .await
        }
    };
    for batch in 0..20 {
        let served = (0..50).map(|n| call(format!("any-{batch}-{n}")));
        for answer in futures_util::future::join_all(served).await {
            answer.expect(200);
        }
    }
    for n in 0..100 {
        call(format!("none-{n}")).await.expect(404);
    }
    for named in ["local", MODEL] {
        call(named.to_owned()).await.expect(200);
    }
    let page = Page::of(&harness).await;
    assert_eq!(
        page.labels("model"),
        ["local", MODEL, "other"].map(str::to_owned).into()
    );
    assert_eq!(page.sum("gateway_exchanges_total", &["model=\"other\""]), 1_000);
    assert!(page.samples.len() < 250, "{} series", page.samples.len());
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn they_are_served_on_an_address_of_their_own_and_nothing_else_is() {
    let harness = watched().start().await;
    harness.client.get("/metrics").await.expect(404);
    let url = harness.metrics_url().expect("metrics are served");
    let (get, base) = (http(), url.strip_suffix("/metrics").expect("a path"));
    for path in ["/", "/healthz", "/v1/models", "/metrics/"] {
        let answer = get.get(format!("{base}{path}")).send().await.expect("an answer");
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
    let posted = get.post(&url).send().await.expect("an answer");
    assert_eq!(posted.status(), StatusCode::METHOD_NOT_ALLOWED);
    let accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
    let answer = get.get(&url).header("accept", accept).send().await.expect("an answer");
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!(answer.headers()["content-type"], media);
    let text = answer.text().await.expect("a page");
    assert!(
        text.ends_with("# EOF\n") && text.contains("# TYPE gateway_exchanges counter\n"),
        "{text}"
    );
    harness.finish().await;
    assert!(get.get(&url).send().await.is_err(), "it ends with the server");

    let harness = Harness::start().await;
    assert_eq!(harness.metrics_url(), None, "not unless somebody asks for it");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_taken_is_named_at_start() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = taken.local_addr().expect("an address");
    let office = Office::new(&format!("[metrics]\nlisten = \"{addr}\"")).await;
    let (code, said) = failure_of(&office);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains(&format!("cannot listen on {addr} for the metrics")),
        "{said}"
    );
    assert!(said.contains("[metrics] listen"), "{said}");
}

/// The metrics that a text names.
fn named_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let of = |word: &&str| word.starts_with("gateway_") || word.starts_with("process_");
    words.filter(of).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn dashboard_alerts_and_docs_name_what_there_is() {
    let harness = watched().start().await;
    harness.client.chat("Hello").await.expect(200);
    let page = Page::of(&harness).await;
    harness.finish().await;
    let families: BTreeSet<&str> = page.families.keys().map(String::as_str).collect();
    assert_eq!(families, NAMES.into_iter().collect(), "each family once, and no other");
    let exists = |name: &String| {
        let histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix));
        let is_histogram = |name: &str| page.families.get(name).is_some_and(|kind| kind == "histogram");
        families.contains(name.as_str()) || histogram.is_some_and(is_histogram)
    };
    let dashboard = include_str!("../../contrib/grafana/codex-gateway.json");
    serde_json::from_str::<Value>(dashboard).expect("JSON");
    let rules = include_str!("../../contrib/prometheus/codex-gateway.rules.yml");
    for text in [dashboard, rules] {
        let unknown: Vec<String> = named_in(text).into_iter().filter(|name| !exists(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }
    let shown = named_in(dashboard);
    for name in NAMES {
        assert!(
            shown.iter().any(|shown| shown.starts_with(name)),
            "{name} is on no panel"
        );
    }
    let docs = include_str!("../../docs/operations.md");
    for name in NAMES {
        assert!(
            docs.contains(&format!("`{name}`")),
            "{name} is not in docs/operations.md"
        );
    }
    check_by_promtool(&["check", "metrics"], &page.text);
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/contrib/prometheus/codex-gateway.rules.yml"
    );
    check_by_promtool(&["check", "rules", folder], "");
}

/// Asks Prometheus' own tool, where it is installed (`PROMTOOL` names it).
fn check_by_promtool(arguments: &[&str], input: &str) {
    let program = std::env::var_os("PROMTOOL").unwrap_or_else(|| "promtool".into());
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return println!("promtool absent: {error}"),
    };
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let ran = child.wait_with_output().expect("it ends");
    let said = [ran.stdout, ran.stderr].concat();
    assert!(
        ran.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&said)
    );
    println!("promtool checked {arguments:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_has_one_line_for_each_exchange_and_each_refusal() {
    let office = Office::new("[log]\nformat = \"json\"").await;
    office.gate.open();
    let serving = office.serve();
    let client = office.client(&serving);
    let plain = client.chat("Hello").await.expect(200);
    let failed = client.chat("sim:500").await.expect(502);
    let refused = client
        .post("/v1/chat/completions", &json!({"messages": []}))
        .await
        .expect(400);
    let said = serving.said();
    let lines: Vec<Value> = said
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let about = |id: &str| -> Vec<&Value> {
        let of = |line: &&Value| line["fields"]["exchange"] == id && line["level"] == "INFO";
        let found: Vec<&Value> = lines.iter().filter(of).collect();
        assert_eq!(found.len(), 1, "{said}");
        found.iter().map(|line| &line["fields"]).collect()
    };
    let line = about(plain.exchange())[0];
    let usage = &plain.json()["usage"];
    for (field, value) in [
        ("message", json!("settled")),
        ("user", json!("alice")),
        ("endpoint", json!("/chat/completions")),
        ("model", json!(MODEL)),
        ("upstream", json!("first")),
        ("state", json!("completed")),
        ("status", json!(200)),
        ("attempts", json!(1)),
        ("input_tokens", usage["prompt_tokens"].clone()),
        ("output_tokens", usage["completion_tokens"].clone()),
        ("charged", json!(plain.header("x-gateway-cost"))),
    ] {
        assert_eq!(line[field], value, "{field}: {line}");
    }
    let prefix = line["key"].as_str().expect("a prefix");
    assert!(client.key.starts_with(prefix.trim_end_matches('…')), "{prefix}");
    assert!(!said.contains(&client.key), "never the key");
    assert!(line["duration_ms"].is_u64() && line["first_byte_ms"].is_u64(), "{line}");
    let line = about(failed.exchange())[0];
    assert_eq!(
        (&line["message"], &line["state"]),
        (&json!("settled"), &json!("refused"))
    );
    assert_eq!(
        (&line["code"], &line["status"]),
        (&json!("upstream_error"), &json!(500))
    );
    let line = about(refused.exchange())[0];
    assert_eq!(
        (&line["message"], &line["code"]),
        (&json!("refused"), &json!("missing_required_parameter"))
    );
    serving.stop().await;
}
