//! The rig: a machine with settings, books and an upstream, on which the real program is started, killed and started
//! again.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use codex_gateway::simulator::playwright::{Pace, standard};
use codex_gateway::simulator::{Options, Playwright, Request, Simulator};
use codex_gateway::store::{Create, Store};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::dice::Dice;
use crate::load::Person;

/// Longer than anything here takes.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// No more of the disk than there is on a machine that builds it all: what `more` does not set itself.
const DISK: [(&str, &str); 2] = [
    ("ballast", "ballast = \"64KiB\"\n"),
    ("min_free", "min_free = \"1MiB\"\n"),
];

/// A machine with a gateway to start. Its folder is kept, and told, when a test fails.
pub struct Machine {
    /// The upstream; it outlives every gateway.
    pub simulator: Simulator,
    /// Who may call.
    pub people: Vec<Person>,
    folder: Option<TempDir>,
    listeners: TaskTracker,
}

/// A running `gateway serve`. It is killed when this is dropped.
#[derive(Debug)]
pub struct Serving {
    child: Child,
    /// `http://127.0.0.1:40123`
    pub url: String,
    said: watch::Receiver<String>,
}

/// A gateway that ended before it listened.
#[derive(Debug)]
pub struct NotServing {
    /// How it ended.
    pub status: ExitStatus,
    /// What it said.
    pub said: String,
}

impl Machine {
    /// A machine whose upstream answers at a pace thrown with these dice. `more` is added to the settings.
    pub async fn new(dice: &Dice, more: &str) -> Machine {
        Machine::in_folder(TempDir::new().expect("a folder"), paced(dice.clone()), more).await
    }

    /// A machine in a folder, which may be on a disk of its own, with what its upstream plays.
    pub async fn in_folder(folder: TempDir, playwright: Playwright, more: &str) -> Machine {
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let simulator = Simulator::start(anywhere, playwright, Options { remember: 2_000_000 }).await;
        let simulator = simulator.expect("a free port");
        let disk: String = DISK
            .iter()
            .filter(|(name, _)| !more.contains(name))
            .map(|(_, line)| *line)
            .collect();
        let settings = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[[upstream]]\nname = \"first\"\nbase_url = \"{}\"\n\
             api_key = \"sk-upstream\"\nprices = \"openai\"\n[database]\npath = \"books.db\"\n{disk}{more}\n",
            simulator.base_url()
        );
        fs::write(folder.path().join("gateway.toml"), settings).expect("settings written");
        Machine {
            simulator,
            people: Vec::new(),
            folder: Some(folder),
            listeners: TaskTracker::new(),
        }
    }

    /// The same, with these people in its books.
    pub fn with(mut self, people: impl FnOnce(&Store) -> Vec<Person>) -> Machine {
        self.people = people(&self.store());
        self
    }

    /// Where everything is.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().map(TempDir::path).expect("kept until the end")
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.folder().join("books.db")
    }

    /// The books, for an operator's acts beside the server.
    pub fn store(&self) -> Store {
        Store::open(&self.database(), Create::IfMissing).expect("the database opens")
    }

    /// The program with nothing in its environment, for one command with the machine's settings.
    pub fn program(&self, line: &str) -> Command {
        let mut program = Command::new(env!("CARGO_BIN_EXE_gateway"));
        program.env_clear().env("HOME", self.folder()).env("USER", "operator");
        program
            .current_dir(self.folder())
            .stdin(Stdio::null())
            .kill_on_drop(true);
        program.args(["--config", "gateway.toml"]).args(line.split_whitespace());
        program
    }

    /// Starts the gateway; it has to.
    pub async fn serve(&self) -> Serving {
        self.serve_with(&[]).await
    }

    /// The same, with variables in its environment.
    pub async fn serve_with(&self, env: &[(&str, &str)]) -> Serving {
        let started = self.try_serve(env).await;
        started.unwrap_or_else(|ended| panic!("it does not start: {}\n{}", ended.status, ended.said))
    }

    /// Starts the gateway, with variables in its environment, and waits until it listens or ends.
    pub async fn try_serve(&self, env: &[(&str, &str)]) -> Result<Serving, NotServing> {
        self.try_start("serve", env).await
    }

    /// The same with another command line, which may have flags.
    pub async fn try_start(&self, line: &str, env: &[(&str, &str)]) -> Result<Serving, NotServing> {
        let mut program = self.program(line);
        program.envs(env.iter().copied());
        let mut child = program
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let (heard, said) = watch::channel(String::new());
        let stderr = child.stderr.take().expect("a pipe");
        self.listeners.spawn(listen(stderr, heard));
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let line = timeout(PATIENCE, lines.next_line())
            .await
            .expect("it speaks or ends")
            .expect("text");
        match line.as_deref().and_then(|line| line.strip_prefix("listening on ")) {
            Some(url) => Ok(Serving {
                url: url.to_owned(),
                child,
                said,
            }),
            None => Err(NotServing {
                status: timeout(PATIENCE, child.wait())
                    .await
                    .expect("it ends")
                    .expect("a child"),
                said: all_of(said).await,
            }),
        }
    }
}

/// Notes what a program says until it ends.
async fn listen(stderr: ChildStderr, heard: watch::Sender<String>) {
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        heard.send_modify(|said| {
            said.push_str(&line);
            said.push('\n');
        });
    }
}

/// All that a program said that has ended.
async fn all_of(mut said: watch::Receiver<String>) -> String {
    while said.changed().await.is_ok() {}
    said.borrow().clone()
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(folder) = self.folder.take().filter(|_| std::thread::panicking()) {
            println!("kept: {}", folder.keep().display());
        }
    }
}

impl Serving {
    /// What it said so far.
    pub fn said(&self) -> String {
        self.said.borrow().clone()
    }

    /// Waits until it has said something so often.
    pub async fn until_it_says(&self, what: &str, times: usize) {
        let mut said = self.said.clone();
        let heard = timeout(PATIENCE, said.wait_for(|said| said.matches(what).count() >= times)).await;
        assert!(heard.is_ok_and(|heard| heard.is_ok()), "{what}: {}", self.said());
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        id.and_then(Pid::from_raw).expect("it was not waited for")
    }

    /// Sends it a signal, if it still runs.
    pub fn signal(&self, signal: Signal) {
        // One that has ended is a zombie until it is waited for: its id is nobody else's.
        kill_process(self.pid(), signal).expect("the signal is sent");
    }

    /// How it ended, once it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child")
    }

    /// Waits until it has ended by itself and all that it said is there; it has to.
    pub async fn end(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.unwrap_or_else(|_| panic!("it does not end: {}", self.said()));
        all_of(self.said.clone()).await;
        status.expect("a child")
    }

    /// Kills it and waits until it is dead; says how it ended, which may have been before.
    pub async fn kill(&mut self) -> ExitStatus {
        match self.ended() {
            Some(status) => status,
            None => {
                self.signal(Signal::KILL);
                self.end().await
            }
        }
    }

    /// Stops it as a service manager does.
    pub async fn stop(mut self) {
        self.signal(Signal::TERM);
        let status = self.end().await;
        assert!(status.success(), "{status}: {}", self.said());
    }
}

/// An upstream that takes its time: so many calls are under way at once that each moment finds them everywhere.
pub fn paced(dice: Dice) -> Playwright {
    Arc::new(move |request: &Request| {
        let mut dice = dice.of(request.id);
        let pace = Pace {
            delay: Duration::from_millis(dice.between(5, 60)),
            chunks: usize::try_from(dice.between(3, 9)).ok(),
            chunk_delay: Duration::from_millis(dice.between(2, 20)),
        };
        standard(pace)(request)
    })
}
