//! A collection on a server that speaks Qdrant's REST API: what import, export and bench ask of it.

use super::{
    row::{Row, upsert_body},
    server::{Answer, Client, Failure, Reply},
    settings::Settings,
};
use annal::{model::PointId, net::http::part_of_path};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use std::{collections::HashSet, time::Duration};

/// A collection by name; it need not be there.
#[derive(Clone)]
pub(super) struct Collection {
    client: Client,
    path: String,
}

/// A point as it is read.
#[derive(Deserialize)]
pub(super) struct Record {
    pub(super) id: PointId,
    pub(super) vector: Option<Box<RawValue>>,
    pub(super) payload: Option<Box<RawValue>>,
}

/// Some points in the order of their ids.
#[derive(Deserialize)]
pub(super) struct Page {
    pub(super) points: Vec<Record>,
    /// Where the next page begins; none behind the last.
    #[serde(rename = "next_page_offset")]
    pub(super) next: Option<PointId>,
}

/// What became of an upsert.
pub(super) enum Upserted {
    Done,
    /// It must be sent in smaller parts.
    TooLarge,
    Refused(Answer),
}

/// What stands under `result` in every answer.
#[derive(Deserialize)]
struct Envelope<T> {
    result: T,
}

/// How long a request is sent again: all that are sent here may be repeated, they say or ask the same again.
const INSIST: Duration = Duration::from_secs(60);
/// How long the first is, where nobody answered.
const HELLO: Duration = Duration::from_secs(3);

impl Collection {
    pub(super) fn new(client: Client, name: &str) -> Self {
        Collection { client, path: format!("/collections/{}", part_of_path(name)) }
    }

    /// What the server says of it; none if it is not there. It is what is asked first: where nobody answers at all, the
    /// address is most likely wrong.
    pub(super) fn info(&self) -> Result<Option<Value>, Failure> {
        let answers = self.client.ask_plainly("GET", &self.path, "").is_ok();
        let reply = self.client.insist("GET", &self.path, "", if answers { INSIST } else { HELLO })?;
        match reply.status {
            404 => Ok(None),
            _ => Ok(Some(reply.expect::<Envelope<Value>>("the collection")?.result)),
        }
    }

    /// Creates it, with the indexes of its payload.
    pub(super) fn create(&self, settings: &Settings) -> Result<(), Failure> {
        let reply = self.call("PUT", "", &settings.creation().to_string())?;
        reply.parsed().expect("creating the collection")?;
        self.index(settings, &Value::Null)
    }

    /// Makes the indexes of its payload that are not among those `there`, by field.
    pub(super) fn index(&self, settings: &Settings, there: &Value) -> Result<(), Failure> {
        let missing = settings.payload_indexes.iter().filter(|(field, _)| there.get(field).is_none());
        for (field, kind) in missing {
            let body = json!({"field_name": field, "field_schema": kind}).to_string();
            let reply = self.call("PUT", "/index?wait=true", &body)?;
            reply.parsed().expect(&format!("indexing the field {field}"))?;
        }
        Ok(())
    }

    /// How many points pass the filter.
    pub(super) fn count(&self, filter: Option<&Value>) -> Result<u64, Failure> {
        #[derive(Deserialize)]
        struct Counted {
            count: u64,
        }
        let body = json!({"exact": true, "filter": filter}).to_string();
        let reply = self.call("POST", "/points/count", &body)?;
        Ok(reply.expect::<Envelope<Counted>>("counting points")?.result.count)
    }

    /// Points from an id on, whole or only their ids.
    pub(super) fn scroll(
        &self,
        from: Option<PointId>,
        limit: usize,
        filter: Option<&Value>,
        whole: bool,
    ) -> Result<Page, Failure> {
        let body = json!({"offset": from, "limit": limit, "filter": filter, "with_payload": whole, "with_vector": whole});
        let reply = self.call("POST", "/points/scroll", &body.to_string())?;
        Ok(reply.expect::<Envelope<Page>>("reading points")?.result)
    }

    /// Those of the points that are there, whole or only their ids.
    pub(super) fn read(&self, rows: &[Row], whole: bool) -> Result<Vec<Record>, Failure> {
        let ids: Vec<&str> = rows.iter().map(|r| r.id.as_str()).collect();
        let body = format!(r#"{{"ids":[{}],"with_payload":{whole},"with_vector":{whole}}}"#, ids.join(","));
        let reply = self.call("POST", "/points", &body)?;
        Ok(reply.expect::<Envelope<Vec<Record>>>("reading points by id")?.result)
    }

    /// Those ids of the rows that are there, as JSON text.
    pub(super) fn ids_there(&self, rows: &[Row]) -> Result<HashSet<String>, Failure> {
        Ok(self.read(rows, false)?.iter().map(|record| id_text(record.id)).collect())
    }

    /// Writes rows; numbers without a name belong to the vector `name`, if that is given.
    pub(super) fn upsert(&self, rows: &[Row], name: Option<&str>) -> Result<Upserted, Failure> {
        let reply = self.call("PUT", "/points?wait=true", &upsert_body(rows, name)?)?;
        Ok(match reply.status {
            200..300 => Upserted::Done,
            413 if rows.len() > 1 => Upserted::TooLarge,
            _ => Upserted::Refused(reply.parsed()),
        })
    }

    /// Asks once, and takes whatever is answered: for a load that is measured.
    ///
    /// Errors: no answer came.
    pub(super) fn ask_once(&self, method: &str, path: &str, body: &str) -> Result<Reply, Failure> {
        Ok(self.client.ask_plainly(method, &format!("{}{path}", self.path), body)?)
    }

    /// Asks until it is answered for good.
    pub(super) fn call(&self, method: &str, path: &str, body: &str) -> Result<Reply, Failure> {
        self.client.insist(method, &format!("{}{path}", self.path), body, INSIST)
    }
}

/// An id as JSON text.
pub(super) fn id_text(id: PointId) -> String {
    match id {
        PointId::Num(number) => number.to_string(),
        PointId::Uuid(_) => format!("\"{id}\""),
    }
}
