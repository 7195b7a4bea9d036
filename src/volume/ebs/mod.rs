//! The volumes of EC2: which of them hold a server's files, their snapshots, and new ones from these.

#[cfg(feature = "aws")]
mod client;
#[cfg(feature = "aws")]
mod errors;
pub mod folders;
pub mod located;
#[cfg(feature = "aws")]
mod machine;
#[cfg(feature = "aws")]
mod made;
pub mod mounts;
#[cfg(feature = "aws")]
mod presign;
#[cfg(feature = "aws")]
mod snapshots;
#[cfg(feature = "aws")]
mod volumes;
#[cfg(feature = "aws")]
mod whole;

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

/// EC2 as one that makes snapshots. Nothing is asked for yet.
#[cfg(feature = "aws")]
pub fn open(options: EbsOptions) -> anyhow::Result<Arc<dyn Cloud>> {
    Ok(Arc::new(snapshots::Snapshots::new(options, None)))
}

/// The same with an AWS configuration that the caller has read.
#[cfg(feature = "aws")]
pub fn open_with(options: EbsOptions, shared: aws_config::SdkConfig) -> Arc<dyn Cloud> {
    Arc::new(snapshots::Snapshots::new(options, Some(shared)))
}

#[cfg(not(feature = "aws"))]
pub fn open(_options: EbsOptions) -> anyhow::Result<Arc<dyn Cloud>> {
    Err(without_aws("take snapshots of EBS volumes"))
}

/// Which region this machine is in: as configured, as the AWS configuration says, or by its metadata service.
#[cfg(feature = "aws")]
pub async fn region(reach: &Reach) -> Option<String> {
    client::Clients::new(reach.region.clone(), None).home_region().await
}

#[cfg(not(feature = "aws"))]
pub async fn region(reach: &Reach) -> Option<String> {
    reach.region.clone()
}

/// EC2 as one that makes volumes for the machine at `place`, or for this one.
///
/// # Errors
/// Where nobody says where this machine is.
#[cfg(feature = "aws")]
pub async fn disks(reach: &Reach, place: Option<Place>) -> anyhow::Result<Arc<dyn Disks>> {
    Ok(Arc::new(volumes::Volumes::open(reach, place, None).await?))
}

/// The same with an AWS configuration that the caller has read.
///
/// # Errors
/// As [`disks`].
#[cfg(feature = "aws")]
pub async fn disks_with(reach: &Reach, place: Option<Place>, shared: aws_config::SdkConfig) -> anyhow::Result<Arc<dyn Disks>> {
    Ok(Arc::new(volumes::Volumes::open(reach, place, Some(shared)).await?))
}

#[cfg(not(feature = "aws"))]
pub async fn disks(_reach: &Reach, _place: Option<Place>) -> anyhow::Result<Arc<dyn Disks>> {
    Err(without_aws("make EBS volumes"))
}

#[cfg(not(feature = "aws"))]
fn without_aws(what: &str) -> anyhow::Error {
    crate::support::hint::with_hint(
        anyhow::anyhow!("this mysql-pitr cannot {what}: it was built without AWS"),
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
