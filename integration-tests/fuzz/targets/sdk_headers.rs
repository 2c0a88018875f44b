//! Headers and trailers of an instance's answer: a load report, a word on retries.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| client_sdk::fuzzing::headers(bytes));
