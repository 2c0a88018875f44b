//! Selectors and instances between the wire and the SDK.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client_sdk::fuzzing::words(bytes));
