//! What lies in the store, as far as a plan of what may go has to know it.

use std::collections::BTreeMap;

use crate::{
    archive::{keys, listing::Archive, records::Lease, survey::Survey},
    store::ObjectMeta,
};

/// One look at the archive.
#[derive(Debug)]
pub struct Holdings {
    /// Every object of the shard. Listed before anything was read: what came later is not in it, and cannot go.
    pub objects: BTreeMap<String, ObjectMeta>,
    pub survey: Survey,
    pub leases: Vec<Lease>,
}

impl Holdings {
    pub async fn of(archive: &Archive) -> anyhow::Result<Holdings> {
        let objects = archive.store.list(&format!("{}/", archive.shard), None).await?;
        Ok(Holdings {
            objects: objects.into_iter().map(|o| (o.key.clone(), o)).collect(),
            survey: archive.survey().await?,
            leases: leases(archive).await?,
        })
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
