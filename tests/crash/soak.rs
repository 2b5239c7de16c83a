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
use crate::load::{Fate, Load, Seen, six_people};
use crate::rig::{Machine, PATIENCE, Serving, paced};
use crate::wait::whole;

/// Seconds of `cargo test`; `GATEWAY_SOAK_SECONDS` says another number.
const SECONDS: usize = 12;

/// Between two things that an operator does.
const PAUSE: Duration = Duration::from_millis(100);

/// A WAL may be so large.
const LARGEST_LOG: u64 = 64 << 20;

/// Of memory at rest, per cent of what there was after a sixth of the time. A short run has not come to rest by then.
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
    let mut soak = Soak::of(machine).await;
    let length = Duration::from_secs(u64::try_from(seconds).expect("few"));
    let after_a_sixth = soak.traffic(length / 6).await;
    let at_the_end = soak.traffic(length - length / 6).await;
    let Soak {
        machine,
        serving,
        seen,
        reloads,
        keys,
        largest_log,
        answered,
        ..
    } = soak;

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
    let allowed = after_a_sixth.at_rest.memory * may_take(seconds) / 100;
    assert!(at_the_end.at_rest.memory <= allowed, "{after_a_sixth:?} {at_the_end:?}");
    assert!(largest_log <= LARGEST_LOG, "{largest_log} bytes of log");
    report(
        "soak",
        json!({
            "seconds": seconds, "calls": seen.len(), "whole": answered, "refused": refused, "reloads": reloads,
            "keys": keys, "wal_bytes": largest_log,
            "rss_kib_after_a_sixth": {"running": after_a_sixth.running.memory, "at_rest": after_a_sixth.at_rest.memory},
            "rss_kib_at_the_end": {"running": at_the_end.running.memory, "at_rest": at_the_end.at_rest.memory},
        }),
    );
}

/// A machine, its server, and what came of the traffic until now.
struct Soak {
    machine: Machine,
    serving: Serving,
    settings: String,
    at_start: Takes,
    seen: Vec<Seen>,
    answered: usize,
    reloads: usize,
    keys: usize,
    largest_log: u64,
}

/// What the server takes at the end of some traffic: while it still runs, and when all of it is over.
#[derive(Debug)]
struct After {
    running: Takes,
    at_rest: Takes,
}

impl Soak {
    async fn of(machine: Machine) -> Soak {
        let settings = fs::read_to_string(machine.folder().join("gateway.toml")).expect("settings");
        let serving = machine.serve().await;
        Soak {
            at_start: Takes::now(&serving),
            machine,
            serving,
            settings,
            seen: Vec::new(),
            answered: 0,
            reloads: 0,
            keys: 0,
            largest_log: 0,
        }
    }

    /// Traffic for so long. What it takes while it runs goes up and down with how busy the machine is; what is kept shows when
    /// the server is at rest again.
    async fn traffic(&mut self, length: Duration) -> After {
        let (began, store) = (Instant::now(), self.machine.store());
        let load = Load::start(&self.machine, &self.serving);
        while began.elapsed() < length {
            reload(&self.machine, &self.serving, &self.settings, self.reloads);
            self.reloads += 1;
            if self.reloads.is_multiple_of(20) {
                // Commands read the same file.
                fs::write(self.machine.folder().join("gateway.toml"), &self.settings).expect("settings written");
                change_a_key(&self.machine, self.keys).await;
                self.keys += 1;
                self.machine.people.iter().for_each(|person| person.help(&store));
            }
            self.largest_log = self.largest_log.max(length_of_log(&self.machine));
            sleep(PAUSE).await;
        }
        let running = Takes::now(&self.serving);
        self.answered += whole(&load);
        self.seen.extend(load.stop().await);
        let at_rest = until_idle_as(&self.serving, &self.at_start).await;
        After { running, at_rest }
    }
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
async fn until_idle_as(serving: &Serving, at_start: &Takes) -> Takes {
    let began = Instant::now();
    loop {
        let takes = Takes::now(serving);
        // The readers of the database come when they are first needed.
        if takes.files <= at_start.files + 24 && takes.threads <= at_start.threads + 2 {
            return takes;
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
