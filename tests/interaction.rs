//! Scripts of what happens to a cluster and what state it comes to: `tests/interaction/*.txt`, one cluster a script.
//!
//! ```text
//! # A comment.
//! start 3
//! create words shards=2 replication=3
//! ---
//! n1 n2 n3 are ready
//! ok
//! ```
//!
//! Commands stand line by line, `---`, then what they answered, up to a blank line. Answers are states that the
//! cluster comes to and stays in: no ports, terms, positions or times, and nothing that depends on who won an election
//! (`lead` settles that). A request that is turned away without effect is sent again, as a client would; `status`
//! waits until the cluster is as the script says, and shows what it is if that does not happen.
//! `REWRITE=1 cargo test --test interaction` writes the answers anew: review them as code. `SCRIPT=failover` runs one.
//! [`Stage::obey`] is the list of commands.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "process/cluster.rs"]
mod cluster;
mod process;
#[path = "process/script.rs"]
mod script;

use cluster::{Damage, Options, ShardStatus, TestCluster};
use process::{Answer, Client};
use script::Scene;
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

/// How long the cluster may take to come to the state that the script says.
const STABLE_WITHIN: Duration = Duration::from_secs(30);
/// When the answers are written anew: a state that lasts so long is stable.
const STABLE_FOR: Duration = Duration::from_secs(4);

#[test]
fn scripts() {
    script::all_of("interaction", run);
}

/// Runs a script; tells where it went another way.
fn run(path: &Path) -> Option<String> {
    let script = fs::read_to_string(path).unwrap();
    let rewrite = std::env::var("REWRITE").is_ok();
    let mut stage = Stage { cluster: None, rewrite, ..Stage::default() };
    let (mut replayed, mut wrong) = (String::new(), String::new());
    for scene in script::scenes(&script) {
        let mut expected = scene.answered.lines();
        let mut answers = String::new();
        for command in scene.asked.lines() {
            // `status` is the last command of a scene: what is left of the answers is its own.
            let rest: Vec<_> = expected.clone().collect();
            let answer = stage.obey(command, &rest.join("\n"));
            expected.by_ref().take(answer.lines().count()).for_each(drop);
            answers += answer.trim_end();
            answers += "\n";
        }
        if answers != scene.answered {
            let Scene { asked: commands, answered: expected, .. } = &scene;
            wrong += &format!("{}:\n{commands}expected:\n{expected}got:\n{answers}\n", path.display());
            if !rewrite {
                // What follows stands on a state that is not there.
                return Some(wrong);
            }
        }
        replayed += &format!("{}{}---\n{answers}", scene.preamble, scene.asked);
    }
    if rewrite {
        fs::write(path, replayed).unwrap();
    }
    (!rewrite && !wrong.is_empty()).then_some(wrong)
}

/// The cluster of a script, and what the script has to remember.
#[derive(Default)]
struct Stage {
    cluster: Option<TestCluster>,
    /// Versions of points, as writes answered them.
    versions: BTreeMap<(String, String), Vec<u64>>,
    rewrite: bool,
}

impl Stage {
    fn obey(&mut self, command: &str, expected: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words.as_slice() {
            ["start", count, settings @ ..] => self.start(count.parse().unwrap(), settings),
            ["add"] => {
                let added = self.cluster_mut().add();
                format!("{} is ready", self.cluster().name(added))
            }
            ["kill", node] => self.with_node(node, "is dead", TestCluster::kill),
            ["terminate", node] => {
                let i = self.number(node);
                let status = self.cluster_mut().terminate(i);
                format!(
                    "{node} ended with {}",
                    status.code().map_or("a signal".to_owned(), |c| c.to_string())
                )
            }
            ["pause", node] => self.with_node(node, "is frozen", TestCluster::pause),
            ["resume", node] => self.with_node(node, "goes on", TestCluster::resume),
            ["wipe", node] => self.with_node(node, "has no data", TestCluster::wipe),
            ["corrupt", node, what] => {
                let damage = match *what {
                    "log" => Damage::Log,
                    "store" => Damage::Store,
                    other => panic!("corrupt {other}"),
                };
                self.with_node(node, "is damaged", |cluster, i| drop(cluster.corrupt(i, damage)))
            }
            ["restart", node] => self.with_node(node, "is ready", |cluster, i| {
                cluster.restart(i);
                cluster.wait_ready_node(i);
            }),
            ["kill-all"] => {
                self.cluster_mut().kill_all();
                "all are dead".to_owned()
            }
            ["start-all"] => {
                let cluster = self.cluster_mut();
                (0..cluster.len()).for_each(|i| cluster.restart(i));
                cluster.wait_ready();
                "all are ready".to_owned()
            }
            ["create", collection, settings @ ..] => self.create(collection, settings),
            ["drop", collection, "at", node] => {
                shown(&self.send(node, "DELETE", &format!("/collections/{collection}"), None))
            }
            ["collections", "at", node] => {
                let answer = self.send(node, "GET", "/collections", None).json();
                let list = answer["result"]["collections"].as_array().cloned().unwrap_or_default();
                let mut names: Vec<_> = list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect();
                names.sort_unstable();
                if names.is_empty() { "none".to_owned() } else { names.join(" ") }
            }
            ["alias", alias, "is", collection, "at", node] => {
                let delete = json!({"delete_alias": {"alias_name": alias}});
                let create = json!({"create_alias": {"collection_name": collection, "alias_name": alias}});
                let body = json!({"actions": [delete, create]});
                shown(&self.send(node, "POST", "/collections/aliases", Some(&body)))
            }
            ["put", collection, id, "at", node, payload @ ..] => self.put(collection, id, node, payload),
            ["cas", collection, id, condition, "at", node, payload @ ..] => {
                self.cas(collection, id, condition, node, payload)
            }
            ["get", collection, id, "at", node] => {
                let answer = self.send(node, "GET", &format!("/collections/{collection}/points/{id}"), None);
                match answer.status {
                    200 => answer.json()["result"]["payload"].to_string(),
                    404 if answer.text.contains("No point") => "absent".to_owned(),
                    _ => shown(&answer),
                }
            }
            ["try", "get", collection, id, "at", node] => {
                let cluster = self.cluster();
                let client = cluster.client(cluster.number(node)).within(Duration::from_secs(4));
                let client = client.with("annal-timeout-ms", "3000");
                match client.get(&format!("/collections/{collection}/points/{id}")).status {
                    0 | 408 | 503 => "no success within 3 s".to_owned(),
                    status => format!("{status}"),
                }
            }
            ["count", collection, "at", node] => {
                let path = format!("/collections/{collection}/points/count");
                let answer = self.send(node, "POST", &path, Some(&json!({"exact": true})));
                if answer.status != 200 {
                    return shown(&answer);
                }
                answer.json()["result"]["count"].to_string()
            }
            ["lead", collection, shard, node] => self.lead(collection, shard, node),
            ["wait-leader", collection, shard, "not", node] => {
                let shard = shard.parse().unwrap();
                self.cluster().wait_for("another leader", |cluster| {
                    let leader = cluster.status().shard(Some(collection), shard)?.leader.clone()?;
                    (leader != *node).then_some(())
                });
                format!("{collection}/{shard} is led by another node than {node}")
            }
            ["move", collection, shard, from, to] => {
                let path = format!("/annal/v1/collections/{collection}/shards/{shard}/move");
                shown(&self.anywhere("POST", &path, Some(&json!({"from": from, "to": to}))))
            }
            ["drain", node] => shown(&self.anywhere(
                "POST",
                &format!("/annal/v1/cluster/nodes/{node}/drain"),
                Some(&json!({})),
            )),
            ["remove", node] => {
                shown(&self.anywhere("DELETE", &format!("/annal/v1/cluster/nodes/{node}"), None))
            }
            ["equal", collection, replicas] => {
                let replicas = replicas.parse().unwrap();
                let shards = self.cluster().wait_equal(collection, replicas, false).len();
                format!("{shards} shards of {replicas} equal replicas")
            }
            ["status"] => self.status(expected),
            _ => panic!("no such command: {command}"),
        }
    }

    fn start(&mut self, count: usize, settings: &[&str]) -> String {
        // The old cluster ends before the new one may begin.
        self.cluster = None;
        let options = settings.iter().fold(Options::default(), |options, setting| {
            let (key, value) = setting.split_once('=').unwrap();
            options.with(key, value)
        });
        self.cluster = Some(TestCluster::start(count, options));
        let cluster = self.cluster();
        let names: Vec<_> = (0..count).map(|i| cluster.name(i)).collect();
        format!("{} {} ready", names.join(" "), if count == 1 { "is" } else { "are" })
    }

    fn create(&mut self, collection: &str, settings: &[&str]) -> String {
        let setting = |name: &str| {
            let found = settings.iter().find_map(|s| s.strip_prefix(name)?.strip_prefix('='));
            found.map(|value| value.parse::<u32>().unwrap())
        };
        let node = settings.split(|word| *word == "at").nth(1).map_or("n1", |rest| rest[0]);
        let body = json!({
            "vectors": {"size": 4, "distance": "Dot"},
            "shard_number": setting("shards").unwrap_or(1),
            "replication_factor": setting("replication").unwrap_or(3),
        });
        shown(&self.send(node, "PUT", &format!("/collections/{collection}"), Some(&body)))
    }

    fn put(&mut self, collection: &str, id: &str, node: &str, payload: &[&str]) -> String {
        let (point, key) = point(id, payload);
        let path = format!("/collections/{collection}/points?wait=true");
        let answer = self.send_under(key, node, "PUT", &path, Some(&json!({"points": [point]})));
        self.remember(collection, id, &answer);
        shown(&answer)
    }

    /// `if=none`: only if there is no such point; `if=last`, `if=first`: at the version its last, first write made.
    fn cas(&mut self, collection: &str, id: &str, condition: &str, node: &str, payload: &[&str]) -> String {
        let versions = self.versions.get(&(collection.to_owned(), id.to_owned()));
        let version = match condition {
            "if=none" => None,
            "if=last" => versions.and_then(|versions| versions.last()),
            "if=first" => versions.and_then(|versions| versions.first()),
            other => panic!("cas {other}"),
        };
        let (point, key) = point(id, payload);
        // Nothing to write is a delete.
        let point = if payload == ["delete"] { Value::Null } else { point };
        let body = json!({"id": id.parse::<u64>().unwrap(), "if_version": version, "point": point});
        let path = format!("/annal/v1/collections/{collection}/points/cas");
        let last = versions.and_then(|versions| versions.last()).copied();
        let answer = self.send_under(key, node, "POST", &path, Some(&body));
        self.remember(collection, id, &answer);
        match answer.status {
            412 if answer.json()["version"].as_u64() == last => "412, with the last version".to_owned(),
            412 if answer.json()["version"].is_null() => "412, with no version".to_owned(),
            412 => format!("412, with another version: {}", answer.text),
            _ => shown(&answer),
        }
    }

    fn remember(&mut self, collection: &str, id: &str, answer: &Answer) {
        if let Some(version) = answer.json()["result"]["operation_id"].as_u64() {
            let versions = self.versions.entry((collection.to_owned(), id.to_owned())).or_default();
            // A retry is told its first version: that is not the last one.
            if versions.last() < Some(&version) {
                versions.push(version);
            }
        }
    }

    fn lead(&mut self, collection: &str, shard: &str, node: &str) -> String {
        let path = format!("/annal/v1/collections/{collection}/shards/{shard}/lead");
        let answer = self.anywhere("POST", &path, Some(&json!({"to": node})));
        if !(200..300).contains(&answer.status) {
            return shown(&answer);
        }
        let number = shard.parse().unwrap();
        self.cluster().wait_for("the new leader", |cluster| {
            (cluster.status().shard(Some(collection), number)?.leader.as_deref() == Some(node)).then_some(())
        });
        format!("{node} leads {collection}/{shard}")
    }

    fn status(&mut self, expected: &str) -> String {
        let started = Instant::now();
        let (mut last, mut since) = (String::new(), Instant::now());
        loop {
            let now = self.picture();
            if now != last {
                (last, since) = (now, Instant::now());
            }
            let stable =
                if self.rewrite { since.elapsed() > STABLE_FOR } else { last.trim_end() == expected };
            if stable || started.elapsed() > STABLE_WITHIN {
                return last;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// The cluster as a script shows it: who is there, and who holds what.
    fn picture(&self) -> String {
        let cluster = self.cluster();
        let status = cluster.status();
        let mut nodes: Vec<_> = status.nodes.iter().map(|n| format!("{} {}", n.name, n.state)).collect();
        nodes.sort_unstable();
        let rows: Vec<_> = status.shards.iter().map(|row| self.row(row)).collect();
        format!("{}\n{}\n", nodes.join(", "), rows.join("\n"))
    }

    /// `words/0 on n1 n2 (n3): leader follower`: who does not run stands in brackets, and what is said of it is not
    /// shown.
    fn row(&self, row: &ShardStatus) -> String {
        let awake: Vec<_> = self.cluster().awake().into_iter().map(|i| self.cluster().name(i)).collect();
        let names: Vec<_> = row
            .nodes()
            .iter()
            .map(|node| if awake.contains(node) { (*node).to_owned() } else { format!("({node})") })
            .collect();
        let own = row.replicas.iter().filter(|replica| awake.contains(&replica.node.as_str()));
        let mut roles: Vec<_> = own
            .map(|replica| match replica.state.as_str() {
                "ok" => replica.role.clone(),
                state => format!("{} ({state})", replica.role),
            })
            .collect();
        roles.sort_unstable_by_key(|role| (role != "leader", role.clone()));
        let name =
            row.collection.as_ref().map_or("catalog".to_owned(), |name| format!("{name}/{}", row.shard));
        format!("{name} on {}: {}", names.join(" "), roles.join(" "))
    }

    // --- requests ---

    fn send(&self, node: &str, method: &str, path: &str, body: Option<&Value>) -> Answer {
        self.send_under(None, node, method, path, body)
    }

    /// Sends until the answer is more than "not now".
    fn send_under(
        &self,
        key: Option<String>,
        node: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        let cluster = self.cluster();
        let mut client: Client = cluster.client(cluster.number(node)).within(Duration::from_secs(15));
        if let Some(key) = key {
            client = client.with("idempotency-key", &key);
        }
        let body = body.map(Value::to_string);
        let started = Instant::now();
        loop {
            let answer = client.send(method, path, body.as_deref());
            let not_now = answer.status == 503 && answer.header("annal-effect") == Some("none");
            if !not_now || started.elapsed() > STABLE_WITHIN {
                return answer;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Through the first node that is awake.
    fn anywhere(&self, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let node = self.cluster().awake()[0];
        self.send(self.cluster().name(node), method, path, body)
    }

    fn with_node(&mut self, node: &str, done: &str, act: impl FnOnce(&mut TestCluster, usize)) -> String {
        let i = self.number(node);
        act(self.cluster_mut(), i);
        format!("{node} {done}")
    }

    fn number(&self, node: &str) -> usize {
        self.cluster().number(node)
    }

    fn cluster(&self) -> &TestCluster {
        self.cluster.as_ref().expect("a script begins with `start`")
    }

    fn cluster_mut(&mut self) -> &mut TestCluster {
        self.cluster.as_mut().expect("a script begins with `start`")
    }
}

/// A point of `key=value` words, and the request key if `request=CLIENT/SEQ` is among them.
fn point(id: &str, payload: &[&str]) -> (Value, Option<String>) {
    let mut fields = Map::new();
    let mut request = None;
    for (name, value) in payload.iter().filter_map(|word| word.split_once('=')) {
        match name {
            "request" => request = Some(value.to_owned()),
            _ => drop(fields.insert(name.to_owned(), value.into())),
        }
    }
    (json!({"id": id.parse::<u64>().unwrap(), "vector": [1, 0, 0, 0], "payload": fields}), request)
}

/// `ok`, or the status and what was said, or that nobody answered.
fn shown(answer: &Answer) -> String {
    match answer.status {
        200..300 => match answer.json()["result"].as_bool() {
            Some(false) => "ok, but there was nothing to do".to_owned(),
            _ => "ok".to_owned(),
        },
        0 => "no answer".to_owned(),
        status => {
            let why = answer.json()["status"]["error"].as_str().unwrap_or(&answer.text).to_owned();
            format!("{status} {}", without_positions(&why))
        }
    }
}

/// Positions depend on how often a leader had to be found.
fn without_positions(why: &str) -> String {
    let mut words = why.split(' ').peekable();
    let mut shown = Vec::new();
    while let Some(word) = words.next() {
        shown.push(word);
        if word == "position" && words.next_if(|n| n.parse::<u64>().is_ok()).is_some() {
            shown.push("P");
        }
    }
    shown.join(" ")
}
