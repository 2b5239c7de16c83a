//! The `gateway` program: parse arguments, run the command, print why it failed.

use std::process::ExitCode;

use clap::Parser;
use codex_gateway::cli::{self, Cli, failure, output};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let (exit, text) = failure::describe(&error);
            output::tell(&format!("error: {text}\n"));
            ExitCode::from(exit as u8)
        }
    }
}

/// Help and versions are no failures; clap says which is which.
fn usage(error: &clap::Error) -> ExitCode {
    // Who closed the pipe has seen enough.
    error.print().unwrap_or(());
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}
