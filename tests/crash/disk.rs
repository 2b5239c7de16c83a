//! A disk without space: no new calls, running ones are settled as far as it goes, and it goes on when there is space.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use codex_gateway::simulator::Gate;
use rustix::fs::statvfs;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, prlimit};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use crate::accounts::Accounts;
use crate::campaign;
use crate::dice::Dice;
use crate::load::{Load, six_people};
use crate::rig::{Machine, PATIENCE, paced};
use crate::shim::{Lasting, Of, Operation, Shim};
use crate::wait::{SETTLED, gated, refused, until, until_ready_says, whole};

/// Where the disk of its own is, for a test that runs in a namespace that has one.
const DISK: &str = "GATEWAY_TEST_DISK";

/// Its size, and what is asked of the gateway on it.
const SIZE: &str = "64m";
const SETTINGS: &str = "min_free = \"8MiB\"\nballast = \"1MiB\"";

/// How soon the gateway goes on once there is space.
const SOON: Duration = Duration::from_secs(5);

/// Calls that wait at a gate: those of the people who can pay for all of them.
const CALLS: usize = 30;

/// Runs a test of this file once more, in a namespace of its own with a small disk, and says where that is to that run.
/// `None` to the first, which has nothing else to do.
fn on_a_small_disk(test: &str) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(PathBuf::from(disk));
    }
    let namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
        command
    };
    let folder = TempDir::new().expect("a folder");
    let mount = format!("mount -t tmpfs -o size={SIZE} none \"${DISK}\"");
    let tried = namespace(&mount).env(DISK, folder.path()).output();
    if !tried.as_ref().is_ok_and(|tried| tried.status.success()) {
        println!("{tried:?}");
        campaign::skip("disk-full", "no disk can be mounted here");
        return None;
    }
    let again = namespace(&format!("{mount} && exec \"$0\" \"$@\""))
        .env(DISK, folder.path())
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", test, "--nocapture"])
        .status();
    assert!(again.expect("it runs").success(), "{test} on a small disk");
    None
}

/// The file that takes the space of others.
struct Filler(PathBuf);

impl Filler {
    fn on(disk: &Path) -> Filler {
        Filler(disk.join("filler"))
    }

    /// Leaves so many bytes.
    fn leave(&self, bytes: u64) {
        let disk = self.0.parent().expect("a disk");
        let mut file = File::options().append(true).create(true).open(&self.0).expect("opened");
        for piece in [vec![1; 1 << 16], vec![1; 1 << 12]] {
            while free(disk) > bytes && file.write_all(&piece).is_ok() {}
        }
    }

    fn remove(&self) {
        fs::remove_file(&self.0).expect("removed");
    }
}

fn free(disk: &Path) -> u64 {
    let disk = statvfs(disk).expect("a disk");
    disk.f_bavail * disk.f_frsize
}

#[tokio::test(flavor = "multi_thread")]
async fn without_space_new_calls_are_refused_and_running_ones_are_settled_from_the_ballast_or_when_there_is_space() {
    let this = "disk::without_space_new_calls_are_refused_and_running_ones_are_settled_from_the_ballast_or_when_there_is_space";
    let Some(disk) = on_a_small_disk(this) else { return };
    let (gate, filler) = (Gate::closed(), Filler::on(&disk));
    let folder = TempDir::new_in(&disk).expect("a folder");
    let machine = Machine::in_folder(folder, gated(&gate), SETTINGS)
        .await
        .with(six_people);
    let mut ballast = OsString::from(machine.database());
    ballast.push(".ballast");
    let serving = machine.serve().await;
    until_there(Path::new(&ballast)).await;
    let load = Load::start(&machine, &serving);
    machine.simulator.arrived(CALLS).await;

    // Little space: no new calls, and nothing is sent; what runs is settled.
    filler.leave(4 << 20);
    until_ready_says(&serving, 503, "min_free").await;
    let sent = machine.simulator.served().len();
    gate.let_through(10);
    serving.until_it_says(SETTLED, 10).await;
    until(&load, refused, 10).await;

    // None: the ballast gives way.
    filler.leave(0);
    gate.let_through(10);
    serving.until_it_says(SETTLED, 20).await;
    assert!(!Path::new(&ballast).exists(), "it had to");

    // None again: what comes to its end waits.
    filler.leave(0);
    gate.let_through(5);
    until_ready_says(&serving, 503, "the books cannot be written").await;
    let ended = whole(&load);
    assert!(
        serving.said().matches(SETTLED).count() == 20 && ended <= 20,
        "no end without a charge"
    );
    assert_eq!(
        machine.simulator.served().len(),
        sent,
        "nothing was sent since space ran low"
    );

    // And goes on by itself.
    filler.remove();
    let freed = Instant::now();
    serving.until_it_says(SETTLED, 25).await;
    until_ready_says(&serving, 200, "ready").await;
    println!("ready {:?} after there was space", freed.elapsed());
    assert!(freed.elapsed() < SOON, "{:?}", freed.elapsed());
    gate.open();
    until(&load, whole, ended + 20).await;
    let seen = load.stop().await;
    // For the next time, and not at once: it would take the space from what it gave it to.
    until_there(Path::new(&ballast)).await;
    serving.stop().await;
    Accounts::compared(&machine, &seen);
}

/// Waits until the writer has made a file.
async fn until_there(path: &Path) {
    let since = Instant::now();
    while !path.exists() {
        assert!(since.elapsed() < PATIENCE, "there is no {}", path.display());
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_and_empties_under_load_costs_nobody_anything() {
    let Some(disk) = on_a_small_disk("disk::a_disk_that_fills_and_empties_under_load_costs_nobody_anything") else {
        return;
    };
    let cycles = std::env::var("GATEWAY_DISK_CYCLES").map_or(2, |cycles| cycles.parse().expect("a number"));
    let seed = Dice::seed();
    println!("GATEWAY_SEED={seed}");
    let dice = Dice::new(seed);
    let filler = Filler::on(&disk);
    let folder = TempDir::new_in(&disk).expect("a folder");
    let machine = Machine::in_folder(folder, paced(dice), SETTINGS).await.with(six_people);
    let serving = machine.serve().await;
    let load = Load::start(&machine, &serving);
    let mut longest = Duration::ZERO;
    for _ in 0..cycles {
        until(&load, whole, whole(&load) + 10).await;
        // Nothing tells the gateway beforehand.
        filler.leave(0);
        until_ready_says(&serving, 503, "not ready").await;
        filler.remove();
        longest = longest.max(until_ready_says(&serving, 200, "ready").await);
    }
    let received = whole(&load);
    let seen = load.stop().await;
    serving.stop().await;
    Accounts::compared(&machine, &seen);
    assert!(longest < SOON, "{longest:?}");
    println!(
        "campaign: {{\"suite\":\"disk-full\",\"seed\":{seed},\"cycles\":{cycles},\"longest_until_ready_ms\":{},\
         \"answers_received\":{},\"failures\":0}}",
        longest.as_millis(),
        received
    );
}

/// What is committed is in the log, and stays there: calls are served, and the operator is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_grow_lets_the_log_grow_and_is_told() {
    let machine = Machine::new(&Dice::new(1), "").await.with(six_people);
    let shim = match Shim::new(&machine.database(), machine.folder()) {
        Ok(shim) => shim,
        Err(why) => return println!("skipped: {why}"),
    };
    let mut serving = machine.serve_with(&shim.env()).await;
    shim.fail(Operation::Write, 1, Of::Database, Errno::NOSPC, Lasting::ForEver);
    let load = Load::start(&machine, &serving);
    let told = serving.until_it_says("a checkpoint failed", 1);
    timeout(Duration::from_secs(15), told).await.expect("in time");
    until(&load, whole, whole(&load) + 10).await;
    let seen = load.stop().await;
    serving.kill().await;
    shim.heal();
    machine.serve().await.stop().await;
    Accounts::compared(&machine, &seen);
}

/// `ulimit -f`: the signal that comes with it does not kill.
#[tokio::test(flavor = "multi_thread")]
async fn a_limit_on_the_size_of_files_stops_the_gateway_and_does_not_kill_it() {
    let machine = Machine::new(&Dice::new(1), "").await.with(six_people);
    let mut serving = machine.serve().await;
    let load = Load::start(&machine, &serving);
    until(&load, whole, 5).await;
    let mut log = OsString::from(machine.database());
    log.push("-wal");
    let limit = Rlimit {
        current: Some(fs::metadata(log).expect("a log").len() + 100_000),
        maximum: None,
    };
    prlimit(Some(serving.pid()), Resource::Fsize, limit).expect("limited");
    let status = serving.end().await;
    assert_eq!(status.code(), Some(1), "{status} {}", serving.said());
    assert!(serving.said().contains("may not be durable"), "{}", serving.said());
    let seen = load.until_it_is_gone().await;
    machine.serve().await.stop().await;
    Accounts::compared(&machine, &seen);
}
