//! A TCP proxy in front of a node, or of all nodes of a region, which tells by whom it is dialled: two directed links for
//! each connection.
//!
//! ```text
//! n1 --dials--> proxy of n2 --> n2              bytes of n1 follow the rule (1, 2), bytes of n2 the rule (2, 1)
//! n1 --dials--> proxy of a region --> a node of it that takes the connection
//! each direction: read (after what is before it, if narrow) -> wait for its delay -> written
//! ```
//!
//! Who dials is read from the kernel's table of sockets, so that the proxy knows nothing of what is spoken.
//!
//! Invariants: bytes of a cut link wait, as TCP's do, and so does the end of its stream; nothing is reordered.
//! Not here: refused or vanished connection attempts (a dial over a cut link is taken, and then silent).

use super::Links;
use rand::{Rng, seq::SliceRandom};
use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

/// Which process each node is at the moment.
pub type Pids = Arc<Mutex<Vec<Option<u32>>>>;

/// Who dials a proxy.
#[derive(Clone)]
pub enum Dialler {
    /// A node, whose process is one of these.
    Node(Pids),
    /// Anybody: what lies between is an affair of others, and nothing is done to these bytes.
    Anybody,
}

/// How often a waiting thread looks whether something has changed.
const LOOK: Duration = Duration::from_millis(10);
/// What a lost segment costs a TCP stream at the least.
const RETRANSMISSION: Duration = Duration::from_millis(200);
/// Pieces of one direction that are under way.
const UNDER_WAY: usize = 64;
/// A stream waits for a narrow link for as long as it takes.
const PATIENT: Duration = Duration::from_secs(3_600);

/// Listens at `listen` for what is meant for number `to` of the links, which is at any of `targets`. Ends when the links
/// are stopped.
pub fn start(
    links: Links,
    dialler: Dialler,
    to: usize,
    listen: SocketAddr,
    targets: Vec<SocketAddr>,
) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    thread::spawn(move || {
        while !links.stopped() {
            match listener.accept() {
                Ok((dialled, from)) => {
                    let (links, dialler, targets) = (links.clone(), dialler.clone(), targets.clone());
                    thread::spawn(move || carry(&links, &dialler, to, dialled, from, targets));
                }
                Err(_) => thread::sleep(LOOK),
            }
        }
    });
    Ok(())
}

/// Carries one connection until one of its ends is gone.
fn carry(
    links: &Links,
    dialler: &Dialler,
    to: usize,
    dialled: TcpStream,
    from: SocketAddr,
    mut targets: Vec<SocketAddr>,
) {
    let from = match dialler {
        Dialler::Node(pids) => who_dials(pids, from.port()),
        Dialler::Anybody => Some(to),
    };
    let Some(from) = from else { return };
    while links.rule(from, to).cut || links.rule(to, from).cut {
        links.touch(from, to);
        if links.stopped() {
            return;
        }
        thread::sleep(LOOK);
    }
    // Of several, any one that takes it.
    targets.shuffle(&mut rand::rng());
    let dial = |target: &SocketAddr| TcpStream::connect_timeout(target, Duration::from_secs(1)).ok();
    let Some(onward) = targets.iter().find_map(dial) else { return };
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

/// Some bytes on their way.
struct Piece {
    bytes: Vec<u8>,
    came: Instant,
    wait: Duration,
}

/// Carries one direction: what comes while a piece waits for its delay waits for its own.
fn pump(links: &Links, from: usize, to: usize, source: TcpStream, mut sink: TcpStream) {
    let Ok(mut reading) = source.try_clone() else { return };
    let (give, take) = mpsc::sync_channel::<Piece>(UNDER_WAY);
    thread::scope(|scope| {
        scope.spawn(move || {
            while let Some(piece) = read(links, from, to, &mut reading) {
                let last = piece.bytes.is_empty();
                if give.send(piece).is_err() || last {
                    break;
                }
            }
        });
        for piece in take {
            let passed = pass(links, from, to, &piece);
            if !passed || piece.bytes.is_empty() || sink.write_all(&piece.bytes).is_err() {
                break;
            }
        }
        let _ = sink.shutdown(Shutdown::Both);
        let _ = source.shutdown(Shutdown::Both);
    });
}

/// The next piece, empty at the end of the stream; none if everything is to end.
fn read(links: &Links, from: usize, to: usize, source: &mut TcpStream) -> Option<Piece> {
    let mut bytes = vec![0; 32 << 10];
    let count = loop {
        match source.read(&mut bytes) {
            Ok(count) => break count,
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                if links.stopped() {
                    return None;
                }
            }
            Err(_) => break 0,
        }
    };
    bytes.truncate(count);
    let leaves = links.leaves((from, to), count, PATIENT)?;
    while Instant::now() < leaves && links.rule(from, to).bytes_per_second_max.is_some() {
        links.touch(from, to);
        if links.stopped() {
            return None;
        }
        thread::sleep(LOOK.min(leaves.saturating_duration_since(Instant::now())));
    }
    let rule = links.rule(from, to);
    let lost = rule.loss > 0.0 && rand::rng().random_bool(rule.loss.min(1.0));
    let wait = rule.delay + if lost { RETRANSMISSION } else { Duration::ZERO };
    Some(Piece { bytes, came: Instant::now(), wait })
}

/// Waits as long as the link's rule wants; false if everything is to end.
fn pass(links: &Links, from: usize, to: usize, Piece { came, wait, .. }: &Piece) -> bool {
    if links.rule(from, to).cut || !wait.is_zero() {
        links.touch(from, to);
    }
    loop {
        let rule = links.rule(from, to);
        // Of a link that was mended meanwhile nothing waits for longer than it does now.
        let left = wait.min(&(rule.delay + RETRANSMISSION)).saturating_sub(came.elapsed());
        if (!rule.cut && left.is_zero()) || links.stopped() {
            return !links.stopped();
        }
        thread::sleep(if rule.cut { LOOK } else { LOOK.min(left) });
    }
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
        start(links.clone(), Dialler::Node(pids), 1, listen, vec![at]).unwrap();
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
            links.set(from, to, Rule::CUT);
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
    fn a_slow_link_is_slow_and_carries_several_pieces_at_once() {
        let (links, mut socket) = echo();
        links.set(0, 1, Rule { delay: Duration::from_millis(100), ..Rule::default() });
        let started = Instant::now();
        for _ in 0..5 {
            socket.write_all(b"a").unwrap();
            thread::sleep(Duration::from_millis(15));
        }
        socket.read_exact(&mut [0; 1]).unwrap();
        assert!(started.elapsed() >= Duration::from_millis(100));
        socket.read_exact(&mut [0; 4]).unwrap();
        assert!(started.elapsed() < Duration::from_millis(300), "{:?}", started.elapsed());
        links.stop();
    }

    #[test]
    fn a_narrow_link_takes_its_time() {
        let (links, mut socket) = echo();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        links.set(0, 1, Rule { bytes_per_second_max: Some(100_000), ..Rule::default() });
        let started = Instant::now();
        socket.write_all(&[7; 50_000]).unwrap();
        socket.read_exact(&mut vec![0; 50_000]).unwrap();
        let took = started.elapsed();
        assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(2), "{took:?}");
        assert!(links.touched() > 0);
        links.stop();
    }

    #[test]
    fn of_several_nodes_one_that_listens_is_dialled() {
        let deaf = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let heard = TcpListener::bind("127.0.0.1:0").unwrap();
        let targets = vec![deaf, heard.local_addr().unwrap(), deaf];
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let links = Links::new(2);
        start(links.clone(), Dialler::Anybody, 1, listen, targets).unwrap();
        for _ in 0..8 {
            TcpStream::connect(listen).unwrap().write_all(b"a").unwrap();
            let (mut socket, _) = heard.accept().unwrap();
            socket.read_exact(&mut [0; 1]).unwrap();
        }
        links.stop();
    }
}
