//! What one node asks another about a shard's commands, and the frames it is answered in.
//!
//! Invariants: the first frame says whether there is anything to follow; a command is one frame, whole; a stream that
//! is cut off is an error (`net`), so nothing is taken for the end that is not. A reader that goes away ends the
//! source at the other end, one that is slow stops it.
//! Layout: `docs/FORMATS.md`.

use super::{ASK_WITHIN, Parts, Refusal, ShardEvents, Stand, source};
use crate::{
    cluster::{Cluster, peers::PeerCalls},
    model::{Body, CollectionId, Command, Epoch, Generation, Position, ReplicaId},
    net::{
        ByteStream,
        frames::{self, LENGTH_BYTES},
    },
    shard::Change,
};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use serde::{Deserialize, Serialize};
use source::Source;
use std::io;
use tokio::time::{Instant, timeout_at};

/// Asks a replica for its commands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cluster) struct FeedAsk {
    /// The replica.
    pub(in crate::cluster) replica: ReplicaId,
    /// From where on; `None`: it only says where the shard stands.
    pub(super) from: Option<Position>,
    /// What was seen before that.
    #[serde(default)]
    pub(super) seen: Option<Stand>,
    pub(super) parts: Parts,
}

/// One frame of the answer.
#[derive(Clone, Debug, PartialEq)]
enum Frame {
    /// Nothing, or nothing more, is given.
    Refused(Refusal),
    /// Where the shard stands; what was asked for follows.
    Standing(Stand),
    Events(ShardEvents),
}

const REFUSED: u8 = 0;
const STANDING: u8 = 1;
const EVENTS: u8 = 2;
const RETIRED: u8 = 1;
/// What follows is the command itself.
const COMMAND: u8 = 2;
/// A frame is as large as what one command did: no more than this is believed.
const FRAME_BYTES_MAX: usize = 1 << 30;
/// Commands that are sent together if they are there together.
const TOGETHER: usize = 64;

/// Follows a replica of another node.
pub(super) async fn open(calls: &PeerCalls, ask: FeedAsk, deadline: Instant) -> Result<Source, Refusal> {
    let (_, frames) = begin(calls, ask, deadline).await?;
    let items = stream::unfold(Some(frames), |frames| async {
        let mut frames = frames?;
        match frames.next().await {
            Ok(Some(Frame::Events(events))) => Some((Ok(events), Some(frames))),
            Ok(Some(Frame::Refused(refusal))) => Some((Err(refusal), None)),
            Ok(Some(Frame::Standing(_))) => Some((Err(Refusal::Away("it stands twice".into())), None)),
            Ok(None) => None,
            Err(broken) => Some((Err(away(broken)), None)),
        }
    });
    Ok(items.boxed())
}

/// Where the shard stands, asked of a replica of another node.
pub(super) async fn stand(calls: &PeerCalls, ask: FeedAsk, deadline: Instant) -> Result<Stand, Refusal> {
    Ok(begin(calls, ask, deadline).await?.0)
}

/// Asks, and waits for the first frame.
async fn begin(calls: &PeerCalls, ask: FeedAsk, deadline: Instant) -> Result<(Stand, Frames), Refusal> {
    let mut frames = Frames::over(calls.feed(&ask, deadline).await.map_err(away)?);
    match timeout_at(deadline, frames.next()).await {
        Ok(Ok(Some(Frame::Standing(stand)))) => Ok((stand, frames)),
        Ok(Ok(Some(Frame::Refused(refusal)))) => Err(refusal),
        Ok(Ok(_)) => Err(away("it answers something else")),
        Ok(Err(broken)) => Err(away(broken)),
        Err(_) => Err(away("it did not answer in time")),
    }
}

fn away(why: impl std::fmt::Display) -> Refusal {
    Refusal::Away(why.to_string())
}

impl Cluster {
    /// Answers a peer that follows a replica held here.
    pub(in crate::cluster) fn answer_feed(&self, ask: FeedAsk) -> ByteStream {
        let cluster = self.clone();
        let answer = async move {
            let (first, rest) = match cluster.open_feed(ask).await {
                Ok((stand, source)) => (Frame::Standing(stand), source),
                Err(refusal) => (Frame::Refused(refusal), None),
            };
            let rest: BoxStream<'static, Frame> = match rest {
                Some(source) => source.map(|item| item.map_or_else(Frame::Refused, Frame::Events)).boxed(),
                None => stream::empty().boxed(),
            };
            let pieces = rest.ready_chunks(TOGETHER).map(|frames| {
                let mut piece = BytesMut::new();
                frames.into_iter().for_each(|frame| frame.write(&mut piece));
                Ok(piece.freeze())
            });
            let mut head = BytesMut::new();
            first.write(&mut head);
            stream::iter([Ok(head.freeze())]).chain(pieces)
        };
        stream::once(answer).flatten().boxed()
    }

    async fn open_feed(&self, ask: FeedAsk) -> Result<(Stand, Option<Source>), Refusal> {
        let deadline = Instant::now() + ASK_WITHIN;
        let local = self.held(ask.replica).ok_or_else(|| away("it is not open there"))?;
        match ask.from {
            None => Ok((source::stand(&local, deadline).await?, None)),
            Some(from) => {
                let source = source::open(local.clone(), from, ask.seen, ask.parts, deadline).await?;
                Ok((source::standing(&local)?, Some(source)))
            }
        }
    }
}

impl Frame {
    fn write(self, out: &mut BytesMut) {
        let start = out.len();
        out.put_u32_le(0);
        match self {
            Frame::Refused(refusal) => {
                out.put_u8(REFUSED);
                out.extend(rmp_serde::to_vec_named(&refusal).expect("a refusal has a form in MessagePack"));
            }
            Frame::Standing(Stand { position, home }) => {
                out.put_u8(STANDING);
                out.put_u64_le(position.0);
                out.put_u64_le(home.0);
            }
            Frame::Events(ShardEvents { position, home, command: Some(command), .. }) => {
                out.put_u8(EVENTS);
                out.put_u64_le(position.0);
                out.put_u64_le(home.0);
                out.put_u8(COMMAND);
                out.extend_from_slice(&command);
            }
            Frame::Events(ShardEvents { position, home, changes, retired, command: None }) => {
                out.put_u8(EVENTS);
                out.put_u64_le(position.0);
                out.put_u64_le(home.0);
                out.put_u8(if retired { RETIRED } else { 0 });
                for command in commands(changes) {
                    let bytes = command.encode();
                    out.put_u32_le(u32::try_from(bytes.len()).expect("a command is far below 4 GiB"));
                    out.extend_from_slice(&bytes);
                }
            }
        }
        let length = u32::try_from(out.len() - start - LENGTH_BYTES).expect("changes of one command");
        out[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    }

    fn read(mut body: Bytes) -> Result<Frame, String> {
        let short = |e: bytes::TryGetError| e.to_string();
        let stand = |body: &mut Bytes| {
            let position = Position(body.try_get_u64_le().map_err(short)?);
            Ok::<_, String>(Stand { position, home: Generation(body.try_get_u64_le().map_err(short)?) })
        };
        match body.try_get_u8().map_err(short)? {
            REFUSED => Ok(Frame::Refused(rmp_serde::from_slice(&body).map_err(|e| e.to_string())?)),
            STANDING => Ok(Frame::Standing(stand(&mut body)?)),
            EVENTS => {
                let Stand { position, home } = stand(&mut body)?;
                let flags = body.try_get_u8().map_err(short)?;
                let retired = flags & RETIRED == RETIRED;
                let mut changes = Vec::new();
                if flags & COMMAND == COMMAND {
                    let command = Some(body);
                    return Ok(Frame::Events(ShardEvents { position, home, changes, retired, command }));
                }
                while body.has_remaining() {
                    let length = body.try_get_u32_le().map_err(short)? as usize;
                    if length > body.len() {
                        return Err(format!("a command of {length} bytes in a frame with {}", body.len()));
                    }
                    match Command::decode(&body.split_to(length)).map_err(|e| e.to_string())?.body {
                        Body::Upsert(points) => changes.extend(points.into_iter().map(Change::Upsert)),
                        Body::Delete(ids) => changes.extend(ids.into_iter().map(Change::Delete)),
                        other => return Err(format!("a command that is no effect: {other:?}")),
                    }
                }
                Ok(Frame::Events(ShardEvents { position, home, changes, retired, command: None }))
            }
            kind => Err(format!("a frame of kind {kind}")),
        }
    }
}

/// Commands that do nothing but these changes: the form a log knows.
fn commands(changes: Vec<Change>) -> impl Iterator<Item = Command> {
    let mut bodies: Vec<Body> = Vec::new();
    for change in changes {
        match (bodies.last_mut(), change) {
            (Some(Body::Upsert(points)), Change::Upsert(point)) => points.push(point),
            (Some(Body::Delete(ids)), Change::Delete(id)) => ids.push(id),
            (_, Change::Upsert(point)) => bodies.push(Body::Upsert(vec![point])),
            (_, Change::Delete(id)) => bodies.push(Body::Delete(vec![id])),
        }
    }
    let (collection, epoch, born) = (CollectionId(0), Epoch(0), Position(0));
    bodies.into_iter().map(move |body| Command {
        collection,
        schema_version: 0,
        epoch,
        request: None,
        born,
        body,
    })
}

/// Frames out of a stream.
struct Frames(frames::Frames);

impl Frames {
    fn over(body: ByteStream) -> Frames {
        Frames(frames::Frames::over(body, FRAME_BYTES_MAX))
    }

    /// The next frame; `None` at the end.
    async fn next(&mut self) -> io::Result<Option<Frame>> {
        self.0.next().await?.map(|body| Frame::read(body).map_err(frames::invalid)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{PointId, SparseVector, Vector, command::PointWrite};

    fn upsert(id: u64) -> Change {
        let sparse = SparseVector { indices: vec![1, 9], values: vec![0.5, -2.0] };
        let vectors =
            [(String::new(), Vector::Dense(vec![0.25, f32::MIN])), ("s".into(), Vector::Sparse(sparse))];
        Change::Upsert(PointWrite {
            id: PointId::Num(id),
            vectors: vectors.into(),
            payload: Bytes::from_static(br#"{"a":1}"#),
        })
    }

    fn frames() -> Vec<Frame> {
        let delete = |id| Change::Delete(PointId::Uuid(id));
        let events = |position, changes: &[Change], retired| {
            let (position, home, changes) = (Position(position), Generation(2), changes.to_vec());
            Frame::Events(ShardEvents { position, home, changes, retired, command: None })
        };
        let (home, command) = (Generation(3), Some(Bytes::from_static(b"a command")));
        let raw = ShardEvents { position: Position(11), home, changes: vec![], retired: false, command };
        vec![
            Frame::Events(raw),
            Frame::Standing(Stand { position: Position(1 << 40), home: Generation(1) }),
            events(7, &[], false),
            events(8, &[upsert(1), upsert(1), delete(2), delete(3), upsert(2)], false),
            events(9, &[], true),
            Frame::Refused(Refusal::Gone { oldest: Position(12) }),
        ]
    }

    #[tokio::test]
    async fn frames_come_through_however_they_are_cut() {
        let mut bytes = BytesMut::new();
        frames().into_iter().for_each(|frame| frame.write(&mut bytes));
        for size in [1, 2, 3, 7, 64, bytes.len()] {
            let pieces: Vec<_> = bytes.chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
            let mut read = Frames::over(stream::iter(pieces).boxed());
            for frame in frames() {
                assert_eq!(read.next().await.unwrap(), Some(frame));
            }
            assert_eq!(read.next().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn what_is_cut_off_or_foreign_is_an_error() {
        let mut bytes = BytesMut::new();
        frames().remove(3).write(&mut bytes);
        for end in 1..bytes.len() {
            let piece = Ok(Bytes::copy_from_slice(&bytes[..end]));
            assert!(Frames::over(stream::iter([piece]).boxed()).next().await.is_err(), "{end} bytes passed");
        }
        // A frame that says it is shorter than the command in it, one of an unknown kind, an endless one.
        let mut wrong = bytes.clone();
        wrong[0] -= 1;
        for wrong in [wrong.freeze(), Bytes::from_static(&[1, 0, 0, 0, 9]), Bytes::from_static(&[255; 8])] {
            assert!(Frames::over(stream::iter([Ok(wrong)]).boxed()).next().await.is_err());
        }
    }
}
