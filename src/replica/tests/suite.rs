//! openraft's own suite for log stores and state machines, on the log in memory and on disk.

use super::*;
use crate::replica::{Pace, apply::Applier, entry::Mark, log_store::LogStore, progress::Progress};
use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};

struct InMemory;
struct OnDisk;

/// Suite and log must not hold each other up: a group of one log each.
async fn parts(log: &Log) -> (LogStore, Applier) {
    let group = log.create_group(GROUP).await.unwrap();
    let progress = Arc::new(Progress::apart());
    let machine = Arc::new(Journal::default());
    let in_use = InUse::new(progress.clone(), CancellationToken::new().drop_guard());
    (
        LogStore::new(group, progress.clone(), Arc::default()),
        Applier::new(machine, progress, Mark::default(), Pace::new(0), in_use),
    )
}

impl StoreBuilder<Types, LogStore, Applier, Log> for InMemory {
    async fn build(&self) -> Result<(Log, LogStore, Applier), StorageError<Types>> {
        let (log, _) = Log::open_in_memory(memory(), log_options()).unwrap();
        let (store, applier) = parts(&log).await;
        Ok((log, store, applier))
    }
}

impl StoreBuilder<Types, LogStore, Applier, (tempfile::TempDir, Log)> for OnDisk {
    async fn build(&self) -> Result<((tempfile::TempDir, Log), LogStore, Applier), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let (log, _) = Log::open(dir.path(), log_options()).unwrap();
        let (store, applier) = parts(&log).await;
        Ok(((dir, log), store, applier))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_in_memory() {
    Suite::test_all(InMemory).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openraft_suite_on_disk() {
    Suite::test_all(OnDisk).await.unwrap();
}
