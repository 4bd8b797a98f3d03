//! Files of one stopped node that rot, are cut short or are lost. The others are whole, or nothing is done.
//!
//! Invariants: one node of three or more is damaged at a time, and the next damage waits until all are whole again.

use super::{Injected, Refused, Try, names, target};
use crate::cluster::Cluster;
use rand::{Rng, rngs::StdRng};
use serde_json::json;
use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::Path,
};

/// Flips one bit of a file that holds something.
pub(super) fn flip(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let i = stop_one(cluster, rng)?;
    let folder = ["wal", "wal", "store", "index"][rng.random_range(0..4)];
    let files = cluster.nodes[i].files(folder);
    // The newest files are the likeliest to matter.
    let from = files.len().saturating_sub(4);
    let chosen = files.get(rng.random_range(from..files.len().max(from + 1)));
    let Some(file) = chosen.or(files.last()) else {
        cluster.restart(i)?;
        return Err(Refused::Indeterminate(format!("{folder}/ holds no file")));
    };
    let flipped = flip_bit(file, rng);
    let shown = file.strip_prefix(&cluster.nodes[i].data_dir).unwrap_or(file).display().to_string();
    done(cluster, i, flipped.map(|at| json!({"file": shown, "at": at})))
}

/// Cuts off the last part of what a file of the log holds.
pub(super) fn truncate(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let i = stop_one(cluster, rng)?;
    let files = cluster.nodes[i].files("wal");
    let held = files
        .iter()
        .rev()
        .find_map(|file| held_bytes(file).ok().filter(|held| *held > 128).map(|h| (file, h)));
    let Some((file, held)) = held else {
        cluster.restart(i)?;
        return Err(Refused::Indeterminate("the log holds nothing yet".to_owned()));
    };
    let left = rng.random_range(held / 2..held);
    let cut = File::options().write(true).open(file).and_then(|file| file.set_len(left));
    let shown = file.strip_prefix(&cluster.nodes[i].data_dir).unwrap_or(file).display().to_string();
    done(cluster, i, cut.map(|()| json!({"file": shown, "left": left, "held": held})))
}

/// The folder is gone.
pub(super) fn wipe(cluster: &mut Cluster, rng: &mut StdRng) -> Try {
    let i = stop_one(cluster, rng)?;
    let wiped = fs::remove_dir_all(&cluster.nodes[i].data_dir);
    done(cluster, i, wiped.map(|()| json!({"file": "all"})))
}

fn stop_one(cluster: &mut Cluster, rng: &mut StdRng) -> Result<usize, Refused> {
    if cluster.regions[0].nodes.len() < 3 {
        return Err(Refused::Skipped("damage wants three nodes".to_owned()));
    }
    let i = target(cluster, rng);
    cluster.kill(i)?;
    Ok(i)
}

fn done(cluster: &mut Cluster, i: usize, damaged: io::Result<serde_json::Value>) -> Try {
    match damaged {
        Ok(damage) => {
            let what = json!({"nodes": names(cluster, &[i]), "damage": damage});
            Ok(Injected::new(what, move |cluster| cluster.restart(i)))
        }
        Err(e) => {
            cluster.restart(i)?;
            Err(Refused::Indeterminate(e.to_string()))
        }
    }
}

/// Where the last byte that is not zero ends.
fn held_bytes(file: &Path) -> io::Result<u64> {
    let bytes = fs::read(file)?;
    Ok(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1))
}

fn flip_bit(path: &Path, rng: &mut StdRng) -> io::Result<u64> {
    let held = held_bytes(path)?;
    if held == 0 {
        return Err(io::Error::other("the file holds nothing"));
    }
    let at = rng.random_range(0..held);
    let mut file = File::options().read(true).write(true).open(path)?;
    let mut byte = [0];
    file.seek(SeekFrom::Start(at))?;
    file.read_exact(&mut byte)?;
    file.seek(SeekFrom::Start(at))?;
    file.write_all(&[byte[0] ^ 1 << rng.random_range(0..8)])?;
    file.sync_all()?;
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn one_bit_is_flipped_where_something_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let whole = [&[7; 100][..], &[0; 900]].concat();
        fs::write(&path, &whole).unwrap();
        let at = flip_bit(&path, &mut StdRng::seed_from_u64(1)).unwrap();
        let now = fs::read(&path).unwrap();
        let bits: u32 = whole.iter().zip(&now).map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!((bits, now.len(), at < 100), (1, 1000, true));
    }
}
