//! A shard that follows another one: by its commands, or by a copy and the commands after it.

use super::*;
use crate::model::{
    Generation, Home, Homes, Turn,
    region::{Seed, SeedEnd},
};

/// A shard with a log of its own.
struct Region {
    shard: Arc<Shard>,
    folder: tempfile::TempDir,
    log: Vec<Bytes>,
}

impl Region {
    fn new() -> Region {
        let folder = tempfile::tempdir().unwrap();
        Region { shard: open(folder.path()), folder, log: Vec::new() }
    }

    /// The bookmark is how much of the log is applied.
    fn append(&mut self, commands: Vec<Command>) -> Vec<Verdict> {
        self.apply(commands.iter().map(Command::encode).collect())
    }

    fn apply(&mut self, commands: Vec<Bytes>) -> Vec<Verdict> {
        self.log.extend(commands.iter().cloned());
        let bookmark = Bookmark(self.log.len().to_string().into());
        let outcomes = self.shard.apply(commands, bookmark).unwrap();
        assert!(outcomes.is_sorted_by_key(|outcome| outcome.position));
        outcomes.into_iter().map(|outcome| outcome.verdict).collect()
    }

    fn do_now(&mut self, body: Body) -> Verdict {
        self.append(vec![command(body)]).remove(0)
    }

    /// A replica that applies the same log in other batches.
    fn again(&self, cuts: &[usize]) -> Region {
        let (mut again, mut cuts, mut left) = (Region::new(), cuts.iter().cycle(), &self.log[..]);
        while !left.is_empty() {
            let (batch, rest) = left.split_at(left.len().min(*cuts.next().unwrap()));
            again.apply(batch.to_vec());
            left = rest;
        }
        again
    }

    fn reopen(&mut self) {
        self.shard.persist().unwrap();
        self.shard.close();
        let nothing = Region::new();
        let Region { folder, log, .. } = std::mem::replace(self, nothing);
        *self = Region { shard: open(folder.path()), folder, log };
    }

    /// The commands with positions after `from`, as a reader of the log counts them; `None`: they are not there.
    fn counted(&self, from: Position) -> Option<Vec<(Position, Bytes)>> {
        let Waymark { bookmark, mut counter } = self.shard.waymark(from).unwrap();
        let read = bookmark.map_or(0, |b| std::str::from_utf8(&b.0).unwrap().parse().unwrap());
        let mut out = VecDeque::new();
        for bytes in &self.log[read..] {
            let (before, there) = (counter.position(), out.len());
            counter.take(bytes.clone(), &mut out).unwrap();
            if counter.position() > before && out.len() == there && from < counter.position() {
                return None;
            }
        }
        assert_eq!(counter.position(), self.shard.position());
        Some(out.into_iter().filter(|(position, _)| *position > from).collect())
    }

    /// Takes over what the other has and this has not, at most `count` commands.
    fn mirror(&mut self, home: &Region, count: usize) -> Verdict {
        let (generation, prev) = (home.generation(), self.shard.position());
        let commands = home.counted(prev).unwrap();
        let commands = commands.into_iter().take(count).map(|(_, command)| command).collect();
        self.do_now(Body::Mirror { generation, prev, commands })
    }

    fn generation(&self) -> Generation {
        self.shard.view().state.counting().unwrap().homes.current()
    }

    fn homes(&self) -> Homes {
        self.shard.view().state.counting().unwrap().homes
    }

    /// Copies the other, but only so many steps of it.
    fn seed(&mut self, home: &Region, attempt: u64, steps: usize) {
        let view = home.shard.view();
        let mut next = Some(SeedCursor::default());
        for _ in 0..steps {
            let Some(cursor) = next else { return };
            let (step, then) = view.seed(&cursor, 200).unwrap();
            assert_eq!(self.do_now(Body::Seed { attempt, step }), Verdict::Applied);
            next = then;
        }
    }
}

fn code(verdict: Verdict) -> String {
    match verdict {
        Verdict::Rejected(rejection) => rejection.code,
        _ => String::new(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64, u64),
    Delete(u64),
    DeleteAll,
    Field(bool),
    /// An intent of a client.
    Intent(u64, u64),
    Mirror(usize),
    /// A mirrored batch comes again, or too early.
    Wrong(bool),
    Reopen,
    Seed(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u64..12, 0u64..3).prop_map(|(id, x)| Step::Put(id, x)),
        3 => (0u64..12).prop_map(Step::Delete),
        1 => Just(Step::DeleteAll),
        1 => any::<bool>().prop_map(Step::Field),
        8 => (0u64..12, 0u64..3).prop_map(|(seq, id)| Step::Intent(seq, id)),
        3 => (1usize..9).prop_map(Step::Mirror),
        1 => any::<bool>().prop_map(Step::Wrong),
        1 => Just(Step::Reopen),
        1 => (1usize..9).prop_map(Step::Seed),
    ]
}

fn put(id: u64, x: u64) -> Body {
    let vectors = [("".to_owned(), Vector::Dense(vec![x as f32; 3]))].into();
    let payload = json!({"pos": x, "id": id}).to_string().into();
    Body::Upsert(vec![PointWrite { id: PointId::Num(id), vectors, payload }])
}

proptest! {
    #![proptest_config(cases(64))]

    /// Whatever a home does, who follows it has the same, and may become the home itself.
    #[test]
    fn a_follower_becomes_what_its_home_is(
        steps in prop::collection::vec(step(), 1..100),
        cuts in prop::collection::vec(1usize..60, 1..6),
    ) {
        let (mut home, mut follower, mut copy) = (Region::new(), Region::new(), Region::new());
        for region in [&mut follower, &mut copy] {
            prop_assert_eq!(region.do_now(Body::Turn(Turn::Follow(Homes::default()))), Verdict::Applied);
        }
        home.do_now(Body::Configure(schema(1, &[])));
        let mut version = 1;
        for (i, step) in steps.into_iter().enumerate() {
            match step {
                Step::Put(id, x) => drop(home.do_now(put(id, x))),
                Step::Delete(id) => drop(home.do_now(Body::Delete(vec![PointId::Num(id)]))),
                Step::DeleteAll => drop(home.do_now(Body::DeleteMatching(Filter::default()))),
                Step::Field(there) => {
                    version += 1;
                    let fields: &[_] = if there { &[("pos", FieldType::Integer)] } else { &[] };
                    home.do_now(Body::Configure(schema(version, fields)));
                }
                Step::Intent(seq, id) => {
                    let request = Some(RequestId { client: "a".into(), seq });
                    let born = home.shard.position();
                    home.append(vec![Command { request, born, ..command(put(id, seq)) }]);
                }
                Step::Mirror(count) => {
                    prop_assert_eq!(follower.mirror(&home, count), Verdict::Applied);
                }
                Step::Wrong(again) => {
                    let position = follower.shard.position().0;
                    let prev = Position(if again { position.saturating_sub(1) } else { position + 1 });
                    let commands = vec![command(put(99, 9)).encode()];
                    let body = Body::Mirror { generation: Generation(1), prev, commands };
                    let twice = prev.0 == position;
                    if !twice {
                        prop_assert_eq!(code(follower.do_now(body)), "out_of_order");
                        prop_assert_eq!(code(follower.do_now(put(98, 9))), "not_home");
                    }
                }
                Step::Reopen => {
                    follower.reopen();
                    copy.reopen();
                }
                Step::Seed(steps) if copy.shard.position() == Position(0) => {
                    copy.seed(&home, i as u64 + 1, steps);
                }
                Step::Seed(_) => drop(copy.mirror(&home, 3)),
            }
        }
        if copy.shard.position() == Position(0) {
            copy.seed(&home, 1_000, usize::MAX);
            prop_assert_eq!(copy.counted(Position(0)), None, "there is nothing before a copy");
        }
        for region in [&mut follower, &mut copy] {
            region.mirror(&home, usize::MAX);
            prop_assert_eq!(region.shard.state_hash().unwrap(), home.shard.state_hash().unwrap());
            prop_assert_eq!(region.shard.scrub().unwrap(), home.shard.scrub().unwrap());
            prop_assert_eq!(region.again(&cuts).shard.state_hash().unwrap(), home.shard.state_hash().unwrap());
            region.reopen();
            prop_assert_eq!(region.shard.state_hash().unwrap(), home.shard.state_hash().unwrap());
        }
        prop_assert_eq!(follower.counted(Position(0)), home.counted(Position(0)));

        // The follower becomes the home, the old home follows, and a third goes on with the new one.
        prop_assert_eq!(home.do_now(Body::Turn(Turn::Seal(Generation(2)))), Verdict::Applied);
        let first = follower.shard.position().next();
        prop_assert_eq!(follower.do_now(Body::Turn(Turn::Promote(Generation(2)))), Verdict::Applied);
        prop_assert_eq!(follower.homes(), Homes(vec![Home { generation: Generation(2), first }]));
        follower.do_now(put(1, 7));
        for region in [&mut home, &mut copy] {
            prop_assert_eq!(code(region.do_now(put(1, 8))), "not_home");
            let turned = region.do_now(Body::Turn(Turn::Follow(follower.homes())));
            prop_assert_eq!(turned, Verdict::Applied);
            prop_assert_eq!(region.mirror(&follower, usize::MAX), Verdict::Applied);
            prop_assert_eq!(region.shard.state_hash().unwrap(), follower.shard.state_hash().unwrap());
        }
        prop_assert_eq!(home.counted(Position(0)), follower.counted(Position(0)));
    }
}

/// A replica that was away during a copy may apply all of it at once, with what the home judged by what the copy brought.
#[test]
fn what_a_copy_remembers_of_an_intent_is_known_in_the_same_batch() {
    let (mut home, mut copy) = (Region::new(), Region::new());
    let intent = |home: &mut Region| {
        let request = Some(RequestId { client: "a".into(), seq: 1 });
        let born = home.shard.position();
        home.append(vec![Command { request, born, ..command(put(1, 1)) }])
    };
    home.do_now(Body::Configure(schema(1, &[])));
    intent(&mut home);
    home.do_now(put(1, 2));
    copy.do_now(Body::Turn(Turn::Follow(Homes::default())));
    copy.seed(&home, 1, usize::MAX);
    intent(&mut home);
    copy.mirror(&home, usize::MAX);
    for cut in [1, usize::MAX] {
        let replica = copy.again(&[cut]);
        assert_eq!(replica.shard.state_hash().unwrap(), home.shard.state_hash().unwrap(), "batches of {cut}");
    }
}

#[test]
fn what_was_deleted_while_a_copy_began_anew_is_gone() {
    let (mut home, mut copy) = (Region::new(), Region::new());
    home.do_now(Body::Configure(schema(1, &[("pos", FieldType::Integer)])));
    for id in 0..20 {
        home.do_now(put(id, id));
    }
    copy.do_now(Body::Turn(Turn::Follow(Homes::default())));
    copy.seed(&home, 1, 4);
    assert!(copy.shard.view().live.count() > 3);
    for id in 0..20 {
        home.do_now(Body::Delete(vec![PointId::Num(id)]));
    }
    copy.seed(&home, 2, usize::MAX);
    assert_eq!(copy.shard.view().live.count(), 0);
    assert_eq!(copy.shard.scrub().unwrap(), home.shard.scrub().unwrap());
    // A late step of the attempt that was given up.
    let late = Body::Seed { attempt: 1, step: Seed::End(SeedEnd::default()) };
    assert_eq!(code(copy.do_now(late)), "not_seeding");
}
