//! A TCP proxy in front of every node, which tells by whom it is dialled: two directed links for each connection.
//!
//! ```text
//! n1 --dials--> proxy of n2 --> n2      bytes of n1 follow the rule (1, 2), bytes of n2 the rule (2, 1)
//! ```
//!
//! Who dials is read from the kernel's table of sockets, so that the proxy knows nothing of what is spoken.
//!
//! Invariants: bytes of a cut link wait, as TCP's do, and so does the end of its stream; nothing is reordered.
//! Not here: refused or vanished connection attempts (a dial over a cut link is taken, and then silent).

use super::Links;
use rand::Rng;
use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

/// Which process each node is at the moment.
pub type Pids = Arc<Mutex<Vec<Option<u32>>>>;

/// How often a waiting thread looks whether something has changed.
const LOOK: Duration = Duration::from_millis(10);
/// What a lost segment costs a TCP stream at the least.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// Listens at `listen` for what is meant for node `to`, which listens at `target`. Ends when the links are stopped.
pub fn start(links: Links, pids: Pids, to: usize, listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    thread::spawn(move || {
        while !links.stopped() {
            match listener.accept() {
                Ok((dialled, from)) => {
                    let (links, pids) = (links.clone(), pids.clone());
                    thread::spawn(move || carry(&links, &pids, to, dialled, from, target));
                }
                Err(_) => thread::sleep(LOOK),
            }
        }
    });
    Ok(())
}

/// Carries one connection until one of its ends is gone.
fn carry(links: &Links, pids: &Pids, to: usize, dialled: TcpStream, dialler: SocketAddr, target: SocketAddr) {
    let Some(from) = who_dials(pids, dialler.port()) else { return };
    while links.rule(from, to).cut || links.rule(to, from).cut {
        links.touch(from, to);
        if links.stopped() {
            return;
        }
        thread::sleep(LOOK);
    }
    let Ok(onward) = TcpStream::connect_timeout(&target, Duration::from_secs(1)) else { return };
    let ready = |socket: &TcpStream| {
        socket.set_nonblocking(false)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LOOK * 2))?;
        socket.try_clone()
    };
    let (Ok(back_from), Ok(back_to)) = (ready(&onward), ready(&dialled)) else { return };
    let links_back = links.clone();
    let back = thread::spawn(move || pump(&links_back, to, from, back_from, back_to));
    pump(links, from, to, dialled, onward);
    let _ = back.join();
}

/// Carries one direction.
fn pump(links: &Links, from: usize, to: usize, mut source: TcpStream, mut sink: TcpStream) {
    let mut bytes = vec![0; 32 << 10];
    loop {
        let count = match source.read(&mut bytes) {
            Ok(count) => count,
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                if links.stopped() {
                    break;
                }
                continue;
            }
            Err(_) => 0,
        };
        if !pass(links, from, to) || count == 0 || sink.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = sink.shutdown(Shutdown::Both);
    let _ = source.shutdown(Shutdown::Both);
}

/// Waits as long as the link's rule wants; false if everything is to end.
fn pass(links: &Links, from: usize, to: usize) -> bool {
    let came = Instant::now();
    let rule = links.rule(from, to);
    let lost = rule.loss > 0.0 && rand::rng().random_bool(rule.loss.min(1.0));
    let wait = rule.delay + if lost { RETRANSMISSION } else { Duration::ZERO };
    if rule.cut || !wait.is_zero() {
        links.touch(from, to);
    }
    while links.rule(from, to).cut || came.elapsed() < wait.min(links.rule(from, to).delay + RETRANSMISSION) {
        if links.stopped() {
            return false;
        }
        thread::sleep(LOOK.min(wait.max(Duration::from_millis(1))));
    }
    !links.stopped()
}

/// The node whose socket has this local port.
fn who_dials(pids: &Pids, port: u16) -> Option<usize> {
    let inode = inode_of(&fs::read_to_string("/proc/net/tcp").ok()?, port)?;
    let name = format!("socket:[{inode}]");
    let pids = pids.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    pids.into_iter().position(|pid| {
        let Some(files) = pid.and_then(|pid| fs::read_dir(format!("/proc/{pid}/fd")).ok()) else {
            return false;
        };
        files
            .flatten()
            .any(|file| fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == name.as_str()))
    })
}

/// From the kernel's table: ` 0: 0100007F:8B3C 0100007F:1F90 01 … inode …`, addresses in hexadecimal.
fn inode_of(table: &str, port: u16) -> Option<u64> {
    let local = format!("0100007F:{port:04X}");
    let row = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut row = row.filter(|fields| fields.len() > 9 && fields[1] == local);
    row.find_map(|fields| fields[9].parse().ok().filter(|inode| *inode > 0))
}

#[cfg(test)]
mod tests {
    use super::{super::Rule, *};

    /// A node that echoes, dialled by this very process, which is node 0.
    fn echo() -> (Links, TcpStream) {
        let target = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = target.local_addr().unwrap();
        thread::spawn(move || {
            for socket in target.incoming().flatten() {
                thread::spawn(move || io::copy(&mut socket.try_clone().unwrap(), &mut &socket));
            }
        });
        let links = Links::new(2);
        let pids: Pids = Arc::new(Mutex::new(vec![Some(std::process::id()), None]));
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        start(links.clone(), pids, 1, listen, at).unwrap();
        let socket = TcpStream::connect(listen).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        (links, socket)
    }

    #[test]
    fn each_direction_is_cut_by_itself() {
        let (links, mut socket) = echo();
        let mut answer = [0; 1];
        socket.write_all(b"a").unwrap();
        socket.read_exact(&mut answer).unwrap();
        for (from, to) in [(0, 1), (1, 0)] {
            links.set(from, to, Rule { cut: true, ..Rule::default() });
            socket.write_all(b"b").unwrap();
            assert!(socket.read_exact(&mut answer).is_err(), "({from}, {to}) is cut");
            links.heal();
            socket.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"b", "what waited comes after all");
        }
        assert!(links.touched() > 0);
        links.stop();
    }

    #[test]
    fn a_slow_link_is_slow() {
        let (links, mut socket) = echo();
        links.set(0, 1, Rule { delay: Duration::from_millis(100), ..Rule::default() });
        let started = Instant::now();
        socket.write_all(b"a").unwrap();
        socket.read_exact(&mut [0; 1]).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(100));
        links.stop();
    }
}
