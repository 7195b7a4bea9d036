//! What lies in the bucket and what it means. `docs/archive-format.md` is the description for people.

pub mod codec;
#[cfg(test)]
pub mod examples;
pub mod fence;
pub mod gaps;
pub mod keys;
pub mod listing;
pub mod path;
#[cfg(test)]
mod path_model;
pub mod presence;
pub mod reader;
pub mod records;
pub mod survey;
