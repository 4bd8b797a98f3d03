//! `annal status`: nodes, shards, leaders and positions, as a table or as JSON.

use super::Done;
use clap::Args;
use serde_json::Value;

/// Shows nodes, shards, leaders and positions.
///
/// Example:
///   annal status --url http://127.0.0.1:6333 --json
#[derive(Args)]
#[command(verbatim_doc_comment)]
pub(super) struct Status {
    /// A node of the cluster.
    #[arg(long, default_value = "http://127.0.0.1:6333")]
    url: String,
    /// The key, if the node wants one.
    #[arg(long, env = "ANNAL_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Prints what `GET /annal/v1/cluster` answers.
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self) -> Done {
        let mut request = ureq::get(format!("{}/annal/v1/cluster", self.url));
        if let Some(key) = &self.api_key {
            request = request.header("api-key", key);
        }
        let cluster: Value = request.call()?.body_mut().read_json()?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&cluster)?);
            return Ok(());
        }
        println!("{:<24} {:<12} {:<12} {:<22} STATE", "NODE", "REGION", "ZONE", "HTTP");
        for node in rows(&cluster, "nodes") {
            println!(
                "{:<24} {:<12} {:<12} {:<22} {}",
                cell(node, "name"),
                cell(node, "region"),
                cell(node, "zone"),
                cell(node, "http"),
                cell(node, "state")
            );
        }
        println!(
            "\n{:<24} {:>5} {:<24} {:<8} {:>5} {:>10} {:>10} {:>10}",
            "COLLECTION", "SHARD", "NODE", "ROLE", "TERM", "COMMITTED", "APPLIED", "DURABLE"
        );
        for shard in rows(&cluster, "shards") {
            for replica in rows(shard, "replicas") {
                println!(
                    "{:<24} {:>5} {:<24} {:<8} {:>5} {:>10} {:>10} {:>10}",
                    shard["collection"].as_str().unwrap_or("(catalog)"),
                    cell(shard, "shard"),
                    cell(replica, "node"),
                    cell(replica, "role"),
                    cell(replica, "term"),
                    cell(replica, "committed"),
                    cell(replica, "applied"),
                    cell(replica, "durable")
                );
            }
        }
        Ok(())
    }
}

fn rows<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of[key].as_array().map_or(&[], Vec::as_slice)
}

fn cell(of: &Value, key: &str) -> String {
    match &of[key] {
        Value::Null => "-".to_owned(),
        Value::String(s) => s.clone(),
        other => other.to_string(),
    }
}
