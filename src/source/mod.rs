//! The archive served as a MySQL replication source: a replica connects, says what it has, and is sent the rest.

mod feed;
mod session;
mod stream;

pub use feed::{Feed, FeedProgress, Leg};
pub use session::Source;
