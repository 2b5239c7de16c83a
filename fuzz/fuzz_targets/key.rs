//! Fuzzes `gateway_fuzz::key`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::key(data));
