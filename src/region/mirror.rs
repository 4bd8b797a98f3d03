//! Takes over the commands of a home: a task for each shard that follows and is led here.
//!
//! ```text
//!   turn (follow these homes) ─▶ a copy, if the home's log does not reach back ─▶ commands, batch after batch
//! ```
//!
//! One batch is under way at a time, and the next one is what has come meanwhile: so batches clock themselves, and a
//! home that is faster than this region is slowed by nobody but its own stream.
//!
//! Invariants: what is proposed follows on what is applied, or the shard refuses it; so two nodes that both believe
//! they lead do no harm, and nothing is taken over twice.
//! Not here: how the home reads its log (`home`), how old all this is (`pulse`).

use super::{
    ASK_WITHIN, Regions, Result, STEP_WITHIN,
    link::{Frame, Frames, Wanted},
};
use crate::{
    cluster::{ClusterError, Description, Part},
    model::{
        Body, Command, Duty, Position, ShardNumber,
        region::{DIVERGED, Seed},
    },
    net::ByteStream,
    world,
};
use bytes::Bytes;
use futures::FutureExt;
use std::{convert::Infallible, sync::PoisonError, time::Duration};
use tokio::time::{Instant, timeout};

/// How often a node looks for shards that want a mirror here.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// A stream that is silent for so long is given up.
const SILENT_FOR: Duration = Duration::from_secs(5);
/// Pauses before a stream is opened again: doubled from the first to the last.
const PAUSES: [Duration; 2] = [Duration::from_millis(20), Duration::from_secs(2)];
/// A batch is about so many bytes.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_COMMANDS: usize = 4_096;
/// What is around the commands of a batch, and around each of them, at most.
const MIRROR_HEAD_BYTES: usize = 1 << 10;
const COMMAND_HEAD_BYTES: usize = 8;

/// Why a mirror has stopped for the time being.
enum Stop {
    /// This node does not lead the shard any more, or the collection does not follow as it did.
    Over,
    /// It may go on later.
    Failed(ClusterError),
}

impl From<ClusterError> for Stop {
    fn from(error: ClusterError) -> Self {
        Stop::Failed(error)
    }
}

impl Regions {
    /// Keeps a mirror for each shard that follows and is led here.
    pub(super) async fn mirror(self) {
        loop {
            let news = self.cluster().news();
            for of in self.cluster().described() {
                if !matches!(of.region.part, Part::Follower { .. }) {
                    continue;
                }
                for shard in self.cluster().led_shards(&of.name) {
                    let key = (of.id, shard);
                    let mut mirrored = self.inner.mirrored.lock().unwrap_or_else(PoisonError::into_inner);
                    if mirrored.insert(key) {
                        let (regions, of) = (self.clone(), of.clone());
                        world::spawn(async move {
                            regions.mirror_shard(of, shard).await;
                            let mirrored = &regions.inner.mirrored;
                            mirrored.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                        });
                    }
                }
            }
            tokio::select! {
                () = news => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if self.cluster().is_closing() {
                return;
            }
        }
    }

    async fn mirror_shard(&self, of: Description, shard: ShardNumber) {
        let mut pause = PAUSES[0];
        while self.still(&of, shard) {
            let began = Instant::now();
            match self.mirror_stream(&of, shard).await {
                Err(Stop::Over) => {}
                Err(Stop::Failed(error @ (ClusterError::Conflict(_) | ClusterError::Invalid(_)))) => {
                    tracing::warn!(collection = of.name, shard = shard.0, %error, "the mirror cannot go on");
                }
                Err(Stop::Failed(error)) => {
                    tracing::debug!(collection = of.name, shard = shard.0, %error, "the mirror is interrupted");
                }
            }
            if began.elapsed() > SILENT_FOR {
                pause = PAUSES[0];
            }
            if !self.pause(pause).await {
                return;
            }
            pause = (pause * 2).min(PAUSES[1]);
        }
    }

    /// Whether a shard is led here and follows as it did.
    fn still(&self, of: &Description, shard: ShardNumber) -> bool {
        let now = self.cluster().described_now(&of.name);
        now.is_some_and(|now| now.is_as(of))
            && !self.cluster().is_closing()
            && self.cluster().led_shards(&of.name).contains(&shard)
    }

    /// Mirrors until something ends it.
    async fn mirror_stream(
        &self,
        of: &Description,
        shard: ShardNumber,
    ) -> std::result::Result<Infallible, Stop> {
        let (mut at, stream) = self.open_stream(of, shard).await?;
        let (generation, mut frames, mut batch) = (of.region.generation(), Frames::over(stream), Vec::new());
        let bytes_max = self.cluster().command_bytes_max(of, shard)? - MIRROR_HEAD_BYTES;
        loop {
            gather(next_frame(&mut frames).await?, at, &mut batch)?;
            let mut bytes: usize = batch.iter().map(Bytes::len).sum();
            // What has come meanwhile joins.
            while bytes < BATCH_BYTES && batch.len() < BATCH_COMMANDS {
                let before = batch.len();
                let Some(frame) = frames.next().now_or_never() else { break };
                gather(frame.map_err(away)?, at, &mut batch)?;
                bytes += batch[before..].iter().map(Bytes::len).sum::<usize>();
            }
            loop {
                // Also where there is nothing new: another copy may have begun.
                if !self.still(of, shard) {
                    return Err(Stop::Over);
                }
                if batch.is_empty() {
                    break;
                }
                let body = Body::Mirror { generation, prev: at, commands: cut(&mut batch, bytes_max) };
                at = self.cluster().turn_shard(of, shard, body, Instant::now() + STEP_WITHIN).await?;
            }
        }
    }

    /// Opens the home's stream behind what is here, after a copy where that is wanted; gives the last position here.
    async fn open_stream(
        &self,
        of: &Description,
        shard: ShardNumber,
    ) -> std::result::Result<(Position, ByteStream), Stop> {
        let Part::Follower { home } = &of.region.part else { return Err(Stop::Over) };
        let generation = of.region.generation();
        let open = |from| {
            let wanted = Wanted { collection: of.name.clone(), id: of.id, generation, shard, from };
            self.inner.link.stream(home, wanted, Instant::now() + ASK_WITHIN)
        };
        let here = self.turn_to_follow(of, shard).await?;
        if let Some(at) = here {
            match open(Some(at.next())).await {
                Ok(stream) => return Ok((at, stream)),
                Err(ClusterError::Expired(_)) if at == Position(0) => {}
                // Too far behind: the home's log has forgotten what comes next.
                Err(ClusterError::Expired(why)) => return Err(self.copy_anew(of, shard, &why).await),
                Err(error) => return Err(error.into()),
            }
        }
        tracing::info!(collection = of.name, shard = shard.0, "a copy of the home's shard is taken in");
        let at = self.take_copy(of, shard, open(None).await?).await?;
        Ok((at, open(Some(at.next())).await?))
    }

    /// What is here cannot be gone on with: the collection begins with a copy again.
    async fn copy_anew(&self, of: &Description, shard: ShardNumber, why: &str) -> Stop {
        tracing::warn!(collection = of.name, shard = shard.0, why, "the collection is copied anew");
        match self.cluster().refollow(of, Instant::now() + STEP_WITHIN).await {
            Ok(()) => Stop::Over,
            Err(error) => error.into(),
        }
    }

    /// Sees to it that the shard follows the homes that the catalog names; its position, or none if a copy of the home
    /// is not whole.
    async fn turn_to_follow(
        &self,
        of: &Description,
        shard: ShardNumber,
    ) -> std::result::Result<Option<Position>, Stop> {
        let (deadline, homes) = (Instant::now() + STEP_WITHIN, of.region.homes_of(shard.0 as usize));
        let standing = self.cluster().shard_standing(of, shard, deadline).await?;
        if standing.duty != Duty::Following || standing.homes != homes {
            let turn = Body::Turn(crate::model::Turn::Follow(homes));
            match self.cluster().turn_shard(of, shard, turn, deadline).await {
                Ok(_) => {}
                Err(ClusterError::Conflict(why)) if why.starts_with(DIVERGED) => {
                    return Err(self.copy_anew(of, shard, &why).await);
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok((!standing.seeding).then_some(standing.position))
    }

    /// Takes a copy of the home's shard in; its position.
    ///
    /// Errors: it is begun anew.
    async fn take_copy(
        &self,
        of: &Description,
        shard: ShardNumber,
        stream: ByteStream,
    ) -> std::result::Result<Position, Stop> {
        let attempt = world::chance() | 1;
        let mut frames = Frames::over(stream);
        loop {
            let command = match next_frame(&mut frames).await? {
                Some(Frame::Step(command)) => Command::decode(&command).map_err(away)?,
                Some(_) => return Err(away("a command within a copy").into()),
                None => return Err(away("the copy ended early").into()),
            };
            let Body::Seed { step, .. } = command.body else {
                return Err(away("a step of a copy that is none").into());
            };
            if !self.still(of, shard) {
                return Err(Stop::Over);
            }
            let end = match &step {
                Seed::End(end) => Some(end.clone()),
                _ => None,
            };
            let body = Body::Seed { attempt, step };
            let deadline = Instant::now() + STEP_WITHIN;
            let position = self.cluster().turn_shard(of, shard, body, deadline).await?;
            if let Some(end) = end {
                let (at, hash) = self.cluster().shard_hash(of, shard, deadline).await?;
                if at == end.position && hash != format!("{:032x}", end.hash) {
                    return Err(self.copy_anew(of, shard, "the copy differs from its home").await);
                }
                return Ok(position);
            }
        }
    }
}

/// Takes as many commands from the front of a batch, which is not empty, as one command here may hold, at least one.
fn cut(batch: &mut Vec<Bytes>, bytes_max: usize) -> Vec<Bytes> {
    let mut bytes = 0;
    let fit = batch.iter().take_while(|command| {
        bytes += command.len() + COMMAND_HEAD_BYTES;
        bytes <= bytes_max
    });
    let rest = batch.split_off(fit.count().max(1));
    std::mem::replace(batch, rest)
}

/// Adds the commands of a frame that follows on the batch.
fn gather(frame: Option<Frame>, at: Position, batch: &mut Vec<Bytes>) -> Result<()> {
    match frame {
        None => Err(away("the home's stream has ended")),
        Some(Frame::Alive) => Ok(()),
        Some(Frame::Step(_)) => Err(away("a step of a copy within commands")),
        Some(Frame::Commands(first, commands)) => {
            let wanted = at.0 + batch.len() as u64 + 1;
            if first.0 != wanted {
                return Err(away(format!("the home gives position {first} for {wanted}")));
            }
            batch.extend(commands);
            Ok(())
        }
    }
}

/// The next frame of a stream that is not silent.
async fn next_frame(frames: &mut Frames) -> Result<Option<Frame>> {
    match timeout(SILENT_FOR, frames.next()).await {
        Ok(frame) => frame.map_err(away),
        Err(_) => Err(away("the home's stream is silent")),
    }
}

fn away(why: impl std::fmt::Display) -> ClusterError {
    ClusterError::Unavailable(why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_cut_to_what_a_log_takes() {
        let command = |bytes| Bytes::from(vec![7; bytes]);
        let mut batch = vec![command(40), command(40), command(500), command(0), command(1)];
        let mut parts = Vec::new();
        while !batch.is_empty() {
            parts.push(cut(&mut batch, 100).iter().map(Bytes::len).collect::<Vec<_>>());
        }
        // One that is too large goes alone: the log says so itself.
        assert_eq!(parts, [vec![40, 40], vec![500], vec![0, 1]]);
    }
}
