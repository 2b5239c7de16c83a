//! `gateway top`: the status of the running server, each second. On a terminal it takes the screen, and gives it back
//! however it ends; elsewhere it prints one document after the other.

use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::time::Duration;

use anyhow::Context;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::sync::oneshot;
use tokio::time::{MissedTickBehavior, interval};

use super::output::Pipe;
use super::status::{Asker, text};
use super::stop::StopSignals;
use super::{Global, block_on, output};
use crate::time::now;

/// How often the server is asked.
const EACH: Duration = Duration::from_secs(1);

/// The other screen, without a cursor; and back.
const TAKE: &str = "\x1b[?1049h\x1b[?25l";
const GIVE_BACK: &str = "\x1b[?25h\x1b[?1049l";

/// Ctrl-C, as a key.
const INTERRUPT: u8 = 3;

/// What the running server does, each second.
#[derive(Debug, clap::Args)]
pub struct TopArgs {}

/// Asks the server again and again, until somebody has seen enough.
///
/// # Errors
/// No server runs, or it has ended: exit code 7.
pub fn run(_: &TopArgs, global: &Global) -> anyhow::Result<()> {
    block_on(async {
        let asker = Asker::new(global)?;
        match !global.json && stdout().is_terminal() {
            true => on_screen(&asker).await,
            false => in_lines(&asker, global.json).await,
        }
    })
}

/// One document a line, or one text after the other.
async fn in_lines(asker: &Asker, json: bool) -> anyhow::Result<()> {
    let mut signals = StopSignals::watch()?;
    let mut each = interval(EACH);
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // The server may take its time.
        let asking = async {
            each.tick().await;
            asker.ask().await
        };
        let status = tokio::select! {
            status = asking => status?,
            () = signals.any() => return Ok(()),
        };
        let shown = match json {
            true => format!("{}\n", serde_json::to_string(&status)?),
            false => format!("{}\n\n", text(&status, now())),
        };
        if output::print(&shown)? == Pipe::Closed {
            return Ok(());
        }
    }
}

async fn on_screen(asker: &Asker) -> anyhow::Result<()> {
    // Where there is no server, the screen stays as it is.
    let mut status = asker.ask().await?;
    let mut signals = StopSignals::watch()?;
    let mut keys = Keys::open()?;
    let screen = Screen::take()?;
    let mut each = interval(EACH);
    each.set_missed_tick_behavior(MissedTickBehavior::Delay);
    each.tick().await;
    loop {
        screen.show(&text(&status, now()))?;
        // The server may take its time.
        let asking = async {
            each.tick().await;
            asker.ask().await
        };
        status = tokio::select! {
            status = asking => status?,
            () = keys.until_enough() => return Ok(()),
            () = signals.any() => return Ok(()),
        };
    }
}

/// The keys that are pressed; each at once and unseen. As before when this is dropped.
struct Keys {
    before: Option<Termios>,
    enough: oneshot::Receiver<()>,
    /// Whoever waits without keys waits for ever.
    _none: Option<oneshot::Sender<()>>,
}

impl Keys {
    fn open() -> anyhow::Result<Keys> {
        let (tell, enough) = oneshot::channel();
        if !stdin().is_terminal() {
            return Ok(Keys {
                before: None,
                enough,
                _none: Some(tell),
            });
        }
        let before = termios::tcgetattr(stdin()).context("the terminal cannot be read")?;
        let mut raw = before.clone();
        raw.local_modes -= LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG;
        termios::tcsetattr(stdin(), OptionalActions::Now, &raw).context("the terminal cannot be set")?;
        // It waits for a key, also when nobody asks any more, and ends with the process.
        std::thread::spawn(move || {
            let enough = |key: std::io::Result<u8>| matches!(key, Ok(b'q' | b'Q' | INTERRUPT) | Err(_));
            stdin().lock().bytes().any(enough);
            drop(tell);
        });
        Ok(Keys {
            before: Some(before),
            enough,
            _none: None,
        })
    }

    /// Waits for `q` or Ctrl-C, or until there are no more keys.
    async fn until_enough(&mut self) {
        // Nothing is sent: it is over when the other end is gone.
        (&mut self.enough).await.unwrap_or(());
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // A terminal that is gone needs no setting.
            termios::tcsetattr(stdin(), OptionalActions::Now, before).unwrap_or(());
        }
    }
}

/// The other screen; the one before comes back when this is dropped.
struct Screen;

impl Screen {
    fn take() -> anyhow::Result<Screen> {
        output::print(TAKE)?;
        Ok(Screen)
    }

    /// Shows as many lines, and as much of each, as there is room for.
    fn show(&self, text: &str) -> anyhow::Result<()> {
        // Some terminals do not know how large they are.
        let size = termios::tcgetwinsize(stdout()).map(|size| (size.ws_col, size.ws_row));
        let (columns, rows) = size
            .ok()
            .filter(|(columns, rows)| *columns > 0 && *rows > 0)
            .unwrap_or((80, 24));
        let lines = text.lines().take(usize::from(rows).saturating_sub(1));
        let cut = |line: &str| line.chars().take(usize::from(columns)).collect::<String>();
        let shown: String = lines.map(|line| format!("{}\x1b[K\r\n", cut(line))).collect();
        output::print(&format!("\x1b[H{shown}\x1b[J")).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = stdout().lock();
        // A terminal that is gone needs no screen.
        out.write_all(GIVE_BACK.as_bytes())
            .and_then(|()| out.flush())
            .unwrap_or(());
    }
}
