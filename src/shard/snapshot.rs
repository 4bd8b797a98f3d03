//! A shard's whole state as a stream, and back.
//!
//! The stream is the shard's keyspace at one view, in frames of about 1 MiB, each with its checksum, and an end
//! that counts them all. It is installed into a keyspace of its own; only when all of it was read, checked and
//! made durable does one write switch the shard over.
//!
//! Invariants: a damaged, cut or foreign stream changes nothing; a crash while installing leaves the old state
//! (the half-filled keyspace is dropped when the shard is opened).
//! Not here: the index files; they are built again from the store.
//! Layout: `docs/FORMATS.md`.

use super::points::damaged;
use crate::{
    machine::MachineError,
    store::{Keyspace, Store, View},
};
use bytes::{Buf, BufMut};
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"ANNALSH1";
const FRAME_BYTES: usize = 1 << 20;
/// A frame holds whole entries, so it can be larger than [`FRAME_BYTES`] by one entry.
const FRAME_BYTES_MAX: u32 = 1 << 30;

/// Writes every key of a keyspace at a view.
pub(super) fn write(view: &View, keyspace: &Keyspace, out: &mut dyn Write) -> Result<(), MachineError> {
    let mut stream = FrameWriter {
        out,
        frame: Vec::with_capacity(2 * FRAME_BYTES),
        whole: Default::default(),
        entries: 0,
    };
    stream.out.write_all(MAGIC).map_err(failed)?;
    for item in view.prefix(keyspace, &[]) {
        let (key, value) = item?;
        stream.entry(&key, &value).map_err(failed)?;
    }
    stream.end().map_err(failed)
}

struct FrameWriter<'a> {
    out: &'a mut dyn Write,
    frame: Vec<u8>,
    /// Checksum of all frames.
    whole: crc32fast::Hasher,
    entries: u64,
}

impl FrameWriter<'_> {
    fn entry(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.frame.put_u32_le(key.len() as u32);
        self.frame.put_u32_le(value.len() as u32);
        self.frame.put_slice(key);
        self.frame.put_slice(value);
        self.entries += 1;
        if self.frame.len() >= FRAME_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.whole.update(&self.frame);
        self.out.write_all(&(self.frame.len() as u32).to_le_bytes())?;
        self.out.write_all(&crc32fast::hash(&self.frame).to_le_bytes())?;
        self.out.write_all(&self.frame)?;
        self.frame.clear();
        Ok(())
    }

    /// The end: an empty frame whose checksum is of all frames, then the count of entries twice.
    fn end(mut self) -> io::Result<()> {
        if !self.frame.is_empty() {
            self.flush()?;
        }
        self.out.write_all(&0u32.to_le_bytes())?;
        self.out.write_all(&self.whole.finalize().to_le_bytes())?;
        self.out.write_all(&self.entries.to_le_bytes())?;
        self.out.write_all(&(!self.entries).to_le_bytes())?;
        self.out.flush()
    }
}

/// Reads a stream into an empty keyspace. Errors: it is not whole; the keyspace then holds rubbish.
pub(super) fn read(input: &mut dyn Read, store: &Store, keyspace: &Keyspace) -> Result<(), MachineError> {
    let mut magic = [0; 8];
    input.read_exact(&mut magic).map_err(failed)?;
    if magic != *MAGIC {
        return Err(wrong("it is no snapshot of a shard"));
    }
    let mut whole = crc32fast::Hasher::new();
    let mut entries = 0u64;
    loop {
        let (length, checksum) = (read_u32(input)?, read_u32(input)?);
        if length == 0 {
            let (count, inverse) = (read_u64(input)?, read_u64(input)?);
            if whole.finalize() != checksum || count != entries || inverse != !entries {
                return Err(wrong("its end does not fit what came before"));
            }
            return Ok(());
        }
        if length > FRAME_BYTES_MAX {
            return Err(wrong("a frame is longer than any"));
        }
        let mut frame = Vec::new();
        input.take(u64::from(length)).read_to_end(&mut frame).map_err(failed)?;
        if frame.len() != length as usize || crc32fast::hash(&frame) != checksum {
            return Err(wrong("checksum of a frame"));
        }
        whole.update(&frame);
        let mut batch = store.batch();
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let (key, value) = entry(&mut rest).ok_or_else(|| wrong("an entry is cut"))?;
            batch.put(keyspace, key, value);
            entries += 1;
        }
        batch.commit()?;
    }
}

fn entry<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    if rest.len() < 8 {
        return None;
    }
    let (key, value) = (rest.get_u32_le() as usize, rest.get_u32_le() as usize);
    let (key, after) = rest.split_at_checked(key)?;
    let (value, after) = after.split_at_checked(value)?;
    *rest = after;
    Some((key, value))
}

fn read_u32(input: &mut dyn Read) -> Result<u32, MachineError> {
    let mut bytes = [0; 4];
    input.read_exact(&mut bytes).map_err(failed)?;
    Ok(u32::from_le_bytes(bytes))
}

fn read_u64(input: &mut dyn Read) -> Result<u64, MachineError> {
    let mut bytes = [0; 8];
    input.read_exact(&mut bytes).map_err(failed)?;
    Ok(u64::from_le_bytes(bytes))
}

fn wrong(why: &str) -> MachineError {
    damaged("snapshot", why)
}

fn failed(source: io::Error) -> MachineError {
    MachineError::Io { what: "snapshot".to_owned(), source }
}
