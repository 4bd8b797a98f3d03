//! The disk of a real node: a folder with one sub-folder per segment.
//!
//! ```text
//! lock  anchor  000000000001/{wal-1, seal}  000000000002/wal-1 …
//! ```
//!
//! Invariants: one process at a time (a lock on `lock`, which the system drops with the process); side files are
//! replaced by temp, fsync, rename, fsync of the folder; a segment's folder and its parent are fsynced before the
//! segment is handed over.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{Advice, FallocateFlags};

use super::{Disk, ReadAt, Segment, SegmentNo, SideFile, layout::Spec, okay};
use crate::error::Error;

pub(crate) struct Folder {
    path: PathBuf,
    /// Held as long as the log is open.
    lock: Mutex<Option<File>>,
}

impl Folder {
    /// Opens the folder for writing; it is created if missing.
    pub(crate) fn open(path: &Path) -> Result<Folder, Error> {
        let doing = || format!("opening the log folder {}", path.display());
        fs::create_dir_all(path).map_err(Error::io(doing()))?;
        let lock_path = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&lock_path);
        let lock = lock.map_err(Error::io(doing()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: lock_path }),
            Err(TryLockError::Error(error)) => return Err(Error::io(doing())(error)),
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            sync_folder(parent).map_err(Error::io(doing()))?;
        }
        Ok(Folder { path: path.to_path_buf(), lock: Mutex::new(Some(lock)) })
    }

    /// Opens a stopped node's folder for reading alone; nothing is created or locked for long.
    pub(crate) fn open_read_only(path: &Path) -> Result<Folder, Error> {
        let doing = format!("opening the log folder {}", path.display());
        fs::metadata(path).map_err(Error::io(doing.clone()))?;
        let lock_path = path.join("lock");
        let lock = match File::open(&lock_path) {
            Ok(lock) => match lock.try_lock_shared() {
                Ok(()) => Some(lock),
                Err(TryLockError::WouldBlock) => return Err(Error::Locked { path: lock_path }),
                Err(TryLockError::Error(error)) => return Err(Error::io(doing)(error)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(doing)(error)),
        };
        Ok(Folder { path: path.to_path_buf(), lock: Mutex::new(lock) })
    }

    fn folder(&self, number: SegmentNo) -> PathBuf {
        self.path.join(format!("{:012}", number.0))
    }

    fn file(&self, number: SegmentNo) -> PathBuf {
        self.folder(number).join(okay::FILE)
    }

    fn side(&self, file: SideFile) -> (PathBuf, &'static str) {
        match file {
            SideFile::Anchor => (self.path.clone(), "anchor"),
            SideFile::Seal(number) => (self.folder(number), "seal"),
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<SegmentNo>> {
        let mut found = Vec::new();
        for item in fs::read_dir(&self.path)? {
            let name = item?.file_name();
            let number = name.to_str().filter(|name| name.len() == 12).and_then(|name| name.parse().ok());
            found.extend(number.map(SegmentNo));
        }
        found.sort();
        Ok(found)
    }

    fn create(&self, number: SegmentNo, spec: &Spec) -> io::Result<Box<dyn Segment>> {
        let folder = self.folder(number);
        fs::create_dir(&folder)?;
        let created = okay::create(&folder, number, spec).and_then(|segment| {
            sync_folder(&folder)?;
            sync_folder(&self.path)?;
            Ok(segment)
        });
        match created {
            Ok(segment) => Ok(Box::new(segment)),
            Err(error) => {
                // Half a segment holds nothing; leave no trace of it, as far as the disk still lets us.
                let _ = fs::remove_dir_all(&folder);
                let _ = sync_folder(&self.path);
                Err(error)
            }
        }
    }

    fn open(&self, number: SegmentNo) -> io::Result<Arc<dyn ReadAt>> {
        Ok(Arc::new(OpenFile(File::open(self.file(number))?)))
    }

    fn settle(&self, number: SegmentNo) -> io::Result<()> {
        let file = File::open(self.file(number))?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        Ok(())
    }

    fn punch(&self, number: SegmentNo, from: u64) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.file(number))?;
        let (from, bytes) = (from.next_multiple_of(4096), file.metadata()?.len());
        if from < bytes {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match rustix::fs::fallocate(&file, hole, from, bytes - from) {
                // Not every file system has holes; the bytes then stay allocated.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        file.sync_all()
    }

    fn allocated(&self, number: SegmentNo) -> io::Result<u64> {
        let (folder, seal) = self.side(SideFile::Seal(number));
        let seal = fs::metadata(folder.join(seal)).map_or(0, |seal| seal.blocks());
        Ok((fs::metadata(self.file(number))?.blocks() + seal) * 512)
    }

    fn remove(&self, number: SegmentNo) -> io::Result<()> {
        match fs::remove_dir_all(self.folder(number)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => sync_folder(&self.path),
        }
    }

    fn put(&self, file: SideFile, bytes: &[u8]) -> io::Result<()> {
        let (folder, name) = self.side(file);
        let temp = folder.join(format!("{name}.new"));
        let mut out = File::create(&temp)?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&temp, folder.join(name))?;
        sync_folder(&folder)
    }

    fn get(&self, file: SideFile) -> io::Result<Option<Vec<u8>>> {
        let (folder, name) = self.side(file);
        match fs::read(folder.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn blocks(&self) -> bool {
        true
    }

    fn release(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

struct OpenFile(File);

impl ReadAt for OpenFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }
}
