//! Soak: mixed traffic for as long as one says, while settings are reloaded, keys come and go and upstreams fail. The books
//! balance at its end, and nothing has grown: memory, open files, threads, the log of the database.
//!
//! What a gateway takes is asked of the system, for it is a process of its own.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use codex_gateway::simulator::{Playwright, Request, Script, Step};
use http::StatusCode;
use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::sleep;

use crate::accounts::Accounts;
use crate::campaign::{report, size};
use crate::dice::Dice;
use crate::load::{Fate, Load, six_people};
use crate::rig::{Machine, PATIENCE, Serving, paced};
use crate::wait::whole;

/// Seconds of `cargo test`; `GATEWAY_SOAK_SECONDS` says another number.
const SECONDS: usize = 12;

/// Between two things that an operator does.
const PAUSE: Duration = Duration::from_millis(100);

/// A WAL may be so large.
const LARGEST_LOG: u64 = 64 << 20;

/// Of memory, per cent of what there was after a sixth of the time. A short run has not come to rest by then.
fn may_take(seconds: usize) -> u64 {
    match seconds {
        0..60 => 160,
        60..300 => 125,
        _ => 105,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn under_mixed_traffic_nothing_grows_and_the_books_balance() {
    let (seed, seconds) = (Dice::seed(), size("GATEWAY_SOAK_SECONDS", SECONDS));
    let dice = Dice::new(seed);
    let folder = TempDir::new().expect("a folder");
    let machine = Machine::in_folder(folder, troubled(dice.clone()), "")
        .await
        .with(six_people);
    let settings = fs::read_to_string(machine.folder().join("gateway.toml")).expect("settings");
    let serving = machine.serve().await;
    let (store, at_start) = (machine.store(), Takes::now(&serving));

    let load = Load::start(&machine, &serving);
    let (began, length) = (
        Instant::now(),
        Duration::from_secs(u64::try_from(seconds).expect("few")),
    );
    let (mut after_a_sixth, mut largest_log, mut reloads, mut keys) = (None, 0, 0, 0);
    while began.elapsed() < length {
        reload(&machine, &serving, &settings, reloads);
        reloads += 1;
        if reloads % 20 == 0 {
            // Commands read the same file.
            fs::write(machine.folder().join("gateway.toml"), &settings).expect("settings written");
            change_a_key(&machine, keys).await;
            keys += 1;
            machine.people.iter().for_each(|person| person.help(&store));
        }
        largest_log = largest_log.max(length_of_log(&machine));
        if after_a_sixth.is_none() && began.elapsed() >= length / 6 {
            after_a_sixth = Some(Takes::now(&serving));
        }
        sleep(PAUSE).await;
    }
    let at_the_end = Takes::now(&serving);
    let answered = whole(&load);
    let seen = load.stop().await;
    until_idle_as(&serving, &at_start).await;

    assert!(
        reloads >= seconds && keys > 0 && answered > seconds * 20,
        "{reloads} {keys} {answered}"
    );
    assert!(
        serving.said().matches("changed settings are in force").count() >= 3,
        "{}",
        serving.said()
    );
    let refused = seen.iter().filter(|seen| matches!(seen.fate, Fate::Refused(_))).count();
    serving.stop().await;
    Accounts::compared(&machine, &seen);
    let verified = machine.program("ledger verify").output().await.expect("it runs");
    assert!(
        verified.status.success(),
        "{}",
        String::from_utf8_lossy(&verified.stdout)
    );
    let after_a_sixth = after_a_sixth.expect("there was a first sixth");
    let allowed = after_a_sixth.memory * may_take(seconds) / 100;
    assert!(at_the_end.memory <= allowed, "{after_a_sixth:?} {at_the_end:?}");
    assert!(largest_log <= LARGEST_LOG, "{largest_log} bytes of log");
    report(
        "soak",
        json!({
            "seconds": seconds, "calls": seen.len(), "whole": answered, "refused": refused, "reloads": reloads,
            "keys": keys, "rss_kib_after_a_sixth": after_a_sixth.memory, "rss_kib_at_the_end": at_the_end.memory,
            "wal_bytes": largest_log,
        }),
    );
}

/// What a process takes.
#[derive(Clone, Copy, Debug)]
struct Takes {
    /// Resident, in KiB.
    memory: u64,
    /// Open files.
    files: usize,
    threads: u64,
}

impl Takes {
    fn now(serving: &Serving) -> Takes {
        let folder = format!("/proc/{}", serving.pid().as_raw_nonzero());
        let status = fs::read_to_string(format!("{folder}/status")).expect("it runs");
        let number = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name);
            line.split_whitespace()
                .next()
                .and_then(|number| number.parse().ok())
                .expect(name)
        };
        Takes {
            memory: number("VmRSS:"),
            threads: number("Threads:"),
            files: fs::read_dir(format!("{folder}/fd")).expect("it runs").count(),
        }
    }
}

/// Waits until files and threads are as they were: connections to upstreams, and threads, idle for a while.
async fn until_idle_as(serving: &Serving, at_start: &Takes) {
    let began = Instant::now();
    loop {
        let takes = Takes::now(serving);
        // The readers of the database come when they are first needed.
        if takes.files <= at_start.files + 24 && takes.threads <= at_start.threads + 2 {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "{at_start:?} {takes:?}");
        sleep(PAUSE).await;
    }
}

fn length_of_log(machine: &Machine) -> u64 {
    fs::metadata(machine.folder().join("books.db-wal")).map_or(0, |file| file.len())
}

/// Other settings by turns, and each fifth time some that are wrong: those change nothing.
fn reload(machine: &Machine, serving: &Serving, settings: &str, turn: usize) {
    let more = match turn % 5 {
        0 => "",
        1 => "[limits]\nrpm = 1000000\n",
        2 => "[[upstream]]\nname = \"second\"\nbase_url = \"http://127.0.0.1:9\"\nmodels = [\"none\"]\n",
        3 => "[billing]\nmin_output_tokens = 4096\n",
        _ => "[billing]\nmarkup = \"much\"\n",
    };
    fs::write(machine.folder().join("gateway.toml"), format!("{settings}{more}")).expect("settings written");
    serving.signal(Signal::HUP);
}

/// A key is issued, changed, rotated and revoked, by commands beside the server.
async fn change_a_key(machine: &Machine, turn: usize) {
    let name = format!("key-{turn}");
    let run = async |line: String| {
        let ran = machine
            .program(&format!("--json {line}"))
            .output()
            .await
            .expect("it runs");
        assert!(ran.status.success(), "{line}: {}", String::from_utf8_lossy(&ran.stderr));
        serde_json::from_slice::<serde_json::Value>(&ran.stdout).expect("JSON")["id"].clone()
    };
    let id = run(format!("key issue alice --name {name}")).await;
    let id = id.as_str().expect("an id");
    run(format!("key set {id} --model gpt-*")).await;
    run(format!("key rotate {id} --grace 1s")).await;
}

/// An upstream with troubles: one answer of some twenty is an error, breaks, or never begins.
fn troubled(dice: Dice) -> Playwright {
    let well = paced(dice.clone());
    Arc::new(move |request: &Request| {
        let script = well(request);
        match dice.of(request.id ^ 0x50AC).between(0, 64) {
            0 => Script::error(StatusCode::INTERNAL_SERVER_ERROR, "server_error", "oops", "It failed."),
            1 => script.first(Step::Reset),
            2 => script.at(if request.streamed() { 2 } else { 0 }, Step::Break),
            _ => script,
        }
    })
}
