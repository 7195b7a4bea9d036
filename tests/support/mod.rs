//! Servers that tests start and stop.
// Every test file compiles this for itself and uses a part of it.
#![allow(dead_code)]

pub mod moto;
pub mod mysql;
pub mod node;
pub mod truth;
