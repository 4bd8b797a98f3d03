//! A file that has its name only when it is whole: written as `NAME.part`, and renamed once it is on disk.

use super::super::server::Failure;
use annal::durable;
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// A file being written; removed when dropped before it is committed.
pub(super) struct PartFile {
    path: PathBuf,
    part: PathBuf,
    file: BufWriter<File>,
    committed: bool,
}

impl PartFile {
    /// Errors: the file is there already, and must not be written over.
    pub(super) fn create(path: &Path, overwrite: bool) -> Result<Self, Failure> {
        if !overwrite && path.exists() {
            return Err(format!("{} is there already: --overwrite writes over it", path.display()).into());
        }
        let part = beside(path, ".part");
        let file = File::create(&part).map_err(|e| format!("{}: {e}", part.display()))?;
        let file = BufWriter::with_capacity(1 << 20, file);
        Ok(PartFile { path: path.to_owned(), part, file, committed: false })
    }

    /// Writes over what stands at the very beginning.
    pub(super) fn put_head(&mut self, head: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(head)
    }

    /// Gives it its name; tells that.
    pub(super) fn commit(mut self) -> Result<PathBuf, Failure> {
        let within = |e: io::Error| format!("{}: {e}", self.path.display());
        self.file.flush().map_err(within)?;
        self.file.get_ref().sync_all().map_err(within)?;
        durable::rename(&self.part, &self.path).map_err(within)?;
        self.committed = true;
        Ok(self.path.clone())
    }
}

/// The file whose name is this one's and some more.
pub(super) fn beside(path: &Path, more: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(more);
    PathBuf::from(name)
}

impl Write for PartFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.committed {
            let _it_may_be_gone = fs::remove_file(&self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_to_what_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let names = || -> Vec<_> {
            let entries = fs::read_dir(folder.path()).unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        let write = |overwrite: bool, text: &[u8]| {
            let mut part = PartFile::create(&path, overwrite).unwrap();
            part.write_all(text).unwrap();
            part
        };
        let mut part = write(false, b"-ne");
        assert_eq!(names(), ["a.bin.part"]);
        part.put_head(b"o").unwrap();
        part.commit().unwrap();
        assert_eq!((names(), fs::read(&path).unwrap()), (vec!["a.bin".to_owned()], b"one".to_vec()));

        assert!(PartFile::create(&path, false).err().unwrap().to_string().contains("is there already"));
        // One that is given up leaves what was there.
        drop(write(true, b"two"));
        assert_eq!((names(), fs::read(&path).unwrap()), (vec!["a.bin".to_owned()], b"one".to_vec()));
        write(true, b"three").commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert!(PartFile::create(&folder.path().join("no/a.bin"), false).is_err());
    }
}
