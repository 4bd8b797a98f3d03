//! A state machine's whole state on its way from one replica to another.
//!
//! ```text
//!   write_snapshot -> pieces of 128 KiB -> frames -> network -> frames checked -> file -> install_snapshot
//!     (a thread)        (at most 8 wait)                          (unlinked)           (openraft calls it)
//! ```
//!
//! Invariants: a frame carries the checksum of everything up to its own end, so a frame that is damaged, missing,
//! repeated or out of place is found; a stream without its last frame is cut, and cut or damaged streams never reach
//! the state machine; whoever writes waits for whoever reads.
//! Not here: what the bytes mean (the machine's own format, with its own checks), when a snapshot is needed (openraft).
//! Source: the table in `docs/FORMATS.md`, "Frames of a snapshot".

use super::{
    apply::blocking,
    pace::{Pace, Paced},
};
use crate::{machine::StateMachine, world};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream::BoxStream};
use std::{
    fs::{File, OpenOptions},
    io::{self, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};
use tokio::sync::{Semaphore, mpsc, watch};

/// The whole state as a stream: on the sending side a handle that writes it when it is really sent, on the
/// receiving side the file it was received in.
///
/// A machine goes on while it is sent: the stream may hold more than openraft's meta says, never less. The receiver
/// goes by the bookmark inside the stream, and passes over entries that lie below it.
pub(crate) struct SnapshotStream(Source);

enum Source {
    Machine(Arc<dyn StateMachine>),
    File(File),
}

impl SnapshotStream {
    pub(super) fn of(machine: Arc<dyn StateMachine>) -> Self {
        SnapshotStream(Source::Machine(machine))
    }

    /// The frames of the stream, at a pace; `sent` tells how much of it was taken.
    pub(super) fn into_frames(
        self,
        sent: watch::Sender<Sent>,
        pace: Pace,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        // A simulation's writer cannot wait for its reader: they share a thread.
        let waiting = if world::is_simulated() { Semaphore::MAX_PERMITS } else { PIECES_WAITING };
        let (pieces, frames) = mpsc::channel(waiting);
        drop(world::patiently(move || {
            let mut out = FrameWriter::new(pieces.clone(), pace);
            let written = match self.0 {
                Source::Machine(machine) => machine.write_snapshot(&mut out).map_err(io::Error::other),
                Source::File(mut file) => io::copy(&mut file, &mut out).map(drop),
            };
            if let Err(error) = written.and_then(|()| out.finish()) {
                // If nobody receives any more, that is why.
                let _ = hand_on(&pieces, Err(error));
            }
        }));
        let frames = tokio_stream(frames).inspect(move |frame| {
            if let Ok(frame) = frame {
                let whole = frame.starts_with(&[0; 4]);
                sent.send_modify(|sent| *sent = Sent { bytes: sent.bytes + frame.len() as u64, whole });
            }
        });
        Box::pin(frames)
    }

    /// Hands the state to the machine that takes it over, at a pace.
    pub(super) fn install_into(self, machine: &dyn StateMachine, pace: &Pace) -> Result<(), io::Error> {
        match self.0 {
            Source::File(file) => {
                let mut input = Paced::new(file, pace.alone());
                machine.install_snapshot(&mut input).map_err(io::Error::other)
            }
            Source::Machine(from) => std::thread::scope(|scope| {
                let (mut input, mut output) = io::pipe()?;
                let writer = scope.spawn(move || from.write_snapshot(&mut output));
                let installed = machine.install_snapshot(&mut input);
                drop(input);
                let written =
                    writer.join().map_err(|_| io::Error::other("the writer of a snapshot panicked"))?;
                installed.and(written).map_err(io::Error::other)
            }),
        }
    }

    /// Receives frames into a file in `folder`, which has no name and goes with the process.
    ///
    /// Errors: the stream failed, was cut, or is damaged; the disk. Nothing stays of it.
    pub(super) async fn receive(
        folder: PathBuf,
        mut frames: BoxStream<'static, io::Result<Bytes>>,
    ) -> Result<Self, io::Error> {
        let mut file = blocking(move || nameless(&folder)).await?;
        let mut reader = FrameReader::default();
        while let Some(received) = frames.next().await {
            reader.push(received?);
            while let Some(piece) = reader.next()? {
                file = blocking(move || file.write_all(&piece).map(|()| file)).await?;
            }
        }
        reader.check_whole()?;
        let file = blocking(move || file.rewind().map(|()| file)).await?;
        Ok(SnapshotStream(Source::File(file)))
    }
}

/// Waits for room only if there is none.
fn hand_on(pieces: &mpsc::Sender<io::Result<Bytes>>, piece: io::Result<Bytes>) -> io::Result<()> {
    let handed_on = match pieces.try_send(piece) {
        Err(mpsc::error::TrySendError::Full(piece)) => pieces.blocking_send(piece).is_ok(),
        handed_on => handed_on.is_ok(),
    };
    let nobody = || io::Error::new(io::ErrorKind::BrokenPipe, "nobody receives the snapshot any more");
    handed_on.then_some(()).ok_or_else(nobody)
}

/// How much of a stream the network has taken.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sent {
    pub(super) bytes: u64,
    /// The last frame is among them.
    pub(super) whole: bool,
}

/// Bytes in a frame, but in the last ones: what is handled at one go, before others have their turn.
const PIECE_BYTES: usize = 128 << 10;
/// Frames that wait for the network.
const PIECES_WAITING: usize = 8;
/// A frame's head: bytes of the piece, checksum.
const HEAD_BYTES: usize = 8;
/// A frame may hold so much; more is damage.
const PIECE_BYTES_MAX: usize = 16 << 20;

fn tokio_stream<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> impl futures::Stream<Item = T> {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|next| (next, receiver))
    })
}

/// Cuts what is written into frames. Blocks while enough of them wait.
struct FrameWriter {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    /// The frame being filled, with room for its head.
    frame: BytesMut,
    crc: crc32fast::Hasher,
    total: u64,
    pace: Pace,
}

impl FrameWriter {
    fn new(pieces: mpsc::Sender<io::Result<Bytes>>, pace: Pace) -> Self {
        let mut writer =
            FrameWriter { pieces, frame: BytesMut::new(), crc: crc32fast::Hasher::new(), total: 0, pace };
        writer.start();
        writer
    }

    fn start(&mut self) {
        self.frame = BytesMut::with_capacity(HEAD_BYTES + PIECE_BYTES);
        self.frame.put_bytes(0, HEAD_BYTES);
    }

    fn send(&mut self) -> io::Result<()> {
        let piece = &self.frame[HEAD_BYTES..];
        self.crc.update(piece);
        self.total += piece.len() as u64;
        let (bytes, crc) = (piece.len() as u32, self.crc.clone().finalize());
        self.send_frame(bytes, crc)
    }

    fn send_frame(&mut self, bytes: u32, crc: u32) -> io::Result<()> {
        self.frame[..4].copy_from_slice(&bytes.to_le_bytes());
        self.frame[4..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        let frame = self.frame.split().freeze();
        self.start();
        self.pace.take(frame.len());
        hand_on(&self.pieces, Ok(frame))
    }

    /// The rest, and the last frame, which says that there is no more.
    fn finish(mut self) -> io::Result<()> {
        if self.frame.len() > HEAD_BYTES {
            self.send()?;
        }
        let total = self.total.to_le_bytes();
        self.crc.update(&total);
        self.frame.put_slice(&total);
        let crc = self.crc.clone().finalize();
        self.send_frame(0, crc)
    }
}

impl Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(HEAD_BYTES + PIECE_BYTES - self.frame.len());
        self.frame.put_slice(&bytes[..taken]);
        if self.frame.len() == HEAD_BYTES + PIECE_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts frames together again, however the network cut them.
#[derive(Default)]
struct FrameReader {
    received: BytesMut,
    crc: crc32fast::Hasher,
    total: u64,
    ended: bool,
}

impl FrameReader {
    fn push(&mut self, bytes: Bytes) {
        self.received.extend_from_slice(&bytes);
    }

    /// The next piece, once all of its frame is there.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.received.is_empty() {
            return Ok(None);
        }
        if self.ended {
            return Err(damaged("bytes after its end"));
        }
        if self.received.len() < HEAD_BYTES {
            return Ok(None);
        }
        let mut head = &self.received[..HEAD_BYTES];
        let (bytes, crc) = (head.get_u32_le() as usize, head.get_u32_le());
        let last = bytes == 0;
        let bytes = if last { size_of::<u64>() } else { bytes };
        if bytes > PIECE_BYTES_MAX {
            return Err(damaged(format!("a frame of {bytes} bytes")));
        }
        if self.received.len() < HEAD_BYTES + bytes {
            return Ok(None);
        }
        self.received.advance(HEAD_BYTES);
        let mut piece = self.received.split_to(bytes).freeze();
        self.crc.update(&piece);
        if self.crc.clone().finalize() != crc {
            return Err(damaged(format!("the checksum after {} bytes does not match", self.total)));
        }
        if !last {
            self.total += bytes as u64;
            return Ok(Some(piece));
        }
        let total = piece.get_u64_le();
        if total != self.total {
            return Err(damaged(format!("{} bytes came of {total}", self.total)));
        }
        self.ended = true;
        self.next()
    }

    fn check_whole(&self) -> io::Result<()> {
        if self.ended { Ok(()) } else { Err(damaged(format!("it was cut after {} bytes", self.total))) }
    }
}

fn damaged(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the snapshot is damaged: {why}"))
}

/// A new file that only this handle knows, on the disk of `folder`.
pub(super) fn nameless(folder: &Path) -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let name = format!(".snapshot-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let path = folder.join(name);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::stream;

    /// The frames of these bytes, in one.
    async fn framed(content: &[u8]) -> Vec<u8> {
        let (pieces, received) = mpsc::channel(PIECES_WAITING);
        let content = content.to_vec();
        let writing = tokio::task::spawn_blocking(move || {
            let mut writer = FrameWriter::new(pieces, Pace::new(0));
            writer.write_all(&content).unwrap();
            writer.finish().unwrap();
        });
        let frames: Vec<Bytes> = tokio_stream(received).map(Result::unwrap).collect().await;
        writing.await.unwrap();
        frames.concat()
    }

    /// What arrives, if the network cuts the stream into pieces of so many bytes.
    async fn receive(frames: &[u8], piece: usize) -> io::Result<Vec<u8>> {
        let pieces: Vec<io::Result<Bytes>> =
            frames.chunks(piece).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let received = SnapshotStream::receive(std::env::temp_dir(), Box::pin(stream::iter(pieces))).await?;
        let Source::File(mut file) = received.0 else { panic!("not a file") };
        let mut content = Vec::new();
        io::Read::read_to_end(&mut file, &mut content)?;
        Ok(content)
    }

    #[tokio::test]
    async fn what_is_sent_arrives_however_it_is_cut() {
        for bytes in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 5] {
            let content: Vec<u8> = (0..bytes).map(|n| (n % 251) as u8).collect();
            let frames = framed(&content).await;
            for piece in [frames.len(), 700_001, 64 << 10] {
                assert_eq!(receive(&frames, piece).await.unwrap(), content, "{bytes} bytes by {piece}");
            }
        }
        let frames = framed(b"small").await;
        assert_eq!(receive(&frames, 1).await.unwrap(), b"small");
    }

    #[tokio::test]
    async fn what_is_cut_or_damaged_is_refused() {
        let content = vec![7; PIECE_BYTES + 10];
        let frames = framed(&content).await;
        let first = HEAD_BYTES + PIECE_BYTES;
        for cut in [0, 3, HEAD_BYTES, first - 1, first, frames.len() - 16, frames.len() - 1] {
            assert!(receive(&frames[..cut], 64 << 10).await.is_err(), "cut to {cut} bytes");
        }
        for byte in [0, 2, 5, HEAD_BYTES, first - 1, first, first + 9, frames.len() - 9, frames.len() - 1] {
            let mut damaged = frames.clone();
            damaged[byte] ^= 4;
            assert!(receive(&damaged, 64 << 10).await.is_err(), "byte {byte} changed");
        }
        let again = [&frames[..first], &frames].concat();
        assert!(receive(&again, 64 << 10).await.is_err(), "a frame twice");
        assert!(receive(&frames[first..], 64 << 10).await.is_err(), "a frame left out");
        let more = [&frames[..], &[0]].concat();
        assert!(receive(&more, 64 << 10).await.is_err(), "a byte after the end");
    }

    #[tokio::test]
    async fn a_writer_ends_when_nobody_receives() {
        let (pieces, received) = mpsc::channel(PIECES_WAITING);
        drop(received);
        let written = tokio::task::spawn_blocking(move || {
            let mut writer = FrameWriter::new(pieces, Pace::new(0));
            writer.write_all(&vec![0; 2 * PIECE_BYTES])
        });
        assert_eq!(written.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
