//! Points as registers: get, upsert, compare-and-set and delete by many clients, at the collection's name and at an
//! alias, while collections come and go.

use super::{
    Session, Workload,
    collections::Collections,
    keys::Keys,
    session::{Told, is_no_point},
};
use crate::{
    client::{Effect, Reply},
    history::{Event, Kind},
    point::{Hit, body_of, vector_of},
};
use rand::Rng;
use serde_json::{Value, json};

/// The workload.
pub(super) struct Register {
    keys: Keys,
    collections: Collections,
}

impl Default for Register {
    fn default() -> Self {
        Register { keys: Keys::new(10), collections: Collections::default() }
    }
}

impl Workload for Register {
    fn name(&self) -> &'static str {
        "register"
    }

    fn prepare(&self, ask: &dyn Fn(&str, &str, Value)) {
        ask("POST", "/collections/aliases", alias());
    }

    fn step(&self, session: &mut Session) {
        match session.rng.random_range(0..300) {
            0 => rename(session),
            1..6 => self.collections.step(session),
            _ => one_of_all(session, &self.keys),
        }
    }

    fn proves(&self) -> &'static [&'static str] {
        &["linearizable", "versioned"]
    }
}

/// The other name of the collection.
const ALIAS: &str = "register-alias";

fn alias() -> Value {
    json!({"actions": [{"create_alias": {"collection_name": "register", "alias_name": ALIAS}}]})
}

/// Takes the alias away and gives it again, in one step: nobody may see it gone.
fn rename(session: &mut Session) {
    let node = session.node();
    let mut actions = alias();
    if let Some(list) = actions["actions"].as_array_mut() {
        list.insert(0, json!({"delete_alias": {"alias_name": ALIAS}}));
    }
    let send = |session: &Session| session.send(node, "POST", "/collections/aliases", &[], Some(&actions));
    session.operate(node, ("alias", None, Value::Null), Effect::Writes, send, |_| Ok((Value::Null, None)));
}

/// Any operation on any point in use.
pub(super) fn one_of_all(session: &mut Session, keys: &Keys) {
    let (key, version) = keys.pick(&mut session.rng);
    let (kind, told) = match session.rng.random_range(0..100) {
        0..30 => get(session, key),
        30..45 => look_up(session, key),
        45..68 => upsert(session, key),
        68..90 => {
            // Mostly the version that is there, sometimes one that was, or none.
            let expected = match session.rng.random_range(0..10) {
                0 => None,
                1 => version.map(|version| version.saturating_sub(1)),
                _ => version,
            };
            let value = (!session.rng.random_ratio(1, 6)).then(|| session.fresh_value());
            cas(session, key, expected, value)
        }
        _ => delete(session, key),
    };
    match kind {
        Kind::Info => keys.unknown(key),
        // A get tells no version.
        _ if told.version.is_some()
            || told.error.as_deref() == Some(crate::checker::observe::PRECONDITION) =>
        {
            keys.told(key, told.version);
        }
        _ => {}
    }
}

/// The collection's name, or its alias if it has one.
fn name(session: &mut Session, rest: &str) -> String {
    let own = session.path(rest);
    let aliased = own.starts_with("/collections/register/") && session.rng.random_ratio(1, 3);
    if aliased { own.replacen("register", ALIAS, 1) } else { own }
}

pub(super) fn get(session: &mut Session, key: u64) -> (Kind, Event) {
    let (node, path) = (session.node(), name(session, &format!("/points/{key}")));
    let send = |session: &Session| session.send(node, "GET", &path, &[], None);
    session.operate(node, ("read", Some(key), Value::Null), Effect::Reads, send, |reply| {
        if is_no_point(reply) {
            return Ok((Value::Null, None));
        }
        let hit = Hit::from_answer(reply.result())?;
        match hit.torn() {
            None if hit.id == key => Ok((json!(hit.v), None)),
            torn => Err(format!("{}: {torn:?}", reply.result())),
        }
    })
}

/// Reads by a filtered search, which tells the version too.
pub(super) fn look_up(session: &mut Session, key: u64) -> (Kind, Event) {
    let (node, path) = (session.node(), name(session, "/points/query"));
    let body = json!({"query": vector_of(key, 0), "limit": 2, "with_payload": true, "with_vector": true,
        "filter": {"must": [{"has_id": [key]}]}});
    let send = |session: &Session| session.send(node, "POST", &path, &[], Some(&body));
    session.operate(node, ("read", Some(key), Value::Null), Effect::Reads, send, |reply| {
        let points = reply.result()["points"].as_array().ok_or("no points")?;
        let Some(point) = points.first() else { return Ok((Value::Null, None)) };
        let hit = Hit::from_answer(point)?;
        match hit.torn() {
            None if hit.id == key && points.len() == 1 => Ok((json!(hit.v), hit.version)),
            torn => Err(format!("{}: {torn:?}", reply.result())),
        }
    })
}

pub(super) fn upsert(session: &mut Session, key: u64) -> (Kind, Event) {
    let value = session.fresh_value();
    write(session, "write", key, value)
}

/// Writes a value nobody has written.
pub(super) fn write(session: &mut Session, f: &str, key: u64, value: u64) -> (Kind, Event) {
    let (node, path) = (session.node(), name(session, "/points?wait=true"));
    let body = json!({"points": [body_of(key, value)]});
    let send = |session: &Session| session.send(node, "PUT", &path, &[], Some(&body));
    session.operate(node, (f, Some(key), json!(value)), Effect::Writes, send, |reply| {
        written(reply, json!(value))
    })
}

pub(super) fn cas(
    session: &mut Session,
    key: u64,
    expected: Option<u64>,
    value: Option<u64>,
) -> (Kind, Event) {
    let node = session.node();
    let path = format!("/annal/v1{}", session.path("/points/cas?wait=true"));
    let body = json!({"id": key, "if_version": expected, "point": value.map(|value| body_of(key, value))});
    let asked = json!([expected, value]);
    let send = |session: &Session| session.send(node, "POST", &path, &[], Some(&body));
    session
        .operate(node, ("cas", Some(key), asked.clone()), Effect::Writes, send, |reply| written(reply, asked))
}

pub(super) fn delete(session: &mut Session, key: u64) -> (Kind, Event) {
    let (node, path) = (session.node(), name(session, "/points/delete?wait=true"));
    let body = json!({"points": [key]});
    let send = |session: &Session| session.send(node, "POST", &path, &[], Some(&body));
    session.operate(node, ("delete", Some(key), Value::Null), Effect::Writes, send, |reply| {
        written(reply, Value::Null)
    })
}

/// The version that was written is the operation's id.
pub(super) fn written(reply: &Reply, value: Value) -> Told {
    let version = reply.result()["operation_id"].as_u64();
    version.map(|version| (value, Some(version))).ok_or_else(|| format!("no operation id: {}", reply.body))
}
