//! The parts of a run, and what is made of their figures.

use std::cell::{Cell, RefCell};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::task::LocalSet;

use crate::Args;
use crate::books::{self, Past};
use crate::crowd::{self, Crowd};
use crate::load::{self, Ask, Client, Load, Seen};
use crate::process::{self, Process, Syncs};
use crate::report::{Goals, Table, median, quantile};
use crate::targets::{self, Gateway, Place};

/// Users of the small database, a key each.
const USERS: usize = 10;

/// The past of the large one, but for its calls.
const MANY_USERS: i64 = 10_000;
const MANY_KEYS: i64 = 100_000;

/// Keys that call it.
const CALLING: i64 = 1_000;

/// Streams that are held open for their memory.
const HELD: usize = 1_000;

/// Descriptors: each stream has two here and two in the gateway.
const DESCRIPTORS: u64 = 65_536;

/// One turn of one target.
#[derive(Debug)]
struct Turn {
    /// Calls answered.
    calls: f64,
    /// Seconds they took on the clock.
    window: f64,
    /// Seconds of the processor they took of the target.
    cpu: f64,
    chunks: f64,
    latency: (f64, f64),
    first: (f64, f64),
    syncs: f64,
    /// MiB.
    rss: f64,
    /// Seconds that the disk took for an fsync just before.
    fsync: f64,
}

/// A target, its turns in a scenario included.
struct Target<'a> {
    name: &'static str,
    process: &'a Process,
    keys: Rc<[String]>,
    syncs: Option<&'a Syncs>,
}

/// What a scenario is.
#[derive(Clone, Copy)]
struct Scenario {
    name: &'static str,
    connections: usize,
    ask: Ask,
    warm_up: Duration,
    window: Duration,
}

fn json(name: &'static str, connections: usize, short: bool) -> Scenario {
    Scenario {
        name,
        connections,
        ask: Ask::Json,
        warm_up: Duration::from_millis(500),
        window: Duration::from_millis(if short { 1_500 } else { 3_000 }),
    }
}

/// 100 chunks, 10 ms apart: a second each.
fn streams(name: &'static str, connections: usize, short: bool) -> Scenario {
    Scenario {
        name,
        connections,
        ask: Ask::Stream {
            chunks: 100,
            pause: Duration::from_millis(10),
        },
        warm_up: Duration::from_millis(1_500),
        window: Duration::from_millis(if short { 2_500 } else { 5_000 }),
    }
}

/// The turns of each target.
struct Measured(Vec<(&'static str, Vec<Turn>)>);

impl Measured {
    fn of(&self, name: &str) -> Option<&[Turn]> {
        let (_, turns) = self.0.iter().find(|(target, _)| *target == name)?;
        Some(turns)
    }

    /// The median of a figure.
    fn figure(&self, name: &str, figure: impl Fn(&Turn) -> f64) -> f64 {
        median(
            &mut self
                .of(name)
                .expect("it was measured")
                .iter()
                .map(figure)
                .collect::<Vec<_>>(),
        )
    }

    /// The median over the turns of how much larger a figure is of one than of the other.
    fn ratio(&self, name: &str, of: &str, figure: impl Fn(&Turn) -> f64) -> f64 {
        self.compared(name, of, |one, other| figure(one) / figure(other))
    }

    fn added(&self, name: &str, to: &str, figure: impl Fn(&Turn) -> f64) -> f64 {
        self.compared(name, to, |one, other| figure(one) - figure(other))
    }

    fn compared(&self, name: &str, to: &str, compare: impl Fn(&Turn, &Turn) -> f64) -> f64 {
        let (one, other) = (self.of(name).expect("measured"), self.of(to).expect("measured"));
        median(
            &mut one
                .iter()
                .zip(other)
                .map(|(one, other)| compare(one, other))
                .collect::<Vec<_>>(),
        )
    }
}

/// Every target has its turn, again and again, every other time in the opposite order.
fn measure(scenario: Scenario, targets: &[Target<'_>], bench: &Bench<'_>) -> Measured {
    let mut measured = Measured(targets.iter().map(|target| (target.name, Vec::new())).collect());
    for turn in 0..bench.turns {
        for at in 0..targets.len() {
            let at = if turn % 2 == 0 { at } else { targets.len() - 1 - at };
            let taken = take_turn(scenario, &targets[at], bench);
            measured.0[at].1.push(taken);
        }
    }
    eprintln!("  {}: measured", scenario.name);
    measured
}

fn take_turn(scenario: Scenario, target: &Target<'_>, bench: &Bench<'_>) -> Turn {
    let (_, fsync) = process::disk(bench.place.path());
    let load = Load {
        to: target.process.addr,
        keys: Rc::clone(&target.keys),
        connections: scenario.connections,
        ask: scenario.ask,
        warm_up: scenario.warm_up,
        window: scenario.window,
    };
    let sample = || {
        let syncs = target.syncs.map_or(0.0, Syncs::so_far);
        (Instant::now(), target.process.cpu(), syncs, target.process.rss())
    };
    let (seen, before, after) = bench.runtime.block_on(load::run(&load, sample));
    let Seen {
        calls,
        chunks,
        mut latency,
        mut first,
    } = seen;
    Turn {
        calls: calls as f64,
        window: (after.0 - before.0).as_secs_f64(),
        cpu: after.1 - before.1,
        chunks: chunks as f64,
        latency: (quantile(&mut latency, 0.5), quantile(&mut latency, 0.99)),
        first: (quantile(&mut first, 0.5), quantile(&mut first, 0.99)),
        syncs: after.2 - before.2,
        rss: after.3,
        fsync,
    }
}

fn rate(turn: &Turn) -> f64 {
    turn.calls / turn.window
}

fn cpu_per_call(turn: &Turn) -> f64 {
    turn.cpu / turn.calls * 1e6
}

fn cpu_per_chunk(turn: &Turn) -> f64 {
    turn.cpu / turn.chunks * 1e6
}

/// Runs what was asked for. A run against a pass-through that is slow itself says nothing, and fails.
pub fn run(args: &Args, runtime: &Runtime) -> ExitCode {
    let most_idle = raise_descriptors();
    let place = Place::new();
    let (disk, fsync) = process::disk(place.path());
    println!("{} cores, {disk}, fsync of 4 KiB: {:.0} µs", cores(), fsync * 1e6);
    println!();
    let bench = Bench {
        turns: args.turns.unwrap_or(if args.short { 3 } else { 5 }),
        rows: args.rows.unwrap_or(if args.short { 100_000 } else { 10_000_000 }),
        short: args.short,
        upstream: targets::upstream(&place),
        place,
        runtime,
        slow_reference: Cell::new(false),
    };
    let mut goals = Goals::new();
    let wanted = |part: &str| args.only.as_ref().is_none_or(|only| part.starts_with(only.as_str()));
    if wanted("json") || wanted("stream") || wanted("memory") || wanted("long") {
        bench.calls(&mut goals, &wanted);
    }
    if wanted("streams10k") {
        let seconds = |long, short| Duration::from_secs(if args.short { short } else { long });
        let crowd = Crowd {
            idle: args
                .streams
                .unwrap_or(if args.short { 1_000 } else { 10_000 })
                .min(most_idle),
            window: seconds(60, 10),
            open: seconds(150, 45),
        };
        crowd::run(crowd, &bench.place, &bench.upstream, runtime, &mut goals);
    }
    if wanted("past") || wanted("start") {
        bench.past(&mut goals, &wanted);
    }
    goals.print();
    if bench.slow_reference.get() {
        eprintln!("the pass-through is slower than 0.3 × nginx: its ratios mean nothing");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

struct Bench<'a> {
    turns: usize,
    rows: i64,
    short: bool,
    upstream: Process,
    place: Place,
    runtime: &'a Runtime,
    slow_reference: Cell<bool>,
}

impl Bench<'_> {
    /// The gateway beside the others.
    fn calls(&self, goals: &mut Goals, wanted: &dyn Fn(&str) -> bool) {
        let upstream = self.upstream.addr;
        let gateway = Gateway::new(&self.place, "small", upstream);
        let keys: Rc<[String]> = (0..USERS)
            .map(|user| gateway.user_with_key(&format!("user{user}")))
            .collect();
        let syncs = Syncs::new(self.place.path());
        let (serving, passthrough) = (gateway.serve(Some(&syncs)), targets::passthrough(&self.place, upstream));
        let nginx = targets::nginx(&self.place, upstream);
        assert!(
            nginx.is_some() || self.short,
            "nginx is not installed; the short form does without it"
        );
        let target = |name, process, syncs| Target {
            name,
            process,
            keys: Rc::clone(&keys),
            syncs,
        };
        let mut targets = vec![target("upstream itself", &self.upstream, None)];
        targets.extend(nginx.as_ref().map(|nginx| target("nginx", nginx, None)));
        targets.push(target("pass-through", &passthrough, None));
        targets.push(target("gateway", &serving, Some(&syncs)));

        if wanted("memory") {
            self.memory(goals, &passthrough, &serving, &keys);
            self.tokenizer(goals);
        }
        if wanted("json") {
            self.json(goals, &targets);
        }
        if wanted("stream") {
            self.streams(goals, &targets);
        }
        if wanted("long") {
            self.long(goals, &targets);
        }
        serving.stop();
        let verified = gateway.command(&["ledger", "verify"]);
        println!("The books after it: {}", verified.trim().replace('\n', "; "));
        println!();
    }

    fn json(&self, goals: &mut Goals, targets: &[Target<'_>]) {
        println!("### Plain answers\n");
        let mut table = Table::new(&[
            "calls at once",
            "target",
            "calls/s",
            "p50 µs",
            "p99 µs",
            "added p50 µs",
            "added p99 µs",
            "CPU µs/call",
            "× pass-through",
            "fsyncs/call",
            "RSS MiB",
        ]);
        for scenario in [
            json("1", 1, self.short),
            json("64", 64, self.short),
            json("256", 256, self.short),
        ] {
            let measured = measure(scenario, targets, self);
            for (name, _) in &measured.0 {
                let of = |figure: &dyn Fn(&Turn) -> f64| measured.figure(name, figure);
                let added = |figure: &dyn Fn(&Turn) -> f64| measured.added(name, "upstream itself", figure);
                let of_target = *name != "upstream itself";
                let cell = |text: String| if of_target { text } else { String::new() };
                table.row(&[
                    scenario.name.to_owned(),
                    (*name).to_owned(),
                    format!("{:.0}", of(&rate)),
                    format!("{:.0}", of(&|turn| turn.latency.0 * 1e6)),
                    format!("{:.0}", of(&|turn| turn.latency.1 * 1e6)),
                    cell(format!("{:.0}", added(&|turn| turn.latency.0 * 1e6))),
                    cell(format!("{:.0}", added(&|turn| turn.latency.1 * 1e6))),
                    cell(format!("{:.1}", of(&cpu_per_call))),
                    cell(format!("{:.2}", measured.ratio(name, "pass-through", cpu_per_call))),
                    if *name == "gateway" {
                        format!("{:.3}", of(&|turn| turn.syncs / turn.calls))
                    } else {
                        String::new()
                    },
                    format!("{:.0}", of(&|turn| turn.rss)),
                ]);
            }
            judge_json(goals, scenario, &measured);
            let of_nginx = measured
                .of("nginx")
                .map(|_| measured.ratio("pass-through", "nginx", rate));
            if of_nginx.is_some_and(|ratio| ratio < 0.3) {
                self.slow_reference.set(true);
            }
        }
        table.print();
    }

    fn streams(&self, goals: &mut Goals, targets: &[Target<'_>]) {
        println!("### Streams of 100 chunks, 10 ms apart\n");
        let mut table = Table::new(&[
            "streams",
            "target",
            "chunks/s",
            "first byte p50 ms",
            "p99 ms",
            "CPU µs/chunk",
            "× pass-through",
            "RSS MiB",
        ]);
        for scenario in [streams("50", 50, self.short), streams("200", 200, self.short)] {
            let measured = measure(scenario, targets, self);
            for (name, _) in &measured.0 {
                let of = |figure: &dyn Fn(&Turn) -> f64| measured.figure(name, figure);
                table.row(&[
                    scenario.name.to_owned(),
                    (*name).to_owned(),
                    format!("{:.0}", of(&|turn| turn.chunks / turn.window)),
                    format!("{:.2}", of(&|turn| turn.first.0 * 1e3)),
                    format!("{:.2}", of(&|turn| turn.first.1 * 1e3)),
                    format!("{:.1}", of(&cpu_per_chunk)),
                    format!("{:.2}", measured.ratio(name, "pass-through", cpu_per_chunk)),
                    format!("{:.0}", of(&|turn| turn.rss)),
                ]);
            }
            let first = measured.added("gateway", "pass-through", |turn| turn.first.0 * 1e3);
            let what = format!(
                "first byte of a stream, added p50 over the pass-through, {} streams",
                scenario.name
            );
            let fsync = measured.figure("gateway", |turn| turn.fsync * 1e3);
            goals.at_most(&what, first, 1.0 + fsync, None, "ms");
            if scenario.connections == 200 {
                let cpu = measured.ratio("gateway", "pass-through", cpu_per_chunk);
                goals.at_most("CPU per chunk × pass-through, 200 streams", cpu, 1.25, Some(1.1), "×");
            }
        }
        table.print();
    }

    /// Idle, and with streams held open; the gateway with the tokenizer, too.
    fn memory(&self, goals: &mut Goals, bare: &Process, serving: &Process, keys: &Rc<[String]>) {
        println!("### Memory\n");
        let mut table = Table::new(&[
            "target",
            "idle after one call MiB",
            "with 1,000 streams held MiB",
            "a stream KiB",
        ]);
        for (name, process) in [("pass-through", bare), ("gateway", serving)] {
            self.runtime.block_on(once(process, &keys[0], Ask::Json, None));
            let idle = process.rss();
            let held = self
                .runtime
                .block_on(LocalSet::new().run_until(hold_streams(process, keys)));
            let each = (held - idle) * 1024.0 / HELD as f64;
            table.row(&[
                name.to_owned(),
                format!("{idle:.1}"),
                format!("{held:.1}"),
                format!("{each:.1}"),
            ]);
            if name == "gateway" {
                goals.at_most("RSS idle, without the tokenizer", idle, 40.0, None, "MiB");
                goals.at_most("RSS per stream held", each, 64.0, None, "KiB");
            }
        }
        table.print();
    }

    /// A gateway that had to count tokens, because a balance does not pay for them by their bytes.
    fn tokenizer(&self, goals: &mut Goals) {
        let gateway = Gateway::new(&self.place, "poor", self.upstream.addr);
        let key = gateway.user_with_key_and("poor", "0.0018");
        let serving = gateway.serve(None);
        self.runtime.block_on(once(&serving, &key, Ask::Json, None));
        let rss = serving.rss();
        serving.stop();
        println!("Idle with the tokenizer: {rss:.1} MiB.\n");
        goals.at_most("RSS idle, with the tokenizer", rss, 110.0, None, "MiB");
    }

    /// Long streams and large bodies.
    fn long(&self, goals: &mut Goals, targets: &[Target<'_>]) {
        println!("### Long streams, large bodies\n");
        let mut table = Table::new(&[
            "target",
            "1,000 chunks, CPU µs/chunk",
            "10,000 chunks",
            "RSS added MiB",
            "32 MiB body, ms",
            "peak added MiB",
        ]);
        for target in &targets[1..] {
            let of = |chunks: u64| {
                let ask = Ask::Stream {
                    chunks,
                    pause: Duration::ZERO,
                };
                let before = target.process.cpu();
                for _ in 0..100_000 / chunks {
                    self.runtime.block_on(once(target.process, &target.keys[0], ask, None));
                }
                (target.process.cpu() - before) * 1e6 / 100_000.0
            };
            let (short, rss) = (of(1_000), target.process.rss());
            let (long, added) = (of(10_000), target.process.rss() - rss);
            let body = load::large(32 << 20);
            target.process.forget_peak();
            let (before, began) = (target.process.rss(), Instant::now());
            self.runtime
                .block_on(once(target.process, &target.keys[0], Ask::Json, Some(body)));
            let (took, peak) = (began.elapsed(), target.process.peak() - before);
            table.row(&[
                target.name.to_owned(),
                format!("{short:.2}"),
                format!("{long:.2}"),
                format!("{added:.1}"),
                format!("{:.0}", took.as_secs_f64() * 1e3),
                format!("{peak:.1}"),
            ]);
            if target.name == "gateway" {
                goals.at_most("a chunk of 10,000 against one of 1,000", long / short, 1.1, None, "×");
                goals.at_most("peak memory for a body of 32 MiB", peak, 80.0, None, "MiB");
            }
        }
        table.print();
    }

    /// A database with a past beside one without.
    fn past(&self, goals: &mut Goals, wanted: &dyn Fn(&str) -> bool) {
        let past = Past {
            users: MANY_USERS,
            keys: MANY_KEYS,
            calls: if wanted("past") { self.rows } else { 10 },
        };
        println!(
            "### A past of {} calls, {} keys, {} users\n",
            past.calls, past.keys, past.users
        );
        let new = |name, past: Past, some: i64| {
            let gateway = Gateway::new(&self.place, name, self.upstream.addr);
            gateway.user_with_key("first");
            let keys: Rc<[String]> = books::write(gateway.database(), past, some).into();
            (gateway, keys)
        };
        let (large, many) = new("large", past, CALLING);
        if wanted("start") {
            let mut times: Vec<f64> = (0..5).map(|_| self.start(&large, &many[0])).collect();
            let start = median(&mut times) * 1e3;
            goals.at_most("start to first answer", start, 100.0, Some(50.0), "ms");
        }
        if !wanted("past") {
            return;
        }
        let ten = Past {
            users: 10,
            keys: 10,
            calls: 10,
        };
        let (small, few) = new("ten", ten, 10);
        let (large_serves, small_serves) = (large.serve(None), small.serve(None));
        let target = |name, process, keys: &Rc<[String]>| Target {
            name,
            process,
            keys: Rc::clone(keys),
            syncs: None,
        };
        let targets = [
            target("gateway", &small_serves, &few),
            target("gateway with a past", &large_serves, &many),
        ];
        let measured = measure(json("64", 64, self.short), &targets, self);
        let mut table = Table::new(&["target", "calls/s", "p50 µs", "CPU µs/call", "RSS MiB"]);
        for (name, _) in &measured.0 {
            table.row(&[
                (*name).to_owned(),
                format!("{:.0}", measured.figure(name, rate)),
                format!("{:.0}", measured.figure(name, |turn| turn.latency.0 * 1e6)),
                format!("{:.1}", measured.figure(name, cpu_per_call)),
                format!("{:.0}", measured.figure(name, |turn| turn.rss)),
            ]);
        }
        table.print();
        let cpu = measured.ratio("gateway with a past", "gateway", cpu_per_call);
        goals.at_most("CPU per call with a past", cpu, 1.1, None, "×");
        drop((large_serves, small_serves));
        let mut table = Table::new(&["report", "ms"]);
        for report in [
            &["usage", "--since", "24h"][..],
            &["usage"],
            &["usage", "--user", "user7"],
            &["request", "list"],
        ] {
            let began = Instant::now();
            large.command(report);
            let took = began.elapsed().as_secs_f64() * 1e3;
            table.row(&[format!("`gateway {}`", report.join(" ")), format!("{took:.0}")]);
        }
        table.print();
    }

    /// Seconds from the start of the process to its first answer.
    fn start(&self, gateway: &Gateway, key: &str) -> f64 {
        let began = Instant::now();
        let serving = gateway.serve(None);
        self.runtime.block_on(once(&serving, key, Ask::Json, None));
        let took = began.elapsed().as_secs_f64();
        serving.stop();
        took
    }
}

fn judge_json(goals: &mut Goals, scenario: Scenario, measured: &Measured) {
    let at = |what: &str| format!("{what}, {} at once", scenario.connections);
    if scenario.connections == 1 {
        let added = measured.added("gateway", "pass-through", |turn| turn.latency.0 * 1e6);
        let fsyncs = 2.0 * measured.figure("gateway", |turn| turn.fsync * 1e6);
        goals.at_most(
            &at("added p50 over the pass-through"),
            added,
            fsyncs + 200.0,
            Some(fsyncs + 100.0),
            "µs",
        );
        return;
    }
    let cpu = measured.ratio("gateway", "pass-through", cpu_per_call);
    let throughput = measured.ratio("gateway", "pass-through", rate);
    if scenario.connections == 64 {
        goals.at_most(&at("CPU per call × pass-through"), cpu, 2.6, Some(2.0), "×");
        let syncs = measured.figure("gateway", |turn| turn.syncs / turn.calls);
        goals.at_most(&at("fsyncs per call"), syncs, 0.15, Some(0.06), "");
    }
    goals.at_least(&at("throughput × pass-through"), throughput, 0.35, Some(0.5), "×");
}

/// Holds streams open, and tells how much memory the process takes meanwhile, in MiB.
async fn hold_streams(process: &Process, keys: &Rc<[String]>) -> f64 {
    let pause = Duration::from_secs(4);
    let held = Ask::Stream { chunks: 1, pause };
    let clients: Vec<_> = (0..HELD)
        .map(|number| {
            let (to, key) = (process.addr, keys[number % keys.len()].clone());
            tokio::task::spawn_local(async move {
                let mut client = Client::connect(to, &key, held).await;
                client.call(&RefCell::default(), &Cell::new(false)).await;
            })
        })
        .collect();
    tokio::time::sleep(pause / 2).await;
    let rss = process.rss();
    for client in clients {
        client.await.expect("no stream fails");
    }
    rss
}

/// One call on a connection of its own.
async fn once(process: &Process, key: &str, ask: Ask, body: Option<bytes::Bytes>) {
    LocalSet::new()
        .run_until(async {
            let mut client = Client::connect(process.addr, key, ask).await;
            if let Some(body) = body {
                client = client.with_body(body);
            }
            client.call(&RefCell::default(), &Cell::new(false)).await;
        })
        .await;
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// As many descriptors as the streams need, for us and for what we start; beyond the most there may be, if we may. Returns
/// how many idle streams they suffice for: each takes the gateway two, which keeps some for itself and for the busy ones.
fn raise_descriptors() -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let short = |limit: Option<u64>| limit.is_some_and(|limit| limit < DESCRIPTORS);
    let raised = |current, maximum| setrlimit(Resource::Nofile, Rlimit { current, maximum });
    let most = if short(maximum) { Some(DESCRIPTORS) } else { maximum };
    if short(current) {
        raised(Some(DESCRIPTORS), most)
            .or_else(|_| raised(maximum, maximum))
            .expect("below the most there may be");
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS);
    usize::try_from(limit.saturating_sub(2_000) / 2).expect("few")
}
