//! Where a snapshot's data comes from and goes to: MySQL's clone plugin and a tar stream, or the volumes that the server's files lie on.

pub mod clone;
pub mod cloud;
pub mod disks;
pub mod ebs;
pub mod marks;
pub mod mount;
pub mod tarball;
