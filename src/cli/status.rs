//! `annal status`: nodes, shards, leaders, positions and lag, by region, as tables or as JSON.

use super::{Done, region, server::Server, table::Table};
use clap::Args;
use serde_json::Value;
use std::collections::BTreeMap;

/// Shows nodes, shards, leaders, positions and lag, by region.
///
/// A leader is marked with `*`. LAG is how many entries a replica has not applied that its leader knows to be
/// committed. Collections that have more than one region are shown with how far this one is behind their home.
///
/// Examples:
///   annal status
///   annal status --url http://10.0.0.7:6333 --json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Status {
    #[command(flatten)]
    server: Server,
    /// Prints what `GET /annal/v1/cluster` answers, and the `links` of `GET /annal/v1/regions`.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Done {
        let client = self.server.client();
        let mut cluster = client.topology()?;
        let links = client.ask("GET", "/annal/v1/regions", "")?.expect("the regions")?;
        match self.json {
            true => {
                cluster["links"] = links["links"].clone();
                println!("{}", serde_json::to_string_pretty(&cluster)?);
            }
            false => {
                print!("{}", written(&cluster));
                if !rows(&links, "links").is_empty() {
                    print!("COLLECTIONS OF MORE THAN ONE REGION\n\n{}", region::links(&links));
                }
            }
        }
        Ok(())
    }
}

/// The tables: nodes, then replicas, a region after the other.
fn written(cluster: &Value) -> String {
    let region_of: BTreeMap<&str, &str> =
        rows(cluster, "nodes").iter().map(|node| (text(node, "name"), text(node, "region"))).collect();
    let mut regions: Vec<&str> = region_of.values().copied().collect();
    regions.sort_unstable();
    regions.dedup();
    let mut out = String::new();
    for region in regions {
        let here = |node: &str| region_of.get(node) == Some(&region);
        out += &format!("REGION {region}\n\n{}\n{}\n", nodes(cluster, here), replicas(cluster, here));
    }
    out
}

fn nodes(cluster: &Value, here: impl Fn(&str) -> bool) -> String {
    let shards = rows(cluster, "shards");
    let mut table = Table::new(["NODE", "ZONE", "HTTP", "PEER", "STATE", "LEADS", "REPLICAS"]);
    for node in rows(cluster, "nodes").iter().filter(|node| here(text(node, "name"))) {
        let name = text(node, "name");
        let leads = shards.iter().filter(|shard| shard["leader"] == name).count();
        let held =
            shards.iter().flat_map(|shard| rows(shard, "replicas")).filter(|r| r["node"] == name).count();
        table.row([
            name.to_owned(),
            cell(node, "zone"),
            cell(node, "http"),
            cell(node, "peer"),
            cell(node, "state"),
            leads.to_string(),
            held.to_string(),
        ]);
    }
    table.text()
}

fn replicas(cluster: &Value, here: impl Fn(&str) -> bool) -> String {
    let mut table = Table::new([
        "COLLECTION",
        "SHARD",
        "NODE",
        "ROLE",
        "STATE",
        "TERM",
        "POSITION",
        "COMMITTED",
        "APPLIED",
        "LAG",
        "DURABLE",
    ]);
    for shard in rows(cluster, "shards") {
        for replica in rows(shard, "replicas").iter().filter(|r| here(text(r, "node"))) {
            let leads = shard["leader"] == replica["node"] && replica["role"] == "leader";
            table.row([
                shard["collection"].as_str().unwrap_or("(catalog)").to_owned(),
                cell(shard, "shard"),
                format!("{}{}", cell(replica, "node"), if leads { " *" } else { "" }),
                cell(replica, "role"),
                state(replica),
                cell(replica, "term"),
                cell(replica, "position"),
                cell(replica, "committed"),
                cell(replica, "applied"),
                lag(shard, replica).map_or_else(|| "-".to_owned(), |lag| lag.to_string()),
                cell(replica, "durable"),
            ]);
        }
    }
    table.text()
}

/// A replica that is not a plain member is named by its phase.
fn state(replica: &Value) -> String {
    match (replica["state"].as_str(), replica["phase"].as_str()) {
        (Some("ok"), Some(phase)) if phase != "voter" => phase.to_owned(),
        _ => cell(replica, "state"),
    }
}

/// Entries that the leader knows to be committed and the replica has not applied.
pub(super) fn lag(shard: &Value, replica: &Value) -> Option<u64> {
    let leader =
        rows(shard, "replicas").iter().find(|r| r["node"] == shard["leader"] && r["role"] == "leader")?;
    Some(leader["committed"].as_u64()?.saturating_sub(replica["applied"].as_u64()?))
}

pub(super) fn rows<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of[key].as_str().unwrap_or_default()
}

fn cell(of: &Value, key: &str) -> String {
    match &of[key] {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn regions_leaders_and_lag() {
        let node = |name: &str, region: &str| json!({"name": name, "region": region, "zone": "z", "http": "h", "peer": "p", "state": "alive"});
        let replica = |node: &str, role: &str, phase: &str, applied: u64| {
            json!({"node": node, "role": role, "phase": phase, "state": "ok", "term": 3, "position": applied,
                   "committed": 20, "applied": applied, "durable": 5})
        };
        let gone = json!({"node": "n3", "role": "unknown", "phase": "voter", "state": "unreachable"});
        let cluster = json!({
            "nodes": [node("n1", "east"), node("n2", "east"), node("n3", "west")],
            "shards": [{"collection": "a", "shard": 0, "epoch": 1, "leader": "n1", "replicas": [
                replica("n1", "leader", "voter", 20), replica("n2", "learner", "joining", 13), gone]}],
        });
        assert_eq!(
            written(&cluster),
            "\
REGION east

NODE  ZONE  HTTP  PEER  STATE  LEADS  REPLICAS
n1    z     h     p     alive      1         1
n2    z     h     p     alive      0         1

COLLECTION  SHARD  NODE  ROLE     STATE    TERM  POSITION  COMMITTED  APPLIED  LAG  DURABLE
a               0  n1 *  leader   ok          3        20         20       20    0        5
a               0  n2    learner  joining     3        13         20       13    7        5

REGION west

NODE  ZONE  HTTP  PEER  STATE  LEADS  REPLICAS
n3    z     h     p     alive      0         1

COLLECTION  SHARD  NODE  ROLE     STATE        TERM  POSITION  COMMITTED  APPLIED  LAG  DURABLE
a               0  n3    unknown  unreachable     -         -          -        -    -        -

"
        );
    }
}
