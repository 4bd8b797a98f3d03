//! Regions under test: some of the nodes each, a cluster of their own, reached by the others at one address.
//!
//! ```text
//! nodes   a1 a2 a3 | b1 b2 b3         links   0 1 2 | 3 4 5 | 6 (front of a) 7 (front of b)
//! a1 --dials--> front of b --> any node of b that takes the connection
//! ```
//!
//! A front stands for what spreads connections over the nodes of a region. Where nodes have namespaces it has one too.
//!
//! Invariants: whatever goes from one region to another goes over links between the two, and those within a region are
//! others. Two regions are *settled* when one is the home, the other follows it, and what a takeover lost is told whole;
//! *at rest* when they hold the same at the same positions, too.
//! Not here: what is broken between them, and when the home moves (see `nemesis`).

use super::{Cluster, Status};
use crate::client::Client;
use serde_json::{Value, json};
use std::{
    fs,
    ops::Range,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

/// Some of the nodes of a cluster under test.
#[derive(Clone, Debug)]
pub struct Region {
    /// What its nodes are called, before their number; empty if there is one region.
    pub name: String,
    /// Its nodes.
    pub nodes: Range<usize>,
    /// Where other regions reach it; none if there are none.
    pub url: Option<String>,
    /// The number of its front among the links.
    pub front: usize,
}

impl Region {
    /// What of it has a link of its own to other regions.
    pub fn ends(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        self.nodes.clone().chain([self.front])
    }
}

/// A home that the regions have agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The number of the region.
    pub home: usize,
    /// Which home of the collection it is.
    pub generation: u64,
    /// What the last takeover to it lost, if there was one.
    pub loss: Option<Value>,
}

impl Cluster {
    /// Where the nodes of a region are.
    pub fn urls_of(&self, region: usize) -> Vec<String> {
        self.nodes[self.regions[region].nodes.clone()]
            .iter()
            .map(|node| format!("http://{}", node.http))
            .collect()
    }

    /// What the nodes of a region say of it.
    pub fn status_of(&self, region: usize) -> Status {
        let client = self.client(Duration::from_secs(2));
        let urls = self.urls_of(region).into_iter();
        let answers = urls.filter_map(|url| client.get(&format!("{url}/annal/v1/cluster")).ok());
        Status::newest(answers.filter_map(|reply| serde_json::from_value(reply.body).ok()))
    }

    /// Asks any node of a region that answers well; none if none does within `within`.
    pub fn ask_in(
        &self,
        region: usize,
        (method, path, body): (&str, &str, Option<&Value>),
        within: Duration,
    ) -> Option<Value> {
        let deadline = Instant::now() + within;
        let client = self.client(Duration::from_secs(10));
        loop {
            if let Some(body) = self.ask_once(&client, region, method, path, body) {
                return Some(body);
            }
            if Instant::now() > deadline {
                return None;
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn ask_once(
        &self,
        client: &Client,
        region: usize,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Option<Value> {
        self.urls_of(region).iter().find_map(|url| {
            let answer = client.send(method, &format!("{url}{path}"), &[], body);
            answer.ok().filter(|reply| (200..300).contains(&reply.status)).map(|reply| reply.body)
        })
    }

    /// Which region is the home of a collection that the others follow, once nothing is on its way any more.
    ///
    /// Errors: what is missing.
    pub fn settled(&self, collection: &str) -> Result<Settled, String> {
        let client = self.client(Duration::from_secs(3));
        let mut links = Vec::new();
        for (r, region) in self.regions.iter().enumerate() {
            let answer = self.ask_once(&client, r, "GET", "/annal/v1/regions", None);
            let rows = answer.as_ref().and_then(|body| body["links"].as_array());
            let link = rows.and_then(|rows| rows.iter().find(|row| row["collection"] == collection));
            links.push(link.cloned().ok_or_else(|| format!("{} says nothing of {collection}", region.name))?);
        }
        let part = |link: &Value| link["part"]["part"].as_str().unwrap_or_default().to_owned();
        let homes: Vec<usize> = (0..links.len()).filter(|r| part(&links[*r]) == "home").collect();
        let shown = || links.iter().map(|link| link["part"].to_string()).collect::<Vec<_>>().join(", ");
        let [home] = homes[..] else { return Err(format!("there is not one home: {}", shown())) };
        let (generation, url) = (&links[home]["generation"], json!(self.regions[home].url));
        let astray = links.iter().enumerate().find(|(r, link)| {
            *r != home
                && (part(link) != "follower" || link["home"] != url || link["generation"] != *generation)
        });
        if let Some((r, _)) = astray {
            return Err(format!("{} does not follow {url}: {}", self.regions[r].name, shown()));
        }
        let generation = generation.as_u64().ok_or_else(|| format!("{generation} is no generation"))?;
        let path = format!("/annal/v1/regions/loss?collection={collection}");
        let loss = self.ask_once(&client, home, "GET", &path, None);
        let loss = loss.filter(|loss| loss["generation"] == generation);
        match loss {
            Some(loss) if loss["complete"] != true => Err(format!("a loss is not told whole: {loss}")),
            loss => Ok(Settled { home, generation, loss }),
        }
    }

    /// Waits until the regions have settled.
    ///
    /// Errors: not in time; says what is missing.
    pub fn wait_settled(&self, collection: &str, within: Duration) -> Result<Settled, String> {
        let deadline = Instant::now() + within;
        loop {
            match self.settled(collection) {
                Err(why) if Instant::now() > deadline => return Err(why),
                Err(_) => thread::sleep(Duration::from_millis(100)),
                settled => return settled,
            }
        }
    }

    /// Where every shard of a collection stands in each region, by the region's name, once that is the same everywhere.
    ///
    /// Errors: what differs.
    pub fn at_rest(&self, collection: &str, replicas: usize) -> Result<Value, String> {
        self.settled(collection)?;
        let client = self.client(Duration::from_secs(10));
        let path = format!("/annal/v1/collections/{collection}/state-hash");
        let mut held = serde_json::Map::new();
        let mut first: Option<Vec<(Value, Value)>> = None;
        for (r, region) in self.regions.iter().enumerate() {
            let answer = self.ask_once(&client, r, "GET", &path, None);
            let answer = answer.ok_or_else(|| format!("{} has no state hash", region.name))?;
            let mut stands = Vec::new();
            for row in answer.as_array().into_iter().flatten() {
                let hashes: Vec<&Value> =
                    row["replicas"].as_object().into_iter().flatten().map(|(_, h)| h).collect();
                if hashes.len() < replicas || hashes.windows(2).any(|two| two[0] != two[1]) {
                    return Err(format!("{}: {row}", region.name));
                }
                stands.push((
                    row["position"].clone(),
                    hashes.first().map_or(Value::Null, |hash| (*hash).clone()),
                ));
            }
            if first.get_or_insert_with(|| stands.clone()) != &stands || stands.is_empty() {
                return Err(format!("{first:?} in one region, {stands:?} in {}", region.name));
            }
            held.insert(region.name.clone(), answer);
        }
        Ok(held.into())
    }

    /// Files in which nodes of a region keep what was lost to one home.
    pub fn lost_files(&self, region: usize, generation: u64) -> Vec<PathBuf> {
        let end = format!("-home{generation}.jsonl");
        let nodes = &self.nodes[self.regions[region].nodes.clone()];
        let folders = nodes.iter().filter_map(|node| fs::read_dir(node.data_dir.join("lost")).ok());
        let files = folders.flatten().flatten().map(|entry| entry.path());
        files.filter(|path| path.to_string_lossy().ends_with(&end)).collect()
    }
}
