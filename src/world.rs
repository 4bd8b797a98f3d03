//! What a program takes from outside of itself: the time of day, chance, tasks, and threads that may wait.
//!
//! Invariants: the only place of this crate that asks the system for any of them (tokio's clock apart, which a
//! simulation pauses); within a simulation all of it follows from one seed, on one thread, and a task belongs to the
//! [`Life`] of the node that spawned it, so that a node can be killed between any two of its steps.
//! Not here: sockets (`net`), files, what a simulation does with it (`tests/simulation/`).

use futures::{TryFutureExt, future::Either};
use std::{
    cell::{Cell, RefCell},
    collections::hash_map::RandomState,
    future::Future,
    hash::{BuildHasher, Hasher},
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinHandle},
    time::Instant,
};

thread_local! {
    static SIMULATED: Cell<Option<Simulated>> = const { Cell::new(None) };
    static CHANCE: Cell<u64> = Cell::new(RandomState::new().build_hasher().finish());
    /// Whose task is being polled.
    static LIFE: RefCell<Option<Life>> = const { RefCell::new(None) };
    /// How long work rests, and since when it has not.
    static RESTS: RefCell<Option<(Arc<Rests>, Instant)>> = const { RefCell::new(None) };
}

#[derive(Clone, Copy)]
struct Simulated {
    began: Instant,
}

/// When simulations take place, in seconds since 1970.
const SIMULATED_UNIX_SECONDS: u64 = 1_800_000_000;

/// Makes everything this thread does from now on follow from a seed; within a tokio runtime of this thread alone, whose
/// clock is paused.
pub fn simulate(seed: u64) {
    SIMULATED.set(Some(Simulated { began: Instant::now() }));
    CHANCE.set(seed);
}

/// Whether this thread simulates.
pub fn is_simulated() -> bool {
    SIMULATED.get().is_some()
}

/// The time since 1970.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn since_1970() -> Duration {
    match SIMULATED.get() {
        Some(Simulated { began }) => Duration::from_secs(SIMULATED_UNIX_SECONDS) + began.elapsed(),
        None => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default(),
    }
}

/// A number that nobody expects; not for secrets.
///
/// Source: SplitMix64 (Steele et al., OOPSLA 2014).
pub fn chance() -> u64 {
    let seed = CHANCE.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    CHANCE.set(seed);
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A name that nothing else has.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn unique() -> uuid::Uuid {
    match is_simulated() {
        true => uuid::Uuid::from_u64_pair(chance(), chance()),
        false => uuid::Uuid::new_v4(),
    }
}

/// Runs a task.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn spawn<F>(task: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match LIFE.with_borrow(Clone::clone) {
        None => tokio::spawn(task),
        Some(life) => life.spawn(task),
    }
}

/// Runs work on a thread that may wait for disks; in a simulation, after some steps of others.
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    if !is_simulated() {
        return tokio::task::spawn_blocking(work);
    }
    let steps = chance() % 8;
    spawn(async move {
        match steps {
            0..6 => {
                for _ in 0..steps {
                    tokio::task::yield_now().await;
                }
            }
            long => tokio::time::sleep(Duration::from_millis(long - 5)).await,
        }
        work()
    })
}

/// Lets the thread rest; in a simulation no time passes, since its only thread cannot wait.
pub fn rest(time: Duration) {
    if !is_simulated() {
        std::thread::sleep(time);
    }
}

/// Has this thread give way to those of a lower number, 19 being the most polite. On Linux this is of the thread alone, and
/// elsewhere nothing; a refusal costs nothing but that.
pub fn give_way(nice: i32) {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::nice(nice) {
        tracing::debug!(%error, "a thread keeps its priority");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = nice;
}

/// How long work that rests goes on at a time.
const STROKE: Duration = Duration::from_micros(200);

/// How long work rests after each stroke of a fifth of a millisecond; it may change meanwhile. A thread that computes for
/// long, of whatever priority, keeps a core from others that wait in the queue of another core; one that sleeps often does not.
#[derive(Debug, Default)]
pub struct Rests(AtomicU64);

impl Rests {
    /// Each lasts so long from now on; there are none that last no time.
    pub fn last(&self, time: Duration) {
        self.0.store(time.as_micros() as u64, Relaxed);
    }
}

/// Does work that rests wherever it [breathes](breathe).
pub fn with_rests<T>(rests: Arc<Rests>, work: impl FnOnce() -> T) -> T {
    let before = RESTS.replace(Some((rests, Instant::now())));
    let done = work();
    RESTS.set(before);
    done
}

/// A place where work may rest, every few microseconds of it; nothing outside of [`with_rests`].
pub fn breathe() {
    RESTS.with_borrow_mut(|rests| {
        if let Some((rests, since)) = rests
            && since.elapsed() >= STROKE
        {
            let time = Duration::from_micros(rests.0.load(Relaxed));
            if !time.is_zero() {
                rest(time);
            }
            *since = Instant::now();
        }
    });
}

/// Bytes between two breaths of work that goes through many.
const BREATH_BYTES: usize = 1 << 17;

/// The bytes in pieces, with a place to rest before each.
pub fn breathing(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(BREATH_BYTES).inspect(|_| breathe())
}

/// How often who waits for work apart looks at something else.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Runs work on a thread of its own and waits for it, so that what it changes of its thread ends with it; `look` is called now
/// and then meanwhile.
///
/// Errors: there is no thread for it; it was not begun.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send, mut look: impl FnMut()) -> io::Result<T> {
    std::thread::scope(|scope| {
        let (done, result) = mpsc::channel();
        let run = move || _ = done.send(work());
        let thread = std::thread::Builder::new().name("apart".to_owned()).spawn_scoped(scope, run)?;
        loop {
            match result.recv_timeout(LOOK_EVERY) {
                Ok(result) => return Ok(result),
                Err(mpsc::RecvTimeoutError::Timeout) => look(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
        match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => Err(io::Error::other("work apart ended without a result")),
        }
    })
}

/// How much work that is done aside gives way.
const ASIDE_NICE: i32 = 19;

/// Runs work that nobody waits for on a thread of its own, to which all others come first; in a simulation, as
/// [`blocking`] does. If there is no thread for it, it is dropped.
pub fn aside(work: impl FnOnce() + Send + 'static) {
    if is_simulated() {
        drop(blocking(work));
        return;
    }
    let run = move || {
        give_way(ASIDE_NICE);
        work();
    };
    if let Err(error) = std::thread::Builder::new().name("aside".to_owned()).spawn(run) {
        tracing::debug!(%error, "no thread for work aside");
    }
}

/// How much work that takes long gives way: with two threads before it, it still gets about a twentieth of a core.
const PATIENT_NICE: i32 = 10;

/// Runs work that takes long, and that others can wait for, on a thread of its own, to which searches and writes come
/// first; in a simulation, as [`blocking`] does. It begins at once, whether or not anybody waits for it.
///
/// Errors: it panicked; there is no thread for it.
pub fn patiently<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send {
    if is_simulated() {
        return Either::Left(blocking(work).map_err(io::Error::other));
    }
    let (done, result) = oneshot::channel();
    let run = move || {
        give_way(PATIENT_NICE);
        // Nobody may wait for it.
        let _ = done.send(work());
    };
    let begun = std::thread::Builder::new().name("patient".to_owned()).spawn(run);
    Either::Right(async move {
        begun?;
        result.await.map_err(|_| io::Error::other("work that takes long panicked"))
    })
}

/// One life of a simulated node, from its start until it is killed or stops; its tasks live no longer.
#[derive(Clone)]
pub struct Life(Arc<Living>);

struct Living {
    over: AtomicBool,
    tasks: AtomicUsize,
    handles: Mutex<Vec<AbortHandle>>,
}

impl Life {
    /// A new one.
    #[expect(clippy::new_without_default, reason = "a life is begun, not assumed")]
    pub fn new() -> Life {
        let (over, tasks, handles) = Default::default();
        Life(Arc::new(Living { over, tasks, handles }))
    }

    /// Runs a task that belongs to this life, as do all that it spawns. If the life is over, the task never runs.
    #[allow(clippy::disallowed_methods, reason = "the one place")]
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.0.tasks.fetch_add(1, Relaxed);
        let handle = tokio::spawn(Within { life: self.clone(), task: Some(Box::pin(task)) });
        if self.0.over.load(Relaxed) {
            handle.abort();
        } else {
            let mut handles = self.0.handles.lock().unwrap_or_else(PoisonError::into_inner);
            if handles.len() == handles.capacity() {
                handles.retain(|handle| !handle.is_finished());
            }
            handles.push(handle.abort_handle());
        }
        handle
    }

    /// Ends it: none of its tasks takes another step. On return all are gone.
    pub async fn end(&self) {
        self.0.over.store(true, Relaxed);
        let handles = std::mem::take(&mut *self.0.handles.lock().unwrap_or_else(PoisonError::into_inner));
        handles.iter().for_each(AbortHandle::abort);
        while self.0.tasks.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    }

    /// Whether it was ended.
    pub fn is_over(&self) -> bool {
        self.0.over.load(Relaxed)
    }

    fn within<T>(&self, step: impl FnOnce() -> T) -> T {
        let before = LIFE.replace(Some(self.clone()));
        let done = step();
        LIFE.set(before);
        done
    }
}

/// A task of a life.
struct Within<F> {
    life: Life,
    task: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Within<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let life = self.life.clone();
        match &mut self.task {
            Some(task) if !life.is_over() => life.within(|| task.as_mut().poll(cx)),
            _ => Poll::Pending,
        }
    }
}

impl<F> Drop for Within<F> {
    fn drop(&mut self) {
        let task = self.task.take();
        self.life.clone().within(|| drop(task));
        self.life.0.tasks.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulated<T>(seed: u64, run: impl Future<Output = T>) -> T {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            simulate(seed);
            run.await
        })
    }

    #[test]
    fn a_seed_gives_the_same_chances_names_and_time() {
        let told = |seed| {
            std::thread::spawn(move || {
                simulated(seed, async {
                    tokio::time::sleep(Duration::from_millis(1234)).await;
                    let worked = blocking(chance).await.unwrap();
                    (chance(), unique(), since_1970().as_secs(), worked)
                })
            })
            .join()
            .unwrap()
        };
        assert_eq!(told(7), told(7));
        assert_ne!(told(7).0, told(8).0);
        assert_eq!(told(7).2, SIMULATED_UNIX_SECONDS + 1);
    }

    #[tokio::test]
    async fn work_that_takes_long_gives_way_and_tells_of_its_end() {
        let niceness = || std::thread::spawn(|| rustix::process::nice(0).unwrap()).join().unwrap();
        let worked = patiently(move || (niceness(), std::thread::current().name().map(str::to_owned)));
        let (nice, name) = worked.await.unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(nice, (niceness() + PATIENT_NICE).min(19));
        }
        assert_eq!(name.as_deref(), Some("patient"));
        assert!(patiently(|| panic!("as a test wants")).await.is_err());
        // It needs nobody who waits.
        let (done, seen) = oneshot::channel();
        drop(patiently(move || done.send(1)));
        assert_eq!(seen.await, Ok(1));
    }

    #[test]
    fn work_apart_has_a_thread_of_its_own_and_whoever_waits_looks_about() {
        let here = std::thread::current().id();
        let work = || {
            std::thread::sleep(3 * LOOK_EVERY);
            std::thread::current().id()
        };
        let mut looks = 0;
        let there = apart(work, || looks += 1).expect("a thread for it");
        assert!(here != there && looks > 0, "{looks} looks");
        let panicked = std::panic::catch_unwind(|| apart(|| panic!("as a test wants"), || {}));
        assert!(panicked.is_err());
    }

    #[test]
    fn work_rests_where_it_breathes_as_long_as_it_is_to() {
        let (rests, long) = (Arc::new(Rests::default()), Duration::from_millis(20));
        let rested = || {
            std::thread::sleep(STROKE);
            let began = Instant::now();
            breathe();
            began.elapsed() >= long
        };
        let told = with_rests(rests.clone(), || {
            let no_rest = rested();
            rests.last(long);
            (no_rest, rested())
        });
        assert_eq!(told, (false, true));
        assert!(!rested(), "that is over");
        let bytes: Vec<u8> = (0..3 * BREATH_BYTES + 5).map(|n| n as u8).collect();
        assert!(breathing(&bytes).flatten().eq(&bytes));
    }

    #[test]
    fn a_life_ends_with_all_its_tasks_and_those_they_spawned() {
        let steps = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            simulated(1, async move {
                let (life, counted) = (Life::new(), steps.clone());
                life.spawn(async move {
                    let counted = counted.clone();
                    spawn(async move {
                        loop {
                            counted.fetch_add(1, Relaxed);
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    });
                    std::future::pending::<()>().await;
                });
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert!(steps.load(Relaxed) > 5);
                life.end().await;
                let at_the_end = steps.load(Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert_eq!(steps.load(Relaxed), at_the_end);
                let late = life.spawn(async { 1 });
                assert!(late.await.unwrap_err().is_cancelled());
            })
        })
        .join()
        .unwrap();
    }
}
