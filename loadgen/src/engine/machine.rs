//! The machine the generator runs on: what it is, and what is asked of it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::commands::Failure;
use crate::result::Machine;

pub fn describe() -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|rest| rest.trim_start_matches([':', ' ', '\t']).trim().to_owned())
            .unwrap_or_default()
    };
    let memory_kib = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
    Machine {
        host: read("/proc/sys/kernel/hostname").trim().to_owned(),
        cpu: field(&read("/proc/cpuinfo"), "model name"),
        cores: std::thread::available_parallelism().map_or(0, |cores| cores.get() as u32),
        memory_mib: memory_kib / 1024,
        kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
    }
}

/// Keeps this thread on one core.
pub fn pin(core: Option<usize>) -> Result<(), Failure> {
    let Some(id) = core else { return Ok(()) };
    // The library panics beyond what the kernel's set holds.
    if id < libc::CPU_SETSIZE as usize && core_affinity::set_for_current(core_affinity::CoreId { id }) {
        return Ok(());
    }
    Err(Failure(format!(
        "core {id} cannot be used: this machine has no such core, or it is not ours; give another --core"
    )))
}

/// Every connection takes a descriptor.
pub fn raise_descriptor_limit(wanted: u64) -> Result<(), Failure> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel fills the structure it is given.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 || limit.rlim_cur >= wanted {
        return Ok(());
    }
    // Root may raise the hard limit as well.
    let raised = libc::rlimit { rlim_cur: wanted, rlim_max: limit.rlim_max.max(wanted) };
    // SAFETY: a plain system call that reads the structure.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raised) } == 0 {
        return Ok(());
    }
    Err(Failure(format!(
        "{wanted} open files are needed for the connections and the limit is {}; raise it with `ulimit -n {wanted}` or \
         use fewer --connections",
        limit.rlim_max
    )))
}

/// The kernel rounds this thread's waits up by 50 us to save wake-ups; a generator wants its moments.
pub fn wake_on_time() {
    // SAFETY: a plain system call; a failure leaves the default.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1, 0, 0, 0) };
}

/// Sets `flag` at the first signal; the second ends the process as usual.
pub fn watch(signal: i32, flag: &Arc<AtomicBool>) -> Option<signal_hook::SigId> {
    // Order matters: the first to run finds the flag as the earlier signal left it.
    signal_hook::flag::register_conditional_default(signal, Arc::clone(flag)).ok()?;
    signal_hook::flag::register(signal, Arc::clone(flag)).ok()
}

/// User and system time of this process so far, in seconds.
pub fn cpu_s() -> f64 {
    // SAFETY: an all-zero rusage is a valid value of the plain structure.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure it is given.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &mut usage) };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described() {
        let machine = describe();
        assert!(machine.cores > 0 && machine.memory_mib > 0 && !machine.kernel.is_empty(), "{machine:?}");
    }

    #[test]
    fn a_core_that_does_not_exist_is_one_sentence() {
        let failure = pin(Some(100_000)).expect_err("no such core");
        assert!(failure.0.contains("core 100000"), "{failure}");
    }
}
