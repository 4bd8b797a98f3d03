//! Disks that lose power, fail, fill up and hang. Each wants a disk of the node's own.

use super::{Injected, Refused, Try, names, target, targets};
use crate::{cluster::Cluster, disk::Disk};
use rand::rngs::StdRng;
use serde_json::json;

/// What was not fsynced is gone, on one node or on all at once.
pub(super) fn cut_power(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let cut = targets(cluster, rng);
    for i in &cut {
        of(cluster, *i)?.cut_power()?;
        cluster.kill(*i)?;
    }
    let what = json!({"nodes": names(cluster, &cut)});
    Ok(Injected::new(what, move |cluster| cut.iter().try_for_each(|i| revive(cluster, *i))))
}

/// Every access fails; the node must stop, or at least acknowledge nothing.
pub(super) fn fail(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let i = target(cluster, rng);
    of(cluster, i)?.fail()?;
    let what = json!({"nodes": names(cluster, &[i])});
    Ok(Injected::new(what, move |cluster| revive(cluster, i)))
}

/// Writes fail, reads go on.
pub(super) fn set_read_only(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let i = target(cluster, rng);
    let made = of(cluster, i)?.set_read_only();
    if let Err(why) = made {
        revive(cluster, i)?;
        return Err(Refused::Skipped(why));
    }
    let what = json!({"nodes": names(cluster, &[i])});
    Ok(Injected::new(what, move |cluster| revive(cluster, i)))
}

/// No space is left.
pub(super) fn fill(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let i = target(cluster, rng);
    let disk = of(cluster, i)?;
    if let Err(why) = disk.fill() {
        disk.empty()?;
        return Err(Refused::Indeterminate(why));
    }
    let what = json!({"nodes": names(cluster, &[i])});
    Ok(Injected::new(what, move |cluster| {
        if let Some(disk) = &cluster.nodes[i].disk {
            disk.empty()?;
        }
        // A node whose log failed has stopped.
        cluster.restart(i)
    }))
}

/// Writes hang.
pub(super) fn freeze(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let i = target(cluster, rng);
    of(cluster, i)?.freeze()?;
    let what = json!({"nodes": names(cluster, &[i])});
    Ok(Injected::new(what, move |cluster| {
        if let Some(disk) = &mut cluster.nodes[i].disk {
            disk.thaw()?;
        }
        cluster.restart(i)
    }))
}

fn of(cluster: &mut Cluster, i: usize) -> Result<&mut Disk, Refused> {
    let name = &cluster.nodes[i].name;
    let none = Refused::Skipped(format!("{name} has no disk of its own here"));
    cluster.nodes[i].disk.as_mut().ok_or(none)
}

/// Ends the node, mends its disk and starts it again.
fn revive(cluster: &mut Cluster, i: usize) -> Result<(), String> {
    cluster.kill(i)?;
    if let Some(disk) = &mut cluster.nodes[i].disk {
        disk.mend()?;
    }
    cluster.restart(i)
}
