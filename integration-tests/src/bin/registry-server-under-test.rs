//! The registry server as the tests start it: the same body as the binary `registry-server`.

use std::process::ExitCode;

fn main() -> ExitCode {
    registry_server::cli::main()
}
