//! The bucket of another region: how far it is behind the home region's, and, where the stores do not replicate by themselves, bringing
//! it there.

pub mod compare;
pub mod copy;
mod cutoff;
pub mod object;
mod order;
pub mod take_over;

pub use compare::{Behind, Comparer, Look};
