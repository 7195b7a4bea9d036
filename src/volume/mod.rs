//! Where a snapshot's data comes from and goes to: MySQL's clone plugin and a tar stream, or the volumes of EC2.

pub mod clone;
pub mod disks;
pub mod ebs;
pub mod mount;
pub mod tarball;
