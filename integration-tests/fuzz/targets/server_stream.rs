//! What a client asks on a `Subscribe` stream, in any order, while the service changes and others wait for the client.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| registry_server::fuzzing::stream(bytes));
