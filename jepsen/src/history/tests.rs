use super::*;
use serde_json::json;

fn asked(f: &str, key: u64, value: Value) -> Event {
    Event { key: Some(key), value, workload: "register".into(), ..Event::of(f) }
}

fn told(value: Value, version: Option<u64>) -> Event {
    Event { value, version, ..Event::of("") }
}

fn some_history(path: Option<&Path>) -> History {
    let recorder = Recorder::new(path).unwrap();
    let (a, b, c) = (recorder.process(), recorder.process(), recorder.process());
    let write = recorder.invoke(a, asked("write", 7, json!(1)));
    let read = recorder.invoke(b, asked("read", 7, Value::Null));
    recorder.complete(write, Kind::Ok, told(json!(1), Some(2)));
    recorder.fault("kill", json!({"node": "n1"}));
    let _lost = recorder.invoke(c, asked("cas", 7, json!([2, 5])));
    recorder.complete(read, Kind::Ok, told(Value::Null, None));
    recorder.close().unwrap()
}

#[test]
fn what_is_pending_at_the_end_is_info() {
    let ops = some_history(None).ops().unwrap();
    let outcomes: Vec<_> = ops.iter().map(|op| (op.f.as_str(), op.outcome, op.ended)).collect();
    let expected = [("write", Outcome::Ok, 2), ("read", Outcome::Ok, 5), ("cas", Outcome::Info, NEVER)];
    assert_eq!(outcomes, expected);
    assert_eq!(ops[0].version, Some(2));
}

#[test]
fn a_file_reads_back_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    let history = some_history(Some(&path));
    assert_eq!(History::read(&path).unwrap(), history);
    let first = std::fs::read_to_string(&path).unwrap().lines().next().unwrap().to_owned();
    let head =
        r#"{"index":0,"type":"invoke","process":0,"f":"write","key":7,"value":1,"version":null,"time":"#;
    assert!(first.starts_with(head), "{first}");
}

#[test]
fn a_file_that_was_cut_off_still_pairs() {
    let mut history = some_history(None);
    history.events.truncate(3);
    let ops = history.ops().unwrap();
    assert_eq!(ops.iter().filter(|op| op.outcome == Outcome::Info).count(), 1);
}

#[test]
fn events_out_of_order_are_refused() {
    let whole = some_history(None);
    let refused = |change: fn(&mut Vec<Event>)| {
        let mut history = whole.clone();
        change(&mut history.events);
        history.ops().is_err()
    };
    assert!(refused(|events| events.swap(1, 2)), "indexes out of order");
    assert!(refused(|events| drop(events.remove(0))), "a completion without its invocation");
    assert!(refused(|events| events[1].process = events[0].process), "two things at once");
}

#[test]
fn edn_is_what_jepsen_reads() {
    let mut text = Vec::new();
    let mut history = some_history(None);
    history.events.iter_mut().for_each(|event| event.time = 0);
    write_edn(&history, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[2],
        r#"{:index 2, :type :ok, :process 0, :f :write, :value [7 1], :time 0, :version 2, :workload "register"}"#
    );
    assert_eq!(
        lines[3],
        r#"{:index 3, :type :info, :process :nemesis, :f :kill, :value {:node "n1"}, :time 0}"#
    );
    assert!(lines[4].contains(":f :cas, :value [7 [2 5]]"), "{}", lines[4]);
}
