//! Answers to registrations, renewals and waits.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client_sdk::fuzzing::lease(bytes));
