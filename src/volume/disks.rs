//! New volumes from snapshots, as a recovery sees the service that makes them. EC2 behind one small trait.

use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// The machine that volumes are attached to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub region: String,
    /// The availability zone.
    pub zone: String,
    pub instance: String,
}

/// How EC2 is reached, and what is known of this instance; what is not is asked of its metadata service.
#[derive(Debug, Clone, Default)]
pub struct Reach {
    pub region: Option<String>,
    pub zone: Option<String>,
    pub instance: Option<String>,
    /// The URL of a server that speaks EC2's protocol; else AWS.
    pub endpoint: Option<String>,
}

/// What a new volume is to be; EC2's own choice where there is None.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// e.g. `gp3`.
    pub kind: Option<String>,
    pub iops: Option<u32>,
    pub throughput_mib: Option<u32>,
    /// At which rate EC2 fetches what was not read yet, MiB/s; paid for.
    pub initialization_mib: Option<u32>,
    pub kms_key: Option<String>,
}

/// A volume that is wanted.
#[derive(Debug, Clone)]
pub struct Order<'a> {
    pub snapshot: &'a str,
    pub shape: &'a Shape,
    /// The same token and shape are the same volume, also where nobody heard of the first.
    pub token: String,
    pub tags: Vec<(&'static str, String)>,
}

/// The volumes of one region, for one machine in it. Every call ends in time and may be repeated.
#[async_trait]
pub trait Disks: Send + Sync + fmt::Debug {
    fn place(&self) -> &Place;

    /// The volume that bears the tag, if it was made.
    async fn find(&self, tag: (&str, &str)) -> anyhow::Result<Option<String>>;

    /// Has a volume made. It is not usable yet.
    async fn create(&self, order: Order<'_>) -> anyhow::Result<String>;

    /// Waits until the volume is made, attaches it to this machine if it is not, and waits for that.
    async fn attach(&self, volume: &str) -> anyhow::Result<()>;

    /// Detaches the volume from this machine and deletes it; one that is gone already is no error.
    async fn delete(&self, volume: &str) -> anyhow::Result<()>;
}
