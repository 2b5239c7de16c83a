//! What is measured: processes, their time and their memory, as Linux tells them; and the disk.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Linux counts a process's time in hundredths of a second, whatever the kernel's own clock does.
const TICK: f64 = 0.01;

/// How long a process may take until it listens.
const PATIENCE: Duration = Duration::from_secs(60);

/// tmpfs, by `statfs`.
const TMPFS: i64 = 0x0102_1994;

/// A process under measurement, with its children; killed when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// Where it listens.
    pub addr: SocketAddr,
}

impl Process {
    /// Starts a program that will listen at `addr`, and waits until it does.
    pub fn start(command: &mut Command, addr: SocketAddr, log: &Path) -> Process {
        let log = OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("the same log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let mut process = Process { child, addr };
        let began = Instant::now();
        while TcpStream::connect(addr).is_err() {
            let ended = process.child.try_wait().expect("a child");
            assert!(ended.is_none(), "{command:?} ended: {ended:?}");
            assert!(began.elapsed() < PATIENCE, "{command:?} does not listen");
            thread::sleep(Duration::from_millis(1));
        }
        process
    }

    /// Seconds of user and system time so far, children included.
    pub fn cpu(&self) -> f64 {
        self.all().iter().map(|pid| cpu(*pid)).sum()
    }

    /// Resident memory in MiB, children included.
    pub fn rss(&self) -> f64 {
        self.all().iter().map(|pid| status(*pid, "VmRSS:")).sum::<f64>() / 1024.0
    }

    /// The most resident memory there was, in MiB, since it was last forgotten.
    pub fn peak(&self) -> f64 {
        status(self.child.id(), "VmHWM:") / 1024.0
    }

    /// Lets the peak begin anew.
    pub fn forget_peak(&self) {
        fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").expect("our own child");
    }

    fn all(&self) -> Vec<u32> {
        let own = self.child.id();
        let path = format!("/proc/{own}/task/{own}/children");
        let children = fs::read_to_string(path).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        children.chain([own]).collect()
    }

    /// Asks it to stop, and waits.
    pub fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("it runs");
        let status = self.child.wait().expect("a child");
        assert!(status.success(), "it ended with {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let pid = rustix::process::Pid::from_child(&self.child);
            // nginx ends its workers when asked to.
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap_or(());
            self.child.wait().map(drop).unwrap_or(());
        }
    }
}

fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // The name may hold spaces; what follows it does not.
    let (_, rest) = stat.rsplit_once(')').expect("a name in parentheses");
    let ticks: f64 = rest
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<f64>().expect("a number"))
        .sum();
    ticks * TICK
}

/// A figure of `/proc/PID/status`, in KiB.
fn status(pid: u32, name: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .expect("it is there");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// An address nobody listens at.
pub fn free_addr() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// Counts what the gateway makes durable.
#[derive(Debug)]
pub struct Syncs {
    library: PathBuf,
    count: PathBuf,
}

impl Syncs {
    /// Compiles what counts.
    pub fn new(folder: &Path) -> Syncs {
        let (library, count) = (folder.join("syncs.so"), folder.join("syncs"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/overhead/syncs.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .args([&library, &source])
            .status()
            .expect("the bundled SQLite needs `cc`, too");
        assert!(compiled.success(), "{} does not compile", source.display());
        fs::write(&count, [0; 8]).expect("a file");
        Syncs { library, count }
    }

    /// Has a program counted.
    pub fn watch(&self, command: &mut Command) {
        command.env("LD_PRELOAD", &self.library).env("SYNCS", &self.count);
    }

    /// How often so far.
    pub fn so_far(&self) -> f64 {
        let mut bytes = [0; 8];
        let file = File::open(&self.count).expect("it is there");
        file.read_exact_at(&mut bytes, 0).expect("eight bytes");
        u64::from_ne_bytes(bytes) as f64
    }
}

/// What the disk below a folder is, and how long it takes to make 4 KiB durable, in seconds (the median of 50).
pub fn disk(folder: &Path) -> (String, f64) {
    let kind = rustix::fs::statfs(folder).expect("a folder").f_type;
    assert!(
        kind != TMPFS,
        "{} is on tmpfs, where fsync costs nothing",
        folder.display()
    );
    let name = match kind {
        0xEF53 => "ext4".to_owned(),
        0x5846_5342 => "xfs".to_owned(),
        0x9123_683E => "btrfs".to_owned(),
        other => format!("file system {other:#x}"),
    };
    let path = folder.join("fsync");
    let mut file = File::create(&path).expect("a file");
    let mut times: Vec<f64> = (0..50)
        .map(|_| {
            let began = Instant::now();
            file.write_all(&[7; 4096]).expect("written");
            file.sync_data().expect("synced");
            began.elapsed().as_secs_f64()
        })
        .collect();
    fs::remove_file(path).expect("removed");
    (name, crate::report::median(&mut times))
}
