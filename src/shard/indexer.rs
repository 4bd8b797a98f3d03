//! The thread that turns deltas into graphs, and the files of the index.
//!
//! ```text
//! sealed deltas, small segments -> live rows of one view -> graph -> file (fsync) -> published -> manifest -> old files deleted
//! ```
//!
//! Invariants: the manifest names only durable files; a file is deleted only when neither the manifest nor the
//! newest view names it (older views keep their mappings); a build that the shard has outrun is thrown away.
//! At rest a vector has one segment up to a size, but for parts of less than a sixteenth of its rows or hardly worth a graph.
//! Not here: what is worth merging (`vector_index`), whose turn it is (`build_turn`), how an index is opened (`open_index`),
//! waiting of writers (`mod`).

use super::{
    Shard,
    search::ReadView,
    slots::{LiveSet, SlotTable},
    snapshot,
    vector_index::{
        IndexError, Merge, SealedSegment, build::BuildError, manifest::Manifest, segment::Segment,
    },
};
use crate::{
    machine::MachineError,
    mutant::{self, Mutant},
    world::{self, Rests},
};
use std::{
    cmp::Reverse,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Folder, within the index folder, of the files that came with a snapshot until it is installed.
const INCOMING: &str = "incoming";

/// How long a build that failed is let rest.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// How much what builds gives way, unless too much waits for it.
const BUILD_NICE: i32 = 19;
/// How long each of its rests lasts while there are searches; the second if too much waits for it.
const BUILD_RESTS: Duration = Duration::from_micros(50);
const LATE_BUILD_RESTS: Duration = Duration::from_micros(200);
/// How long nothing must be written before an open delta is thought of.
const REST: Duration = Duration::from_secs(2);

/// A shard's index thread and folder.
pub(super) struct Indexer {
    folder: PathBuf,
    /// What the folder's manifest says.
    manifest: Mutex<Manifest>,
    /// The file that is being written; no manifest names it.
    writing: Mutex<Option<String>>,
    /// Whether there may be something to do.
    work: Mutex<bool>,
    wake: Condvar,
    stop: AtomicBool,
    /// Whether the last build failed.
    failing: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Indexer {
    /// The keeper of a folder; what an interrupted build or install left there goes.
    pub(super) fn new(folder: PathBuf, manifest: Manifest) -> Self {
        for left in [fs::remove_dir_all(folder.join(INCOMING)), manifest.sweep(&folder, None)] {
            if let Err(error) = left
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(folder = %folder.display(), %error, "what was left there cannot be removed");
            }
        }
        Indexer {
            folder,
            manifest: Mutex::new(manifest),
            writing: Mutex::new(None),
            work: Mutex::new(true),
            wake: Condvar::new(),
            stop: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            thread: Mutex::new(None),
        }
    }

    /// Starts the thread; it ends when the shard is closed or gone.
    pub(super) fn start(shard: &Arc<Shard>) -> io::Result<()> {
        // A simulation has one thread, and its deltas stay small: they are scanned.
        if world::is_simulated() {
            return Ok(());
        }
        let weak = Arc::downgrade(shard);
        let indexer = shard.indexer.clone();
        let thread = std::thread::Builder::new()
            .name(format!("index {}", shard.name))
            .spawn(move || indexer.run(&weak))?;
        *lock(&shard.indexer.thread) = Some(thread);
        Ok(())
    }

    /// Says that there may be something to do.
    pub(super) fn notify(&self) {
        *lock(&self.work) = true;
        self.wake.notify_all();
    }

    /// Tells the thread to stop, in the midst of a graph if need be.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.notify();
    }

    /// Waits until the thread has ended.
    pub(super) fn join(&self) {
        if let Some(thread) = lock(&self.thread).take()
            && thread.thread().id() != std::thread::current().id()
            && thread.join().is_err()
        {
            tracing::error!(folder = %self.folder.display(), "the index thread panicked");
        }
    }

    /// Whether it is of use to wait for the thread: not while builds fail, nor if it is gone.
    pub(super) fn absorbs(&self) -> bool {
        !self.failing.load(Ordering::Relaxed) && lock(&self.thread).as_ref().is_some_and(|t| !t.is_finished())
    }

    /// Bytes of the files.
    pub(super) fn bytes(&self) -> u64 {
        lock(&self.manifest).segments.values().flatten().map(|entry| entry.bytes).sum()
    }

    /// Reads the files that came with a snapshot; they wait in [`Indexer::incoming`] for [`Indexer::adopt`].
    pub(super) fn receive(&self, input: &mut dyn io::Read) -> Manifest {
        snapshot::read_files(input, &self.incoming(), || self.next_file())
    }

    /// Where files that came with a snapshot wait.
    pub(super) fn incoming(&self) -> PathBuf {
        self.folder.join(INCOMING)
    }

    /// Publishes the view of an installed state, and makes the files it came with the folder's own.
    ///
    /// If that fails they are built again after the next start; the view has them mapped.
    pub(super) fn adopt(&self, shard: &Shard, publish: impl FnOnce()) {
        let mut manifest = lock(&self.manifest);
        publish();
        let adopted = self.take_incoming().and_then(|()| self.write_locked(&mut manifest, shard));
        drop(manifest);
        if let Err(error) = adopted {
            tracing::warn!(folder = %self.folder.display(), %error, "index files that came with a snapshot are lost");
            if let Err(error) = self.forget() {
                tracing::error!(%error, "the index manifest of the state before cannot be removed");
            }
        }
    }

    fn take_incoming(&self) -> io::Result<()> {
        match fs::read_dir(self.incoming()) {
            Ok(files) => {
                for file in files {
                    let file = file?;
                    fs::rename(file.path(), self.folder.join(file.file_name()))?;
                }
                fs::remove_dir(self.incoming())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(&self.folder),
            Err(e) => Err(e),
        }
    }

    /// A name no file of the folder has had since it was opened.
    pub(super) fn next_file(&self) -> String {
        lock(&self.manifest).next_file()
    }

    /// Forgets all files: what they hold belongs to a state that is no more.
    pub(super) fn forget(&self) -> Result<(), MachineError> {
        let mut manifest = lock(&self.manifest);
        manifest.segments.clear();
        Manifest::remove(&self.folder).map_err(|source| self.failed(source))
    }

    fn run(&self, shard: &Weak<Shard>) {
        // Where the shard stood at the last look, and where its open deltas were last thought of: once is enough.
        let (mut seen, mut thought_of) = (None, None);
        loop {
            let mut work = lock(&self.work);
            while !*work {
                let (woken, rest) =
                    self.wake.wait_timeout(work, REST).unwrap_or_else(PoisonError::into_inner);
                work = woken;
                if rest.timed_out() && !*work {
                    drop(work);
                    let Some(shard) = shard.upgrade() else { return };
                    let position = shard.view().position();
                    let rests = seen.replace(position) == Some(position);
                    if rests && thought_of.replace(position) != Some(position) {
                        shard.seal_at_rest(position);
                    }
                    work = lock(&self.work);
                }
            }
            *work = false;
            drop(work);
            loop {
                let Some(shard) = shard.upgrade() else { return };
                if self.stop.load(Ordering::Relaxed) {
                    return;
                }
                let step = self.step(&shard);
                self.failing.store(step.is_err(), Ordering::Relaxed);
                match step {
                    Ok(true) => {}
                    Ok(false) => break,
                    Err(IndexError::Build(BuildError::Stopped)) => return,
                    Err(e) => {
                        // Everything stays searchable, only slower; it is tried again after a while.
                        tracing::error!(shard = shard.name, error = %e, "building a graph failed");
                        drop(shard);
                        self.pause();
                        break;
                    }
                }
            }
        }
    }

    /// Lets some time pass after a failure: a disk that is full would only be filled again with each batch, and others
    /// need what room there is.
    fn pause(&self) {
        let goes_on = |_: &mut bool| !self.stop.load(Ordering::Relaxed);
        let rested = self.wake.wait_timeout_while(lock(&self.work), RETRY_AFTER, goes_on);
        *rested.unwrap_or_else(PoisonError::into_inner).0 = true;
    }

    /// Does one merge, or holds a segment where it is to be from now on; `false` if there is nothing to do.
    fn step(&self, shard: &Shard) -> Result<bool, IndexError> {
        let view = shard.view();
        for (name, index) in &view.vectors {
            let Some(old) = index.held_elsewhere() else { continue };
            let segment = self.apart(shard, |_| Ok(old.segment.held(index.params.residence)?))?;
            let new = SealedSegment { file: old.file.clone(), segment };
            let merge = Merge { params: index.params, segments: vec![old.clone()], sealed: Vec::new() };
            shard.replace_parts(name, &merge, Some(Arc::new(new)));
            return Ok(true);
        }
        if next_merge(shard, &view).is_none() {
            return Ok(false);
        }
        let stops = || self.stop.load(Ordering::Relaxed);
        let turn = shard.options.build_turn.wait(stops, || shard.builds_are_late());
        let turn = turn.map_err(|_| BuildError::Stopped)?;
        // More may be worth building by now.
        let view = shard.view();
        let Some((name, merge)) = next_merge(shard, &view) else { return Ok(true) };
        fs::create_dir_all(&self.folder)?;
        let file = self.next_file();
        *lock(&self.writing) = Some(file.clone());
        let rows = (&view.live, &view.slots);
        let new = self.apart(shard, |stop| build(&self.folder, &file, rows, &merge, stop));
        *lock(&self.writing) = None;
        // The others need not wait until it is published, which an install may keep from it for long.
        drop(turn);
        let new = new?.map(Arc::new).filter(|_| !mutant::is(Mutant::IndexDropOnSwap));
        shard.replace_parts(name, &merge, new);
        self.write_manifest(shard)?;
        Ok(true)
    }

    /// Does work on a thread that takes no lock, since it may wait long for a processor: all searches and writes come first.
    /// Once too much waits for graphs, here or of a shard that waits for its turn, work that was begun so is stopped, and begun
    /// anew on a thread that does not give way.
    /// Either rests often while there are searches.
    ///
    /// Errors: those of the work, which is [`BuildError::Stopped`] when it is told to; there is no thread.
    pub(super) fn apart<T: Send>(
        &self,
        shard: &Shard,
        work: impl Fn(&AtomicBool) -> Result<T, IndexError> + Sync,
    ) -> Result<T, IndexError> {
        let turn = &shard.options.build_turn;
        let is_late = || shard.builds_are_late() || turn.is_awaited_late();
        loop {
            let (hurries, stop) = (is_late(), AtomicBool::new(false));
            let (rests, long) =
                (Arc::new(Rests::default()), if hurries { LATE_BUILD_RESTS } else { BUILD_RESTS });
            rests.last(long);
            let run = || {
                if !hurries {
                    world::give_way(BUILD_NICE);
                }
                world::with_rests(rests.clone(), || work(&stop))
            };
            let mut seen = turn.searches();
            let look = || {
                let stops = self.stop.load(Ordering::Relaxed) || !hurries && is_late();
                stop.store(stops, Ordering::Relaxed);
                let before = std::mem::replace(&mut seen, turn.searches());
                rests.last(if seen > before { long } else { Duration::ZERO });
            };
            match world::apart(run, look)? {
                Err(IndexError::Build(BuildError::Stopped)) if !self.stop.load(Ordering::Relaxed) => {}
                done => return done,
            }
        }
    }

    /// Writes what the shard's view holds, and deletes the files it does not.
    fn write_manifest(&self, shard: &Shard) -> io::Result<()> {
        // Looked at under the lock: a view that an install replaces is written before the new one, or not at all.
        let mut manifest = lock(&self.manifest);
        self.write_locked(&mut manifest, shard)
    }

    fn write_locked(&self, manifest: &mut Manifest, shard: &Shard) -> io::Result<()> {
        let view = shard.view();
        *manifest = Manifest { next: manifest.next, ..Manifest::of(view.position(), &view.vectors) };
        manifest.write(&self.folder)?;
        manifest.sweep(&self.folder, lock(&self.writing).as_deref())
    }

    fn failed(&self, source: io::Error) -> MachineError {
        MachineError::Io { what: self.folder.display().to_string(), source }
    }
}

/// What is worth building first, and of which vector: of the one that makes searches and writes wait the most.
pub(super) fn next_merge<'v>(shard: &Shard, view: &'v ReadView) -> Option<(&'v str, Merge)> {
    let mut indexes: Vec<_> = view.vectors.iter().collect();
    indexes.sort_by_key(|(_, index)| Reverse(index.waiting_bytes()));
    indexes.into_iter().find_map(|(name, index)| {
        Some((&**name, index.next_merge(&view.live, shard.options.segment_bytes_max)?))
    })
}

/// Builds the segment of a merge, if any of its rows is live; nothing is left of one that fails.
pub(super) fn build(
    folder: &Path,
    file: &str,
    (live, slots): (&LiveSet, &SlotTable),
    merge: &Merge,
    stop: &AtomicBool,
) -> Result<Option<SealedSegment>, IndexError> {
    let gathered = merge.gather(live, slots);
    if gathered.rows.is_empty() {
        return Ok(None);
    }
    let path = folder.join(file);
    let built = gathered.build(&merge.params, &path, stop);
    let segment = built.inspect_err(|_| Segment::remove(&path))?;
    tracing::info!(rows = segment.rows().len(), file, "graph built");
    Ok(Some(SealedSegment { file: file.to_owned(), segment }))
}
