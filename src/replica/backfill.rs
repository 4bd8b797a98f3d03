//! What the log of another replica still has below a snapshot: fetched with it, so that history outlives its replicas.
//!
//! ```text
//!   sender   oldest ............... snapshot ...........        receiver   fetched into a file while the snapshot comes,
//!            |---- history --------|---- live --->              then appended where its log would have a hole
//! ```
//!
//! Invariants: only entries that the sender has applied are given, so all of them are committed; what is appended
//! reaches the snapshot without a hole, or nothing is; the log is written where openraft itself purges it, so that
//! nobody appends meanwhile.
//! Not here: the snapshot (`snapshot`), what is kept of history (the log's retention), who reads it (`tail`).
//!
//! Without what is fetched nothing is wrong, but whoever follows from below the snapshot must find another replica.

use super::{
    Inner, ReplicaError,
    apply::blocking,
    entry::RaftLogId,
    message::{Answer, Request},
    snapshot::nameless,
};
use crate::model::ReplicaId;
use annal_wal::{Entry, GroupLog, LogId, LogIndex, Term};
use bytes::{Buf, BufMut, BytesMut};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Seek, Write},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Entries are asked for in pieces of about this size: what is handled at one go, before others have their turn.
const ASKED_BYTES: usize = 128 << 10;
/// They are appended in pieces of about this size: each is an fsync.
const PIECE_BYTES: usize = 1 << 20;
/// How long a piece may take,
const PIECE_WITHIN: Duration = Duration::from_secs(5);
/// and how often it is asked for.
const TRIES: usize = 3;
/// Bytes in the file before an entry's payload: index, term, leader, length, checksum.
const HEAD_BYTES: usize = 8 + 8 + 8 + 4 + 4;

/// Where what was fetched waits for the log.
#[derive(Default)]
pub(super) struct Shelf(Mutex<Option<Backfill>>);

/// Entries from one index to another, without a hole.
struct Backfill {
    /// What the log here has below is committed.
    next: LogIndex,
    first: LogIndex,
    upto: LogIndex,
    /// Has no name, and goes with the process.
    file: File,
}

impl Shelf {
    fn shelf(&self) -> MutexGuard<'_, Option<Backfill>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of what was fetched and not wanted.
    pub(super) fn clear(&self) {
        *self.shelf() = None;
    }

    /// Appends what was fetched, if it fits: as far as `upto`, behind what is certain here.
    ///
    /// Errors: the log failed. If it has no room, or the file cannot be read, what was fetched is let go.
    pub(super) async fn fill(&self, log: &GroupLog, upto: LogId) -> io::Result<()> {
        let fetched = self.shelf().take_if(|fetched| fetched.upto == upto.index);
        let Some(Backfill { next, first, file, .. }) = fetched else { return Ok(()) };
        let state = log.state();
        let (last, purged) = (state.last.map(|id| id.index), state.purged.map(|id| id.index));
        if last >= Some(upto.index) || purged >= Some(next) {
            return Ok(());
        }
        // What lies beyond was perhaps never committed.
        if last >= Some(next) {
            log.truncate_after(next.0.checked_sub(1).map(LogIndex)).await.map_err(io::Error::other)?;
        }
        let mut file = BufReader::new(file);
        loop {
            let piece;
            (piece, file) = match blocking(move || Ok((read_piece(&mut file)?, file))).await {
                Ok(read) => read,
                Err(error) => {
                    tracing::warn!(group = log.id().0, %error, "fetched history cannot be read: done without");
                    return Ok(());
                }
            };
            let Some(head) = piece.first() else { return Ok(()) };
            if head.id.index == first && first > next {
                let before = LogId { index: LogIndex(first.0 - 1), ..head.id };
                log.purge(before).await.map_err(io::Error::other)?;
            }
            match log.append(piece, |_| ()).await {
                Ok(()) => {}
                Err(annal_wal::Error::Full { .. }) => return Ok(()),
                Err(error) => return Err(io::Error::other(error)),
            }
        }
    }
}

impl Inner {
    /// Fetches what the sender of a snapshot has of the log up to it. What cannot be had is logged: the replica does
    /// without.
    pub(super) async fn fetch_history(&self, sender: ReplicaId, snapshot: Option<&RaftLogId>) {
        let Some(upto) = snapshot.map(|id| LogIndex(id.index())) else { return };
        let fetched = self.fetch(sender, upto).await.unwrap_or_else(|error| {
            tracing::warn!(replica = self.replica.0, sender = sender.0, %error, "no history comes with a snapshot");
            None
        });
        *self.shelf.shelf() = fetched;
    }

    async fn fetch(&self, sender: ReplicaId, upto: LogIndex) -> io::Result<Option<Backfill>> {
        let state = self.log.state();
        let committed = state.committed.min(state.last).max(state.purged);
        let next = committed.map_or(LogIndex(0), |id| LogIndex(id.index.0 + 1));
        let folder = self.incoming.clone();
        let mut file = blocking(move || nameless(&folder)).await?;
        let (mut at, mut first) = (next, next);
        let pace = self.peers.pace.alone();
        while at <= upto {
            let mut entries = self.ask_history(sender, at).await?;
            entries.retain(|entry| entry.id.index <= upto);
            let (Some(head), Some(last)) = (entries.first(), entries.last()) else { return Ok(None) };
            // The sender's log begins here, or by now: what came before would end in a hole.
            let anew = head.id.index > at;
            if anew {
                first = head.id.index;
            }
            at = LogIndex(last.id.index.0 + 1);
            pace.turn_comes(entries.iter().map(|entry| entry.payload.len()).sum()).await;
            file = blocking(move || {
                if anew {
                    file.set_len(0)?;
                    file.rewind()?;
                }
                file.write_all(&encode(&entries)).map(|()| file)
            })
            .await?;
        }
        let file = blocking(move || file.rewind().map(|()| file)).await?;
        Ok((next <= upto).then_some(Backfill { next, first, upto, file }))
    }

    async fn ask_history(&self, sender: ReplicaId, from: LogIndex) -> io::Result<Vec<Entry>> {
        let mut failed = io::Error::other("never asked");
        for _ in 0..TRIES {
            match self.peers.call(sender, Request::History { from }, PIECE_WITHIN).await {
                Ok(Answer::History(entries)) => return Ok(entries),
                Ok(_) => return Err(io::Error::other("an answer to something else")),
                Err(error) => failed = io::Error::other(error),
            }
        }
        Err(failed)
    }

    /// What the log here has from `from` on and the machine has applied; from its beginning if that lies above.
    /// Nothing if there is nothing of it.
    pub(super) async fn history_for_another(&self, from: LogIndex) -> Result<Vec<Entry>, ReplicaError> {
        self.progress.history_asked.notify_waiters();
        let applied = self.progress.now().index();
        let mut from = from;
        let mut entries = loop {
            match self.log.history(from, ASKED_BYTES).await {
                Err(annal_wal::Error::Gone { oldest: Some(oldest) }) => from = oldest,
                Err(annal_wal::Error::Gone { oldest: None }) => break Vec::new(),
                read => break read?,
            }
        };
        entries.retain(|entry| Some(entry.id.index) <= applied);
        Ok(entries)
    }
}

fn encode(entries: &[Entry]) -> BytesMut {
    let bytes = entries.iter().map(|entry| HEAD_BYTES + entry.payload.len()).sum();
    let mut out = BytesMut::with_capacity(bytes);
    for Entry { id, payload } in entries {
        out.put_u64_le(id.index.0);
        out.put_u64_le(id.term.0);
        out.put_u64_le(id.leader);
        out.put_u32_le(payload.len() as u32);
        out.put_u32_le(crc32fast::hash(payload));
        out.put_slice(payload);
    }
    out
}

/// The next entries of the file; none at its end.
fn read_piece(file: &mut impl BufRead) -> io::Result<Vec<Entry>> {
    let (mut piece, mut bytes) = (Vec::new(), 0);
    while bytes < PIECE_BYTES && !file.fill_buf()?.is_empty() {
        let mut head = [0; HEAD_BYTES];
        file.read_exact(&mut head)?;
        let mut head = &head[..];
        let (index, term, leader) = (head.get_u64_le(), head.get_u64_le(), head.get_u64_le());
        let (length, crc) = (head.get_u32_le() as usize, head.get_u32_le());
        let mut payload = vec![0; length];
        file.read_exact(&mut payload)?;
        if crc32fast::hash(&payload) != crc {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "history was damaged on its way"));
        }
        bytes += HEAD_BYTES + length;
        let id = LogId { term: Term(term), leader, index: LogIndex(index) };
        piece.push(Entry { id, payload: payload.into() });
    }
    Ok(piece)
}

#[cfg(test)]
mod tests {
    use super::*;
    use annal_wal::{Error, GroupId, Log, MemoryDisk, Options};
    use bytes::Bytes;

    fn entry(index: u64) -> Entry {
        let id = LogId { term: Term(3), leader: 1, index: LogIndex(index) };
        Entry { id, payload: Bytes::from(vec![index as u8; 1000]) }
    }

    fn open(disk: &MemoryDisk) -> Log {
        let options = Options { segment_bytes: 64 << 10, free_bytes_min: 128 << 10, ..Options::default() };
        Log::open_in_memory(disk.clone(), options).unwrap().0
    }

    /// A log with entries 0 to 4, of which `next` and those after it may never have been committed.
    async fn filled(disk: &MemoryDisk, next: u64, fetched: std::ops::RangeInclusive<u64>) -> GroupLog {
        let entries: Vec<_> = fetched.clone().map(entry).collect();
        filled_from(disk, next, fetched, &encode(&entries)).await
    }

    /// The same, of a file that holds these bytes.
    async fn filled_from(
        disk: &MemoryDisk,
        next: u64,
        fetched: std::ops::RangeInclusive<u64>,
        bytes: &[u8],
    ) -> GroupLog {
        let group = open(disk).create_group(GroupId(1)).await.unwrap();
        group.append((0..5).map(entry).collect(), |_| ()).await.unwrap();
        let (first, upto) = (LogIndex(*fetched.start()), LogIndex(*fetched.end()));
        let mut file = nameless(&std::env::temp_dir()).unwrap();
        file.write_all(bytes).expect("a file of its own");
        file.rewind().unwrap();
        let shelf = Shelf::default();
        *shelf.shelf() = Some(Backfill { next: LogIndex(next), first, upto, file });
        shelf.fill(&group, entry(7).id).await.unwrap();
        assert!(shelf.shelf().is_some(), "it is for another snapshot");
        shelf.fill(&group, entry(upto.0).id).await.unwrap();
        group.purge(entry(upto.0).id).await.unwrap();
        group
    }

    async fn indexes(group: &GroupLog, from: u64) -> Vec<u64> {
        let mut found: Vec<u64> = Vec::new();
        let mut from = LogIndex(from);
        loop {
            let read = group.history(from, 10_000).await.unwrap();
            let Some(last) = read.last() else { return found };
            assert!(read.iter().all(|read| *read == entry(read.id.index.0)));
            from = LogIndex(last.id.index.0 + 1);
            found.extend(read.iter().map(|read| read.id.index.0));
        }
    }

    #[tokio::test]
    async fn what_fits_closes_the_gap_and_is_found_again() {
        let disk = MemoryDisk::new(64 << 20);
        let group = filled(&disk, 3, 3..=500).await;
        assert_eq!(indexes(&group, 0).await, (0..=500).collect::<Vec<_>>());
        group.append((501..510).map(entry).collect(), |_| ()).await.unwrap();
        drop(group);
        let group = open(&disk).group(GroupId(1)).unwrap();
        assert_eq!(group.state().purged, Some(entry(500).id));
        assert_eq!(indexes(&group, 0).await.len(), 510);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_done_without() {
        let whole = encode(&(3..=5_000).map(entry).collect::<Vec<_>>());
        let mut rotten = whole.to_vec();
        // Pieces of a MiB before it are in the log by then.
        rotten[3_000_000] ^= 1;
        for bytes in [&whole[..3_000_000], &rotten, &whole[..5]] {
            let disk = MemoryDisk::new(64 << 20);
            let group = filled_from(&disk, 3, 3..=5_000, bytes).await;
            assert_eq!(group.state().purged, Some(entry(5_000).id));
            group.append((5_001..5_010).map(entry).collect(), |_| ()).await.expect("the log has room");
            let gone = group.history(LogIndex(0), 10_000).await;
            assert!(matches!(gone, Err(Error::Gone { oldest: Some(LogIndex(5_001)) })), "{gone:?}");
            assert_eq!(indexes(&group, 5_001).await, (5_001..5_010).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn what_begins_later_is_all_the_history_there_is() {
        let disk = MemoryDisk::new(64 << 20);
        let group = filled(&disk, 3, 100..=500).await;
        assert_eq!(indexes(&group, 100).await, (100..=500).collect::<Vec<_>>());
        let gone = group.history(LogIndex(99), 10_000).await;
        assert!(matches!(gone, Err(Error::Gone { oldest: Some(LogIndex(100)) })), "{gone:?}");
        let reopened = {
            drop(group);
            open(&disk).group(GroupId(1)).unwrap()
        };
        assert_eq!(indexes(&reopened, 100).await.len(), 401);
    }
}
