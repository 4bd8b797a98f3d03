//! A network namespace for every node, joined by the switch alone.
//!
//! ```text
//! namespace of node i   tap device, 10.77.S.(i+1)/24       ours   tap device, 10.77.S.254/24
//! ```
//!
//! Invariants: what was made is taken away when this is dropped, and nothing else is touched; names and the number
//! S hold the number of our process, so that two runs do not meet.
//! Not here: what passes between nodes (see `switch`).

use super::{Links, switch};
use crate::shell;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{fs::File, net::Ipv4Addr, os::fd::AsFd, thread};
use tappers::{Interface, Tap};

/// Namespaces of some nodes; taken away when dropped.
pub struct Netns {
    names: Vec<String>,
    subnet: u8,
}

/// The address of the clients' end, within the subnet.
const CLIENTS: u8 = 254;

impl Netns {
    /// Makes namespaces for `count` nodes and starts the switch between them.
    ///
    /// Errors: not root, or the kernel has no tap devices or namespaces; what was made is taken away again.
    pub fn new(count: usize, links: Links) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("network namespaces want root".to_owned());
        }
        let pid = std::process::id();
        let mut netns = Netns { names: Vec::new(), subnet: (pid % 250) as u8 + 1 };
        let mut ports = Vec::new();
        for i in 0..count {
            let name = format!("annal-{pid}-n{}", i + 1);
            shell::run("ip", &["netns", "add", &name])?;
            netns.names.push(name.clone());
            let device = format!("aj{}n{}", pid % 100_000, i + 1);
            ports.push(tap(&device)?);
            shell::run("ip", &["link", "set", &device, "netns", &name])?;
            let address = format!("{}/24", netns.address(i));
            let inside = |arguments: &[&str]| shell::run("ip", &[&["-n", name.as_str()], arguments].concat());
            inside(&["address", "add", &address, "dev", &device])?;
            inside(&["link", "set", &device, "up"])?;
            inside(&["link", "set", "lo", "up"])?;
        }
        let device = format!("aj{}c", pid % 100_000);
        ports.push(tap(&device)?);
        let address = format!("{}/24", Ipv4Addr::new(10, 77, netns.subnet, CLIENTS));
        shell::run("ip", &["address", "add", &address, "dev", &device])?;
        shell::run("ip", &["link", "set", &device, "up"])?;
        switch::start(links, ports).map_err(|e| e.to_string())?;
        Ok(netns)
    }

    /// The address of a node.
    pub fn address(&self, i: usize) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.subnet, i as u8 + 1)
    }

    /// Does something on a thread of a node's namespace; the threads that it starts, and what they open, are there too.
    ///
    /// Errors: the namespace cannot be entered.
    pub fn inside<T: Send>(&self, i: usize, work: impl FnOnce() -> T + Send) -> Result<T, String> {
        let path = format!("/run/netns/{}", self.names[i]);
        let enter = || {
            let namespace = File::open(&path).map_err(|e| e.to_string())?;
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(namespace.as_fd(), kind).map_err(|e| e.to_string())
        };
        let done = thread::scope(|scope| scope.spawn(|| enter().map(|()| work())).join());
        done.unwrap_or_else(|_| Err("its thread panicked".to_owned())).map_err(|why| format!("{path}: {why}"))
    }

    /// What a command line begins with that runs in a node's namespace.
    pub fn enter(&self, i: usize) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net=/run/netns/{}", self.names[i])]
    }
}

fn tap(device: &str) -> Result<Tap, String> {
    let named = Interface::new(device).and_then(Tap::new_named);
    named.map_err(|e| format!("tap device {device}: {e}"))
}

impl Drop for Netns {
    fn drop(&mut self) {
        for name in &self.names {
            // The devices inside go with it.
            let _ = shell::run("ip", &["netns", "delete", name]);
        }
    }
}
