//! Forms go on while they come: nothing before their hold, their end only when they are read, and at the price of any other.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use codex_gateway::config::OnHangup;
use codex_gateway::simulator::{Request, Script};
use codex_gateway::store::usage_log::{Basis, State};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::client::Client;
use crate::hangups::hang_up;
use crate::harness::{Builder, Harness};
use crate::price::nanos;

const HEARD: &str = "/v1/audio/transcriptions";
const EDITED: &str = "/v1/images/edits";

/// Longer than anything takes that is not broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an upstream has heard on a connection.
#[derive(Clone, Debug, Default)]
struct Heard {
    bytes: Vec<u8>,
    is_closed: bool,
}

impl Heard {
    /// The body, as far as it is here, and its length.
    fn body(&self) -> Option<(&[u8], usize)> {
        let end = memchr::memmem::find(&self.bytes, b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&self.bytes[..end]).to_lowercase();
        let length = head.split("content-length: ").nth(1)?.split("\r\n").next()?;
        Some((&self.bytes[end + 4..], length.parse().ok()?))
    }

    fn is_whole(&self) -> bool {
        self.body().is_some_and(|(body, length)| body.len() == length)
    }

    fn has(&self, length: usize) -> bool {
        self.body().is_some_and(|(body, _)| body.len() >= length)
    }
}

/// An upstream that can be seen hearing. It plays what is to be said to a connection of a number once it has heard so much.
struct Upstream {
    address: SocketAddr,
    heard: watch::Receiver<Vec<Heard>>,
}

type Says = Arc<dyn Fn(usize, &Heard) -> Option<String> + Send + Sync>;

impl Upstream {
    async fn that_says(says: impl Fn(usize, &Heard) -> Option<String> + Send + Sync + 'static) -> Upstream {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (note, heard) = watch::channel(Vec::new());
        let (tasks, note, says): (_, _, Says) = (TaskTracker::new(), Arc::new(note), Arc::new(says));
        tasks.clone().spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tasks.spawn(hear(socket, Arc::clone(&note), Arc::clone(&says)));
            }
        });
        Upstream { address, heard }
    }

    /// One that answers what is whole.
    async fn start() -> Upstream {
        Upstream::that_says(|_, heard| heard.is_whole().then(|| answer(200, &told()))).await
    }

    /// A gateway before it.
    fn builder(&self) -> Builder {
        let url = format!("http://{}/v1", self.address);
        Harness::builder().tweak(move |config| config.upstreams[0].base_url = url)
    }

    /// What it has heard, once that is so.
    async fn until(&self, condition: impl Fn(&[Heard]) -> bool) -> Vec<Heard> {
        let mut heard = self.heard.clone();
        let waiting = timeout(PATIENCE, heard.wait_for(|heard| condition(heard))).await;
        let heard = waiting.expect("the upstream hears it").expect("the upstream runs");
        heard.clone()
    }
}

async fn hear(mut socket: TcpStream, note: Arc<watch::Sender<Vec<Heard>>>, says: Says) {
    let number = note.borrow().len();
    note.send_modify(|heard| heard.push(Heard::default()));
    let (mut buffer, mut is_said) = (vec![0; 65_536], false);
    loop {
        let read = socket.read(&mut buffer).await.unwrap_or(0);
        note.send_modify(|heard| {
            heard[number].bytes.extend_from_slice(&buffer[..read]);
            heard[number].is_closed |= read == 0;
        });
        if read == 0 {
            return;
        }
        let said = says(number, &note.borrow()[number]).filter(|_| !is_said);
        if let Some(said) = said {
            is_said = true;
            socket.write_all(said.as_bytes()).await.unwrap_or(());
        }
    }
}

fn answer(status: u16, body: &Value) -> String {
    let body = body.to_string();
    format!(
        "HTTP/1.1 {status} It\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 0\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    )
}

/// What three seconds of sound say, at $0.0001 a second.
fn told() -> Value {
    json!({"text": "Hi", "usage": {"type": "duration", "seconds": 3}})
}

/// A form of fields, a file, and fields behind it.
fn form(before: &[(&str, &str)], file: (&str, &[u8]), behind: &[(&str, &str)]) -> Vec<u8> {
    let field = |(name, value): &(&str, &str)| {
        format!("--mark\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n").into_bytes()
    };
    let (name, content) = file;
    let head = format!("--mark\r\ncontent-disposition: form-data; name=\"{name}\"; filename=\"a\"\r\n\r\n");
    let mut form: Vec<u8> = before.iter().flat_map(field).collect();
    form.extend([head.as_bytes(), content, b"\r\n"].concat());
    form.extend(behind.iter().flat_map(field));
    form.extend(b"--mark--\r\n");
    form
}

/// Sound of no format that is read: bounded by its bytes.
fn sound(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| b'a' + u8::try_from(at % 23).expect("small"))
        .collect()
}

/// A client that sends by hand.
struct Sending {
    socket: TcpStream,
    form: Vec<u8>,
    sent: usize,
}

impl Sending {
    async fn begin(client: &Client, path: &str, more: &str, form: Vec<u8>) -> Sending {
        let address = client.base_url.trim_start_matches("http://");
        let mut socket = TcpStream::connect(address).await.expect("a connection");
        let (key, length) = (&client.key, form.len());
        let length = match more.contains("chunked") {
            true => String::new(),
            false => format!("content-length: {length}\r\n"),
        };
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {key}\r\n\
             content-type: multipart/form-data; boundary=mark\r\n{length}{more}\r\n"
        );
        socket.write_all(head.as_bytes()).await.expect("the head is written");
        Sending { socket, form, sent: 0 }
    }

    /// Sends it up to there.
    async fn send(&mut self, until: usize) {
        let piece = &self.form[self.sent..until];
        self.socket.write_all(piece).await.expect("a piece is written");
        self.sent = until;
    }

    /// The answer: its status, the value of a header, its body.
    async fn answer(&mut self) -> (u16, String, Value) {
        let reading = async {
            let mut read = Vec::new();
            loop {
                let text = String::from_utf8_lossy(&read).into_owned();
                if let Some((head, body)) = text.split_once("\r\n\r\n")
                    && let Ok(body) = serde_json::from_str(body)
                {
                    let status = head[9..12].parse().expect("a status");
                    let id = head
                        .split("x-request-id: ")
                        .nth(1)
                        .and_then(|rest| rest.split("\r\n").next());
                    return (status, id.expect("an id").to_owned(), body);
                }
                let count = self.socket.read_buf(&mut read).await.expect("the gateway answers");
                assert!(count > 0, "it ends with {text}");
            }
        };
        timeout(PATIENCE, reading).await.expect("the gateway answers")
    }

    async fn rest(&mut self) -> (u16, String, Value) {
        self.send(self.form.len()).await;
        self.answer().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_goes_on_while_its_client_sends_it_and_costs_what_it_costs_whole() {
    let upstream = Upstream::start().await;
    let aliases = r#"aliases = { heard = "whisper-1" }"#;
    let harness = upstream.builder().upstream(aliases).start().await;
    let content = sound(200_000);
    let of = |model: &str| {
        form(
            &[("model", model), ("response_format", "json")],
            ("file", &content),
            &[],
        )
    };
    let mut sending = Sending::begin(&harness.client, HEARD, "", of("heard")).await;
    sending.send(90_000).await;
    let heard = upstream
        .until(|heard| heard.first().is_some_and(|heard| heard.has(89_000)))
        .await;
    let (body, length) = heard[0].body().expect("a head");
    let whole = of("whisper-1");
    assert_eq!((body, length), (&whole[..body.len()], whole.len()), "edited as it goes");
    let (holds, held) = harness.store.held_in_all().expect("holds");
    assert_eq!(
        (holds, held.to_string().as_str()),
        (1, "0.0401"),
        "begun seconds of all that is to come"
    );
    // All but the last byte: the mark that ends the form is not passed on.
    sending.send(sending.form.len() - 1).await;
    let end = whole.len() - "\r\n--mark--\r\n".len();
    let heard = upstream.until(|heard| heard[0].has(end)).await;
    assert_eq!(heard[0].body().expect("a body").0, &whole[..end]);
    let (status, id, said) = sending.rest().await;
    assert_eq!((status, said), (200, told()));
    assert_eq!(upstream.until(|_| true).await[0].body().expect("a body").0, whole);

    let request = harness.client.request(http::Method::POST, HEARD);
    let request = request.header("content-type", "multipart/form-data; boundary=mark");
    let at_once = request.header("idempotency-key", "one").body(of("heard")).send().await;
    let at_once = crate::client::Answer::of(at_once.expect("an answer")).await.expect(200);
    let [streamed, kept] = [id.as_str(), at_once.exchange()].map(|id| harness.receipt(id));
    assert_eq!((streamed.state, streamed.basis), (State::Completed, Basis::Reported));
    assert_eq!(i128::from(streamed.charge.nanos()), nanos("0.0003"));
    assert_eq!((streamed.charge, &streamed.lines), (kept.charge, &kept.lines));
    assert_eq!(harness.finish().await.exchanges.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_turns_out_to_be_none_is_broken_off_before_its_end() {
    let upstream = Upstream::start().await;
    let harness = upstream.builder().start().await;
    let forms = [
        (
            form(
                &[("model", "whisper-1")],
                ("file", &sound(50_000)),
                &[("model", "whisper-2")],
            ),
            "duplicate_parameter",
        ),
        (
            [
                form(&[("model", "whisper-1")], ("file", &sound(50_000)), &[]),
                b"more".to_vec(),
            ]
            .concat(),
            "invalid_value",
        ),
        (
            form(
                &[("model", "whisper-1")],
                ("file", &sound(50_000)),
                &[("stream", "perhaps")],
            ),
            "invalid_type",
        ),
    ];
    for (number, (form, code)) in forms.into_iter().enumerate() {
        let mut sending = Sending::begin(&harness.client, HEARD, "", form).await;
        sending.send(40_000).await;
        upstream
            .until(|heard| heard.get(number).is_some_and(|heard| heard.has(39_000)))
            .await;
        let (status, id, said) = sending.rest().await;
        assert_eq!((status, &said["error"]["code"]), (400, &json!(code)), "{said}");
        let heard = upstream.until(|heard| heard[number].is_closed).await;
        assert!(!heard[number].is_whole());
        let row = harness.receipt(&id);
        assert_eq!((row.state, row.charge.nanos()), (State::Cancelled, 0));
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_comes_to_more_than_its_hold_goes_on_as_another_exchange() {
    let upstream = Upstream::that_says(|_, heard| {
        let usage = json!({"input_tokens": 100, "output_tokens": 200, "total_tokens": 300});
        let body = json!({"created": 0, "data": [{"b64_json": "aGVsbG8="}], "usage": usage});
        heard.is_whole().then(|| answer(200, &body))
    })
    .await;
    let harness = upstream.builder().balance("100").start().await;
    let fields = [
        ("model", "gpt-image-1"),
        ("prompt", "A cat"),
        ("quality", "low"),
        ("size", "1024x1024"),
    ];
    let of = |late: &str| form(&fields, ("image", &sound(50_000)), &[("n", late)]);
    // A late field that fits the hold goes on with it.
    let mut sending = Sending::begin(&harness.client, EDITED, "", of("1")).await;
    sending.send(40_000).await;
    upstream
        .until(|heard| heard.first().is_some_and(|heard| heard.has(39_000)))
        .await;
    let (status, first, _) = sending.rest().await;
    assert_eq!((status, upstream.heard.borrow().len()), (200, 1));
    assert_eq!(harness.receipt(&first).state, State::Completed);
    let mut sending = Sending::begin(&harness.client, EDITED, "", of("10")).await;
    sending.send(40_000).await;
    let begun = |heard: &[Heard]| heard.iter().filter(|heard| heard.has(39_000)).count() == 2;
    upstream.until(begun).await;
    let (status, second, _) = sending.rest().await;
    assert_eq!(status, 200);
    let heard = upstream
        .until(|heard| heard.iter().any(|heard| heard.is_closed && !heard.is_whole()))
        .await;
    let whole = heard.iter().rfind(|heard| heard.is_whole()).expect("it was sent whole");
    assert_eq!(whole.body().expect("a body").0, of("10"));
    let books = harness.finish().await;
    let states: Vec<_> = books
        .exchanges
        .iter()
        .map(|row| (row.state, row.charge.nanos() > 0))
        .collect();
    assert_eq!(
        states,
        [
            (State::Completed, true),
            (State::Cancelled, false),
            (State::Completed, true)
        ]
    );
    let row = books.exchange(&second);
    assert!(row.state == State::Completed && row.held > books.exchanges[1].held);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_early_refusal_reaches_a_client_that_still_sends() {
    let upstream = Upstream::that_says(|_, heard| {
        let error = json!({"error": {"message": "no sound", "type": "invalid_request_error", "code": "no_sound", "param": null}});
        heard.has(10_000).then(|| answer(400, &error))
    })
    .await;
    let harness = upstream.builder().start().await;
    let form = form(&[("model", "whisper-1")], ("file", &sound(4_000_000)), &[]);
    let mut sending = Sending::begin(&harness.client, HEARD, "", form).await;
    sending.send(60_000).await;
    let (status, id, said) = sending.answer().await;
    assert_eq!((status, &said["error"]["code"]), (400, &json!("no_sound")));
    let row = harness.receipt(&id);
    assert_eq!((row.state, row.charge.nanos()), (State::Refused, 0));
    // It may go on sending, and its connection serves it.
    sending.send(sending.form.len()).await;
    let key = &harness.client.key;
    let next = format!("GET /v1/models HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n\r\n");
    (sending.form, sending.sent) = (next.into_bytes(), 0);
    assert_eq!(sending.rest().await.0, 200);
    drop(sending);
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_is_not_taken_is_sent_again_from_its_beginning() {
    let upstream = Upstream::that_says(|number, heard| match number {
        0 => heard.has(10_000).then(|| answer(503, &json!({}))),
        _ => heard.is_whole().then(|| answer(200, &told())),
    })
    .await;
    let harness = upstream.builder().start().await;
    let form = form(&[("model", "whisper-1")], ("file", &sound(100_000)), &[]);
    let mut sending = Sending::begin(&harness.client, HEARD, "", form.clone()).await;
    sending.send(60_000).await;
    upstream
        .until(|heard| heard.get(1).is_some_and(|heard| heard.has(59_000)))
        .await;
    let (status, id, _) = sending.rest().await;
    assert_eq!(status, 200);
    assert_eq!(upstream.heard.borrow()[1].body().expect("a body").0, form);
    let row = harness.receipt(&id);
    assert_eq!((row.attempts, i128::from(row.charge.nanos())), (2, nanos("0.0003")));
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_or_stops_sending_pays_nothing_and_nothing_stays_open() {
    let upstream = Upstream::start().await;
    let builder = upstream.builder();
    let harness = builder.settings("[server]\nbody_timeout = \"1s\"").start().await;
    let cancels = harness.add_client_who("carol", "5", OnHangup::Cancel);
    let form = form(&[("model", "whisper-1")], ("file", &sound(100_000)), &[]);
    for (number, client) in [&harness.client, &cancels].into_iter().enumerate() {
        let mut sending = Sending::begin(client, HEARD, "", form.clone()).await;
        sending.send(60_000).await;
        upstream
            .until(|heard| heard.get(number).is_some_and(|heard| heard.has(59_000)))
            .await;
        hang_up(sending.socket).await;
        let heard = upstream.until(|heard| heard[number].is_closed).await;
        assert!(!heard[number].is_whole());
    }
    let mut slow = Sending::begin(&harness.client, HEARD, "", form.clone()).await;
    slow.send(60_000).await;
    let (status, id, said) = slow.answer().await;
    assert_eq!((status, &said["error"]["code"]), (400, &json!("incomplete_body")));
    upstream.until(|heard| heard.len() == 3 && heard[2].is_closed).await;
    assert_eq!(harness.receipt(&id).state, State::Left);
    harness.server_is_idle().await;
    assert_eq!(harness.store.held_in_all().expect("holds").0, 0);
    let books = harness.finish().await;
    let rows: Vec<_> = books
        .exchanges
        .iter()
        .map(|row| (row.state, row.charge.nanos()))
        .collect();
    assert_eq!(rows, [(State::Left, 0); 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_go_on_before_it_is_here_is_kept_whole() {
    let upstream = Upstream::start().await;
    // A quarter of it is less than so many bytes may be held for.
    let harness = upstream.builder().balance("0.06").start().await;
    let rich = harness.add_client("rich", "5");
    let (file, model) = (sound(100_000), [("model", "whisper-1")]);
    let first = form(&model, ("file", &file), &[]);
    let chunked = [format!("{:x}\r\n", first.len()).as_bytes(), &first, b"\r\n0\r\n\r\n"].concat();
    for (number, (client, more, form)) in [
        (&rich, "", form(&[], ("file", &file), &model)),
        (&rich, "transfer-encoding: chunked\r\n", chunked),
        (&rich, "idempotency-key: one\r\n", first.clone()),
        (&harness.client, "", first),
    ]
    .into_iter()
    .enumerate()
    {
        let mut sending = Sending::begin(client, HEARD, more, form).await;
        sending.send(90_000).await;
        // What comes behind it is answered, so the gateway has read this.
        client.get("/v1/models").await.expect(200);
        assert_eq!(upstream.heard.borrow().len(), number, "{more}");
        let (status, id, _) = sending.rest().await;
        assert_eq!(status, 200, "{more}");
        let row = harness.receipt(&id);
        assert_eq!(row.held.to_string(), "0.02", "{more}: it is held for by what it is");
        assert_eq!(i128::from(row.charge.nanos()), nanos("0.0003"));
    }
    harness.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recording_with_a_head_is_held_for_by_it_before_it_is_here() {
    let told = |_: &Request| Script::json(StatusCode::OK, &told());
    let harness = Harness::builder().playwright(Arc::new(told)).start().await;
    let mut wave = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0\x01\0\x01\0".to_vec();
    wave.extend(16_000_u32.to_le_bytes());
    wave.extend(32_000_u32.to_le_bytes());
    wave.extend(b"\x02\0\x10\0data\xff\xff\xff\xff");
    wave.extend(vec![0; 320_000]);
    let form = form(&[("model", "whisper-1")], ("file", &wave), &[]);
    let mut sending = Sending::begin(&harness.client, HEARD, "", form).await;
    sending.send(100_000).await;
    let held = timeout(PATIENCE, async {
        loop {
            match harness.store.held_in_all().expect("holds") {
                (0, _) => tokio::task::yield_now().await,
                (_, held) => return held,
            }
        }
    });
    assert_eq!(held.await.expect("a hold").to_string(), "0.0011", "eleven seconds");
    assert_eq!(sending.rest().await.0, 200);
    harness.finish().await;
}
