//! What is asked of a person at the terminal: consent, and a secret.

use std::io::{self, BufRead, IsTerminal};

use rustix::termios::{self, LocalModes, OptionalActions, SpecialCodeIndex, Termios};

use super::failure::{Exit, Failure};
use super::{Global, language, output};
use crate::language::Said;
use crate::said;

/// Whether a person can be asked: both what is typed and what is shown go through a terminal.
pub fn is_possible() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// What was said before anybody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// `--yes`.
    Given,
    /// Nothing.
    Ask,
}

impl From<bool> for Consent {
    fn from(yes: bool) -> Consent {
        if yes { Consent::Given } else { Consent::Ask }
    }
}

/// Asks on a terminal. No is an answer, and said as such.
///
/// # Errors
/// Nobody can be asked, and there is no `--yes`; the answer cannot be read.
pub fn agreed(question: &Said, consent: Consent, global: &Global) -> anyhow::Result<bool> {
    if consent == Consent::Given {
        return Ok(true);
    }
    if !is_possible() {
        let what = said!(
            language(),
            en: "nothing was written; add --yes to write without being asked",
            zh: "没有写入任何内容；加上 --yes 可不经询问直接写入",
        );
        return Err(Failure::new(Exit::Usage, what).into());
    }
    output::tell(&format!("{question} [y/N] "));
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    let yes = matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes");
    if !yes {
        global.say(&said!(language(), en: "nothing was written", zh: "没有写入任何内容"));
    }
    Ok(yes)
}

/// Asks for a line on the terminal and does not show it.
///
/// # Errors
/// Ctrl-C, or a terminal that cannot be read.
pub fn secret(question: &Said) -> Result<String, Failure> {
    let failed = |why: Said| {
        let what = said!(language(), en: "nothing was read from the terminal", zh: "没有从终端读到内容");
        Failure::new(Exit::Failed, what).why(why)
    };
    let by_system = |error: io::Error| failed(Said::verbatim(error.to_string()));
    output::tell(&format!("{question}: "));
    let silence = Silence::begin().map_err(by_system)?;
    let typed = typed_line(io::stdin().lock());
    drop(silence);
    output::tell("\n");
    typed
        .map_err(by_system)?
        .ok_or_else(|| failed(said!(language(), en: "it was interrupted", zh: "被中断")))
}

/// The longest line that is read, in bytes.
const MAX_LINE: usize = 4096;

const INTERRUPT: u8 = 3;
const END: u8 = 4;
const BACKSPACE: [u8; 2] = [8, 127];

/// A line as it is typed, key by key; `None` after Ctrl-C.
fn typed_line(keys: impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    for key in keys.bytes().take(MAX_LINE) {
        match key? {
            INTERRUPT => return Ok(None),
            END | b'\r' | b'\n' => break,
            key if BACKSPACE.contains(&key) => drop(line.pop()),
            key => line.push(key),
        }
    }
    String::from_utf8(line).map(Some).map_err(io::Error::other)
}

/// A terminal that shows nothing and hands over each key, Ctrl-C too, until this is dropped: a signal in between would
/// leave it silent.
struct Silence {
    before: Termios,
}

impl Silence {
    fn begin() -> io::Result<Silence> {
        let before = termios::tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent
            .local_modes
            .remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VMIN] = 1;
        silent.special_codes[SpecialCodeIndex::VTIME] = 0;
        termios::tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Silence { before })
    }
}

impl Drop for Silence {
    fn drop(&mut self) {
        // A terminal that is gone needs no echo.
        termios::tcsetattr(io::stdin(), OptionalActions::Now, &self.before).unwrap_or(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_key_by_key() {
        let typed = |keys: &str| typed_line(keys.as_bytes()).expect("text");
        assert_eq!(typed("sk-gw-a\nrest").as_deref(), Some("sk-gw-a"));
        assert_eq!(typed("sk-gw-ab\u{7f}\r").as_deref(), Some("sk-gw-a"));
        assert_eq!(typed("\u{8}\u{7f}x").as_deref(), Some("x"));
        assert_eq!(typed("sk-gw\u{3}"), None);
    }
}
