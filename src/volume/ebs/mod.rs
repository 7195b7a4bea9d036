//! The volumes of EC2.

#[cfg(feature = "aws")]
mod volumes;

use std::sync::Arc;

use super::disks::{Disks, Place, Reach};

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
