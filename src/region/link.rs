//! What one region asks another, and the frames a stream of commands comes in.
//!
//! ```text
//!   length u32 of the rest | crc32 u32 of the rest | kind u8 | …
//!   commands 1:  first position u64 | zstd of (length u32 | command)*
//!   alive 2:     nothing
//!   step 3:      a command, zstd
//! ```
//!
//! All numbers little-endian (`docs/FORMATS.md`).
//!
//! Invariants: a question may be asked twice; a frame is whole, or the stream is broken; whoever answers says what it
//! knows of homes, so that an old home is told apart.
//! Not here: what is done with an answer; HTTP (`http`).

use crate::{
    cluster::{ClusterError, Description, HomeRecord, ShardLoss},
    model::{CollectionId, Generation, Position, ShardNumber},
    net::{
        ByteStream,
        frames::{self, LENGTH_BYTES},
    },
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use std::io;
use tokio::time::Instant;

/// A question of one region to another about a collection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Question {
    /// The collection's name.
    pub collection: String,
    /// Its id, once that is known.
    pub id: Option<CollectionId>,
    /// Who asks.
    pub region: String,
    /// Where whoever asks is.
    pub url: String,
    /// What.
    pub ask: Ask,
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// What the collection is there. `follows`: the one who asks follows it.
    Describe {
        /// Whether to be counted among the followers.
        follows: bool,
    },
    /// The one who asks follows no longer.
    Leave,
    /// Where its shards stand, of the home of this generation.
    Positions {
        /// The home.
        generation: Generation,
    },
    /// The home is to give no more positions: the one who asks will be the next.
    Seal {
        /// As which.
        next: Generation,
    },
    /// The next home does not come after all.
    Unseal {
        /// Which.
        next: Generation,
    },
    /// A follower is not to become a home of this generation.
    Abandon {
        /// Which.
        next: Generation,
    },
    /// The one who asks is the home now.
    Fence {
        /// The homes after the first, up to it.
        homes: Vec<HomeRecord>,
    },
    /// What of a shard the one who asks had, as the home before, and the new home has not.
    Lost {
        /// The new home.
        generation: Generation,
        /// The shard.
        shard: ShardNumber,
        /// What.
        loss: ShardLoss,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To `Describe`.
    Description(Box<Description>),
    /// To `Positions`: by shard, the last position and the mean bytes of a command (0: not known).
    Positions(Vec<(Position, u64)>),
    /// To `Seal`: the last position of each shard.
    Sealed(Vec<Position>),
    /// To the others.
    Done,
}

/// A stream of one shard of a home.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wanted {
    /// The collection's name.
    pub collection: String,
    /// Its id.
    pub id: CollectionId,
    /// The home whose shard it is.
    pub generation: Generation,
    /// The shard.
    pub shard: ShardNumber,
    /// Its commands from this position on; none: a copy of it.
    pub from: Option<Position>,
}

type Result<T> = std::result::Result<T, ClusterError>;

/// The way to other regions.
pub trait Link: Send + Sync + 'static {
    /// Asks the region at `url`.
    ///
    /// Errors: what that region says; `Unavailable` if nobody answers, with the effect of a question that may have been
    /// heard: it may be asked again.
    fn ask(&self, url: &str, question: Question, deadline: Instant) -> BoxFuture<'static, Result<Answer>>;

    /// Opens a stream of the region at `url`.
    ///
    /// Errors: what that region says, and `Unavailable`; `Expired` if the log does not reach back.
    fn stream(&self, url: &str, wanted: Wanted, deadline: Instant) -> BoxFuture<'static, Result<ByteStream>>;
}

/// A part of a stream.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Frame {
    /// Commands from a position on.
    Commands(Position, Vec<Bytes>),
    /// Nothing is new.
    Alive,
    /// A step of a copy, as a command.
    Step(Bytes),
}

const COMMANDS: u8 = 1;
const ALIVE: u8 = 2;
const STEP: u8 = 3;
/// Length and checksum.
const HEAD_BYTES: usize = LENGTH_BYTES + 4;
/// No frame is longer than a command of the largest kind and what is around it.
const FRAME_BYTES_MAX: usize = 64 << 20;
const UNPACKED_BYTES_MAX: usize = 256 << 20;
/// Fast, and half the bytes of vectors with payloads.
const ZSTD_LEVEL: i32 = 1;

impl Frame {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::from(&[0; HEAD_BYTES][..]);
        match self {
            Frame::Commands(first, commands) => {
                out.put_u8(COMMANDS);
                out.put_u64_le(first.0);
                let mut plain = Vec::with_capacity(commands.iter().map(|c| c.len() + 4).sum());
                for command in commands {
                    plain.put_u32_le(u32::try_from(command.len()).expect("a command is far below 4 GiB"));
                    plain.put_slice(command);
                }
                out.extend_from_slice(&packed(&plain));
            }
            Frame::Alive => out.put_u8(ALIVE),
            Frame::Step(command) => {
                out.put_u8(STEP);
                out.extend_from_slice(&packed(command));
            }
        }
        let length = u32::try_from(out.len() - LENGTH_BYTES).expect("a frame is far below 4 GiB");
        let checksum = crc32fast::hash(&out[HEAD_BYTES..]);
        out[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
        out[LENGTH_BYTES..HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
        out.freeze()
    }

    fn decode(mut body: Bytes) -> std::result::Result<Frame, String> {
        let short = |e: bytes::TryGetError| e.to_string();
        let checksum = body.try_get_u32_le().map_err(short)?;
        if crc32fast::hash(&body) != checksum {
            return Err("checksum of a frame".to_owned());
        }
        match body.try_get_u8().map_err(short)? {
            COMMANDS => {
                let first = Position(body.try_get_u64_le().map_err(short)?);
                let mut plain = Bytes::from(unpacked(&body)?);
                let mut commands = Vec::new();
                while plain.has_remaining() {
                    let length = plain.try_get_u32_le().map_err(short)? as usize;
                    if length > plain.len() {
                        return Err(format!("a command of {length} bytes in {}", plain.len()));
                    }
                    commands.push(plain.split_to(length));
                }
                Ok(Frame::Commands(first, commands))
            }
            ALIVE => Ok(Frame::Alive),
            STEP => Ok(Frame::Step(unpacked(&body)?.into())),
            kind => Err(format!("a frame of kind {kind}")),
        }
    }
}

fn packed(plain: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(plain, ZSTD_LEVEL).expect("memory compresses into memory")
}

fn unpacked(packed: &[u8]) -> std::result::Result<Vec<u8>, String> {
    zstd::bulk::decompress(packed, UNPACKED_BYTES_MAX).map_err(|e| e.to_string())
}

/// Frames out of a stream.
pub(super) struct Frames(frames::Frames);

impl Frames {
    pub(super) fn over(stream: ByteStream) -> Frames {
        Frames(frames::Frames::over(stream, FRAME_BYTES_MAX))
    }

    /// The next frame; none at the end. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> io::Result<Option<Frame>> {
        self.0.next().await?.map(|body| Frame::decode(body).map_err(frames::invalid)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::{StreamExt, stream};

    fn frames() -> Vec<Frame> {
        let commands = vec![Bytes::from_static(b"one"), Bytes::new(), Bytes::from(vec![7; 9_000])];
        vec![
            Frame::Alive,
            Frame::Commands(Position(1 << 40), commands),
            Frame::Commands(Position(9), vec![]),
            Frame::Step(Bytes::from_static(b"a step")),
        ]
    }

    #[tokio::test]
    async fn frames_come_through_however_they_are_cut() {
        let bytes: Vec<u8> = frames().iter().flat_map(|frame| frame.encode().to_vec()).collect();
        for size in [1, 3, 64, bytes.len()] {
            let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let mut read = Frames::over(stream::iter(pieces).boxed());
            for frame in frames() {
                assert_eq!(read.next().await.unwrap(), Some(frame));
            }
            assert_eq!(read.next().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn damage_is_an_error_wherever_it_is() {
        let whole = Frame::Commands(Position(3), vec![Bytes::from_static(b"command"); 3]).encode();
        let read =
            async |bytes: Vec<u8>| Frames::over(stream::iter([Ok(Bytes::from(bytes))]).boxed()).next().await;
        for end in 1..whole.len() {
            assert!(read(whole[..end].to_vec()).await.is_err(), "{end} bytes passed");
        }
        for at in 0..whole.len() {
            let mut flipped = whole.to_vec();
            flipped[at] ^= 1;
            assert!(!matches!(read(flipped).await, Ok(Some(_))), "a flip of byte {at} passed");
        }
    }
}
