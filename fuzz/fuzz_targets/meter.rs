//! Fuzzes `gateway_fuzz::meter`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::meter(data));
