//! What is thrown away: whole segments, oldest first, and never what somebody still needs.
//!
//! ```text
//! oldest sealed segment beyond the target (bytes or age)
//!   owed to a reader of history, within the hard cap    -> stays
//!   live entries of a big group                          -> the owner is asked to purge, stays
//!   live entries of small groups                         -> logged anew at the head
//!   groups whose whole hard state lies here last         -> logged anew at the head
//!   then: anchor moved, folder removed
//! ```
//!
//! Invariants: what is logged anew is durable before the anchor moves, the anchor before the folder goes; the last
//! used segment stays; one idle group never pins the log.
//! Not here: what a group may purge (its owner knows).

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::mpsc, time::Instant};

use crate::{
    anchor::Anchor,
    entry::{GroupId, LogIndex},
    error::Error,
    fold::Seal,
    group::{GroupCell, Source},
    log::Shared,
    options::Options,
    queue::{Part, Request},
    reader,
    record::Event,
    scrub::Scrub,
    seal,
    segment::{SegmentNo, SideFile},
};

/// How often it looks without being asked: for age and for free space.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A group whose live entries take more than this part of a segment is asked to purge rather than logged anew.
const BIG_GROUP: u64 = 16;

/// What the retention thread is told.
pub(crate) enum Task {
    Sealed(Box<Seal>),
    /// Something was purged, or a floor was moved.
    Look,
    Stop,
}

/// A segment that is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kept {
    pub(crate) bytes: u64,
    /// When it was sealed and its side file written; `None` while it is being written.
    pub(crate) sealed_unix_ms: Option<u64>,
}

/// The segments that are kept, the one being written included.
pub(crate) struct Segments {
    kept: Mutex<BTreeMap<SegmentNo, Kept>>,
}

impl Segments {
    pub(crate) fn new(kept: BTreeMap<SegmentNo, Kept>) -> Segments {
        Segments { kept: Mutex::new(kept) }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<SegmentNo, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn started(&self, number: SegmentNo, bytes: u64) {
        self.kept().insert(number, Kept { bytes, sealed_unix_ms: None });
    }

    fn sealed(&self, number: SegmentNo, bytes: u64, unix_ms: u64) {
        self.kept().insert(number, Kept { bytes, sealed_unix_ms: Some(unix_ms) });
    }

    fn removed(&self, number: SegmentNo) {
        self.kept().remove(&number);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.kept().values().map(|kept| kept.bytes).sum()
    }

    /// Count, oldest and newest.
    pub(crate) fn span(&self) -> (u64, SegmentNo, SegmentNo) {
        let kept = self.kept();
        let end = |entry: Option<(&SegmentNo, &Kept)>| entry.map_or(SegmentNo(0), |(number, _)| *number);
        (kept.len() as u64, end(kept.first_key_value()), end(kept.last_key_value()))
    }

    /// The oldest segment, if it may go as far as its size and age are concerned; and all bytes.
    fn beyond(&self, options: &Options, now_unix_ms: u64) -> Option<(SegmentNo, u64)> {
        let kept = self.kept();
        let (oldest, first) = kept.first_key_value()?;
        let (newest, _) = kept.last_key_value()?;
        let sealed_unix_ms = first.sealed_unix_ms.filter(|_| oldest.next() < *newest)?;
        // The segment opened ahead takes its place on the disk too.
        let bytes = kept.values().map(|kept| kept.bytes).sum::<u64>() + options.segment_bytes;
        let age = Duration::from_millis(now_unix_ms.saturating_sub(sealed_unix_ms));
        let too_old = options.retention_age.is_some_and(|age_max| age > age_max);
        (bytes > options.retention_bytes || too_old).then_some((*oldest, bytes))
    }
}

/// The work of the retention thread, until it is told to stop.
pub(crate) async fn keep(shared: &Arc<Shared>, tasks: &mut mpsc::UnboundedReceiver<Task>, mut scrub: Scrub) {
    let (mut stop, mut looked) = (false, Instant::now());
    while !stop {
        let mut next = tokio::time::timeout(LOOK_EVERY, tasks.recv()).await.ok().flatten();
        // Whoever reads on asks for a look each time: it is not only looked where nobody does.
        if looked.elapsed() >= LOOK_EVERY {
            looked = Instant::now();
            shared.look_at_space();
            scrub.step(shared);
        }
        // Seals first: they spare the next start a scan.
        while let Some(task) = next {
            match task {
                Task::Sealed(sealed) => finish_seal(shared, &sealed),
                Task::Look => {}
                Task::Stop => stop = true,
            }
            next = tasks.try_recv().ok();
        }
        if !stop && shared.failure.why().is_none() {
            sweep(shared).await;
        }
    }
}

/// Writes a seal and gives the segment's unused bytes back.
fn finish_seal(shared: &Shared, sealed: &Seal) {
    let number = sealed.segment;
    let written = shared.disk.put(SideFile::Seal(number), &seal::encode(sealed, shared.store));
    if let Err(error) = written.and_then(|()| shared.disk.punch(number, sealed.end)) {
        // It costs the next start a scan, no more.
        tracing::warn!(segment = number.0, %error, "writing the seal failed");
    }
    let bytes = shared.disk.allocated(number).unwrap_or(shared.options.segment_bytes);
    shared.segments.sealed(number, bytes, sealed.sealed_unix_ms);
    shared.look_at_space();
}

async fn sweep(shared: &Arc<Shared>) {
    let mut wanted = BTreeMap::new();
    while let Some((oldest, bytes)) = shared.segments.beyond(&shared.options, shared.host.unix_ms()) {
        match free(shared, oldest, bytes, &mut wanted).await {
            Ok(true) => {}
            Ok(false) | Err(Error::Closed) => break,
            Err(error) => {
                if shared.failure.why().is_none() {
                    tracing::warn!(segment = oldest.0, %error, "retention could not free a segment");
                }
                break;
            }
        }
    }
    shared.purge_wanted.send_if_modified(|before| {
        let changed = *before != wanted;
        *before = wanted;
        changed
    });
}

/// What a group needs of a segment that is to go.
struct Need {
    cell: Arc<GroupCell>,
    /// The highest live entry in it.
    upto: LogIndex,
    bytes: u64,
}

/// Frees a segment, or finds out why it can't be freed yet: `Ok(false)`.
async fn free(
    shared: &Arc<Shared>,
    number: SegmentNo,
    log_bytes: u64,
    wanted: &mut BTreeMap<GroupId, LogIndex>,
) -> Result<bool, Error> {
    let cells = shared.cells();
    if log_bytes <= shared.options.history_bytes_max && cells.iter().any(|cell| owes_history(cell, number)) {
        return Ok(false);
    }
    let needs: Vec<Need> = cells.iter().filter_map(|cell| need(cell, number)).collect();
    let live: u64 = match needs.is_empty() {
        true => 0,
        false => cells.iter().map(|cell| live_bytes(cell)).sum(),
    };
    // If what is live takes most of the target, logging it anew would only go round in circles.
    let crowded = live > shared.options.retention_bytes / 2;
    let big = |need: &&Need| crowded || need.bytes > shared.options.segment_bytes / BIG_GROUP;
    wanted.extend(needs.iter().filter(big).map(|need| (need.cell.id, need.upto)));
    if !wanted.is_empty() {
        return Ok(false);
    }
    let mut requests = Vec::new();
    for need in &needs {
        match log_anew(shared, need, number) {
            Ok(more) => requests.extend(more),
            Err(error @ Error::Corrupt { .. }) => {
                // Its owner finds the damage when it reads, and must get the entries elsewhere.
                tracing::error!(group = need.cell.id.0, %error, "a live entry can't be logged anew");
                wanted.insert(need.cell.id, need.upto);
            }
            Err(error) => return Err(error),
        }
    }
    restate(shared, &cells, number, requests).await?;
    if !wanted.is_empty() || cells.iter().any(|cell| need(cell, number).is_some()) {
        return Ok(false);
    }
    remove(shared, &cells, number)?;
    Ok(true)
}

fn owes_history(cell: &GroupCell, number: SegmentNo) -> bool {
    let inner = cell.lock();
    inner.history_floor.is_some_and(|floor| !inner.dropped && inner.index.within(number, floor).is_some())
}

fn need(cell: &Arc<GroupCell>, number: SegmentNo) -> Option<Need> {
    let inner = cell.lock();
    let (upto, bytes) = inner.index.within(number, inner.needed_from()).filter(|_| !inner.dropped)?;
    Some(Need { cell: cell.clone(), upto, bytes })
}

fn live_bytes(cell: &GroupCell) -> u64 {
    let inner = cell.lock();
    inner.index.bytes_from(inner.needed_from())
}

/// The live entries of a group in a segment, read back to be written again.
fn log_anew(shared: &Arc<Shared>, need: &Need, number: SegmentNo) -> Result<Vec<Request>, Error> {
    let located = {
        let inner = need.cell.lock();
        inner.index.located_in(number, inner.needed_from())
    };
    let sources = located.into_iter().map(Source::Cold).collect();
    let entries = reader::read_now(shared, need.cell.id, sources).map_err(reader::Failed::into_error)?;
    let bytes_max = shared.options.batch_bytes_max.min(shared.options.record_bytes_max());
    let mut requests: Vec<Request> = Vec::new();
    for entry in entries {
        let full = |request: &Request| request.bytes + entry.payload.len() > bytes_max / 2;
        if requests.last().is_none_or(full) {
            requests.push(Request::new(need.cell.clone()));
        }
        if let Some(request) = requests.last_mut() {
            request.push(Event::Again(entry.id), entry.payload);
        }
    }
    Ok(requests)
}

/// Queues what is logged anew and the hard states that would go with the segment; waits until all of it is durable.
async fn restate(
    shared: &Arc<Shared>,
    cells: &[Arc<GroupCell>],
    number: SegmentNo,
    again: Vec<Request>,
) -> Result<(), Error> {
    let (told, mut outcomes) = mpsc::unbounded_channel();
    let queue = |mut request: Request| {
        let told = told.clone();
        request.done = Some(Box::new(move |outcome| drop(told.send(outcome))));
        shared.queue.push(request)
    };
    for request in again {
        let cell = request.cell.clone();
        // Under the lock: what is live now is live at this place of the queue.
        let inner = cell.lock();
        let live = |part: &Part| match &part.event {
            Event::Again(id) => inner.is_live(*id),
            _ => false,
        };
        // What was truncated or purged meanwhile need not be kept; the next look sees it gone.
        if !inner.dropped && request.parts.iter().all(live) {
            queue(request)?;
        }
    }
    for cell in cells {
        let inner = cell.lock();
        if !inner.dropped && inner.stated_in <= number {
            queue(Request::single(cell.clone(), Event::State(Box::new(inner.hard)), None))?;
        }
    }
    drop(told);
    while let Some(outcome) = outcomes.recv().await {
        outcome?;
    }
    Ok(())
}

fn remove(shared: &Shared, cells: &[Arc<GroupCell>], number: SegmentNo) -> Result<(), Error> {
    Anchor { store: shared.store, first: number.next() }.save(&*shared.disk)?;
    for cell in cells {
        cell.lock().index.forget_segment(number);
    }
    shared.segments.removed(number);
    shared.readers.forget(number);
    shared.disk.remove(number).map_err(Error::io(format!("removing segment {}", number.0)))?;
    tracing::debug!(segment = number.0, "a segment is gone");
    Ok(())
}
