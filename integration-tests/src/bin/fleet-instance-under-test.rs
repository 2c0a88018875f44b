//! One process of a fleet under test.

use std::process::ExitCode;

fn main() -> ExitCode {
    integration_tests::fleet::instance::main()
}
