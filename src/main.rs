//! The `gateway` program: parse arguments, run the command, print why it failed.

use std::process::ExitCode;

use clap::Parser;
use codex_gateway::cli::{self, Cli, failure, mistyped, output};
use codex_gateway::fail_point;

/// A call allocates some hundred small values on several threads; the C library's allocator takes a tenth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let _armed = fail_point::arm();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(mistyped::tell(error)),
    };
    match cli::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let (exit, text) = failure::describe(&error);
            output::tell(&format!("{}{text}\n", failure::label(cli::language())));
            ExitCode::from(exit as u8)
        }
    }
}
