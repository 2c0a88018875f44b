//! The files of a data directory.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| registry_server::fuzzing::directory(bytes));
