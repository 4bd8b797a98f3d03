//! The thread that turns deltas into graphs, and the files of the index.
//!
//! ```text
//! sealed deltas, small segments -> live rows of one view -> graph -> file (fsync) -> published -> manifest -> old files deleted
//! ```
//!
//! Invariants: the manifest names only durable files; a file is deleted only when neither the manifest nor the
//! newest view names it (older views keep their mappings); a build that the shard has outrun is thrown away.
//! At rest there is one segment a vector, with a delta of less than a sixteenth of its rows.
//! Not here: what is worth merging (`vector_index`), waiting of writers (`mod`).

use super::{
    Shard,
    points::{self, Slot, damaged},
    search::ReadView,
    slots::{LiveSet, SlotTable},
    snapshot,
    vector_index::{
        IndexError, Merge, SealedSegment, VectorIndex, VectorIndexes,
        build::BuildError,
        manifest::{Entry, Manifest},
        segment::Segment,
    },
};
use crate::{
    machine::MachineError,
    model::{Schema, VectorParams},
    mutant::{self, Mutant},
    store::{Keyspace, View},
    world::{self, Rests},
};
use roaring::RoaringBitmap;
use std::{
    collections::BTreeMap,
    fs, io,
    ops::Bound,
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
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

/// Whose turn it is to build, and whether it is in the way of searches; shared by all shards of a node, so that one graph is
/// built at a time.
#[derive(Clone, Debug, Default)]
pub struct BuildTurn(Arc<Turn>);

#[derive(Debug, Default)]
struct Turn {
    taken: Mutex<()>,
    /// How many there were.
    searches: AtomicU64,
}

impl BuildTurn {
    /// Says that there is a search.
    pub(super) fn search(&self) {
        self.0.searches.fetch_add(1, Ordering::Relaxed);
    }
}

/// A shard's index thread and folder.
pub(super) struct Indexer {
    folder: PathBuf,
    /// What the folder's manifest says.
    manifest: Mutex<Manifest>,
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
    /// The keeper of a folder; what an interrupted install left there goes.
    pub(super) fn new(folder: PathBuf, manifest: Manifest) -> Self {
        let left = fs::remove_dir_all(folder.join(INCOMING));
        if let Err(error) = left
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(folder = %folder.display(), %error, "what an install left cannot be removed");
        }
        Indexer {
            folder,
            manifest: Mutex::new(manifest),
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
    fn next_file(&self) -> String {
        let mut manifest = lock(&self.manifest);
        manifest.next += 1;
        format!("{:08}.seg", manifest.next)
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
        let bytes_max = shard.options.segment_bytes_max;
        let next = view.vectors.iter().find_map(|(name, index)| {
            let merge = index.next_merge(&view.live, bytes_max)?;
            Some((name.clone(), merge))
        });
        let Some((name, merge)) = next else { return Ok(false) };
        let _turn = self.turn(&shard.options.build_turn)?;
        fs::create_dir_all(&self.folder)?;
        let file = self.next_file();
        let new = self.apart(shard, |stop| self.build(&view, &merge, &file, stop))?.map(Arc::new);
        let new = new.filter(|_| !mutant::is(Mutant::IndexDropOnSwap));
        shard.replace_parts(&name, &merge, new);
        self.write_manifest(shard)?;
        Ok(true)
    }

    /// Waits for the turn of this shard, unless it is to stop.
    fn turn<'a>(&self, turn: &'a BuildTurn) -> Result<MutexGuard<'a, ()>, IndexError> {
        loop {
            match turn.0.taken.try_lock() {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(guard)) => return Ok(guard.into_inner()),
                Err(TryLockError::WouldBlock) if self.stop.load(Ordering::Relaxed) => {
                    return Err(BuildError::Stopped.into());
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Does work on a thread that takes no lock, since it may wait long for a processor: all searches and writes come first.
    /// Once too much waits for graphs, work that was begun so is stopped, and begun anew on a thread that does not give way.
    /// Either rests often while there are searches.
    ///
    /// Errors: those of the work, which is [`BuildError::Stopped`] when it is told to; there is no thread.
    pub(super) fn apart<T: Send>(
        &self,
        shard: &Shard,
        work: impl Fn(&AtomicBool) -> Result<T, IndexError> + Sync,
    ) -> Result<T, IndexError> {
        loop {
            let (hurries, stop) = (shard.builds_are_late(), AtomicBool::new(false));
            let (rests, long) =
                (Arc::new(Rests::default()), if hurries { LATE_BUILD_RESTS } else { BUILD_RESTS });
            rests.last(long);
            let run = || {
                if !hurries {
                    world::give_way(BUILD_NICE);
                }
                world::with_rests(rests.clone(), || work(&stop))
            };
            let searches = &shard.options.build_turn.0.searches;
            let mut seen = searches.load(Ordering::Relaxed);
            let look = || {
                let stops = self.stop.load(Ordering::Relaxed) || !hurries && shard.builds_are_late();
                stop.store(stops, Ordering::Relaxed);
                let before = std::mem::replace(&mut seen, searches.load(Ordering::Relaxed));
                rests.last(if seen > before { long } else { Duration::ZERO });
            };
            match world::apart(run, look)? {
                Err(IndexError::Build(BuildError::Stopped)) if !self.stop.load(Ordering::Relaxed) => {}
                done => return done,
            }
        }
    }

    fn build(
        &self,
        view: &ReadView,
        merge: &Merge,
        file: &str,
        stop: &AtomicBool,
    ) -> Result<Option<SealedSegment>, IndexError> {
        let gathered = merge.gather(&view.live, &view.slots);
        if gathered.rows.is_empty() {
            return Ok(None);
        }
        let segment = gathered.build(&merge.params, &self.folder.join(file), stop)?;
        tracing::info!(rows = segment.rows().len(), file, "graph built");
        Ok(Some(SealedSegment { file: file.to_owned(), segment }))
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
        manifest.sweep(&self.folder)
    }

    fn failed(&self, source: io::Error) -> MachineError {
        MachineError::Io { what: self.folder.display().to_string(), source }
    }
}

/// Opens the index of every vector of a schema: whole files first, then the rows no file has, from the store.
///
/// `next_slot`: the first the store has not given out. A file that is damaged, of another schema, or that knows
/// slots the store does not, is left out; its live rows come from the store and are built again.
pub(super) fn load(
    folder: &Path,
    manifest: &Manifest,
    schema: &Schema,
    next_slot: Slot,
    (live, slots): (&LiveSet, &SlotTable),
    (view, keyspace): (&View, &Keyspace),
    seal_bytes: usize,
) -> Result<VectorIndexes, MachineError> {
    let all = live.to_bitmap();
    let mut indexes = VectorIndexes::new();
    let mut missing: BTreeMap<&str, RoaringBitmap> = BTreeMap::new();
    for (name, params) in &schema.vectors {
        let mut covered = RoaringBitmap::new();
        let mut segments = Vec::new();
        for entry in manifest.segments.get(name).into_iter().flatten() {
            match open_segment(folder, entry, params, next_slot, slots, &covered) {
                Ok((segment, rows)) => {
                    covered |= rows;
                    segments.push(Arc::new(segment));
                }
                Err(why) => {
                    tracing::warn!(file = entry.file, why, "index file left out; it is built again");
                }
            }
        }
        missing.insert(name, &all - covered);
        indexes.insert(name.clone(), VectorIndex::new(*params, segments));
    }
    for (name, missing) in missing {
        let index = indexes.get_mut(name).ok_or_else(|| damaged("schema", "a vector without an index"))?;
        read_rows(index, name, &missing, view, keyspace, seal_bytes)?;
    }
    Ok(indexes)
}

/// Opens one file and gives the live slots it holds.
fn open_segment(
    folder: &Path,
    entry: &Entry,
    params: &VectorParams,
    next_slot: Slot,
    slots: &SlotTable,
    covered: &RoaringBitmap,
) -> Result<(SealedSegment, RoaringBitmap), String> {
    let segment = Segment::open(&folder.join(&entry.file), params.residence).map_err(|e| e.to_string())?;
    if Entry::of(&entry.file, &segment) != *entry {
        return Err("it is not the file the manifest names".to_owned());
    }
    if !segment.fits(params.distance, params.dim as usize) {
        return Err("it is of another schema".to_owned());
    }
    if !segment.rows().is_sorted_by(|a, b| a.slot < b.slot) {
        return Err("its rows do not ascend".to_owned());
    }
    if segment.rows().last().is_some_and(|row| row.slot >= next_slot) {
        return Err("it is ahead of the store".to_owned());
    }
    let mut rows = RoaringBitmap::new();
    for row in segment.rows() {
        match slots.born(row.slot) {
            None => {}
            Some(born) if born == row.version => _ = rows.insert(row.slot),
            Some(born) => {
                return Err(format!("slot {} is of position {born}, not {}", row.slot, row.version));
            }
        }
    }
    if !rows.is_disjoint(covered) {
        return Err("another file has some of its rows".to_owned());
    }
    Ok((SealedSegment { file: entry.file.clone(), segment }, rows))
}

/// Rows that are read and appended at a time.
const ROWS_AT_ONCE: usize = 1024;

/// Appends the vectors of `slots` that the store has.
fn read_rows(
    index: &mut VectorIndex,
    name: &str,
    slots: &RoaringBitmap,
    view: &View,
    keyspace: &Keyspace,
    seal_bytes: usize,
) -> Result<(), MachineError> {
    let (mut read, mut values) = (Vec::new(), Vec::new());
    let mut runs = slots.iter();
    while let Some(run) = runs.next_range() {
        let from = Bound::Included(points::vector_key(*run.start(), ""));
        let to = match run.end().checked_add(1) {
            Some(end) => Bound::Excluded(points::vector_key(end, "")),
            None => Bound::Excluded(vec![points::VECTOR + 1]),
        };
        for item in view.range(keyspace, (from, to)) {
            let (key, bytes) = item?;
            if key[5..] != *name.as_bytes() {
                continue;
            }
            let row = points::floats_of_bytes(&bytes)?;
            if row.len() != index.params.dim as usize {
                return Err(damaged(
                    "vector",
                    format!("{} numbers in one of {}", row.len(), index.params.dim),
                ));
            }
            read.push(points::slot_of_key(&key)?);
            values.extend(row);
            if read.len() == ROWS_AT_ONCE {
                index.append(std::mem::take(&mut read), std::mem::take(&mut values), seal_bytes);
            }
        }
    }
    index.append(read, values, seal_bytes);
    Ok(())
}
