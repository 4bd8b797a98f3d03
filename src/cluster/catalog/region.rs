//! What a collection is in this region: its home, a follower of a home elsewhere, or on its way from one to the other.
//!
//! ```text
//!               Hand                    Fence                  Settle (nothing lost here)
//!   ┌─ Home ──────────▶ Handing ──────────────────▶ Fenced ──────────────────────────┐
//!   │    ▲     Unhand ◀─┘                             ▲   └── Refollow (a copy anew) ─┤
//!   │    │                                     Fence  │                              ▼
//!   └────┼────────────────────────────────────────────┘                          Follower
//!        │            Promoted                                 Promote               │
//!        └────────────────────────── Promoting ◀─────────────────────────────────────┘
//! ```
//!
//! Each step is one change of the catalog, so that any node goes on where another stopped.
//!
//! Invariants: `generation` rises; a region promotes only a generation that it has not given up (`Abandon`) and that is
//! newer than any it knows; what a change was told twice it does once.
//! Not here: turning the shards (`cluster::regions`), who carries the steps out (`region/`).

use super::{
    record::{CollectionRecord, GroupRecord},
    state::{MISSING, NEEDED, STALE},
};
use crate::{
    cluster::{CollectionSpec, NodeName},
    machine::Rejection,
    model::{CollectionId, Generation, Home, Homes, PointId, Position, Schema},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a collection is here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RegionRecord {
    /// The homes after the first, ascending.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub homes: Vec<HomeRecord>,
    /// Its part.
    #[serde(default)]
    pub part: Part,
    /// The regions that follow, with where they are.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub followers: BTreeMap<String, String>,
    /// No home up to this generation comes from here any more.
    #[serde(default)]
    pub abandoned: Generation,
    /// The home before this one, which is to be told of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tell: Option<String>,
    /// What was lost by taking over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<Loss>,
}

/// A home after the first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeRecord {
    /// Which.
    pub generation: Generation,
    /// Its first position, by shard.
    pub firsts: Vec<Position>,
}

/// The part of a region in a collection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "part")]
pub enum Part {
    /// It is the home.
    #[default]
    Home,
    /// It was the home, and gives no positions while the next one comes.
    Handing {
        /// The next home.
        next: Generation,
        /// Where it is.
        to: String,
    },
    /// It follows.
    Follower {
        /// Where the home is.
        home: String,
    },
    /// It becomes the home.
    Promoting {
        /// As which.
        next: Generation,
        /// Where the home was.
        from: String,
        /// The home's last positions that were heard of, by shard, if it did not hand over: what lies between is lost.
        taken: Option<Vec<Position>>,
    },
    /// A newer home is known; what this one has beyond that is being told.
    Fenced {
        /// The homes after the first, up to the newer one.
        homes: Vec<HomeRecord>,
        /// Where it is.
        home: String,
    },
}

/// What did not arrive before a home was taken over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The home that was taken over to.
    pub generation: Generation,
    /// By number.
    pub shards: Vec<ShardLoss>,
}

/// What one shard lost.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardLoss {
    /// The first position that did not arrive.
    pub from: Position,
    /// The last one, as far as it is known; before `from` if there is none.
    pub to: Position,
    /// The points that the lost commands changed, ascending, as far as they are known.
    pub ids: Vec<PointId>,
    /// Whether the old home has told all of it.
    pub complete: bool,
}

/// A change of what a collection is in this region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RegionChange {
    /// A region follows from there.
    Register {
        /// Its name.
        region: String,
        /// Where it is.
        url: String,
    },
    /// It follows no longer.
    Unregister {
        /// Its name.
        region: String,
    },
    /// The home has changed the collection.
    Described {
        /// What its creator said, with later changes.
        spec: CollectionSpec,
        /// Its schema.
        schema: Schema,
    },
    /// The home is elsewhere; what is here is the beginning of what it has.
    Redirect {
        /// Where.
        home: String,
        /// The homes after the first.
        homes: Vec<HomeRecord>,
    },
    /// This home makes way for another.
    Hand {
        /// The next home.
        next: Generation,
        /// Where it is to be.
        to: String,
    },
    /// The next home does not come.
    Unhand {
        /// Which.
        next: Generation,
    },
    /// This region will not become a home of this generation.
    Abandon {
        /// Which.
        next: Generation,
    },
    /// This region is to become the home.
    Promote {
        /// As which.
        next: Generation,
        /// See [`Part::Promoting`].
        taken: Option<Vec<Position>>,
    },
    /// Every shard here is the home's.
    Promoted {
        /// The home.
        next: HomeRecord,
    },
    /// The old home knows.
    Told {
        /// Of which home.
        generation: Generation,
    },
    /// A newer home is there.
    Fence {
        /// The homes after the first, up to it.
        homes: Vec<HomeRecord>,
        /// Where it is.
        home: String,
    },
    /// All that this one had is part of the newer home: its shards follow.
    Settle,
    /// What is here is not the beginning of what the home has, or a copy is wanted anew: other groups take the place of
    /// those that are here.
    Refollow {
        /// For each shard, the nodes of its replicas.
        placement: Vec<Vec<NodeName>>,
    },
    /// The old home tells what of a shard did not arrive.
    Lost {
        /// The home that was taken over to.
        generation: Generation,
        /// The shard.
        shard: usize,
        /// All of it.
        loss: ShardLoss,
    },
}

/// A collection that is followed from the beginning.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cluster) struct Follow {
    /// Its name, here as there.
    pub name: String,
    /// Its id, here as there.
    pub id: CollectionId,
    /// What its creator said.
    pub spec: CollectionSpec,
    /// Its schema.
    pub schema: Schema,
    /// The homes after the first.
    pub homes: Vec<HomeRecord>,
    /// Where the home is.
    pub home: String,
    /// For each shard, the nodes of its replicas.
    pub placement: Vec<Vec<NodeName>>,
}

type Result<T> = std::result::Result<T, Rejection>;

fn stale(why: impl Into<String>) -> Rejection {
    Rejection::new(STALE, why)
}

impl RegionRecord {
    /// Whether it is the home and nothing else is going on.
    pub fn is_home(&self) -> bool {
        self.part == Part::Home
    }

    /// The home that counts.
    pub fn generation(&self) -> Generation {
        newest(&self.homes)
    }

    /// The homes of a shard after the first.
    pub fn homes_of(&self, shard: usize) -> Homes {
        homes_of(&self.homes, shard)
    }
}

/// The last of some homes.
pub(in crate::cluster) fn newest(homes: &[HomeRecord]) -> Generation {
    homes.last().map_or(Generation(1), |home| home.generation)
}

/// The homes of one shard.
pub fn homes_of(homes: &[HomeRecord], shard: usize) -> Homes {
    let of = |home: &HomeRecord| Some(Home { generation: home.generation, first: *home.firsts.get(shard)? });
    Homes(homes.iter().filter_map(of).collect())
}

impl CollectionRecord {
    /// Changes its part; `fresh` makes groups for a placement. Gives the groups that others have taken the place of.
    pub(super) fn turn(
        &mut self,
        change: RegionChange,
        fresh: impl FnOnce(&[Vec<NodeName>]) -> Vec<GroupRecord>,
    ) -> Result<Option<Vec<GroupRecord>>> {
        let known = self.region.generation();
        let shards = self.shards.len();
        let region = &mut self.region;
        match change {
            RegionChange::Register { region: name, url } => drop(region.followers.insert(name, url)),
            RegionChange::Unregister { region: name } => drop(region.followers.remove(&name)),
            RegionChange::Described { spec, schema } => {
                if matches!(region.part, Part::Follower { .. }) && schema.version >= self.schema.version {
                    let replicas = self.spec.replication_factor;
                    self.spec = CollectionSpec { replication_factor: replicas, ..spec };
                    self.schema = schema;
                    self.revision += 1;
                }
            }
            RegionChange::Redirect { home, homes } => {
                let Part::Follower { home: before } = &mut region.part else {
                    return Err(stale("the collection does not follow"));
                };
                let newest = newest(&homes);
                if newest < known || !homes.starts_with(&region.homes) {
                    return Err(stale(format!("home {known} is known here, {homes:?} do not follow on it")));
                }
                (*before, region.homes) = (home, homes);
            }
            RegionChange::Hand { next, to } => match &region.part {
                Part::Handing { next: before, .. } if *before == next => {}
                Part::Home if next > known => region.part = Part::Handing { next, to },
                part => return Err(stale(format!("home {known} cannot be handed to home {next}: {part:?}"))),
            },
            RegionChange::Unhand { next } => {
                if matches!(&region.part, Part::Handing { next: before, .. } if *before == next) {
                    region.part = Part::Home;
                }
            }
            RegionChange::Abandon { next } => {
                let promoting = matches!(&region.part, Part::Promoting { next: own, .. } if *own >= next);
                if promoting || known >= next {
                    return Err(Rejection::new(NEEDED, format!("home {next} comes, or is there")));
                }
                region.abandoned = region.abandoned.max(next);
            }
            RegionChange::Promote { next, taken } => match &region.part {
                Part::Promoting { next: before, .. } if *before == next => {}
                Part::Home if known == next => {}
                Part::Follower { home } if next > known && next > region.abandoned => {
                    region.part = Part::Promoting { next, from: home.clone(), taken };
                }
                part => {
                    let given_up = region.abandoned;
                    let why =
                        format!("home {next} cannot come after {known} (given up: {given_up}): {part:?}");
                    return Err(stale(why));
                }
            },
            RegionChange::Promoted { next } => match &region.part {
                Part::Promoting { next: own, from, taken } if *own == next.generation => {
                    if next.firsts.len() != shards {
                        return Err(stale(format!("{} first positions", next.firsts.len())));
                    }
                    if let Some(known) = taken {
                        region.losses.push(Loss::of(&next, known));
                    }
                    region.tell = Some(from.clone());
                    region.homes.push(next);
                    region.part = Part::Home;
                }
                _ if known >= next.generation => {}
                part => return Err(stale(format!("home {} was not on its way: {part:?}", next.generation))),
            },
            RegionChange::Told { generation } => {
                if known == generation {
                    region.tell = None;
                }
            }
            RegionChange::Fence { homes, home } => {
                let next = newest(&homes);
                if next <= known {
                    return Err(stale(format!("home {known} is known here, {next} is not newer")));
                }
                if let Some(home) = homes.iter().find(|home| home.firsts.len() != shards) {
                    return Err(stale(format!("{} first positions", home.firsts.len())));
                }
                match &region.part {
                    Part::Follower { .. } => return Err(stale("the collection is not a home here")),
                    Part::Fenced { homes: before, .. } if newest(before) >= next => {}
                    _ => region.part = Part::Fenced { homes, home },
                }
            }
            RegionChange::Settle => {
                if let Part::Fenced { homes, home } = &region.part {
                    let (homes, home) = (homes.clone(), home.clone());
                    (region.homes, region.part, region.tell) = (homes, Part::Follower { home }, None);
                }
            }
            RegionChange::Refollow { placement } => {
                match &region.part {
                    Part::Follower { .. } => {}
                    Part::Fenced { homes, home } => {
                        let (homes, home) = (homes.clone(), home.clone());
                        (region.homes, region.part, region.tell) = (homes, Part::Follower { home }, None);
                    }
                    part => return Err(stale(format!("a home is not copied: {part:?}"))),
                }
                self.epoch.0 += 1;
                return Ok(Some(std::mem::replace(&mut self.shards, fresh(&placement))));
            }
            RegionChange::Lost { generation, shard, loss } => {
                if shard >= shards {
                    return Err(stale(format!("there is no shard {shard}")));
                }
                let of = match region.losses.iter_mut().find(|known| known.generation == generation) {
                    Some(known) => known,
                    // Taken over elsewhere, by a home before this one.
                    None if loss.to >= loss.from => {
                        region.losses.push(Loss { generation, shards: vec![ShardLoss::default(); shards] });
                        region.losses.last_mut().expect("just pushed")
                    }
                    None => {
                        let why = format!("nothing is known of a loss to home {generation}");
                        return Err(Rejection::new(MISSING, why));
                    }
                };
                of.shards[shard] = loss;
            }
        }
        Ok(None)
    }
}

impl Loss {
    /// What is known of it when a home is taken over.
    fn of(next: &HomeRecord, known: &[Position]) -> Loss {
        let shard = |(i, from): (usize, &Position)| {
            let before = Position(from.0.saturating_sub(1));
            let to = known.get(i).copied().unwrap_or_default().max(before);
            ShardLoss { from: *from, to, ids: Vec::new(), complete: false }
        };
        Loss { generation: next.generation, shards: next.firsts.iter().enumerate().map(shard).collect() }
    }

    /// Whether the old home has told all of it.
    pub fn is_complete(&self) -> bool {
        self.shards.iter().all(|shard| shard.complete)
    }
}
