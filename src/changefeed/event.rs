//! The lines of the feed.
//!
//! A line is written straight from the log's bytes: a payload is JSON text already, and is copied, not parsed.

use super::ResumeToken;
use crate::model::{PointId, Position, ShardNumber, Vector, Vectors};
use bytes::Bytes;
use serde::Serialize;
use std::{collections::BTreeMap, io::Write};

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub enum FeedEvent {
    /// A point changed.
    Change(PointChange),
    /// Nothing changed for a while; where the feed stands meanwhile.
    Heartbeat(ResumeToken),
}

/// One change of one point.
#[derive(Clone, Debug, PartialEq)]
pub struct PointChange {
    /// Goes on right behind this change.
    pub token: ResumeToken,
    /// The point's shard.
    pub shard: ShardNumber,
    /// The command that changed it; the point's version from then on.
    pub position: Position,
    /// Which of the command's changes of this shard this is, from 0.
    pub n: u64,
    /// How many it has.
    pub of: u64,
    /// The point.
    pub id: PointId,
    /// What became of it.
    pub op: Op,
}

/// What became of a point.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// It is now this, and nothing of what it was.
    Upsert {
        /// JSON text of an object, empty if it has none; `None` if it was not asked for.
        payload: Option<Bytes>,
        /// `None` if they were not asked for.
        vectors: Option<Vectors>,
    },
    /// It is gone.
    Delete,
}

impl FeedEvent {
    /// Where to go on behind this line.
    pub fn token(&self) -> &ResumeToken {
        match self {
            FeedEvent::Change(change) => &change.token,
            FeedEvent::Heartbeat(token) => token,
        }
    }

    /// The line as JSON, without the newline. A payload is put in as it stands in the log: compact, on one line.
    pub fn to_json(&self) -> Vec<u8> {
        let mut line = Vec::with_capacity(256);
        let written = match self {
            FeedEvent::Heartbeat(token) => write!(line, r#"{{"token":"{token}","heartbeat":true}}"#),
            FeedEvent::Change(change) => change.write(&mut line),
        };
        written.expect("a Vec grows as needed");
        line
    }
}

impl PointChange {
    fn write(&self, line: &mut Vec<u8>) -> std::io::Result<()> {
        let PointChange { token, shard, position, n, of, id, op } = self;
        let name = if matches!(op, Op::Delete) { "delete" } else { "upsert" };
        write!(
            line,
            r#"{{"token":"{token}","shard":{shard},"position":{position},"n":{n},"of":{of},"op":"{name}","id":"#
        )?;
        serde_json::to_writer(&mut *line, id)?;
        write!(line, r#","version":{position}"#)?;
        if let Op::Upsert { payload, vectors } = op {
            if let Some(payload) = payload {
                line.extend(br#","payload":"#);
                line.extend(if payload.is_empty() { &b"{}"[..] } else { payload });
            }
            if let Some(vectors) = vectors {
                line.extend(br#","vector":"#);
                write_vectors(line, vectors)?;
            }
        }
        line.push(b'}');
        Ok(())
    }
}

/// As Qdrant prints them: the unnamed one alone as a list, else an object by name.
fn write_vectors(line: &mut Vec<u8>, vectors: &Vectors) -> serde_json::Result<()> {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Written<'a> {
        Dense(&'a [f32]),
        Sparse { indices: &'a [u32], values: &'a [f32] },
    }
    fn written(vector: &Vector) -> Written<'_> {
        match vector {
            Vector::Dense(values) => Written::Dense(values),
            Vector::Sparse(sparse) => Written::Sparse { indices: &sparse.indices, values: &sparse.values },
        }
    }
    match vectors.get("") {
        Some(vector @ Vector::Dense(_)) if vectors.len() == 1 => {
            serde_json::to_writer(line, &written(vector))
        }
        _ => {
            let named: BTreeMap<&str, Written<'_>> =
                vectors.iter().map(|(name, vector)| (name.as_str(), written(vector))).collect();
            serde_json::to_writer(line, &named)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        changefeed::Place,
        model::{CollectionId, Generation, SparseVector},
    };

    fn line(event: FeedEvent) -> String {
        String::from_utf8(event.to_json()).unwrap()
    }

    fn token() -> ResumeToken {
        let shards = [(ShardNumber(1), Place { home: Generation(1), position: Position(9), delivered: 1 })];
        ResumeToken { collection: CollectionId(3), shards: shards.into() }
    }

    fn change(id: PointId, op: Op) -> FeedEvent {
        let position = Position(9);
        FeedEvent::Change(PointChange {
            token: token(),
            shard: ShardNumber(1),
            position,
            n: 0,
            of: 2,
            id,
            op,
        })
    }

    #[test]
    fn lines_are_those_of_the_contract() {
        let token = token();
        let upsert = |payload, vectors| change(PointId::Num(5), Op::Upsert { payload, vectors });
        let head = format!(r#"{{"token":"{token}","shard":1,"position":9,"n":0,"of":2,"op":"#);
        assert_eq!(
            line(FeedEvent::Heartbeat(token.clone())),
            format!(r#"{{"token":"{token}","heartbeat":true}}"#)
        );
        assert_eq!(line(upsert(None, None)), format!(r#"{head}"upsert","id":5,"version":9}}"#));
        let uuid = change(PointId::Uuid(0x550e8400_e29b_41d4_a716_446655440000), Op::Delete);
        let id = r#""550e8400-e29b-41d4-a716-446655440000""#;
        assert_eq!(line(uuid), format!(r#"{head}"delete","id":{id},"version":9}}"#));
        let unnamed = [(String::new(), Vector::Dense(vec![1.0, -0.1]))].into();
        assert_eq!(
            line(upsert(Some(Bytes::from_static(br#"{"a":1e2}"#)), Some(unnamed))),
            format!(r#"{head}"upsert","id":5,"version":9,"payload":{{"a":1e2}},"vector":[1.0,-0.1]}}"#)
        );
        let sparse = SparseVector { indices: vec![3, 70_000], values: vec![0.5, 2.0] };
        let named = [("a".into(), Vector::Dense(vec![1.0])), ("s".into(), Vector::Sparse(sparse))].into();
        assert_eq!(
            line(upsert(Some(Bytes::new()), Some(named))),
            format!(
                r#"{head}"upsert","id":5,"version":9,"payload":{{}},"vector":{{"a":[1.0],"s":{{"indices":[3,70000],"values":[0.5,2.0]}}}}}}"#
            )
        );
    }
}
