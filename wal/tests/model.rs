//! The log against a slow and obvious one, through crashes of every kind.
//!
//! The model keeps whole groups in maps and, since the last acknowledged write, every state it went through: after a crash
//! the log must be in one of those. `PROPTEST_CASES` scales it.
#![allow(clippy::unwrap_used, missing_docs)]

#[macro_use]
mod workbench;

use std::collections::BTreeMap;

use annal_wal::{
    Entry, Error, Fault, GroupId, GroupLog, Log, LogId, LogIndex, MemoryDisk, Options, Term, Vote, verify_in_memory,
};
use proptest::prelude::*;
use workbench::{append, entries, id, small};

#[derive(Clone, Debug)]
enum Step {
    Append { group: u32, count: u64, bytes: usize },
    Truncate { group: u32, back: u64 },
    Purge { group: u32, back: u64 },
    /// A snapshot takes the group past its end.
    PurgeAhead { group: u32, by: u64 },
    Vote { group: u32, node: u64 },
    Committed { group: u32, back: u64 },
    Drop { group: u32 },
    Reopen,
    /// Power fails between two writes.
    Crash,
    /// An append meets a fault, then the machine starts again.
    Fault { group: u32, count: u64, bytes: usize, fault: Fault, machine_stays: bool },
    /// Side files are derived: without one the segment is scanned.
    LoseSeal { pick: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let group = || 0..4u32;
    let fault = prop_oneof![
        (0..3000usize).prop_map(|bytes| Fault::Torn { bytes }),
        (0..200usize).prop_map(|tail_bytes| Fault::Zeroed { tail_bytes }),
        Just(Fault::Garbled),
        Just(Fault::Eio),
        Just(Fault::LostFsync),
    ];
    prop_oneof![
        12 => (group(), 1..12u64, 0..900usize).prop_map(|(group, count, bytes)| Step::Append { group, count, bytes }),
        2 => (group(), 0..15u64).prop_map(|(group, back)| Step::Truncate { group, back }),
        2 => (group(), 0..15u64).prop_map(|(group, back)| Step::Purge { group, back }),
        1 => (group(), 1..15u64).prop_map(|(group, by)| Step::PurgeAhead { group, by }),
        2 => (group(), 0..9u64).prop_map(|(group, node)| Step::Vote { group, node }),
        1 => (group(), 0..5u64).prop_map(|(group, back)| Step::Committed { group, back }),
        1 => group().prop_map(|group| Step::Drop { group }),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        2 => (group(), 1..12u64, 0..900usize, fault, any::<bool>()).prop_map(
            |(group, count, bytes, fault, machine_stays)| Step::Fault { group, count, bytes, fault, machine_stays }
        ),
        1 => any::<usize>().prop_map(|pick| Step::LoseSeal { pick }),
    ]
}

#[derive(Clone, Debug, Default, PartialEq)]
struct GroupModel {
    /// Live entries and history.
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
}

type Model = BTreeMap<u32, GroupModel>;

struct Run {
    disk: MemoryDisk,
    log: Option<Log>,
    /// Every state since the last one known to be durable; the newest last.
    states: Vec<Model>,
    term: u64,
    options: Options,
}

impl Run {
    fn log(&self) -> &Log {
        self.log.as_ref().unwrap()
    }

    fn now(&self) -> Model {
        self.states.last().unwrap().clone()
    }

    /// A queued change: it may or may not survive a crash.
    fn queued(&mut self, model: Model) {
        self.states.push(model);
    }

    /// Everything up to here is durable.
    fn durable(&mut self, model: Model) {
        self.states = vec![model];
    }

    async fn group(&mut self, number: u32) -> GroupLog {
        if let Some(group) = self.log().group(GroupId(number)) {
            return group;
        }
        let group = self.log().create_group(GroupId(number)).await.unwrap();
        let mut model = self.now();
        model.insert(number, GroupModel::default());
        self.durable(model);
        group
    }

    /// Opens the log again and finds out which of the possible states it is in.
    async fn reopen(&mut self) {
        let (log, report) = Log::open_in_memory(self.disk.clone(), self.options.clone()).unwrap();
        assert_eq!(report.damage, []);
        self.log = Some(log);
        let mut differences = String::new();
        for at in (0..self.states.len()).rev() {
            match self.differs(&self.states[at]).await {
                None => return self.states = vec![self.states[at].clone()],
                Some(why) => differences += &format!("\nnot state {at}: {why}"),
            }
        }
        panic!("the log is in none of the states it could be in: {differences}");
    }

    /// Compares all that can be read with the model.
    async fn differs(&self, model: &Model) -> Option<String> {
        let groups: Vec<GroupId> = model.keys().copied().map(GroupId).collect();
        if self.log().groups() != groups {
            return Some(format!("groups {:?}, not {groups:?}", self.log().groups()));
        }
        for (number, expected) in model {
            let group = self.log().group(GroupId(*number)).unwrap();
            let state = group.state();
            let pointers = (state.vote, state.committed, state.purged, state.last);
            let wanted = (expected.vote, expected.committed, expected.purged, expected.last);
            if pointers != wanted {
                return Some(format!("group {number}: {pointers:?}, not {wanted:?}"));
            }
            let live_from = expected.purged.map_or(0, |purged| purged.index.0 + 1);
            let live = group.read(LogIndex(0)..LogIndex(u64::MAX), usize::MAX).await.unwrap();
            if !live.iter().eq(expected.entries.range(live_from..).map(|(_, entry)| entry)) {
                return Some(format!("group {number}: {} live entries differ", live.len()));
            }
            // Retention works on its own thread and may move `oldest` at any time.
            while let Some(oldest) = group.state().oldest {
                let history = match group.history(oldest, usize::MAX).await {
                    Err(Error::Gone { .. }) => continue,
                    history => history.unwrap(),
                };
                if !history.iter().eq(expected.entries.range(oldest.0..).map(|(_, entry)| entry)) {
                    return Some(format!("group {number}: history from {oldest:?} differs"));
                }
                assert!(expected.purged.is_none() || oldest.0 <= live_from, "the ladder: oldest ≤ purged + 1");
                break;
            }
        }
        None
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Append { group: number, count, bytes } => {
                let group = self.group(number).await;
                let (model, new) = self.appended(number, count, bytes);
                append(&group, new).await.unwrap();
                self.durable(model);
            }
            Step::Truncate { group: number, back } => {
                let group = self.group(number).await;
                let mut model = self.now();
                let state = model.get_mut(&number).unwrap();
                let Some(last) = state.last else { return };
                let keep = last.index.0.saturating_sub(back);
                let kept = state.entries.get(&keep).map(|entry| entry.id).or(state.purged);
                if state.purged.is_some_and(|purged| keep < purged.index.0) || kept.map(|id| id.index.0) != Some(keep) {
                    let refused = group.truncate_after(Some(LogIndex(keep))).await;
                    // Below the purged entry or before the first: nothing to keep there.
                    assert!(refused.is_err());
                    return;
                }
                group.truncate_after(Some(LogIndex(keep))).await.unwrap();
                state.entries.retain(|index, _| *index <= keep);
                state.last = kept;
                self.queued(model);
            }
            Step::Purge { group: number, back } => {
                let group = self.group(number).await;
                let mut model = self.now();
                let state = model.get_mut(&number).unwrap();
                let Some(last) = state.last else { return };
                let Some(upto) = state.entries.get(&last.index.0.saturating_sub(back)).map(|entry| entry.id) else {
                    return;
                };
                if state.purged.is_some_and(|purged| purged.index > upto.index) {
                    assert!(matches!(group.purge(upto).await, Err(Error::Gap { .. })));
                    return;
                }
                group.purge(upto).await.unwrap();
                state.purged = Some(upto);
                self.durable(model);
            }
            Step::PurgeAhead { group: number, by } => {
                let group = self.group(number).await;
                let mut model = self.now();
                let state = model.get_mut(&number).unwrap();
                let upto = id(self.term, state.last.map_or(0, |last| last.index.0) + by);
                group.purge(upto).await.unwrap();
                state.entries.clear();
                (state.purged, state.last) = (Some(upto), Some(upto));
                self.durable(model);
            }
            Step::Vote { group: number, node } => {
                let group = self.group(number).await;
                let vote = Vote { term: Term(self.term), node, committed: node % 2 == 0 };
                group.save_vote(vote).await.unwrap();
                let mut model = self.now();
                model.get_mut(&number).unwrap().vote = Some(vote);
                self.durable(model);
            }
            Step::Committed { group: number, back } => {
                let group = self.group(number).await;
                let mut model = self.now();
                let state = model.get_mut(&number).unwrap();
                let committed = state.last.map(|last| id(1, last.index.0.saturating_sub(back)));
                group.save_committed(committed).await.unwrap();
                state.committed = committed;
                self.queued(model);
            }
            Step::Drop { group: number } => {
                let mut model = self.now();
                if model.remove(&number).is_some() {
                    self.log().drop_group(GroupId(number)).await.unwrap();
                    self.durable(model);
                }
            }
            Step::Reopen => {
                self.log().shutdown().await.unwrap();
                self.log = None;
                let now = self.now();
                self.durable(now);
                self.reopen().await;
            }
            Step::Crash => {
                self.disk.crash();
                self.log = None;
                self.reopen().await;
            }
            Step::Fault { group: number, count, bytes, fault, machine_stays } => {
                let group = self.group(number).await;
                self.disk.fail_commit(0, fault);
                // A large append takes several frames: any number of them may have made it.
                for count in 1..=count {
                    let (model, _) = self.appended(number, count, bytes);
                    self.states.insert(self.states.len() - 1, model);
                }
                let base = self.states.pop().unwrap();
                let new = entries(self.term, first(&base, number)..first(&base, number) + count, bytes);
                self.states.push(base);
                // An idle mark may have met the fault in its place; either way the log stops.
                append(&group, new).await.unwrap_err();
                if machine_stays { self.disk.restart_process() } else { self.disk.crash() }
                drop(group);
                self.log = None;
                self.term += 1;
                self.reopen().await;
            }
            Step::LoseSeal { pick } => {
                let segments = self.disk.segments();
                self.disk.set_seal(segments[pick % segments.len()], None);
            }
        }
    }

    /// The model after an append, and the entries.
    fn appended(&self, number: u32, count: u64, bytes: usize) -> (Model, Vec<Entry>) {
        let mut model = self.now();
        let from = first(&model, number);
        let new = entries(self.term, from..from + count, bytes);
        let state = model.get_mut(&number).unwrap();
        state.last = new.last().map(|entry| entry.id);
        state.entries.extend(new.iter().map(|entry| (entry.id.index.0, entry.clone())));
        (model, new)
    }
}

/// Where a group's next entry goes.
fn first(model: &Model, number: u32) -> u64 {
    model[&number].last.map_or(1, |last| last.index.0 + 1)
}

fn run(steps: Vec<Step>, retention_segments: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Options { retention_bytes: retention_segments * small().segment_bytes, ..small() };
        let disk = MemoryDisk::new(1 << 30);
        let (log, _) = Log::open_in_memory(disk.clone(), options.clone()).unwrap();
        let mut run = Run { disk, log: Some(log), states: vec![Model::new()], term: 1, options };
        for step in steps {
            run.step(step).await;
            let now = run.now();
            if let Some(why) = run.differs(&now).await {
                panic!("{why}");
            }
        }
        run.log().shutdown().await.unwrap();
        let report = verify_in_memory(&run.disk).unwrap();
        assert!(report.is_intact(), "{report:?}");
        run.log = None;
        let now = run.now();
        run.durable(now);
        run.reopen().await;
    });
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(64);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn agrees_with_the_model(steps in proptest::collection::vec(step(), 1..60), retention_segments in 3..40u64) {
        run(steps, retention_segments);
    }
}
