//! The store and its twin keep the same promises: one script over both, and what only the twin can show.

use super::*;
use proptest::prelude::*;

#[test]
fn a_batch_is_seen_whole_and_a_view_stands_still() {
    let folder = tempfile::tempdir().unwrap();
    let big = vec![7u8; 4096];
    {
        let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
        let a = store.keyspace("a", KeyspaceKind::Plain).unwrap();
        let b = store.keyspace("b", KeyspaceKind::LargeValues).unwrap();
        let before = store.view();
        let mut batch = store.batch();
        batch.put(&a, b"k1", b"v1");
        batch.put(&a, b"k2", b"v2");
        batch.put(&b, b"big", &big);
        batch.commit().unwrap();
        assert_eq!(before.get(&a, b"k1").unwrap(), None);
        let after = store.view();
        let mut batch = store.batch();
        batch.delete(&a, b"k1");
        batch.commit().unwrap();
        assert_eq!(after.get(&a, b"k1").unwrap().as_deref(), Some(&b"v1"[..]));
        let keys: Vec<_> = after.prefix(&a, b"k").map(|e| e.unwrap().0).collect();
        assert_eq!(keys, [&b"k1"[..], b"k2"]);
        assert_eq!(after.keys(&a, b"k").map(Result::unwrap).collect::<Vec<_>>(), keys);
        let above = (Bound::Excluded(b"k1".to_vec()), Bound::Unbounded);
        assert_eq!(store.view().range(&a, above.clone()).count(), 1);
        assert_eq!(after.last(&a, above).unwrap().unwrap().0, &b"k2"[..]);
        store.persist().unwrap();
    }
    let store = Store::open(folder.path(), StoreOptions::default()).unwrap();
    let b = store.keyspace("b", KeyspaceKind::LargeValues).unwrap();
    assert_eq!(store.view().get(&b, b"big").unwrap().unwrap(), big);
    assert_eq!(store.keyspaces(), ["a", "b"]);
    assert!(store.drop_keyspace("a").unwrap());
    assert!(!store.drop_keyspace("a").unwrap());
    assert_eq!(store.keyspaces(), ["b"]);
}

/// One step of a script.
#[derive(Clone, Debug)]
enum Step {
    /// Sets or removes keys of keyspaces in one batch.
    Batch(Vec<(u8, u8, Option<u8>)>),
    Drop(u8),
    Persist,
    /// The process ends and starts again.
    Reopen,
}

#[test]
fn a_failure_is_told_once_and_stays() {
    let disk = MemoryStore::default();
    let store = Store::open_in_memory(&disk);
    let mut failure = store.failure();
    store.persist().unwrap();
    assert!(!failure.has_changed().unwrap());
    disk.fail_persist(0);
    let why = store.persist().unwrap_err().to_string();
    assert_eq!(failure.borrow_and_update().as_deref(), Some(why.as_str()));
    store.clone().persist().ok();
    assert!(!failure.has_changed().unwrap());
    assert!(store.failure().borrow().is_some());
}

#[test]
#[cfg(target_os = "linux")]
fn flushing_gives_way() {
    let folder = tempfile::tempdir().unwrap();
    let _store = Store::open(folder.path(), StoreOptions::default()).unwrap();
    let own = rustix::process::nice(0).unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut seen = 0;
    // A thread names itself once it runs.
    while seen < THREADS {
        assert!(std::time::Instant::now() < deadline, "{seen} threads flush");
        seen = 0;
        for task in fs::read_dir("/proc/self/task").unwrap() {
            // Threads of other tests come and go.
            let Ok(stat) = fs::read_to_string(task.unwrap().path().join("stat")) else { continue };
            let (name, rest) = stat.split_once(") ").unwrap();
            if name.ends_with("(fjall:worker") {
                let nice = rest.split(' ').nth(16).unwrap();
                assert_eq!(nice, (own + FLUSH_NICE).min(19).to_string());
                seen += 1;
            }
        }
    }
}

/// A process killed while it made the store: each step of that, and then a store that can be used.
#[test]
fn a_creation_that_was_cut_off_is_begun_anew() {
    let whole = tempfile::tempdir().unwrap();
    drop(Store::open(whole.path(), StoreOptions::default()).unwrap());
    let made = ["lock", "keyspaces", "0.jnl", "version"];
    for steps in 0..=made.len() {
        let folder = tempfile::tempdir().unwrap();
        for name in &made[..steps] {
            let (from, to) = (whole.path().join(name), folder.path().join(name));
            match from.is_dir() {
                true => fs::create_dir(to).unwrap(),
                false => _ = fs::copy(from, to).unwrap(),
            }
        }
        for _ in 0..2 {
            let store = Store::open(folder.path(), StoreOptions::default())
                .unwrap_or_else(|error| panic!("after {:?}: {error}", &made[..steps]));
            let keyspace = store.keyspace("a", KeyspaceKind::Plain).unwrap();
            let mut batch = store.batch();
            batch.put(&keyspace, b"k", b"v");
            batch.commit().unwrap();
        }
    }
    // A store that was in use is not taken for one of those.
    fs::remove_file(whole.path().join("version")).unwrap();
    let error = Store::open(whole.path(), StoreOptions::default()).err().unwrap();
    assert!(error.is_damage(), "{error}");
}

fn step() -> impl Strategy<Value = Step> {
    let change = (0u8..3, any::<u8>(), proptest::option::of(any::<u8>()));
    prop_oneof![
        8 => proptest::collection::vec(change, 1..8).prop_map(Step::Batch),
        1 => (0u8..3).prop_map(Step::Drop),
        1 => Just(Step::Persist),
        1 => Just(Step::Reopen),
    ]
}

/// A key of one to three bytes, so that some are prefixes of others.
fn key(of: u8) -> Vec<u8> {
    [of % 4, of / 4 % 8, 255][..1 + usize::from(of % 3)].to_vec()
}

fn take(store: &Store, step: &Step) {
    let name = |of: u8| format!("k{of}");
    match step {
        Step::Batch(changes) => {
            let mut batch = store.batch();
            for (of, at, value) in changes {
                let keyspace = store.keyspace(&name(*of), KeyspaceKind::LargeValues).unwrap();
                match value {
                    Some(value) => batch.put(&keyspace, key(*at), vec![*value; usize::from(*value) * 4]),
                    None => batch.delete(&keyspace, key(*at)),
                }
            }
            batch.commit().unwrap();
        }
        Step::Drop(of) => drop(store.drop_keyspace(&name(*of)).unwrap()),
        Step::Persist => store.persist().unwrap(),
        Step::Reopen => {}
    }
}

/// Everything a store shows, asked in every way.
fn shown(store: &Store) -> String {
    let view = store.view();
    let mut out = format!("{:?}", store.keyspaces());
    for name in store.keyspaces() {
        let keyspace = store.keyspace(&name, KeyspaceKind::Plain).unwrap();
        let all: Vec<_> = view.prefix(&keyspace, b"").map(Result::unwrap).collect();
        out += &format!("\n{name} {all:?}");
        for at in (0..=255).step_by(5).map(key) {
            let got = view.get(&keyspace, &at).unwrap();
            let keys: Vec<_> = view.keys(&keyspace, &at).map(Result::unwrap).collect();
            let above = (Bound::Excluded(at.clone()), Bound::Included(vec![2, 5]));
            let rows = view.range(&keyspace, above.clone()).count();
            let last = view.last(&keyspace, (Bound::Unbounded, Bound::Excluded(at))).unwrap();
            out += &format!("\n{got:?} {keys:?} {rows} {last:?} {:?}", view.last(&keyspace, above).unwrap());
        }
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_twin_shows_what_the_store_shows(script in proptest::collection::vec(step(), 1..40)) {
        let (folder, disk) = (tempfile::tempdir().unwrap(), MemoryStore::new());
        let open = || Store::open(folder.path(), StoreOptions { cache_bytes: 1 << 20, ..StoreOptions::default() }).unwrap();
        let (mut real, mut twin) = (open(), Store::open_in_memory(&disk));
        for step in &script {
            if matches!(step, Step::Reopen) {
                drop(real);
                real = open();
                disk.restart_process();
                twin = Store::open_in_memory(&disk);
            }
            take(&real, step);
            take(&twin, step);
            prop_assert_eq!(shown(&real), shown(&twin), "after {:?}", step);
        }
    }
}

#[test]
fn a_power_cut_keeps_what_was_persisted_and_a_prefix_of_the_rest() {
    for keep in 0..=3 {
        let disk = MemoryStore::new();
        let store = Store::open_in_memory(&disk);
        let keyspace = store.keyspace("a", KeyspaceKind::Plain).unwrap();
        let write = |n: u8| {
            let mut batch = store.batch();
            batch.put(&keyspace, [n], [n]);
            batch.put(&keyspace, b"last", [n]);
            batch.commit().unwrap();
        };
        write(1);
        store.persist().unwrap();
        (2..=4).for_each(write);
        disk.crash(|count| {
            assert_eq!(count, 3);
            keep
        });
        assert!(store.persist().is_err(), "a handle of an earlier life");
        let store = Store::open_in_memory(&disk);
        let rows: Vec<_> = store.view().prefix(&keyspace, b"").map(|row| row.unwrap().1[0]).collect();
        let last = 1 + keep as u8;
        assert_eq!(rows, (1..=last).chain([last]).collect::<Vec<_>>());
    }
}

#[test]
fn the_power_fails_between_two_steps() {
    let disk = MemoryStore::new();
    let store = Store::open_in_memory(&disk);
    let keyspace = store.keyspace("a", KeyspaceKind::Plain).unwrap();
    disk.cut_power_after(2);
    let write = |n: u8| {
        let mut batch = store.batch();
        batch.put(&keyspace, [n], [n]);
        batch.commit()
    };
    assert!(write(1).is_ok() && write(2).is_ok() && !disk.has_lost_power());
    assert!(write(3).is_err() && disk.has_lost_power());
    assert!(store.persist().is_err(), "nothing is done after it");
    disk.crash(|unsynced| unsynced);
    let store = Store::open_in_memory(&disk);
    assert_eq!(store.view().prefix(&keyspace, b"").count(), 2);
    store.persist().unwrap();
}
