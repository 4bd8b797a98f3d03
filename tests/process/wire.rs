//! A wire between two processes: TCP with a delay each way, that can be cut and remembers what went over it.
//!
//! Invariants: bytes come in order and whole, or the connection breaks; a cut breaks every connection at once, and none
//! is made until it is mended.

#![allow(dead_code, clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

/// A wire to one address.
pub struct Wire {
    /// `http://127.0.0.1:PORT`
    pub url: String,
    inner: Arc<Inner>,
}

struct Inner {
    target: String,
    delay_us: AtomicU64,
    cut: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    bytes: AtomicU64,
    /// What went over it, if that is wanted.
    seen: Option<Mutex<Vec<u8>>>,
}

impl Wire {
    /// To `http://127.0.0.1:PORT`, with a delay each way.
    pub fn new(url: &str, delay: Duration, remember: bool) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = format!("http://{}", listener.local_addr().unwrap());
        let inner = Arc::new(Inner {
            target: url.trim_start_matches("http://").to_owned(),
            delay_us: AtomicU64::new(delay.as_micros() as u64),
            cut: AtomicBool::new(false),
            open: Mutex::default(),
            bytes: AtomicU64::new(0),
            seen: remember.then(Mutex::default),
        });
        let serving = inner.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if !serving.cut.load(Ordering::SeqCst) {
                    serving.clone().connect(stream);
                }
            }
        });
        Wire { url: own, inner }
    }

    pub fn cut(&self) {
        self.inner.cut.store(true, Ordering::SeqCst);
        for stream in self.inner.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.inner.cut.store(false, Ordering::SeqCst);
    }

    /// Bytes both ways so far.
    pub fn bytes(&self) -> u64 {
        self.inner.bytes.load(Ordering::SeqCst)
    }

    /// Whether these bytes went over it, in one piece or not.
    pub fn has_seen(&self, needle: &[u8]) -> bool {
        let seen = self.inner.seen.as_ref().expect("it remembers").lock().unwrap();
        seen.windows(needle.len()).any(|window| window == needle)
    }
}

impl Inner {
    fn connect(self: Arc<Self>, near: TcpStream) {
        let Ok(far) = TcpStream::connect(&self.target) else { return };
        for stream in [&near, &far] {
            let _ = stream.set_nodelay(true);
            self.open.lock().unwrap().push(stream.try_clone().unwrap());
        }
        if self.cut.load(Ordering::SeqCst) {
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
        }
        let (near_in, far_in) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        self.clone().pump(near_in, far);
        self.pump(far_in, near);
    }

    fn pump(self: Arc<Self>, mut from: TcpStream, mut to: TcpStream) {
        let (send, receive) = mpsc::channel::<(Instant, Vec<u8>)>();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let delay = Duration::from_micros(self.delay_us.load(Ordering::SeqCst));
                self.bytes.fetch_add(count as u64, Ordering::SeqCst);
                if let Some(seen) = &self.seen {
                    seen.lock().unwrap().extend(&buffer[..count]);
                }
                if send.send((Instant::now() + delay, buffer[..count].to_vec())).is_err() {
                    break;
                }
            }
        });
        thread::spawn(move || {
            for (at, bytes) in receive {
                thread::sleep(at.saturating_duration_since(Instant::now()));
                if to.write_all(&bytes).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
        });
    }
}
