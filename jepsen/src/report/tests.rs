use super::*;
use crate::{
    history::{Event, Kind, Recorder},
    run::{Asked, conclude},
};
use serde_json::{Value, json};

/// A stale read amid writes, while a node is killed.
fn bad() -> (History, Results) {
    let recorder = Recorder::new(None).unwrap();
    let (writer, reader) = (recorder.process(), recorder.process());
    let asked =
        |f: &str, value: Value| Event { key: Some(1), value, workload: "register".into(), ..Event::of(f) };
    let told = |value: Value, version| Event { value, version, ..Event::of("") };
    recorder.fault("kill", json!({"phase": "start", "what": {"nodes": ["<n1>"]}}));
    for value in 1..=30u64 {
        let write = recorder.invoke(writer, asked("write", json!(value)));
        recorder.complete(write, Kind::Ok, told(json!(value), Some(value)));
        let shown = if value == 20 { 18 } else { value };
        let read = recorder.invoke(reader, asked("read", Value::Null));
        recorder.complete(read, Kind::Ok, told(json!(shown), None));
    }
    recorder.fault("kill", json!({"phase": "end", "outcome": "installed"}));
    let history = recorder.close().unwrap();
    let asked = Asked { workloads: vec!["register".into()], binary: "a <b>".into(), ..Asked::default() };
    let results = conclude(&history, asked, BTreeMap::new()).unwrap();
    (history, results)
}

#[test]
fn a_page_shows_what_was_found_and_escapes_what_it_shows() {
    let (history, results) = bad();
    assert_eq!(results.valid, Valid::False);
    let page = page(&history, &results).unwrap();
    assert!(page.contains("not valid") && page.contains("versioned · stale"), "{page}");
    assert!(page.contains("a &lt;b&gt;") && !page.contains("<n1>"), "{page}");
    assert!(!page.contains("http://") && !page.contains("<script"), "it needs nothing beside itself");
    // Of sixty operations the timeline shows the few that matter.
    let timeline = page.split("<article>").find(|part| part.contains("read 18")).unwrap();
    assert!(timeline.matches("class=\"bar").count() <= 3, "{timeline}");
    assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
}

#[test]
fn a_fault_is_a_band_from_its_start_to_its_end() {
    let (history, _) = bad();
    let bands = bands(&history);
    assert_eq!(bands.len(), 1);
    assert!(bands[0].name == "kill" && bands[0].to > bands[0].from && bands[0].to < u64::MAX);
}

#[test]
fn too_little_is_not_a_pass() {
    let (mut history, before) = bad();
    history.events.clear();
    let asked = Asked { nemesis: vec!["kill".into()], nodes: 3, seconds: 60, ..before.asked };
    let results = conclude(&history, asked, BTreeMap::new()).unwrap();
    assert_eq!(results.valid, Valid::Unknown);
    let why = results.why.join("\n");
    for word in ["operations were answered", "family kill", "versioned had nothing", "0 nodes of 3"] {
        assert!(why.contains(word), "{word} is missing in {why}");
    }
}
