//! What is measured by: this thread's processor time, which other programs do not add to, and this process's memory.

use std::time::Duration;

/// One number.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it is of.
    pub name: String,
    /// What it is in.
    pub unit: String,
    /// How much it is.
    pub value: f64,
}

/// Processor time that this thread has used.
pub(super) fn cpu() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanoseconds) = (u64::try_from(used.tv_sec), u32::try_from(used.tv_nsec));
    Duration::new(seconds.unwrap_or(0), nanoseconds.unwrap_or(0))
}

/// Adds what `work` takes to `spent`.
pub(super) fn spend<T>(spent: &mut Duration, work: impl FnOnce() -> T) -> T {
    let began = cpu();
    let done = work();
    *spent += cpu().saturating_sub(began);
    done
}

/// Memory of this process that is resident, in bytes; 0 where the system does not say.
pub(super) fn resident() -> u64 {
    memory("VmRSS:")
}

/// The most that it ever was.
pub(super) fn most_resident() -> u64 {
    memory("VmHWM:")
}

fn memory(line: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let found = status.lines().find_map(|it| it.strip_prefix(line));
    let kib = found.and_then(|it| it.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Bytes that memory grew by since it was `before`, each of so many.
pub(super) fn grown_each(before: u64, count: usize) -> f64 {
    number(resident().saturating_sub(before)) / whole(count)
}

/// Microseconds each of so many took.
pub(super) fn micros_each(spent: Duration, count: usize) -> f64 {
    spent.as_secs_f64() * 1e6 / whole(count)
}

/// As a divisor: of nothing, all is nothing.
#[allow(clippy::cast_precision_loss)] // figures for people
pub(super) fn whole(count: usize) -> f64 {
    count.max(1) as f64
}

#[allow(clippy::cast_precision_loss)] // figures for people
pub(super) fn number(count: u64) -> f64 {
    count as f64
}
