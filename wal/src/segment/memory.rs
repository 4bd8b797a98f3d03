//! The disk of tests: segments in memory that can tear, lie, fail and lose power.
//!
//! Invariants: byte for byte the layout of the segment on disk; bytes are in the cache until they are synced, and
//! only synced bytes outlive `crash`; after a crash every older handle fails.
//! Deliberately absent: reordering of writes within one commit beyond what `Fault` names.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use super::{
    Disk, ReadAt, Segment, SegmentNo, SideFile,
    layout::{self, AROUND, HEADER, Spec},
};
use crate::frame::SegmentKey;

/// What goes wrong with one commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The write fails and leaves nothing.
    Eio,
    /// The write succeeds, the fsync fails, and the cache forgets that the bytes are not on the disk.
    LostFsync,
    /// The disk says the fsync succeeded; it did not.
    SilentlyLost,
    /// Power fails when this many bytes of the entry are on the disk.
    Torn {
        /// Bytes kept.
        bytes: usize,
    },
    /// Power fails; the entry's space holds zeroes up to its last bytes, which made it.
    Zeroed {
        /// Bytes kept at the end of the entry.
        tail_bytes: usize,
    },
    /// Power fails; every third byte of the entry is wrong.
    Garbled,
    /// The segment panics.
    Panic,
    /// The commit takes this long.
    Slow(std::time::Duration),
}

/// A disk in memory, shared by its clones.
#[derive(Clone)]
pub struct MemoryDisk {
    state: Arc<Mutex<State>>,
}

struct State {
    capacity: u64,
    segments: BTreeMap<SegmentNo, Stored>,
    sides: BTreeMap<SideFile, Vec<u8>>,
    /// Handles of an earlier life are dead.
    life: u64,
    dead: bool,
    commits: u64,
    faults: BTreeMap<u64, Fault>,
}

#[derive(Default)]
struct Stored {
    cached: Vec<u8>,
    synced: Vec<u8>,
    allocated: u64,
}

impl MemoryDisk {
    /// An empty disk of this many bytes.
    pub fn new(capacity_bytes: u64) -> MemoryDisk {
        let state = State {
            capacity: capacity_bytes,
            segments: BTreeMap::new(),
            sides: BTreeMap::new(),
            life: 0,
            dead: false,
            commits: 0,
            faults: BTreeMap::new(),
        };
        MemoryDisk { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Lets the commit after the next `after` ones go wrong.
    pub fn fail_commit(&self, after: u64, fault: Fault) {
        let mut state = self.state();
        let at = state.commits + after;
        state.faults.insert(at, fault);
    }

    /// Power fails now (if it has not yet) and returns: bytes not synced are gone, open handles fail for ever.
    pub fn crash(&self) {
        let mut state = self.state();
        state.power_fails();
        state.dead = false;
        state.faults.clear();
    }

    /// The process ends and starts again, the machine does not: the cache stays.
    pub fn restart_process(&self) {
        let mut state = self.state();
        state.life += 1;
        state.dead = false;
        state.faults.clear();
    }

    /// Everything is gone: an empty disk.
    pub fn wipe(&self) {
        let mut state = self.state();
        state.life += 1;
        state.dead = false;
        state.faults.clear();
        state.segments.clear();
        state.sides.clear();
    }

    /// Whether there is nothing on the disk.
    pub fn is_empty(&self) -> bool {
        let state = self.state();
        state.segments.is_empty() && state.sides.is_empty()
    }

    /// Sets the size of the disk.
    pub fn set_capacity_bytes(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// The numbers of the segments present.
    pub fn segments(&self) -> Vec<u64> {
        self.state().segments.keys().map(|number| number.0).collect()
    }

    /// The bytes of a segment, as a reader would find them.
    pub fn bytes(&self, segment: u64) -> Option<Vec<u8>> {
        self.state().segments.get(&SegmentNo(segment)).map(|stored| stored.cached.clone())
    }

    /// Changes a byte of a segment behind the log's back; false if it is not there.
    pub fn flip(&self, segment: u64, offset: u64, mask: u8) -> bool {
        let mut state = self.state();
        let Some(stored) = state.segments.get_mut(&SegmentNo(segment)) else { return false };
        let at = offset as usize;
        let hit = at < stored.cached.len();
        if hit {
            stored.cached[at] ^= mask;
            stored.synced[at] ^= mask;
        }
        hit
    }

    /// The bytes of a segment's side file, if it has one.
    pub fn seal(&self, segment: u64) -> Option<Vec<u8>> {
        self.state().sides.get(&SideFile::Seal(SegmentNo(segment))).cloned()
    }

    /// Replaces or removes a segment's side file behind the log's back.
    pub fn set_seal(&self, segment: u64, bytes: Option<Vec<u8>>) {
        let file = SideFile::Seal(SegmentNo(segment));
        let mut state = self.state();
        match bytes {
            Some(bytes) => drop(state.sides.insert(file, bytes)),
            None => drop(state.sides.remove(&file)),
        }
    }

    /// Bytes taken by segments.
    pub fn used_bytes(&self) -> u64 {
        self.state().used()
    }

    /// A copy of everything on the disk, unaffected by what happens to this one.
    pub fn copy(&self) -> MemoryDisk {
        let state = self.state();
        let twin = MemoryDisk::new(state.capacity);
        {
            let mut other = twin.state();
            other.sides = state.sides.clone();
            for (number, stored) in &state.segments {
                let Stored { cached, synced, allocated } = stored;
                let stored = Stored { cached: cached.clone(), synced: synced.clone(), allocated: *allocated };
                other.segments.insert(*number, stored);
            }
        }
        twin
    }

    pub(crate) fn handle(&self) -> Handle {
        Handle { life: self.state().life, disk: self.clone() }
    }
}

impl State {
    fn used(&self) -> u64 {
        self.segments.values().map(|stored| stored.allocated).sum()
    }

    fn power_fails(&mut self) {
        self.dead = true;
        self.life += 1;
        for stored in self.segments.values_mut() {
            stored.cached = stored.synced.clone();
        }
    }
}

fn gone() -> io::Error {
    io::Error::other("the power failed")
}

/// The disk as one life of the log sees it.
pub(crate) struct Handle {
    disk: MemoryDisk,
    life: u64,
}

impl Handle {
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.disk.state();
        if state.dead || state.life != self.life { Err(gone()) } else { Ok(state) }
    }

    fn stored<R>(&self, number: SegmentNo, with: impl FnOnce(&mut Stored) -> R) -> io::Result<R> {
        let mut state = self.state()?;
        state.segments.get_mut(&number).map(with).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for Handle {
    fn list(&self) -> io::Result<Vec<SegmentNo>> {
        Ok(self.state()?.segments.keys().copied().collect())
    }

    fn create(&self, number: SegmentNo, spec: &Spec) -> io::Result<Box<dyn Segment>> {
        let mut state = self.state()?;
        if state.segments.contains_key(&number) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if state.used() + spec.bytes > state.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let key = SegmentKey { store: spec.store, segment: number };
        let mut bytes = vec![0; spec.bytes as usize];
        bytes[..HEADER].copy_from_slice(&layout::header(key, spec.bytes));
        let stored = Stored { cached: bytes.clone(), synced: bytes, allocated: spec.bytes };
        state.segments.insert(number, stored);
        let handle = Handle { disk: self.disk.clone(), life: self.life };
        Ok(Box::new(MemorySegment { handle, number, capacity: spec.bytes, end: HEADER as u64, entries: 0 }))
    }

    fn open(&self, number: SegmentNo) -> io::Result<Arc<dyn ReadAt>> {
        self.stored(number, |_| ())?;
        let handle = Handle { disk: self.disk.clone(), life: self.life };
        Ok(Arc::new(MemoryReader { handle, number }))
    }

    fn settle(&self, number: SegmentNo) -> io::Result<()> {
        self.stored(number, |stored| stored.cached = stored.synced.clone())
    }

    fn punch(&self, number: SegmentNo, from: u64) -> io::Result<()> {
        self.stored(number, |stored| stored.allocated = stored.allocated.min(from.next_multiple_of(4096)))
    }

    fn allocated(&self, number: SegmentNo) -> io::Result<u64> {
        let seal = self.state()?.sides.get(&SideFile::Seal(number)).map_or(0, |seal| seal.len() as u64);
        self.stored(number, |stored| stored.allocated + seal)
    }

    fn remove(&self, number: SegmentNo) -> io::Result<()> {
        let mut state = self.state()?;
        state.segments.remove(&number);
        state.sides.remove(&SideFile::Seal(number));
        Ok(())
    }

    fn put(&self, file: SideFile, bytes: &[u8]) -> io::Result<()> {
        self.state()?.sides.insert(file, bytes.to_vec());
        Ok(())
    }

    fn get(&self, file: SideFile) -> io::Result<Option<Vec<u8>>> {
        Ok(self.state()?.sides.get(&file).cloned())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.state()?;
        Ok(state.capacity.saturating_sub(state.used()))
    }

    fn blocks(&self) -> bool {
        false
    }

    fn release(&self) {}
}

struct MemoryReader {
    handle: Handle,
    number: SegmentNo,
}

impl ReadAt for MemoryReader {
    fn len(&self) -> io::Result<u64> {
        self.handle.stored(self.number, |stored| stored.cached.len() as u64)
    }

    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.handle.stored(self.number, |stored| {
            let from = offset as usize;
            let found = stored.cached.get(from..from + into.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            into.copy_from_slice(found);
            Ok(())
        })?
    }
}

struct MemorySegment {
    handle: Handle,
    number: SegmentNo,
    capacity: u64,
    end: u64,
    entries: u64,
}

impl Segment for MemorySegment {
    fn number(&self) -> SegmentNo {
        self.number
    }

    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn end(&self) -> u64 {
        self.end
    }

    fn commit(&mut self, chunk: &[u8]) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(AROUND + chunk.len());
        bytes.extend_from_slice(&layout::before(self.entries + 1, chunk.len()));
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(&layout::after(chunk));

        let fault = {
            let mut state = self.handle.state()?;
            let at = state.commits;
            state.commits += 1;
            state.faults.remove(&at)
        };
        if let Some(Fault::Slow(time)) = fault {
            std::thread::sleep(time);
        }
        let mut state = self.handle.state()?;
        let stored = state.segments.get_mut(&self.number).ok_or(io::ErrorKind::NotFound)?;
        let start = self.end as usize;
        let place = start..start + bytes.len();
        if place.end > stored.cached.len() {
            return Err(io::Error::other("a commit beyond the end of its segment"));
        }
        let on_disk: Option<Vec<u8>> = match fault {
            None | Some(Fault::Slow(_)) => {
                stored.synced[place.clone()].copy_from_slice(&bytes);
                None
            }
            Some(Fault::SilentlyLost) => None,
            Some(Fault::Eio) => return Err(io::Error::other("injected write error")),
            Some(Fault::Panic) => panic!("injected panic"),
            Some(Fault::LostFsync) => {
                stored.cached[place].copy_from_slice(&bytes);
                return Err(io::Error::other("injected fsync error"));
            }
            Some(Fault::Torn { bytes: kept }) => Some(bytes[..kept.min(bytes.len())].to_vec()),
            Some(Fault::Zeroed { tail_bytes }) => {
                let zeroes = bytes.len() - tail_bytes.min(bytes.len());
                Some(bytes.iter().enumerate().map(|(at, byte)| if at < zeroes { 0 } else { *byte }).collect())
            }
            Some(Fault::Garbled) => Some(
                bytes
                    .iter()
                    .enumerate()
                    .map(|(at, byte)| if at % 3 == 0 { byte ^ 0x5a } else { *byte })
                    .collect(),
            ),
        };
        if let Some(kept) = on_disk {
            stored.synced[start..start + kept.len()].copy_from_slice(&kept);
            state.power_fails();
            return Err(gone());
        }
        stored.cached[place].copy_from_slice(&bytes);
        self.end += bytes.len() as u64;
        self.entries += 1;
        Ok(())
    }

    fn close(self: Box<Self>) -> io::Result<()> {
        Ok(())
    }
}
