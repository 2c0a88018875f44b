//! Changes of one view, from a registry that may say anything.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client_sdk::fuzzing::view(bytes));
