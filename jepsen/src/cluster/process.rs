//! One node: its process, its folder, its disk.
//!
//! Invariants: a child is ended only by its own pid, and always waited for.

use crate::disk::Disk;
use rustix::process::{Pid, Signal, kill_process};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// A node under test.
pub struct Node {
    /// Its name everywhere.
    pub name: String,
    /// Where clients reach it.
    pub http: SocketAddr,
    /// Where peers dial it.
    pub dialled: SocketAddr,
    /// Everything it keeps.
    pub data_dir: PathBuf,
    /// What it says.
    pub log: PathBuf,
    /// What libfaketime reads.
    pub clock: Option<PathBuf>,
    /// Its disk, if it has one of its own.
    pub disk: Option<Disk>,
    pub(super) command: Vec<String>,
    pub(super) arguments: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) child: Option<Child>,
}

impl Node {
    pub(super) fn start(&mut self) -> Result<(), String> {
        let error = |e: std::io::Error| format!("{}: {e}", self.name);
        if let Some(parent) = self.data_dir.parent() {
            fs::create_dir_all(parent).map_err(error)?;
        }
        let log = File::options().create(true).append(true).open(&self.log).map_err(error)?;
        let child = Command::new(&self.command[0])
            .args(&self.command[1..])
            .args(&self.arguments)
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(error)?)
            .stderr(log)
            .spawn()
            .map_err(|e| format!("{}: {e}", self.command.join(" ")))?;
        self.child = Some(child);
        Ok(())
    }

    /// Whether its process runs (or stands still).
    pub fn runs(&mut self) -> bool {
        if self.child.as_mut().is_some_and(|child| !matches!(child.try_wait(), Ok(None))) {
            self.child = None;
        }
        self.child.is_some()
    }

    /// Its process, if it has one.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<(), String> {
        let pid = self.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
        let pid = pid.ok_or_else(|| format!("{} does not run", self.name))?;
        kill_process(pid, signal).map_err(|e| format!("{}: {e}", self.name))
    }

    /// The state of its process as the kernel shows it (`S`, `T`, `D` …).
    pub fn process_state(&self) -> Option<char> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?)).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }

    pub(super) fn kill(&mut self) -> Result<(), String> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        // One that ended by itself has been killed already.
        let _ = child.kill();
        child.wait().map(drop).map_err(|e| format!("{}: {e}", self.name))
    }

    pub(super) fn terminate(&mut self, within: Duration) -> Result<(), String> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + within;
        while self.runs() {
            if Instant::now() > deadline {
                self.kill()?;
                return Err(format!("{} did not stop within {within:?}", self.name));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Lines of its log that tell of a panic.
    pub fn panics(&self) -> Vec<String> {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().filter(|line| line.contains("panicked at")).map(str::to_owned).take(20).collect()
    }

    /// All files under a folder of its data, the one that was written last at the end.
    pub fn files(&self, folder: &str) -> Vec<PathBuf> {
        let mut files = Vec::new();
        gather(&self.data_dir.join(folder), &mut files);
        files.sort_by_key(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok());
        files
    }
}

fn gather(dir: &Path, files: &mut Vec<PathBuf>) {
    for path in fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            gather(&path, files);
        } else {
            files.push(path);
        }
    }
}
