//! The log of one node: opening it, its groups, closing it.
//!
//! Invariants: threads are started in `open` and ended in `stop`, in that order reversed; whoever holds a `Log` or a
//! `GroupLog` keeps it open.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc as thread_mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    entry::{GroupId, LogIndex},
    error::Error,
    failure::Failure,
    group::{GroupCell, GroupLog, Inner, hot_bytes, settled},
    host::{Host, Tasks},
    opener::Opener,
    options::Options,
    queue::{Closed, Queue, Request},
    reader::Readers,
    record::Event,
    recovery::{Recovered, Recovery, recover},
    retention::{self, Segments, Task},
    scan::Damage,
    scrub::Scrub,
    segment::{Disk, folder::Folder, layout::Spec, memory::MemoryDisk},
    status::{LogStatus, Meters},
    writer::Writer,
};

/// What the threads and handles of one log share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) store: u64,
    pub(crate) host: Host,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) failure: Failure,
    pub(crate) segments: Segments,
    pub(crate) readers: Readers,
    pub(crate) meters: Meters,
    pub(crate) hot_bytes: AtomicUsize,
    pub(crate) purge_wanted: watch::Sender<BTreeMap<GroupId, LogIndex>>,
    pub(crate) damage: watch::Sender<Vec<Damage>>,
    groups: RwLock<BTreeMap<GroupId, Arc<GroupCell>>>,
    tasks: mpsc::UnboundedSender<Task>,
    free_bytes: AtomicU64,
    no_room: AtomicBool,
}

impl Shared {
    /// Turns writes away while the disk is at its floor or the next segment can't be made.
    pub(crate) fn check_space(&self) -> Result<(), Error> {
        let (free, floor) = (self.free_bytes.load(Relaxed), self.options.free_bytes_min);
        if free < floor || self.no_room.load(Relaxed) { Err(Error::Full { free, floor }) } else { Ok(()) }
    }

    /// Looks how much of the disk is free.
    pub(crate) fn look_at_space(&self) {
        if let Ok(free) = self.disk.free_bytes() {
            self.free_bytes.store(free, Relaxed);
        }
    }

    /// Notes whether the next segment can be made; gives what was noted before.
    pub(crate) fn set_no_room(&self, no_room: bool) -> bool {
        self.no_room.swap(no_room, Relaxed)
    }

    pub(crate) fn tell_retention(&self, task: Task) {
        // It ends only when the log does; a seal it misses is made anew at the next start.
        let _ = self.tasks.send(task);
    }

    pub(crate) fn nudge_retention(&self) {
        self.tell_retention(Task::Look);
    }

    /// All groups, in order.
    pub(crate) fn cells(&self) -> Vec<Arc<GroupCell>> {
        self.groups.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// The log and what works for it.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    workers: Mutex<Option<Workers>>,
}

enum Workers {
    Threads(Threads),
    /// In a simulation: the ends of the writer and of retention.
    Tasks([oneshot::Receiver<()>; 2]),
}

struct Threads {
    writer: JoinHandle<()>,
    retention: JoinHandle<()>,
    watchdog: JoinHandle<()>,
    /// Dropped to end the watchdog.
    watching: thread_mpsc::Sender<()>,
}

impl Core {
    fn workers(&self) -> MutexGuard<'_, Option<Workers>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As `stop`, on tasks.
    async fn stop_tasks(&self, [writer, retention]: [oneshot::Receiver<()>; 2]) {
        self.shared.queue.close(Closed::ShutDown);
        let _ = writer.await;
        self.shared.tell_retention(Task::Stop);
        let _ = retention.await;
        self.shared.disk.release();
    }

    /// Drains and closes everything. May block as long as the last write takes.
    fn stop(&self) {
        self.shared.queue.close(Closed::ShutDown);
        let threads = match self.workers().take() {
            Some(Workers::Threads(threads)) => threads,
            // They end by themselves.
            Some(Workers::Tasks(_)) => return self.shared.tell_retention(Task::Stop),
            None => return,
        };
        let Threads { writer, retention, watchdog, watching } = threads;
        drop(watching);
        let here = thread::current().id();
        if [&writer, &retention, &watchdog].iter().any(|thread| thread.thread().id() == here) {
            // The last handle went in a callback; the threads end without being waited for.
            self.shared.tell_retention(Task::Stop);
            return;
        }
        // A writer that hangs can't be waited for, and its segment is still its own.
        let hangs = || self.shared.failure.why().is_some() && !writer.is_finished();
        for _ in 0..100 {
            if hangs() {
                thread::sleep(Duration::from_millis(10));
            }
        }
        if hangs() {
            return;
        }
        let _ = writer.join();
        self.shared.tell_retention(Task::Stop);
        let _ = retention.join();
        let _ = watchdog.join();
        self.shared.disk.release();
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A handle to a node's log; clones are the same log. When the last handle goes, the log is closed.
#[derive(Clone)]
pub struct Log {
    core: Arc<Core>,
}

impl Log {
    /// Opens the log in `dir`, creating it if missing. Blocks while it reads what follows the last seal.
    ///
    /// Errors: `Locked`, `Corrupt` (damage that only peers can repair), `Format`, `Option`, `Io`; nothing was written
    /// that a later open would miss.
    pub fn open(dir: &Path, options: Options) -> Result<(Log, Recovery), Error> {
        options.check()?;
        Log::open_on(Arc::new(Folder::open(dir)?), options, Host::Threads)
    }

    /// Opens a log in memory: the same code over segments that tests can break.
    ///
    /// Errors: as `open`.
    pub fn open_in_memory(disk: MemoryDisk, options: Options) -> Result<(Log, Recovery), Error> {
        options.check()?;
        Log::open_on(Arc::new(disk.handle()), options, Host::Threads)
    }

    /// As `open_in_memory`, on a simulation's tasks and clock instead of threads; within a tokio runtime.
    ///
    /// Errors: as `open`.
    pub fn open_simulated(
        disk: &MemoryDisk,
        options: Options,
        tasks: Arc<dyn Tasks>,
    ) -> Result<(Log, Recovery), Error> {
        options.check()?;
        Log::open_on(Arc::new(disk.handle()), options, Host::Tasks(tasks))
    }

    fn open_on(disk: Arc<dyn Disk>, options: Options, host: Host) -> Result<(Log, Recovery), Error> {
        let recovered = recover(&*disk, &host)?;
        let Recovered { anchor, groups, fold, last, next, kept, unread, report } = recovered;
        let spec =
            Spec { store: anchor.store, bytes: options.segment_bytes, buffer_bytes: options.buffer_bytes };
        let doing = || format!("creating segment {}", next.0);
        let segment = disk.create(next, &spec).map_err(Error::io(doing()))?;
        let queue = Arc::new(Queue::new(options.queue_bytes_max));
        let (tasks, retention_tasks) = mpsc::unbounded_channel();
        let cells = groups.into_iter().map(|(id, inner)| (id, GroupCell::new(id, inner))).collect();
        let shared = Arc::new(Shared {
            store: anchor.store,
            host,
            failure: Failure::new(queue.clone()),
            queue,
            segments: Segments::new(kept),
            readers: Readers::default(),
            meters: Meters::default(),
            hot_bytes: AtomicUsize::new(0),
            purge_wanted: watch::Sender::new(BTreeMap::new()),
            damage: watch::Sender::new(report.damage.clone()),
            groups: RwLock::new(cells),
            tasks,
            free_bytes: AtomicU64::new(u64::MAX),
            no_room: AtomicBool::new(false),
            options,
            disk,
        });
        shared.segments.started(next, segment.capacity());
        shared.look_at_space();
        let scrub = Scrub::new(unread);
        let workers = match shared.host.clone() {
            Host::Threads => {
                let opener = Opener::start(shared.clone(), spec, next.next())?;
                let writer = Writer::new(shared.clone(), segment, opener, fold, last);
                Workers::Threads(start(&shared, writer, retention_tasks, scrub)?)
            }
            Host::Tasks(tasks) => {
                let opener = Opener::at_once(shared.clone(), spec, next.next());
                let writer = Writer::new(shared.clone(), segment, opener, fold, last);
                Workers::Tasks(start_tasks(&shared, &tasks, writer, retention_tasks, scrub))
            }
        };
        let core = Core { shared, workers: Mutex::new(Some(workers)) };
        tracing::info!(?report, "the log is open");
        Ok((Log { core: Arc::new(core) }, report))
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.core.shared
    }

    /// Creates a group; durable on return.
    ///
    /// Errors: `GroupExists`, `Full`, `Closed` (no effect), `Poisoned` (effect unknown).
    pub async fn create_group(&self, id: GroupId) -> Result<GroupLog, Error> {
        self.shared().check_space()?;
        let (told, outcome) = oneshot::channel();
        let cell = GroupCell::new(id, Inner::default());
        {
            let mut groups = self.shared().groups.write().unwrap_or_else(PoisonError::into_inner);
            if groups.contains_key(&id) {
                return Err(Error::GroupExists(id));
            }
            let done = Box::new(move |outcome| drop(told.send(outcome)));
            self.shared().queue.push(Request::single(cell.clone(), Event::Create, Some(done)))?;
            groups.insert(id, cell.clone());
        }
        settled(outcome).await?;
        Ok(GroupLog { cell, core: self.core.clone() })
    }

    /// A group that exists.
    pub fn group(&self, id: GroupId) -> Option<GroupLog> {
        let groups = self.shared().groups.read().unwrap_or_else(PoisonError::into_inner);
        groups.get(&id).map(|cell| GroupLog { cell: cell.clone(), core: self.core.clone() })
    }

    /// Drops a group with all its entries; durable on return. Its id is not to be used again.
    ///
    /// Errors: `UnknownGroup`, `Closed` (no effect), `Poisoned` (effect unknown).
    pub async fn drop_group(&self, id: GroupId) -> Result<(), Error> {
        let (told, outcome) = oneshot::channel();
        {
            let mut groups = self.shared().groups.write().unwrap_or_else(PoisonError::into_inner);
            let cell = groups.get(&id).cloned().ok_or(Error::UnknownGroup(id))?;
            let mut inner = cell.lock();
            let done = Box::new(move |outcome| drop(told.send(outcome)));
            self.shared().queue.push(Request::single(cell.clone(), Event::Drop, Some(done)))?;
            inner.dropped = true;
            let bytes = inner.hot.drain(..).map(|entry| hot_bytes(&entry)).sum();
            self.shared().hot_bytes.fetch_sub(bytes, Relaxed);
            groups.remove(&id);
        }
        settled(outcome).await?;
        self.shared().nudge_retention();
        Ok(())
    }

    /// The ids of all groups, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        self.shared().groups.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// The log as it is now.
    pub fn status(&self) -> LogStatus {
        let shared = self.shared();
        let (segments, oldest, newest) = shared.segments.span();
        let meters = &shared.meters;
        LogStatus {
            bytes: shared.segments.bytes() + shared.options.segment_bytes,
            segments,
            oldest_segment: oldest.0,
            newest_segment: newest.0,
            commits: meters.commits.load(Relaxed),
            records: meters.records.load(Relaxed),
            record_bytes: meters.record_bytes.load(Relaxed),
            marks: meters.marks.load(Relaxed),
            hot_bytes: shared.hot_bytes.load(Relaxed) as u64,
            fsync_micros: meters.fsync_micros.snapshot(),
            batch_records: meters.batch_records.snapshot(),
            batch_bytes: meters.batch_bytes.snapshot(),
            roll_micros: meters.roll_micros.snapshot(),
            free_bytes: shared.free_bytes.load(Relaxed),
            damaged: shared.damage.borrow().len() as u64,
            failure: shared.failure.why(),
        }
    }

    /// `Some(why)` once the log is poisoned: the node must exit.
    pub fn failure(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.shared().failure.subscribe()
    }

    /// Groups whose live entries pin a segment beyond the retention target: their owners should checkpoint and purge
    /// up to this index. What is wanted already counts as a change.
    pub fn purge_wanted(&self) -> watch::Receiver<BTreeMap<GroupId, LogIndex>> {
        let mut wanted = self.shared().purge_wanted.subscribe();
        wanted.mark_changed();
        wanted
    }

    /// Damage found at the start and by the slow look at sealed segments since.
    pub fn damage(&self) -> watch::Receiver<Vec<Damage>> {
        self.shared().damage.subscribe()
    }

    /// Keeps history of a group from `floor` on for a reader that owes it, up to `Options::history_bytes_max`;
    /// `None` lets it go. Not remembered over a restart. Unknown groups are ignored.
    pub fn set_history_floor(&self, id: GroupId, floor: Option<LogIndex>) {
        if let Some(group) = self.group(id) {
            group.cell.lock().history_floor = floor;
            self.shared().nudge_retention();
        }
    }

    /// Drains the queue, confirms the last frame with an empty one, and closes. Later calls find it closed.
    ///
    /// Errors: `Poisoned` if the log failed before or meanwhile.
    pub async fn shutdown(&self) -> Result<(), Error> {
        let core = self.core.clone();
        let ends = {
            let mut workers = core.workers();
            match workers.take() {
                Some(Workers::Tasks(ends)) => Some(ends),
                threads => {
                    *workers = threads;
                    None
                }
            }
        };
        if let Some(ends) = ends {
            core.stop_tasks(ends).await;
        } else {
            #[allow(clippy::disallowed_methods, reason = "of a log on threads")]
            let stopped = tokio::task::spawn_blocking(move || core.stop()).await;
            stopped.map_err(|error| Error::io("closing the log")(std::io::Error::other(error)))?;
        }
        match self.shared().failure.why() {
            Some(why) => Err(Error::Poisoned { why }),
            None => Ok(()),
        }
    }
}

fn start(
    shared: &Arc<Shared>,
    writer: Writer,
    mut tasks: mpsc::UnboundedReceiver<Task>,
    scrub: Scrub,
) -> Result<Threads, Error> {
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        let spawned = thread::Builder::new().name(name.into()).spawn(work);
        spawned.map_err(Error::io(format!("starting thread {name}")))
    };
    let writing = shared.clone();
    let writer = move || {
        if catch_unwind(AssertUnwindSafe(|| writer.run())).is_err() {
            writing.failure.poison("the writer panicked");
        }
    };
    let keeping = shared.clone();
    let clock = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let clock = clock.map_err(Error::io("starting the clock of retention"))?;
    let keeper = move || clock.block_on(retention::keep(&keeping, &mut tasks, scrub));
    let (watching, watched) = thread_mpsc::channel();
    let guarded = shared.clone();
    let watchdog = move || {
        let patience = guarded.options.watchdog;
        let step = (patience / 8).clamp(Duration::from_millis(5), Duration::from_secs(1));
        while watched.recv_timeout(step) == Err(thread_mpsc::RecvTimeoutError::Timeout) {
            guarded.failure.watch(patience);
        }
    };
    Ok(Threads {
        writer: spawn("annal-log-write", Box::new(writer))?,
        retention: spawn("annal-log-keep", Box::new(keeper))?,
        watchdog: spawn("annal-log-watch", Box::new(watchdog))?,
        watching,
    })
}

fn start_tasks(
    shared: &Arc<Shared>,
    on: &Arc<dyn Tasks>,
    writer: Writer,
    mut tasks: mpsc::UnboundedReceiver<Task>,
    scrub: Scrub,
) -> [oneshot::Receiver<()>; 2] {
    let (written, writer_ended) = oneshot::channel();
    let (kept, retention_ended) = oneshot::channel();
    let (clock, keeping) = (on.clone(), shared.clone());
    on.spawn(Box::pin(async move {
        writer.run_as_task(&*clock).await;
        let _ = written.send(());
    }));
    on.spawn(Box::pin(async move {
        retention::keep(&keeping, &mut tasks, scrub).await;
        let _ = kept.send(());
    }));
    [writer_ended, retention_ended]
}
