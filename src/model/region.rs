//! A shard's place among regions: which homes its positions count in, and which commands of its log count.
//!
//! ```text
//!   generation   1 1 1 1 1 1 | 2 2 2 2 | 4 4 …         the homes: [(2, first 7), (4, first 11)]
//!   position     1 2 3 4 5 6   7 8 9 10  11 12
//! ```
//!
//! A home gives positions; a shard that follows takes them over from its home, command by command. So not every
//! command of a log counts: a [`Counting`] says which do, and both who applies the log and who tails it ask it.
//!
//! Invariants: generations rise, and none begins before the one before it; a shard that follows counts exactly the
//! commands that its home counted, at the same positions; what comes to a shard that is not a home counts for nothing.
//! Not here: who may be a home (the catalog), carrying commands from region to region (`region/`).

use super::{Body, Generation, Position};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The first position that counts in a home.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Home {
    /// The home.
    pub generation: Generation,
    /// Its first position, whether or not there is a command yet.
    pub first: Position,
}

/// The homes that a shard has had after the first one, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Homes(pub Vec<Home>);

impl Homes {
    /// The home that gives positions now.
    pub fn current(&self) -> Generation {
        self.0.last().map_or(Generation(1), |home| home.generation)
    }

    /// The home that gave a position, or would give it now.
    pub fn of(&self, position: Position) -> Generation {
        let of = self.0.iter().rev().find(|home| home.first <= position);
        of.map_or(Generation(1), |home| home.generation)
    }

    /// The first position that a home after `generation` gave; what `generation` gave from there on is lost.
    pub fn end_of(&self, generation: Generation) -> Option<Position> {
        let later = self.0.iter().filter(|home| home.generation > generation);
        later.map(|home| home.first).min()
    }

    /// Whether what `generation` gave up to and with `position` is part of this history.
    pub fn keeps(&self, generation: Generation, position: Position) -> bool {
        self.end_of(generation).is_none_or(|end| position < end)
    }

    /// Whether the later homes of `other` follow on this history of `position` positions.
    fn leads_to(&self, other: &Homes, position: Position) -> bool {
        other.0.starts_with(&self.0) && other.keeps(self.current(), position)
    }
}

/// What a shard does with commands that come to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Duty {
    /// It gives them positions.
    #[default]
    Home,
    /// It gives none any more, since this home is to come after it.
    Sealed(Generation),
    /// It takes them from its home.
    Following,
}

/// A change of a shard's duty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Turn {
    /// It follows the last of these homes from now on.
    Follow(Homes),
    /// It stops giving positions: a home of this generation is to come.
    Seal(Generation),
    /// That home did not come.
    Unseal(Generation),
    /// It is the home from now on.
    Promote(Generation),
}

/// What a log counts, and how far it has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counting {
    /// The last position.
    pub position: Position,
    /// The homes it counts in.
    pub homes: Homes,
    /// What is done with what comes.
    pub duty: Duty,
    /// The attempt by which a copy is being made of the home; 0 is none.
    pub seeding: u64,
}

/// How a command counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Counted<'a> {
    /// It has the next position.
    Once,
    /// These have the next positions.
    Each(&'a [Bytes]),
    /// It has none, and took effect.
    Not,
    /// It has none, and had no effect.
    Refused {
        /// The code of the rejection.
        code: &'static str,
        /// Why.
        why: String,
    },
}

/// Rejection: the shard is not the home of its collection.
pub const NOT_HOME: &str = "not_home";
/// Rejection: a mirrored command is not the next one, or of another home.
pub const OUT_OF_ORDER: &str = "out_of_order";
/// Rejection: what the shard has is not the beginning of what its home has.
pub const DIVERGED: &str = "diverged";
/// Rejection: a newer home is known already.
pub const OLD_HOME: &str = "old_home";
/// Rejection: no copy is being made by this attempt.
pub const NOT_SEEDING: &str = "not_seeding";

impl Counting {
    /// Whether it is what every shard begins as.
    pub fn is_first(&self) -> bool {
        (&self.homes, self.duty, self.seeding) == (&Homes::default(), Duty::Home, 0)
    }

    /// Counts a command.
    pub fn take<'a>(&mut self, body: &'a Body) -> Counted<'a> {
        match body {
            Body::Mirror { generation, prev, commands } => self.mirror(*generation, *prev, commands),
            Body::Turn(turn) => self.turn(turn),
            Body::Seed { attempt, step } => self.seed(*attempt, step),
            _ if self.duty == Duty::Home => {
                self.position = self.position.next();
                Counted::Once
            }
            // The copy here is dropped, not the collection: that would come from the home.
            Body::Retire => Counted::Not,
            _ => refused(
                NOT_HOME,
                match self.duty {
                    Duty::Sealed(next) => format!("home {next} is to come after {}", self.homes.current()),
                    _ => format!("the shard follows home {}", self.homes.current()),
                },
            ),
        }
    }

    fn mirror<'a>(&mut self, generation: Generation, prev: Position, commands: &'a [Bytes]) -> Counted<'a> {
        let stands = (self.duty, self.homes.current(), self.position, self.seeding);
        if stands != (Duty::Following, generation, prev, 0) {
            let why = format!("after position {prev} of home {generation}, this is {self:?}");
            return refused(OUT_OF_ORDER, why);
        }
        self.position.0 += commands.len() as u64;
        Counted::Each(commands)
    }

    fn turn(&mut self, turn: &Turn) -> Counted<'static> {
        let current = self.homes.current();
        match turn {
            Turn::Follow(homes) if self.duty == Duty::Following && *homes == self.homes => Counted::Not,
            Turn::Follow(homes) => {
                let new = self.position == Position(0) && self.seeding == 0;
                if homes.current() < current || (!new && homes.current() == current) {
                    return refused(OLD_HOME, format!("home {current} is known here"));
                }
                if !new && (!self.homes.leads_to(homes, self.position) || self.seeding != 0) {
                    let why =
                        format!("at {} of home {current}, which {homes:?} do not follow on", self.position);
                    return refused(DIVERGED, why);
                }
                (self.homes, self.duty) = (homes.clone(), Duty::Following);
                Counted::Not
            }
            Turn::Seal(next) => match self.duty {
                _ if *next <= current => refused(OLD_HOME, format!("home {current} is known here")),
                Duty::Following => refused(NOT_HOME, "a shard that follows is not sealed".to_owned()),
                Duty::Home => {
                    self.duty = Duty::Sealed(*next);
                    Counted::Not
                }
                Duty::Sealed(before) => {
                    self.duty = Duty::Sealed(before.max(*next));
                    Counted::Not
                }
            },
            Turn::Unseal(next) => match self.duty {
                Duty::Sealed(before) if before == *next => {
                    self.duty = Duty::Home;
                    Counted::Not
                }
                Duty::Home => Counted::Not,
                _ => refused(OLD_HOME, format!("it is not sealed for home {next}: {:?}", self.duty)),
            },
            Turn::Promote(next) if *next == current && self.duty == Duty::Home => Counted::Not,
            Turn::Promote(next) if *next <= current => {
                refused(OLD_HOME, format!("home {current} is known here"))
            }
            Turn::Promote(_) if self.seeding != 0 => {
                refused(NOT_HOME, "the copy of the home is not whole".to_owned())
            }
            Turn::Promote(next) => {
                self.homes.0.push(Home { generation: *next, first: self.position.next() });
                self.duty = Duty::Home;
                Counted::Not
            }
        }
    }

    fn seed(&mut self, attempt: u64, step: &Seed) -> Counted<'static> {
        if self.duty != Duty::Following || self.position != Position(0) {
            return refused(
                NOT_SEEDING,
                format!("a copy is made of a home before its first command: {self:?}"),
            );
        }
        match step {
            Seed::Begin { .. } => self.seeding = attempt,
            _ if self.seeding != attempt || attempt == 0 => {
                return refused(NOT_SEEDING, format!("attempt {attempt} is not {}", self.seeding));
            }
            Seed::Points { .. } | Seed::Intents { .. } => {}
            Seed::End(end) => (self.seeding, self.position) = (0, end.position),
        }
        Counted::Not
    }
}

fn refused(code: &'static str, why: String) -> Counted<'static> {
    Counted::Refused { code, why }
}

/// A step of a copy of a home's shard: what is within a range of keys is exactly what it brings.
#[derive(Clone, Debug, PartialEq)]
pub enum Seed {
    /// A copy begins; what an earlier attempt brought is replaced range by range.
    Begin {
        /// The home's schema at the copy's position.
        schema: super::Schema,
    },
    /// All points of a range of ids.
    Points {
        /// Which ids.
        range: KeyRange,
        /// Each with the position that last wrote it.
        points: Vec<(super::command::PointWrite, Position)>,
    },
    /// All rows of the memory of intents within a range of keys.
    Intents {
        /// Which keys.
        range: KeyRange,
        /// Keys and values.
        rows: Vec<(Bytes, Bytes)>,
    },
    /// The copy is whole.
    End(SeedEnd),
}

/// Keys after one (none: from the first) up to and with another (none: to the last).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRange {
    /// Exclusive.
    pub after: Option<Vec<u8>>,
    /// Inclusive.
    pub upto: Option<Vec<u8>>,
}

/// What a whole copy is held against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeedEnd {
    /// The position it is a copy at.
    pub position: Position,
    /// Intents before this position are evicted.
    pub dedup_oldest: Position,
    /// The client whose floor was looked at last.
    pub floor_cursor: String,
    /// The state hash of the home's shard.
    pub hash: u128,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn homes(list: &[(u64, u64)]) -> Homes {
        let home = |(generation, first): &(u64, u64)| Home {
            generation: Generation(*generation),
            first: Position(*first),
        };
        Homes(list.iter().map(home).collect())
    }

    fn mirror(generation: u64, prev: u64, count: usize) -> Body {
        let commands = vec![Bytes::from_static(b"c"); count];
        Body::Mirror { generation: Generation(generation), prev: Position(prev), commands }
    }

    fn code(counted: Counted<'_>) -> &'static str {
        match counted {
            Counted::Refused { code, .. } => code,
            Counted::Not => "not",
            Counted::Once => "once",
            Counted::Each(_) => "each",
        }
    }

    #[test]
    fn a_position_counts_in_the_home_that_gave_it() {
        let homes = homes(&[(2, 7), (4, 11)]);
        let of = [1, 6, 7, 10, 11, 99].map(|position| homes.of(Position(position)).0);
        assert_eq!(of, [1, 1, 2, 2, 4, 4]);
        assert_eq!(homes.current(), Generation(4));
        let keeps = |generation, position| homes.keeps(Generation(generation), Position(position));
        assert!(keeps(1, 6) && !keeps(1, 7) && keeps(2, 10) && !keeps(2, 11) && keeps(4, 1 << 40));
        // A home that never gave a position here.
        assert!(keeps(3, 10) && !keeps(3, 11));
        // Two homes that begin at one position: the first of them gave nothing.
        let empty = self::homes(&[(2, 7), (3, 7)]);
        assert!(empty.keeps(Generation(1), Position(6)) && !empty.keeps(Generation(2), Position(7)));
        assert_eq!(empty.of(Position(7)), Generation(3));
    }

    #[test]
    fn only_a_home_gives_positions() {
        let mut counting = Counting::default();
        let write = Body::Delete(vec![]);
        let turn = |turn| Body::Turn(turn);
        assert_eq!(code(counting.take(&write)), "once");
        assert_eq!(code(counting.take(&turn(Turn::Seal(Generation(2))))), "not");
        assert_eq!(code(counting.take(&write)), NOT_HOME);
        assert_eq!(code(counting.take(&turn(Turn::Unseal(Generation(3))))), OLD_HOME);
        assert_eq!(code(counting.take(&turn(Turn::Unseal(Generation(2))))), "not");
        assert_eq!(code(counting.take(&write)), "once");
        assert_eq!(counting.position, Position(2));
        assert_eq!(code(counting.take(&mirror(1, 2, 1))), OUT_OF_ORDER);
    }

    #[test]
    fn a_follower_takes_the_next_commands_of_its_home_and_no_others() {
        let mut counting = Counting::default();
        assert_eq!(code(counting.take(&Body::Turn(Turn::Follow(homes(&[]))))), "not");
        assert_eq!(code(counting.take(&mirror(1, 0, 3))), "each");
        for (generation, prev) in [(1, 0), (1, 4), (2, 3)] {
            assert_eq!(code(counting.take(&mirror(generation, prev, 1))), OUT_OF_ORDER);
        }
        assert_eq!(code(counting.take(&Body::Delete(vec![]))), NOT_HOME);
        assert_eq!(code(counting.take(&Body::Retire)), "not");
        assert_eq!(code(counting.take(&Body::Turn(Turn::Promote(Generation(2))))), "not");
        assert_eq!(code(counting.take(&Body::Turn(Turn::Promote(Generation(2))))), "not");
        // What was under way when it became the home comes too late.
        assert_eq!(code(counting.take(&mirror(1, 3, 1))), OUT_OF_ORDER);
        assert_eq!(code(counting.take(&Body::Delete(vec![]))), "once");
        assert_eq!((counting.position, &counting.homes), (Position(4), &homes(&[(2, 4)])));
    }

    #[test]
    fn an_old_home_follows_only_if_it_has_nothing_of_its_own() {
        let old = |position| {
            let duty = Duty::Sealed(Generation(2));
            Counting { position: Position(position), duty, ..Counting::default() }
        };
        let follow = Body::Turn(Turn::Follow(homes(&[(2, 4)])));
        assert_eq!(code(old(3).take(&follow)), "not");
        assert_eq!(code(old(4).take(&follow)), DIVERGED);
        assert_eq!(code(old(3).take(&Body::Turn(Turn::Follow(homes(&[]))))), OLD_HOME);
        let mut other = old(3);
        other.homes = homes(&[(2, 2)]);
        assert_eq!(code(other.take(&Body::Turn(Turn::Follow(homes(&[(3, 9)]))))), DIVERGED);
    }

    #[test]
    fn a_copy_begins_again_and_ends_once() {
        let seed = |attempt, step| Body::Seed { attempt, step };
        let begin = |attempt| seed(attempt, Seed::Begin { schema: Default::default() });
        let end = |attempt| seed(attempt, Seed::End(SeedEnd { position: Position(9), ..SeedEnd::default() }));
        let mut counting = Counting::default();
        assert_eq!(code(counting.take(&begin(7))), NOT_SEEDING);
        counting.take(&Body::Turn(Turn::Follow(homes(&[(2, 5)]))));
        assert_eq!(code(counting.take(&end(7))), NOT_SEEDING);
        assert_eq!(code(counting.take(&begin(7))), "not");
        assert_eq!(code(counting.take(&mirror(2, 0, 1))), OUT_OF_ORDER);
        assert_eq!(code(counting.take(&Body::Turn(Turn::Promote(Generation(3))))), NOT_HOME);
        assert_eq!(code(counting.take(&begin(8))), "not");
        assert_eq!(code(counting.take(&end(7))), NOT_SEEDING);
        assert_eq!(code(counting.take(&end(8))), "not");
        assert_eq!(code(counting.take(&mirror(2, 9, 1))), "each");
        assert_eq!(code(counting.take(&begin(9))), NOT_SEEDING);
    }
}
