//! The way of a read: a position to see on each shard, one view a shard, the work on the search pool, merged.
//!
//! Every read is linearizable: a ReadIndex round of the shard's group (shared by all reads that wait for it),
//! then the shard's view once it has applied that far. Everything a request reads from a shard comes from that
//! one view.

use super::{
    Cluster, ClusterError, ReadOptions, Result, Seen, Token,
    shards::{LiveCollection, LiveShard},
};
use crate::{
    machine::MachineError,
    model::{
        Distance, Effect, Filter, Invalid, PointId, Position, Projection, Record, Schema, ScoredPoint,
        ScrollPage, ScrollRequest, SearchRequest, ShardNumber, Target, Vector,
    },
    shard::{ReadView, ShardStats},
};
use futures::future::try_join_all;
use std::{collections::BTreeMap, sync::Arc};

impl Cluster {
    /// Reads points by id; those that are not there are left out; order as asked.
    pub async fn retrieve(
        &self,
        name: &str,
        ids: Vec<PointId>,
        projection: Projection,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<Record>>> {
        let read = self.read(name, options).await?;
        let mut by_shard: BTreeMap<ShardNumber, Vec<PointId>> = BTreeMap::new();
        for id in &ids {
            by_shard.entry(read.collection.shard_of(*id)).or_default().push(*id);
        }
        let projection = Arc::new(projection);
        let parts = by_shard.into_iter().map(|(shard, ids)| {
            let projection = projection.clone();
            self.on_pool(read.views[shard.0 as usize].clone(), move |view| view.get(&ids, &projection))
        });
        let found: BTreeMap<PointId, Record> =
            try_join_all(parts).await?.into_iter().flatten().map(|r| (r.id, r)).collect();
        Ok(read.seen(ids.iter().filter_map(|id| found.get(id).cloned()).collect()))
    }

    /// Reads points in the order of their ids.
    pub async fn scroll(
        &self,
        name: &str,
        request: ScrollRequest,
        options: &ReadOptions,
    ) -> Result<Seen<ScrollPage>> {
        let read = self.read(name, options).await?;
        let limit = request.limit;
        let pages = self.on_every(&read, request, |view, request| view.scroll(request)).await?;
        let mut next: Vec<PointId> = pages.iter().filter_map(|p| p.next).collect();
        let mut points: Vec<Record> = pages.into_iter().flat_map(|p| p.points).collect();
        points.sort_by_key(|r| r.id);
        next.extend(points.get(limit).map(|r| r.id));
        points.truncate(limit);
        Ok(read.seen(ScrollPage { points, next: next.into_iter().min() }))
    }

    /// Counts points that pass the filter.
    pub async fn count(
        &self,
        name: &str,
        filter: Option<Filter>,
        options: &ReadOptions,
    ) -> Result<Seen<u64>> {
        let read = self.read(name, options).await?;
        let counts = self.on_every(&read, filter, |view, filter| view.count(filter.as_ref())).await?;
        Ok(read.seen(counts.into_iter().sum()))
    }

    /// Searches.
    ///
    /// Errors: a query vector that does not fit the schema, named `query` (no effect).
    pub async fn search(
        &self,
        name: &str,
        request: SearchRequest,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<ScoredPoint>>> {
        let read = self.read(name, options).await?;
        let answer = self.search_one(&read, request).await?;
        Ok(read.seen(answer))
    }

    /// Searches; one answer for each request, all at the same position of each shard.
    ///
    /// Errors: as [`Cluster::search`], named `searches[i].query`.
    pub async fn search_batch(
        &self,
        name: &str,
        requests: Vec<SearchRequest>,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<Vec<ScoredPoint>>>> {
        let read = self.read(name, options).await?;
        let answers = requests.into_iter().enumerate().map(async |(i, request)| {
            self.search_one(&read, request).await.map_err(|e| match e {
                ClusterError::Invalid(e) => e.within(format_args!("searches[{i}]")).into(),
                other => other,
            })
        });
        let answers = try_join_all(answers).await?;
        Ok(read.seen(answers))
    }

    async fn search_one(&self, read: &Read, mut request: SearchRequest) -> Result<Vec<ScoredPoint>> {
        let schema = &read.collection.record.schema;
        let mut exclude = None;
        let order = match &mut request.target {
            Target::All => None,
            Target::Nearest(vector) => {
                let params = dense(schema, &request.using)?;
                params.admit(vector).map_err(|e| Invalid::new("query", e.why))?;
                Some(params.distance)
            }
            Target::NearestTo(id) => {
                let (id, params) = (*id, dense(schema, &request.using)?);
                let view = &read.views[read.collection.shard_of(id).0 as usize];
                request.target = Target::Nearest(self.vector_of(view, id, &request.using).await?);
                exclude = Some(id);
                Some(params.distance)
            }
        };
        let (offset, limit) = (request.offset, request.limit);
        // A shard cannot know which of its hits the others push out: each gives its first offset + limit.
        request.limit = offset.saturating_add(limit);
        request.offset = 0;
        let parts = self.on_every(read, request, move |view, request| view.search(request, exclude)).await?;
        let mut hits: Vec<ScoredPoint> = parts.into_iter().flatten().collect();
        sort(&mut hits, order);
        Ok(hits.into_iter().skip(offset).take(limit).collect())
    }

    async fn vector_of(&self, view: &Arc<ReadView>, id: PointId, using: &str) -> Result<Vec<f32>> {
        let name = using.to_owned();
        let found = self.on_pool(view.clone(), move |view| view.vector(id, &name)).await?;
        match found {
            Some(Vector::Dense(values)) => Ok(values),
            _ => Err(ClusterError::NoPoint(id)),
        }
    }

    /// One view of each shard of a collection, each at least as new as every write acknowledged before.
    async fn read(&self, name: &str, options: &ReadOptions) -> Result<Read> {
        let collection = self.lookup(name, options.deadline).await?;
        let views = try_join_all(collection.shards.iter().map(|s| self.view(s, options))).await?;
        Ok(Read { collection, views })
    }

    /// Runs one piece of a read on the search pool.
    async fn on_pool<T: Send + 'static>(
        &self,
        view: Arc<ReadView>,
        work: impl FnOnce(&ReadView) -> std::result::Result<T, MachineError> + Send + 'static,
    ) -> Result<T> {
        let (done, answer) = tokio::sync::oneshot::channel();
        self.pool().spawn(move || {
            // The reader may have given up: then the work is not begun.
            if !done.is_closed() {
                let _ = done.send(work(&view));
            }
        });
        let answer = answer.await.map_err(|_| ClusterError::Internal {
            message: "a search stopped half-way".to_owned(),
            corrupt: false,
            effect: Effect::None,
        })?;
        Ok(answer?)
    }

    /// Runs the same piece on every shard, in parallel across shards.
    async fn on_every<A, T>(
        &self,
        read: &Read,
        argument: A,
        work: impl Fn(&ReadView, &A) -> std::result::Result<T, MachineError> + Copy + Send + 'static,
    ) -> Result<Vec<T>>
    where
        A: Send + Sync + 'static,
        T: Send + 'static,
    {
        let argument = Arc::new(argument);
        try_join_all(read.views.iter().map(|view| {
            let argument = argument.clone();
            self.on_pool(view.clone(), move |view| work(view, &argument))
        }))
        .await
    }
}

fn dense<'a>(schema: &'a Schema, using: &str) -> Result<&'a crate::model::VectorParams> {
    schema.vectors.get(using).ok_or_else(|| {
        if schema.sparse.contains_key(using) {
            return ClusterError::Unimplemented(format!("search over the sparse vector {using}"));
        }
        let name = if using.is_empty() { "(default)" } else { using };
        Invalid::new("using", format!("Not existing vector name error: {name}")).into()
    })
}

/// Nearest first; of the same score, the smaller id first. Without a distance, by id.
fn sort(hits: &mut [ScoredPoint], order: Option<Distance>) {
    hits.sort_by(|a, b| {
        let nearer = match order {
            None => std::cmp::Ordering::Equal,
            Some(d) if d.larger_is_nearer() => b.score.total_cmp(&a.score),
            Some(_) => a.score.total_cmp(&b.score),
        };
        nearer.then(a.id.cmp(&b.id))
    });
}

/// What one request reads from.
struct Read {
    collection: LiveCollection,
    /// By shard number.
    views: Vec<Arc<ReadView>>,
}

impl Read {
    fn seen<T>(&self, value: T) -> Seen<T> {
        self.collection.seen(value, self.views.iter().map(|view| view.position()))
    }
}

impl LiveCollection {
    /// An answer that was read at these positions, by shard.
    fn seen<T>(&self, value: T, positions: impl Iterator<Item = Position>) -> Seen<T> {
        let shards = self.shards.iter().map(|s| s.number).zip(positions).collect();
        let token = Token { collection: self.record.id, generation: self.record.generation, shards };
        Seen { value, token, age: None }
    }
}

impl Cluster {
    async fn view(&self, live: &LiveShard, options: &ReadOptions) -> Result<Arc<ReadView>> {
        let local = self.inner.shards.opened(live, options.deadline).await?;
        let index = local.replica.read_index(options.deadline).await?;
        local.replica.wait_applied(index, options.deadline).await?;
        let view = local.shard.view();
        let wanted = options.at_least.as_ref().filter(|t| t.collection == live.collection.id);
        match wanted.and_then(|t| t.shards.get(&live.number)) {
            // A linearizable view has everything that was ever acknowledged: what is not in it is lost.
            Some(wanted) if *wanted > view.position() => Err(ClusterError::Expired(format!(
                "the token names position {wanted} of shard {}, which ends at {}",
                live.number,
                view.position()
            ))),
            _ => Ok(view),
        }
    }

    /// Figures of every shard, each at least as new as this call.
    pub(super) async fn shard_stats(
        &self,
        collection: &LiveCollection,
        options: &ReadOptions,
    ) -> Result<Seen<Vec<ShardStats>>> {
        let stats = collection.shards.iter().map(async |live| {
            let position = self.view(live, options).await?.position();
            let local = self.inner.shards.opened(live, options.deadline).await?;
            Ok::<_, ClusterError>((local.shard.stats(), position))
        });
        let (stats, positions): (Vec<_>, Vec<_>) = try_join_all(stats).await?.into_iter().unzip();
        Ok(collection.seen(stats, positions.into_iter()))
    }
}
