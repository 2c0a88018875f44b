//! The registry server's binary: see [`registry_server::cli`].

use std::process::ExitCode;

/// A registry is millions of small things that live long: this allocator keeps them closer together than the system's does, and
/// gives back sooner what a burst took. What it gave stands in `docs/performance.md`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    registry_server::cli::main()
}
