//! What is true of regions after a round, by what clients were told, against what the regions say and hold.
//!
//! The truth is what clients were told: an acknowledged write has a shard, a position and a home. Of an operation of
//! unknown outcome either is possible, and where there was none, what is compared must be equal. Whatever was in doubt is
//! settled at each rest.
//! Not here: who was told what (`region_clients`), when it is compared (`regions`).

use crate::{
    nodes::Host,
    record::COLLECTION,
    region_clients::{Acked, Consumer, KEYS, REGIONS, Stage, Unknown, soon, whole},
    ways::{Door, url_of},
};
use annal::{
    cluster::{Consistency, Description, HomeRecord, Loss, Part, ReadOptions, ShardHash},
    model::{Generation, PointId, Position, ScrollRequest},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
};
use tokio::time::Instant;

/// Replicas that are wished for; a region that has fewer nodes has fewer.
pub(crate) const REPLICAS: usize = 3;

/// Regions at rest.
pub(crate) struct Rest {
    /// Which is the home.
    pub(crate) home: usize,
    /// What each says of the collection.
    described: Vec<Description>,
    /// The last position, by shard.
    at: Vec<Position>,
}

/// What all regions held when they were last at rest: nothing before it is in doubt any more.
#[derive(Default)]
struct Base {
    held: BTreeMap<u64, u64>,
    /// The last position, by shard.
    at: Vec<Position>,
    generation: Generation,
    when: Option<Instant>,
}

/// What is compared, rest by rest.
pub(crate) struct Truth {
    stage: Arc<Stage>,
    base: Base,
}

impl Truth {
    pub(crate) fn of(stage: Arc<Stage>) -> Truth {
        Truth { stage, base: Base::default() }
    }

    /// Compares what the home says was lost, and what it holds, with what clients know.
    pub(crate) async fn compare(&mut self, rest: &Rest, hosts: &[Vec<Host>], consumer: &mut Consumer) {
        let (stage, of) = (self.stage.clone(), &rest.described[rest.home]);
        let held = held(&stage, rest.home).await;
        let Some(held) = held else { return stage.find("the home does not read though all is at rest") };
        let (acked, unknown) = {
            let told = stage.told();
            (told.acked.clone(), told.unknown.clone())
        };
        let (homes, base) = (&of.region.homes, std::mem::take(&mut self.base));
        for heard in stage.ways.heard() {
            let late = |w: &&Acked| {
                REGIONS[w.region] == heard.region && w.generation < heard.generation && w.asked > heard.at
            };
            if let Some(write) = acked.iter().find(late) {
                stage.find(format!("{heard:?}, and yet took {write:?}"));
            }
        }
        let lost = |w: &Acked| {
            next_home(homes, w.generation).is_some_and(|next| w.position >= next.firsts[w.shard.0 as usize])
        };
        let mut once = BTreeMap::new();
        for write in acked.iter().filter(|w| !lost(w)) {
            let first: &Acked = once.entry(write.intent).or_insert(write);
            if first.position != write.position {
                stage.find(format!("applied twice: {first:?} and {write:?}"));
            }
        }
        // The losses that this region knows are those of its own takeovers; older ones were looked at in their turn.
        for loss in of.region.losses.iter().filter(|loss| loss.generation > base.generation) {
            let Some(next) = homes.iter().find(|home| home.generation == loss.generation) else {
                stage.find(format!("a loss of no home: {loss:?}"));
                continue;
            };
            let before = before(homes, next.generation);
            let of_old = |w: &&Acked| w.generation == before && lost(w);
            let repeats =
                acked.iter().filter(|w| w.again && w.generation == before && Some(w.at) > base.when).count()
                    as u64;
            let of_old: Vec<_> = acked.iter().filter(of_old).collect();
            self.compare_loss(loss, next, &of_old, (&unknown, repeats), hosts);
        }
        // Nothing is lost but by a takeover.
        let newer = homes.iter().filter(|home| home.generation > base.generation);
        let handed = newer.filter(|home| of.region.losses.iter().all(|l| l.generation != home.generation));
        for next in handed {
            let before = before(homes, next.generation);
            let here = |w: &&Acked| w.generation == before && lost(w);
            // Another region may have taken over, and tells its own loss.
            let losses = rest.described.iter().flat_map(|of| &of.region.losses);
            if losses.into_iter().all(|loss| loss.generation != next.generation)
                && let Some(write) = acked.iter().find(here)
            {
                stage.find(format!("lost by a handover: {write:?}"));
            }
        }
        stage.checked(acked.len());
        for key in 0..KEYS {
            let since = |w: &&Acked| base.at.get(w.shard.0 as usize).is_none_or(|at| w.position > *at);
            let of_key = acked.iter().filter(|w| w.key == key && !lost(w)).filter(since);
            let before = base.held.get(&key).copied();
            let last = of_key.max_by_key(|w| w.position).map_or(before, |w| w.value);
            let shown = held.get(&key).copied();
            let possible = |w: &Unknown| w.key == key && w.value == shown;
            if shown != last && !unknown.iter().any(possible) {
                stage.find(format!("point {key} is {shown:?}, and {last:?} was acknowledged last"));
            }
        }
        let had = consumer.from.is_some();
        match consumer.take(&stage, rest.home).await {
            Ok(true) if consumer.state != held => {
                stage.find(format!("the feed comes to {:?}, the home holds {held:?}", consumer.state));
            }
            Ok(true) => stage.checked(held.len()),
            Ok(false) if had => stage.find("the home gives no feed though all is at rest"),
            // What it had of the old home is lost.
            Err(()) if consumer.ahead && of.region.generation() > base.generation => {}
            Err(()) => stage.find("a token was refused whose positions all came over"),
            Ok(false) => {}
        }
        if consumer.from.is_none() {
            consumer.begin(&stage, rest.home, &held).await;
        }
        consumer.ahead = false;
        // Positions are equal everywhere: what was in doubt has happened or has not.
        stage.told().unknown.clear();
        self.base = Base {
            held,
            at: rest.at.clone(),
            generation: of.region.generation(),
            when: Some(Instant::now()),
        };
    }

    fn compare_loss(
        &self,
        loss: &Loss,
        next: &HomeRecord,
        lost: &[&Acked],
        (unknown, repeats): (&[Unknown], u64),
        hosts: &[Vec<Host>],
    ) {
        let stage = &self.stage;
        for (number, told) in loss.shards.iter().enumerate() {
            let lost: Vec<_> = lost.iter().filter(|w| w.shard.0 as usize == number).collect();
            stage.checked(lost.len() + 1);
            if told.from != next.firsts[number] {
                stage.find(format!(
                    "home {} begins at {}, and says {told:?}",
                    loss.generation.0, next.firsts[number]
                ));
            }
            let ids: BTreeSet<u64> =
                told.ids.iter().map(|id| if let PointId::Num(id) = id { *id } else { u64::MAX }).collect();
            if let Some(write) =
                lost.iter().find(|w| w.position > told.to || (w.value.is_some() && !ids.contains(&w.key)))
            {
                stage.find(format!("{write:?} is lost, and not named by {told:?}"));
            }
            let may: BTreeSet<u64> =
                lost.iter().map(|w| w.key).chain(unknown.iter().map(|u| u.key)).collect();
            if let Some(id) = ids.difference(&may).next() {
                stage.find(format!("point {id} is named and was not lost: {told:?}"));
            }
            let old = lost.first().map(|w| w.region);
            let doubtful = old.is_none_or(|old| unknown.iter().any(|u| u.region == old));
            let last = lost.iter().map(|w| w.position).max().unwrap_or_default();
            if !doubtful && !(last.0..=last.0 + repeats).contains(&told.to.0) {
                stage.find(format!("the last lost position is {last}, and {told:?} says another"));
            }
            if told.to >= told.from {
                self.compare_file(loss.generation, number, &ids, (told.from, told.to), hosts);
            }
        }
    }

    /// What was lost lies in a file of one of the old home's nodes.
    fn compare_file(
        &self,
        generation: Generation,
        shard: usize,
        ids: &BTreeSet<u64>,
        (from, to): (Position, Position),
        hosts: &[Vec<Host>],
    ) {
        let end = format!("-shard{shard}-home{}.jsonl", generation.0);
        let mut kept = Vec::new();
        for host in hosts.iter().flatten() {
            let files = std::fs::read_dir(host.lost_dir()).into_iter().flatten().filter_map(Result::ok);
            let files = files.map(|file| file.path()).filter(|path| path.to_string_lossy().ends_with(&end));
            for text in files.map(|path| std::fs::read_to_string(path).expect("a file that is there")) {
                let lines: Vec<Value> =
                    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
                let inside =
                    |line: &Value| line["position"].as_u64().is_some_and(|at| from.0 <= at && at <= to.0);
                let named: BTreeSet<u64> = lines.iter().filter_map(|line| line["id"].as_u64()).collect();
                kept.push(lines.iter().all(inside) && named == *ids);
            }
        }
        if !kept.contains(&true) {
            self.stage.find(format!("of {} files {end} none holds what was lost: {ids:?}", kept.len()));
        }
    }
}

/// Where the regions stand, once one is the home, the others follow it and hold the same; or what is missing.
pub(crate) async fn at_rest(stage: &Stage, hosts: &[Vec<Host>]) -> Result<Rest, String> {
    if stage.under_way.load(Relaxed) > 0 {
        return Err("writes are under way".to_owned());
    }
    let mut described = Vec::new();
    for (region, name) in REGIONS.iter().enumerate().take(stage.regions) {
        let answer = stage
            .ask(region, |Door { regions, .. }| async move {
                regions.cluster().describe(COLLECTION, soon()).await
            })
            .await;
        match answer {
            Some(Ok(of)) => described.push(of),
            Some(Err(error)) => return Err(format!("{name}: {error}")),
            None => return Err(format!("{name} does not answer")),
        }
    }
    let homes: Vec<usize> =
        (0..described.len()).filter(|n| described[*n].region.part == Part::Home).collect();
    let [home] = homes[..] else {
        let parts: Vec<_> = described.iter().map(|of| &of.region.part).collect();
        return Err(format!("homes are {homes:?} of {parts:?}"));
    };
    let of = &described[home];
    for (region, there) in described.iter().enumerate().filter(|(region, _)| *region != home) {
        match &there.region.part {
            Part::Follower { home: url }
                if *url == url_of(REGIONS[home]) && there.region.homes == of.region.homes => {}
            part => return Err(format!("{} is {part:?} of {:?}", REGIONS[region], there.region.homes)),
        }
    }
    if of.region.followers.len() + 1 != stage.regions {
        return Err(format!("the home knows of {:?}", of.region.followers));
    }
    if of.region.tell.is_some() {
        return Err("the old home is not told".to_owned());
    }
    // The last one is complete once the old home is back; those before were looked at in their turn.
    if let Some(loss) = of.region.losses.last().filter(|loss| loss.shards.iter().any(|shard| !shard.complete))
    {
        return Err(format!("a loss is not told whole: {loss:?}"));
    }
    let mut hashes: Vec<Vec<(Position, BTreeSet<String>)>> = Vec::new();
    for (region, nodes) in hosts.iter().enumerate() {
        let answer = stage
            .ask(region, |Door { regions, .. }| async move {
                let local = Consistency::Local;
                let options = ReadOptions { consistency: local, ..ReadOptions::linearizable(soon()) };
                regions.cluster().state_hash(COLLECTION, None, false, &options).await
            })
            .await;
        let Some(Ok(shards)) = answer else { return Err(format!("{} has no hash", REGIONS[region])) };
        if let Some(few) = shards.iter().find(|shard| shard.replicas.len() < nodes.len().min(REPLICAS)) {
            return Err(format!("{}: {few:?}", REGIONS[region]));
        }
        let of = |shard: &ShardHash| (shard.position, shard.replicas.values().cloned().collect());
        hashes.push(shards.iter().map(of).collect());
    }
    hashes.dedup();
    if hashes.len() > 1 || hashes[0].iter().any(|(_, hashes)| hashes.len() > 1) {
        return Err(format!("they hold different things: {hashes:?}"));
    }
    let at = hashes[0].iter().map(|(position, _)| *position).collect();
    Ok(Rest { home, described, at })
}

/// What the home holds.
async fn held(stage: &Stage, home: usize) -> Option<BTreeMap<u64, u64>> {
    let answer = stage
        .ask(home, |Door { regions, .. }| async move {
            let request = ScrollRequest { offset: None, limit: 1_000, filter: None, projection: whole() };
            regions.cluster().scroll(COLLECTION, request, &ReadOptions::linearizable(soon())).await
        })
        .await;
    let points = answer?.ok()?.value.points;
    let of = |record: &annal::model::Record| {
        let payload: Value = serde_json::from_slice(record.payload.as_deref()?).ok()?;
        let PointId::Num(id) = record.id else { return None };
        Some((id, payload["v"].as_u64()?))
    };
    points.iter().map(of).collect()
}

/// The home after one.
fn next_home(homes: &[HomeRecord], generation: Generation) -> Option<&HomeRecord> {
    homes.iter().find(|home| home.generation > generation)
}

/// The home before one.
fn before(homes: &[HomeRecord], generation: Generation) -> Generation {
    let before = homes.iter().map(|home| home.generation).filter(|of| *of < generation).max();
    before.unwrap_or(Generation(1))
}
