//! The change feed: every committed mutation of a collection once, in order per shard, resumable by token.
//!
//! ```text
//! Cluster::follow_shard ─┐
//! Cluster::follow_shard ─┼─> Cursor: one command after the other ─> FeedEvent, FeedEvent, … ─> lines
//! Cluster::follow_shard ─┘
//! ```
//!
//! Invariants: per shard, events come in the order of the log, without a gap and without a repetition; the token of
//! an event goes on right behind it, also inside a command and while homes change; only what is committed and applied
//! comes out. All of it moves only when the consumer asks: besides one command a shard nothing is kept for one that is slow.
//! Not here: where a shard's commands are read, and whether they go on from what a token has seen (`cluster/follow`); HTTP;
//! order across shards (there is none).

mod cursor;
mod event;
mod token;

pub use event::{FeedEvent, Op, PointChange};
pub use token::{Place, ResumeToken};

use crate::{
    cluster::{Cluster, ClusterError, FollowError, Followed, Parts},
    model::{Effect, Generation, Invalid, Position, ShardNumber},
    mutant::{self, Mutant},
};
use cursor::Cursor;
use futures::{Stream, future};
use std::{collections::BTreeMap, str::FromStr, time::Duration};
use tokio::time::Instant;

/// Where a feed begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// With the first command.
    Begin,
    /// With what takes effect after the feed was opened: every write that begins then comes out.
    Now,
    /// Right behind the line that had this token.
    Token(ResumeToken),
}

impl FromStr for From {
    type Err = &'static str;

    /// `begin`, `now`, or a token.
    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text {
            "begin" => Ok(From::Begin),
            "now" => Ok(From::Now),
            token => token.parse().map(From::Token),
        }
    }
}

/// What a feed gives.
#[derive(Clone, Debug)]
pub struct FeedOptions {
    /// Only this shard's events.
    pub shard: Option<ShardNumber>,
    /// Upserts carry their payload.
    pub with_payload: bool,
    /// Upserts carry their vectors.
    pub with_vector: bool,
    /// After so long without a line comes a heartbeat.
    pub heartbeat: Duration,
    /// When to give up opening the feed; once open it has no end.
    pub deadline: Instant,
}

impl Default for FeedOptions {
    /// All shards, ids only, a heartbeat every 5 s, opened within 10 s.
    fn default() -> Self {
        FeedOptions {
            shard: None,
            with_payload: false,
            with_vector: false,
            heartbeat: Duration::from_secs(5),
            deadline: Instant::now() + Duration::from_secs(10),
        }
    }
}

type Result<T> = std::result::Result<T, ClusterError>;

/// Opens the feed of a collection; the first item is a heartbeat and comes at once. An error is the last item.
///
/// Errors, here and as the last item (no effect): `Invalid` (a token of another collection or of other shards, no
/// such shard), `NoCollection` (also when it is dropped while it is followed), `TooOld` with the oldest token that
/// can be resumed (no replica's log reaches back), `Expired` (what the token has seen is lost), `Unavailable` (here: no
/// replica answered by the deadline that knows the token's home and has come as far; later: the node stops), `Internal`
/// (damage).
pub async fn open(
    cluster: &Cluster,
    collection: &str,
    from: From,
    options: FeedOptions,
) -> Result<impl Stream<Item = Result<FeedEvent>> + Send + use<>> {
    let followed = cluster.followed(collection, options.deadline).await?;
    let shards = shards(&followed, options.shard)?;
    let mut token = ResumeToken {
        collection: followed.id,
        shards: match from {
            From::Begin => {
                let begin = Place::before(Position(1), Generation(1));
                shards.iter().map(|shard| (*shard, begin)).collect()
            }
            From::Now => places_now(cluster, &followed, &shards, options.deadline).await?,
            From::Token(token) => places_of(token, &followed, &shards)?,
        },
    };
    let parts = Parts { payload: options.with_payload, vectors: options.with_vector, commands: false };
    let opening = token.shards.iter().map(async |(shard, place)| {
        let (from, seen) = (place.position, Some(place.seen()));
        let opened = cluster.follow_shard(&followed, *shard, from, seen, parts, options.deadline).await;
        (*shard, opened)
    });
    let opened = future::join_all(opening).await;
    // All are asked before one is heard, so that the oldest token says of every shard where it can be resumed.
    for (shard, opened) in &opened {
        if let Err(FollowError::Expired { oldest }) = opened {
            token.shards.insert(*shard, Place::before(*oldest, followed.generation()));
        }
    }
    let mut streams = Vec::with_capacity(opened.len());
    for (shard, opened) in opened {
        streams.push((shard, opened.map_err(|e| told(e, shard, collection, &token))?));
    }
    Ok(Cursor::new(collection.to_owned(), token, streams, parts, options.heartbeat).into_stream())
}

fn shards(followed: &Followed, only: Option<ShardNumber>) -> Result<Vec<ShardNumber>> {
    match only {
        None => Ok((0..followed.shards).map(ShardNumber).collect()),
        Some(shard) if shard.0 < followed.shards => Ok(vec![shard]),
        Some(shard) => {
            let why = format!("there is no shard {shard}, the collection has {}", followed.shards);
            Err(Invalid::new("shard", why).into())
        }
    }
}

async fn places_now(
    cluster: &Cluster,
    followed: &Followed,
    shards: &[ShardNumber],
    deadline: Instant,
) -> Result<BTreeMap<ShardNumber, Place>> {
    let places = shards.iter().map(async |shard| {
        Ok::<_, ClusterError>((*shard, Place::behind(cluster.shard_stand(followed, *shard, deadline).await?)))
    });
    Ok(future::try_join_all(places).await?.into_iter().collect())
}

/// A token's places, if it is of this collection and names all these shards.
fn places_of(
    token: ResumeToken,
    followed: &Followed,
    shards: &[ShardNumber],
) -> Result<BTreeMap<ShardNumber, Place>> {
    let invalid = |why: String| Err(Invalid::new("from", why).into());
    if token.collection != followed.id {
        return invalid(format!(
            "the token is of another collection (number {}, this is {}), perhaps of one that was dropped",
            token.collection, followed.id
        ));
    }
    let early = |place: Place| match place.position.0 > 1 && mutant::is(Mutant::DupTailOnReconnect) {
        true => Place::before(Position(place.position.0 - 1), place.home),
        false => place,
    };
    let place = |shard: &ShardNumber| Some((*shard, early(*token.shards.get(shard)?)));
    let places: BTreeMap<_, _> = shards.iter().filter_map(place).collect();
    match shards.iter().find(|shard| !places.contains_key(*shard)) {
        Some(shard) => invalid(format!("the token is of a feed without shard {shard}")),
        None => Ok(places),
    }
}

/// An error of one shard, as the consumer is told it.
fn told(error: FollowError, shard: ShardNumber, collection: &str, token: &ResumeToken) -> ClusterError {
    match error {
        FollowError::Expired { oldest } => ClusterError::TooOld {
            message: format!(
                "the log of shard {shard} reaches back to position {oldest} only; read the collection anew, \
                 or go on from what is left with the token {token}"
            ),
            oldest: token.to_string(),
        },
        FollowError::Beyond { end } => ClusterError::Expired(format!(
            "the token lies beyond the end of shard {shard}, {end}: what it had seen is lost"
        )),
        FollowError::Lost { .. } => {
            ClusterError::Expired(format!("the token has seen of shard {shard} what is lost: {error}"))
        }
        FollowError::Dropped => ClusterError::NoCollection(collection.to_owned()),
        FollowError::Away(why) => ClusterError::Unavailable(format!("shard {shard} of {collection}: {why}")),
        FollowError::Damaged(why) => ClusterError::Internal {
            message: format!("shard {shard} of {collection}: {why}"),
            corrupt: true,
            effect: Effect::None,
        },
    }
}

#[cfg(test)]
mod tests;
