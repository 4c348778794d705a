//! The data directory: one process at a time, a node id for ever, one folder for each log.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Held as long as the process uses the directory.
pub struct DataDir {
    root: PathBuf,
    node_id: u128,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    #[error(
        "the data directory {path} is in use by another process (pid {pid}): stop it, or choose another with --data-dir"
    )]
    InUse { path: PathBuf, pid: String },
    #[error("the data directory {path} cannot be used: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error("{path} should hold the node id (32 hexadecimal digits) and holds something else; put the old id back")]
    NodeId { path: PathBuf },
}

impl DataDir {
    /// Makes the directory when it is missing, takes its lock, and reads or makes the node id.
    pub fn open(root: &Path) -> Result<DataDir, DataDirError> {
        let fail = |error| DataDirError::Io { path: root.to_path_buf(), error };
        std::fs::create_dir_all(root.join("log")).map_err(fail)?;
        let mut lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(root.join("lock"))
            .map_err(fail)?;
        if !try_lock(&lock) {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid);
            return Err(DataDirError::InUse { path: root.to_path_buf(), pid: pid.trim().to_string() });
        }
        lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id())).map_err(fail)?;
        let node_id = node_id(root)?;
        sync_dir(root).map_err(fail)?;
        Ok(DataDir { root: root.to_path_buf(), node_id, _lock: lock })
    }

    pub fn node_id(&self) -> u128 {
        self.node_id
    }

    /// The folder of a shard's log.
    pub fn shard_log(&self, shard: u32) -> PathBuf {
        shard_log(&self.root, shard)
    }

    pub fn aggregate_log(&self) -> PathBuf {
        aggregate_log(&self.root)
    }

    /// Shards that have a log here, in order; more than there are now, when there were more once.
    pub fn shards(&self) -> io::Result<Vec<u32>> {
        shards(&self.root)
    }
}

pub fn shard_log(root: &Path, shard: u32) -> PathBuf {
    root.join("log").join(shard.to_string())
}

pub fn aggregate_log(root: &Path) -> PathBuf {
    root.join("log").join("aggregate")
}

pub fn shards(root: &Path) -> io::Result<Vec<u32>> {
    let mut shards: Vec<u32> = std::fs::read_dir(root.join("log"))?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    shards.sort_unstable();
    Ok(shards)
}

/// The node id of a directory that may be in use, for offline tools; 0 when there is none.
pub fn read_node_id(root: &Path) -> u128 {
    std::fs::read_to_string(root.join("node-id"))
        .ok()
        .and_then(|text| u128::from_str_radix(text.trim(), 16).ok())
        .unwrap_or(0)
}

fn node_id(root: &Path) -> Result<u128, DataDirError> {
    let path = root.join("node-id");
    let fail = |error| DataDirError::Io { path: root.to_path_buf(), error };
    match std::fs::read_to_string(&path) {
        Ok(text) => match u128::from_str_radix(text.trim(), 16) {
            Ok(id) if text.trim().len() == 32 => Ok(id),
            _ => Err(DataDirError::NodeId { path }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let id = u128::from_ne_bytes(random()).max(1);
            // Whole or not at all: a start that was cut off must not leave half an id.
            let draft = root.join("node-id.new");
            let mut file = File::create(&draft).map_err(fail)?;
            writeln!(file, "{id:032x}").and_then(|()| file.sync_all()).map_err(fail)?;
            std::fs::rename(&draft, &path).map_err(fail)?;
            Ok(id)
        }
        Err(error) => Err(fail(error)),
    }
}

/// Bytes from the system's random source.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes)).expect("/dev/urandom gives bytes");
    bytes
}

pub fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// An advisory lock that the kernel lets go when the process ends, however it ends.
#[allow(unsafe_code)]
fn try_lock(file: &File) -> bool {
    // SAFETY: a plain system call on an open descriptor.
    unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_user_of_the_directory_is_refused_and_told_who_holds_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let first = DataDir::open(dir.path()).expect("free");
        let error = DataDir::open(dir.path()).err().expect("taken");
        assert!(matches!(&error, DataDirError::InUse { pid, .. } if *pid == std::process::id().to_string()), "{error}");
        let id = first.node_id();
        drop(first);
        assert_eq!(DataDir::open(dir.path()).expect("free again").node_id(), id, "the node id stays");
    }

    #[test]
    fn a_damaged_node_id_is_not_replaced() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("node-id"), "oops").expect("written");
        assert!(matches!(DataDir::open(dir.path()), Err(DataDirError::NodeId { .. })));
    }
}
