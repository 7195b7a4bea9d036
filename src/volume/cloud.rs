//! Snapshots of volumes, as whoever takes them sees the service that makes them. EC2 behind one small trait.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeFacts {
    pub volume_id: String,
    pub size_gib: u32,
    /// The machine that it is attached to.
    pub instance_id: Option<String>,
    pub encrypted: Option<bool>,
    pub kms_key: Option<String>,
}

/// A snapshot of one volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub snapshot_id: String,
    /// Of the volume; of a copy in another region it means nothing.
    pub volume_id: String,
    pub description: String,
    /// By EC2's clock, µs.
    pub started_at_us: Option<i64>,
    pub state: MadeState,
    /// How much of it is stored.
    pub percent: Option<u8>,
    pub encrypted: Option<bool>,
    pub kms_key: Option<String>,
    pub tags: Tags,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MadeState {
    Pending,
    Complete,
    /// And why, as far as it is said.
    Failed(String),
}

pub type Tags = BTreeMap<String, String>;

/// Whatever bears it was made for the snapshot of that id.
pub const OPERATION_TAG: &str = "mysql-pitr:snapshot";
/// Of a copy: the snapshot that it is one of.
pub const SOURCE_TAG: &str = "mysql-pitr:copy-of";

/// Whom snapshots are made of, all at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// In the home region; all attached to one machine where there are several.
    pub volumes: Vec<String>,
    pub tags: Tags,
    /// For people.
    pub description: String,
}

/// What `create` is to be told in one request, looked up while there is time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    One(String),
    /// All volumes of a machine but those.
    Several {
        instance_id: String,
        exclude_boot: bool,
        exclude: Vec<String>,
    },
}

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// No answer: what was asked for may have been done, or be done in a moment.
    Unanswered,
    /// What it was about is not there.
    Missing,
    /// Somebody else needs what was to be deleted, or has locked it.
    Held,
    /// Too many requests for now.
    Throttled,
    Refused,
}

/// A request that failed; its cause says what follows from it, its text what to do.
#[derive(Debug)]
pub struct CloudError {
    pub cause: Cause,
    pub error: anyhow::Error,
}

impl From<CloudError> for anyhow::Error {
    fn from(e: CloudError) -> anyhow::Error {
        e.error
    }
}

/// The service that keeps volumes. Every call ends in time; all but `create` are repeated by themselves where that may help.
#[async_trait]
pub trait Cloud: Send + Sync + fmt::Debug {
    /// Where the server's volumes are.
    async fn home_region(&self) -> anyhow::Result<String>;

    /// This machine, as the service calls it; None where that is not known.
    async fn machine(&self) -> Option<String>;

    /// In the order of `volumes`.
    async fn facts(&self, volumes: &[String]) -> Result<Vec<VolumeFacts>, CloudError>;

    /// What to create, for volumes of those facts.
    async fn order(&self, volumes: &[VolumeFacts]) -> Result<Order, CloudError>;

    /// Begins snapshots, in one attempt that ends within `limit`. Whatever comes of it bears the tags.
    async fn create(&self, order: &Order, subject: &Subject, limit: Duration) -> Result<Vec<Made>, CloudError>;

    /// Whether that may be created: a request that is checked, and not carried out.
    async fn rehearse(&self, order: &Order) -> Result<(), CloudError>;

    /// All snapshots of a region that bear an operation's tag. What was made a moment ago may be missing.
    async fn find(&self, region: &str, operation: &str) -> Result<Vec<Made>, CloudError>;

    /// Begins a copy of a home region's snapshot; its id there.
    async fn copy(&self, snapshot_id: &str, region: &str, tags: &Tags) -> Result<String, CloudError>;

    /// All snapshots of a region that bear a shard's tag.
    async fn of_shard(&self, region: &str, shard: &str) -> Result<Vec<Made>, CloudError>;

    /// Those of these ids that are there.
    async fn named(&self, region: &str, snapshot_ids: &[String]) -> Result<Vec<Made>, CloudError>;

    /// Whether these credentials may delete it: a request that is checked, and not carried out. What else holds a snapshot it does not tell.
    async fn rehearse_delete(&self, region: &str, snapshot_id: &str) -> Result<(), CloudError>;

    /// Deletes a snapshot; one that is not there is no error.
    async fn delete(&self, region: &str, snapshot_id: &str) -> Result<(), CloudError>;
}
