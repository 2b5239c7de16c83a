//! `gateway completions SHELL` and `gateway man`: what packages ship beside the program, made from the commands themselves.

use std::path::PathBuf;

use anyhow::Context;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Cli, language, output};
use crate::said;

/// `gateway completions`
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: Shell,
}

/// `gateway man`
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Write a page for every command into this folder, which is made; without it the page of `gateway` is printed
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

/// Prints what makes a shell complete commands and flags.
///
/// # Errors
/// It cannot be written.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "gateway", &mut script);
    output::print(&String::from_utf8(script)?).map(drop)
}

/// Prints the manual page, or writes all of them.
///
/// # Errors
/// They cannot be written.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let command = Cli::command();
    match &args.dir {
        None => {
            let mut page = Vec::new();
            Man::new(command).render(&mut page)?;
            output::print(&String::from_utf8(page)?).map(drop)
        }
        Some(folder) => write_all(command, folder.clone()),
    }
}

fn write_all(command: Command, folder: PathBuf) -> anyhow::Result<()> {
    let shown = folder.display();
    let failed = || {
        said!(
            language(),
            en: "the manual pages cannot be written to {shown}",
            zh: "无法将手册页写入 {shown}",
        )
    };
    std::fs::create_dir_all(&folder).with_context(failed)?;
    clap_mangen::generate_to(command, &folder).with_context(failed)
}
