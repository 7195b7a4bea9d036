//! Snapshots: due, asked for, taken, recorded.

mod crontab;
pub mod errant;
pub mod request;
pub mod schedule;
pub mod take;
pub mod turn;
mod unanswered;
pub mod volumes;
