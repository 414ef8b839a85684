//! Feeds arbitrary frames to the parser and every decision.

#![no_main]

use libfuzzer_sys::fuzz_target;
use proxy_common::decide::testing::check_frame;

fuzz_target!(|frame: &[u8]| check_frame(frame));
