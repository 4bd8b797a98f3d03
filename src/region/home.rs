//! What a region answers to others: as the home of a collection, as one that was, as one that follows.
//!
//! Invariants: only a home says where its shards stand and gives commands, each with the generation that it was asked
//! for; who is told of a newer home gives no position once it has answered.

use super::{
    Regions, Result,
    link::{Answer, Ask, Frame, Question, Wanted},
    shards,
};
use crate::{
    cluster::{ClusterError, Description, FollowError, HomeRecord, Part, Parts, RegionChange, ShardStream},
    model::{Body, Generation, Invalid, Position, Turn},
    net::ByteStream,
    world,
};
use bytes::Bytes;
use futures::{StreamExt, future::try_join_all, stream};
use std::{io, time::Duration};
use tokio::time::{Instant, timeout};

/// How long answering may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A stream that has nothing new says so this often.
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// Commands in one frame: at most so many, and about so many bytes.
const COMMANDS_TOGETHER: usize = 1_024;
const BYTES_TOGETHER: usize = 256 << 10;
/// Frames from this size on are packed aside.
const PACKED_ASIDE_BYTES: usize = 32 << 10;

impl Regions {
    /// Answers a question of another region.
    ///
    /// Errors: `NoCollection`, also if the id is another's; `NotHome`; `Stale` and `Conflict` (what is asked for does
    /// not fit); a passing failure of this cluster.
    pub async fn answer(&self, question: Question) -> Result<Answer> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let Question { collection, id, region, url, ask } = question;
        // What is often asked, and harmless if it is answered a moment late, does not wait for the catalog.
        let of = match ask {
            Ask::Positions { .. } => self.cluster().described_now(&collection),
            _ => Some(self.cluster().describe(&collection, deadline).await?),
        };
        let of = of.filter(|of| id.is_none_or(|id| id == of.id));
        let of = of.ok_or(ClusterError::NoCollection(collection))?;
        match ask {
            Ask::Describe { follows } => {
                if follows && of.region.followers.get(&region) != Some(&url) {
                    self.cluster()
                        .change_region(of.id, RegionChange::Register { region, url }, deadline)
                        .await?;
                }
                Ok(Answer::Description(Box::new(of)))
            }
            Ask::Leave => {
                self.cluster().change_region(of.id, RegionChange::Unregister { region }, deadline).await?;
                Ok(Answer::Done)
            }
            Ask::Positions { generation } => {
                is_home_of(&of, generation)?;
                let positions = self.cluster().positions(&of, deadline).await?;
                // It may have ceased to be the home while its shards were asked.
                let now = self.cluster().described_now(&of.name);
                is_home_of(now.as_ref().unwrap_or(&of), generation)?;
                let bytes = self.cluster().command_bytes(&of);
                Ok(Answer::Positions(positions.into_iter().zip(bytes).collect()))
            }
            Ask::Seal { next } => self.seal(&of, next, url, deadline).await.map(Answer::Sealed),
            Ask::Unseal { next } => self.unseal(&of, next, deadline).await.map(|()| Answer::Done),
            Ask::Abandon { next } => {
                self.cluster().change_region(of.id, RegionChange::Abandon { next }, deadline).await?;
                Ok(Answer::Done)
            }
            Ask::Fence { homes } => self.fence(&of, homes, url).await.map(|()| Answer::Done),
            Ask::Lost { generation, shard, loss } => {
                let change = RegionChange::Lost { generation, shard: shard.0 as usize, loss };
                self.cluster().change_region(of.id, change, deadline).await?;
                Ok(Answer::Done)
            }
        }
    }

    /// Makes way for a home elsewhere: no shard here gives positions any more. Gives the last of each.
    async fn seal(
        &self,
        of: &Description,
        next: Generation,
        to: String,
        deadline: Instant,
    ) -> Result<Vec<Position>> {
        self.cluster().change_region(of.id, RegionChange::Hand { next, to }, deadline).await?;
        self.seal_shards(of, next, deadline).await
    }

    pub(super) async fn seal_shards(
        &self,
        of: &Description,
        next: Generation,
        deadline: Instant,
    ) -> Result<Vec<Position>> {
        try_join_all(shards(of).map(async |shard| {
            self.cluster().turn_shard(of, shard, Body::Turn(Turn::Seal(next)), deadline).await
        }))
        .await
    }

    /// The next home does not come: the shards give positions again.
    pub(super) async fn unseal(&self, of: &Description, next: Generation, deadline: Instant) -> Result<()> {
        if !matches!(&of.region.part, Part::Handing { next: own, .. } if *own == next) {
            return Ok(());
        }
        try_join_all(shards(of).map(async |shard| {
            self.cluster().turn_shard(of, shard, Body::Turn(Turn::Unseal(next)), deadline).await
        }))
        .await?;
        self.cluster().change_region(of.id, RegionChange::Unhand { next }, deadline).await
    }

    /// Hears of a newer home: on return no shard here gives positions any more, and the rest is the steward's.
    ///
    /// Nothing to do if it is known already, or followed.
    pub(super) async fn fence(&self, of: &Description, homes: Vec<HomeRecord>, home: String) -> Result<()> {
        let Some(generation) = homes.last().map(|home| home.generation) else { return Ok(()) };
        if of.region.generation() >= generation {
            return Ok(());
        }
        let deadline = Instant::now() + ANSWER_WITHIN;
        if let Part::Follower { .. } = of.region.part {
            // The next look at its home, or at the new one, tells it more than one home at once.
            return Err(ClusterError::Conflict(format!("{} is not a home here", of.name)));
        }
        self.cluster().change_region(of.id, RegionChange::Fence { homes, home }, deadline).await?;
        self.seal_shards(of, generation, deadline).await.map(drop)
    }

    /// Opens a stream for another region.
    ///
    /// Errors: `NoCollection`, `NotHome`, `Invalid`; `Expired` if no replica's log reaches back, `Conflict` if the home
    /// has not come so far; `Unavailable`.
    pub async fn answer_stream(&self, wanted: Wanted) -> Result<ByteStream> {
        let deadline = Instant::now() + ANSWER_WITHIN;
        let Wanted { collection, id, generation, shard, from } = wanted;
        let of = self.cluster().describe(&collection, deadline).await?;
        if of.id != id {
            return Err(ClusterError::NoCollection(collection));
        }
        is_home_of(&of, generation)?;
        if shard.0 >= of.spec.shard_number {
            return Err(Invalid::new("shard", format!("there is no shard {shard}")).into());
        }
        let Some(from) = from else {
            let copy = self.cluster().seed_shard(&of, shard);
            let steps = stream::try_unfold(copy, |mut copy| async {
                let step = copy.next().await.map_err(io::Error::other)?;
                Ok(step.map(|step| (Frame::Step(step).encode(), copy)))
            });
            return Ok(steps.boxed());
        };
        let parts = Parts { payload: false, vectors: false, commands: true };
        let commands = self.cluster().follow_shard(&of.followed(), shard, from, None, parts, deadline).await;
        let commands = commands.map_err(|error| refusal(error, &of))?;
        Ok(frames(commands, generation, from).boxed())
    }
}

/// Frames of commands as they come, those together that are there together; ends with the generation.
fn frames(
    commands: ShardStream,
    generation: Generation,
    from: Position,
) -> impl futures::Stream<Item = io::Result<Bytes>> + Send {
    let together = commands.ready_chunks(COMMANDS_TOGETHER);
    stream::unfold(Some((together, from)), move |state| async move {
        let (mut together, mut next) = state?;
        let chunk = match timeout(ALIVE_EVERY, together.next()).await {
            Err(_) => return Some((Ok(Frame::Alive.encode()), Some((together, next)))),
            Ok(None) => return None,
            Ok(Some(chunk)) => chunk,
        };
        let (mut packed, mut gathered, mut bytes, mut end) = (Vec::new(), Vec::new(), 0, false);
        let mut first = next;
        for event in chunk {
            // A later home's: whoever follows asks it, or is told where it is.
            let command = event.ok().filter(|event| event.home <= generation);
            let Some((position, command)) = command.and_then(|event| Some((event.position, event.command?)))
            else {
                end = true;
                break;
            };
            bytes += command.len();
            gathered.push(command);
            next = position.next();
            if bytes >= BYTES_TOGETHER {
                packed.push(pack(first, std::mem::take(&mut gathered), bytes).await);
                (first, bytes) = (next, 0);
            }
        }
        if !gathered.is_empty() {
            packed.push(pack(first, gathered, bytes).await);
        }
        let packed: io::Result<Vec<Bytes>> = packed.into_iter().collect();
        let goes_on = packed.is_ok() && !end;
        Some((packed.map(|frames| frames.concat().into()), goes_on.then_some((together, next))))
    })
}

/// Packs commands into a frame. Many of them take milliseconds, which give way to who is served meanwhile.
async fn pack(first: Position, commands: Vec<Bytes>, bytes: usize) -> io::Result<Bytes> {
    let frame = Frame::Commands(first, commands);
    match bytes < PACKED_ASIDE_BYTES {
        true => Ok(frame.encode()),
        false => world::patiently(move || frame.encode()).await.map_err(io::Error::other),
    }
}

/// Errors: `NotHome`.
fn is_home_of(of: &Description, generation: Generation) -> Result<()> {
    match of.region.part == Part::Home && of.region.generation() == generation {
        true => Ok(()),
        false => Err(ClusterError::NotHome(format!(
            "this region is not home {generation} of {}: {:?}, of home {}",
            of.name,
            of.region.part,
            of.region.generation()
        ))),
    }
}

fn refusal(error: FollowError, of: &Description) -> ClusterError {
    let why = format!("{}: {error}", of.name);
    match error {
        FollowError::Expired { .. } => ClusterError::Expired(why),
        // What a follower has and its home has not: nothing of it is thrown away by itself.
        FollowError::Beyond { .. } | FollowError::Lost { .. } => ClusterError::Conflict(why),
        FollowError::Dropped => ClusterError::NoCollection(of.name.clone()),
        FollowError::Away(_) | FollowError::Damaged(_) => ClusterError::Unavailable(why),
    }
}
