//! A history in EDN, one map a line, as Jepsen, Knossos and Elle read it.
//!
//! Operations on one point have `[key value]` as their value, which is Jepsen's `independent` tuple.
//! Not here: reading EDN.

use super::{Event, History, Process};
use serde_json::Value;
use std::io::{self, Write};

/// Writes all events.
pub fn write_edn(history: &History, to: &mut impl Write) -> io::Result<()> {
    history.events.iter().try_for_each(|event| writeln!(to, "{}", line(event)))
}

fn line(event: &Event) -> String {
    let kind = format!("{:?}", event.kind).to_lowercase();
    let process = match event.process {
        Process::Client(number) => number.to_string(),
        Process::Nemesis(_) => ":nemesis".to_owned(),
    };
    let value = match event.key {
        Some(key) => format!("[{key} {}]", term(&event.value)),
        None => term(&event.value),
    };
    let mut line = format!(
        "{{:index {}, :type :{kind}, :process {process}, :f :{}, :value {value}, :time {}",
        event.index, event.f, event.time
    );
    if let Some(version) = event.version {
        line += &format!(", :version {version}");
    }
    let texts = [("node", &event.node), ("error", &event.error), ("workload", &Some(event.workload.clone()))];
    for (name, text) in texts {
        if let Some(text) = text.as_ref().filter(|text| !text.is_empty()) {
            line += &format!(", :{name} {}", term(&Value::from(text.as_str())));
        }
    }
    line + "}"
}

fn term(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Array(items) => format!("[{}]", items.iter().map(term).collect::<Vec<_>>().join(" ")),
        Value::Object(fields) => {
            let field = |(name, value): (&String, &Value)| match is_word(name) {
                true => format!(":{name} {}", term(value)),
                false => format!("{} {}", Value::from(name.as_str()), term(value)),
            };
            format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        // Numbers and booleans are spelled alike, and JSON's escapes of strings are EDN's.
        plain => plain.to_string(),
    }
}

fn is_word(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
}
