//! Planted bugs: one at a time, chosen by `ANNAL_MUTANT`, so that the tests can show that they would find it.
//!
//! Invariants: without the feature `mutants` none is there, and a site costs nothing; with it and without the variable
//! the program is as it should be.
//! Not here: the three of the log, which has a file of its own for them (`wal/src/mutant.rs`).

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "what each breaks is told once, in `MUTANTS`")]
pub enum Mutant {
    StaleRead,
    LeaseReadSkew,
    SkipFsync,
    AckBeforeQuorum,
    VoteNotDurable,
    ApplyIndexNonatomic,
    DropTailEntry,
    DupTailOnReconnect,
    DedupForgetOnSnapshot,
    ResurrectDeleteOnSnapshot,
    PartialBatch,
    IndexLagNoWait,
    IndexDropOnSwap,
    PurgeOtherGroup,
    InfoAsFail,
    IgnoreEio,
    MembershipStaleOnSnapshot,
    FollowerRegionSkip,
    WrongShardAccept,
    NondetApply,
}

/// Where a planted bug can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shows {
    /// In the simulation and in real runs.
    Everywhere,
    /// In real runs alone, and why.
    RealRuns(&'static str),
    /// In the simulation of regions.
    Regions,
}

/// All of them: name, what it breaks, where that shows.
pub const MUTANTS: &[(Mutant, &str, &str, Shows)] = {
    use Mutant::*;
    use Shows::*;
    &[
        (StaleRead, "stale_read", "reads show what a replica happens to have applied", Everywhere),
        (LeaseReadSkew, "lease_read_skew", "a leader answers reads without asking its quorum", Everywhere),
        (SkipFsync, "skip_fsync", "the log acknowledges before it is on the disk", Everywhere),
        (
            AckBeforeQuorum,
            "ack_before_quorum",
            "who cannot be reached counts as having the entries",
            Everywhere,
        ),
        (VoteNotDurable, "vote_not_durable", "votes are not written down", Everywhere),
        (ApplyIndexNonatomic, "apply_index_nonatomic", "bookmark and effects are two batches", Everywhere),
        (DropTailEntry, "drop_tail_entry", "the change feed passes over commands", Everywhere),
        (DupTailOnReconnect, "dup_tail_on_reconnect", "a resumed change feed repeats a command", Everywhere),
        (DedupForgetOnSnapshot, "dedup_forget_on_snapshot", "a snapshot forgets intents", Everywhere),
        (
            ResurrectDeleteOnSnapshot,
            "resurrect_delete_on_snapshot",
            "a snapshot brings deleted points back",
            Everywhere,
        ),
        (PartialBatch, "partial_batch", "a request is carried out in part", Everywhere),
        (IndexLagNoWait, "index_lag_no_wait", "searches do not wait for what was acknowledged", Everywhere),
        (
            IndexDropOnSwap,
            "index_drop_on_swap",
            "vectors vanish when a delta becomes a graph",
            RealRuns("the simulation builds no graphs"),
        ),
        (PurgeOtherGroup, "purge_other_group", "a purge takes entries of another group along", Everywhere),
        (InfoAsFail, "info_as_fail", "a timeout is said to have had no effect", Everywhere),
        (IgnoreEio, "ignore_eio", "the log takes a failed write for a good one", Everywhere),
        (
            MembershipStaleOnSnapshot,
            "membership_stale_on_snapshot",
            "a snapshot keeps the old membership",
            Everywhere,
        ),
        (FollowerRegionSkip, "follower_region_skip", "a follower region passes over commands", Regions),
        (WrongShardAccept, "wrong_shard_accept", "a shard takes points of another", Everywhere),
        (NondetApply, "nondet_apply", "what a command does depends on the replica", Everywhere),
    ]
};

/// Whether this bug is planted in this process.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub(crate) const fn is(_: Mutant) -> bool {
    false
}

/// Whether this bug is planted in this process.
#[cfg(feature = "mutants")]
pub(crate) fn is(mutant: Mutant) -> bool {
    planted() == Some(mutant)
}

/// The bug of this process.
#[cfg(feature = "mutants")]
fn planted() -> Option<Mutant> {
    static PLANTED: std::sync::OnceLock<Option<Mutant>> = std::sync::OnceLock::new();
    *PLANTED.get_or_init(|| {
        let name = std::env::var("ANNAL_MUTANT").ok().filter(|name| !name.is_empty())?;
        let known = MUTANTS.iter().find(|(_, known, ..)| *known == name);
        Some(known.unwrap_or_else(|| panic!("ANNAL_MUTANT={name}: there is no such mutant")).0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_say_what_the_mutant_is() {
        for (at, (mutant, name, ..)) in MUTANTS.iter().enumerate() {
            assert_eq!(MUTANTS.iter().filter(|(_, other, ..)| other == name).count(), 1, "{name}");
            let said = format!("{mutant:?}").to_lowercase();
            assert_eq!(name.replace('_', ""), said, "the {at}th");
        }
        assert_eq!(MUTANTS.len(), 20);
        assert!(!is(Mutant::StaleRead));
    }
}
