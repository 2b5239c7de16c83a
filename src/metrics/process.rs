//! What the system says of this process, as far as it says it: Linux all of it, macOS no memory.

use std::fs;
use std::time::Duration;

use rustix::param::page_size;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

/// What the system says of this process; `None`: it does not.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Process {
    /// The processor's time that it took.
    pub(super) cpu: Option<Duration>,
    /// Its memory that is not paged out, in bytes.
    pub(super) resident: Option<u64>,
    /// Its open files, connections included.
    pub(super) open_files: Option<u64>,
    /// How many it may have.
    pub(super) max_files: Option<u64>,
}

impl Process {
    /// Asks the system.
    pub(super) fn now() -> Process {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        Process {
            cpu: cpu.try_into().ok(),
            resident: resident(),
            open_files: open_files(),
            max_files: getrlimit(Resource::Nofile).current,
        }
    }
}

/// The second field of `statm`, in pages.
fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    pages.checked_mul(u64::try_from(page_size()).ok()?)
}

/// One of them is the folder that is being read.
fn open_files() -> Option<u64> {
    let count = fs::read_dir("/dev/fd").ok()?.count();
    u64::try_from(count.saturating_sub(1)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_says_what_the_process_takes() {
        let now = Process::now();
        assert!(now.cpu.is_some_and(|cpu| cpu > Duration::ZERO), "{now:?}");
        assert!(now.open_files.is_some_and(|open| open >= 3), "{now:?}");
        assert!(now.max_files.is_none_or(|most| most >= 3), "{now:?}");
        if cfg!(target_os = "linux") {
            assert!(now.resident.is_some_and(|bytes| bytes > 1 << 20), "{now:?}");
        }
    }
}
