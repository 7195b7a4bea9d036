//! Small helpers that know nothing of MySQL or of the archive.

pub mod clock;
pub mod durable;
pub mod hint;
pub mod progress;
pub mod retry;
pub mod secret;
