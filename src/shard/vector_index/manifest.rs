//! Which files make up a shard's index: one small file, replaced whole.
//!
//! A line `crc32 of the rest, 8 hex digits | space | JSON`. Invariants: it names only files that were durable
//! before it was written; a file it does not name is garbage. A manifest that is damaged, or that does not fit
//! the store, costs the graphs and never an answer.
//! Layout: `docs/FORMATS.md`, pinned by `tests/golden/manifest.txt`.

use super::{VectorIndex, VectorIndexes, segment::Segment};
use crate::{durable, model::Position};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::Path,
};

const FILE: &str = "manifest";

/// The list of files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::shard) struct Manifest {
    /// Version of this form.
    pub(in crate::shard) format: u32,
    /// The position of the view that it was written of; for people.
    pub(in crate::shard) position: u64,
    /// Number of the next file.
    pub(in crate::shard) next: u64,
    /// Segments by the vector's name.
    pub(in crate::shard) segments: BTreeMap<String, Vec<Entry>>,
}

/// A segment's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::shard) struct Entry {
    /// Its name in the index folder.
    pub(in crate::shard) file: String,
    /// Its length in bytes.
    pub(in crate::shard) bytes: u64,
    /// The checksum of its head, which holds those of all else.
    pub(in crate::shard) checksum: u32,
}

impl Manifest {
    /// What a view at `position` holds.
    pub(in crate::shard) fn of(position: Position, indexes: &VectorIndexes) -> Manifest {
        let entries = |index: &VectorIndex| -> Vec<Entry> {
            index.segments.iter().map(|s| Entry::of(&s.file, &s.segment)).collect()
        };
        let segments = indexes.iter().map(|(name, index)| (name.clone(), entries(index))).collect();
        Manifest { format: 1, position: position.0, next: 0, segments }
    }

    /// A name that no file of the folder has had.
    pub(in crate::shard) fn next_file(&mut self) -> String {
        self.next += 1;
        format!("{:08}.seg", self.next)
    }

    /// Reads the folder's manifest; an empty one if there is none or it is damaged.
    pub(in crate::shard) fn read(folder: &Path) -> Manifest {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) => {
                if e.kind() != io::ErrorKind::NotFound {
                    tracing::warn!(path = %path.display(), error = %e, "index manifest cannot be read");
                }
                return Manifest::default();
            }
        };
        Manifest::parse(&text).unwrap_or_else(|| {
            tracing::warn!(path = %path.display(), "index manifest is damaged; the index is built anew");
            Manifest::default()
        })
    }

    /// Writes the folder's manifest; whole and durable when this returns, or the old one stays.
    pub(in crate::shard) fn write(&self, folder: &Path) -> io::Result<()> {
        durable::write(&folder.join(FILE), self.text()?.as_bytes())
    }

    /// Removes the folder's manifest durably: its files are garbage from now on.
    pub(in crate::shard) fn remove(folder: &Path) -> io::Result<()> {
        match fs::remove_file(folder.join(FILE)) {
            Ok(()) => File::open(folder)?.sync_all(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Its line.
    pub(in crate::shard) fn text(&self) -> io::Result<String> {
        let json = serde_json::to_string(self)?;
        Ok(format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes())))
    }

    /// Reads a line; `None` if it is damaged or of another format.
    pub(in crate::shard) fn parse(text: &str) -> Option<Manifest> {
        let (crc, json) = text.strip_suffix('\n')?.split_once(' ')?;
        if crc != format!("{:08x}", crc32fast::hash(json.as_bytes())) {
            return None;
        }
        serde_json::from_str(json).ok().filter(|m: &Manifest| m.format == 1)
    }

    /// Deletes every file of the folder that this manifest does not name; `writing`: but one that is being written.
    pub(in crate::shard) fn sweep(&self, folder: &Path, writing: Option<&str>) -> io::Result<()> {
        let being_written = |name: &str| {
            writing.is_some_and(|file| Path::new(name).file_stem() == Path::new(file).file_stem())
        };
        let named = |name: &str| {
            name == FILE || being_written(name) || self.segments.values().flatten().any(|e| e.file == name)
        };
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            // A folder is where an install gathers the files it is sent.
            if entry.file_type()?.is_dir() {
                continue;
            }
            if !entry.file_name().to_str().is_some_and(named) {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

impl Entry {
    /// The entry of a segment.
    pub(in crate::shard) fn of(file: &str, segment: &Segment) -> Entry {
        Entry { file: file.to_owned(), bytes: segment.bytes(), checksum: segment.checksum() }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn example() -> Manifest {
        let entry = |file: &str| Entry { file: file.into(), bytes: 1234, checksum: 0xdead_beef };
        Manifest {
            format: 1,
            position: 77,
            next: 3,
            segments: [("".into(), vec![entry("1.seg"), entry("2.seg")]), ("b".into(), vec![])].into(),
        }
    }

    #[test]
    fn the_bytes_are_golden_and_every_flip_is_found() {
        let text = example().text().unwrap();
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/manifest.txt");
        if std::env::var_os("REWRITE").is_some() {
            fs::write(&golden, &text).unwrap();
        }
        assert_eq!(fs::read_to_string(golden).unwrap(), text);
        assert_eq!(Manifest::parse(&text), Some(example()));
        for at in 0..text.len() {
            let mut damaged = text.clone().into_bytes();
            damaged[at] ^= 1;
            assert_eq!(std::str::from_utf8(&damaged).ok().and_then(Manifest::parse), None, "byte {at}");
            assert_eq!(Manifest::parse(&text[..at]), None, "{at} bytes");
        }
    }

    #[test]
    fn it_is_replaced_whole_and_sweeps_what_it_does_not_name() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Manifest::read(folder.path()), Manifest::default());
        example().write(folder.path()).unwrap();
        assert_eq!(Manifest::read(folder.path()), example());
        for file in ["1.seg", "8.seg", "8.new", "9.seg", "9.new"] {
            fs::write(folder.path().join(file), "x").unwrap();
        }
        fs::create_dir(folder.path().join("incoming")).unwrap();
        let left = || {
            let files = fs::read_dir(folder.path()).expect("a folder");
            let name = |file: io::Result<fs::DirEntry>| file.expect("a file").file_name().into_string();
            let mut left: Vec<_> = files.map(|file| name(file).expect("a plain name")).collect();
            left.sort();
            left
        };
        example().sweep(folder.path(), Some("8.seg")).expect("swept");
        assert_eq!(left(), ["1.seg", "8.new", "8.seg", "incoming", "manifest"]);
        example().sweep(folder.path(), None).expect("swept");
        assert_eq!(left(), ["1.seg", "incoming", "manifest"]);
        Manifest::remove(folder.path()).unwrap();
        Manifest::remove(folder.path()).unwrap();
        assert_eq!(Manifest::read(folder.path()), Manifest::default());
    }
}
