//! Requests as nobody's library would write them: each is one request or none, and what is refused costs nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_gateway::config::Config;
use codex_gateway::simulator::{Request, Script};
use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::client::chat;
use crate::harness::Harness;

/// Long enough for any answer of this machine, however busy it is.
const PATIENCE: Duration = Duration::from_secs(60);

/// A call in plain words: a line ends by CRLF, `␊` is a lone line feed and `␀` a zero byte; HOST, KEY, LENGTH and BODY
/// are put in. BODY is a call that would be served.
const CALL: &str = "POST /v1/chat/completions HTTP/1.1
Host: HOST
Authorization: Bearer KEY
Content-Type: application/json
Content-Length: LENGTH

BODY";

/// The bytes of a request, and a body that would be served.
fn bytes(harness: &Harness, text: &str) -> Vec<u8> {
    let body = chat("Hello", &json!({"max_tokens": 20})).to_string();
    let host = harness.base_url().trim_start_matches("http://").to_owned();
    let chunk = format!("{:x}\n{body}\n0\n\n", body.len());
    let text = text.replace("CHUNKED", &chunk).replace('\n', "\r\n");
    let text = text
        .replace('␊', "\n")
        .replace('␀', "\0")
        .replace("LENGTH", &body.len().to_string());
    text.replace("HOST", &host)
        .replace("KEY", &harness.client.key)
        .replace("BODY", &body)
        .into_bytes()
}

async fn connect(harness: &Harness) -> TcpStream {
    let address = harness.base_url().trim_start_matches("http://").to_owned();
    TcpStream::connect(address).await.expect("a connection")
}

/// All that comes until the gateway closes the connection.
async fn rest(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, socket.read_to_end(&mut answer)).await;
    // A reset is a close, too: what the gateway did not read of the request is lost.
    drop(read.expect("the connection is closed"));
    String::from_utf8_lossy(&answer).into_owned()
}

/// What a connection of its own gets for these bytes until it is closed.
async fn answer(harness: &Harness, bytes: &[u8]) -> String {
    let mut socket = connect(harness).await;
    // It may be refused before it is written.
    socket.write_all(bytes).await.unwrap_or(());
    rest(&mut socket).await
}

/// The statuses of the answers in a row.
fn statuses(answers: &str) -> Vec<u16> {
    let heads = answers.split("HTTP/1.").skip(1);
    heads.map(|head| head[2..5].parse().expect("a status")).collect()
}

/// The call with one line of its head in place of another, or beside it.
fn with(line: &str, instead: &str) -> String {
    assert!(CALL.contains(line), "{line}");
    CALL.replacen(line, instead, 1)
}

fn beside(line: &str) -> String {
    with("\nHost: HOST", &format!("\nHost: HOST\n{line}"))
}

fn to(target: &str) -> String {
    with("/v1/chat/completions", target)
}

/// What is sent, and the status that it is refused with; 0 is a connection closed without a word.
fn refused() -> Vec<(String, u16)> {
    let length = "Content-Length: LENGTH\n\nBODY";
    let chunked = |lines: &str| with(length, &format!("{lines}\n\nCHUNKED"));
    let many = |count: usize| (0..count).map(|n| format!("\nX-{n}: {n}")).collect::<String>();
    let mut vectors = vec![
        // lengths and transfer codings
        (beside("Content-Length: 1"), 400),
        (beside("Content-Length: 0"), 400),
        (with("Content-Length: LENGTH", "Content-Length: LENGTH, LENGTH"), 400),
        (with("Content-Length: LENGTH", "Content-Length: +LENGTH"), 400),
        (with("Content-Length: LENGTH", "Content-Length: -1"), 400),
        (with("Content-Length: LENGTH", "Content-Length: 0x40"), 400),
        (with("Content-Length: LENGTH", "Content-Length: 1 0"), 400),
        (with("Content-Length: LENGTH", "Content-Length:"), 400),
        (
            with("Content-Length: LENGTH", "Content-Length: 99999999999999999999999"),
            400,
        ),
        (chunked("Transfer-Encoding: xchunked"), 400),
        (chunked("Transfer-Encoding: chunked, identity"), 400),
        (chunked("Transfer-Encoding: gzip, chunked"), 400),
        (chunked("Transfer-Encoding: chunked, chunked"), 400),
        (chunked("Transfer-Encoding: chunked\nTransfer-Encoding: chunked"), 400),
        (chunked("Transfer-Encoding: chunked\nTransfer-Encoding: identity"), 400),
        (chunked("Transfer-Encoding: identity"), 400),
        (chunked("Transfer-Encoding: \"chunked\""), 400),
        (chunked("Transfer-Encoding : chunked"), 400),
        (chunked("Transfer-Encoding:\n chunked"), 400),
        (
            chunked("Transfer-Encoding: chunked").replace("HTTP/1.1", "HTTP/1.0"),
            400,
        ),
        (
            chunked("Transfer-Encoding: chunked").replace("CHUNKED", "zz\nBODY\n0\n\n"),
            400,
        ),
        (
            chunked("Transfer-Encoding: chunked").replace("CHUNKED", "-1\nBODY\n0\n\n"),
            400,
        ),
        (
            chunked("Transfer-Encoding: chunked").replace("CHUNKED", "ffffffffffffffffff\nBODY\n0\n\n"),
            400,
        ),
        (
            chunked("Transfer-Encoding: chunked").replace("CHUNKED", "1\n{}\n0\n\n"),
            400,
        ),
        // who is asked
        (with("\nHost: HOST", ""), 400),
        (beside("Host: HOST"), 400),
        (beside("Host: evil"), 400),
        (with("Host: HOST", "Host:"), 400),
        (with("Host: HOST", "Host: me@HOST"), 400),
        (with("Host: HOST", "Host: HOST/v1"), 400),
        (with("Host: HOST", "Host: a b"), 400),
        (to("http://evil/v1/chat/completions"), 400),
        (to("http://me@HOST/v1/chat/completions"), 400),
        (to("ftp://HOST/v1/chat/completions"), 400),
        (to("https://evil").replace("POST", "CONNECT"), 400),
        // paths
        (to("/v1/x/../chat/completions"), 400),
        (to("/v1/./chat/completions"), 400),
        (to("/v1/%2e%2e/v1/chat/completions"), 400),
        (to("/v1/x/.%2E/chat/completions"), 400),
        (to("/v1/chat%2fcompletions"), 400),
        (to("/v1%2Fchat/completions"), 400),
        (to("/v1\\chat\\completions"), 400),
        (to("/v1/chat%5ccompletions"), 400),
        (to("//v1/chat/completions"), 400),
        (to("/v1//chat/completions"), 400),
        (to("/v1/chat/completions␀"), 400),
        (to("/v1/chat/completions%00"), 400),
        (to("/v1/chat/completions%0d%0aX: y"), 400),
        (to("/v1/chat/ completions"), 400),
        (to("v1/chat/completions"), 400),
        (to("*"), 400),
        (to(""), 400),
        (to(&format!("/{}", "a".repeat(200_000))), 431),
        // what looks like the path, and is not
        (to("/v1/Chat/Completions"), 404),
        (to("/v1/chat/completions/"), 403),
        (to("/v1/chat/%63ompletions"), 403),
        (to("/v1/chat/completions;x"), 403),
        (to("/V1/chat/completions"), 404),
        (to("/v1/v1/chat/completions"), 404),
        (to("/?/v1/chat/completions"), 404),
        (
            to("/nothing\nX-Original-URL: /v1/chat/completions\nX-Rewrite-URL: /v1/chat/completions")
                .replace(" HTTP/1.1", "")
                .replacen("/nothing", "/nothing HTTP/1.1", 1),
            404,
        ),
        // methods and versions
        (with("POST", "TRACE"), 400),
        (with("POST", "CONNECT"), 400),
        (with("POST", "GET"), 405),
        (with("POST", "post"), 405),
        (with("POST", "PO ST"), 400),
        (with("POST", ""), 400),
        (with("HTTP/1.1", "HTTP/1.2"), 400),
        (with("HTTP/1.1", "HTTP/2.0"), 400),
        (with("HTTP/1.1", "http/1.1"), 400),
        (with(" HTTP/1.1", ""), 400),
        ("PRI * HTTP/2.0\n\nSM\n\n".to_owned(), 0),
        // the head's lines
        (beside(" folded: x"), 400),
        (beside("X: y\n\tfolded"), 400),
        (beside("X : y"), 400),
        (beside("X y"), 400),
        (beside(": y"), 400),
        (beside("X: a␀b"), 400),
        (beside("X\u{e9}: a"), 400),
        (beside(&format!("X: {}", "x".repeat(500_000))), 431),
        (with("\nHost: HOST", &format!("\nHost: HOST{}", many(100))), 431),
        (with("\nHost: HOST", &format!("\nHost: HOST{}", many(5_000))), 431),
        // what counts once
        (beside("Authorization: Bearer KEY"), 400),
        (beside("Content-Encoding: identity\nContent-Encoding: gzip"), 400),
        (beside("Expect: 200-ok"), 400),
        (beside("Expect: 100-continue, x"), 400),
    ];
    let bare = CALL.replace("Host: HOST\n", "Host: HOST\rX: y\n");
    vectors.push((bare, 400));
    vectors
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_may_be_read_in_two_ways_is_refused_and_its_connection_closed() {
    let harness = Harness::start().await;
    let vectors = refused();
    let mut wrong = Vec::new();
    for (text, status) in &vectors {
        // What is only not found would be waited for.
        let text = if *status < 401 || *status > 405 {
            text.clone()
        } else {
            text.replacen("\nHost:", "\nConnection: close\nHost:", 1)
        };
        let answers = answer(&harness, &bytes(&harness, &text)).await;
        let expected: &[u16] = if *status == 0 { &[] } else { &[*status] };
        if statuses(&answers) != expected {
            wrong.push(format!(
                "{status} expected: {}\n  {}",
                &text[..text.len().min(200)],
                &answers[..answers.len().min(300)]
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        vectors.len(),
        wrong.join("\n")
    );
    assert!(harness.served().is_empty(), "nothing was sent upstream");
    assert!(harness.finish().await.exchanges.is_empty(), "nothing was held");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_standard_allows_is_served_once() {
    let harness = Harness::start().await;
    let chunked = with(
        "Content-Length: LENGTH\n\nBODY",
        "Transfer-Encoding: chunked\n\nCHUNKED",
    );
    let vectors = [
        CALL.to_owned(),
        to("http://HOST/v1/chat/completions"),
        to("/v1/chat/completions?api-version=1&x=/../"),
        to("/v1/chat/completions#x"),
        with("Host", "hOsT"),
        beside("Content-Length: LENGTH"),
        beside("Upgrade: h2c\nConnection: Upgrade, HTTP2-Settings\nHTTP2-Settings: AAMAAABk"),
        beside("X: \u{e9}"),
        beside("Empty:"),
        with("HTTP/1.1", "HTTP/1.0"),
        with("\nHost: HOST", "").replace("HTTP/1.1", "HTTP/1.0"),
        chunked.replace(": chunked", ": Chunked"),
        chunked,
        with("\nHost: HOST\n", "␊Host: HOST␊"),
        format!("\n\n{CALL}"),
    ];
    for text in &vectors {
        let text = text.replacen("\nContent-Type", "\nConnection: close\nContent-Type", 1);
        let answers = answer(&harness, &bytes(&harness, &text)).await;
        assert_eq!(statuses(&answers), [200], "{text}: {answers}");
    }
    assert_eq!(harness.served().len(), vectors.len());
    assert_eq!(harness.finish().await.exchanges.len(), vectors.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_length_beside_chunks_the_chunks_count_and_nothing_behind_them_is_read() {
    let harness = Harness::start().await;
    for lines in [
        "Content-Length: 4\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\nContent-Length: 4",
        "Content-Length: 4␊Transfer-Encoding: chunked",
    ] {
        let text = with("Content-Length: LENGTH\n\nBODY", &format!("{lines}\n\nCHUNKED"));
        let behind = format!("{text}{CALL}");
        let answers = answer(&harness, &bytes(&harness, &behind)).await;
        assert_eq!(statuses(&answers), [200], "{lines}: {answers}");
    }
    assert_eq!(harness.served().len(), 3);
    assert_eq!(harness.finish().await.exchanges.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_nobody_reads_is_not_the_next_request() {
    let harness = Harness::start().await;
    let hidden = "POST /v1/chat/completions HTTP/1.1\nHost: HOST\nAuthorization: Bearer KEY\nContent-Length: 2\n\n{}";
    for (first, status) in [
        (
            "POST /v1/chat/completions HTTP/1.1\nHost: HOST\nAuthorization: Bearer sk-gw-no",
            401,
        ),
        ("POST /v1/batches HTTP/1.1\nHost: HOST", 403),
        ("POST /v1//responses HTTP/1.1\nHost: HOST", 400),
        ("GET /healthz HTTP/1.1\nHost: HOST", 200),
        (
            "GET /v1/responses HTTP/1.1\nHost: HOST\nConnection: Upgrade\nUpgrade: websocket",
            426,
        ),
    ] {
        // Larger than what is read on for the sake of the connection.
        let padding = "x".repeat(2_000_000);
        let text = format!("{first}\nContent-Length: 3000000\n\n{padding}{hidden}");
        let mut socket = connect(&harness).await;
        socket.write_all(&bytes(&harness, &text)).await.unwrap_or(());
        socket.shutdown().await.unwrap_or(());
        let answers = rest(&mut socket).await;
        assert!(
            answers.is_empty() || statuses(&answers) == [status],
            "{first}: {answers}"
        );
    }
    assert!(harness.served().is_empty());
    assert!(harness.finish().await.exchanges.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_cut_off_is_no_call_and_what_is_behind_one_is_no_part_of_it() {
    let harness = Harness::start().await;
    for text in [
        with("Content-Length: LENGTH", "Content-Length: 1LENGTH"),
        with(
            "Content-Length: LENGTH\n\nBODY",
            "Transfer-Encoding: chunked\n\nffff\nBODY",
        ),
        with(
            "Content-Length: LENGTH\n\nBODY",
            "Transfer-Encoding: chunked\n\nCHUNKED",
        )
        .replace("CHUNKED", "1\n{"),
    ] {
        let mut socket = connect(&harness).await;
        socket.write_all(&bytes(&harness, &text)).await.expect("it is written");
        socket.shutdown().await.expect("it is cut off");
        let answers = rest(&mut socket).await;
        assert!(answers.is_empty() || statuses(&answers) == [400], "{text}: {answers}");
    }
    assert!(
        harness.served().is_empty(),
        "nothing of a body that is not whole is sent"
    );
    let answers = answer(&harness, &bytes(&harness, &format!("{CALL}and more\n\n"))).await;
    assert_eq!(statuses(&answers), [200, 400], "{answers}");
    assert_eq!(harness.served().len(), 1);
    assert_eq!(harness.finish().await.exchanges.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_in_a_row_are_answered_in_a_row_each_to_its_own_key() {
    let harness = Harness::start().await;
    let bob = harness.add_client("bob", "5");
    let models = "GET /v1/models/gpt-6.1-sol HTTP/1.1\nHost: HOST\nAuthorization: Bearer KEY\n\n";
    let last = "GET /v1/nothing HTTP/1.1\nHost: HOST\nConnection: close\n\n";
    let bobs = CALL.replace("KEY", &bob.key).replace("/v1/", "/");
    let text = format!("{CALL}{models}{bobs}{CALL}{last}");
    let answers = answer(&harness, &bytes(&harness, &text)).await;
    assert_eq!(statuses(&answers), [200, 200, 200, 200, 404], "{answers}");
    let ids: Vec<&str> = answers
        .split("x-request-id: ")
        .skip(1)
        .map(|rest| &rest[..36])
        .collect();
    let books = harness.finish().await;
    let users = [0, 2, 3].map(|at| books.exchange(ids[at]).user);
    assert_eq!(users, [users[0], bob.user, users[0]]);
    assert!(users[0] != bob.user);
    assert_eq!(books.exchanges.len(), 3);
}

/// A gateway that waits for clients no longer than this.
async fn impatient(patience: Duration) -> Harness {
    let tweak = move |config: &mut Config| {
        config.server.header_timeout = patience;
        config.server.body_timeout = patience;
    };
    Harness::builder().tweak(tweak).start().await
}

/// Writes a byte now and then until the connection is closed; what was answered, and after how long.
async fn trickle(harness: &Harness, text: &str, then: &str) -> (String, Duration) {
    let started = Instant::now();
    let mut socket = connect(harness).await;
    socket.write_all(&bytes(harness, text)).await.expect("it is written");
    let (mut reader, mut writer) = socket.split();
    let trickling = async {
        for byte in then.bytes().cycle() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if writer.write_all(&[byte]).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let mut answer = Vec::new();
    tokio::select! {
        () = trickling => unreachable!(),
        read = timeout(PATIENCE, reader.read_to_end(&mut answer)) => drop(read.expect("it is closed")),
    }
    (String::from_utf8_lossy(&answer).into_owned(), started.elapsed())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_or_a_body_that_does_not_come_to_its_end_is_not_waited_for() {
    let patience = Duration::from_millis(700);
    let harness = impatient(patience).await;
    let (head, body) = CALL.split_once("\n\nBODY").expect("a head");
    assert_eq!(body, "");
    for text in ["", "POST /v1/chat/comp", head] {
        let (answers, after) = trickle(&harness, text, "x").await;
        assert_eq!(answers, "", "{text}");
        assert!(after >= patience && after < patience * 10, "{text}: {after:?}");
    }
    let chunked = head.replace("Content-Length: LENGTH", "Transfer-Encoding: chunked");
    for (text, then) in [(format!("{head}\n\n{{"), " "), (format!("{chunked}\n\n"), "1\r\n \r\n")] {
        let (answers, after) = trickle(&harness, &text, then).await;
        assert!(
            answers.is_empty() || answers.contains("\"code\":\"incomplete_body\""),
            "{answers}"
        );
        assert!(after >= patience && after < patience * 10, "{text}: {after:?}");
    }
    assert!(harness.served().is_empty());
    assert!(harness.finish().await.exchanges.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes the minute that a client has; src/server/stall.rs shows the same with a shorter one"]
async fn a_client_that_takes_nothing_of_its_answer_is_cut_off_after_a_minute() {
    let length = 24 << 20;
    let text = "x".repeat(length);
    let playwright = Arc::new(move |_: &Request| Script::body(StatusCode::OK, "application/json", text.clone().into()));
    let harness = Harness::builder().playwright(playwright).start().await;
    let mut socket = connect(&harness).await;
    socket.write_all(&bytes(&harness, CALL)).await.expect("it is written");
    tokio::time::sleep(Duration::from_secs(65)).await;
    let arrived = rest(&mut socket).await;
    assert!(
        arrived.starts_with("HTTP/1.1 200 "),
        "{}",
        &arrived[..arrived.len().min(300)]
    );
    assert!(arrived.len() < length, "what the kernel had taken, and no more");
    assert_eq!(harness.finish().await.exchanges.len(), 1);
}
