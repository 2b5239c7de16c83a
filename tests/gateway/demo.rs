//! The demo works with nothing set up, its bills can be done again by hand, and every command it prints runs.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::price::{nanos, round};

/// A place with no settings, no keys and no database, as on a newcomer's machine.
struct Machine {
    home: TempDir,
}

impl Machine {
    fn new() -> Machine {
        let home = TempDir::new().expect("a directory");
        for dir in ["runtime", "tmp", "work"] {
            std::fs::create_dir(home.path().join(dir)).expect("a directory");
        }
        Machine { home }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.home.path().join(name)
    }

    /// A program in this place, with this machine's environment and none of the surrounding one but the PATH.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command
            .env("HOME", self.home.path())
            .env("XDG_RUNTIME_DIR", self.path("runtime"));
        command.env("TMPDIR", self.path("tmp")).current_dir(self.path("work"));
        command.stdin(Stdio::null());
        command
    }

    fn gateway(&self, args: &[&str]) -> Output {
        let output = self.command(env!("CARGO_BIN_EXE_gateway")).args(args).output();
        output.expect("the program runs")
    }

    /// Runs a command as a person would who pastes it.
    fn pasted(&self, line: &str) -> Output {
        self.command("sh").args(["-c", line]).output().expect("a shell")
    }

    fn leftovers(&self) -> Vec<String> {
        let entries = ["runtime/codex-gateway", "tmp", "work"]
            .into_iter()
            .filter_map(|dir| self.path(dir).read_dir().ok());
        entries
            .flatten()
            .map(|entry| entry.expect("an entry").path().display().to_string())
            .collect()
    }
}

fn succeeded(output: &Output) -> String {
    let (out, err) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// A number of nano-dollars in a field.
fn money(value: &Value) -> i128 {
    nanos(value.as_str().expect("money is text"))
}

/// What a receipt says was charged, done again from the usage, the rates and the markup that it shows.
fn recomputed(receipt: &Value) -> i128 {
    let usage = |name: &str| receipt["usage"][name].as_u64().expect("tokens");
    let plain = usage("input_tokens") - usage("cached_tokens") - usage("cache_write_tokens");
    let shown = |class: &str| {
        let lines = receipt["lines"].as_array().expect("lines");
        lines
            .iter()
            .find(|line| line["class"] == class)
            .unwrap_or_else(|| panic!("no line for {class}"))
            .clone()
    };
    let mut sum = 0;
    for (class, quantity) in [("input", plain), ("output", usage("output_tokens"))] {
        let line = shown(class);
        assert_eq!(line["quantity"], quantity, "{class} of the usage is on its line");
        let millionths = i128::from(quantity) * money(&line["rate"]);
        assert_eq!(
            round(millionths, 1_000_000),
            money(&line["amount"]),
            "{class}: quantity × rate = amount"
        );
        sum += millionths;
    }
    assert_eq!(receipt["lines"].as_array().map(Vec::len), Some(2), "no other line");
    assert_eq!(receipt["uplift"], Value::Null);
    round(sum * money(&receipt["markup"]), 1_000_000 * 1_000_000_000)
}

fn check_bills(shown: &Value) {
    let mut balance = money(&shown["opening_balance"]);
    assert_eq!(balance, 5_000_000_000);
    let calls = shown["calls"].as_array().expect("calls");
    let streamed: Vec<_> = calls.iter().map(|call| call["streamed"] == true).collect();
    assert_eq!(streamed, [false, true], "one plain and one streamed call");
    for call in calls {
        let receipt = &call["receipt"];
        assert!(
            call["answer"]
                .as_str()
                .is_some_and(|answer| answer.contains("simulated answer")),
            "{call}"
        );
        let charge = money(&receipt["charge"]);
        assert!(charge > 0);
        assert_eq!(recomputed(receipt), charge, "{receipt}");
        balance -= charge;
        assert_eq!(money(&receipt["balance_after"]), balance);
    }
    assert_eq!(money(&shown["balance"]), balance, "5 − Σ = balance");
    assert_eq!(money(&shown["held"]), 0);
}

#[test]
fn the_bills_of_the_demo_can_be_done_again_by_hand() {
    let machine = Machine::new();
    let shown: Value = serde_json::from_str(&succeeded(&machine.gateway(&["demo", "--json"]))).expect("one document");
    check_bills(&shown);
    assert_eq!(machine.leftovers(), [""; 0], "nothing stays behind");
}

#[test]
fn people_see_the_same_sum_and_the_command_that_goes_on() {
    let machine = Machine::new();
    let text = succeeded(&machine.gateway(&["demo"]));
    let sum = text
        .lines()
        .find_map(|line| line.strip_prefix("Balance  "))
        .expect("the sum");
    let (parts, balance) = sum.split_once(" = ").expect("a sum");
    let amount = |text: &str| nanos(text.trim_start_matches('$'));
    let parts: Vec<i128> = parts.split(" − ").map(amount).collect();
    assert_eq!(parts[0] - parts[1] - parts[2], amount(balance));
    let next = text.lines().last().expect("a last line").trim();
    assert_eq!(next, format!("{} demo --serve", env!("CARGO_BIN_EXE_gateway")));
}

/// A gateway that goes on serving in a process of its own.
struct Serving<'a> {
    machine: &'a Machine,
    child: Child,
    /// What it printed until it served.
    lines: Vec<String>,
}

impl<'a> Serving<'a> {
    /// Starts a line as pasted, and reads what it prints up to the line that begins with `last`.
    fn start(machine: &'a Machine, line: &str, last: &str) -> Serving<'a> {
        let mut shell = machine.command("sh");
        let child = shell
            .args(["-c", &format!("exec {line}")])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn();
        let mut child = child.expect("it starts");
        let mut lines = Vec::new();
        for line in BufReader::new(child.stdout.take().expect("a pipe")).lines() {
            let line = line.expect("text");
            lines.push(line.trim().to_owned());
            if line.starts_with(last) {
                break;
            }
        }
        Serving { machine, child, lines }
    }

    /// The commands among what it printed.
    fn commands(&self) -> Vec<String> {
        let is_command = |line: &&String| line.starts_with("curl ") || line.starts_with(env!("CARGO_BIN_EXE_gateway"));
        self.lines.iter().filter(is_command).cloned().collect()
    }

    /// Stops it as a service manager does, and insists on a clean end.
    fn stop(mut self) {
        let killed = self.machine.pasted(&format!("kill -TERM {}", self.child.id()));
        succeeded(&killed);
        let status = self.child.wait().expect("it ends");
        assert!(status.success(), "{status}");
    }
}

impl Drop for Serving<'_> {
    /// A test that failed leaves no process behind; one that stopped it has nothing left to kill.
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            self.child.kill().expect("it can be killed");
        }
    }
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777
}

#[test]
fn every_command_that_the_serving_demo_prints_runs_as_printed() {
    let machine = Machine::new();
    let shown: Value = serde_json::from_str(&succeeded(&machine.gateway(&["demo", "--json"]))).expect("one document");
    let next = shown["next"].as_str().expect("a command");
    let demo = Serving::start(&machine, next, "Ctrl-C");
    let note = machine.path("runtime/codex-gateway/demo.json");
    assert_eq!(mode(&note), 0o600);
    let commands = demo.commands();
    let (codex, others): (Vec<_>, Vec<_>) = commands.iter().partition(|line| line.contains(" codex"));
    assert!(!codex.is_empty(), "Codex has its own test with the real program");
    assert!(
        others.iter().filter(|line| line.starts_with("curl ")).count() >= 2,
        "{others:?}"
    );
    for line in others {
        let output = succeeded(&machine.pasted(line));
        if line.starts_with("curl ") {
            assert!(output.contains("simulated"), "{line}\n{output}");
            assert!(!output.contains("\"error\":{"), "{line}\n{output}");
        }
    }
    check_second(&machine, &demo);
    demo.stop();
    assert!(!note.exists(), "the note goes with the demo");
    assert_eq!(machine.leftovers(), [""; 0], "nothing stays behind");
}

/// A second demo says that one runs, where, and what to do; it takes nothing away from the first.
fn check_second(machine: &Machine, demo: &Serving<'_>) {
    // Should it serve after all, it is not waited for.
    let line = format!("timeout 30 {} demo --serve", env!("CARGO_BIN_EXE_gateway"));
    let second = machine.pasted(&line);
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(6), "{said}");
    let url = demo
        .lines
        .iter()
        .find_map(|line| line.strip_prefix("listening on "))
        .expect("an address");
    assert!(
        said.contains(url) && said.contains(&format!("kill {}", demo.child.id())),
        "{said}"
    );
    assert!(machine.path("runtime/codex-gateway/demo.json").exists());
}

#[test]
fn with_json_the_serving_demo_is_one_document_with_its_key() {
    let machine = Machine::new();
    let line = format!("{} demo --serve --json", env!("CARGO_BIN_EXE_gateway"));
    // Printed with indentation: the last line is the only one with nothing before its brace.
    let demo = Serving::start(&machine, &line, "}");
    let shown: Value = serde_json::from_str(&demo.lines.join("\n")).expect("one document");
    check_bills(&shown);
    let (base, key) = (&shown["serving"]["base_url"], &shown["serving"]["key"]);
    let asked = format!(
        "curl -sS {}/models -H 'Authorization: Bearer {}'",
        base.as_str().expect("a URL"),
        key.as_str().expect("a key")
    );
    assert!(succeeded(&machine.pasted(&asked)).contains("gpt-6.1-sol"));
    demo.stop();
}

#[test]
fn the_simulated_upstream_alone_serves_where_it_says() {
    let machine = Machine::new();
    let line = format!(
        "{} upstream simulate --listen 127.0.0.1:0 --chunks 3",
        env!("CARGO_BIN_EXE_gateway")
    );
    let simulator = Serving::start(&machine, &line, "listening on");
    let url = simulator.lines[0]
        .strip_prefix("listening on ")
        .expect("an address")
        .to_owned();
    let asked =
        format!(r#"curl -sS {url}/v1/chat/completions -d '{{"model":"gpt-6.1-sol","stream":true,"messages":[]}}'"#);
    let answer = succeeded(&machine.pasted(&asked));
    assert_eq!(
        answer.matches("\"content\":").count(),
        4,
        "the role and three pieces: {answer}"
    );
    assert!(answer.ends_with("data: [DONE]\n\n"));
    simulator.stop();
}
