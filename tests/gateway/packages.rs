//! What packages ship: completions, manual pages, a health check, units and images that name only what there is.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command};

use clap::CommandFactory;
use codex_gateway::cli::Cli;
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::cli::{Home, piped, served_at, simulated, stopped};
use crate::client::{Client, MODEL, response};
use crate::harness::Harness;
use crate::websocket;

#[test]
fn completions_know_every_command_in_every_shell() {
    let home = Home::new();
    let commands = Cli::command();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = home.ok(&format!("completions {shell}"));
        for command in commands.get_subcommands() {
            assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
        }
        assert!(script.contains("database"), "{shell}");
    }
}

#[test]
fn bash_reads_its_completions() {
    let home = Home::new();
    let script = home.path().join("gateway.bash");
    fs::write(&script, home.ok("completions bash")).expect("written");
    let asked = "source ./gateway.bash; COMP_WORDS=(gateway ledg); COMP_CWORD=1; _gateway gateway ledg gateway; echo \"${COMPREPLY[@]}\"";
    let mut bash = assert_cmd::Command::new("bash");
    let answer = bash
        .current_dir(home.path())
        .args(["-c", asked])
        .output()
        .expect("bash");
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "ledger");
}

#[test]
fn there_is_a_manual_page_of_every_command() {
    let home = Home::new();
    let page = home.ok("man");
    assert!(page.contains(".TH gateway 1") && page.contains("Exit codes"), "{page}");
    home.ok("man --dir pages");
    let there = |name: &str| home.path().join("pages").join(name).exists();
    assert!(there("gateway.1"));
    for command in Cli::command()
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        assert!(
            there(&format!("gateway-{}.1", command.get_name())),
            "{}",
            command.get_name()
        );
        for below in command.get_subcommands() {
            let name = format!("gateway-{}-{}.1", command.get_name(), below.get_name());
            assert!(there(&name), "{name}");
        }
    }
    fs::write(home.path().join("file"), "").expect("written");
    assert!(home.fails("man --dir file/pages", 1).contains("file/pages"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_health_check_asks_the_server_that_runs() {
    let home = Home::with_alice();
    let _simulator = simulated(&home).await;
    assert!(home.fails("healthcheck", 7).contains("no server answers"));
    let mut child = piped(&home, "serve --listen 127.0.0.1:0");
    served_at(&mut child);
    let answers = ["healthcheck", "healthcheck --ready"].map(|line| home.ok(line));
    assert_eq!(answers, ["ok\n", "ready\n"]);
    assert_eq!(stopped(child).await, Some(0));
    home.fails("healthcheck --ready", 7);
}

#[test]
fn what_is_shipped_calls_commands_and_flags_that_there_are() {
    let mut program = Cli::command();
    program.build();
    let mut looked_at = 0;
    for path in ["Dockerfile", "contrib/codex-gateway.service", "docs/operations.md"] {
        for words in of_project(path).lines().filter_map(called) {
            let mut command = &program;
            for word in words.iter().filter(|word| !word.starts_with('-')) {
                command = command.find_subcommand(word).unwrap_or(command);
            }
            assert_ne!(command.get_name(), "gateway", "{path}: {words:?}");
            for flag in words.iter().filter_map(|word| word.strip_prefix("--")) {
                let mut known = command.get_arguments().filter_map(clap::Arg::get_long);
                assert!(known.any(|long| long == flag), "{path}: --{flag} of {words:?}");
            }
            looked_at += 1;
        }
    }
    assert!(looked_at >= 12, "only {looked_at} lines call a command");
}

/// nginx by the example, without its TLS, before a gateway.
struct Nginx {
    process: Child,
    url: String,
    _folder: TempDir,
}

impl Nginx {
    /// `None`: it is not installed.
    async fn before(gateway: &str) -> Option<Nginx> {
        let folder = TempDir::new().expect("a folder");
        let addr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|port| port.local_addr());
        let addr = addr.expect("a port");
        let example: String = of_project("contrib/nginx.conf")
            .replace("listen 443 ssl;", &format!("listen {addr};"))
            .replace("127.0.0.1:8080", gateway.trim_start_matches("http://"))
            .split_inclusive('\n')
            .filter(|line| !line.contains("ssl_certificate"))
            .collect();
        let at = folder.path().display();
        let settings = format!(
            "daemon off; master_process off; pid {at}/pid; error_log stderr; events {{}}\n\
             http {{ access_log off; client_body_temp_path {at}/1; proxy_temp_path {at}/2; fastcgi_temp_path {at}/3;\n\
             uwsgi_temp_path {at}/4; scgi_temp_path {at}/5;\n{example}}}\n"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, settings).expect("written");
        let mut programs = ["nginx", "/usr/sbin/nginx"].into_iter();
        let mut process = programs.find_map(|program| Command::new(program).arg("-c").arg(&file).spawn().ok())?;
        while TcpStream::connect(addr).await.is_err() {
            assert_eq!(process.try_wait().expect("its state"), None, "it runs");
            tokio::task::yield_now().await;
        }
        Some(Nginx {
            process,
            url: format!("http://{addr}"),
            _folder: folder,
        })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.process
            .kill()
            .and_then(|()| self.process.wait())
            .map(drop)
            .unwrap_or(());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_by_the_example_passes_calls_streams_and_websockets_on() {
    let harness = Harness::start().await;
    let Some(nginx) = Nginx::before(&harness.base_url()).await else {
        println!("nginx absent: its example is not tried");
        return;
    };
    let client = Client {
        base_url: nginx.url.clone(),
        ..harness.client.clone()
    };
    client.chat("Hello").await.expect(200);
    let streamed = client
        .post("/v1/responses", &response("Hello", &json!({"stream": true})))
        .await;
    assert!(streamed.expect(200).text().contains("response.completed"));
    let bearer = format!("Bearer {}", client.key);
    let opened = websocket::connect(&nginx.url, &[("authorization", &bearer)]).await;
    let (mut socket, _) = opened.expect("a WebSocket");
    let create = json!({"type": "response.create", "model": MODEL, "input": "Hello"});
    socket.say(create.to_string()).await;
    let end = socket.answer().await.pop().expect("a frame");
    assert_eq!(end["type"], "response.completed", "{end}");
    drop((socket, nginx));
    assert_eq!(harness.finish().await.exchanges.len(), 3);
}

/// The words behind the program's name, where a line calls it.
fn called(line: &str) -> Option<Vec<String>> {
    let line = line.split(" #").next().unwrap_or(line);
    let start = |start: &&str| line.trim_start().starts_with(*start);
    let starts = ["$ ", "ExecStart=", "HEALTHCHECK", "CMD"];
    starts.iter().find(|begins| start(begins))?;
    let words = line.split(|c: char| c.is_whitespace() || "\"',[]".contains(c));
    let mut words = words.filter(|word| !word.is_empty()).map(str::to_owned);
    let is_program = |word: &String| word == "gateway" || word.ends_with("/gateway") || word == "CMD";
    words.find(is_program)?;
    Some(words.filter(|word| word != "/gateway").collect())
}

/// The text of a file of the project.
fn of_project(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).expect(path)
}
