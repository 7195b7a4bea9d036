//! Conversations with mysqld: queries through mysql_async, the binlog stream through a small client of our own, and
//! servers that this project itself starts.

pub mod dump;
pub mod endpoint;
pub mod freeze;
pub mod login;
pub mod preflight;
pub mod process;
pub mod query;
pub mod server;
pub mod wire;
