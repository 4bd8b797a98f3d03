//! Changes of the catalog, and their bytes in group 0's log.

use super::{
    intents::Intent,
    record::NodeRecord,
    region::{Follow, RegionChange},
};
use crate::{
    cluster::{AliasAction, CollectionChange, CollectionSpec, NodeName},
    model::{
        CollectionId, FieldPath, FieldType, ReplicaId, RequestId,
        command::{self, DecodeError},
    },
};
use bytes::Bytes;
use prost::Message;
use serde::{Deserialize, Serialize};

/// A change of the catalog. Those that a node says of itself or of a group it leads may come twice or late: then
/// they change nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(in crate::cluster) enum CatalogCommand {
    /// A node comes, comes back with an empty data folder, or has moved to other addresses. The first one founds.
    Join {
        /// The node.
        node: NodeRecord,
    },
    /// A node's replicas are to go elsewhere, or may stay.
    Drain {
        /// The node.
        node: NodeName,
        /// Whether they are to go.
        drain: bool,
    },
    /// A node is to go.
    Remove {
        /// The node.
        node: NodeName,
    },
    /// A node that holds nothing any more is forgotten.
    Forget {
        /// The node.
        node: NodeName,
    },
    /// Creates a collection.
    Create {
        /// Its name.
        name: String,
        /// What its creator said.
        spec: CollectionSpec,
        /// For each shard, the nodes of its replicas.
        placement: Vec<Vec<NodeName>>,
    },
    /// Changes a collection.
    Update {
        /// Its name.
        name: String,
        /// What changes.
        change: CollectionChange,
        /// Which collection, at which revision, it was made from.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from: Option<(CollectionId, u64)>,
    },
    /// Drops a collection: its name is free at once, its shards are retired.
    Drop {
        /// Its name.
        name: String,
    },
    /// Every shard of a dropped collection is retired.
    Dropped {
        /// The number it is dropped under: its id, unless that is still another's.
        id: CollectionId,
    },
    /// A collection of another region is followed from the beginning.
    Follow(Follow),
    /// A collection's part in this region changes.
    Region {
        /// Its id.
        id: CollectionId,
        /// What changes.
        change: RegionChange,
    },
    /// Indexes a payload field.
    CreateField {
        /// The collection's name.
        name: String,
        /// The field.
        path: FieldPath,
        /// How.
        of: FieldType,
    },
    /// Drops the index of a payload field.
    DropField {
        /// The collection's name.
        name: String,
        /// The field.
        path: FieldPath,
    },
    /// Changes aliases, all or none.
    Alias {
        /// In this order.
        actions: Vec<AliasAction>,
    },
    /// A group gets one more replica, perhaps in the place of another.
    Plan {
        /// The group.
        group: u32,
        /// The node of the new replica; none only takes `instead_of` out.
        to: Option<NodeName>,
        /// The replica that goes once the new one is a member.
        instead_of: Option<ReplicaId>,
    },
    /// A node made the log group of a replica of its own.
    Opened {
        /// The replica.
        replica: ReplicaId,
    },
    /// A group is founded by those of its replicas that are there.
    Found {
        /// The group.
        group: u32,
    },
    /// A group's leader made a replica a member.
    Joined {
        /// The replica.
        replica: ReplicaId,
        /// Whether it votes.
        voter: bool,
    },
    /// A group's leader took a replica out.
    Left {
        /// The replica.
        replica: ReplicaId,
    },
    /// A node no longer has what a replica of its own must not forget.
    Lost {
        /// The replica.
        replica: ReplicaId,
    },
}

const KIND: u16 = 100;

/// The body of every catalog command: `docs/FORMATS.md`.
#[derive(Clone, PartialEq, prost::Message)]
struct Wire {
    #[prost(bytes = "vec", tag = "1")]
    json: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    intent: Option<WireIntent>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WireIntent {
    #[prost(string, tag = "1")]
    client: String,
    #[prost(uint64, tag = "2")]
    seq: u64,
    #[prost(fixed64, tag = "3")]
    body_hash: u64,
}

impl From<Intent> for WireIntent {
    fn from(Intent { request: RequestId { client, seq }, body_hash }: Intent) -> Self {
        WireIntent { client, seq, body_hash }
    }
}

impl From<WireIntent> for Intent {
    fn from(WireIntent { client, seq, body_hash }: WireIntent) -> Self {
        Intent { request: RequestId { client, seq }, body_hash }
    }
}

impl CatalogCommand {
    /// Whether a second copy changes nothing even without a name, so that one of unknown effect may be sent again.
    pub(in crate::cluster) fn is_safe_twice(&self) -> bool {
        use CatalogCommand::{Alias, Create, CreateField, Drop, DropField, Follow, Plan, Update};
        !matches!(
            self,
            Create { .. }
                | Update { .. }
                | Drop { .. }
                | CreateField { .. }
                | DropField { .. }
                | Alias { .. }
                | Plan { .. }
                | Follow(_)
        )
    }

    /// The intent that the change carries out, if it is of a kind that users ask for.
    pub(in crate::cluster) fn named(&self, request: RequestId) -> Option<Intent> {
        use CatalogCommand::{Alias, Create, CreateField, Drop, DropField, Update};
        // Where replicas go, and what a change means for the collection as it stands, may be otherwise the next time.
        let asked = match self.clone() {
            Create { name, spec, .. } => Create { name, spec, placement: Vec::new() },
            Update { name, .. } => Update { name, change: CollectionChange::default(), from: None },
            asked @ (Drop { .. } | CreateField { .. } | DropField { .. } | Alias { .. }) => asked,
            _ => return None,
        };
        Some(Intent { request, body_hash: xxhash_rust::xxh3::xxh3_64(&asked.to_json()) })
    }

    fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("string keys, finite numbers")
    }

    /// The bytes of the command, and of the intent it carries out.
    pub(in crate::cluster) fn encode(&self, intent: Option<Intent>) -> Bytes {
        command::envelope(KIND, &Wire { json: self.to_json(), intent: intent.map(WireIntent::from) })
    }

    /// Reads bytes written by [`CatalogCommand::encode`].
    pub(in crate::cluster) fn decode(bytes: &Bytes) -> Result<(Self, Option<Intent>), DecodeError> {
        let (kind, body) = command::open(bytes)?;
        if kind != KIND {
            return Err(DecodeError::Unknown { format: bytes[0], kind });
        }
        let Wire { json, intent } = Wire::decode(body)?;
        let command = serde_json::from_slice(&json).map_err(|e| DecodeError::Damaged(e.to_string()))?;
        Ok((command, intent.map(Intent::from)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt::Write;

    #[test]
    fn the_bytes_are_golden_and_read_back() {
        let drop = CatalogCommand::Drop { name: "c".to_owned() };
        let intent = drop.named(RequestId { client: "me".to_owned(), seq: 7 });
        let mut text = String::new();
        for (name, intent) in [("drop, of nobody", None), ("drop, an intent", intent)] {
            let bytes = drop.encode(intent.clone());
            assert_eq!(CatalogCommand::decode(&bytes).expect("its own bytes"), (drop.clone(), intent));
            let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            writeln!(text, "{name}: {hex}").expect("a String grows");
        }
        let golden =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/catalog-commands.txt");
        if std::env::var_os("REWRITE").is_some() {
            std::fs::write(&golden, &text).expect("rewritten");
        }
        assert_eq!(std::fs::read_to_string(&golden).expect("the golden file"), text);
    }
}
