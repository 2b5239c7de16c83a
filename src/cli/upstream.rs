//! `gateway upstream simulate`: only the simulated upstream, for people who try things.

use std::net::SocketAddr;
use std::time::Duration;

use super::failure::not_listening;
use super::stop::StopSignals;
use super::{Global, block_on, output};
use crate::simulator::playwright::{Pace, standard};
use crate::simulator::{Options, Simulator};

/// Pieces of an answer at most: each is a step in memory.
const MAX_CHUNKS: u64 = 100_000;

/// Upstreams.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum UpstreamCommand {
    /// Run only the simulated upstream: OpenAI-shaped answers with usage, without a key and without a network
    Simulate(SimulateArgs),
}

/// How the simulated upstream answers.
#[derive(Clone, Debug, clap::Args)]
pub struct SimulateArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8081")]
    pub listen: SocketAddr,
    /// Silence before each answer, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub delay_ms: u64,
    /// Pieces of a streamed answer [default: one per token]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_CHUNKS))]
    pub chunks: Option<u64>,
    /// Silence between two events of a stream, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub chunk_delay_ms: u64,
}

impl SimulateArgs {
    fn pace(&self) -> Pace {
        Pace {
            delay: Duration::from_millis(self.delay_ms),
            chunks: self.chunks.and_then(|count| usize::try_from(count).ok()),
            chunk_delay: Duration::from_millis(self.chunk_delay_ms),
        }
    }
}

/// Runs a command about upstreams.
///
/// # Errors
/// The address cannot be listened on.
pub fn run(command: UpstreamCommand, global: &Global) -> anyhow::Result<()> {
    match command {
        UpstreamCommand::Simulate(args) => block_on(simulate(args, global)),
    }
}

/// Serves until a stop signal.
async fn simulate(args: SimulateArgs, global: &Global) -> anyhow::Result<()> {
    let mut signals = StopSignals::watch()?;
    // Nobody reads its log here.
    let options = Options { remember: 0 };
    let started = Simulator::start(args.listen, standard(args.pace()), options).await;
    let simulator = started.map_err(|error| not_listening(args.listen, &error, "upstream simulate"))?;
    let address = simulator.address();
    match global.json {
        true => {
            output::json(&serde_json::json!({"url": format!("http://{address}"), "base_url": simulator.base_url()}))?
        }
        false => drop(output::print(&format!("listening on http://{address}\n"))?),
    }
    global.say(&format!(
        "As an upstream: base_url = \"{}\". Ctrl-C stops it.",
        simulator.base_url()
    ));
    signals.any().await;
    simulator.stop().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: SimulateArgs,
    }

    #[test]
    fn what_is_typed_becomes_the_pace() {
        let line = ["x", "--delay-ms", "20", "--chunks", "3", "--chunk-delay-ms", "5"];
        let pace = Line::try_parse_from(line)
            .map(|line| line.args.pace())
            .expect("a good line");
        let expected = (Duration::from_millis(20), Some(3), Duration::from_millis(5));
        assert_eq!((pace.delay, pace.chunks, pace.chunk_delay), expected);
        assert!(Line::try_parse_from(["x", "--chunks", "0"]).is_err());
    }
}
