//! What lies in the store, as far as a plan of what may go has to know it.

use std::collections::BTreeMap;

use crate::{
    archive::{keys, listing::Archive, records::Lease, survey::Survey},
    store::ObjectMeta,
    support::hint::message,
};

/// One look at the archive.
#[derive(Debug)]
pub struct Holdings {
    /// Every object of the shard. Listed before anything was read: what came later is not in it, and cannot go.
    pub objects: BTreeMap<String, ObjectMeta>,
    pub survey: Survey,
    pub leases: Vec<Lease>,
    /// The sealed binlogs of the other region's bucket, and their manifests, by key with their sizes. None where there is no other region.
    pub elsewhere: Option<BTreeMap<String, u64>>,
    /// Why nobody knows what the other region holds: then it is taken to hold nothing.
    pub elsewhere_unknown: Option<String>,
}

impl Holdings {
    pub async fn of(archive: &Archive) -> anyhow::Result<Holdings> {
        let objects = archive.store.list(&format!("{}/", archive.shard), None).await?;
        Ok(Holdings {
            objects: objects.into_iter().map(|o| (o.key.clone(), o)).collect(),
            survey: archive.survey().await?,
            leases: leases(archive).await?,
            elsewhere: None,
            elsewhere_unknown: None,
        })
    }

    /// Beside what the other region's bucket holds.
    pub async fn beside(mut self, replica: &Archive) -> Holdings {
        let listed = replica.store.list(&keys::sealed_prefix(&replica.shard), None).await;
        let listed = listed.unwrap_or_else(|e| {
            let why = message(&e.into());
            self.elsewhere_unknown = Some(format!(
                "segments stay, for it cannot be seen what the other region holds: {why}"
            ));
            Vec::new()
        });
        self.elsewhere = Some(listed.into_iter().map(|o| (o.key, o.size_bytes)).collect());
        self
    }
}

/// All leases, ended ones included.
///
/// # Errors
/// Also where one cannot be read: it may be anybody's.
pub async fn leases(archive: &Archive) -> anyhow::Result<Vec<Lease>> {
    let mut leases = Vec::new();
    for object in archive.store.list(&keys::leases_prefix(&archive.shard), None).await? {
        leases.push(archive.record::<Lease>(&object.key).await?.0);
    }
    Ok(leases)
}
