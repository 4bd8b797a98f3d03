//! Changes of the catalog that are made once, however often they are asked for.
//!
//! Invariants: what became of a change is remembered, whatever it was, unless the change was made from an older catalog:
//! then it is made anew under its name; the oldest are forgotten first, on every replica at the same position.

use super::{
    command::CatalogCommand,
    state::{CatalogState, STALE},
};
use crate::{
    machine::{Outcome, Rejection, Verdict},
    model::{Position, RequestId},
};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How many outcomes are remembered.
const REMEMBERED: usize = 512;

/// A change that somebody may ask for again.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::cluster) struct Intent {
    /// Its name.
    pub request: RequestId,
    /// Tells it from others that come under its name by mistake.
    pub body_hash: u64,
}

/// Outcomes, in order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Intents(VecDeque<Known>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    client: String,
    seq: u64,
    body_hash: u64,
    position: Position,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<Rejection>,
}

impl CatalogState {
    /// Applies the change at a position, unless a copy of it came before.
    pub(super) fn make(
        &mut self,
        command: CatalogCommand,
        intent: Option<Intent>,
        position: Position,
    ) -> Verdict {
        if let Some(told) = intent.as_ref().and_then(|intent| self.intents.judge(intent)) {
            return told;
        }
        let rejected = self.apply(command).err();
        if let Some(intent) = intent
            && rejected.as_ref().is_none_or(|rejected| rejected.code != STALE)
        {
            self.intents.remember(intent, position, rejected.clone());
        }
        rejected.map_or(Verdict::Applied, Verdict::Rejected)
    }
}

impl Intents {
    /// What a later copy is told; `None` if this is the first.
    fn judge(&self, Intent { request, body_hash }: &Intent) -> Option<Verdict> {
        let known = self.0.iter().find(|known| known.client == request.client && known.seq == request.seq)?;
        if known.body_hash != *body_hash {
            let message = format!("request {request} wanted something else of the catalog before");
            return Some(Verdict::Rejected(Rejection::new("other_body", message)));
        }
        let verdict = known.rejected.clone().map_or(Verdict::Applied, Verdict::Rejected);
        Some(Verdict::Duplicate { first: Box::new(Outcome { position: known.position, verdict }) })
    }

    fn remember(&mut self, intent: Intent, position: Position, rejected: Option<Rejection>) {
        let Intent { request: RequestId { client, seq }, body_hash } = intent;
        self.0.push_back(Known { client, seq, body_hash, position, rejected });
        if self.0.len() > REMEMBERED {
            self.0.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::AliasAction;

    fn aliases(actions: Vec<AliasAction>) -> CatalogCommand {
        CatalogCommand::Alias { actions }
    }

    fn delete(alias: &str) -> CatalogCommand {
        aliases(vec![AliasAction::Delete { alias: alias.to_owned() }])
    }

    fn intent(seq: u64, command: &CatalogCommand) -> Option<Intent> {
        command.named(RequestId { client: "me".to_owned(), seq })
    }

    #[test]
    fn a_copy_is_told_what_became_of_the_first() {
        let mut state = CatalogState::default();
        let rename = aliases(vec![AliasAction::Rename { from: "a".into(), to: "b".into() }]);
        let refused = state.make(rename.clone(), intent(9, &rename), Position(1));
        assert!(matches!(refused, Verdict::Rejected(_)), "{refused:?}");
        state.aliases.insert("a".into(), "c".into());
        assert_eq!(state.make(rename.clone(), intent(1, &rename), Position(2)), Verdict::Applied);
        let made = state.clone();
        let mut copy = |seq| match state.make(rename.clone(), intent(seq, &rename), Position(3)) {
            Verdict::Duplicate { first } => *first,
            other => panic!("it came before: {other:?}"),
        };
        assert_eq!(copy(1), Outcome { position: Position(2), verdict: Verdict::Applied });
        assert_eq!(copy(9), Outcome { position: Position(1), verdict: refused });
        let other = delete("b");
        let Verdict::Rejected(told) = state.make(other.clone(), intent(1, &other), Position(4)) else {
            panic!("it is another change");
        };
        assert_eq!(told.code, "other_body");
        assert_eq!(state, made);
        assert_eq!(state.make(other.clone(), intent(2, &other), Position(5)), Verdict::Applied);
    }

    #[test]
    fn the_oldest_are_forgotten_first() {
        let mut state = CatalogState::default();
        let change = delete("a");
        for seq in 0..=REMEMBERED as u64 {
            assert_eq!(state.make(change.clone(), intent(seq, &change), Position(seq)), Verdict::Applied);
        }
        let is_known = |seq| state.intents.judge(&intent(seq, &change).expect("a client's")).is_some();
        assert_eq!((is_known(0), is_known(1), is_known(REMEMBERED as u64)), (false, true, true));
    }
}
