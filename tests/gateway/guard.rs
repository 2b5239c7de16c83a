//! Whoever comes in numbers is bounded, and those who were there are not disturbed: connections in all and of one
//! address, keys that are none, handshakes that do not end; and TLS of the listener's own.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use codex_gateway::config::{Config, TlsFiles};
use codex_gateway::simulator::playwright::{Pace, standard};
use http::StatusCode;
use reqwest::{Certificate, Response};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};

use crate::client::{Client, chat, http};
use crate::harness::Harness;

/// Long enough for anything on this machine, however busy it is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where it listens.
fn address(harness: &Harness) -> SocketAddr {
    let base = harness.base_url();
    let (_, address) = base.split_once("://").expect("a URL");
    address.parse().expect("an address")
}

/// A connection from an address of this machine.
async fn connect(harness: &Harness, from: u8) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    let local = SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0));
    socket.bind(local).expect("it is of this machine");
    let connected = timeout(PATIENCE, socket.connect(address(harness))).await;
    connected.expect("in time").expect("a connection")
}

/// What a connection of its own gets for a request, until it is closed.
async fn ask(harness: &Harness, from: u8, target: &str) -> String {
    let mut socket = connect(harness, from).await;
    let request = format!("GET {target} HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap_or(());
    rest(&mut socket).await
}

async fn rest(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset is an end, too.
    let read = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    drop(read.expect("the connection is closed"));
    String::from_utf8_lossy(&answer).into_owned()
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or("closed")
}

/// A stream of which the first bytes have come.
async fn begin(client: &Client) -> (Response, Vec<u8>) {
    let body = chat("Hello", &json!({"stream": true, "max_tokens": 200}));
    let mut answer = client.send("/v1/chat/completions", &body).await;
    assert_eq!(answer.status(), StatusCode::OK);
    let first = answer.chunk().await.expect("bytes").expect("bytes");
    (answer, first.to_vec())
}

/// The stream's rest; it has to come to its end.
async fn end((mut answer, mut bytes): (Response, Vec<u8>)) {
    while let Some(chunk) = answer.chunk().await.expect("it goes on") {
        bytes.extend_from_slice(&chunk);
    }
    assert!(
        bytes.ends_with(b"data: [DONE]\n\n"),
        "{}",
        String::from_utf8_lossy(&bytes)
    );
}

/// An upstream that takes some seconds for its answer.
fn slow() -> codex_gateway::simulator::Playwright {
    standard(Pace {
        chunk_delay: Duration::from_millis(150),
        ..Pace::default()
    })
}

/// Tries until it is so; what is closed is noticed a little later.
async fn soon<F: Future<Output = bool>>(what: &str, is_so: impl Fn() -> F) {
    let trying = async {
        while !is_so().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, trying).await.expect(what);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_is_turned_away_and_who_was_there_goes_on() {
    let settings = "[server]\nmax_connections = 50\nmax_connections_per_address = 1000";
    let harness = Harness::builder().settings(settings).playwright(slow()).start().await;
    let running = begin(&harness.client).await;
    let mut idle = Vec::new();
    for _ in 0..500 {
        idle.push(connect(&harness, 1).await);
    }
    for _ in 0..5 {
        let refused = ask(&harness, 2, "/v1/models").await;
        assert_eq!(status(&refused), "503", "{refused}");
        let told = refused.to_ascii_lowercase();
        assert!(
            told.contains("retry-after: 5") && told.contains("connection: close"),
            "{refused}"
        );
        assert!(
            refused.contains("\"server_is_overloaded\"") && refused.contains("max_connections"),
            "{refused}"
        );
        assert_eq!(status(&ask(&harness, 2, "/healthz").await), "200");
        assert_eq!(status(&ask(&harness, 2, "/readyz").await), "200");
    }
    let call = harness.client.at(3);
    let refused = call
        .post("/v1/responses", &json!({"model": "gpt-6.1-sol", "input": "Hello"}))
        .await;
    assert_eq!(refused.status, 503);
    assert_eq!(
        refused.headers.get("retry-after"),
        None,
        "Codex would repeat it thirty times"
    );
    end(running).await;
    drop(idle);
    soon("there is room again", || async {
        status(&ask(&harness, 2, "/v1/models").await) == "401"
    })
    .await;
    let answer = call
        .post("/v1/chat/completions", &chat("Hello", &json!({"max_tokens": 20})))
        .await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        harness.finish().await.exchanges.len(),
        2,
        "what was refused cost nothing"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_even_the_anteroom_takes_are_closed_at_once() {
    let settings = "[server]\nmax_connections = 1\nmax_connections_per_address = 100000";
    let harness = Harness::builder().settings(settings).start().await;
    let mut first = connect(&harness, 1).await;
    // None of them asks anything: whoever is answered was turned away.
    let mut idle = Vec::new();
    for _ in 0..1_500 {
        idle.push(connect(&harness, 1).await);
    }
    let mut answers = Vec::new();
    for socket in &mut idle {
        answers.push(rest(socket).await);
    }
    answers.retain(|answer| !answer.is_empty());
    let answer = answers.pop().expect("the anteroom has an end");
    assert_eq!(status(&answer), "503");
    assert!(
        answer.contains("Retry-After: 5") && answer.contains("\"server_is_overloaded\""),
        "{answer}"
    );
    first
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: gw\r\nConnection: close\r\n\r\n")
        .await
        .expect("it is there still");
    assert_eq!(status(&rest(&mut first).await), "200");
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_has_its_share_and_others_have_theirs() {
    let settings = "[server]\nmax_connections_per_address = 10";
    let harness = Harness::builder().settings(settings).playwright(slow()).start().await;
    let running = begin(&harness.client.at(1)).await;
    let mut idle = Vec::new();
    for _ in 0..9 {
        idle.push(connect(&harness, 1).await);
    }
    let refused = ask(&harness, 1, "/v1/models").await;
    assert_eq!(status(&refused), "429", "{refused}");
    assert!(refused.to_ascii_lowercase().contains("retry-after: 5"), "{refused}");
    assert!(
        refused.contains("\"limit\":\"max_connections_per_address\""),
        "{refused}"
    );
    assert_eq!(status(&ask(&harness, 1, "/healthz").await), "200");
    assert_eq!(status(&ask(&harness, 2, "/v1/models").await), "401", "another address");
    end(running).await;
    drop(idle);
    soon("there is room again", || async {
        status(&ask(&harness, 1, "/v1/models").await) == "401"
    })
    .await;
    assert_eq!(harness.finish().await.exchanges.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_is_trusted_has_no_share() {
    let settings = "[server]\nmax_connections_per_address = 2\ntrusted_proxies = [\"127.0.0.9\"]";
    let harness = Harness::builder().settings(settings).start().await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        idle.push(connect(&harness, 9).await);
    }
    assert_eq!(status(&ask(&harness, 9, "/v1/models").await), "401");
    drop(idle);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_whose_clients_have_left_count_among_all() {
    let settings = "[server]\nmax_connections = 3";
    let harness = Harness::builder().settings(settings).playwright(slow()).start().await;
    for _ in 0..3 {
        drop(begin(&harness.client).await);
    }
    let again = harness.client.at(2);
    soon("their connections are closed", || async {
        status(&ask(&harness, 2, "/v1/models").await) == "401"
    })
    .await;
    let refused = again
        .post("/v1/chat/completions", &chat("Hello", &json!({"max_tokens": 20})))
        .await;
    assert_eq!(refused.status, 503);
    let told = String::from_utf8_lossy(&refused.body);
    assert!(told.contains("\"server_is_overloaded\""), "{told}");
    soon("they come to their ends", || async {
        let body = chat("Hello", &json!({"max_tokens": 20}));
        again.post("/v1/chat/completions", &body).await.status == 200
    })
    .await;
    assert_eq!(harness.finish().await.exchanges.len(), 4);
}

/// The status and `Retry-After` of a question with a token.
async fn with_token(client: &reqwest::Client, base: &str, token: &str, forwarded: &str) -> (u16, Option<u64>, Value) {
    let mut request = client.get(format!("{base}/v1/models")).bearer_auth(token);
    if !forwarded.is_empty() {
        request = request.header("x-forwarded-for", forwarded);
    }
    let answer = request.send().await.expect("an answer");
    let (status, after) = (answer.status().as_u16(), answer.headers().get("retry-after").cloned());
    let after = after.map(|after| {
        after
            .to_str()
            .ok()
            .and_then(|after| after.parse().ok())
            .expect("seconds")
    });
    (status, after, answer.json().await.expect("JSON"))
}

/// A key of the right form that nobody issued.
fn made_up(number: u8) -> String {
    codex_gateway::key::GatewayKey::from_entropy([number; 32])
        .reveal()
        .to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tries_key_after_key_has_to_wait_and_a_good_key_from_there_has_not() {
    let harness = Harness::start().await;
    let (base, other) = (harness.base_url(), harness.client.at(2));
    for number in 0..12 {
        // Codex makes as many of one key; others are forged, and malformed.
        let token = [made_up(number), "sk-gw-nothing".into()][usize::from(number % 2)].clone();
        let forged = format!("198.51.100.{number}");
        let (status, after, _) = with_token(&harness.client.http, &base, &token, &forged).await;
        assert_eq!((status, after), (401, None), "{number}");
    }
    let mut limited = None;
    for number in 12..60 {
        let forged = format!("198.51.100.{number}, 127.0.0.1");
        let (status, after, body) = with_token(&harness.client.http, &base, &made_up(number), &forged).await;
        if status == 429 {
            limited = Some((number, after, body));
            break;
        }
        assert_eq!(status, 401);
    }
    let (number, after, body) = limited.expect("there is an end to it, whatever the forged header says");
    assert!(number >= 29, "{number}");
    assert!(after.is_some_and(|after| (1..=3).contains(&after)), "{after:?}");
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");
    // Neither a key that is in memory nor one that is not is asked to wait.
    assert_eq!(
        with_token(&harness.client.http, &base, &harness.client.key, "").await.0,
        200
    );
    let fresh = harness.add_client("bob", "5");
    assert_eq!(with_token(&harness.client.http, &base, &fresh.key, "").await.0, 200);
    assert_eq!(
        with_token(&other.http, &base, &made_up(99), "").await.0,
        401,
        "another address"
    );
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_proxies_the_tries_are_those_of_the_last_hop_that_is_none() {
    let settings = "[server]\ntrusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]";
    let harness = Harness::builder().settings(settings).start().await;
    let (base, http) = (harness.base_url(), &harness.client.http);
    let mut statuses = Vec::new();
    for number in 0..40 {
        // What the client wrote itself stands to the left.
        let hops = format!("203.0.113.{number}, 198.51.100.1, 10.0.0.7, 10.0.0.8");
        statuses.push(with_token(http, &base, &made_up(number), &hops).await.0);
    }
    assert_eq!(statuses[..30], [401; 30]);
    assert!(statuses.contains(&429), "it is one client: {statuses:?}");
    let (status, ..) = with_token(http, &base, &made_up(99), "203.0.113.1, 198.51.100.2, 10.0.0.7").await;
    assert_eq!(status, 401, "another client of the same proxies");
    harness.finish().await;
}

/// A certificate for localhost in the files; gives it as PEM.
fn issue(files: &TlsFiles) -> String {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    std::fs::write(&files.cert, made.cert.pem()).expect("it is written");
    std::fs::write(&files.key, made.signing_key.serialize_pem()).expect("it is written");
    made.cert.pem()
}

fn files(dir: &Path) -> TlsFiles {
    TlsFiles {
        cert: dir.join("fullchain.pem"),
        key: dir.join("privkey.pem"),
    }
}

/// A gateway with a certificate, and one of its clients who trusts it.
async fn with_tls(dir: &Path, settings: &str) -> (Harness, Client) {
    let (files, pem) = (files(dir), issue(&files(dir)));
    let tweak = move |config: &mut Config| {
        config.server.tls = Some(files);
        config.server.header_timeout = Duration::from_millis(700);
    };
    let harness = Harness::builder()
        .settings(settings)
        .playwright(slow())
        .tweak(tweak)
        .start()
        .await;
    assert!(
        harness.base_url().starts_with("https://127.0.0.1:"),
        "{}",
        harness.base_url()
    );
    let client = trusting(&harness, &pem);
    (harness, client)
}

fn trusting(harness: &Harness, pem: &str) -> Client {
    let authority = Certificate::from_pem(pem.as_bytes()).expect("a certificate");
    let http = reqwest::Client::builder().tls_certs_only([authority]).no_proxy();
    Client {
        http: http.build().expect("a client"),
        base_url: harness.base_url().replace("127.0.0.1", "localhost"),
        ..harness.client.clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_come_by_tls_and_a_renewed_certificate_is_taken_in_while_they_run() {
    let dir = tempfile::tempdir().expect("a folder");
    let (harness, client) = with_tls(dir.path(), "").await;
    let body = chat("Hello", &json!({"max_tokens": 20}));
    assert_eq!(client.post("/v1/chat/completions", &body).await.status, 200);
    let running = begin(&client).await;
    let renewed = trusting(&harness, &issue(&files(dir.path())));
    soon("the new certificate is served", || async {
        let asked = renewed.http.get(format!("{}/healthz", renewed.base_url)).send().await;
        asked.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
    end(running).await;
    assert_eq!(renewed.post("/v1/chat/completions", &body).await.status, 200);
    let strangers = Client {
        http: http(),
        ..renewed
    };
    let asked = strangers
        .http
        .get(format!("{}/healthz", strangers.base_url))
        .send()
        .await;
    assert!(asked.is_err(), "nobody who does not trust it");
    assert_eq!(harness.finish().await.exchanges.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_speaks_http_1_and_nothing_else_is_waited_for() {
    let dir = tempfile::tempdir().expect("a folder");
    let (harness, _) = with_tls(dir.path(), "").await;
    let plain = ask(&harness, 1, "/healthz").await;
    assert_eq!(status(&plain), "400", "{plain}");
    assert!(
        plain.contains("\"malformed_request\"") && plain.contains("https://"),
        "{plain}"
    );
    for beginning in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"] {
        let mut socket = connect(&harness, 1).await;
        socket.write_all(beginning).await.expect("it is written");
        let answer = rest(&mut socket).await;
        assert!(!answer.contains("HTTP"), "{answer}");
    }
    let pem = std::fs::read(files(dir.path()).cert).expect("a certificate");
    let mut roots = RootCertStore::empty();
    let certificate = PemObject::from_pem_slice(&pem).expect("a certificate");
    roots.add(certificate).expect("an authority");
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    for (offered, chosen) in [(&["h2", "http/1.1"][..], Some(&b"http/1.1"[..])), (&[], None)] {
        let mut config = config.clone();
        config.alpn_protocols = offered.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from("localhost").expect("a name");
        let socket = connect(&harness, 1).await;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await;
        assert_eq!(stream.expect("a handshake").get_ref().1.alpn_protocol(), chosen);
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_are_turned_away_behind_tls_too() {
    let dir = tempfile::tempdir().expect("a folder");
    let (harness, client) = with_tls(
        dir.path(),
        "[server]\nmax_connections = 2\nmax_connections_per_address = 1000",
    )
    .await;
    let running = begin(&client).await;
    let fresh = || {
        trusting(
            &harness,
            &std::fs::read_to_string(files(dir.path()).cert).expect("a certificate"),
        )
    };
    let other = begin(&fresh()).await;
    let get = |path: &'static str| {
        let client = fresh();
        async move {
            let url = format!("{}{path}", client.base_url);
            client.http.get(url).send().await.expect("an answer").status().as_u16()
        }
    };
    assert_eq!(get("/v1/models").await, 503);
    assert_eq!(get("/readyz").await, 200);
    end(running).await;
    end(other).await;
    assert_eq!(harness.finish().await.exchanges.len(), 2);
}

/// The operator's program with settings in a folder of its own.
fn program(dir: &Path, server: &str, arguments: &[&str]) -> Command {
    let upstream = "[[upstream]]\nname = \"none\"\nbase_url = \"http://127.0.0.1:1/v1\"\nprices = \"openai\"\n";
    let disk = "[database]\npath = \"gateway.db\"\nmin_free = \"0\"\nballast = \"0\"\n";
    let settings = format!("[server]\nlisten = \"0.0.0.0:0\"\n{server}\n{disk}{upstream}");
    let file = dir.join("gateway.toml");
    std::fs::write(&file, settings).expect("it is written");
    let mut program = Command::new(env!("CARGO_BIN_EXE_gateway"));
    program
        .env_clear()
        .env("HOME", dir)
        .arg("--config")
        .arg(file)
        .args(arguments);
    program
}

/// What `serve` says first, what it says besides, and what `healthcheck` says to it.
fn serve(dir: &Path, server: &str) -> (String, String, Output) {
    let mut serving = program(dir, server, &["serve"]);
    let serving = serving.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut serving = serving.expect("it starts");
    let mut first = String::new();
    let mut stdout = BufReader::new(serving.stdout.take().expect("a pipe"));
    stdout.read_line(&mut first).expect("a line");
    let health = program(dir, server, &["healthcheck"]).output().expect("it runs");
    let pid = rustix::process::Pid::from_child(&serving);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
    let said = serving.wait_with_output().expect("it ends");
    (first, String::from_utf8_lossy(&said.stderr).into_owned(), health)
}

#[test]
fn a_certificate_is_told_about_at_the_start_and_so_is_its_want() {
    let dir = tempfile::tempdir().expect("a folder");
    let refused = |server: &str| {
        let ran = program(dir.path(), server, &["serve"]).output().expect("it runs");
        assert_eq!(ran.status.code(), Some(3), "{server}");
        String::from_utf8_lossy(&ran.stderr).into_owned()
    };
    let told = refused("tls_cert = \"fullchain.pem\"");
    assert!(
        told.contains("`tls_cert` is nothing without `tls_key`") && told.contains("set tls_key too"),
        "{told}"
    );
    let both = "tls_cert = \"fullchain.pem\"\ntls_key = \"privkey.pem\"";
    let (told, beside) = (refused(both), dir.path().join("fullchain.pem"));
    assert!(
        told.contains(&format!("tls_cert: the file {} cannot be read", beside.display())),
        "{told}"
    );
    assert!(told.contains("fix"), "{told}");
    issue(&files(dir.path()));
    let (first, said, health) = serve(dir.path(), both);
    assert!(first.starts_with("listening on https://0.0.0.0:"), "{first}");
    assert!(!said.contains("in the clear"), "{said}");
    assert!(health.status.success(), "{health:?}");
    let (first, said, health) = serve(dir.path(), "");
    assert!(first.starts_with("listening on http://0.0.0.0:"), "{first}");
    assert_eq!(said.matches("in the clear").count(), 1, "{said}");
    assert!(health.status.success(), "{health:?}");
    let (_, said, _) = serve(dir.path(), "trusted_proxies = [\"10.0.0.1\"]");
    assert!(!said.contains("in the clear"), "a proxy ends TLS: {said}");
}
