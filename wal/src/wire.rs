//! Little-endian numbers into and out of byte slices.
//!
//! Invariants: reading past the end is `None`, never a panic, since what is read may be damaged.

use crate::entry::{HardState, LogId, LogIndex, Term, Vote};

/// A place in a slice from which numbers are taken one after another.
pub(crate) struct Take<'a> {
    rest: &'a [u8],
}

impl<'a> Take<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Take<'a> {
        Take { rest: bytes }
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A byte that is 0 or 1; anything else is damage or a newer format.
    pub(crate) fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub(crate) fn id(&mut self) -> Option<LogId> {
        Some(LogId { term: Term(self.u64()?), leader: self.u64()?, index: LogIndex(self.u64()?) })
    }

    pub(crate) fn id_or_none(&mut self) -> Option<Option<LogId>> {
        let present = self.flag()?;
        let id = self.id()?;
        Some(present.then_some(id))
    }

    pub(crate) fn vote(&mut self) -> Option<Vote> {
        Some(Vote { term: Term(self.u64()?), node: self.u64()?, committed: self.flag()? })
    }

    pub(crate) fn hard(&mut self) -> Option<HardState> {
        let voted = self.flag()?;
        let vote = self.vote()?;
        Some(HardState {
            vote: voted.then_some(vote),
            purged: self.id_or_none()?,
            committed: self.id_or_none()?,
            last: self.id_or_none()?,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

pub(crate) fn put_id(out: &mut Vec<u8>, id: LogId) {
    out.extend_from_slice(&id.term.0.to_le_bytes());
    out.extend_from_slice(&id.leader.to_le_bytes());
    out.extend_from_slice(&id.index.0.to_le_bytes());
}

pub(crate) fn put_id_or_none(out: &mut Vec<u8>, id: Option<LogId>) {
    out.push(u8::from(id.is_some()));
    put_id(out, id.unwrap_or_default());
}

pub(crate) fn put_vote(out: &mut Vec<u8>, vote: Vote) {
    out.extend_from_slice(&vote.term.0.to_le_bytes());
    out.extend_from_slice(&vote.node.to_le_bytes());
    out.push(u8::from(vote.committed));
}

pub(crate) fn put_hard(out: &mut Vec<u8>, hard: &HardState) {
    out.push(u8::from(hard.vote.is_some()));
    put_vote(out, hard.vote.unwrap_or_default());
    put_id_or_none(out, hard.purged);
    put_id_or_none(out, hard.committed);
    put_id_or_none(out, hard.last);
}
