//! `gateway ledger verify` of large books: how long it takes, how much memory, and that a busy server does not disturb it.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use serde_json::json;
use tempfile::TempDir;

use crate::campaign;
use crate::client::response;
use crate::harness::Harness;
use crate::ledgers::Ledger;

/// How many charges the books have in an ordinary run.
const CHARGES: usize = 2_000;

/// What verifying may take beyond what the program takes to verify a handful, in KiB.
const MAX_GROWTH_KIB: u64 = 64 * 1024;

/// Runs `gateway ledger verify`, which has to succeed: how long it took, and the most memory it had, in KiB.
fn verify(database: &Path) -> (Duration, u64) {
    let began = Instant::now();
    let mut program = Command::new(env!("CARGO_BIN_EXE_gateway"));
    program
        .args(["ledger", "verify", "--database"])
        .arg(database)
        .stdout(Stdio::null());
    let mut child = program.spawn().expect("the program starts");
    let (status, peak) = watch(&mut child);
    assert!(status.success(), "the books balance");
    (began.elapsed(), peak)
}

/// Waits for a process, and tells the most memory it had, in KiB: as the system last told while it ran.
fn watch(child: &mut Child) -> (ExitStatus, u64) {
    let path = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    loop {
        let told = fs::read_to_string(&path).unwrap_or_default();
        let most = told.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let most = most.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok());
        peak = most.unwrap_or(peak).max(peak);
        match child.try_wait().expect("it can be waited for") {
            Some(status) => return (status, peak),
            None => thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// `GATEWAY_VERIFY_ENTRIES=1000000 cargo test --release --test gateway many_entries -- --nocapture` is the campaign.
#[tokio::test(flavor = "multi_thread")]
async fn many_entries_are_verified_soon_and_in_little_memory() {
    let charges = campaign::size("GATEWAY_VERIFY_ENTRIES", CHARGES);
    let charges = u64::try_from(charges).expect("64 bits");
    let dir = TempDir::new().expect("a directory");
    let (few, many) = (dir.path().join("few.db"), dir.path().join("many.db"));
    Ledger::with_users(&few, 1).charge(10).await;
    Ledger::with_users(&many, 7).charge(charges).await;
    let (_, idle) = verify(&few);
    let (took, peak) = verify(&many);
    let (ms, growth) = (took.as_millis(), peak.saturating_sub(idle));
    assert!(growth <= MAX_GROWTH_KIB, "it grew by {growth} KiB");
    let counts = json!({
        "entries": charges,
        "ms": u64::try_from(ms).expect("not for ever"),
        "rss_growth_kib": growth,
    });
    campaign::report("verify", counts);
}

#[tokio::test(flavor = "multi_thread")]
async fn books_that_are_written_in_are_verified_as_they_stand_at_one_moment() {
    let harness = Harness::builder().balance("1000").start().await;
    let clients = [harness.client.clone(), harness.add_client("bob", "1000")];
    let body = response("sim:words-16", &json!({"max_output_tokens": 16}));
    let calls = futures_util::stream::iter(clients.iter().cycle().take(400));
    let load = calls.for_each_concurrent(16, async |client| {
        client.post("/v1/responses", &body).await.expect(200);
    });
    let mut load = std::pin::pin!(load);
    let mut seen = Vec::new();
    let mut seals = Vec::new();
    loop {
        let verified = harness.store.blocking(|store| (store.seal(), store.verify()));
        tokio::select! {
            () = &mut load => break,
            (seal, verified) = verified => {
                let verified = verified.expect("it verifies");
                assert_eq!(verified.findings, [], "beside {} entries", verified.entries);
                seen.push(verified.entries);
                seals.push(seal.expect("sealed"));
            }
        }
    }
    seen.dedup();
    assert!(seen.len() > 2, "nothing was written meanwhile: {seen:?}");
    for seal in seals {
        let verified = harness.store.verify_sealed(Some(&seal)).expect("it verifies");
        assert_eq!(verified.findings, [], "against {seal}");
    }
    harness.finish().await;
}
