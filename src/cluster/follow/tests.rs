//! A follower among replicas that fail, lag, forget and lie.

use super::*;
use crate::{cluster::placement, model::PointId};
use rand::{Rng, SeedableRng, rngs::StdRng};
use std::sync::{Mutex, atomic::AtomicBool};
use tokio::sync::Notify;

impl Cluster {
    /// The shard of a point.
    pub(crate) fn shard_of_point(id: PointId, shards: u32) -> ShardNumber {
        placement::shard_of(id, shards)
    }
}

/// What a made-up replica does when it is asked.
#[derive(Clone, Debug)]
enum Mood {
    /// Gives commands from `oldest` to the end of the shard, then waits; ends after so many.
    Gives {
        oldest: u64,
        ends_after: usize,
    },
    /// Gives `skips` positions too high ones.
    Skips,
    /// Gives nothing, and does not end.
    Silent,
    Damaged,
    Away,
    Hangs,
}

/// What happens to the replicas before the n-th opening.
type Then = dyn FnMut(usize, &mut Vec<(Mood, bool)>) + Send;

struct Made {
    replicas: Mutex<Vec<(Mood, bool)>>,
    /// Last position there is.
    end: AtomicUsize,
    grown: Arc<Notify>,
    dropped: AtomicBool,
    opened: AtomicUsize,
    /// Called before each opening.
    then: Mutex<Box<Then>>,
}

fn made(moods: &[Mood], end: usize) -> Arc<Made> {
    Arc::new(Made {
        replicas: Mutex::new(moods.iter().map(|mood| (mood.clone(), true)).collect()),
        end: AtomicUsize::new(end),
        grown: Arc::default(),
        dropped: AtomicBool::new(false),
        opened: AtomicUsize::new(0),
        then: Mutex::new(Box::new(|_, _| {})),
    })
}

fn events(position: u64) -> ShardEvents {
    let changes = vec![Change::Delete(PointId::Num(position))];
    ShardEvents { position: Position(position), home: Generation(1), changes, retired: false, command: None }
}

impl Group for Arc<Made> {
    fn fate(&self) -> Fate {
        if self.dropped.load(Ordering::Relaxed) { Fate::Dropped } else { Fate::Lives }
    }

    fn news(&self) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }

    fn candidates(&self) -> Vec<Candidate> {
        let replicas = self.replicas.lock().unwrap();
        let one = |(n, (_, has_past)): (usize, &(Mood, bool))| Candidate {
            replica: ReplicaId(n as u64),
            node: format!("n{n}"),
            has_past: *has_past,
        };
        replicas.iter().enumerate().map(one).collect()
    }

    fn open(
        &self,
        at: Candidate,
        from: Position,
        _: Option<Stand>,
        _: Instant,
    ) -> BoxFuture<'_, std::result::Result<Source, Refusal>> {
        let mood = {
            let mut replicas = self.replicas.lock().unwrap();
            self.then.lock().unwrap()(self.opened.fetch_add(1, Ordering::Relaxed), &mut replicas);
            replicas[at.replica.0 as usize].0.clone()
        };
        let group = self.clone();
        Box::pin(async move {
            match mood {
                Mood::Away => Err(Refusal::Away("is not there".into())),
                Mood::Hangs => std::future::pending().await,
                Mood::Silent => Ok(stream::pending().boxed()),
                Mood::Damaged => Ok(stream::iter([Err(Refusal::Damaged("a flipped bit".into()))]).boxed()),
                Mood::Skips => Ok(stream::iter([Ok(events(from.0 + 1))]).boxed()),
                Mood::Gives { oldest, .. } if oldest > from.0 => {
                    Err(Refusal::Gone { oldest: Position(oldest) })
                }
                Mood::Gives { ends_after, .. } => {
                    let items = stream::unfold(from.0, move |next| {
                        let group = group.clone();
                        async move {
                            while group.end.load(Ordering::Relaxed) < next as usize {
                                group.grown.notified().await;
                            }
                            Some((Ok(events(next)), next + 1))
                        }
                    });
                    Ok(items.take(ends_after).boxed())
                }
            }
        })
    }

    fn stand(&self, _: Candidate, _: Instant) -> BoxFuture<'_, std::result::Result<Stand, Refusal>> {
        let position = Position(self.end.load(Ordering::Relaxed) as u64);
        Box::pin(async move { Ok(Stand { position, home: Generation(1) }) })
    }
}

fn follow(made: &Arc<Made>, from: u64) -> Follow {
    Follow::new(Arc::new(made.clone()), Position(from), None)
}

fn whole() -> Mood {
    Mood::Gives { oldest: 1, ends_after: usize::MAX }
}

fn from(oldest: u64) -> Mood {
    Mood::Gives { oldest, ends_after: usize::MAX }
}

async fn take(follow: &mut Follow, count: u64) -> Vec<u64> {
    let mut positions = Vec::new();
    for _ in 0..count {
        let next = tokio::time::timeout(Duration::from_secs(20), follow.next()).await;
        positions.push(next.expect("the follower hangs").unwrap().position.0);
    }
    positions
}

#[tokio::test]
async fn sources_end_and_lie_and_nothing_is_lost_or_told_twice() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let made = made(&[whole(), whole(), whole()], 2_000);
    *made.then.lock().unwrap() = Box::new(move |_, replicas| {
        for (mood, _) in replicas.iter_mut() {
            *mood = match rng.random_range(0..10) {
                0 => Mood::Away,
                1 => Mood::Skips,
                _ => Mood::Gives { oldest: 1, ends_after: rng.random_range(0..40) },
            };
        }
    });
    let mut follow = follow(&made, 1);
    assert_eq!(take(&mut follow, 2_000).await, (1..=2_000).collect::<Vec<_>>());
    let opened = made.opened.load(Ordering::Relaxed);
    println!("{opened} sources");
    assert!(opened > 60);
}

#[tokio::test]
async fn it_is_over_only_when_no_replica_reaches_back() {
    let expired = |oldest| Err(FollowError::Expired { oldest: Position(oldest) });
    let open = async |made: &Arc<Made>| {
        let deadline = Instant::now() + Duration::from_millis(300);
        let mut follow = follow(made, 5);
        follow.open(Some(deadline)).await.map(|()| follow.source.unwrap().0.0)
    };
    // One that reaches back is found behind those that do not.
    assert_eq!(open(&made(&[from(9), from(7), from(5)], 20)).await, Ok(2));
    assert_eq!(open(&made(&[from(9), from(7), from(8)], 20)).await, expired(7));
    // One that cannot be asked might.
    let unsure = open(&made(&[from(9), Mood::Away, from(8)], 20)).await;
    assert!(matches!(&unsure, Err(FollowError::Away(why)) if why.contains("is not there")), "{unsure:?}");
    // One that never was a member cannot.
    let joining = made(&[from(9), Mood::Away], 20);
    joining.replicas.lock().unwrap()[1].1 = false;
    assert_eq!(open(&joining).await, expired(9));
    // A segment that went away just then is asked about twice.
    let hasty = made(&[from(9)], 20);
    *hasty.then.lock().unwrap() = Box::new(|opened, replicas| {
        if opened == 1 {
            replicas[0].0 = from(4);
        }
    });
    assert_eq!(open(&hasty).await, Ok(0));
    assert!(matches!(open(&made(&[], 20)).await, Err(FollowError::Away(_))));
}

#[tokio::test]
async fn one_that_hangs_does_not_keep_the_others_from_it() {
    let made = made(&[Mood::Hangs, whole()], 5);
    let begun = Instant::now();
    assert_eq!(take(&mut follow(&made, 1), 5).await, [1, 2, 3, 4, 5]);
    assert!(begun.elapsed() < 3 * ASK_WITHIN, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_silent_source_is_left_once_the_shard_has_more() {
    let made = made(&[Mood::Silent, whole()], 0);
    let mut follow = follow(&made, 1);
    // Nothing is there: it is as good as any.
    assert!(tokio::time::timeout(4 * LOOK_EVERY, follow.next()).await.is_err());
    assert_eq!(made.opened.load(Ordering::Relaxed), 1);
    made.end.store(3, Ordering::Relaxed);
    assert_eq!(take(&mut follow, 3).await, [1, 2, 3]);
}

#[tokio::test]
async fn damage_is_told_when_nobody_else_has_it() {
    let made = made(&[Mood::Damaged, from(9)], 20);
    let error = follow(&made, 5).next().await.unwrap_err();
    assert!(matches!(&error, FollowError::Damaged(why) if why.contains("a flipped bit")), "{error:?}");
    made.replicas.lock().unwrap().push((whole(), true));
    assert_eq!(take(&mut follow(&made, 5), 10).await, (5..15).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_dropped_shard_says_what_it_has_and_ends() {
    let made = made(&[whole()], 3);
    let mut follow = follow(&made, 1);
    assert_eq!(take(&mut follow, 1).await, [1]);
    made.dropped.store(true, Ordering::Relaxed);
    assert_eq!(take(&mut follow, 2).await, [2, 3]);
    assert_eq!(follow.next().await, Err(FollowError::Dropped));
    assert_eq!(self::follow(&made, 1).next().await, Err(FollowError::Dropped));
}
