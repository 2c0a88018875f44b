//! The payload of a frame of the store.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| registry_server::fuzzing::payload(bytes));
