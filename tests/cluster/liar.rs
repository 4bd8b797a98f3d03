//! A server of registers that lies now and then: the load and its checks must notice each kind of lie, on the same way
//! that they go with a real node.

use crate::{
    connection::number_in,
    history::{Anomaly, Order, Report},
    sleep,
    workload::{Load, Plan, upsert_body, vector_of},
};
use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// A read gives the value before the last.
    OldValue,
    /// A read says that a point is not there.
    NotThere,
    /// A write is acknowledged and forgotten.
    Forgotten,
    /// A write is refused without effect, and takes effect.
    RefusedYetDone,
    /// A retry takes effect again.
    DoneAgain,
    /// A read gives the payload of one write and the vector of another.
    Torn,
}

/// Every so many requests of the kind there is a lie.
const EVERY: u64 = 20;

#[derive(Default)]
struct Registers {
    /// All values each had, in order.
    values: HashMap<u64, Vec<u64>>,
    position: u64,
    /// Positions of requests with a key.
    known: HashMap<String, u64>,
    asked: u64,
}

impl Registers {
    /// Status, another header, and body.
    fn put(&mut self, lie: Lie, request: Option<String>, body: &str) -> (u16, &'static str, String) {
        let (key, value) = (number_in(body, "id").unwrap(), number_in(body, "v").unwrap());
        self.asked += 1;
        let lies = |of: Lie| lie == of && self.asked.is_multiple_of(EVERY);
        let first = request.as_ref().and_then(|request| self.known.get(request)).copied();
        let done = |position| (200, "", format!(r#"{{"result":{{"operation_id":{position}}}}}"#));
        if let Some(first) = first.filter(|_| lie != Lie::DoneAgain) {
            return done(first);
        }
        let (forgotten, refused) = (lies(Lie::Forgotten), lies(Lie::RefusedYetDone));
        self.position += 1;
        if !forgotten {
            self.values.entry(key).or_default().push(value);
        }
        self.known.extend(request.map(|request| (request, self.position)));
        if refused { (503, "annal-effect: none\r\n", "{}".to_owned()) } else { done(self.position) }
    }

    fn get(&mut self, lie: Lie, key: u64) -> (u16, &'static str, String) {
        self.asked += 1;
        let lies = |of: Lie| lie == of && self.asked.is_multiple_of(EVERY);
        let values = self.values.get(&key).filter(|_| !lies(Lie::NotThere));
        let Some((last, before)) = values.and_then(|values| values.split_last()) else {
            return (404, "", r#"{"status":{"error":"Not found: No point"}}"#.to_owned());
        };
        let value = if lies(Lie::OldValue) { before.last().unwrap_or(last) } else { last };
        let [a, b, c, d] = vector_of(key, if lies(Lie::Torn) { value + 1 } else { *value });
        let body =
            format!(r#"{{"result":{{"id":{key},"payload":{{"v":{value}}},"vector":[{a},{b},{c},{d}]}}}}"#);
        (200, "", body)
    }

    fn end(&self) -> BTreeMap<u64, u64> {
        self.values.iter().filter_map(|(key, values)| Some((*key, *values.last()?))).collect()
    }
}

/// Answers one connection until it ends.
fn serve(stream: TcpStream, lie: Lie, registers: &Mutex<Registers>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let (mut head, mut length, mut request) = (String::new(), 0, None);
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim().split_once(": ") {
                Some(("content-length", value)) => length = value.parse().unwrap(),
                Some(("idempotency-key", value)) => request = Some(value.to_owned()),
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8(body).unwrap();
        let path = head.split_whitespace().nth(1).unwrap();
        let (status, header, answer) = match head.starts_with("PUT") {
            true => registers.lock().unwrap().put(lie, request, &body),
            false => {
                let key = path.rsplit('/').next().unwrap().parse().unwrap();
                registers.lock().unwrap().get(lie, key)
            }
        };
        let length = answer.len();
        stream.write_all(
            format!("HTTP/1.1 {status} X\r\n{header}content-length: {length}\r\n\r\n{answer}").as_bytes(),
        )?;
    }
}

/// What a load at such a server finds: anomalies, and what its workers noticed.
fn found(lie: Lie, plan: Plan) -> (Report, Vec<String>) {
    let order = plan.order;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let registers = Arc::new(Mutex::new(Registers::default()));
    let shared = registers.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let registers = shared.clone();
            thread::spawn(move || serve(stream, lie, &registers));
        }
    });
    // Two doors to the same registers.
    let load = Load::start(vec![url.clone(), url], plan);
    sleep(Duration::from_millis(250));
    let history = load.stop();
    assert!(history.acknowledged() > 100, "{}", history.summary());
    let report = history.check(order, &registers.lock().unwrap().end());
    (report, history.noticed)
}

#[test]
fn an_honest_server_raises_no_alarm() {
    for plan in [
        Plan::default(),
        Plan { retries: true, ..Plan::default() },
        Plan { order: Order::Positions, keys: 3, ..Plan::default() },
    ] {
        let (report, noticed) = found(Lie::None, plan);
        report.assert_clean();
        assert_eq!(noticed, Vec::<String>::new());
        assert!(report.checks > 100, "{report}");
    }
}

#[test]
fn every_lie_is_noticed() {
    for order in [Order::Values, Order::Positions] {
        let plan = Plan { order, keys: 3, ..Plan::default() };
        for (lie, anomaly) in [
            (Lie::OldValue, Anomaly::Stale),
            (Lie::NotThere, Anomaly::Absent),
            (Lie::Forgotten, Anomaly::Stale),
            (Lie::RefusedYetDone, Anomaly::Ghost),
        ] {
            let (report, _) = found(lie, plan.clone());
            assert!(report.count(anomaly) > 0, "{lie:?} with {order:?}: {report}");
        }
        let (_, noticed) = found(Lie::Torn, plan.clone());
        assert!(noticed.iter().any(|why| why.contains("the vector is not that of value")), "{noticed:?}");
    }
    let (report, noticed) = found(Lie::DoneAgain, Plan { retries: true, keys: 3, ..Plan::default() });
    assert!(noticed.iter().any(|why| why.contains("its retry")), "{noticed:?}");
    assert!(report.count(Anomaly::Stale) > 0, "an old value came back: {report}");
}

#[test]
fn what_is_written_is_what_is_read() {
    let mut registers = Registers::default();
    let value = u64::from(u32::MAX) << 7 | 3;
    assert_eq!(registers.put(Lie::None, None, &upsert_body(9, value, 0)).0, 200);
    assert_eq!(crate::workload::value_in(9, &registers.get(Lie::None, 9).2), Ok(value));
}
