//! What clients were told, read once: writes with their places, what was seen where, and what the regions settled on.

use super::{
    super::{Finding, Valid, Verdict, observe::hits_of},
    feed,
    lineage::{Lineage, Place},
};
use crate::{
    history::{Op, Outcome},
    point::Hit,
    token::{Fed, Seen},
};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

/// One copy of a write.
pub(super) struct Write<'a> {
    pub(super) op: &'a Op,
    pub(super) key: u64,
    /// None: it deletes.
    pub(super) value: Option<u64>,
    pub(super) request: &'a str,
    /// It was meant before; its answer names the place that it has since then.
    pub(super) again: bool,
    /// Where it stands, if it was acknowledged.
    pub(super) place: Option<Place>,
}

/// A read of one point, or of all that a node has.
pub(super) struct Read<'a> {
    pub(super) op: &'a Op,
    pub(super) seen: Seen,
    pub(super) wish: Wish,
    pub(super) age_ms: Option<u64>,
    pub(super) shown: Shown,
}

/// What a read wants to see.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wish {
    Linearizable,
    AtLeast(Seen),
    /// In milliseconds.
    Bounded(u64),
    Local,
}

/// What it saw.
pub(super) enum Shown {
    Point { key: u64, value: Option<u64>, version: Option<u64> },
    All(BTreeMap<u64, Hit>),
}

/// What of one shard did not arrive, as a manifest or a file says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct ShardLoss {
    pub(super) shard: u64,
    pub(super) from: u64,
    /// Before `from` if there is nothing.
    pub(super) to: u64,
    pub(super) ids: BTreeSet<u64>,
}

/// What one takeover lost.
pub(super) struct Loss<'a> {
    /// The operation that showed it first, once it was whole.
    pub(super) op: &'a Op,
    /// As the new home says.
    pub(super) manifest: Vec<ShardLoss>,
    /// As the old one keeps.
    pub(super) files: Vec<ShardLoss>,
}

/// Everything.
#[derive(Default)]
pub(super) struct Told<'a> {
    pub(super) ops: &'a [Op],
    pub(super) writes: Vec<Write<'a>>,
    pub(super) reads: Vec<Read<'a>>,
    /// Tokens, of sessions and of feeds, that were refused as lost.
    pub(super) expired: Vec<(&'a Op, Vec<Place>)>,
    /// By the generation of the new home.
    pub(super) losses: BTreeMap<u64, Loss<'a>>,
    /// Which region each home is in.
    pub(super) homes: BTreeMap<u64, &'a str>,
    pub(super) lineage: Lineage,
    /// The shard of each point that a write was acknowledged of.
    pub(super) shards: BTreeMap<u64, u64>,
}

impl<'a> Told<'a> {
    pub(super) fn of(ops: &'a [Op], verdict: &mut Verdict) -> Told<'a> {
        let mut told = Told { ops, ..Told::default() };
        for op in ops {
            let ok = op.outcome == Outcome::Ok;
            let read = match (op.f.as_str(), op.key) {
                ("put" | "remove", Some(key)) => told.write(op, key),
                ("get", Some(key)) if ok => {
                    let value = op.output["v"].as_u64();
                    told.read(op, wish(op), Shown::Point { key, value, version: op.version })
                }
                ("get", Some(_)) => told.refused(op),
                ("changes-refused", _) if ok => feed::fed(op).map(|fed| told.expired.push((op, places(fed)))),
                ("follow" | "held", _) if ok => {
                    let hits = hits_of(op).into_iter().map(|hit| (hit.id, hit)).collect();
                    told.read(op, Some(Wish::Local), Shown::All(hits))
                }
                ("settle" | "rest", _) if ok => told.settled(op, verdict),
                _ => Some(()),
            };
            if read.is_none() {
                verdict.wrong("unreadable", op.key, &[op.invoked], format!("{}: {}", op.f, op.output));
            }
        }
        told.notice_untold(verdict);
        told
    }

    /// The newest home that anything tells of.
    pub(super) fn newest(&self) -> u64 {
        let homes = self.homes.keys().copied();
        let homes = homes.chain(self.reads.iter().map(|read| read.seen.generation));
        homes.chain(self.acknowledged().map(|(_, place)| place.generation)).max().unwrap_or_default()
    }

    /// Acknowledged writes with their places.
    pub(super) fn acknowledged(&self) -> impl Iterator<Item = (&Write<'a>, Place)> {
        self.writes.iter().filter_map(|write| Some((write, write.place?)))
    }

    fn write(&mut self, op: &'a Op, key: u64) -> Option<()> {
        let mut place = None;
        if op.outcome == Outcome::Ok {
            let seen = seen(op)?;
            let (shard, _) = seen.shards.first_key_value()?;
            self.shards.insert(key, *shard);
            place = Some(Place { generation: seen.generation, shard: *shard, position: op.version? });
        }
        let (value, request) = (op.input["v"].as_u64(), op.input["request"].as_str().unwrap_or_default());
        let again = op.input["again"] == true;
        self.writes.push(Write { op, key, value, request, again, place });
        Some(())
    }

    fn read(&mut self, op: &'a Op, wish: Option<Wish>, shown: Shown) -> Option<()> {
        let age_ms = op.output["age_ms"].as_u64();
        self.reads.push(Read { op, seen: seen(op)?, wish: wish?, age_ms, shown });
        Some(())
    }

    fn refused(&mut self, op: &'a Op) -> Option<()> {
        if op.error.as_deref().is_some_and(|why| why.starts_with("410")) {
            let Seen { generation, shards } = serde_json::from_value(op.input["token"].clone()).ok()?;
            let place = |(shard, position)| Place { generation, shard, position };
            self.expired.push((op, shards.into_iter().map(place).collect()));
        }
        Some(())
    }

    fn settled(&mut self, op: &'a Op, verdict: &mut Verdict) -> Option<()> {
        let generation = op.output["generation"].as_u64()?;
        self.homes.insert(generation, op.output["home"].as_str()?);
        if !op.output["loss"].is_null() {
            let rows = |rows: &serde_json::Value| serde_json::from_value::<Vec<ShardLoss>>(rows.clone()).ok();
            let manifest = rows(&op.output["loss"]["shards"])?;
            let files = rows(&op.output["files"])?;
            self.lineage.note(generation, manifest.iter().map(|shard| (shard.shard, shard.from)).collect());
            let first =
                self.losses.entry(generation).or_insert(Loss { op, manifest: manifest.clone(), files });
            if first.manifest != manifest {
                let why = format!("home {generation} said {:?}, and says {manifest:?}", first.manifest);
                verdict.wrong("loss-changed", None, &[first.op.invoked, op.invoked], why);
            }
        }
        Some(())
    }

    /// A home that came by a takeover, and of which nobody settled what it lost: nothing can be said of what is true.
    fn notice_untold(&self, verdict: &mut Verdict) {
        let taken = self.ops.iter().filter(|op| op.f == "takeover" && op.outcome == Outcome::Ok);
        for op in taken {
            let generation = op.output["generation"].as_u64().unwrap_or_default();
            if !self.losses.contains_key(&generation) {
                verdict.valid = verdict.valid.max(Valid::Unknown);
                verdict.findings.push(Finding {
                    anomaly: "untold".to_owned(),
                    why: format!("what the takeover to home {generation} lost was never told whole"),
                    workload: String::new(),
                    key: None,
                    ops: vec![op.invoked],
                });
            }
        }
    }
}

fn places(fed: BTreeMap<u64, Fed>) -> Vec<Place> {
    let place = |(shard, Fed { generation, position })| Place { generation, shard, position };
    fed.into_iter().map(place).collect()
}

fn seen(op: &Op) -> Option<Seen> {
    serde_json::from_value(op.output["seen"].clone()).ok()
}

fn wish(op: &Op) -> Option<Wish> {
    Some(match op.input["consistency"].as_str()? {
        "linearizable" => Wish::Linearizable,
        "local" => Wish::Local,
        "bounded" => Wish::Bounded(op.input["bound_ms"].as_u64()?),
        "at-least" => Wish::AtLeast(serde_json::from_value(op.input["token"].clone()).ok()?),
        _ => return None,
    })
}
