//! The volumes of EC2: which of them hold a server's files, their snapshots, and new ones from these.

#[cfg(feature = "aws")]
mod client;
#[cfg(feature = "aws")]
mod errors;
pub mod folders;
pub mod located;
#[cfg(feature = "aws")]
mod machine;
pub mod mounts;
#[cfg(feature = "aws")]
mod presign;
#[cfg(feature = "aws")]
mod volumes;

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{
    cloud::Cloud,
    disks::{Disks, Place, Reach},
};

/// How EC2 is reached, and where copies go.
#[derive(Debug, Clone, Default)]
pub struct EbsOptions {
    /// The volumes' region; else what the AWS configuration of this machine says.
    pub region: Option<String>,
    /// The URL of a server that speaks EC2's protocol, for every region; else AWS.
    pub endpoint: Option<String>,
    /// Where copies go. None for none.
    pub dr_region: Option<String>,
    /// What they are encrypted with; else the region's default key for EBS, where the source is encrypted.
    pub dr_kms_key: Option<String>,
    /// Further tags of every snapshot.
    pub tags: BTreeMap<String, String>,
}

/// The client. Nothing is asked for yet.
#[cfg(feature = "aws")]
pub fn open(options: EbsOptions) -> anyhow::Result<Arc<dyn Cloud>> {
    Ok(Arc::new(client::Ec2::new(options)))
}

#[cfg(not(feature = "aws"))]
pub fn open(_options: EbsOptions) -> anyhow::Result<Arc<dyn Cloud>> {
    use crate::support::hint::with_hint;
    let e = anyhow::anyhow!("this mysql-pitr cannot take snapshots of EBS volumes: it was built without AWS");
    Err(with_hint(e, "use a build with the `aws` feature, which is on by default"))
}

/// Which region this machine is in: as configured, as the AWS configuration says, or by its metadata service.
pub async fn region(reach: &Reach) -> Option<String> {
    match &reach.region {
        Some(region) => Some(region.clone()),
        #[cfg(feature = "aws")]
        None => volumes::region_of_machine().await,
        #[cfg(not(feature = "aws"))]
        None => None,
    }
}

/// The volumes of this machine's region.
#[cfg(feature = "aws")]
pub async fn disks(reach: &Reach) -> anyhow::Result<Arc<dyn Disks>> {
    let place = volumes::place(reach).await?;
    disks_at(reach, place).await
}

/// The volumes of a region of which it is known already.
#[cfg(feature = "aws")]
pub async fn disks_at(reach: &Reach, place: Place) -> anyhow::Result<Arc<dyn Disks>> {
    Ok(Arc::new(volumes::Volumes::open(place, reach.endpoint.as_deref()).await))
}

#[cfg(not(feature = "aws"))]
pub async fn disks(_reach: &Reach) -> anyhow::Result<Arc<dyn Disks>> {
    Err(without_aws())
}

#[cfg(not(feature = "aws"))]
pub async fn disks_at(_reach: &Reach, _place: Place) -> anyhow::Result<Arc<dyn Disks>> {
    Err(without_aws())
}

#[cfg(not(feature = "aws"))]
fn without_aws() -> anyhow::Error {
    crate::support::hint::with_hint(
        anyhow::anyhow!("this mysql-pitr cannot make EBS volumes: it was built without AWS"),
        "use a build with the `aws` feature, which is on by default",
    )
}

/// A volume that somebody named: which one, and where its file system is, if that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    pub mount_point: Option<std::path::PathBuf>,
    pub volume_id: String,
}

impl Named {
    /// `vol-0123` or `/mount/point=vol-0123`.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(text: &str) -> Result<Named, String> {
        let (mount_point, volume_id) = match text.rsplit_once('=') {
            Some((mount_point, volume_id)) => (Some(mount_point.into()), volume_id),
            None => (None, text),
        };
        let number = volume_id.strip_prefix("vol-").unwrap_or_default();
        let is_volume = !number.is_empty() && number.bytes().all(|b| b.is_ascii_hexdigit());
        let is_absolute = mount_point.as_ref().is_none_or(|m: &std::path::PathBuf| m.is_absolute());
        if !is_volume || !is_absolute {
            return Err(format!(
                "`{text}` is no volume; write it as vol-0123 or /mount/point=vol-0123"
            ));
        }
        Ok(Named {
            mount_point,
            volume_id: volume_id.to_owned(),
        })
    }
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.mount_point {
            Some(mount_point) => write!(f, "{}={}", mount_point.display(), self.volume_id),
            None => f.write_str(&self.volume_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Named;

    #[test]
    fn volumes_are_named_alone_or_with_their_mount_point() {
        for text in ["vol-0123456789abcdef0", "/var/lib/mysql=vol-0a", "/odd=name=vol-0a"] {
            assert_eq!(Named::parse(text).unwrap().to_string(), text);
        }
        for wrong in ["", "vol-", "vol-xyz", "snap-0123", "data=vol-01", "/data=", "/data"] {
            assert!(Named::parse(wrong).is_err(), "{wrong}");
        }
    }
}
