//! One record: what happened to one group, as bytes.
//!
//! Invariants: a record's crc covers its length, kind, group and body, so it can be checked alone when it is read
//! at its place; an unknown kind is refused, never skipped.
//! Not here: how records are joined and chained (see `frame`).
//! Source: the table in `docs/FORMATS.md`, pinned by `tests/golden/`.

use std::fmt;

use bytes::Bytes;

use crate::{
    entry::{Entry, GroupId, HardState, LogId, Vote},
    wire::{Take, put_hard, put_id, put_id_or_none, put_vote},
};

/// Bytes before a record's body: `length u32 | kind u8 | 0 u8 x3 | group u32 | crc u32`.
pub(crate) const HEADER: usize = 16;
/// Bytes of an entry's record before its payload.
pub(crate) const ENTRY_HEAD: usize = HEADER + 24;

const CRC_AT: usize = 12;

/// What a record says, without an entry's payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new entry at the end of the group's log.
    Entry(LogId),
    /// A live entry logged anew, so that the segment of its first copy can go.
    Again(LogId),
    /// A vote was given.
    Vote(Vote),
    /// Everything after this entry is gone.
    Truncate(Option<LogId>),
    /// Entries up to here became history.
    Purge(LogId),
    /// So far the group was known to be committed.
    Committed(Option<LogId>),
    /// The group begins.
    Create,
    /// The group ends.
    Drop,
    /// The group's hard state logged anew, so that older segments can go.
    State(Box<HardState>),
}

impl Event {
    fn kind(&self) -> u8 {
        match self {
            Event::Entry(_) => 1,
            Event::Again(_) => 2,
            Event::Vote(_) => 3,
            Event::Truncate(_) => 4,
            Event::Purge(_) => 5,
            Event::Committed(_) => 6,
            Event::Create => 7,
            Event::Drop => 8,
            Event::State(_) => 9,
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |id: &Option<LogId>| id.map_or("none".to_string(), |id| id.to_string());
        match self {
            Event::Entry(id) => write!(out, "entry {id}"),
            Event::Again(id) => write!(out, "again {id}"),
            Event::Vote(vote) => write!(out, "vote {vote}"),
            Event::Truncate(last) => write!(out, "truncate after {}", or_none(last)),
            Event::Purge(upto) => write!(out, "purge {upto}"),
            Event::Committed(id) => write!(out, "committed {}", or_none(id)),
            Event::Create => write!(out, "create"),
            Event::Drop => write!(out, "drop"),
            Event::State(hard) => {
                let vote = hard.vote.map_or("none".to_string(), |vote| vote.to_string());
                let (purged, committed, last) =
                    (or_none(&hard.purged), or_none(&hard.committed), or_none(&hard.last));
                write!(out, "state vote {vote}, purged {purged}, committed {committed}, last {last}")
            }
        }
    }
}

/// Appends a record's head (all but an entry's payload) to `out`, crc included; returns the crc.
pub(crate) fn encode_head(out: &mut Vec<u8>, group: GroupId, event: &Event, payload: &[u8]) -> u32 {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER]);
    match event {
        Event::Entry(id) | Event::Again(id) | Event::Purge(id) => put_id(out, *id),
        Event::Vote(vote) => put_vote(out, *vote),
        Event::Truncate(id) | Event::Committed(id) => put_id_or_none(out, *id),
        Event::Create | Event::Drop => {}
        Event::State(hard) => put_hard(out, hard),
    }
    let body = out.len() - start - HEADER + payload.len();
    let head = &mut out[start..];
    head[0..4].copy_from_slice(&u32::try_from(body).expect("bounded by the segment size").to_le_bytes());
    head[4] = event.kind();
    head[8..12].copy_from_slice(&group.0.to_le_bytes());
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..CRC_AT]);
    crc.update(&head[HEADER..]);
    crc.update(payload);
    let crc = crc.finalize();
    head[CRC_AT..HEADER].copy_from_slice(&crc.to_le_bytes());
    crc
}

/// Why bytes are not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotARecord {
    /// The length, the crc or a field does not fit: damage.
    Damaged,
    /// Intact, but of a kind this version does not know.
    UnknownKind(u8),
}

/// A record as it lies in a slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawRecord<'a> {
    bytes: &'a [u8],
}

impl<'a> RawRecord<'a> {
    /// The record at the start of `rest`, its crc not yet checked; `None` if its length does not fit.
    pub(crate) fn first_of(rest: &'a [u8]) -> Option<RawRecord<'a>> {
        let body = Take::new(rest).u32()? as usize;
        let bytes = rest.get(..HEADER.checked_add(body)?)?;
        Some(RawRecord { bytes })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn stored_crc(&self) -> u32 {
        Take::new(&self.bytes[CRC_AT..]).u32().expect("a record has a header")
    }

    pub(crate) fn crc_holds(&self) -> bool {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&self.bytes[..CRC_AT]);
        crc.update(&self.bytes[HEADER..]);
        crc.finalize() == self.stored_crc()
    }

    pub(crate) fn group(&self) -> GroupId {
        GroupId(Take::new(&self.bytes[8..]).u32().expect("a record has a header"))
    }

    /// Takes a record apart whose crc holds; for entries, `payload_at` is where the payload starts.
    pub(crate) fn decode(&self) -> Result<Event, NotARecord> {
        let kind = self.bytes[4];
        if self.bytes[5..8] != [0; 3] {
            return Err(NotARecord::UnknownKind(kind));
        }
        let mut take = Take::new(&self.bytes[HEADER..]);
        let event = match kind {
            1 => take.id().map(Event::Entry),
            2 => take.id().map(Event::Again),
            3 => take.vote().map(Event::Vote),
            4 => take.id_or_none().map(Event::Truncate),
            5 => take.id().map(Event::Purge),
            6 => take.id_or_none().map(Event::Committed),
            7 => Some(Event::Create),
            8 => Some(Event::Drop),
            9 => take.hard().map(|hard| Event::State(Box::new(hard))),
            other => return Err(NotARecord::UnknownKind(other)),
        };
        let event = event.ok_or(NotARecord::Damaged)?;
        let has_payload = matches!(event, Event::Entry(_) | Event::Again(_));
        if !has_payload && !take.is_empty() {
            return Err(NotARecord::Damaged);
        }
        Ok(event)
    }
}

/// Takes an entry out of the bytes of its record; `None` if they are not an intact entry of this group.
pub(crate) fn decode_entry(record: Bytes, group: GroupId) -> Option<Entry> {
    let raw = RawRecord::first_of(&record).filter(|raw| raw.len() == record.len())?;
    if !raw.crc_holds() || raw.group() != group {
        return None;
    }
    match raw.decode().ok()? {
        Event::Entry(id) | Event::Again(id) => Some(Entry { id, payload: record.slice(ENTRY_HEAD..) }),
        _ => None,
    }
}
