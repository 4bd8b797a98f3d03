//! `annal region`: collections that have more than one region.

use super::{
    Done,
    server::{Failure, Server},
    status::{rows, text},
    table::Table,
};
use annal::net::http::part_of_path;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::time::Duration;

/// Follows collections of other regions, and hands homes over.
#[derive(Subcommand)]
pub(super) enum Region {
    /// Follows a collection of another region: a copy here that can be read, and can take over.
    ///
    /// Examples:
    ///   annal region follow glosses --home http://10.1.0.7:6333
    ///   annal region follow glosses --stop
    #[command(verbatim_doc_comment)]
    Follow {
        #[command(flatten)]
        of: Which,
        /// A node of the home.
        #[arg(long, value_name = "URL", required_unless_present = "stop")]
        home: Option<String>,
        /// Stops following, and drops the copy here.
        #[arg(long, conflicts_with = "home")]
        stop: bool,
    },
    /// Makes the region that is asked the home; nothing is lost, and the old home follows.
    ///
    /// Example:
    ///   annal region handover glosses --url http://10.2.0.7:6333
    #[command(verbatim_doc_comment)]
    Handover {
        #[command(flatten)]
        of: Which,
    },
    /// Makes the region that is asked the home with what is there, where the old home is not reached; says what is lost.
    ///
    /// Example:
    ///   annal region takeover glosses --url http://10.2.0.7:6333
    #[command(verbatim_doc_comment)]
    Takeover {
        #[command(flatten)]
        of: Which,
    },
    /// Shows what was lost when the region that is asked took over.
    ///
    /// Example:
    ///   annal region loss glosses --json
    #[command(verbatim_doc_comment)]
    Loss {
        #[command(flatten)]
        of: Which,
    },
}

/// Which collection, and whom to ask.
#[derive(Args)]
pub(super) struct Which {
    /// The collection.
    collection: String,
    #[command(flatten)]
    server: Server,
    /// Prints the answer as JSON.
    #[arg(long)]
    json: bool,
}

/// How long a region may take to turn.
const WITHIN: Duration = Duration::from_secs(60);

impl Region {
    pub(super) fn run(self) -> Done {
        match self {
            Region::Follow { of, home, stop } => {
                let method = if stop { "DELETE" } else { "POST" };
                let body = match &home {
                    Some(home) => json!({"collection": of.collection, "home": home}),
                    None => json!({"collection": of.collection}),
                };
                let answer = of.ask(method, "/annal/v1/regions/follow", &body)?;
                let done = match home {
                    Some(home) => format!("{} follows {home}", of.collection),
                    None => format!("{} is not followed here any more", of.collection),
                };
                of.tell(&answer, |_| done)
            }
            Region::Handover { of } => {
                let body = json!({"collection": of.collection});
                let answer = of.ask("POST", "/annal/v1/regions/handover", &body)?;
                of.tell(&answer, |answer| {
                    format!("{} is at home here, as home {}", of.collection, answer["generation"])
                })
            }
            Region::Takeover { of } => {
                let body = json!({"collection": of.collection});
                let answer = of.ask("POST", "/annal/v1/regions/takeover", &body)?;
                of.tell(&answer, losses)
            }
            Region::Loss { of } => {
                let path = format!("/annal/v1/regions/loss?collection={}", part_of_path(&of.collection));
                let answer = of.ask("GET", &path, &Value::Null)?;
                of.tell(&answer, losses)
            }
        }
    }
}

impl Which {
    fn ask(&self, method: &str, path: &str, body: &Value) -> Result<Value, Failure> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = self.server.client().insist(method, path, &body, WITHIN)?;
        answer.expect(&self.collection)
    }

    fn tell(&self, answer: &Value, say: impl FnOnce(&Value) -> String) -> Done {
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(answer)?),
            false => println!("{}", say(answer).trim_end()),
        }
        Ok(())
    }
}

/// A loss as a table; the points themselves are in the JSON.
fn losses(loss: &Value) -> String {
    let mut table = Table::new(["SHARD", "FROM", "TO", "POINTS", "TOLD"]);
    for shard in rows(loss, "shards") {
        table.row([
            shard["shard"].to_string(),
            shard["from"].to_string(),
            shard["to"].to_string(),
            rows(shard, "ids").len().to_string(),
            if shard["complete"] == true { "all" } else { "not yet" }.to_owned(),
        ]);
    }
    let complete = match loss["complete"] == true {
        true => "the old home has told all of it",
        false => "the old home has not told all of it yet",
    };
    format!("home {}: {complete}\n\n{}", loss["generation"], table.text())
}

/// Collections that have more than one region: what this one is to each, and how far it is behind.
pub(super) fn links(links: &Value) -> String {
    let mut table = Table::new([
        "COLLECTION",
        "SHARD",
        "ROLE",
        "HOME",
        "GENERATION",
        "POSITION",
        "DURABLE LAG",
        "APPLIED LAG",
    ]);
    for link in rows(links, "links") {
        for shard in rows(link, "shards") {
            table.row([
                text(link, "collection").to_owned(),
                shard["shard"].to_string(),
                text(link, "role").to_owned(),
                text(link, "home").to_owned(),
                link["generation"].to_string(),
                shard["position"].to_string(),
                behind(&shard["durable_lag"]),
                behind(&shard["applied_lag"]),
            ]);
        }
    }
    table.text()
}

/// `3 entries, 1200 bytes, 95 ms`; what is not known is left out.
fn behind(lag: &Value) -> String {
    let figure = |key: &str, unit: &str| lag[key].as_u64().map(|figure| format!("{figure} {unit}"));
    let known: Vec<_> = [figure("entries", "entries"), figure("bytes", "bytes"), figure("ms", "ms")]
        .into_iter()
        .flatten()
        .collect();
    if known.is_empty() { "not known".to_owned() } else { known.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lag_is_told_as_far_as_it_is_known() {
        assert_eq!(behind(&json!({"entries": 3, "bytes": 12, "ms": 95})), "3 entries, 12 bytes, 95 ms");
        assert_eq!(behind(&json!({"entries": 3, "bytes": null, "ms": null})), "3 entries");
        assert_eq!(behind(&json!({})), "not known");
    }

    #[test]
    fn a_loss_is_a_row_a_shard() {
        let shard = json!({"shard": 0, "from": 7, "to": 9, "ids": [1, 2], "complete": true});
        let text = losses(&json!({"generation": 2, "complete": false, "shards": [shard]}));
        assert!(text.starts_with("home 2: the old home has not told all of it yet\n"), "{text}");
        assert!(text.lines().last().unwrap().split_whitespace().eq(["0", "7", "9", "2", "all"]), "{text}");
    }
}
