//! The shards' events, one after the other, and where the consumer stands in them.
//!
//! Invariants: the token is moved by the same step that gives an event out; a command's events come out together,
//! and shards that have something take turns by the command; a command without events moves the token too.
//! Not here: reading (nothing is read that is not asked for), opening, resuming.

use super::{FeedEvent, Op, Place, PointChange, Result, ResumeToken, told};
use crate::{
    cluster::{ClusterError, FollowError, Parts, ShardEvents, ShardStream, Stand},
    model::{Invalid, ShardNumber},
    shard::Change,
};
use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use std::{iter::Skip, time::Duration, vec};
use tokio::time::{Instant, sleep_until};

/// A consumer's way through the shards of a collection.
pub(super) struct Cursor {
    collection: String,
    token: ResumeToken,
    shards: SelectAll<BoxStream<'static, (ShardNumber, std::result::Result<ShardEvents, FollowError>)>>,
    /// The command whose events are being given out.
    under_way: Option<UnderWay>,
    parts: Parts,
    heartbeat: Duration,
    /// When the next line is due.
    due: Instant,
    /// The last item was given out.
    over: bool,
}

struct UnderWay {
    shard: ShardNumber,
    stand: Stand,
    of: u64,
    left: Skip<std::iter::Enumerate<vec::IntoIter<Change>>>,
}

impl Cursor {
    pub(super) fn new(
        collection: String,
        token: ResumeToken,
        shards: Vec<(ShardNumber, ShardStream)>,
        parts: Parts,
        heartbeat: Duration,
    ) -> Cursor {
        let numbered =
            shards.into_iter().map(|(shard, events)| events.map(move |events| (shard, events)).boxed());
        let shards = stream::select_all(numbered);
        Cursor {
            collection,
            token,
            shards,
            under_way: None,
            parts,
            heartbeat,
            due: Instant::now(),
            over: false,
        }
    }

    pub(super) fn into_stream(self) -> impl Stream<Item = Result<FeedEvent>> + Send {
        stream::unfold(self, |mut cursor| async {
            let item = cursor.next().await?;
            cursor.due = Instant::now() + cursor.heartbeat;
            cursor.over = item.is_err();
            Some((item, cursor))
        })
    }

    async fn next(&mut self) -> Option<Result<FeedEvent>> {
        if self.over {
            return None;
        }
        loop {
            if let Some(change) = self.step() {
                return Some(Ok(FeedEvent::Change(change)));
            }
            let heartbeat = || Some(Ok(FeedEvent::Heartbeat(self.token.clone())));
            // Looked at by the clock too: a timer comes late, and not at all to who never waits.
            if self.due <= Instant::now() {
                return heartbeat();
            }
            let next = tokio::select! {
                next = self.shards.next() => next,
                () = sleep_until(self.due) => return heartbeat(),
            };
            let begun = match next {
                // The others may still have something to say.
                Some((_, Err(FollowError::Dropped))) => continue,
                None => Err(ClusterError::NoCollection(self.collection.clone())),
                Some((shard, Err(error))) => Err(self.last_words(error, shard)),
                Some((shard, Ok(events))) => self.begin(shard, events),
            };
            if let Err(error) = begun {
                return Some(Err(error));
            }
        }
    }

    /// Takes up a command where the token says.
    fn begin(&mut self, shard: ShardNumber, events: ShardEvents) -> Result<()> {
        let ShardEvents { position, home, changes, .. } = events;
        let stand = Stand { position, home };
        let of = changes.len() as u64;
        let place = self.token.shards[&shard];
        assert_eq!(place.position, position, "a shard's commands come without a hole");
        if place.delivered > of {
            let why =
                format!("the token names event {} of position {position}, which has {of}", place.delivered);
            return Err(Invalid::new("from", why).into());
        }
        if place.delivered == of {
            self.token.shards.insert(shard, Place::behind(stand));
            return Ok(());
        }
        let left = changes.into_iter().enumerate().skip(place.delivered as usize);
        self.under_way = Some(UnderWay { shard, stand, of, left });
        Ok(())
    }

    /// The next event of the command under way.
    fn step(&mut self) -> Option<PointChange> {
        let UnderWay { shard, stand, of, left } = self.under_way.as_mut()?;
        let (shard, stand, of) = (*shard, *stand, *of);
        let Stand { position, home } = stand;
        let Some((n, change)) = left.next() else {
            self.under_way = None;
            return None;
        };
        let n = n as u64;
        let place = match n + 1 == of {
            true => Place::behind(stand),
            false => Place { home, position, delivered: n + 1 },
        };
        self.token.shards.insert(shard, place);
        let (id, op) = match change {
            Change::Delete(id) => (id, Op::Delete),
            Change::Upsert(point) => {
                let payload = self.parts.payload.then_some(point.payload);
                let vectors = self.parts.vectors.then_some(point.vectors);
                (point.id, Op::Upsert { payload, vectors })
            }
        };
        Some(PointChange { token: self.token.clone(), shard, position, n, of, id, op })
    }

    /// What the consumer is told when a shard cannot be followed any more.
    fn last_words(&self, error: FollowError, shard: ShardNumber) -> ClusterError {
        let mut token = self.token.clone();
        if let FollowError::Expired { oldest } = error {
            token.shards.insert(shard, Place::before(oldest, token.newest_home()));
        }
        told(error, shard, &self.collection, &token)
    }
}
