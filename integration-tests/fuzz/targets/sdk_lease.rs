//! Answers to registrations and renewals.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client_sdk::fuzzing::lease(bytes));
