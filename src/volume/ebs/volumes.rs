//! New volumes from snapshots: made, attached to this instance, and taken away again.
//!
//! Every call may be repeated: a volume is made under a client token and found by its tag, and of the others the state is asked first.

use std::{collections::BTreeSet, fmt, time::Duration};

use anyhow::{anyhow, bail};
use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_ec2::{
    Client,
    types::{Filter, ResourceType, Tag, TagSpecification, Volume, VolumeState, VolumeType},
};
use tokio::time::{Instant, sleep};

use super::{
    client::Clients,
    errors::{Call, Caller},
    machine,
};
use crate::{
    support::{
        hint::{OrHint, with_hint},
        retry::Backoff,
    },
    volume::{
        cloud::{Cause, CloudError},
        disks::{Disks, Order, Place, Reach},
    },
};

/// EC2 takes seconds for a volume, minutes where it is busy.
const VOLUME_PATIENCE: Duration = Duration::from_secs(900);
/// EC2 may not know for a moment what it has just made.
const FORGETFULNESS: Duration = Duration::from_secs(15);
const LOOK_INTERVAL_FIRST: Duration = Duration::from_millis(250);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// What EC2 recommends for data on Linux. NVMe devices are named otherwise, but EC2 wants a name.
const DEVICE_NAMES: std::ops::RangeInclusive<char> = 'f'..='p';

/// How a volume stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Coming,
    Free,
    /// To which instance, and whether it is there already.
    AttachedTo(String, bool),
    Broken,
    Gone,
}

/// The volumes of one region.
pub(super) struct Volumes {
    client: Client,
    place: Place,
}

/// Without the client, whose own `Debug` shows the access key's id.
impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volumes").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Volumes {
    /// For the machine at `place`; where that is not known, for the one that this process runs on. `shared`: its AWS configuration, if the
    /// caller has read it.
    pub(super) async fn open(reach: &Reach, place: Option<Place>, shared: Option<SdkConfig>) -> anyhow::Result<Volumes> {
        let region = place.as_ref().map(|p| p.region.clone()).or_else(|| reach.region.clone());
        let clients = match shared {
            Some(shared) => Clients::with(shared, region, reach.endpoint.clone()),
            None => Clients::new(region, reach.endpoint.clone()),
        };
        let place = match place {
            Some(place) => place,
            None => machine::place(&clients, reach).await?,
        };
        let client = clients.of(&place.region).await;
        Ok(Volumes { client, place })
    }

    fn call(&self, action: &'static str, object: impl Into<String>) -> Call {
        Call::new(Caller::Recovery, action, object, &self.place.region)
    }

    async fn standing(&self, id: &str) -> Result<Standing, CloudError> {
        let described = self.client.describe_volumes().volume_ids(id).send().await;
        match described.map_err(|e| self.call("DescribeVolumes", id).error(e)) {
            Err(e) if e.cause == Cause::Missing => Ok(Standing::Gone),
            described => {
                let described = described?;
                let first = described.volumes().first();
                Ok(first.map_or(Standing::Gone, |volume| standing(volume, &self.place.instance)))
            }
        }
    }

    async fn is_attached_here(&self, id: &str) -> anyhow::Result<bool> {
        Ok(matches!(self.standing(id).await?, Standing::AttachedTo(to, _) if to == self.place.instance))
    }

    async fn wait(&self, id: &str, what: &str, is_so: impl Fn(&Standing) -> bool) -> anyhow::Result<()> {
        let region = &self.place.region;
        let began = Instant::now();
        let mut backoff = Backoff::new(LOOK_INTERVAL_FIRST, LOOK_INTERVAL_MAX);
        loop {
            let standing = self.standing(id).await?;
            if is_so(&standing) {
                return Ok(());
            }
            match standing {
                Standing::Broken => {
                    let e = anyhow!("volume {id} in {region} is in state `error`");
                    let hint = "EC2 cannot read the snapshot, or may not use its KMS key: see that this instance's role may use the key, and \
                                that it is enabled";
                    return Err(with_hint(e, hint));
                }
                Standing::Gone if began.elapsed() > FORGETFULNESS => bail!("volume {id} in {region} is gone"),
                _ if began.elapsed() > VOLUME_PATIENCE => {
                    let waited = VOLUME_PATIENCE.as_secs();
                    return Err(anyhow!("volume {id} in {region} takes more than {waited} s {what}"))
                        .hint("see what EC2 says of it, and give the same command again");
                }
                _ => sleep(backoff.step()).await,
            }
        }
    }

    /// One that is gone is no error.
    async fn ask_to_delete(&self, id: &str) -> Result<(), CloudError> {
        let deleted = self.client.delete_volume().volume_id(id).send().await;
        match deleted.map_err(|e| self.call("DeleteVolume", id).error(e)) {
            Err(e) if e.cause != Cause::Missing => Err(e),
            _ => Ok(()),
        }
    }

    /// A device name that no volume of the instance has.
    async fn free_name(&self) -> anyhow::Result<String> {
        let instance = &self.place.instance;
        let filter = Filter::builder().name("attachment.instance-id").values(instance).build();
        let mut pages = self.client.describe_volumes().filters(filter).into_paginator().items().send();
        let call = self.call("DescribeVolumes", format!("volumes of {instance}"));
        let mut taken = BTreeSet::new();
        while let Some(volume) = pages.next().await {
            let volume = volume.map_err(|e| call.error(e))?;
            taken.extend(volume.attachments().iter().filter_map(|a| a.device().map(str::to_owned)));
        }
        let mut names = DEVICE_NAMES.map(|letter| format!("/dev/sd{letter}"));
        names.find(|name| !taken.contains(name)).ok_or_else(|| {
            anyhow!(
                "instance {instance} has no device name left: {} volumes are attached",
                taken.len()
            )
        })
    }
}

#[async_trait]
impl Disks for Volumes {
    fn place(&self) -> &Place {
        &self.place
    }

    async fn find(&self, tag: (&str, &str)) -> anyhow::Result<Option<String>> {
        let filter = Filter::builder().name(format!("tag:{}", tag.0)).values(tag.1).build();
        let mut pages = self.client.describe_volumes().filters(filter).into_paginator().items().send();
        let call = self.call("DescribeVolumes", format!("volumes of {}", tag.1));
        while let Some(volume) = pages.next().await {
            let volume = volume.map_err(|e| call.error(e))?;
            if !matches!(volume.state(), Some(VolumeState::Deleting | VolumeState::Deleted)) {
                return Ok(volume.volume_id().map(str::to_owned));
            }
        }
        Ok(None)
    }

    async fn create(&self, order: Order<'_>) -> anyhow::Result<String> {
        let Order { snapshot, shape, .. } = order;
        let tags = order
            .tags
            .iter()
            .map(|(k, v)| Tag::builder().key(*k).value(v).build())
            .collect();
        let tags = TagSpecification::builder()
            .resource_type(ResourceType::Volume)
            .set_tags(Some(tags))
            .build();
        let number = |n: Option<u32>| n.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let created = self
            .client
            .create_volume()
            .snapshot_id(snapshot)
            .availability_zone(&self.place.zone)
            .set_volume_type(shape.kind.as_deref().map(VolumeType::from))
            .set_iops(number(shape.iops))
            .set_throughput(number(shape.throughput_mib))
            .set_volume_initialization_rate(number(shape.initialization_mib))
            .set_kms_key_id(shape.kms_key.clone())
            .set_encrypted(shape.kms_key.as_ref().map(|_| true))
            .client_token(order.token)
            .tag_specifications(tags)
            .send()
            .await
            .map_err(|e| self.call("CreateVolume", snapshot).error(e))?;
        let id = created.volume_id().filter(|id| !id.is_empty());
        id.map(str::to_owned)
            .ok_or_else(|| anyhow!("EC2 made a volume from {snapshot} and does not say which"))
    }

    async fn attach(&self, id: &str) -> anyhow::Result<()> {
        let instance = &self.place.instance;
        self.wait(id, "to be made", |s| matches!(s, Standing::Free | Standing::AttachedTo(..)))
            .await?;
        match self.standing(id).await? {
            Standing::AttachedTo(other, _) if other != *instance => {
                bail!("volume {id} is attached to instance {other}, and this one is {instance}")
            }
            Standing::AttachedTo(..) => {}
            _ => {
                let name = self.free_name().await?;
                let attached = self.client.attach_volume().volume_id(id).instance_id(instance).device(&name);
                // Asked again after a lost answer, EC2 refuses what it has done.
                if let Err(e) = attached.send().await
                    && !self.is_attached_here(id).await?
                {
                    return Err(self.call("AttachVolume", id).error(e).into());
                }
            }
        }
        self.wait(id, "to be attached", |s| matches!(s, Standing::AttachedTo(_, true)))
            .await
    }

    async fn delete(&self, id: &str) -> anyhow::Result<()> {
        // Most often it is free, and then the role need not even be allowed to look.
        if self.ask_to_delete(id).await.is_ok() {
            return Ok(());
        }
        let instance = &self.place.instance;
        match self.standing(id).await? {
            Standing::Gone => return Ok(()),
            Standing::AttachedTo(to, _) if to == *instance => {
                let detached = self.client.detach_volume().volume_id(id).instance_id(instance).send().await;
                if let Err(e) = detached
                    && self.is_attached_here(id).await?
                {
                    return Err(self.call("DetachVolume", id).error(e).into());
                }
            }
            Standing::AttachedTo(other, _) => bail!("volume {id} is attached to instance {other}, and is left to it"),
            _ => {}
        }
        self.wait(id, "to be detached", |s| {
            matches!(s, Standing::Free | Standing::Broken | Standing::Gone)
        })
        .await?;
        Ok(self.ask_to_delete(id).await?)
    }
}

fn standing(volume: &Volume, instance: &str) -> Standing {
    let attachments = volume.attachments();
    let attached = attachments
        .iter()
        .find(|a| a.instance_id() == Some(instance))
        .or(attachments.first());
    if let Some(attached) = attached.filter(|a| a.state().is_none_or(|s| s.as_str() != "detached")) {
        let is_there = attached.state().is_some_and(|s| s.as_str() == "attached");
        return Standing::AttachedTo(attached.instance_id().unwrap_or_default().to_owned(), is_there);
    }
    match volume.state() {
        Some(VolumeState::Available) => Standing::Free,
        Some(VolumeState::Error) => Standing::Broken,
        Some(VolumeState::Deleting | VolumeState::Deleted) => Standing::Gone,
        _ => Standing::Coming,
    }
}
