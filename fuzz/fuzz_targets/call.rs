//! Fuzzes `gateway_fuzz::call`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| gateway_fuzz::call(data));
