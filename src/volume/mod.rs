//! Where a snapshot's data comes from and goes to. One provider so far: MySQL's clone plugin and a tar stream.

pub mod clone;
pub mod tarball;
