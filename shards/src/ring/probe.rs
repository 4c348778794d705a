//! Can this machine run a shard? Asked once at start, answered with one sentence that says what to do.

use std::fmt;
use std::io;

use io_uring::{IoUring, Probe, opcode};

/// The oldest kernel with everything a shard uses: SINGLE_ISSUER and DEFER_TASKRUN came with 6.1.
pub const KERNEL_MIN: (u32, u32) = (6, 1);

#[derive(Debug, PartialEq, Eq)]
pub enum Unfit {
    KernelTooOld { release: String },
    Disabled { setting: String },
    MissingOpcode { name: &'static str },
    Memlock { limit_bytes: u64, need_bytes: u64 },
    Setup { error: String },
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unfit::KernelTooOld { release } => write!(
                f,
                "this kernel is {release}, and MetricStream needs Linux {}.{} or newer for io_uring with deferred task work",
                KERNEL_MIN.0, KERNEL_MIN.1
            ),
            Unfit::Disabled { setting } => write!(
                f,
                "io_uring is switched off on this host (kernel.io_uring_disabled = {setting}): set it to 0 with \
                 `sysctl kernel.io_uring_disabled=0`, or to 1 and put this user's group in kernel.io_uring_group"
            ),
            Unfit::MissingOpcode { name } => {
                write!(
                    f,
                    "this kernel's io_uring has no {name} operation, which MetricStream needs: use a newer kernel"
                )
            }
            Unfit::Memlock { limit_bytes, need_bytes } => write!(
                f,
                "RLIMIT_MEMLOCK is {} KiB and the rings need {} KiB: raise it (LimitMEMLOCK= in the unit, `ulimit -l` in \
                 a shell), or use fewer shards",
                limit_bytes / 1024,
                need_bytes.div_ceil(1024)
            ),
            Unfit::Setup { error } => {
                write!(f, "io_uring cannot be set up here: {error} (a container's seccomp profile may forbid it)")
            }
        }
    }
}

impl std::error::Error for Unfit {}

/// What the rings of `shards` shards count against RLIMIT_MEMLOCK, in bytes: submission and completion queues,
/// the submission entries, and the ring of provided buffers (not the buffers themselves), each in whole pages.
pub fn memlock_need_bytes(shards: usize, sq_entries: u32, cq_entries: u32, buffer_entries: u16) -> u64 {
    let pages = |bytes: u64| bytes.next_multiple_of(4096);
    let one = pages(u64::from(sq_entries) * 64)
        + pages(u64::from(cq_entries) * 16 + u64::from(sq_entries) * 4 + 4096)
        + pages(u64::from(buffer_entries) * 16);
    // The backplane's executor makes three small rings of its own and registers up to 1 MiB.
    let backplane = 3 * (pages(128 * 64) + pages(256 * 16 + 4096)) + (1 << 20) + (256 << 10);
    one * shards as u64 + backplane
}

/// Everything `run` needs of the kernel, tried.
pub fn probe(need_bytes: u64) -> Result<(), Unfit> {
    let release = kernel_release();
    if parse_release(&release).is_some_and(|version| version < KERNEL_MIN) {
        return Err(Unfit::KernelTooOld { release });
    }
    let ring: IoUring = match IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .setup_submit_all()
        .build(8)
    {
        Ok(ring) => ring,
        Err(error) => return Err(setup_error(&error, need_bytes)),
    };
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|e| Unfit::Setup { error: e.to_string() })?;
    for (code, name) in [
        (opcode::AcceptMulti::CODE, "ACCEPT"),
        (opcode::RecvMulti::CODE, "RECV"),
        (opcode::Send::CODE, "SEND"),
        (opcode::Close::CODE, "CLOSE"),
        (opcode::Shutdown::CODE, "SHUTDOWN"),
        (opcode::AsyncCancel::CODE, "ASYNC_CANCEL"),
        (opcode::Write::CODE, "WRITE"),
        (opcode::Read::CODE, "READ"),
        (opcode::Fsync::CODE, "FSYNC"),
    ] {
        if !probe.is_supported(code) {
            return Err(Unfit::MissingOpcode { name });
        }
    }
    if let Some(limit_bytes) = memlock_limit_bytes()
        && limit_bytes < need_bytes
    {
        return Err(Unfit::Memlock { limit_bytes, need_bytes });
    }
    Ok(())
}

/// An error of ring set-up as the sentence that helps: which limit, which setting.
pub fn setup_error(error: &io::Error, need_bytes: u64) -> Unfit {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => Unfit::KernelTooOld { release: kernel_release() },
        Some(libc::EPERM) => {
            let setting = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
            match setting.trim() {
                "" | "0" => Unfit::Setup { error: error.to_string() },
                setting => Unfit::Disabled { setting: setting.to_string() },
            }
        }
        Some(libc::ENOMEM) => match memlock_limit_bytes() {
            Some(limit_bytes) => Unfit::Memlock { limit_bytes, need_bytes },
            None => Unfit::Setup { error: error.to_string() },
        },
        Some(libc::EINVAL) => Unfit::KernelTooOld { release: kernel_release() },
        _ => Unfit::Setup { error: error.to_string() },
    }
}

/// `None` when there is no limit, or this process may ignore it (CAP_IPC_LOCK).
fn memlock_limit_bytes() -> Option<u64> {
    if has_cap_ipc_lock() {
        return None;
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid place for the answer.
    let ok = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } == 0;
    (ok && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn has_cap_ipc_lock() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .is_some_and(|caps| caps >> CAP_IPC_LOCK & 1 == 1)
}

fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map(|s| s.trim().to_string()).unwrap_or_default()
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_is_read_whatever_its_suffix() {
        assert_eq!(parse_release("6.18.0-rc1+"), Some((6, 18)));
        assert_eq!(parse_release("5.10.0-28-amd64"), Some((5, 10)));
        assert!(parse_release("5.10.0").expect("two numbers") < KERNEL_MIN);
        assert_eq!(parse_release(""), None);
    }

    #[test]
    fn every_way_to_be_unfit_is_one_sentence_that_names_the_remedy() {
        for (unfit, word) in [
            (Unfit::KernelTooOld { release: "5.10".into() }, "6.1"),
            (Unfit::Disabled { setting: "2".into() }, "io_uring_disabled"),
            (Unfit::MissingOpcode { name: "RECV" }, "RECV"),
            (Unfit::Memlock { limit_bytes: 65536, need_bytes: 1 << 20 }, "LimitMEMLOCK"),
            (Unfit::Setup { error: "x".into() }, "seccomp"),
        ] {
            let text = unfit.to_string();
            assert!(text.contains(word) && !text.contains('\n'), "{text}");
        }
    }
}
