//! The order of the modules: read from the map in ARCHITECTURE.md, and held against every file of `src`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The paths below `src/` that the map names, from the bottom up.
#[derive(Debug, PartialEq, Eq)]
struct Map {
    paths: Vec<String>,
}

impl Map {
    /// Reads the first fenced block below `## Layout`: from its line `src/`, the paths with which each indented line
    /// begins, up to the next line that is not indented. A path is a file (`money.rs`, `store/mod.rs`) or a whole
    /// folder (`cli/…`).
    fn read(architecture: &str) -> Map {
        let layout = architecture.split("\n## Layout").nth(1).expect("a heading `## Layout`");
        let block = layout.split("```").nth(1).expect("a fenced block below `## Layout`");
        let lines = block.lines().skip_while(|line| line.trim() != "src/").skip(1);
        let paths = lines
            .take_while(|line| line.starts_with(' ') || line.is_empty())
            .flat_map(|line| line.split_whitespace().take_while(|word| is_path(word)))
            .map(str::to_owned)
            .collect();
        Map { paths }
    }

    fn names(&self, file: &str) -> bool {
        self.paths.iter().any(|path| match path.strip_suffix('…') {
            Some(folder) => file.starts_with(folder),
            None => file == path,
        })
    }

    /// How high a top-level module stands.
    fn height(&self, module: &str) -> Option<usize> {
        self.paths.iter().position(|path| module_of(path) == module)
    }
}

fn is_path(word: &str) -> bool {
    word.ends_with(".rs") || word.ends_with("/…")
}

/// The top-level module that a path below `src/` belongs to.
fn module_of(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// The top-level modules that a source text names by `crate::…`, comments left out.
fn uses(source: &str) -> BTreeSet<String> {
    let code: String = source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| [line, "\n"])
        .collect();
    code.split("crate::").skip(1).flat_map(first_names).collect()
}

/// The first names of a path or of a `{…}` group of paths.
fn first_names(path: &str) -> Vec<String> {
    let name = |text: &str| -> String { text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect() };
    let Some(group) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let mut depth = 1;
    let mut names = vec![name(group.trim_start())];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.push(name(group[at + 1..].trim_start())),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Every source file, by its path below `src/`.
fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.sort();
    let read = |path: PathBuf| {
        let name = path
            .strip_prefix(&root)
            .expect("below src")
            .to_string_lossy()
            .into_owned();
        (name, fs::read_to_string(path).expect("a source file"))
    };
    found.into_iter().map(read).collect()
}

fn map() -> Map {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    Map::read(&fs::read_to_string(path).expect("ARCHITECTURE.md"))
}

#[test]
fn every_file_is_on_the_map() {
    let map = map();
    let missing: Vec<_> = sources()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| !map.names(name))
        .collect();
    assert!(missing.is_empty(), "not in ARCHITECTURE.md: {missing:?}");
}

#[test]
fn everything_on_the_map_is_there() {
    let sources = sources();
    let there = |path: &String| match path.strip_suffix('…') {
        Some(folder) => sources.iter().any(|(name, _)| name.starts_with(folder)),
        None => sources.iter().any(|(name, _)| name == path),
    };
    let gone: Vec<_> = map().paths.into_iter().filter(|path| !there(path)).collect();
    assert!(gone.is_empty(), "in ARCHITECTURE.md, but not in src: {gone:?}");
}

#[test]
fn every_file_opens_with_what_it_is() {
    let silent: Vec<_> = sources()
        .into_iter()
        .filter(|(_, source)| !source.starts_with("//! "))
        .map(|(name, _)| name)
        .collect();
    assert!(silent.is_empty(), "these do not open with a `//!` sentence: {silent:?}");
}

#[test]
fn no_module_uses_one_that_stands_below_it() {
    let map = map();
    let mut turned = Vec::new();
    for (name, source) in sources()
        .iter()
        .filter(|(name, _)| name != "main.rs" && name != "lib.rs")
    {
        let Some(own) = map.height(module_of(name)) else {
            continue;
        };
        let below = uses(source)
            .into_iter()
            .filter(|used| map.height(used).is_some_and(|height| height > own));
        turned.extend(below.map(|used| format!("{name} uses {used}")));
    }
    assert!(turned.is_empty(), "against the order of ARCHITECTURE.md: {turned:#?}");
}

#[test]
fn the_map_is_read_from_the_layout_block() {
    let text = "# x\n```\nsrc/\n  no.rs\n```\n## Layout\n\n```\nCargo.toml\nsrc/\n  lib.rs  what it is\n  -- vocabulary: a.rs\n\
                \x20 money.rs           Usd: see b.rs\n  store/users.rs  store/keys.rs  more\n  cli/…  clap\ntests/\n  c.rs\n```\n";
    let map = Map::read(text);
    assert_eq!(
        map.paths,
        ["lib.rs", "money.rs", "store/users.rs", "store/keys.rs", "cli/…"]
    );
    assert!(map.names("cli/deep/main.rs") && !map.names("client.rs"));
    assert_eq!((map.height("store"), map.height("none")), (Some(2), None));
}

#[test]
fn uses_are_found_in_every_form() {
    let source = "//! [`crate::no`]\nuse crate::a::{b, c};\nuse crate::{d, e::{f, g},\n  h};\n// crate::no\nlet x = crate::i::j();";
    let found: Vec<String> = uses(source).into_iter().collect();
    assert_eq!(found, ["a", "d", "e", "h", "i"]);
}
