//! The `gateway` program: parse arguments, run the command, print why it failed.

use std::process::ExitCode;

use clap::Parser;
use clap::error::{ContextKind, ContextValue};
use codex_gateway::cli::{self, Cli, failure, output};
use codex_gateway::fail_point;
use codex_gateway::route::nearest;

/// A call allocates some hundred small values on several threads; the C library's allocator takes a tenth of its time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let _armed = fail_point::arm();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(error),
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
fn usage(mut error: clap::Error) -> ExitCode {
    if !is_near(&error) {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::Usage);
    }
    // Who closed the pipe has seen enough.
    error.print().unwrap_or(());
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Whether the flag that clap suggests may be what was meant; it also suggests what merely shares a few letters.
fn is_near(error: &clap::Error) -> bool {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let (typed, suggested) = (text(ContextKind::InvalidArg), text(ContextKind::SuggestedArg));
    suggested.is_empty() || nearest(typed, [suggested]).is_some()
}
