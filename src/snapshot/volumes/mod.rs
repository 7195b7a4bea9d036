//! Snapshots of the volumes that the server's files lie on, as a table of steps.
//!
//! | step | does | if whoever does it dies |
//! |---|---|---|
//! | turn | claims the [turn](super::turn) at the shard's snapshots | it ends by itself |
//! | preflight | which volumes, what privileges; the record is stored as `started` | nothing was made: it is given up |
//! | freeze | locks the server for seconds, brings its writes to the disks | the lock ends with the connection |
//! | create | one request, tagged with the record's id; it counts if it is answered before the thaw | deleted by the tag |
//! | thaw | ends the lock; the record is stored as `created` | as create, until it is stored |
//! | settle | waits until EC2 has it all; `settled`: the snapshot is complete | goes on |
//! | copy | a copy in the other region, waited for; `copied` | goes on; found by its tag, it is not made twice |
//!
//! [`take`](take::take) does all up to `created`, and whoever has the turn [goes on](onward) from wherever a record is.

pub mod checks;
mod copy;
mod kept;
pub mod onward;
pub mod take;

use std::{sync::Arc, time::Duration};

use crate::{
    archive::records::{CopyState, Snapshot, SnapshotState, Step},
    mysql::freeze::Limits,
    volume::{
        cloud::Cloud,
        ebs::{Named, mounts::Roots},
    },
};

use super::turn::TERM;

/// How snapshots of volumes are taken.
#[derive(Debug, Clone)]
pub struct Settings {
    pub cloud: Arc<dyn Cloud>,
    pub limits: Limits,
    /// The request under the lock is given up after so long.
    pub create_timeout: Duration,
    /// The configuration's volumes; of others the device says which they are.
    pub named: Vec<Named>,
    /// Where copies go. None for none.
    pub dr_region: Option<String>,
    pub roots: Roots,
    /// After which another agent's turn counts as given up.
    pub term: Duration,
}

impl Settings {
    pub fn new(cloud: Arc<dyn Cloud>, limits: Limits, create_timeout: Duration) -> Settings {
        Settings {
            cloud,
            limits,
            create_timeout,
            named: Vec::new(),
            dr_region: None,
            roots: Roots::default(),
            term: TERM,
        }
    }
}

/// Whether something is left to be done for a snapshot.
pub fn is_open(snapshot: &Snapshot) -> bool {
    let Some(step) = snapshot.step else { return false };
    match snapshot.state {
        SnapshotState::Started => true,
        SnapshotState::Complete => step != Step::Copied,
        SnapshotState::Failed => step != Step::Deleted,
    }
}

/// Copies of a snapshot that are not there yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outstanding {
    pub pending: u64,
    pub failed: u64,
}

/// Of complete snapshots, what other regions lack.
pub fn outstanding<'s>(snapshots: impl IntoIterator<Item = &'s Snapshot>) -> Outstanding {
    let mut outstanding = Outstanding::default();
    let complete = snapshots.into_iter().filter(|s| s.state == SnapshotState::Complete);
    for copy in complete.flat_map(|s| &s.volumes).flat_map(|v| v.copies.iter().skip(1)) {
        match copy.state {
            CopyState::Pending => outstanding.pending += 1,
            CopyState::Failed => outstanding.failed += 1,
            CopyState::Complete => {}
        }
    }
    outstanding
}
