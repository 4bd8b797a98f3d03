//! A cheap HTTP/1.1 connection for load: kept alive, bytes encoded by the caller, and honest about how a request
//! failed.
//!
//! Invariants: [`Failed::NotSent`] means that no byte of the request left; everything else that is not an answer
//! is [`Failed::Lost`], and the connection is opened anew. A kept connection that the server has closed meanwhile
//! is noticed before it is used again.
//! Not here: pools, redirects, compression, TLS.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::{
    fmt,
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// One connection to one node, opened when it is needed.
pub struct Connection {
    address: SocketAddr,
    socket: Option<TcpStream>,
    /// Bytes that were read and not yet used.
    buffer: Vec<u8>,
    /// How long opening it may take.
    pub connect_within: Duration,
    /// How long an answer may take.
    pub answer_within: Duration,
}

/// An answer, as text.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    head: String,
    pub body: String,
}

/// Why there was no answer.
#[derive(Clone, Debug)]
pub enum Failed {
    /// The node never saw the request.
    NotSent(String),
    /// The node may have seen it and done what it says.
    Lost(String),
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failed::NotSent(why) => write!(f, "not sent: {why}"),
            Failed::Lost(why) => write!(f, "lost: {why}"),
        }
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// Whether the node says that nothing has changed.
    pub fn no_effect(&self) -> bool {
        self.header("annal-effect") == Some("none")
    }

    /// The unsigned number behind the first `"key":` of the body.
    pub fn number(&self, key: &str) -> Option<u64> {
        number_in(&self.body, key)
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or(serde_json::Value::Null)
    }
}

/// The unsigned number behind the first `"key":` of JSON text; faster than parsing all of it.
pub fn number_in(text: &str, key: &str) -> Option<u64> {
    let after = text.split_once(&format!("\"{key}\":"))?.1.trim_start();
    let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    after[..digits].parse().ok()
}

impl Connection {
    /// To `http://127.0.0.1:PORT`.
    pub fn new(url: &str) -> Self {
        Connection {
            address: url.strip_prefix("http://").unwrap().parse().unwrap(),
            socket: None,
            buffer: Vec::new(),
            connect_within: Duration::from_secs(1),
            answer_within: Duration::from_secs(10),
        }
    }

    /// The same, waiting so long for an answer.
    pub fn within(mut self, time: Duration) -> Self {
        self.answer_within = time;
        self
    }

    pub fn get(&mut self, path: &str, headers: &[(&str, &str)]) -> Result<Reply, Failed> {
        self.send("GET", path, headers, "")
    }

    /// Sends a request and waits for its whole answer.
    pub fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<Reply, Failed> {
        self.write(method, path, headers, body)?;
        let deadline = Instant::now() + self.answer_within;
        let reply =
            self.read_head(deadline).and_then(|(status, head)| self.read_body(status, head, deadline));
        match reply {
            Ok(reply) => {
                if reply.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close")) {
                    self.close();
                }
                Ok(reply)
            }
            Err(e) => {
                self.close();
                Err(Failed::Lost(e.to_string()))
            }
        }
    }

    /// Sends a request whose answer goes on for long; gives its lines one by one.
    pub fn follow(mut self, path: &str, headers: &[(&str, &str)]) -> Result<Lines, (Option<Reply>, Failed)> {
        self.write("GET", path, headers, "").map_err(|e| (None, e))?;
        let deadline = Instant::now() + self.answer_within;
        let lost = |e: io::Error| (None, Failed::Lost(e.to_string()));
        let (status, head) = self.read_head(deadline).map_err(lost)?;
        if status != 200 {
            let reply = self.read_body(status, head, deadline).map_err(lost)?;
            let why = format!("{status} {}", reply.body);
            return Err((Some(reply), Failed::Lost(why)));
        }
        let chunked = is_chunked(&head);
        Ok(Lines { connection: self, chunked, in_chunk: 0, line: Vec::new(), ended: false })
    }

    fn close(&mut self) {
        self.socket = None;
        self.buffer.clear();
    }

    fn write(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Result<(), Failed> {
        if self.socket.as_ref().is_some_and(has_ended) {
            self.close();
        }
        if self.socket.is_none() {
            let opened = TcpStream::connect_timeout(&self.address, self.connect_within)
                .and_then(|socket| socket.set_nodelay(true).map(|()| socket));
            self.socket = Some(opened.map_err(|e| Failed::NotSent(e.to_string()))?);
        }
        let mut request = format!("{method} {path} HTTP/1.1\r\nhost: annal\r\n");
        for (name, value) in headers {
            request.extend([name, ": ", value, "\r\n"]);
        }
        if !body.is_empty() {
            request += &format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        }
        request += "\r\n";
        request += body;
        let socket = self.socket.as_mut().unwrap();
        let written = socket
            .set_write_timeout(Some(self.answer_within))
            .and_then(|()| socket.write_all(request.as_bytes()));
        written.map_err(|e| {
            self.close();
            Failed::Lost(e.to_string())
        })
    }

    fn read_head(&mut self, deadline: Instant) -> io::Result<(u16, String)> {
        let end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n\r\n") {
                break end;
            }
            self.fill(deadline)?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok());
        Ok((status.ok_or_else(|| io::Error::other("no status line"))?, head))
    }

    fn read_body(&mut self, status: u16, head: String, deadline: Instant) -> io::Result<Reply> {
        let mut reply = Reply { status, head, body: String::new() };
        let mut body = Vec::new();
        if is_chunked(&reply.head) {
            loop {
                let length = self.read_chunk_length(deadline)?;
                body.extend(self.take(length + 2, deadline)?);
                body.truncate(body.len() - 2);
                if length == 0 {
                    break;
                }
            }
        } else {
            let length = reply.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
            body = self.take(length, deadline)?;
        }
        reply.body = String::from_utf8(body).map_err(io::Error::other)?;
        Ok(reply)
    }

    fn read_chunk_length(&mut self, deadline: Instant) -> io::Result<usize> {
        let end = loop {
            if let Some(end) = find(&self.buffer, b"\r\n") {
                break end;
            }
            self.fill(deadline)?;
        };
        let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
        let text = String::from_utf8_lossy(&line[..end]).into_owned();
        let digits = text.split(';').next().unwrap_or_default().trim();
        usize::from_str_radix(digits, 16).map_err(|_| io::Error::other(format!("chunk length {text:?}")))
    }

    fn take(&mut self, count: usize, deadline: Instant) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            self.fill(deadline)?;
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Reads what has come, at least one byte.
    fn fill(&mut self, deadline: Instant) -> io::Result<()> {
        let socket = self.socket.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let mut bytes = [0; 16 << 10];
        match socket.read(&mut bytes)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                self.buffer.extend(&bytes[..count]);
                Ok(())
            }
        }
    }
}

/// Whether the other side has closed an idle connection (or sent what nobody asked for).
fn has_ended(socket: &TcpStream) -> bool {
    if socket.set_nonblocking(true).is_err() {
        return true;
    }
    let peeked = socket.peek(&mut [0]);
    let idle = matches!(peeked, Err(e) if e.kind() == io::ErrorKind::WouldBlock);
    !idle || socket.set_nonblocking(false).is_err()
}

fn is_chunked(head: &str) -> bool {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.any(|(n, v)| n.eq_ignore_ascii_case("transfer-encoding") && v.trim() == "chunked")
}

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// The lines of an answer that goes on; dropping it cuts the connection.
pub struct Lines {
    connection: Connection,
    chunked: bool,
    /// Bytes of the chunk that are still to come.
    in_chunk: usize,
    /// The line that has begun.
    line: Vec<u8>,
    ended: bool,
}

impl Lines {
    /// The next whole line; none once the answer has ended.
    ///
    /// Errors: cut off, or nothing within `within`. What had come of the line is lost with it.
    pub fn next(&mut self, within: Duration) -> io::Result<Option<String>> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(end) = self.line.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.line.drain(..=end).collect();
                return String::from_utf8(line).map(Some).map_err(io::Error::other);
            }
            if self.ended {
                return Ok(None);
            }
            self.read_some(deadline)?;
        }
    }

    fn read_some(&mut self, deadline: Instant) -> io::Result<()> {
        let connection = &mut self.connection;
        if !self.chunked {
            connection.fill(deadline)?;
            self.line.append(&mut connection.buffer);
            return Ok(());
        }
        if self.in_chunk == 0 {
            self.in_chunk = connection.read_chunk_length(deadline)?;
            if self.in_chunk == 0 {
                self.ended = true;
                return Ok(());
            }
        }
        if connection.buffer.is_empty() {
            connection.fill(deadline)?;
        }
        let count = self.in_chunk.min(connection.buffer.len());
        self.line.extend(connection.buffer.drain(..count));
        self.in_chunk -= count;
        if self.in_chunk == 0 {
            connection.take(2, deadline)?;
        }
        Ok(())
    }
}
