//! A packet switch in user space: every frame between two ports follows the rule of its directed link.
//!
//! ```text
//! port 0..n  tap devices, one in each node's namespace      port n  a tap device of the clients, always whole
//! frame -> sender's port, address of destination -> rule -> dropped, or in a queue by time -> destination's port
//!                                                            (a narrow link: after the frames before it)
//! ```
//!
//! Invariants: frames of one link leave in the order in which they came, as long as its delay stays the same; a port
//! whose device is gone stays silent. A tap device hands over whole frames with their checksums made, so nothing is
//! rewritten here.
//! Source: what netem does in the kernel, where it is built in.

use super::{Links, Rule};
use rand::Rng;
use std::{
    collections::{BTreeMap, BinaryHeap},
    io,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tappers::Tap;

/// Longest frame (an Ethernet header and 1,500 bytes, with room for a tag).
const FRAME_BYTES_MAX: usize = 2048;
/// Frames that wait at most; what comes then is lost, as on a real line.
const WAITING_MAX: usize = 1 << 16;

/// What a narrow link keeps waiting at most, in time; what comes then is lost.
const NARROW_WAIT: Duration = Duration::from_millis(500);

/// Frames that wait for their time.
#[derive(Default)]
struct Queue {
    waiting: Mutex<BinaryHeap<Waiting>>,
    came: Condvar,
    count: AtomicU64,
}

/// Ordered by time, the earliest first, then as they came.
struct Waiting {
    due: Instant,
    number: u64,
    port: usize,
    frame: Vec<u8>,
}

impl PartialEq for Waiting {
    fn eq(&self, other: &Self) -> bool {
        (self.due, self.number) == (other.due, other.number)
    }
}

impl Eq for Waiting {}

impl PartialOrd for Waiting {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Waiting {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.number).cmp(&(self.due, self.number))
    }
}

type Mac = [u8; 6];

/// Switches frames between ports until the links are stopped.
pub fn start(links: Links, ports: Vec<Tap>) -> io::Result<()> {
    let ports: Arc<Vec<Tap>> = Arc::new(ports);
    let queue = Arc::new(Queue::default());
    let learned: Arc<Mutex<BTreeMap<Mac, usize>>> = Arc::default();
    for port in 0..ports.len() {
        let (links, ports, queue, learned) = (links.clone(), ports.clone(), queue.clone(), learned.clone());
        thread::spawn(move || {
            let mut bytes = vec![0; FRAME_BYTES_MAX];
            while !links.stopped() {
                match ports[port].recv(&mut bytes) {
                    Ok(count) if count >= 14 => {
                        for to in destinations(&learned, port, &bytes, ports.len()) {
                            queue.take_in(&links, port, to, ports.len() - 1, &bytes[..count]);
                        }
                    }
                    Ok(_) => {}
                    Err(_) => thread::sleep(Duration::from_millis(20)),
                }
            }
        });
    }
    thread::spawn(move || queue.give_out(&links, &ports));
    Ok(())
}

/// Where a frame goes: the port its destination was last seen at, or all others.
fn destinations(
    learned: &Mutex<BTreeMap<Mac, usize>>,
    port: usize,
    frame: &[u8],
    ports: usize,
) -> Vec<usize> {
    let mac = |at: usize| -> Mac { std::array::from_fn(|n| frame[at + n]) };
    let (to, from) = (mac(0), mac(6));
    let mut learned = learned.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    learned.insert(from, port);
    match learned.get(&to) {
        Some(known) if to[0] & 1 == 0 => vec![*known].into_iter().filter(|known| *known != port).collect(),
        _ => (0..ports).filter(|other| *other != port).collect(),
    }
}

impl Queue {
    /// Takes a frame in as its link's rule says. Links of the clients' port are whole.
    fn take_in(&self, links: &Links, from: usize, to: usize, clients: usize, frame: &[u8]) {
        let mut due = Instant::now();
        if from != clients && to != clients {
            let rule = links.rule(from, to);
            let lost = rule.cut || rule.loss > 0.0 && rand::rng().random_bool(rule.loss.min(1.0));
            if rule != Rule::default() {
                links.touch(from, to);
            }
            let leaves = links.leaves((from, to), frame.len(), NARROW_WAIT).filter(|_| !lost);
            let Some(leaves) = leaves else { return };
            due = leaves + rule.delay;
        }
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if waiting.len() < WAITING_MAX {
            waiting.push(Waiting { due, number, port: to, frame: frame.to_vec() });
            self.came.notify_one();
        }
    }

    fn give_out(&self, links: &Links, ports: &[Tap]) {
        let mut waiting = self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        while !links.stopped() {
            let now = Instant::now();
            let wait = waiting
                .peek()
                .map_or(Duration::from_millis(50), |next| next.due.saturating_duration_since(now));
            if !wait.is_zero() {
                let woken = self.came.wait_timeout(waiting, wait);
                (waiting, _) = woken.unwrap_or_else(|poisoned| poisoned.into_inner());
                continue;
            }
            if let Some(Waiting { port, frame, .. }) = waiting.pop() {
                drop(waiting);
                // A device that is down loses the frame.
                let _ = ports[port].send(&frame);
                waiting = self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_leave_by_time_and_then_as_they_came() {
        let now = Instant::now();
        let mut heap = BinaryHeap::new();
        for (number, after) in [(0, 20), (1, 10), (2, 10), (3, 0)] {
            let due = now + Duration::from_millis(after);
            heap.push(Waiting { due, number, port: 0, frame: Vec::new() });
        }
        let order: Vec<_> = std::iter::from_fn(|| heap.pop()).map(|waiting| waiting.number).collect();
        assert_eq!(order, [3, 1, 2, 0]);
    }

    #[test]
    fn an_address_is_learned_where_it_was_seen() {
        let learned = Mutex::default();
        let frame = |to: u8, from: u8| [[to; 6], [from; 6]].concat();
        assert_eq!(destinations(&learned, 0, &frame(4, 2), 3), [1, 2], "not seen yet: to all others");
        assert_eq!(destinations(&learned, 1, &frame(2, 4), 3), [0]);
        assert_eq!(destinations(&learned, 0, &frame(255, 2), 3), [1, 2], "to all");
    }
}
