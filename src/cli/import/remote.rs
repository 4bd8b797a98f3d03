//! `qdrant://HOST:PORT/COLLECTION`: a collection of another server.
//!
//! Only ids are listed; those who send the points fetch them by id, several at once, and those that are there already
//! need not be fetched at all. What is written there meanwhile may be seen or not.

use super::{
    super::{
        collection::{Collection, Record, id_text},
        progress::Extent,
        row::{Content, Row},
        server::{Client, Failure},
        settings::Settings,
    },
    Names,
    source::Source,
};
use annal::model::PointId;
use serde_json::Value;
use std::collections::VecDeque;

/// A collection whose ids are listed page by page.
pub(super) struct Remote {
    name: String,
    collection: Collection,
    info: Value,
    count: u64,
    page: VecDeque<PointId>,
    /// Where the next page begins.
    from: Option<PointId>,
    ended: bool,
    given: u64,
}

/// Ids of one page.
const PAGE: usize = 1_000;

impl Remote {
    /// Opens what stands behind `qdrant://`.
    ///
    /// Errors: an address that is none, a server that does not answer, a collection that is not there.
    pub(super) fn open(address: &str, api_key: Option<String>) -> Result<Self, Failure> {
        let name = format!("qdrant://{address}");
        let parts =
            address.split_once('/').map(|(server, collection)| (server, collection.trim_end_matches('/')));
        let Some((server, collection)) =
            parts.filter(|(server, name)| !server.is_empty() && !name.is_empty())
        else {
            return Err(format!("{name}: wants qdrant://HOST:PORT/COLLECTION").into());
        };
        let collection = Collection::new(Client::new(format!("http://{server}"), api_key), collection);
        let within = |e: Failure| format!("{name}: {e}");
        let info = collection
            .info()
            .map_err(within)?
            .ok_or_else(|| format!("{name}: there is no such collection"))?;
        let count = collection.count(None).map_err(within)?;
        Ok(Remote {
            collection,
            info,
            count,
            name,
            page: VecDeque::new(),
            from: None,
            ended: false,
            given: 0,
        })
    }

    fn read_page(&mut self) -> Result<(), Failure> {
        let page = self.collection.scroll(self.from, PAGE, None, false);
        let page = page.map_err(|e| format!("{}: {e}", self.name))?;
        if page.next.is_some() && page.next <= self.from {
            return Err(format!("{}: the server goes round in circles", self.name).into());
        }
        self.page = page.points.iter().map(|record| record.id).collect();
        self.from = page.next;
        self.ended = page.next.is_none();
        Ok(())
    }
}

impl Source for Remote {
    fn extent(&self) -> Extent {
        Extent::Points(self.count)
    }

    fn passed(&self) -> u64 {
        self.given
    }

    fn names(&self) -> Names {
        Names::Ids(self.name.clone())
    }

    fn next(&mut self) -> Result<Option<Row>, Failure> {
        while self.page.is_empty() && !self.ended {
            self.read_page()?;
        }
        let Some(id) = self.page.pop_front() else { return Ok(None) };
        self.given += 1;
        Ok(Some(Row { place: self.given, id: id_text(id), vector: Content::Elsewhere, payload: None }))
    }

    fn settings(&mut self) -> Result<Option<Settings>, Failure> {
        let (settings, lacking) =
            Settings::of_collection(&self.info).map_err(|e| format!("{}: {e}", self.name))?;
        for what in lacking {
            eprintln!("annal: the new collection has {what}: that is not implemented yet");
        }
        Ok(Some(settings))
    }

    fn origin(&self) -> Option<Collection> {
        Some(self.collection.clone())
    }
}

/// A point as it was fetched.
pub(super) fn row(record: Record) -> Row {
    let nothing = || serde_json::value::to_raw_value(&serde_json::json!({})).expect("an object");
    let vector = record.vector.unwrap_or_else(nothing);
    Row { place: 0, id: id_text(record.id), vector: Content::Written(vector), payload: record.payload }
}
