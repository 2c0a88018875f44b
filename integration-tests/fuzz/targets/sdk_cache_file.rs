//! The file of the last known views.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client_sdk::fuzzing::cache_file(bytes));
