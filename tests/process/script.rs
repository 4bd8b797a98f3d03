//! Scripts that one can read as tests: what is asked, `---`, what was answered, up to a blank line.

#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::{fs, path::Path};

/// Something that is asked and what is answered, as they stand in a script.
pub struct Scene {
    /// Comments and blank lines before it.
    pub preamble: String,
    pub asked: String,
    pub answered: String,
}

/// Runs every script of `tests/{folder}`, or those of which `SCRIPT` is a part of the name. `run` tells where its
/// answers differ.
pub fn all_of(folder: &str, run: fn(&Path) -> Option<String>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut scripts: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    scripts.retain(|path| path.extension().is_some_and(|e| e == "txt"));
    scripts.sort();
    let only = std::env::var("SCRIPT").ok();
    scripts.retain(|path| only.as_ref().is_none_or(|only| path.to_string_lossy().contains(only.as_str())));
    assert!(!scripts.is_empty(), "no scripts in {}", folder.display());
    let wrong: Vec<String> = scripts.iter().filter_map(|script| run(script)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Splits a script: blank lines and comments, what is asked, `---`, what is answered up to the next blank line.
pub fn scenes(script: &str) -> Vec<Scene> {
    let mut scenes = Vec::new();
    let mut lines = script.lines().peekable();
    loop {
        let mut take_while = |wanted: &dyn Fn(&str) -> bool| {
            let mut taken = String::new();
            while let Some(line) = lines.next_if(|line| wanted(line)) {
                taken += line;
                taken += "\n";
            }
            taken
        };
        let preamble = take_while(&|line| line.trim().is_empty() || line.starts_with('#'));
        let asked = take_while(&|line| line != "---" && !line.trim().is_empty());
        if asked.is_empty() {
            return scenes;
        }
        take_while(&|line| line == "---");
        let answered = take_while(&|line| !line.trim().is_empty());
        scenes.push(Scene { preamble, asked, answered });
    }
}
