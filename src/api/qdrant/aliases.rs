//! More names of collections. Every route that names a collection takes an alias as well.

use super::collections::check_name;
use crate::{
    api::{
        body::{At, Json},
        envelope::Reply,
        error::Result,
        wishes::Wishes,
    },
    cluster::{AliasAction, Cluster, ClusterError, ReadOptions},
};
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// `POST /collections/aliases`: all changes or none.
pub(super) async fn change(
    State(cluster): State<Cluster>,
    wishes: Wishes,
    Json(body): Json<ChangeBody>,
) -> Result<Reply> {
    cluster.change_aliases(body.into_model()?, &wishes.write()).await?;
    Ok(Reply::new(&true))
}

/// `GET /aliases`
pub(super) async fn list(State(cluster): State<Cluster>, wishes: Wishes) -> Result<Reply> {
    Ok(described(cluster.aliases(&wishes.read()).await?.iter()))
}

/// `GET /collections/{collection}/aliases`
pub(super) async fn of_collection(
    State(cluster): State<Cluster>,
    At(collection): At<String>,
    wishes: Wishes,
) -> Result<Reply> {
    let options = wishes.read();
    let (name, aliases) = resolved(&cluster, collection, &options).await?;
    Ok(described(aliases.iter().filter(|(_, of)| **of == name)))
}

/// The collection's own name, and all aliases.
///
/// Errors: there is no collection of this name or alias.
pub(super) async fn resolved(
    cluster: &Cluster,
    collection: String,
    options: &ReadOptions,
) -> Result<(String, BTreeMap<String, String>)> {
    let aliases = cluster.aliases(options).await?;
    match aliases.get(&collection) {
        Some(name) => Ok((name.clone(), aliases)),
        None if cluster.collections(options).await?.contains(&collection) => Ok((collection, aliases)),
        None => Err(ClusterError::NoCollection(collection).into()),
    }
}

fn described<'a>(aliases: impl Iterator<Item = (&'a String, &'a String)>) -> Reply {
    let row = |(alias, of)| json!({"alias_name": alias, "collection_name": of});
    Reply::new(&json!({"aliases": aliases.map(row).collect::<Vec<Value>>()}))
}

/// What is to change, in this order.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeBody {
    actions: Vec<Action>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
#[expect(clippy::enum_variant_names, reason = "Qdrant's names of the actions")]
enum Action {
    CreateAlias { collection_name: String, alias_name: String },
    DeleteAlias { alias_name: String },
    RenameAlias { old_alias_name: String, new_alias_name: String },
}

impl ChangeBody {
    fn into_model(self) -> Result<Vec<AliasAction>> {
        super::points::numbered("actions", self.actions, |action| match action {
            Action::CreateAlias { collection_name, alias_name } => {
                check_name("create_alias.alias_name", &alias_name)?;
                Ok(AliasAction::Create { alias: alias_name, collection: collection_name })
            }
            Action::DeleteAlias { alias_name } => Ok(AliasAction::Delete { alias: alias_name }),
            Action::RenameAlias { old_alias_name, new_alias_name } => {
                check_name("rename_alias.new_alias_name", &new_alias_name)?;
                Ok(AliasAction::Rename { from: old_alias_name, to: new_alias_name })
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{body::parse, error::tests::assert_refused};

    fn read(text: &str) -> Result<Vec<AliasAction>> {
        parse::<ChangeBody>(text.as_bytes())?.into_model()
    }

    #[test]
    fn three_kinds_of_changes() {
        let text = r#"{"actions":[
            {"create_alias":{"collection_name":"c","alias_name":"a"}},
            {"rename_alias":{"old_alias_name":"a","new_alias_name":"b"}},
            {"delete_alias":{"alias_name":"b"}}]}"#;
        let wanted = [
            AliasAction::Create { alias: "a".into(), collection: "c".into() },
            AliasAction::Rename { from: "a".into(), to: "b".into() },
            AliasAction::Delete { alias: "b".into() },
        ];
        assert_eq!(read(text).unwrap(), wanted);
        assert_eq!(read(r#"{"actions":[]}"#).unwrap(), []);
    }

    #[test]
    fn what_is_no_change_is_named() {
        for (text, message) in [
            ("{}", "Format error in JSON body: missing field `actions`"),
            (r#"{"actions":[{"move_alias":{}}]}"#, "actions[0]: unknown variant `move_alias`"),
            (
                r#"{"actions":[{"create_alias":{"alias_name":"a"}}]}"#,
                "actions[0].create_alias: missing field",
            ),
            (
                r#"{"actions":[{"delete_alias":{"alias_name":"a","force":true}}]}"#,
                "actions[0].delete_alias.force: unknown field",
            ),
            (
                r#"{"actions":[{"create_alias":{"collection_name":"c","alias_name":"a/b"}}]}"#,
                "actions[0].create_alias.alias_name: holds '/'",
            ),
            (
                r#"{"actions":[{"rename_alias":{"old_alias_name":"a","new_alias_name":""}}]}"#,
                "actions[0].rename_alias.new_alias_name: has 0 characters",
            ),
        ] {
            assert_refused(read(text), 400, message, text);
        }
    }
}
