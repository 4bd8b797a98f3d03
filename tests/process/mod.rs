//! A real `annal` process under test: started on free ports over a folder of its own, killed hard, and spoken to
//! over HTTP.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use serde_json::Value;
use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// How long a node may take to start and to get ready.
const START: Duration = Duration::from_secs(60);

/// How a node is started.
#[derive(Clone)]
pub struct NodeOptions {
    pub data_dir: PathBuf,
    /// `127.0.0.1:0` takes a free port.
    pub http: String,
    /// More arguments of `annal serve`.
    pub arguments: Vec<String>,
    /// More environment variables.
    pub environment: Vec<(String, String)>,
}

impl NodeOptions {
    pub fn new(data_dir: &Path) -> Self {
        NodeOptions {
            data_dir: data_dir.to_owned(),
            http: "127.0.0.1:0".into(),
            arguments: ["--peer", "127.0.0.1:0", "--grpc", "off"].map(String::from).into(),
            environment: Vec::new(),
        }
    }
}

/// A running node; killed hard when dropped.
pub struct Node {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub url: String,
    options: NodeOptions,
}

impl Node {
    /// Starts a node and waits until it listens (not until it is ready).
    pub fn start(options: NodeOptions) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_annal"))
            .arg("serve")
            .arg("--data-dir")
            .arg(&options.data_dir)
            .args(["--http", &options.http])
            .args(&options.arguments)
            .envs(options.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address = lines.by_ref().find_map(|line| {
            let words = line.unwrap();
            let mut words = words.split_whitespace();
            (words.next() == Some("listening"))
                .then(|| words.find_map(|w| w.strip_prefix("http=")).unwrap().to_owned())
        });
        let Some(address) = address else {
            panic!("annal ended before it listened: {}", child.wait().unwrap());
        };
        // What it prints later is of no interest, but must not fill the pipe.
        thread::spawn(move || lines.for_each(drop));
        Node { child, url: format!("http://{address}"), options }
    }

    /// Starts a node over `data_dir` and waits until it is ready.
    pub fn ready(data_dir: &Path) -> Self {
        let mut node = Node::start(NodeOptions::new(data_dir));
        node.wait_ready();
        node
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Processor time of the node so far.
    pub fn cpu(&self) -> Duration {
        processor_time(self.pid())
    }

    pub fn client(&self) -> Client {
        Client::new(&self.url)
    }

    /// Waits for `/readyz` and tells how long it took.
    pub fn wait_ready(&mut self) -> Duration {
        let started = Instant::now();
        let client = self.client();
        while client.get("/readyz").status != 200 {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("annal ended before it was ready: {status}");
            }
            assert!(started.elapsed() < START, "not ready after {START:?}");
            thread::sleep(Duration::from_millis(10));
        }
        started.elapsed()
    }

    /// Kills the node as a power cut of the process would: SIGKILL, at once.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks the node to stop (SIGTERM) and tells how it ended.
    pub fn stop(&mut self) -> std::process::ExitStatus {
        let sent = Command::new("kill").args(["-TERM", &self.pid().to_string()]).status().unwrap();
        assert!(sent.success());
        self.child.wait().unwrap()
    }

    /// Kills the node and starts it again over the same data, on a new port.
    pub fn kill_and_restart(mut self) -> Self {
        self.kill();
        let mut node = Node::start(self.options.clone());
        node.wait_ready();
        node
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Processor time of a process so far, in hundredths of a second: its own and the kernel's for it.
pub fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    let (_, behind_name) = stat.rsplit_once(')').expect("a name in brackets");
    let ticks =
        behind_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().expect("a number"));
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

/// A JSON client of one node; cheap to clone, its connections are shared.
#[derive(Clone)]
pub struct Client {
    agent: ureq::Agent,
    pub url: String,
    /// Sent with every request.
    pub headers: Vec<(String, String)>,
}

/// An answer. Status 0: none came.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub text: String,
}

impl Client {
    pub fn new(url: &str) -> Self {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(60)))
            .build()
            .new_agent();
        Client { agent, url: url.to_owned(), headers: Vec::new() }
    }

    /// The same client, sending one more header.
    pub fn with(&self, name: &str, value: &str) -> Self {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.to_owned()));
        client
    }

    /// The same client, giving up after this time.
    pub fn within(&self, time: Duration) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(time));
        Client { agent: config.build().new_agent(), ..self.clone() }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, None)
    }

    pub fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, Some(&body.to_string()))
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, Some(&body.to_string()))
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, None)
    }

    /// Sends a request; whatever goes wrong on the way gives status 0.
    pub fn send(&self, method: &str, path: &str, body: Option<&str>) -> Answer {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let answer = match body {
            Some(body) => {
                let request =
                    request.header("content-type", "application/json").body(body.to_owned()).unwrap();
                self.agent.run(request)
            }
            None => self.agent.run(request.body(()).unwrap()),
        };
        match answer {
            Ok(mut answer) => {
                let status = answer.status().as_u16();
                let headers = answer.headers().iter();
                let headers =
                    headers.map(|(n, v)| (n.to_string(), v.to_str().unwrap_or("?").to_owned())).collect();
                match answer.body_mut().with_config().limit(1 << 30).read_to_string() {
                    Ok(text) => Answer { status, headers, text },
                    Err(e) => Answer::none(e),
                }
            }
            Err(e) => Answer::none(e),
        }
    }
}

impl Answer {
    fn none(e: ureq::Error) -> Self {
        Answer { status: 0, headers: Vec::new(), text: e.to_string() }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; null if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or(Value::Null)
    }

    /// `result` of an answer that must be 200.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text);
        self.json()["result"].take()
    }
}
