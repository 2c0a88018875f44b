//! The registry server's binary: see [`registry_server::cli`]. Owns what the process allocates with.

use std::process::ExitCode;

/// A registration takes a tenth less than with the C library's, and an instance less memory; and what was needed for a
/// moment, to fold the log for example, goes back to the system (`docs/performance.md`).
#[cfg(all(feature = "jemalloc", not(target_env = "msvc")))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    registry_server::cli::main()
}
