//! The machine under a node: its clock, its processor time, its memory.
//!
//! A squeeze puts the process into a control group of its own (version 1 or 2, wherever it may be made) and takes
//! it out again; the group is removed.

use super::{Injected, Refused, Try, names, target};
use crate::cluster::Cluster;
use rand::{Rng, rngs::StdRng};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The wall clock jumps, or goes at another rate.
pub(super) fn clock(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let i = target(cluster, rng);
    let node = &cluster.nodes[i];
    let Some(clock) = node.clock.clone() else {
        return Err(Refused::Skipped("libfaketime is not installed".to_owned()));
    };
    let maps = node.pid().and_then(|pid| fs::read_to_string(format!("/proc/{pid}/maps")).ok());
    if !maps.is_some_and(|maps| maps.contains("libfaketime")) {
        return Err(Refused::Indeterminate("the process has not loaded libfaketime".to_owned()));
    }
    let setting = match rng.random_range(0..4) {
        0 => format!("+{}s", rng.random_range(1..900)),
        1 => format!("-{}s", rng.random_range(1..900)),
        2 => "+0 x1.5".to_owned(),
        _ => "+0 x0.6".to_owned(),
    };
    fs::write(&clock, &setting).map_err(|e| e.to_string())?;
    let what = json!({"nodes": names(cluster, &[i]), "clock": setting});
    Ok(Injected::new(what, move |_| fs::write(&clock, "+0").map_err(|e| e.to_string())))
}

/// What a node gets too little of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Resource {
    /// Three hundredths of one processor.
    Cpu,
    /// Some megabytes beside what it has.
    Memory,
}

impl Resource {
    /// Controller, file and limit in version 1, then file and limit in version 2.
    fn settings(self) -> (&'static str, [(&'static str, &'static str); 2]) {
        match self {
            Resource::Cpu => ("cpu", [("cpu.cfs_quota_us", "3000"), ("cpu.max", "3000 100000")]),
            Resource::Memory => {
                ("memory", [("memory.limit_in_bytes", "25165824"), ("memory.max", "25165824")])
            }
        }
    }
}

pub(super) fn squeeze(cluster: &mut Cluster, rng: &mut StdRng, resource: Resource) -> Try {
    let i = target(cluster, rng);
    let pid = cluster.nodes[i].pid().ok_or_else(|| "the node does not run".to_owned())?;
    let name = format!("annal-jepsen-{}-{}", std::process::id(), cluster.nodes[i].name);
    let group = make_group(resource, &name).map_err(Refused::Skipped)?;
    if let Err(e) = fs::write(group.join("cgroup.procs"), pid.to_string()) {
        let _ = fs::remove_dir(&group);
        return Err(Refused::Skipped(format!("{}: {e}", group.display())));
    }
    let what = json!({"nodes": names(cluster, &[i]), "of": format!("{resource:?}").to_lowercase()});
    Ok(Injected::new(what, move |cluster| {
        let parent = group.parent().unwrap_or(Path::new("/sys/fs/cgroup")).join("cgroup.procs");
        let inside = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            let _ = fs::write(&parent, pid);
        }
        let removed = fs::remove_dir(&group).map_err(|e| format!("{}: {e}", group.display()));
        // Out of memory it may have been killed.
        cluster.restart(i).and(removed)
    }))
}

fn make_group(resource: Resource, name: &str) -> Result<PathBuf, String> {
    let (controller, [one, two]) = resource.settings();
    let root = Path::new("/sys/fs/cgroup");
    let (parent, (file, limit)) =
        if root.join(controller).is_dir() { (root.join(controller), one) } else { (root.to_owned(), two) };
    let group = parent.join(name);
    let made = fs::create_dir(&group).and_then(|()| fs::write(group.join(file), limit));
    made.map_err(|e| {
        let _ = fs::remove_dir(&group);
        format!("{}: {e}", group.display())
    })?;
    Ok(group)
}
