//! A shard's whole state as a stream, and back.
//!
//! ```text
//!   magic | rows of the keyspace, in frames | their end | the index: its manifest, then file after file, in frames
//! ```
//!
//! The rows are all there is of the state; they are installed into a keyspace of its own, and only when all of
//! them were read, checked and made durable does one write switch the shard over. The index files come after
//! them, so that whoever installs need not build graphs anew; they are what the sender has mapped, read through
//! the mapping, which outlives a file's name. They may be older or newer than the rows: they are joined with
//! them as after a restart.
//!
//! Invariants: a stream whose rows are damaged, cut or foreign changes nothing; a crash while installing leaves
//! the old state (the half-filled keyspace is dropped when the shard is opened). What is wrong with an index
//! file costs its graph and never the state.
//! Layout: `docs/FORMATS.md`.

use super::{
    points::{self, damaged},
    search::ReadView,
    vector_index::manifest::{Entry, Manifest},
};
use crate::{
    machine::MachineError,
    mutant::{self, Mutant},
    store::{Keyspace, Store},
};
use bytes::{Buf, BufMut};
use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

const MAGIC: &[u8; 8] = b"ANNALSH2";
/// What is written to a store at one go: other shards' writes wait for it.
const FRAME_BYTES: usize = 128 << 10;
/// A frame holds whole rows, so it can be larger than [`FRAME_BYTES`] by one row.
const FRAME_BYTES_MAX: u32 = 1 << 30;

/// Writes every row of a view, then its index files.
pub(super) fn write(view: &ReadView, out: &mut dyn Write) -> Result<(), MachineError> {
    out.write_all(MAGIC).map_err(failed)?;
    let mut rows =
        RowWriter { out, frame: Vec::with_capacity(2 * FRAME_BYTES), whole: Default::default(), rows: 0 };
    for item in view.store.prefix(&view.keyspace, &[]) {
        let (key, value) = item?;
        rows.row(&key, &value).map_err(failed)?;
    }
    let out = rows.end().map_err(failed)?;
    write_files(view, out).map_err(failed)
}

struct RowWriter<'a> {
    out: &'a mut dyn Write,
    frame: Vec<u8>,
    /// Checksum of all frames.
    whole: crc32fast::Hasher,
    rows: u64,
}

impl<'a> RowWriter<'a> {
    fn row(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.frame.put_u32_le(key.len() as u32);
        self.frame.put_u32_le(value.len() as u32);
        self.frame.put_slice(key);
        self.frame.put_slice(value);
        self.rows += 1;
        if self.frame.len() >= FRAME_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.whole.update(&self.frame);
        write_frame(self.out, &self.frame)?;
        self.frame.clear();
        Ok(())
    }

    /// The end: an empty frame whose checksum is of all frames, then the count of rows twice.
    fn end(mut self) -> io::Result<&'a mut dyn Write> {
        if !self.frame.is_empty() {
            self.flush()?;
        }
        self.out.write_all(&0u32.to_le_bytes())?;
        self.out.write_all(&self.whole.finalize().to_le_bytes())?;
        self.out.write_all(&self.rows.to_le_bytes())?;
        self.out.write_all(&(!self.rows).to_le_bytes())?;
        Ok(self.out)
    }
}

fn write_files(view: &ReadView, out: &mut dyn Write) -> io::Result<()> {
    write_frame(out, Manifest::of(view.position(), &view.vectors).text()?.as_bytes())?;
    // In the order of the manifest.
    for sealed in view.vectors.values().flat_map(|index| &index.segments) {
        for chunk in sealed.segment.file_bytes().chunks(FRAME_BYTES) {
            write_frame(out, chunk)?;
        }
    }
    out.flush()
}

fn write_frame(out: &mut dyn Write, body: &[u8]) -> io::Result<()> {
    out.write_all(&(body.len() as u32).to_le_bytes())?;
    out.write_all(&crc32fast::hash(body).to_le_bytes())?;
    out.write_all(body)
}

/// Reads the rows of a stream into an empty keyspace. Errors: they are not whole; the keyspace then holds rubbish.
pub(super) fn read_rows(
    input: &mut dyn Read,
    store: &Store,
    keyspace: &Keyspace,
) -> Result<(), MachineError> {
    let mut magic = [0; 8];
    input.read_exact(&mut magic).map_err(failed)?;
    if magic != *MAGIC {
        return Err(wrong("it is no snapshot of a shard, or of another format"));
    }
    let mut whole = crc32fast::Hasher::new();
    let mut rows = 0u64;
    loop {
        let (length, checksum) = (read_u32(input)?, read_u32(input)?);
        if length == 0 {
            let (count, inverse) = (read_u64(input)?, read_u64(input)?);
            if whole.finalize() != checksum || count != rows || inverse != !rows {
                return Err(wrong("its end does not fit what came before"));
            }
            return Ok(());
        }
        let frame = read_body(input, length, checksum)?;
        whole.update(&frame);
        let mut batch = store.batch();
        let mut rest = frame.as_slice();
        while !rest.is_empty() {
            let (key, value) = row(&mut rest).ok_or_else(|| wrong("a row is cut"))?;
            if !(mutant::is(Mutant::DedupForgetOnSnapshot) && points::is_of_intents(key)) {
                batch.put(keyspace, key, value);
            }
            rows += 1;
        }
        batch.commit()?;
    }
}

/// Reads the index files that follow the rows into a folder, made anew, each under the name `name` gives it.
///
/// Gives the manifest of those that came whole, durably; what is behind the first damage is lost, and logged.
/// The stream is read to its end in any case, so that the sender is not cut off.
pub(super) fn read_files(input: &mut dyn Read, folder: &Path, name: impl FnMut() -> String) -> Manifest {
    let mut manifest = Manifest::default();
    if let Err(error) = try_read_files(input, folder, name, &mut manifest) {
        tracing::warn!(%error, "index files of a snapshot are left out; their graphs are built again");
    }
    if let Err(error) = io::copy(input, &mut io::sink()) {
        tracing::warn!(%error, "the rest of a snapshot cannot be read");
    }
    manifest
}

fn try_read_files(
    input: &mut dyn Read,
    folder: &Path,
    mut name: impl FnMut() -> String,
    manifest: &mut Manifest,
) -> Result<(), MachineError> {
    let text = read_frame(input)?;
    let sent = std::str::from_utf8(&text).ok().and_then(Manifest::parse);
    let sent = sent.ok_or_else(|| wrong("it holds no manifest"))?;
    match fs::remove_dir_all(folder) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
        _ => fs::create_dir_all(folder).map_err(failed)?,
    }
    for (vector, entries) in sent.segments {
        for entry in entries {
            let file = name();
            let mut out = File::create(folder.join(&file)).map_err(failed)?;
            let mut left = entry.bytes;
            while left > 0 {
                let chunk = read_frame(input)?;
                left = left.checked_sub(chunk.len() as u64).ok_or_else(|| wrong("a file is too long"))?;
                out.write_all(&chunk).map_err(failed)?;
            }
            out.sync_all().map_err(failed)?;
            manifest.segments.entry(vector.clone()).or_default().push(Entry { file, ..entry });
        }
    }
    Ok(())
}

fn read_frame(input: &mut dyn Read) -> Result<Vec<u8>, MachineError> {
    let (length, checksum) = (read_u32(input)?, read_u32(input)?);
    read_body(input, length, checksum)
}

fn read_body(input: &mut dyn Read, length: u32, checksum: u32) -> Result<Vec<u8>, MachineError> {
    if length > FRAME_BYTES_MAX {
        return Err(wrong("a frame is longer than any"));
    }
    let mut frame = Vec::new();
    input.take(u64::from(length)).read_to_end(&mut frame).map_err(failed)?;
    if frame.len() != length as usize || frame.is_empty() || crc32fast::hash(&frame) != checksum {
        return Err(wrong("checksum of a frame"));
    }
    Ok(frame)
}

fn row<'a>(rest: &mut &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
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
