//! What one replica gives to those who follow its shard.
//!
//! Invariants: a source gives the commands from its first position on, in order; it ends with the reason, or is
//! dropped; a command comes with what it did on every replica alike; the first one goes on from what was seen.

use super::{Parts, Refusal, ShardEvents, Stand};
use crate::{
    cluster::shards::LocalShard,
    machine::MachineError,
    model::{Body, CollectionId, Command, Epoch, Homes, Kind, Position},
    replica::{ReplicaError, Tail},
    shard::{Change, Shard},
    world,
};
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    stream::{self, BoxStream},
};
use std::{collections::VecDeque, sync::Arc};
use tokio::time::Instant;

/// Commands of one replica; an error is the reason why there are no more.
pub(super) type Source = BoxStream<'static, Result<ShardEvents, Refusal>>;

/// Commands whose effects are looked up at once: at most so many, and about so many bytes.
const AT_ONCE: usize = 256;
const AT_ONCE_BYTES: usize = 1 << 20;

/// Follows a replica of this node.
pub(super) async fn open(
    local: Arc<LocalShard>,
    from: Position,
    seen: Option<Stand>,
    parts: Parts,
    deadline: Instant,
) -> Result<Source, Refusal> {
    goes_on(&local.shard.view().counting().map_err(damaged)?.homes, seen)?;
    if local.position().next() < from {
        // What was acknowledged may not have come here yet; what is beyond that is lost.
        let end = stand(&local, deadline).await?.position;
        if end.next() < from && local.shard.view().follows() {
            return Err(Refusal::Away(format!("it follows its home, and has come to {end} only")));
        }
        if end.next() < from {
            return Err(Refusal::Beyond { end });
        }
    }
    let tail = local.replica.tail(from).await.map_err(refusal)?;
    let shard = local.shard.clone();
    if from <= local.position() && !parts.commands {
        blocking(move || is_kept(&shard, from)).await?;
    }
    let tailing = Tailing { tail, shard: local.shard.clone(), seen, parts, ready: VecDeque::new() };
    let items = stream::unfold(Some(tailing), |tailing| async {
        let mut tailing = tailing?;
        match tailing.next().await {
            Ok(events) => Some((Ok(events), Some(tailing))),
            Err(refusal) => Some((Err(refusal), None)),
        }
    });
    Ok(items.boxed())
}

/// Where the shard stands, asked of a replica of this node.
pub(super) async fn stand(local: &LocalShard, deadline: Instant) -> Result<Stand, Refusal> {
    let index = local.replica.read_index(deadline).await.map_err(refusal)?;
    local.replica.wait_applied(index, deadline).await.map_err(refusal)?;
    standing(local)
}

/// Where this replica of it stands.
pub(super) fn standing(local: &LocalShard) -> Result<Stand, Refusal> {
    let counting = local.shard.view().counting().map_err(damaged)?;
    Ok(Stand { position: counting.position, home: counting.homes.of(counting.position) })
}

/// Whether what the command at `position` did is kept: the log may reach back further.
fn is_kept(shard: &Shard, position: Position) -> Result<(), MachineError> {
    let (collection, epoch, born) = (CollectionId(0), Epoch(0), Position(0));
    // Of a command that says nothing itself, only the record is looked at.
    let command = Command { collection, schema_version: 0, epoch, request: None, born, body: Body::Retire };
    shard.effect_of(position, &command).map(drop)
}

/// Asks the shard, which may read files.
async fn blocking<T: Send + 'static>(
    ask: impl FnOnce() -> Result<T, MachineError> + Send + 'static,
) -> Result<T, Refusal> {
    match world::blocking(ask).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(MachineError::Forgotten { oldest, .. })) => Err(Refusal::Gone { oldest }),
        Ok(Err(error)) if error.kind() == Kind::Corrupt => Err(Refusal::Damaged(error.to_string())),
        Ok(Err(error)) => Err(Refusal::Away(error.to_string())),
        Err(lost) => Err(Refusal::Away(lost.to_string())),
    }
}

fn damaged(error: MachineError) -> Refusal {
    Refusal::Damaged(error.to_string())
}

/// Whether what these homes have goes on from what was seen.
fn goes_on(homes: &Homes, seen: Option<Stand>) -> Result<(), Refusal> {
    let Some(seen) = seen else { return Ok(()) };
    let later = homes.current();
    if later < seen.home {
        return Err(Refusal::Away(format!("it has not heard of home {}, only of {later}", seen.home)));
    }
    if !homes.keeps(seen.home, seen.position) {
        return Err(Refusal::Lost { seen, later });
    }
    Ok(())
}

fn refusal(error: ReplicaError) -> Refusal {
    match error {
        ReplicaError::Gone { oldest } => Refusal::Gone { oldest },
        other if other.kind() == Kind::Corrupt => Refusal::Damaged(other.to_string()),
        other => Refusal::Away(other.to_string()),
    }
}

struct Tailing {
    tail: Tail,
    shard: Arc<Shard>,
    /// Before the first command: what was seen by others.
    seen: Option<Stand>,
    parts: Parts,
    ready: VecDeque<ShardEvents>,
}

impl Tailing {
    async fn next(&mut self) -> Result<ShardEvents, Refusal> {
        loop {
            if let Some(events) = self.ready.pop_front() {
                return Ok(events);
            }
            let commands = self.commands().await.map_err(refusal)?;
            let (shard, parts) = (self.shard.clone(), self.parts);
            let (homes, ready) = blocking(move || effects(&shard, commands, parts)).await?;
            // A home may have come while what was seen had not.
            goes_on(&homes, self.seen.take())?;
            self.ready = ready;
        }
    }

    /// The next command, and those behind it that are there already.
    async fn commands(&mut self) -> Result<Vec<(Position, Bytes)>, ReplicaError> {
        let first = self.tail.next().await?;
        let mut bytes = first.1.len();
        let mut commands = vec![first];
        while bytes < AT_ONCE_BYTES && commands.len() < AT_ONCE {
            // What goes wrong now goes wrong again when it is its turn.
            let Some(Ok(next)) = self.tail.next().now_or_never() else { break };
            bytes += next.1.len();
            commands.push(next);
        }
        Ok(commands)
    }
}

fn effects(
    shard: &Shard,
    commands: Vec<(Position, Bytes)>,
    parts: Parts,
) -> Result<(Homes, VecDeque<ShardEvents>), MachineError> {
    let view = shard.view();
    let homes = view.counting()?.homes;
    let read = |(position, bytes): (Position, Bytes)| {
        let home = homes.of(position);
        if parts.commands {
            let (changes, command) = (Vec::new(), Some(bytes));
            return Ok(ShardEvents { position, home, changes, retired: false, command });
        }
        let after = Position(position.0 - 1);
        let command = Command::decode(&bytes).map_err(|source| MachineError::Command { after, source })?;
        let mut changes = view.effect_of(position, &command)?;
        for change in &mut changes {
            parts.strip(change);
        }
        let retired = matches!(command.body, Body::Retire) && view.retired();
        Ok(ShardEvents { position, home, changes, retired, command: None })
    };
    let events = commands.into_iter().map(read).collect::<Result<_, MachineError>>()?;
    Ok((homes, events))
}

impl Parts {
    fn strip(self, change: &mut Change) {
        let Change::Upsert(point) = change else { return };
        if !self.payload {
            point.payload = Bytes::new();
        }
        if !self.vectors {
            point.vectors.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Generation, Home};

    #[test]
    fn what_was_seen_goes_on_unless_it_is_lost_or_not_heard_of() {
        let homes = Homes(vec![Home { generation: Generation(2), first: Position(10) }]);
        let goes_on = |position, home| {
            let seen = Stand { position: Position(position), home: Generation(home) };
            super::goes_on(&homes, Some(seen))
        };
        assert_eq!(super::goes_on(&homes, None), Ok(()));
        assert_eq!(goes_on(9, 1), Ok(()), "the next home began behind it");
        assert_eq!(goes_on(12, 2), Ok(()));
        let seen = Stand { position: Position(10), home: Generation(1) };
        assert_eq!(goes_on(10, 1), Err(Refusal::Lost { seen, later: Generation(2) }));
        assert!(matches!(goes_on(3, 3), Err(Refusal::Away(why)) if why.contains("not heard of home 3")));
    }
}
