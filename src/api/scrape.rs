//! Figures that are looked up when somebody asks: the log's, and those of every replica this node holds.
//!
//! Written as text and not kept in a recorder: what is gone (a dropped collection, a replica that moved on) is gone
//! from the next scrape.
//! Source: the Prometheus text format, version 0.0.4.

use crate::{
    cluster::{Figures, RecallFigures, ReplicaFigures},
    replica::Role,
};
use annal_wal::Histogram;
use std::fmt::Write;

/// The figures as text.
pub(super) fn written(figures: &Figures) -> String {
    let mut text = Text::default();
    log(&mut text, figures);
    replicas(&mut text, &figures.replicas);
    recalls(&mut text, &figures.replicas);
    homes(&mut text, &figures.replicas);
    text.0
}

fn log(text: &mut Text, figures: &Figures) {
    let log = &figures.log;
    let seconds = |micros: u64| micros as f64 / 1e6;
    text.histogram(
        "annal_log_commit_seconds",
        "Write and fsync of one group commit",
        &log.fsync_micros,
        seconds,
    );
    text.histogram("annal_log_roll_seconds", "Waiting for the next segment", &log.roll_micros, seconds);
    // Below a bound is at most one less, in whole numbers.
    let below = |bound: u64| bound.saturating_sub(1) as f64;
    text.histogram("annal_log_commit_records", "Records in one group commit", &log.batch_records, below);
    text.histogram("annal_log_commit_bytes", "Bytes in one group commit", &log.batch_bytes, below);
    for (name, kind, help, value) in [
        ("annal_log_commits_total", COUNTER, "Frames committed", log.commits),
        ("annal_log_records_total", COUNTER, "Records committed", log.records),
        ("annal_log_record_bytes_total", COUNTER, "Bytes of those records", log.record_bytes),
        ("annal_log_marks_total", COUNTER, "Empty frames among the commits", log.marks),
        ("annal_log_bytes", GAUGE, "Bytes the segments take on the disk", log.bytes),
        ("annal_log_segments", GAUGE, "Segments on the disk", log.segments),
        ("annal_log_hot_bytes", GAUGE, "Bytes of recent entries held in memory", log.hot_bytes),
        ("annal_log_free_bytes", GAUGE, "Free bytes of the disk when last looked", log.free_bytes),
        ("annal_log_damaged", GAUGE, "Places of the log known to be damaged", log.damaged),
        ("annal_log_failed", GAUGE, "1 once the log has failed", u64::from(log.failure.is_some())),
    ] {
        text.head(name, kind, help);
        text.sample(name, "", value as f64);
    }
}

type Figure = fn(&ReplicaFigures) -> Option<u64>;

/// What is told of every replica; a figure it does not have (yet) is left out.
const OF_REPLICAS: [(&str, &str, &str, Figure); 18] = [
    ("annal_shard_oldest", GAUGE, "First log index that can be read", |r| Some(r.status.ladder.oldest?.0)),
    ("annal_shard_purged", GAUGE, "Last log index that Raft no longer sees", |r| {
        Some(r.status.ladder.purged?.0)
    }),
    ("annal_shard_checkpointed", GAUGE, "Last log index that may be purged", |r| {
        Some(r.status.ladder.checkpointed?.0)
    }),
    ("annal_shard_durable", GAUGE, "Last log index the state has on disk", |r| {
        Some(r.status.ladder.durable?.0)
    }),
    ("annal_shard_applied", GAUGE, "Last log index that reads can see", |r| Some(r.status.ladder.applied?.0)),
    ("annal_shard_committed", GAUGE, "Last log index a quorum is known to have", |r| {
        Some(r.status.ladder.committed?.0)
    }),
    ("annal_shard_flushed", GAUGE, "Last log index on this node's disk", |r| {
        Some(r.status.ladder.flushed?.0)
    }),
    ("annal_shard_submitted", GAUGE, "Last log index appended here", |r| Some(r.status.ladder.submitted?.0)),
    ("annal_shard_position", GAUGE, "Commands applied", |r| Some(r.status.position.0)),
    ("annal_shard_term", GAUGE, "Raft's term", |r| Some(r.status.term.0)),
    ("annal_shard_read_rounds_total", COUNTER, "Rounds of ReadIndex, each shared by many reads", |r| {
        Some(r.status.read_rounds)
    }),
    ("annal_shard_failed", GAUGE, "1 once the replica has failed and stopped", |r| {
        Some(u64::from(r.status.failure.is_some()))
    }),
    ("annal_shard_points", GAUGE, "Points", |r| Some(r.stats.as_ref()?.points)),
    ("annal_shard_vectors", GAUGE, "Dense vectors", |r| Some(r.stats.as_ref()?.vectors)),
    ("annal_shard_indexed_vectors", GAUGE, "Dense vectors in a graph or in the open delta", |r| {
        Some(r.stats.as_ref()?.indexed_vectors)
    }),
    ("annal_shard_segments", GAUGE, "Graphs and deltas", |r| Some(r.stats.as_ref()?.segments)),
    ("annal_shard_store_bytes", GAUGE, "Bytes in the store", |r| Some(r.stats.as_ref()?.store_bytes)),
    ("annal_shard_index_bytes", GAUGE, "Bytes of index files", |r| Some(r.stats.as_ref()?.index_bytes)),
];

const ROLE: &str = "annal_shard_role";

fn replicas(text: &mut Text, replicas: &[ReplicaFigures]) {
    for (name, kind, help, figure) in OF_REPLICAS {
        text.head(name, kind, help);
        for replica in replicas {
            if let Some(value) = figure(replica) {
                text.sample(name, &labels(replica), value as f64);
            }
        }
    }
    text.head(ROLE, GAUGE, "1 for what the replica is now");
    for replica in replicas {
        let role = match replica.status.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Stopped => "stopped",
        };
        text.sample(ROLE, &format!("{},role=\"{role}\"", labels(replica)), 1.0);
    }
}

/// Replicas that follow a home in another region.
fn homes(text: &mut Text, replicas: &[ReplicaFigures]) {
    let known = || replicas.iter().filter_map(|replica| Some((labels(replica), replica.home?)));
    let name = "annal_region_lag_entries";
    text.head(name, GAUGE, "Commands that the home is known to have and that are not applied here");
    known().for_each(|(labels, home)| text.sample(name, &labels, home.entries as f64));
    let name = "annal_region_age_seconds";
    text.head(name, GAUGE, "Since when the home may have had something that is not applied here");
    for (labels, home) in known() {
        if let Some(age) = home.age {
            text.sample(name, &labels, age.as_secs_f64());
        }
    }
}

/// The catalog is not searched.
fn recalls(text: &mut Text, replicas: &[ReplicaFigures]) {
    let known = || replicas.iter().filter_map(|replica| Some((labels(replica), replica.recall?)));
    for (name, help, value) in RECALL {
        text.head(name, COUNTER, help);
        known().for_each(|(labels, recall)| text.sample(name, &labels, value(&recall)));
    }
}

type OfRecall = fn(&RecallFigures) -> f64;

/// The mean recall of a while is the growth of the second over that of the first.
const RECALL: [(&str, &str, OfRecall); 2] = [
    ("annal_shard_recall_samples_total", "Searches that were answered again, exactly", |r| r.samples as f64),
    ("annal_shard_recall_sum", "Sum of their recalls, each 0 to 1", |r| r.sum),
];

/// The catalog has no collection: its label is empty, which no collection's can be.
fn labels(replica: &ReplicaFigures) -> String {
    let collection = replica.collection.as_deref().unwrap_or_default();
    let collection = collection.replace('\\', r"\\").replace('"', r#"\""#).replace('\n', r"\n");
    format!("collection=\"{collection}\",shard=\"{}\"", replica.shard)
}

const COUNTER: &str = "counter";
const GAUGE: &str = "gauge";

/// Text in Prometheus' format, being written.
#[derive(Default)]
struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        match labels {
            "" => self.line(format_args!("{name} {value}")),
            _ => self.line(format_args!("{name}{{{labels}}} {value}")),
        }
    }

    /// `scale`: from a bucket's bound, which lies above its values, to the largest value in it.
    fn histogram(&mut self, name: &str, help: &str, counts: &Histogram, scale: impl Fn(u64) -> f64) {
        self.head(name, "histogram", help);
        let mut seen = 0;
        for (bound, count) in &counts.buckets {
            seen += count;
            self.line(format_args!("{name}_bucket{{le=\"{}\"}} {seen}", scale(*bound)));
        }
        self.line(format_args!("{name}_bucket{{le=\"+Inf\"}} {}", counts.count));
        // The sum is in the unit of the bounds, wherever their buckets end.
        let unit = scale(2) - scale(1);
        self.line(format_args!("{name}_sum {}", counts.sum as f64 * unit));
        self.line(format_args!("{name}_count {}", counts.count));
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        writeln!(self.0, "{line}").expect("a String grows as needed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::HomeFigures,
        model::{Position, ReplicaId, ShardNumber},
        replica::{GroupId, Ladder, LogIndex, Members, ReplicaStatus, Term},
        shard::ShardStats,
    };
    use annal_wal::LogStatus;
    use std::time::Duration;

    fn counts(buckets: &[(u64, u64)], sum: u64) -> Histogram {
        Histogram { count: buckets.iter().map(|(_, count)| count).sum(), sum, buckets: buckets.to_vec() }
    }

    fn figures() -> Figures {
        let log = LogStatus {
            bytes: 1,
            segments: 2,
            oldest_segment: 1,
            newest_segment: 2,
            commits: 5,
            records: 7,
            record_bytes: 700,
            marks: 0,
            hot_bytes: 3,
            fsync_micros: counts(&[(1 << 10, 3), (1 << 12, 2)], 5_000),
            batch_records: counts(&[(2, 4), (4, 1)], 7),
            batch_bytes: Histogram::default(),
            roll_micros: Histogram::default(),
            free_bytes: 1 << 40,
            damaged: 2,
            failure: None,
        };
        let status = ReplicaStatus {
            group: GroupId(4),
            replica: ReplicaId(4),
            ladder: Ladder { applied: Some(LogIndex(9)), submitted: Some(LogIndex(12)), ..Ladder::default() },
            position: Position(8),
            term: Term(2),
            vote: (ReplicaId(4), true),
            role: Role::Leader,
            leader: Some(ReplicaId(4)),
            members: Members::default(),
            read_rounds: 11,
            failure: Some("a disk".into()),
        };
        let catalog = ReplicaFigures {
            collection: None,
            shard: ShardNumber(0),
            status: status.clone(),
            stats: None,
            recall: None,
            home: None,
        };
        let shard = ReplicaFigures {
            collection: Some("a \"b\"".into()),
            shard: ShardNumber(3),
            status,
            stats: Some(ShardStats { points: 42, ..ShardStats::default() }),
            recall: Some(RecallFigures { samples: 4, sum: 3.9 }),
            home: Some(HomeFigures { entries: 7, age: Some(Duration::from_millis(90)) }),
        };
        Figures { log, replicas: vec![catalog, shard] }
    }

    #[test]
    fn every_figure_is_a_line_with_its_labels() {
        let text = written(&figures());
        for line in [
            "annal_shard_applied{collection=\"\",shard=\"0\"} 9",
            "annal_shard_submitted{collection=\"a \\\"b\\\"\",shard=\"3\"} 12",
            "annal_shard_points{collection=\"a \\\"b\\\"\",shard=\"3\"} 42",
            "annal_shard_role{collection=\"\",shard=\"0\",role=\"leader\"} 1",
            "annal_shard_read_rounds_total{collection=\"\",shard=\"0\"} 11",
            "annal_shard_failed{collection=\"\",shard=\"0\"} 1",
            "annal_shard_recall_samples_total{collection=\"a \\\"b\\\"\",shard=\"3\"} 4",
            "annal_shard_recall_sum{collection=\"a \\\"b\\\"\",shard=\"3\"} 3.9",
            "annal_region_lag_entries{collection=\"a \\\"b\\\"\",shard=\"3\"} 7",
            "annal_region_age_seconds{collection=\"a \\\"b\\\"\",shard=\"3\"} 0.09",
            "annal_log_damaged 2",
            "annal_log_failed 0",
            "annal_log_free_bytes 1099511627776",
            "# TYPE annal_shard_read_rounds_total counter",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        // A rung that nothing stands on yet, and what the catalog does not have, are left out.
        assert!(
            !text.contains("annal_shard_durable{") && !text.contains("annal_shard_points{collection=\"\"")
        );
    }

    #[test]
    fn histograms_add_up() {
        let text = written(&figures());
        let lines: Vec<_> = text.lines().filter(|l| l.starts_with("annal_log_commit_seconds")).collect();
        assert_eq!(
            lines,
            [
                "annal_log_commit_seconds_bucket{le=\"0.001024\"} 3",
                "annal_log_commit_seconds_bucket{le=\"0.004096\"} 5",
                "annal_log_commit_seconds_bucket{le=\"+Inf\"} 5",
                "annal_log_commit_seconds_sum 0.005",
                "annal_log_commit_seconds_count 5",
            ]
        );
        let lines: Vec<_> = text.lines().filter(|l| l.starts_with("annal_log_commit_records")).collect();
        assert_eq!(
            lines,
            [
                "annal_log_commit_records_bucket{le=\"1\"} 4",
                "annal_log_commit_records_bucket{le=\"3\"} 5",
                "annal_log_commit_records_bucket{le=\"+Inf\"} 5",
                "annal_log_commit_records_sum 7",
                "annal_log_commit_records_count 5",
            ]
        );
    }

    #[test]
    fn each_series_has_one_head() {
        let text = written(&figures());
        let mut heads: Vec<_> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        let all = heads.len();
        heads.dedup();
        assert_eq!((heads.len(), all), (all, 14 + 18 + 1 + 2 + 2));
    }
}
