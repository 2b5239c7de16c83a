//! Many streams that say nothing, beside some that do: what each takes of memory, and what they are to newcomers.
//!
//! The clients are this process, the upstream and the gateway are two others. First 200 busy streams alone, for the
//! latency of `/readyz` and of a new call, each on a connection of its own; then the idle ones, and the same again.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::task::{LocalSet, spawn_local};
use tokio::time::{sleep, timeout};

use crate::MODEL;
use crate::load::{Ask, Client, Seen};
use crate::process::Process;
use crate::report::{Goals, Table, quantile};
use crate::targets::{Gateway, Place};

/// Streams that are being written to.
const BUSY: usize = 200;

/// Streams that are being opened at the same time.
const OPENING: usize = 64;

/// Users, a key each.
const USERS: usize = 10;

/// Between two newcomers.
const PAUSE: Duration = Duration::from_millis(20);

/// How it is run.
#[derive(Clone, Copy, Debug)]
pub struct Crowd {
    /// Streams that say nothing.
    pub idle: usize,
    /// How long newcomers are watched.
    pub window: Duration,
    /// How long an idle stream is open: all of them through the whole window.
    pub open: Duration,
}

/// Seconds that newcomers waited.
#[derive(Debug, Default)]
struct Newcomers {
    ready: Vec<f64>,
    call: Vec<f64>,
}

/// What was seen of a gateway at one time.
struct View {
    newcomers: Newcomers,
    chunks: f64,
    cpu: f64,
    /// MiB at both ends of the window.
    rss: (f64, f64),
}

/// Runs it, and judges.
pub fn run(crowd: Crowd, place: &Place, upstream: &Process, runtime: &Runtime, goals: &mut Goals) {
    println!("### {} idle streams beside {BUSY} busy ones\n", crowd.idle);
    let gateway = Gateway::new(place, "crowd", upstream.addr);
    let keys: Rc<[String]> = (0..USERS)
        .map(|user| gateway.user_with_key(&format!("user{user}")))
        .collect();
    let serving = gateway.serve(None);
    let (mut alone, opened, mut together) = runtime.block_on(LocalSet::new().run_until(both(crowd, &serving, &keys)));
    serving.stop();
    let mut table = Table::new(&[
        "idle streams",
        "/readyz p50 ms",
        "p99 ms",
        "new call p50 ms",
        "p99 ms",
        "chunks/s",
        "CPU",
        "RSS MiB",
        "after the window",
    ]);
    for (idle, view) in [(0, &mut alone), (crowd.idle, &mut together)] {
        let ms = |values: &mut Vec<f64>, part| format!("{:.2}", quantile(values, part) * 1e3);
        table.row(&[
            idle.to_string(),
            ms(&mut view.newcomers.ready, 0.5),
            ms(&mut view.newcomers.ready, 0.99),
            ms(&mut view.newcomers.call, 0.5),
            ms(&mut view.newcomers.call, 0.99),
            format!("{:.0}", view.chunks),
            format!("{:.2}", view.cpu),
            format!("{:.1}", view.rss.0),
            format!("{:.1}", view.rss.1),
        ]);
    }
    table.print();
    println!("All idle streams were open after {opened:.1} s, and came to their ends.\n");
    let each = (together.rss.0 - alone.rss.1) * 1024.0 / crowd.idle as f64;
    goals.at_most("RSS per idle stream", each, 64.0, Some(32.0), "KiB");
    let grown = together.rss.1 / together.rss.0;
    goals.at_most("RSS after the window, of before", grown, 1.05, None, "×");
    let mut slower = |what: &str, of: fn(&mut Newcomers) -> &mut Vec<f64>| {
        let p99 = |view: &mut View| quantile(of(&mut view.newcomers), 0.99);
        let ratio = p99(&mut together) / p99(&mut alone);
        goals.at_most(
            &format!("p99 of {what} beside idle streams"),
            ratio,
            2.0,
            Some(1.2),
            "×",
        );
    };
    slower("/readyz", |newcomers| &mut newcomers.ready);
    slower("a new call", |newcomers| &mut newcomers.call);
    let verified = gateway.command(&["ledger", "verify"]);
    println!("The books after it: {}\n", verified.trim().replace('\n', "; "));
}

/// Busy streams alone and then with the idle ones; how many seconds these took to open.
async fn both(crowd: Crowd, gateway: &Process, keys: &Rc<[String]>) -> (View, f64, View) {
    let over = Rc::new(Cell::new(false));
    let (seen, open) = (Rc::new(RefCell::new(Seen::default())), Rc::new(Cell::new(true)));
    let busy = Ask::Stream {
        chunks: 100,
        pause: Duration::from_millis(10),
    };
    let busy: Vec<_> = (0..BUSY)
        .map(|number| {
            let (to, key) = (gateway.addr, keys[number % keys.len()].clone());
            let (over, seen, open) = (Rc::clone(&over), Rc::clone(&seen), Rc::clone(&open));
            spawn_local(async move {
                let mut client = Client::connect(to, &key, busy).await;
                while !over.get() {
                    client.call(&seen, &open).await;
                }
            })
        })
        .collect();
    sleep(Duration::from_secs(2)).await;
    let alone = watch(crowd.window / 2, gateway, &keys[0], &seen).await;

    let (began, silent) = (Instant::now(), Rc::new(Cell::new(0)));
    let turns = Rc::new(Semaphore::new(OPENING));
    let idle: Vec<_> = (0..crowd.idle)
        .map(|number| {
            let (to, key) = (gateway.addr, keys[number % keys.len()].clone());
            let (turns, silent) = (Rc::clone(&turns), Rc::clone(&silent));
            spawn_local(async move { hold(to, &key, crowd.open, &turns, &silent).await })
        })
        .collect();
    let all_open = async {
        while silent.get() < crowd.idle {
            sleep(Duration::from_millis(10)).await;
        }
    };
    let in_time = timeout(crowd.open.saturating_sub(crowd.window), all_open).await;
    in_time.unwrap_or_else(|_| panic!("{} of {} streams are open", silent.get(), crowd.idle));
    let opened = began.elapsed().as_secs_f64();
    let together = watch(crowd.window, gateway, &keys[0], &seen).await;
    assert_eq!(
        silent.get(),
        crowd.idle,
        "every idle stream lasts as long as the window"
    );
    over.set(true);
    for client in busy.into_iter().chain(idle) {
        client.await.expect("no stream fails");
    }
    (alone, opened, together)
}

/// Watches newcomers.
async fn watch(window: Duration, gateway: &Process, key: &str, seen: &RefCell<Seen>) -> View {
    let (began, cpu, chunks, rss) = (Instant::now(), gateway.cpu(), seen.borrow().chunks, gateway.rss());
    let mut newcomers = Newcomers::default();
    while began.elapsed() < window {
        let asked = Instant::now();
        let ready = ask(
            gateway.addr,
            b"GET /readyz HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n",
        )
        .await;
        assert!(ready.starts_with("HTTP/1.1 200 "), "{ready}");
        newcomers.ready.push(asked.elapsed().as_secs_f64());
        let asked = Instant::now();
        let mut client = Client::connect(gateway.addr, key, Ask::Json).await;
        client.call(&RefCell::default(), &Cell::new(false)).await;
        newcomers.call.push(asked.elapsed().as_secs_f64());
        sleep(PAUSE).await;
    }
    let took = began.elapsed().as_secs_f64();
    View {
        newcomers,
        chunks: (seen.borrow().chunks - chunks) as f64 / took,
        cpu: (gateway.cpu() - cpu) / took,
        rss: (rss, gateway.rss()),
    }
}

async fn ask(to: SocketAddr, request: &[u8]) -> String {
    let mut connection = TcpStream::connect(to).await.expect("it listens");
    connection.write_all(request).await.expect("it is taken");
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await.expect("an answer");
    String::from_utf8_lossy(&answer).into_owned()
}

/// A stream that says nothing after its beginning, until its end; counted in between.
async fn hold(to: SocketAddr, key: &str, open: Duration, turns: &Semaphore, silent: &Cell<usize>) {
    let turn = turns.acquire().await.expect("it is not closed");
    let body = format!(
        r#"{{"model":"{MODEL}","input":"Hello","stream":true,"store":false,"max_output_tokens":1024,"metadata":{{"chunks":"1","pause_ms":"{}"}}}}"#,
        open.as_millis()
    );
    let request = format!(
        "POST /v1/responses HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connection = TcpStream::connect(to).await.expect("it listens");
    connection.write_all(request.as_bytes()).await.expect("it is taken");
    let mut answer = Vec::new();
    while !ends(&answer, "response.output_text.delta") {
        let some = connection.read_buf(&mut answer).await.expect("bytes");
        assert!(some > 0, "it broke after {:?}", String::from_utf8_lossy(&answer));
    }
    assert!(
        answer.starts_with(b"HTTP/1.1 200 "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    drop(turn);
    silent.set(silent.get() + 1);
    // Keep-alives, and at last the end.
    while !ends(&answer, "response.completed") {
        assert!(connection.read_buf(&mut answer).await.expect("bytes") > 0, "it broke");
    }
    silent.set(silent.get() - 1);
}

fn ends(answer: &[u8], event: &str) -> bool {
    answer.windows(event.len()).any(|part| part == event.as_bytes())
}
