//! The house rules that a machine can check: floors point down, foreign crates stay in their rooms, no file
//! grows without end or hides behind a name that says nothing.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Top-level modules of `src/`, by floor; a module may use those below it, never those above or beside it.
const FLOORS: &[(&str, u32)] = &[
    ("model", 10),
    ("mutant", 9),
    ("world", 9),
    ("batch", 10),
    ("durable", 10),
    ("config", 11),
    ("store", 11),
    ("machine", 12),
    ("net", 12),
    ("identity", 12),
    ("shard", 20),
    ("replica", 30),
    ("cluster", 40),
    ("changefeed", 50),
    ("region", 50),
    ("api", 60),
    ("node", 70),
    ("cli", 80),
];

/// Foreign crates and the only places that may name them.
const ROOMS: &[(&str, &[&str])] = &[
    ("fjall", &["src/store.rs"]),
    ("usearch", &["src/shard/vector_index/build.rs"]),
    ("openraft", &["src/replica/"]),
    ("okaywal", &["wal/src/segment/okay.rs"]),
    ("axum", &["src/api/"]),
    ("hyper", &["src/api/", "src/net/"]),
    ("hyper_util", &["src/api/", "src/net/"]),
    ("h2", &["src/net/"]),
    ("parquet", &["src/cli/parquet_file/"]),
];

/// Files that hold several things, by name.
const SAYS_NOTHING: &[&str] = &["utils", "util", "common", "helper", "helpers", "manager", "base", "misc"];

const LINES_MAX: usize = 800;

fn sources(dir: &str) -> BTreeMap<PathBuf, String> {
    fn walk(dir: &Path, found: &mut BTreeMap<PathBuf, String>) {
        for entry in fs::read_dir(dir).expect("a folder of the project") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.insert(path.clone(), fs::read_to_string(&path).expect("UTF-8"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(Path::new(dir), &mut found);
    found
}

/// The code of a file: without comments and without its test module.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| !line.starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(at, line)| (at + 1, line.split(" // ").next().unwrap_or(line)))
}

fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|n| n == "tests.rs") || path.components().any(|c| c.as_os_str() == "tests")
}

#[test]
fn floors_point_down() {
    let floor = |module: &str| FLOORS.iter().find(|(name, _)| *name == module).map(|(_, floor)| *floor);
    let mut wrong = Vec::new();
    for (path, text) in sources("src") {
        let inside = path.strip_prefix("src").expect("under src");
        let first = inside.components().next().expect("a file").as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs");
        if matches!(module, "lib" | "main") || is_test(&path) {
            continue;
        }
        let own = floor(module)
            .unwrap_or_else(|| panic!("{} stands on no floor: add it to FLOORS", path.display()));
        // `use crate::{ a::…, b }` spans lines: names are looked for one by one.
        let body: String = code(&text).map(|(_, line)| line).collect::<Vec<_>>().join("\n");
        for (other, other_floor) in FLOORS.iter().filter(|(name, f)| *name != module && *f >= own) {
            let named = body.contains(&format!("crate::{other}::"))
                || body.contains(&format!("annal::{other}::"))
                || grouped_imports(&body).any(|name| name == *other);
            if named {
                wrong.push(format!("{} (floor {own}) names {other} (floor {other_floor})", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "dependencies point down:\n{}", wrong.join("\n"));
}

/// First words of the items of every `use crate::{…}`.
fn grouped_imports(body: &str) -> impl Iterator<Item = &str> {
    body.split("use crate::{").skip(1).flat_map(|rest| {
        let mut depth = 1;
        let end = rest
            .char_indices()
            .find(|(_, c)| {
                depth += match c {
                    '{' => 1,
                    '}' => -1,
                    _ => 0,
                };
                depth == 0
            })
            .map_or(rest.len(), |(at, _)| at);
        let mut depth = 0;
        rest[..end]
            .split(move |c| {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                c == ',' && depth == 0
            })
            .map(|item| item.trim().split("::").next().unwrap_or_default().trim())
    })
}

#[test]
fn foreign_crates_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    let files = sources("src").into_iter().chain(sources("wal/src")).chain(sources("jepsen/src"));
    for (path, text) in files.filter(|(path, _)| !is_test(path)) {
        let path = path.to_string_lossy().into_owned();
        for (name, rooms) in
            ROOMS.iter().filter(|(_, rooms)| !rooms.iter().any(|room| path.starts_with(room)))
        {
            for (line, text) in code(&text) {
                let uses = [format!("{name}::"), format!("use {name};"), format!("extern crate {name}")];
                if uses.iter().any(|u| {
                    text.match_indices(u.as_str())
                        .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
                }) {
                    wrong.push(format!("{path}:{line} names {name}, whose room is {}", rooms.join(" or ")));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_are_rooms() {
    let mut wrong = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("wal/src")).chain(sources("jepsen/src")) {
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        if SAYS_NOTHING.contains(&name.as_str()) {
            wrong.push(format!("{}: name the thing it is", path.display()));
        }
        if text.lines().count() > LINES_MAX {
            wrong.push(format!("{}: {} lines, at most {LINES_MAX}", path.display(), text.lines().count()));
        }
        if !text.starts_with("//!") && !is_test(&path) {
            wrong.push(format!("{}: starts without a head that says what it is", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_harness_never_links_the_database() {
    let manifest = fs::read_to_string("jepsen/Cargo.toml").expect("a manifest");
    assert!(!manifest.lines().any(|line| line.trim_start().starts_with("annal ")), "jepsen links annal");
    assert!(!manifest.contains("annal-wal"), "jepsen links annal-wal");
}
