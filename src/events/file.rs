//! A file of JSON lines: an event a line, on the disk before its place is noted.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Failed;
use crate::store::events::Event;

/// A line is shorter. In the end of a file that is not ours, no line's end may be found within it.
const LONGEST_LINE: u64 = 1 << 20;

/// Where events are appended.
#[derive(Debug)]
pub(super) struct LinesFile {
    path: PathBuf,
    /// Open since something was written; opened anew when another file is in its place.
    open: Option<File>,
}

impl LinesFile {
    pub(super) fn at(path: PathBuf) -> LinesFile {
        LinesFile { path, open: None }
    }

    /// Appends events, and syncs them.
    pub(super) async fn append(&mut self, events: &[&Event]) -> Result<(), Failed> {
        let mut lines = Vec::new();
        for event in events {
            serde_json::to_writer(&mut lines, event).map_err(|error| Failed::of(error.to_string()))?;
            lines.push(b'\n');
        }
        let (path, open) = (self.path.clone(), self.open.take());
        let work = tokio::task::spawn_blocking(move || write(&path, open, &lines));
        match work.await {
            Ok(Ok(open)) => self.open = Some(open),
            Ok(Err(error)) => return Err(Failed::of(format!("{}: {error}", self.path.display()))),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
        Ok(())
    }
}

/// Writes lines to the file that is at a path now. After an error it is opened anew, and what was half written is cut off.
fn write(path: &Path, open: Option<File>, lines: &[u8]) -> io::Result<File> {
    let mut file = match open {
        Some(file) if is_at(&file, path)? => file,
        _ => open_at(path)?,
    };
    file.write_all(lines)?;
    file.sync_data()?;
    Ok(file)
}

/// Whether a file is what the path names: `logrotate` puts another in its place.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match path.metadata() {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Opens or makes the file, for its owner alone, and cuts off a line that was not written whole: it will be again. As long as
/// it is open nobody else appends to it: of two sinks, or two gateways, each would cut off what the other is writing.
fn open_at(path: &Path) -> io::Result<File> {
    // Opening a pipe would wait for whoever reads it.
    if path.metadata().is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other("not a file"));
    }
    let mut file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        return Err(io::Error::other("another sink writes to it"));
    }
    let length = file.metadata()?.len();
    let start = length.saturating_sub(LONGEST_LINE);
    file.seek(SeekFrom::Start(start))?;
    let mut end = Vec::new();
    (&file).take(LONGEST_LINE).read_to_end(&mut end)?;
    let whole = end.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (lines, rest) = end.split_at(whole);
    let last = lines.strip_suffix(b"\n").map(|lines| {
        let before = lines.iter().rposition(|byte| *byte == b'\n');
        &lines[before.map_or(0, |at| at + 1)..]
    });
    let is_ours = last.map_or(start == 0, is_event);
    match rest {
        [] if is_ours => {}
        [b'{', ..] if is_ours => file.set_len(start + u64::try_from(whole).unwrap_or(u64::MAX))?,
        _ => return Err(io::Error::other("it ends with something else than events")),
    }
    if length == 0
        && let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty())
    {
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// Whether a line is one that a sink has written.
fn is_event(line: &[u8]) -> bool {
    let read = serde_json::from_slice::<serde_json::Value>(line);
    read.is_ok_and(|line| {
        ["id", "seq", "type", "at", "user", "data"]
            .iter()
            .all(|name| line.get(name).is_some())
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// An event with this number.
    fn line(seq: u32) -> String {
        format!(r#"{{"id":"x","seq":{seq},"type":"x.y","at":"","user":{{}},"data":{{}}}}"#)
    }

    /// Lines that are whole, and the beginning of one that is not.
    fn file(whole: &[u32], cut: &str) -> String {
        let lines = whole.iter().map(|seq| line(*seq) + "\n");
        lines.collect::<String>() + cut
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).expect("read")
    }

    #[test]
    fn a_line_that_is_half_written_is_cut_off_and_nothing_else() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events.jsonl");
        let new = file(&[3], "");
        for (before, after) in [
            (String::new(), file(&[3], "")),
            (file(&[1], ""), file(&[1, 3], "")),
            (file(&[1], "{2"), file(&[1, 3], "")),
            ("{1".to_owned(), file(&[3], "")),
        ] {
            fs::write(&path, before).expect("written");
            write(&path, None, new.as_bytes()).expect("appended");
            assert_eq!(text(&path), after);
        }
        for foreign in ["root:x:0:0:root", "root:x:0:0:root\n", "{}\n", "{\"id\":1}\n{2", "\n"] {
            fs::write(&path, foreign).expect("written");
            write(&path, None, new.as_bytes()).expect_err("it is not ours");
            assert_eq!(text(&path), foreign);
        }
        let long = "{".repeat(usize::try_from(LONGEST_LINE).expect("a size") + 1);
        fs::write(&path, &long).expect("written");
        write(&path, None, new.as_bytes()).expect_err("nor is this");
        assert_eq!(text(&path), long);
        write(folder.path(), None, new.as_bytes()).expect_err("a folder is no file");
    }

    #[test]
    fn of_two_that_append_to_a_file_one_does() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, link) = (folder.path().join("events.jsonl"), folder.path().join("link"));
        let open = write(&path, None, file(&[1], "").as_bytes()).expect("made");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        let refused = write(&link, None, file(&[2], "").as_bytes()).expect_err("another has it");
        assert!(refused.to_string().contains("another sink"), "{refused}");
        drop(open);
        write(&link, None, file(&[2], "").as_bytes()).expect("it is free");
        assert_eq!(text(&path), file(&[1, 2], ""));
    }

    #[test]
    fn a_file_that_is_moved_away_is_left_for_a_new_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, old) = (folder.path().join("events.jsonl"), folder.path().join("events.jsonl.1"));
        let write = |path: &Path, open, seq| write(path, open, file(&[seq], "").as_bytes());
        let open = write(&path, None, 1).expect("made");
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        let open = write(&path, Some(open), 2).expect("appended");
        fs::rename(&path, &old).expect("moved");
        let open = write(&path, Some(open), 3).expect("made anew");
        write(&path, Some(open), 4).expect("appended");
        assert_eq!((text(&old), text(&path)), (file(&[1, 2], ""), file(&[3, 4], "")));
    }
}
