//! What is measured: how each is started.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::{Process, Syncs, free_addr};

/// The gateway, as it is released.
const GATEWAY: &str = env!("CARGO_BIN_EXE_gateway");

/// A place for files of a run, on the disk that the build is on.
#[derive(Debug)]
pub struct Place(tempfile::TempDir);

impl Place {
    /// A new one.
    pub fn new() -> Place {
        let below = Path::new(env!("CARGO_TARGET_TMPDIR"));
        Place(
            tempfile::Builder::new()
                .prefix("bench-")
                .tempdir_in(below)
                .expect("a folder"),
        )
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

fn myself() -> Command {
    Command::new(std::env::current_exe().expect("this program"))
}

/// The upstream of all of them.
pub fn upstream(place: &Place) -> Process {
    let addr = free_addr();
    Process::start(
        myself().args(["upstream", &addr.to_string()]),
        addr,
        &place.file("upstream.log"),
    )
}

/// The bare pass-through.
pub fn passthrough(place: &Place, upstream: SocketAddr) -> Process {
    let addr = free_addr();
    let mut command = myself();
    command.args(["passthrough", &addr.to_string(), &upstream.to_string()]);
    Process::start(&mut command, addr, &place.file("passthrough.log"))
}

/// nginx as a reverse proxy, with as many workers as the others have threads; `None` where it is not installed.
pub fn nginx(place: &Place, upstream: SocketAddr) -> Option<Process> {
    let there = Command::new("nginx").arg("-v").stderr(Stdio::null()).status().is_ok();
    if !there {
        return None;
    }
    let (addr, folder) = (free_addr(), place.path().display());
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let settings = format!(
        "{user} daemon off; worker_processes auto; pid {folder}/nginx.pid; error_log {folder}/nginx.log warn;
         events {{ worker_connections 8192; }}
         http {{
             access_log off; tcp_nodelay on; client_max_body_size 64m; client_body_buffer_size 64k; keepalive_requests 100000000;
             client_body_temp_path {folder}/n1; proxy_temp_path {folder}/n2; fastcgi_temp_path {folder}/n3;
             uwsgi_temp_path {folder}/n4; scgi_temp_path {folder}/n5;
             upstream calls {{ server {upstream}; keepalive 512; keepalive_requests 100000000; }}
             server {{
                 listen {addr} backlog=4096;
                 location / {{
                     proxy_pass http://calls; proxy_http_version 1.1; proxy_set_header Connection \"\";
                     proxy_buffering off;
                 }}
             }}
         }}"
    );
    let file = place.file("nginx.conf");
    fs::write(&file, settings).expect("a file");
    let mut command = Command::new("nginx");
    command.arg("-p").arg(place.path()).arg("-c").arg(&file);
    Some(Process::start(&mut command, addr, &place.file("nginx.out")))
}

/// A gateway and its database.
#[derive(Debug)]
pub struct Gateway {
    database: PathBuf,
    settings: PathBuf,
    addr: SocketAddr,
    log: PathBuf,
}

impl Gateway {
    /// With an empty database.
    pub fn new(place: &Place, name: &str, upstream: SocketAddr) -> Gateway {
        let addr = free_addr();
        let (database, settings) = (place.file(&format!("{name}.db")), place.file(&format!("{name}.toml")));
        let text = format!(
            "[server]\nlisten = \"{addr}\"\nmax_connections = 20000\nmax_connections_per_address = 20000\n[database]\npath = \"{}\"\n\
             [[upstream]]\nname = \"openai\"\nbase_url = \"http://{upstream}/v1\"\nprices = \"openai\"\n",
            database.display()
        );
        fs::write(&settings, text).expect("a file");
        Gateway {
            database,
            settings,
            addr,
            log: place.file(&format!("{name}.log")),
        }
    }

    /// Where its books are.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// Adds a user with a balance that lasts, and issues a key.
    pub fn user_with_key(&self, name: &str) -> String {
        self.user_with_key_and(name, "1000000")
    }

    /// Adds a user with so many dollars, and issues a key.
    pub fn user_with_key_and(&self, name: &str, balance: &str) -> String {
        self.command(&["user", "add", name, "--balance", balance]);
        self.command(&["key", "issue", name, "--quiet"]).trim().to_owned()
    }

    /// Runs a command of the gateway on its database; returns what it prints.
    pub fn command(&self, args: &[&str]) -> String {
        let output = Command::new(GATEWAY)
            .args(args)
            .arg("--config")
            .arg(&self.settings)
            .output()
            .expect("the gateway");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "gateway {args:?}: {said}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// Serves.
    pub fn serve(&self, syncs: Option<&Syncs>) -> Process {
        let mut command = Command::new(GATEWAY);
        command.arg("serve").arg("--config").arg(&self.settings);
        if let Some(syncs) = syncs {
            syncs.watch(&mut command);
        }
        Process::start(&mut command, self.addr, &self.log)
    }
}
