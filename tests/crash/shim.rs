//! The library that stands between a server and the C library (`shim.c`), and what a disk has after a power cut.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use rustix::io::Errno;

/// The library, compiled once; or why it cannot be used here.
pub fn library() -> Result<&'static Path, &'static str> {
    static LIBRARY: OnceLock<Result<PathBuf, &'static str>> = OnceLock::new();
    LIBRARY.get_or_init(compile).as_deref().map_err(|why| *why)
}

fn compile() -> Result<PathBuf, &'static str> {
    if !cfg!(target_os = "linux") {
        return Err("disks are failed by LD_PRELOAD, on Linux only");
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let library = folder.join(format!("shim-{}.so", std::process::id()));
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/crash/shim.c");
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-o"])
        .args([&library, &source])
        .status();
    let Ok(compiled) = compiled else {
        return Err("there is no C compiler for the library that fails disks");
    };
    assert!(compiled.success(), "{} does not compile", source.display());
    // Under its last name there is never half of it; processes that have it loaded keep the one they have.
    let shared = folder.join("shim.so");
    fs::rename(&library, &shared).expect("renamed");
    Ok(shared)
}

/// Which files a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// The database itself: what checkpoints write.
    Database,
    /// It, and its write-ahead log: what commits write.
    DatabaseAndLog,
}

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The calls that write or truncate.
    Write,
    /// `fsync`.
    Sync,
}

/// How many calls fail, beginning with the one that was named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// That one.
    Once,
    /// That one and all after it.
    ForEver,
}

/// The numbers that the library reads while the server runs: one word each, in the order of `struct control`.
#[derive(Clone, Copy)]
enum Word {
    Files,
    Error,
    Many,
    FromWrite,
    FromSync,
    SeenWrites,
    SeenSyncs,
    ClockAhead,
    ClockDrift,
    ClockSince,
}

/// What a server's disk and clock do: loaded into it, and changed while it runs.
#[derive(Debug)]
pub struct Shim {
    library: &'static Path,
    database: PathBuf,
    journal: PathBuf,
    control_path: PathBuf,
    control: File,
}

impl Shim {
    /// For one server on a database; its notes and numbers are kept in `folder`. Fails, with a reason, where it cannot
    /// be used.
    pub fn new(database: &Path, folder: &Path) -> Result<Shim, &'static str> {
        let library = library()?;
        let control_path = folder.join("shim-control");
        fs::write(&control_path, [0; 8 * (Word::ClockSince as usize + 1)]).expect("written");
        let control = OpenOptions::new().read(true).write(true).open(&control_path);
        Ok(Shim {
            library,
            database: database.to_owned(),
            journal: folder.join("shim-journal"),
            control_path,
            control: control.expect("opened"),
        })
    }

    /// Forgets what was noted: what is noted from now on is about the files as they are now.
    pub fn begin_notes(&self) {
        drop(File::create(&self.journal).expect("begun anew"));
    }

    /// The variables that load it into a program.
    pub fn env(&self) -> [(&str, &str); 4] {
        fn text(path: &Path) -> &str {
            path.to_str().expect("text")
        }
        [
            ("LD_PRELOAD", text(self.library)),
            ("SHIM_DATABASE", text(&self.database)),
            ("SHIM_CONTROL", text(&self.control_path)),
            ("SHIM_JOURNAL", text(&self.journal)),
        ]
    }

    /// Counts the calls on these files from now on.
    pub fn count(&self, of: Of) {
        self.set(Word::FromWrite, 0);
        self.set(Word::FromSync, 0);
        self.set(Word::SeenWrites, 0);
        self.set(Word::SeenSyncs, 0);
        self.set(
            Word::Files,
            match of {
                Of::Database => 1,
                Of::DatabaseAndLog => 3,
            },
        );
    }

    /// Makes the `nth` call from now on fail.
    pub fn fail(&self, operation: Operation, nth: i64, of: Of, error: Errno, lasting: Lasting) {
        self.count(of);
        self.set(Word::Error, i64::from(error.raw_os_error()));
        self.set(
            Word::Many,
            match lasting {
                Lasting::Once => 1,
                Lasting::ForEver => i64::MAX,
            },
        );
        self.set(
            match operation {
                Operation::Write => Word::FromWrite,
                Operation::Sync => Word::FromSync,
            },
            nth,
        );
    }

    /// Lets everything succeed again.
    pub fn heal(&self) {
        self.set(Word::Files, 0);
    }

    /// How many calls were counted since they are.
    pub fn seen(&self, operation: Operation) -> i64 {
        self.get(match operation {
            Operation::Write => Word::SeenWrites,
            Operation::Sync => Word::SeenSyncs,
        })
    }

    /// Moves the wall clock, in seconds, and lets it gain so much in each second from `since` on (in nanoseconds).
    pub fn set_clock(&self, ahead_s: i64, drift: i64, since: i64) {
        self.set(Word::ClockSince, since);
        self.set(Word::ClockDrift, drift);
        self.set(Word::ClockAhead, ahead_s * 1_000_000_000);
    }

    /// What the server did to its files, to this moment.
    pub fn journal(&self) -> Journal {
        Journal::parse(&fs::read(&self.journal).expect("the notes are there"))
    }

    fn set(&self, word: Word, value: i64) {
        let written = self.control.write_all_at(&value.to_ne_bytes(), 8 * word as u64);
        written.expect("written");
    }

    fn get(&self, word: Word) -> i64 {
        let mut bytes = [0; 8];
        self.control.read_exact_at(&mut bytes, 8 * word as u64).expect("read");
        i64::from_ne_bytes(bytes)
    }
}

/// What a disk has of a database: the content of each file, by what follows the database's path in its path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Reads what is there now; no server may run on it. The index, the lock, the ballast and the
    /// socket have nothing to keep.
    pub fn of(database: &Path) -> Files {
        let mut files = BTreeMap::new();
        for (name, path) in beside(database) {
            if !["-shm", ".lock", ".ballast", ".sock"].contains(&name.as_str()) {
                files.insert(name, fs::read(path).expect("read"));
            }
        }
        Files(files)
    }

    /// Makes these the files of a database, and removes what there was.
    pub fn put(&self, database: &Path) {
        for (_, path) in beside(database) {
            fs::remove_file(path).expect("removed");
        }
        for (name, content) in &self.0 {
            let mut path = OsString::from(database);
            path.push(name);
            fs::write(path, content).expect("written");
        }
    }
}

/// The files whose paths begin with a database's, by what follows.
fn beside(database: &Path) -> Vec<(String, PathBuf)> {
    let name = database.file_name().and_then(|name| name.to_str()).expect("a name");
    let folder = database.parent().expect("a folder");
    let entries = fs::read_dir(folder)
        .expect("listed")
        .map(|entry| entry.expect("an entry"));
    entries
        .filter_map(|entry| {
            let rest = entry.file_name().to_str()?.strip_prefix(name)?.to_owned();
            Some((rest, entry.path()))
        })
        .collect()
}

/// What the power cut spares of what was not synced.
pub enum Spared<'a> {
    /// Nothing.
    Nothing,
    /// Each piece of 4 KiB if the next number is odd.
    Some(&'a mut dyn FnMut() -> u64),
}

/// What programs did to the files of a database, with where each note begins.
#[derive(Debug)]
pub struct Journal(Vec<(usize, Note)>);

/// One call; `shim.c` says what each means.
#[derive(Debug)]
enum Note {
    Changed(String, Change),
    Synced(String, usize),
    Lost(String, usize),
    Unlinked(String),
    Renamed(String, String),
    Listed(usize),
}

#[derive(Clone, Debug)]
enum Change {
    Written(usize, Vec<u8>),
    Truncated(usize),
}

impl Journal {
    /// Of the last note there may only be a part: the server was killed.
    fn parse(all: &[u8]) -> Journal {
        let (mut notes, mut bytes) = (Vec::new(), all);
        while let Some((head, rest)) = bytes.split_first_chunk::<24>() {
            let word = |from: usize, to: usize| {
                let mut word = [0; 8];
                word[..to - from].copy_from_slice(&head[from..to]);
                usize::try_from(u64::from_ne_bytes(word)).expect("it fits")
            };
            let (kind, name_length, offset, length) = (word(0, 4), word(4, 8), word(8, 16), word(16, 24));
            let Some((name, rest)) = rest.split_at_checked(name_length) else {
                break;
            };
            let Some((data, rest)) = rest.split_at_checked(length) else {
                break;
            };
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_owned()).expect("a name");
            let note = match kind {
                1 => Note::Changed(text(name), Change::Written(offset, data.to_owned())),
                2 => Note::Changed(text(name), Change::Truncated(offset)),
                3 => Note::Synced(text(name), offset),
                4 => Note::Lost(text(name), offset),
                5 => Note::Unlinked(text(name)),
                6 => Note::Renamed(text(name), text(data)),
                7 => Note::Listed(offset),
                other => panic!("a note of kind {other}"),
            };
            notes.push((all.len() - bytes.len(), note));
            bytes = rest;
        }
        Journal(notes)
    }

    /// How many calls it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// What the disk has when the power fails after so many of the calls, if it had `before` at the start.
    pub fn after_power_cut(&self, before: &Files, calls: usize, spared: Spared<'_>) -> Files {
        let mut disk = Disk::new(before);
        self.0[..calls].iter().for_each(|(at, note)| disk.play(*at, note));
        disk.cut(spared)
    }
}

/// A disk, and what it was told and may not have yet.
struct Disk {
    objects: Vec<Object>,
    /// Which object a name means to those who run.
    names: BTreeMap<String, usize>,
    /// Which one it means after a power cut.
    listed: BTreeMap<String, usize>,
    /// What makes the difference, each with where its note begins.
    listing: Vec<(usize, Naming)>,
}

/// A file without its name.
#[derive(Default)]
struct Object {
    durable: Vec<u8>,
    pending: Vec<(usize, Change)>,
}

enum Naming {
    Made(String, usize),
    Unlinked(String),
    Renamed(String, String),
}

impl Naming {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Naming::Made(name, object) => {
                names.insert(name.clone(), *object);
            }
            Naming::Unlinked(name) => {
                names.remove(name);
            }
            Naming::Renamed(from, to) => {
                if let Some(object) = names.remove(from) {
                    names.insert(to.clone(), object);
                }
            }
        }
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Change::Written(offset, data) => {
                let end = offset + data.len();
                content.resize(content.len().max(end), 0);
                content[*offset..end].copy_from_slice(data);
            }
            Change::Truncated(length) => content.resize(*length, 0),
        }
    }

    /// The parts of it that a disk writes or does not: pages of the file.
    fn pieces(self) -> Vec<Change> {
        const PAGE: usize = 4096;
        let Change::Written(mut offset, mut data) = self else {
            return vec![self];
        };
        let mut pieces = Vec::new();
        while !data.is_empty() {
            let rest = data.split_off(data.len().min(PAGE - offset % PAGE));
            let length = data.len();
            pieces.push(Change::Written(offset, data));
            (offset, data) = (offset + length, rest);
        }
        pieces
    }
}

impl Disk {
    fn new(files: &Files) -> Disk {
        let names: BTreeMap<String, usize> = files.0.keys().cloned().zip(0..).collect();
        let object = |content: &Vec<u8>| Object {
            durable: content.clone(),
            pending: Vec::new(),
        };
        Disk {
            objects: files.0.values().map(object).collect(),
            listed: names.clone(),
            names,
            listing: Vec::new(),
        }
    }

    fn play(&mut self, at: usize, note: &Note) {
        match note {
            Note::Changed(name, change) => {
                let object = self.object(at, name);
                self.objects[object].pending.push((at, change.clone()));
            }
            Note::Synced(name, covered) => {
                let object = self.object(at, name);
                let Object { durable, pending } = &mut self.objects[object];
                pending
                    .extract_if(.., |(at, _)| *at < *covered)
                    .for_each(|(_, change)| change.apply(durable));
                // A new file's name comes with its content.
                self.listed.entry(name.clone()).or_insert(object);
            }
            Note::Lost(name, covered) => {
                let object = self.object(at, name);
                self.objects[object].pending.retain(|(at, _)| *at >= *covered);
            }
            Note::Unlinked(name) => self.rename(at, Naming::Unlinked(name.clone())),
            Note::Renamed(from, to) => self.rename(at, Naming::Renamed(from.clone(), to.clone())),
            Note::Listed(covered) => {
                let done = self.listing.extract_if(.., |(at, _)| *at < *covered);
                done.for_each(|(_, naming)| naming.apply(&mut self.listed));
            }
        }
    }

    /// The object of a name; one that has none was just made.
    fn object(&mut self, at: usize, name: &str) -> usize {
        if let Some(object) = self.names.get(name) {
            return *object;
        }
        self.objects.push(Object::default());
        self.rename(at, Naming::Made(name.to_owned(), self.objects.len() - 1));
        self.objects.len() - 1
    }

    fn rename(&mut self, at: usize, naming: Naming) {
        naming.apply(&mut self.names);
        self.listing.push((at, naming));
    }

    fn cut(mut self, spared: Spared<'_>) -> Files {
        if let Spared::Some(dice) = spared {
            // A file system keeps names in order: some first changes are there, the others are not.
            let kept = self.listing.iter().take_while(|_| dice() % 2 == 1).count();
            self.listing[..kept]
                .iter()
                .for_each(|(_, naming)| naming.apply(&mut self.listed));
            for Object { durable, pending } in &mut self.objects {
                let pieces = pending.drain(..).flat_map(|(_, change)| change.pieces());
                pieces
                    .filter(|_| dice() % 2 == 1)
                    .for_each(|piece| piece.apply(durable));
            }
        }
        let content = |object: usize| self.objects[object].durable.clone();
        Files(
            self.listed
                .iter()
                .map(|(name, object)| (name.clone(), content(*object)))
                .collect(),
        )
    }
}
