//! A client's request: decoded within bounds, or refused by field.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| registry_server::fuzzing::request(bytes));
