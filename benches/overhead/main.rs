//! What the gateway costs: the same calls to an upstream directly, through nginx, through a bare pass-through
//! (`passthrough.rs`), and through the gateway with everything on, by turns, so that all have the same machine.
//!
//! `benches/run` runs it and says how. Every process but nginx is this program or the gateway: it starts itself as
//! `upstream` and as `passthrough`, and is the clients by itself. Linux only: it reads `/proc`.
#![expect(
    clippy::float_arithmetic,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures, not money"
)]

mod books;
mod crowd;
mod load;
mod passthrough;
mod process;
mod report;
mod scenario;
mod targets;
mod upstream;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The model of every call.
const MODEL: &str = "gpt-4.1-mini";

/// Measures what the gateway costs.
#[derive(Debug, Parser)]
struct Args {
    /// A short form: fewer and shorter turns, a smaller past
    #[arg(long)]
    short: bool,
    /// Turns of each target [default: 5, short: 3]
    #[arg(long)]
    turns: Option<usize>,
    /// Usage rows of the large database [default: 10000000, short: 100000]
    #[arg(long)]
    rows: Option<i64>,
    /// Idle streams of the part `streams10k` [default: 10000, short: 1000]
    #[arg(long)]
    streams: Option<usize>,
    /// Only the parts whose names begin so: json, stream, streams10k, past, memory, start, long
    #[arg(long)]
    only: Option<String>,
    /// `cargo bench` passes it
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    #[command(hide = true)]
    Upstream { listen: SocketAddr },
    #[command(hide = true)]
    Passthrough { listen: SocketAddr, upstream: SocketAddr },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let mut one_thread = tokio::runtime::Builder::new_current_thread();
    let one_thread = one_thread.enable_all().build().expect("a runtime");
    match args.role {
        Some(Role::Upstream { listen }) => one_thread.block_on(upstream::serve(listen)).expect("it serves"),
        Some(Role::Passthrough { listen, upstream }) => tokio::runtime::Runtime::new()
            .expect("a runtime")
            .block_on(passthrough::serve(listen, upstream))
            .expect("it serves"),
        None => return scenario::run(&args, &one_thread),
    }
    ExitCode::SUCCESS
}
