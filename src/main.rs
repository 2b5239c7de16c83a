//! The `gateway` program: parse arguments, run the command, print why it failed.

use std::process::ExitCode;

use clap::Parser;
use codex_gateway::cli::{self, Cli, failure};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli::run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let (exit, text) = failure::describe(&error);
            eprintln!("error: {text}");
            ExitCode::from(exit as u8)
        }
    }
}

/// Help and versions are no failures; clap says which is which.
fn usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    match (printed, u8::try_from(error.exit_code())) {
        (Ok(()), Ok(code)) => ExitCode::from(code),
        _ => ExitCode::FAILURE,
    }
}
