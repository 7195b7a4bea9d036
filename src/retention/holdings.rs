//! What lies in the store, as far as a plan of what may go has to know it.

use std::collections::BTreeMap;

use crate::{
    archive::{
        keys,
        listing::Archive,
        records::{Lease, Provider, Snapshot},
        survey::Survey,
    },
    store::ObjectMeta,
    support::hint::message,
    volume::cloud::Cloud,
};

use super::in_ec2::InEc2;

/// One look at the archive.
#[derive(Debug)]
pub struct Holdings {
    /// Every object of the shard. Listed before anything was read: what came later is not in it, and cannot go.
    pub objects: BTreeMap<String, ObjectMeta>,
    pub survey: Survey,
    pub leases: Vec<Lease>,
    /// Where this is.
    pub url: String,
    /// The other region's bucket. None where there is no other region.
    pub elsewhere: Option<Elsewhere>,
    /// Records of snapshots of volumes that an earlier run has put aside, by their keys.
    pub aside: BTreeMap<String, Snapshot>,
    /// What of these cannot be read.
    pub aside_faults: Vec<String>,
    /// What this region's EC2 has, or why that is not known.
    pub ec2: Result<InEc2, String>,
}

/// What the other region's bucket holds, as far as a plan for this one rests on it.
#[derive(Debug)]
pub struct Elsewhere {
    /// The sealed binlogs and their manifests, and the records of snapshots, by key with their sizes.
    pub objects: BTreeMap<String, u64>,
    /// Why nobody knows what it holds: then it is taken to hold nothing.
    pub unknown: Option<String>,
    /// When a lease there was last written, in µs. A recovery in this region may read that bucket, and begin with this region's copies.
    pub leased_at_us: Option<i64>,
}

impl Holdings {
    pub async fn of(archive: &Archive) -> anyhow::Result<Holdings> {
        let objects = archive.store.list(&format!("{}/", archive.shard), None).await?;
        let mut holdings = Holdings {
            objects: objects.into_iter().map(|o| (o.key.clone(), o)).collect(),
            survey: archive.survey().await?,
            leases: leases(archive).await?,
            url: archive.store.url().to_owned(),
            elsewhere: None,
            aside: BTreeMap::new(),
            aside_faults: Vec::new(),
            ec2: Err("nobody asked EC2".to_owned()),
        };
        let keys = holdings.objects.keys();
        let aside: Vec<String> = keys
            .filter(|key| keys::parse_pruned_key(&archive.shard, key).is_some())
            .cloned()
            .collect();
        for key in aside {
            match archive.record::<Snapshot>(&key).await {
                Ok((record, _)) => _ = holdings.aside.insert(key, record),
                Err(e) => holdings.aside_faults.push(message(&e)),
            }
        }
        Ok(holdings)
    }

    /// Whether it matters what EC2 has.
    pub fn concerns_ec2(&self) -> bool {
        let is_ebs = |s: &Snapshot| s.provider == Provider::Ebs;
        self.survey.snapshots.iter().any(is_ebs) || !self.aside.is_empty()
    }

    /// With what EC2 has in the region of `cloud`.
    pub async fn in_ec2(mut self, archive: &Archive, cloud: &dyn Cloud) -> Holdings {
        let seen = InEc2::look(cloud, &archive.shard, &self.survey.snapshots, self.aside.values()).await;
        self.ec2 = seen.map_err(|e| message(&e));
        self
    }

    /// Beside what the other region's bucket holds.
    pub async fn beside(mut self, replica: &Archive) -> Holdings {
        let shard = &replica.shard;
        let (mut objects, mut unknown) = (BTreeMap::new(), None);
        for prefix in [keys::sealed_prefix(shard), keys::snapshots_prefix(shard)] {
            match replica.store.list(&prefix, None).await {
                Ok(listed) => objects.extend(listed.into_iter().map(|o| (o.key, o.size_bytes))),
                Err(e) => unknown = Some(message(&e.into())),
            }
        }
        if unknown.is_some() {
            objects.clear();
        }
        // Of a bucket that does not answer nobody recovers.
        let leases = replica
            .store
            .list(&keys::leases_prefix(shard), None)
            .await
            .unwrap_or_default();
        self.elsewhere = Some(Elsewhere {
            objects,
            unknown,
            leased_at_us: leases.iter().filter_map(|o| o.modified_us).max(),
        });
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
