//! The ways between simulated regions: questions and streams that are late, lost, cut off one way, and break.
//!
//! Invariants: what a region does for another, it does in a task of the life of one of its nodes; what is lost shows only
//! when whoever asked gives up; a stream that was cut is broken when the way is open again.
//! Not here: HTTP (`tests/regions.rs` has that).

use crate::trace::Trace;
use annal::{
    cluster::ClusterError,
    model::{Effect, Generation},
    net::ByteStream,
    region::{Answer, Ask, Link, Question, Regions, Wanted},
    world::Life,
};
use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream};
use rand::{Rng, rngs::StdRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout_at},
};

/// All ways.
pub(crate) struct Ways {
    trace: Arc<Trace>,
    state: Mutex<State>,
}

struct State {
    rng: StdRng,
    /// By region and node.
    doors: BTreeMap<String, BTreeMap<String, Door>>,
    /// From which region to which nothing comes.
    cuts: BTreeSet<(String, String)>,
    /// Milliseconds that a way takes, at most.
    delay_ms: u64,
    lost_per_mille: u32,
    heard: Vec<Heard>,
    messages: u64,
}

/// A node of a region that is up.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) life: Life,
    pub(crate) regions: Regions,
}

/// A region has answered that it knows of a newer home.
#[derive(Clone, Debug)]
pub(crate) struct Heard {
    pub(crate) region: String,
    pub(crate) generation: Generation,
    pub(crate) at: Instant,
}

type Result<T> = std::result::Result<T, ClusterError>;

/// Pieces of a stream under way.
const PIECES: usize = 4;
/// How often a stream that is cut looks whether the way is open again.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Ways {
    pub(crate) fn new(rng: StdRng, trace: Arc<Trace>) -> Arc<Ways> {
        let (doors, cuts, heard) = Default::default();
        let state = State { rng, doors, cuts, delay_ms: 0, lost_per_mille: 0, heard, messages: 0 };
        Arc::new(Ways { trace, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The way of a region to the others.
    pub(crate) fn link(self: &Arc<Ways>, region: &str) -> Arc<dyn Link> {
        Arc::new(Way { ways: self.clone(), region: region.to_owned() })
    }

    /// A node of a region is up.
    pub(crate) fn open(&self, region: &str, node: &str, door: Door) {
        self.state().doors.entry(region.to_owned()).or_default().insert(node.to_owned(), door);
    }

    /// A node of a region that is up, any of them.
    pub(crate) fn door(&self, region: &str) -> Option<Door> {
        let mut state = self.state();
        let up: Vec<Door> =
            state.doors.get(region)?.values().filter(|d| !d.life.is_over()).cloned().collect();
        (!up.is_empty()).then(|| up[state.rng.random_range(0..up.len())].clone())
    }

    /// Cuts one direction.
    pub(crate) fn cut(&self, from: &str, to: &str) {
        self.state().cuts.insert((from.to_owned(), to.to_owned()));
    }

    /// Every way takes up to so long,
    pub(crate) fn delay(&self, up_to_ms: u64) {
        self.state().delay_ms = up_to_ms;
    }

    /// and loses so many of a thousand messages.
    pub(crate) fn lose(&self, per_mille: u32) {
        self.state().lost_per_mille = per_mille;
    }

    /// Every way is open again.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.cuts.clear();
        state.lost_per_mille = 0;
    }

    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.state().heard.clone()
    }

    pub(crate) fn messages(&self) -> u64 {
        self.state().messages
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.state().cuts.contains(&(from.to_owned(), to.to_owned()))
    }

    /// How long a message is on its way; none if it is lost.
    fn fate(&self, from: &str, to: &str) -> Option<Duration> {
        let mut state = self.state();
        state.messages += 1;
        let (delay, per_mille) = (state.delay_ms, state.lost_per_mille);
        let lost = per_mille > 0 && state.rng.random_range(0..1000) < per_mille;
        let late = Duration::from_millis(state.rng.random_range(0..=delay));
        let cut = state.cuts.contains(&(from.to_owned(), to.to_owned()));
        (!lost && !cut).then_some(late)
    }

    /// One way of a message: it arrives after a while, or never.
    async fn pass(&self, from: &str, to: &str) {
        match self.fate(from, to) {
            Some(late) => sleep(late).await,
            None => std::future::pending().await,
        }
    }

    /// The message arrives at a node of the other region.
    async fn reach(&self, from: &str, to: &str) -> Result<Door> {
        self.pass(from, to).await;
        self.door(to).ok_or_else(|| nobody(to))
    }

    fn note(&self, region: &str, ask: &Ask, at: Instant) {
        let Ask::Fence { homes } = ask else { return };
        let Some(generation) = homes.last().map(|home| home.generation) else { return };
        self.trace.line(format_args!("{region} has heard of home {}", generation.0));
        self.state().heard.push(Heard { region: region.to_owned(), generation, at });
    }
}

/// Where a region is found.
pub(crate) fn url_of(region: &str) -> String {
    format!("http://{region}")
}

struct Way {
    ways: Arc<Ways>,
    region: String,
}

impl Way {
    fn to(&self, url: &str) -> (Arc<Ways>, String, String) {
        let to = url.strip_prefix("http://").unwrap_or(url);
        (self.ways.clone(), self.region.clone(), to.to_owned())
    }
}

impl Link for Way {
    fn ask(&self, url: &str, question: Question, deadline: Instant) -> BoxFuture<'static, Result<Answer>> {
        let (ways, from, to) = self.to(url);
        Box::pin(async move {
            let asked = async {
                let Door { life, regions } = ways.reach(&from, &to).await?;
                let (noting, region) = (ways.clone(), to.clone());
                let answering = life.spawn(async move {
                    let ask = question.ask.clone();
                    let answer = regions.answer(question).await;
                    if answer.is_ok() {
                        noting.note(&region, &ask, Instant::now());
                    }
                    answer
                });
                let answer = answering.await.map_err(|_| nobody(&to))?;
                ways.pass(&to, &from).await;
                answer
            };
            timeout_at(deadline, asked).await.unwrap_or_else(|_| Err(late(&to)))
        })
    }

    fn stream(&self, url: &str, wanted: Wanted, deadline: Instant) -> BoxFuture<'static, Result<ByteStream>> {
        let (ways, from, to) = self.to(url);
        Box::pin(async move {
            let opened = async {
                let Door { life, regions } = ways.reach(&from, &to).await?;
                let (tell, told) = oneshot::channel();
                let (send, pieces) = mpsc::channel(PIECES);
                let (carrying, back, forth) = (ways.clone(), from.clone(), to.clone());
                life.spawn(async move {
                    match regions.answer_stream(wanted).await {
                        Err(error) => drop(tell.send(Err(error))),
                        Ok(stream) => {
                            let _ = tell.send(Ok(()));
                            carry(&carrying, stream, &send, (&forth, &back)).await;
                        }
                    }
                });
                told.await.map_err(|_| nobody(&to))??;
                ways.pass(&to, &from).await;
                Ok(received(pieces))
            };
            timeout_at(deadline, opened).await.unwrap_or_else(|_| Err(late(&to)))
        })
    }
}

/// What is sent of a stream: pieces, and that it has ended.
type Piece = Option<io::Result<Bytes>>;

/// Carries a stream's pieces over, each after the way's time, until nobody wants them.
async fn carry(ways: &Ways, mut stream: ByteStream, send: &mpsc::Sender<Piece>, (from, to): (&str, &str)) {
    loop {
        let piece = tokio::select! {
            piece = stream.next() => piece,
            () = send.closed() => return,
        };
        let was_cut = ways.is_cut(from, to);
        while ways.is_cut(from, to) && !send.is_closed() {
            sleep(LOOK_EVERY).await;
        }
        let piece = match (was_cut, ways.fate(from, to)) {
            (false, Some(late)) => {
                sleep(late).await;
                piece
            }
            _ => Some(Err(io::ErrorKind::ConnectionReset.into())),
        };
        let last = !matches!(piece, Some(Ok(_)));
        if send.send(piece).await.is_err() || last {
            return;
        }
    }
}

/// The pieces at the other end: one whose sender died is broken.
fn received(pieces: mpsc::Receiver<Piece>) -> ByteStream {
    stream::unfold(Some(pieces), |pieces| async move {
        let mut pieces = pieces?;
        match pieces.recv().await {
            Some(None) => None,
            Some(Some(Ok(piece))) => Some((Ok(piece), Some(pieces))),
            Some(Some(Err(error))) => Some((Err(error), None)),
            None => Some((Err(io::ErrorKind::ConnectionReset.into()), None)),
        }
    })
    .boxed()
}

fn nobody(region: &str) -> ClusterError {
    ClusterError::Unavailable(format!("nobody answers in {region}"))
}

fn late(region: &str) -> ClusterError {
    ClusterError::Timeout { what: format!("asking {region}"), effect: Effect::Unknown }
}
