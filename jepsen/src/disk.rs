//! A disk of a node's own that can lose power, break and fill up: ext4 in a file, mounted through a loop device.
//!
//! | fault | how | what follows |
//! |---|---|---|
//! | power cut | `FS_IOC_SHUTDOWN`, journal not flushed | what was not fsynced is gone after the next mount |
//! | I/O errors | `FS_IOC_SHUTDOWN`, journal flushed | every later access fails while the process lives on |
//! | read-only | `trigger_fs_error` of ext4, mounted with `errors=remount-ro` | writes fail, reads go on |
//! | full | a file that takes what is left | `ENOSPC`, or the node's own floor before it |
//! | frozen | `fsfreeze` | writes hang until it is thawed |
//!
//! Invariants: what was mounted is unmounted when this is dropped, and its image stays unless it was discarded; a
//! fault is told as done only after a probe has shown it.
//! Source: xfstests' `shutdown` tests; the ioctl is `_IOR('X', 125, u32)` of the kernel's `fs.h`, which is sent by
//! perl or python, since this crate has no unsafe code.

use crate::shell;
use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// One loop-mounted filesystem.
pub struct Disk {
    image: PathBuf,
    mount: PathBuf,
    mounted: bool,
    frozen: bool,
    discarded: bool,
}

/// Size of the filesystem; the image is sparse.
const IMAGE_BYTES: u64 = 1 << 30;
/// Space that a full disk still has: nobody can use the last block of a file system in practice.
const LEFT_BYTES: u64 = 256 << 10;

impl Disk {
    /// Makes and mounts a disk at `mount`.
    ///
    /// Errors: not root, no loop device, no ext4.
    pub fn new(image: &Path, mount: &Path) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("a disk of its own wants root".to_owned());
        }
        let made = File::create(image).and_then(|file| file.set_len(IMAGE_BYTES));
        made.and_then(|()| fs::create_dir_all(mount)).map_err(|e| format!("{}: {e}", image.display()))?;
        shell::run("mkfs.ext4", &["-q", "-F", "-m", "0", &text(image)])?;
        let mut disk = Disk {
            image: image.to_owned(),
            mount: mount.to_owned(),
            mounted: false,
            frozen: false,
            discarded: false,
        };
        disk.mount()?;
        Ok(disk)
    }

    /// Drops what was not fsynced. The node that uses it must be killed at once.
    pub fn cut_power(&mut self) -> Result<(), String> {
        // EXT4_GOING_FLAGS_NOLOGFLUSH
        self.shut_down(2)
    }

    /// Makes every access fail.
    pub fn fail(&mut self) -> Result<(), String> {
        // EXT4_GOING_FLAGS_LOGFLUSH
        self.shut_down(1)
    }

    /// Makes every write fail.
    pub fn set_read_only(&mut self) -> Result<(), String> {
        let device = shell::run("findmnt", &["-n", "-o", "SOURCE", &text(&self.mount)])?;
        let name = device.trim().trim_start_matches("/dev/").to_owned();
        let trigger = format!("/sys/fs/ext4/{name}/trigger_fs_error");
        fs::write(&trigger, "1").map_err(|e| format!("{trigger}: {e}"))?;
        self.probe_broken()
    }

    /// Mounts it anew, repaired, after its node has ended.
    pub fn mend(&mut self) -> Result<(), String> {
        self.thaw()?;
        self.unmount()?;
        // The journal is replayed, and what an error marked is cleared; 1 says that something was repaired.
        match shell::exit("e2fsck", &["-f", "-y", &text(&self.image)])? {
            (0 | 1, _) => {}
            (code, why) => return Err(format!("e2fsck: exit {code}: {why}")),
        }
        self.mount()
    }

    /// Its image goes with it, since nobody will look at what is on it.
    pub fn discard(&mut self) {
        self.discarded = true;
    }

    /// Takes what is left of the space.
    pub fn fill(&self) -> Result<(), String> {
        let error = |e: rustix::io::Errno| format!("{}: {e}", self.mount.display());
        let file = File::create(self.ballast()).map_err(|e| e.to_string())?;
        let stat = rustix::fs::statvfs(&self.mount).map_err(error)?;
        let take = (stat.f_bavail * stat.f_frsize).saturating_sub(LEFT_BYTES);
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, take).map_err(error)
    }

    /// Gives the space back, for good: a later fault must not bring the file back.
    pub fn empty(&self) -> Result<(), String> {
        match fs::remove_file(self.ballast()) {
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
            Err(e) => Err(e.to_string()),
            Ok(()) => File::open(&self.mount).and_then(|folder| folder.sync_all()).map_err(|e| e.to_string()),
        }
    }

    /// Holds every write.
    pub fn freeze(&mut self) -> Result<(), String> {
        shell::run("fsfreeze", &["--freeze", &text(&self.mount)])?;
        self.frozen = true;
        Ok(())
    }

    /// Lets them go.
    pub fn thaw(&mut self) -> Result<(), String> {
        if self.frozen {
            shell::run("fsfreeze", &["--unfreeze", &text(&self.mount)])?;
            self.frozen = false;
        }
        Ok(())
    }

    fn shut_down(&mut self, flag: u32) -> Result<(), String> {
        let mount = text(&self.mount);
        let perl =
            format!(r#"open(F,"<","{mount}") or die $!; ioctl(F,0x8004587d,pack("L",{flag})) or die $!"#);
        let python = format!(
            "import fcntl,os,struct; fcntl.ioctl(os.open('{mount}',0),0x8004587d,struct.pack('I',{flag}))"
        );
        shell::run("perl", &["-e", &perl]).or_else(|_| shell::run("python3", &["-c", &python]))?;
        self.probe_broken()
    }

    fn probe_broken(&self) -> Result<(), String> {
        let probe = self.mount.join("probe");
        let written =
            File::create(&probe).and_then(|mut file| file.write_all(b"x").and_then(|()| file.sync_all()));
        match written {
            Ok(()) => Err(format!("{} still takes writes", self.mount.display())),
            Err(_) => Ok(()),
        }
    }

    fn mount(&mut self) -> Result<(), String> {
        shell::run("mount", &["-o", "loop,errors=remount-ro", &text(&self.image), &text(&self.mount)])?;
        self.mounted = true;
        Ok(())
    }

    fn unmount(&mut self) -> Result<(), String> {
        if !self.mounted {
            return Ok(());
        }
        // The kernel may hold it for a moment after its node has ended.
        let mut last = Ok(());
        for _ in 0..50 {
            match shell::run("umount", &[&text(&self.mount)]) {
                Ok(_) => {
                    self.mounted = false;
                    return Ok(());
                }
                Err(why) => last = Err(why),
            }
            thread::sleep(Duration::from_millis(100));
        }
        last
    }

    fn ballast(&self) -> PathBuf {
        self.mount.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.thaw();
        let _ = self.unmount();
        if self.discarded {
            let _ = fs::remove_file(&self.image);
        }
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
