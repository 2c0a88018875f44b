//! The registry server's binary: see [`registry_server::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    registry_server::cli::main()
}
