//! Collections: created, changed, described and dropped through the catalog.
//!
//! A change is acknowledged when every shard has applied its part of it, as an entry of its own log.

use super::{
    AliasAction, BETWEEN_LEADERS, Cluster, ClusterError, CollectionChange, CollectionInfo, CollectionSpec,
    Consistency, ReadOptions, Result, Seen, Token, WriteOptions, Written,
    catalog::{CatalogCommand, CollectionRecord},
    placement, router,
    shards::LiveCollection,
};
use crate::model::{Body, CollectionId, FieldPath, FieldType};
use std::{collections::BTreeMap, sync::Arc};
use tokio::time::Instant;

impl Cluster {
    /// Creates a collection; its shards are there when this returns.
    pub async fn create_collection(
        &self,
        name: &str,
        spec: CollectionSpec,
        options: &WriteOptions,
    ) -> Result<Written> {
        let deadline = options.deadline;
        loop {
            let placement = placement::place(&self.inner.catalog.state(), &spec, &self.alive().await);
            if placement.iter().any(Vec::is_empty) {
                return Err(ClusterError::Unavailable("no node takes replicas".to_owned()));
            }
            let create = CatalogCommand::Create { name: name.to_owned(), spec: spec.clone(), placement };
            match self.change(create, name, options).await {
                // The nodes have changed meanwhile.
                Err(ClusterError::Stale(_)) if Instant::now() < deadline => {
                    self.catch_up_with_catalog(deadline).await?;
                    tokio::time::sleep(router::jittered(BETWEEN_LEADERS)).await;
                }
                done => return done,
            }
        }
    }

    /// Changes a collection: `how` makes the change from its spec, again if somebody else has changed it meanwhile.
    ///
    /// Errors: what `how` says (no effect); the cluster's.
    pub async fn update_collection<E: From<ClusterError>>(
        &self,
        name: &str,
        how: impl Fn(&CollectionSpec) -> std::result::Result<CollectionChange, E>,
        options: &WriteOptions,
    ) -> std::result::Result<Written, E> {
        let deadline = options.deadline;
        loop {
            self.catch_up_with_catalog(deadline).await?;
            let record = self.lookup(name, deadline).await?.record;
            let change = how(&record.spec)?;
            let from = Some((record.id, record.revision));
            let update = CatalogCommand::Update { name: name.to_owned(), change, from };
            match self.change(update, name, options).await {
                Err(ClusterError::Stale(_)) if record.region.is_home() && Instant::now() < deadline => {}
                done => return Ok(done?),
            }
        }
    }

    /// Drops a collection; `false` if there was none.
    ///
    /// Errors: with no effect only where the catalog refused; later the collection is dropped, and its shards are told
    /// in the background.
    pub async fn delete_collection(&self, name: &str, options: &WriteOptions) -> Result<bool> {
        match self.propose_intent(CatalogCommand::Drop { name: name.to_owned() }, options).await {
            Ok(()) => {}
            Err(ClusterError::Missing(_)) => return Ok(false),
            Err(e) => return Err(e),
        }
        let told = self.retire_all(name, options.deadline).await;
        told.map(|()| true).map_err(|e| e.in_doubt("it is dropped, but not every shard was told"))
    }

    /// Retires all that is being dropped and had this name.
    async fn retire_all(&self, name: &str, deadline: Instant) -> Result<()> {
        self.catch_up_with_catalog(deadline).await?;
        let dropping = self.inner.catalog.state().dropping.clone();
        for (number, record) in dropping.into_iter().filter(|(_, c)| c.name == name) {
            self.retire(number, record, deadline).await?;
        }
        Ok(())
    }

    /// Changes aliases, all or none.
    pub async fn change_aliases(&self, actions: Vec<AliasAction>, options: &WriteOptions) -> Result<()> {
        self.propose_intent(CatalogCommand::Alias { actions }, options).await.map_err(|e| match e {
            ClusterError::Missing(what) => ClusterError::NotFound(what),
            ClusterError::Exists(what) => ClusterError::Conflict(format!("Wrong input: {what}")),
            other => other,
        })
    }

    /// Names of collections by alias, ascending.
    pub async fn aliases(&self, options: &ReadOptions) -> Result<BTreeMap<String, String>> {
        self.catch_up_with_catalog(options.deadline).await?;
        Ok(self.inner.catalog.state().aliases.clone())
    }

    /// Names of all collections, ascending.
    pub async fn collections(&self, options: &ReadOptions) -> Result<Vec<String>> {
        self.catch_up_with_catalog(options.deadline).await?;
        Ok(self.inner.catalog.state().collections.keys().cloned().collect())
    }

    /// A collection as it stands.
    pub async fn collection(&self, name: &str, options: &ReadOptions) -> Result<Seen<CollectionInfo>> {
        if options.consistency == Consistency::Linearizable {
            self.catch_up_with_catalog(options.deadline).await?;
        }
        let collection = self.lookup(name, options.deadline).await?;
        let mut info = CollectionInfo {
            id: collection.record.id,
            spec: collection.record.spec.clone(),
            schema: Arc::new(collection.record.schema.clone()),
            points: 0,
            field_points: BTreeMap::new(),
            vectors: 0,
            indexed_vectors: 0,
            segments: 0,
            building: false,
        };
        let seen = self.shard_stats(&collection, options).await?;
        for stats in seen.value {
            info.points += stats.points;
            info.vectors += stats.vectors;
            info.indexed_vectors += stats.indexed_vectors;
            info.segments += stats.segments;
            info.building |= stats.building;
            for (path, points) in stats.field_points {
                *info.field_points.entry(path).or_default() += points;
            }
        }
        Ok(Seen { value: info, token: seen.token, age: seen.age, explained: None })
    }

    /// Indexes a payload field.
    pub async fn create_field_index(
        &self,
        name: &str,
        path: FieldPath,
        of: FieldType,
        options: &WriteOptions,
    ) -> Result<Written> {
        let command = CatalogCommand::CreateField { name: name.to_owned(), path, of };
        self.change(command, name, options).await
    }

    /// Drops the index of a payload field.
    pub async fn delete_field_index(
        &self,
        name: &str,
        path: FieldPath,
        options: &WriteOptions,
    ) -> Result<Written> {
        let command = CatalogCommand::DropField { name: name.to_owned(), path };
        self.change(command, name, options).await
    }

    /// Changes the catalog and waits until every shard of the collection has applied it.
    async fn change(&self, command: CatalogCommand, name: &str, options: &WriteOptions) -> Result<Written> {
        self.propose_intent(command, options).await.map_err(|e| match e {
            ClusterError::Exists(_) => ClusterError::CollectionExists(name.to_owned()),
            ClusterError::Missing(_) => ClusterError::NoCollection(name.to_owned()),
            other => other,
        })?;
        match self.configure(name, options.deadline).await {
            // Dropped since: the change was made before that, and there is nobody left to tell.
            Err(ClusterError::NoCollection(_) | ClusterError::Gone(_)) => {
                Ok(Written { position: None, token: Token::default() })
            }
            told => told.map_err(|e| e.in_doubt("the change was made, but not every shard was told")),
        }
    }

    /// Tells every shard the catalog's schema through its own log. Telling it twice is harmless.
    async fn configure(&self, name: &str, deadline: Instant) -> Result<Written> {
        self.catch_up_with_catalog(deadline).await?;
        let collection = self.lookup(name, deadline).await?;
        let body = Body::Configure(collection.record.schema.clone());
        let bodies = collection.shards.iter().map(|s| (s.number, body.clone())).collect();
        let options = WriteOptions::until(deadline);
        self.write(&collection, bodies, &options).await
    }

    /// Tells every shard of a dropped collection that it is, then the catalog that all know it.
    ///
    /// `number`: the one it is dropped under.
    pub(super) async fn retire(
        &self,
        number: CollectionId,
        record: Arc<CollectionRecord>,
        deadline: Instant,
    ) -> Result<()> {
        let collection = LiveCollection::of(record);
        let bodies = collection.shards.iter().map(|s| (s.number, Body::Retire)).collect();
        let options = WriteOptions::until(deadline);
        match self.write(&collection, bodies, &options).await {
            // Told before.
            Ok(_) | Err(ClusterError::Gone(_)) => {}
            // So somebody else told them.
            Err(_) if !self.inner.catalog.state().dropping.contains_key(&number) => return Ok(()),
            Err(e) => return Err(e),
        }
        self.propose_catalog(CatalogCommand::Dropped { id: number }, deadline).await
    }
}
