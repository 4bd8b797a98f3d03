//! Files that have their name only when they are whole and on the disk.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
};

/// Writes a file whole and durably, in the place of one that may be there; its folder must be.
///
/// Errors: the old file stays, or is replaced though that may not be durable.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_added_extension("new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename(&new, path)
}

/// Gives a file that is on the disk its name, durably.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let folder = to.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Makes a folder and those that it is in, durably, unless they are there.
pub fn create_folder(path: &Path) -> io::Result<()> {
    let made: Vec<&Path> = path.ancestors().take_while(|folder| !folder.exists()).collect();
    fs::create_dir_all(path)?;
    for folder in made {
        if let Some(parent) = folder.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent)?.sync_all()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        for bytes in [&b"first"[..], b"2"] {
            write(&path, bytes).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        write(&folder.path().join("no/a.json"), b"x").expect_err("there is no such folder");
        let deep = folder.path().join("b/c/d");
        for _ in 0..2 {
            create_folder(&deep).expect("made, or there");
            assert!(deep.is_dir());
        }
        create_folder(&folder.path().join("a.json/e")).expect_err("that is a file");
    }
}
