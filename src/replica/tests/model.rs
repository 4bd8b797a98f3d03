//! Random lives of a replica against what callers were told.
//!
//! What must hold after any schedule of proposals, checkpoints, restarts, crashes and broken disks: an acknowledged
//! command is at its position; a command certain to have had no effect is nowhere; no command is there twice; a tail
//! tells the same story as the machine.

use super::*;
use annal_wal::Fault;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};

#[derive(Clone, Debug)]
enum Step {
    /// So many callers at once, each waits for its answer.
    Propose(u8),
    /// So many callers at once, and nobody waits before the next step.
    ProposeAndGo(u8),
    Checkpoint,
    Read,
    Tail,
    Shutdown,
    Crash,
    /// The commit after the next few goes wrong, and the power fails.
    BrokenDisk(u8, Fault),
}

fn step() -> impl Strategy<Value = Step> {
    let fault = prop_oneof![
        Just(Fault::Eio),
        Just(Fault::LostFsync),
        (0..200usize).prop_map(|bytes| Fault::Torn { bytes }),
        Just(Fault::Garbled),
    ];
    prop_oneof![
        4 => (1..20u8).prop_map(Step::Propose),
        2 => (1..20u8).prop_map(Step::ProposeAndGo),
        2 => Just(Step::Checkpoint),
        1 => Just(Step::Read),
        2 => Just(Step::Tail),
        1 => Just(Step::Shutdown),
        2 => Just(Step::Crash),
        1 => (0..4u8, fault).prop_map(|(after, fault)| Step::BrokenDisk(after, fault)),
    ]
}

/// What callers know.
#[derive(Default)]
pub(super) struct Told {
    proposed: u64,
    applied: BTreeMap<u64, Bytes>,
    without_effect: HashSet<Bytes>,
}

impl Told {
    pub(super) fn next(&mut self) -> Bytes {
        self.proposed += 1;
        self.last()
    }

    pub(super) fn last(&self) -> Bytes {
        let mut command = command(self.proposed).to_vec();
        command.resize(300, b'.');
        command.into()
    }

    pub(super) fn answered(&mut self, command: Bytes, answer: Result<Outcome, ReplicaError>) {
        match answer {
            Ok(outcome) => drop(self.applied.insert(outcome.position.0, command)),
            Err(error) if error.effect() == Effect::None => drop(self.without_effect.insert(command)),
            Err(_) => {}
        }
    }

    /// The machine, having caught up, against all that was told.
    pub(super) fn check(&self, commands: &[Bytes]) {
        let there: HashSet<_> = commands.iter().collect();
        assert_eq!(there.len(), commands.len(), "a command was applied twice");
        for (position, command) in &self.applied {
            assert_eq!(commands.get(*position as usize - 1), Some(command), "position {position}");
        }
        assert!(self.without_effect.iter().all(|command| !there.contains(command)), "no effect, yet applied");
    }
}

type UnderWay = Vec<(Bytes, tokio::task::JoinHandle<Result<Outcome, ReplicaError>>)>;

struct Life {
    disk: MemoryDisk,
    running: Option<(Log, Replica<Journal>)>,
    told: Told,
    under_way: UnderWay,
}

fn small() -> annal_wal::Options {
    let (segment_bytes, retention_bytes, hot_bytes_max) = (8 << 10, 32 << 10, 8 << 10);
    // A disk that is gone for good is noticed at the latest by the watchdog, well before any caller's deadline.
    let watchdog = Duration::from_secs(2);
    annal_wal::Options { segment_bytes, retention_bytes, hot_bytes_max, watchdog, ..log_options() }
}

impl Life {
    async fn start(&mut self, machine: Arc<Journal>) {
        let (log, group) = open_log(&self.disk, small()).await;
        let mut options = options();
        options.checkpoint.keep_entries = 3;
        let replica = alone(options, &log, group, machine).await.unwrap();
        self.told.check(&replica.machine().commands());
        self.running = Some((log, replica));
    }

    fn replica(&self) -> &Replica<Journal> {
        &self.running.as_ref().unwrap().1
    }

    fn propose(&mut self, count: u8) {
        for _ in 0..count {
            let (command, replica) = (self.told.next(), self.replica().clone());
            let proposal = command.clone();
            let answer = tokio::spawn(async move { replica.propose(proposal, soon()).await });
            self.under_way.push((command, answer));
        }
    }

    /// Everyone gets an answer, and not only because time is up: unless the disk is gone, where an entry that was under
    /// way waits for room, as it does on a full one.
    async fn answers(&mut self) {
        for (command, answer) in std::mem::take(&mut self.under_way) {
            let answer = answer.await.unwrap();
            if let (Err(error @ ReplicaError::Deadline { .. }), Some((_, replica))) = (&answer, &self.running)
            {
                assert!(replica.inner.log.check_space().is_err(), "{error}: {:?}", replica.status());
            }
            self.told.answered(command, answer);
        }
    }

    async fn crash(&mut self) {
        let (log, replica) = self.running.take().unwrap();
        let machine = crash(&self.disk, log, replica).await;
        self.answers().await;
        self.start(machine).await;
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Propose(count) => {
                self.propose(count);
                self.answers().await;
            }
            Step::ProposeAndGo(count) => {
                self.propose(count);
                tokio::task::yield_now().await;
            }
            Step::Checkpoint => self.replica().checkpoint(soon()).await.unwrap(),
            Step::Read => {
                self.answers().await;
                let index = self.replica().read_index(soon()).await.unwrap();
                self.replica().wait_applied(index, soon()).await.unwrap();
                self.told.check(&self.replica().machine().commands());
            }
            Step::Tail => self.tail().await,
            Step::Shutdown => {
                let (log, replica) = self.running.take().unwrap();
                replica.shutdown().await.unwrap();
                self.answers().await;
                let machine = replica.machine().after_crash();
                drop(replica);
                log.shutdown().await.unwrap();
                drop(log);
                self.disk.restart_process();
                self.start(machine).await;
            }
            Step::Crash => self.crash().await,
            Step::BrokenDisk(after, fault) => {
                self.disk.fail_commit(after.into(), fault);
                for _ in 0..=after {
                    self.propose(1);
                    self.answers().await;
                }
                self.crash().await;
            }
        }
        if let Some((_, replica)) = &self.running {
            replica.status();
        }
    }

    async fn tail(&mut self) {
        self.answers().await;
        let mut first = Position(1);
        // Retention may take the start while it is being opened; once a tail has read, it holds what comes after.
        while let Err(error) = self.story(first).await {
            let ReplicaError::Gone { oldest } = error else { panic!("{error}") };
            assert!(oldest > first, "{oldest} after {first}");
            first = oldest;
        }
    }

    /// The whole story from `first` on, and the next command from each position after.
    async fn story(&self, first: Position) -> Result<(), ReplicaError> {
        let replica = self.replica();
        let commands = replica.machine().commands();
        let all = (1u64..).map(Position).zip(commands.iter().cloned()).skip(first.0 as usize - 1);
        let mut whole = replica.tail(first).await?;
        for expected in all.clone() {
            assert_eq!(next(&mut whole).await?, expected);
            assert_eq!(next(&mut replica.tail(expected.0).await?).await?, expected);
        }
        Ok(())
    }
}

async fn next(tail: &mut Tail) -> Result<(Position, Bytes), ReplicaError> {
    tokio::time::timeout_at(soon(), tail.next()).await.expect("the tail hangs")
}

fn cases() -> u32 {
    std::env::var("ANNAL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]
    #[test]
    fn callers_are_told_the_truth(steps in proptest::collection::vec(step(), 1..25)) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let told = Told::default();
            let mut life = Life { disk: memory(), running: None, told, under_way: Vec::new() };
            life.start(Arc::default()).await;
            for step in steps {
                life.step(step).await;
            }
            life.answers().await;
            life.crash().await;
        });
    }
}
