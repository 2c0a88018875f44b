//! The details of an error, of a call and of a view.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client_sdk::fuzzing::refusal(bytes));
