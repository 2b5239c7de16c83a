//! Settings that change while the real program runs: at SIGHUP, or by a changed file. What is under way ends as it began.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Simulator};
use codex_gateway::store::usage_log::State;
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

use crate::books::Books;
use crate::client::{Client, MODEL, chat};
use crate::price::{catalogue, expected_charge};
use crate::shutdown::{Office, Serving, begin, whole};

/// What the log says when changed settings are in force.
const IN_FORCE: &str = "changed settings are in force";

/// Asks for a reload, and waits until it has been done so many times in all.
async fn reload(serving: &Serving, times: usize) -> String {
    serving.signal(Signal::HUP);
    serving.says(IN_FORCE, times).await
}

async fn another_upstream() -> Simulator {
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let started = Simulator::start(anywhere, standard(Pace::default()), Options::default()).await;
    started.expect("a port")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_the_settings_it_began_with_and_the_next_call_has_the_new_ones() {
    let (office, second) = (Office::new("").await, another_upstream().await);
    let serving = office.serve();
    let client = office.client(&serving);
    let stream = begin(&client, "/v1/chat/completions").await;

    // The upstream that the stream comes from is in the new settings no more.
    office.set(&format!(
        "[server]\nlisten = \"127.0.0.1:1\"\nmax_body = \"4KiB\"\n[billing]\nmarkup = 3\n[database]\npath = \"books.db\"\n\
         [[upstream]]\nname = \"second\"\nbase_url = \"{}\"\napi_key = \"sk-other\"\nprices = \"openai\"\n",
        second.base_url()
    ));
    let said = reload(&serving, 1).await;
    for name in ["billing.markup", "server.max_body", "upstream.first", "upstream.second"] {
        assert!(said.contains(name), "{name}: {said}");
    }
    serving.says("server.listen", 1).await;
    assert!(!serving.said().contains("sk-"), "no secret is told: {}", serving.said());

    client.chat("Hello").await.expect(200);
    client.chat(&"x".repeat(5000)).await.expect(413);
    office.gate.open();
    assert!(whole(stream).await.ends_with("data: [DONE]\n\n"));
    serving.stop().await;

    let books = Books::checked(&office.database());
    let [begun, next] = books.exchanges.as_slice() else {
        panic!("{:?}", books.exchanges);
    };
    let price = catalogue("openai", MODEL);
    for (row, simulator, name, markup) in [(begun, &office.simulator, "first", "1"), (next, &second, "second", "3")] {
        let usage = simulator.ended(0).await.usage.expect("a usage");
        assert_eq!(
            (row.upstream.as_str(), row.markup.as_str(), row.state),
            (name, markup, State::Completed)
        );
        assert_eq!(i128::from(row.charge.nanos()), expected_charge(&usage, &price, markup));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_are_not_valid_change_nothing_and_are_told_as_config_check_tells_them() {
    let office = Office::new("").await;
    office.gate.open();
    let serving = office.serve();
    let client = office.client(&serving);
    let good = office.settings();
    let wrong = [
        format!("{good}modles = []\n[billing]\nmarkup = -1\n"),
        format!(
            "[billing]\nmarkup = 2\n{}",
            good.replace("sk-upstream", "env:NOBODY_SET_THIS")
        ),
        format!("[billing]\nmarkup = 2\n{good}ca_file = \"nowhere.pem\"\n"),
        "[billing]\nmarkup = 2\n".to_owned(),
    ];
    for (times, settings) in (1..).zip(&wrong) {
        office.set(settings);
        serving.signal(Signal::HUP);
        let said = serving.says("are not taken in", times).await;
        assert!(!said.contains("sk-upstream"), "no secret is told: {said}");
        let checked = office.run("config check");
        let told = String::from_utf8_lossy(&checked.stderr).into_owned();
        // That the file of an authority is missing, and that there is nothing to forward to, shows only when it serves.
        if checked.status.code() == Some(3) {
            let lines = told.trim_start_matches("error: ");
            assert!(serving.said().contains(lines.trim_end()), "{told}\n{}", serving.said());
        }
        client.chat("Hello").await.expect(200);
    }
    let said = serving.said();
    assert!(said.contains("nowhere.pem") && said.contains("no upstream"), "{said}");
    assert!(!said.contains(IN_FORCE), "{said}");
    serving.stop().await;
    let books = Books::checked(&office.database());
    assert_eq!(books.exchanges.len(), wrong.len());
    assert!(books.exchanges.iter().all(|row| row.markup == "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_file_is_taken_in_without_being_asked_to() {
    let office = Office::new("").await;
    office.gate.open();
    office.put("key", "sk-before");
    office.set(&office.settings().replace("sk-upstream", "file:key"));
    let serving = office.serve();
    let client = office.client(&serving);
    client.chat("Hello").await.expect(200);
    office.set(&format!("[billing]\nmarkup = 2\n{}", office.settings()));
    let said = serving.says(IN_FORCE, 1).await;
    assert!(said.contains("billing.markup"), "{said}");
    client.chat("Hello").await.expect(200);
    // A secret in a file of its own, too.
    office.put("key", "sk-after");
    let said = serving.says(IN_FORCE, 2).await;
    assert!(
        said.contains("upstream.first.api_key") && !said.contains("sk-after"),
        "{said}"
    );
    client.chat("Hello").await.expect(200);
    serving.stop().await;
    let sent: Vec<_> = office
        .simulator
        .served()
        .into_iter()
        .map(|served| served.headers["authorization"].clone())
        .collect();
    assert_eq!(sent, ["Bearer sk-before", "Bearer sk-before", "Bearer sk-after"]);
    let books = Books::checked(&office.database());
    let markups: Vec<&str> = books.exchanges.iter().map(|row| row.markup.as_str()).collect();
    assert_eq!(markups, ["1", "2", "2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_comes_keeps_nobody_from_stopping_the_server() {
    let office = Office::new("").await;
    office.gate.open();
    office.put("key", "sk-before");
    office.set(&office.settings().replace("sk-upstream", "file:key"));
    let serving = office.serve();
    let client = office.client(&serving);
    // Who opens a pipe to read waits for somebody who writes.
    let key = office.path("key");
    std::fs::remove_file(&key).expect("it is there");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &key, mode).expect("a pipe");
    serving.signal(Signal::HUP);
    client.chat("Hello").await.expect(200);
    serving.stop().await;
    Books::checked(&office.database());
}

/// A way to a simulator that counts its connections.
async fn counted(simulator: SocketAddr) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let (address, count) = (
        listener.local_addr().expect("an address"),
        Arc::new(AtomicUsize::new(0)),
    );
    let counter = Arc::clone(&count);
    let (tasks, lines) = (TaskTracker::new(), TaskTracker::new());
    tasks.spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            let mut upstream = TcpStream::connect(simulator).await.expect("the simulator");
            // Either side may end it.
            lines.spawn(async move { copy_bidirectional(&mut client, &mut upstream).await.ok() });
        }
    });
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_keeps_its_connections_unless_the_way_to_it_is_another() {
    let office = Office::new("").await;
    office.gate.open();
    let (address, count) = counted(office.simulator.address()).await;
    let direct = office.simulator.address().to_string();
    let settings = office.settings().replace(&direct, &address.to_string());
    office.set(&settings);
    let serving = office.serve();
    let client = office.client(&serving);
    client.chat("Hello").await.expect(200);
    assert_eq!(count.load(Ordering::SeqCst), 1);

    let settings = settings.replace("sk-upstream", "sk-next") + "idle_timeout = \"60s\"\n";
    office.set(&format!("[billing]\nmarkup = 2\n{settings}"));
    reload(&serving, 1).await;
    client.chat("Hello").await.expect(200);
    assert_eq!(
        count.load(Ordering::SeqCst),
        1,
        "the same connection, with another credential"
    );
    let sent = office.simulator.ended(1).await.headers;
    assert_eq!(sent["authorization"], "Bearer sk-next");

    office.set(&format!("{settings}connect_timeout = \"3s\"\n"));
    let said = reload(&serving, 2).await;
    assert!(said.contains("reconnected=\"first\""), "{said}");
    client.chat("Hello").await.expect(200);
    assert_eq!(count.load(Ordering::SeqCst), 2);
    serving.stop().await;
    Books::checked(&office.database());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_terminal_is_closed_stops() {
    let office = Office::new("").await;
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    fcntl_setfd(&terminal, FdFlags::CLOEXEC).expect("the program does not get it");
    grantpt(&terminal)
        .and_then(|()| unlockpt(&terminal))
        .expect("a terminal");
    let name = ptsname(&terminal, Vec::new()).expect("a name");
    let screen = File::options().write(true).open(name.to_str().expect("text"));
    let mut command = office.command("serve");
    command.stdout(Stdio::piped()).stderr(screen.expect("it opens"));
    let mut child = command.spawn().expect("the program starts");
    drop(command);
    let mut line = String::new();
    let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
    said.read_line(&mut line).expect("text");
    drop(terminal);
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    kill_process(pid.expect("a process"), Signal::HUP).expect("the signal is sent");
    let ended = tokio::task::spawn_blocking(move || child.wait());
    let status = tokio::time::timeout(Duration::from_secs(20), ended).await;
    let status = status.expect("it ends").expect("it is waited for").expect("a child");
    assert!(status.success(), "{status}");
}

/// How often settings change in a storm.
const CHANGES: usize = 200;

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_reloads_drops_nothing() {
    let (office, second) = (Office::new("").await, another_upstream().await);
    office.gate.open();
    let first = office.settings();
    let other = format!(
        "[billing]\nmarkup = 2\n[database]\npath = \"books.db\"\n\
         [[upstream]]\nname = \"second\"\nbase_url = \"{}\"\nprices = \"openai\"\n",
        second.base_url()
    );
    let serving = office.serve();
    let client = office.client(&serving);
    let (over, callers) = (Arc::new(AtomicBool::new(false)), TaskTracker::new());
    let calling: Vec<_> = (0..4)
        .map(|_| callers.spawn(call_until(client.clone(), Arc::clone(&over))))
        .collect();
    let both_served = || !office.simulator.served().is_empty() && !second.served().is_empty();
    for change in 0.. {
        if change >= CHANGES && both_served() {
            break;
        }
        assert!(change < 50 * CHANGES, "both are in force at times");
        match change % 5 {
            4 => office.set("markup = wrong\n"),
            odd if odd % 2 == 1 => office.set(&other),
            _ => office.set(&first),
        }
        serving.signal(Signal::HUP);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    over.store(true, Ordering::SeqCst);
    for caller in calling {
        caller.await.expect("every call was answered as a whole");
    }
    serving.stop().await;

    let books = Books::checked(&office.database());
    let price = catalogue("openai", MODEL);
    let served: Vec<_> = [office.simulator.served(), second.served()].concat();
    assert_eq!(served.len(), books.exchanges.len(), "each call was sent once");
    for row in &books.exchanges {
        assert_eq!(row.state, State::Completed);
        let markup = if row.upstream == "first" { "1" } else { "2" };
        assert_eq!(row.markup, markup, "settings are never mixed");
        let served = served.iter().find(|served| served.response_id == row.response_id);
        let usage = served.and_then(|served| served.usage.clone()).expect("a usage");
        assert_eq!(i128::from(row.charge.nanos()), expected_charge(&usage, &price, markup));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_whose_body_is_still_to_come_keeps_the_settings_it_began_with() {
    let office = Office::new("").await;
    office.gate.open();
    let serving = office.serve();
    let client = office.client(&serving);
    let address = serving.url.trim_start_matches("http://");
    let body = chat("Hello", &json!({})).to_string();
    let mut socket = TcpStream::connect(address).await.expect("a connection");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n",
        client.key,
        body.len()
    );
    socket.write_all(head.as_bytes()).await.expect("the head is written");
    let mut answer = vec![0; 12];
    // The body is asked for by whoever has taken the settings.
    socket.read_exact(&mut answer).await.expect("an interim answer");
    assert_eq!(answer, b"HTTP/1.1 100");
    office.set(&format!("[billing]\nmarkup = 2\n{}", office.settings()));
    reload(&serving, 1).await;
    socket.write_all(body.as_bytes()).await.expect("the body is written");
    socket.read_to_end(&mut answer).await.expect("an answer");
    assert!(String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"));
    serving.stop().await;
    assert_eq!(Books::checked(&office.database()).only().markup, "1");
}

async fn call_until(client: Client, over: Arc<AtomicBool>) {
    while !over.load(Ordering::SeqCst) {
        client.chat("Hello").await.expect(200);
        let body = chat("Hello", &json!({"stream": true}));
        let streamed = client.post("/v1/chat/completions", &body).await;
        assert!(streamed.body.ends_with(b"data: [DONE]\n\n"), "{streamed:?}");
    }
}
