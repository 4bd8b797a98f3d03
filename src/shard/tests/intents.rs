//! The memory of intents against an obvious one, beyond its window.

use super::*;

/// What anyone would write: entries by intent, the highest evicted seq of each client and when it was evicted.
#[derive(Default)]
struct Memory {
    window: u64,
    entries: BTreeMap<(String, u64), (u64, Vec<PointId>)>,
    floors: BTreeMap<String, (u64, u64)>,
    /// Every intent that was carried out, and when.
    carried_out: BTreeMap<(String, u64), u64>,
}

impl Memory {
    /// The code of the rejection, `duplicate`, or empty.
    fn judge(&mut self, position: u64, client: &str, seq: u64, born: u64, ids: &[PointId]) -> &'static str {
        let old = self.entries.iter().filter(|(_, entry)| entry.0 + self.window < position);
        for intent in old.map(|(intent, _)| intent.clone()).collect::<Vec<_>>() {
            self.entries.remove(&intent);
            let floor = self.floors.entry(intent.0).or_default();
            *floor = (floor.0.max(intent.1), position);
        }
        self.floors.retain(|_, (_, evicted_at)| *evicted_at + 16 * self.window >= position);
        let intent = (client.to_owned(), seq);
        match self.entries.get(&intent) {
            Some((_, first)) if first != ids => return "other_body",
            Some(_) => return "duplicate",
            None => {}
        }
        let below = self.floors.get(client).is_some_and(|(floor, _)| seq <= *floor);
        if below || born + self.window < position {
            return "expired";
        }
        self.entries.insert(intent.clone(), (position, ids.to_vec()));
        let before = self.carried_out.insert(intent, position);
        assert!(before.is_none_or(|before| before + 16 * self.window < position), "carried out again");
        ""
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Client, seq, how long ago it was born, a body.
    Ask(usize, u64, u64, u64),
    Nothing(u64),
    Reopen,
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => (0usize..3, 0u64..12, prop::sample::select(vec![0u64, 0, 0, 2, 9]), 0u64..8)
            .prop_map(|(client, seq, age, body)| Step::Ask(client, seq, age, body / 7)),
        2 => (1u64..70).prop_map(Step::Nothing),
        1 => Just(Step::Reopen),
        1 => Just(Step::Snapshot),
    ]
}

proptest! {
    #![proptest_config(cases(64))]

    /// Each intent has the fate the obvious memory gives it, however the log is cut into batches, and no intent
    /// is carried out twice though every command claims to be young.
    #[test]
    fn intents_have_the_fate_of_the_obvious_memory(
        steps in prop::collection::vec((step(), any::<bool>()), 1..120),
        window in 1u64..5,
    ) {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let options = ShardOptions { dedup_window: window, ..options() };
        let open = |folder: &Path| {
            Shard::open(store_in(folder), "shard1", &folder.join("index"), COLLECTION, options.clone()).unwrap()
        };
        let mut memory = Memory { window, ..Memory::default() };
        let mut shard = open(here.path());
        let (mut log, mut batch, mut want): (Vec<Bytes>, Vec<Bytes>, Vec<&str>) = Default::default();
        for (step, cut) in steps {
            let position = (log.len() + batch.len()) as u64 + 1;
            match step {
                Step::Ask(client, seq, age, body) => {
                    // One name begins as another does; one holds what ends a name.
                    let client = ["a", "ab", "a/b"][client];
                    let born = position.saturating_sub(age);
                    let ids = vec![PointId::Num(body)];
                    want.push(memory.judge(position, client, seq, born, &ids));
                    let request = Some(RequestId { client: client.into(), seq });
                    let ask = Command { request, born: Position(born), ..command(Body::Delete(ids)) };
                    batch.push(ask.encode());
                }
                Step::Nothing(count) => {
                    for n in 0..count {
                        memory.judge(position + n, "nobody", 0, 0, &[]);
                        memory.entries.remove(&("nobody".into(), 0));
                        memory.carried_out.remove(&("nobody".into(), 0));
                        want.push("");
                        batch.push(command(Body::Delete(vec![])).encode());
                    }
                }
                Step::Reopen => {
                    shard.close();
                    drop(shard);
                    shard = open(here.path());
                }
                Step::Snapshot => {
                    let mut stream = Vec::new();
                    shard.write_snapshot(&mut stream).unwrap();
                    shard.install_snapshot(&mut stream.as_slice()).unwrap();
                }
            }
            if cut {
                log.extend(batch.clone());
                let outcomes = shard.apply(std::mem::take(&mut batch), Bookmark(Bytes::new())).unwrap();
                for (outcome, want) in outcomes.iter().zip(want.drain(..)) {
                    let got = match &outcome.verdict {
                        Verdict::Applied => "",
                        Verdict::Duplicate { .. } => "duplicate",
                        Verdict::Rejected(rejection) => &rejection.code,
                    };
                    prop_assert_eq!(got, want, "position {}", outcome.position);
                }
            }
        }
        prop_assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
        let replay = open(there.path());
        replay.apply(log, Bookmark(Bytes::new())).unwrap();
        prop_assert_eq!(replay.state_hash().unwrap(), shard.state_hash().unwrap());
        shard.close();
        replay.close();
    }
}

/// Blocks of several positions, and more clients than one look at the floors sees.
#[test]
fn what_is_kept_of_intents_is_bounded() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let window = 2 * 1024u64;
    let open = |folder: &Path| {
        let store = Store::open(&folder.join("store"), StoreOptions::default()).unwrap();
        let options = ShardOptions { dedup_window: window, ..options() };
        Shard::open(store, "shard1", &folder.join("index"), COLLECTION, options).unwrap()
    };
    let rows = |shard: &Shard, table: u8| {
        let view = shard.view();
        view.store.prefix(&view.keyspace, &[table]).count() as u64
    };
    let ask = |client: String, seq, position| {
        let request = Some(RequestId { client, seq });
        Command { request, born: Position(position), ..command(Body::Delete(vec![])) }.encode()
    };
    // A client for each intent, then silence but for one client; a replica with other batches.
    let total = 20 * window;
    let log: Vec<Bytes> = (1..=total)
        .map(|position| match position {
            p if p <= 2 * window => ask(format!("c{p}"), 7, p),
            p if p.is_multiple_of(50) => ask("steady".into(), p, p),
            _ => command(Body::Delete(vec![])).encode(),
        })
        .collect();
    let (shard, replay) = (open(here.path()), open(there.path()));
    for (number, batch) in log.chunks(1000).enumerate() {
        shard.apply(batch.to_vec(), Bookmark(Bytes::new())).unwrap();
        let entries = rows(&shard, points::DEDUP);
        assert!(entries <= window + 2, "{entries} entries after {number} batches");
        // The first client's intent is evicted one window on, and its floor kept for sixteen more.
        let at = shard.position().0;
        if (window + 10..window * 17).contains(&at) {
            let again = ask("c1".into(), 7, at);
            let mut fold = super::super::Clients::default();
            let view = shard.view();
            let mut fold = Fold::new(&view, window, &mut fold).unwrap();
            let outcome = fold.command(Command::decode(&again).unwrap(), 0).unwrap();
            assert!(matches!(outcome.verdict, Verdict::Rejected(r) if r.code == "expired"), "at {at}");
        }
    }
    for batch in log.chunks(4096) {
        replay.apply(batch.to_vec(), Bookmark(Bytes::new())).unwrap();
    }
    assert_eq!(replay.state_hash().unwrap(), shard.state_hash().unwrap());
    assert_eq!(rows(&shard, points::FLOOR), 1, "only the steady client's floor is left");
    assert_eq!(shard.scrub().unwrap(), shard.state_hash().unwrap());
    shard.close();
    replay.close();
}
