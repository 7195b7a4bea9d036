//! New volumes from snapshots: made, attached to this instance, and taken away again.
//!
//! Every call may be repeated: a volume is made under a client token and found by its tag, and of the others the state is asked first.

use std::{collections::BTreeSet, fmt, time::Duration};

use anyhow::{anyhow, bail};
use async_trait::async_trait;
use aws_config::{BehaviorVersion, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::{
    Client,
    config::Region,
    error::{DisplayErrorContext, ProvideErrorMetadata, SdkError},
    operation::RequestId,
    types::{Filter, ResourceType, Tag, TagSpecification, Volume, VolumeState, VolumeType},
};
use tokio::time::{Instant, sleep};

use crate::{
    support::{
        hint::{OrHint, with_hint},
        retry::Backoff,
    },
    volume::disks::{Disks, Order, Place, Reach},
};

/// EC2 throttles everybody now and then, for seconds.
const ATTEMPTS: u32 = 8;
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(120);
/// EC2 takes seconds for a volume, minutes where it is busy.
const VOLUME_PATIENCE: Duration = Duration::from_secs(900);
/// EC2 may not know for a moment what it has just made.
const FORGETFULNESS: Duration = Duration::from_secs(15);
const LOOK_INTERVAL_FIRST: Duration = Duration::from_millis(250);
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// What EC2 recommends for data on Linux. NVMe devices are named otherwise, but EC2 wants a name.
const DEVICE_NAMES: std::ops::RangeInclusive<char> = 'f'..='p';
const NOT_FOUND: &str = "InvalidVolume.NotFound";

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
#[derive(Clone)]
pub struct Volumes {
    client: Client,
    place: Place,
}

/// Without the client, whose own `Debug` shows the access key's id.
impl fmt::Debug for Volumes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Volumes").field("place", &self.place).finish_non_exhaustive()
    }
}

/// As the AWS configuration says, or the metadata service.
pub async fn region_of_machine() -> Option<String> {
    let found = aws_config::meta::region::RegionProviderChain::default_provider()
        .region()
        .await;
    found.map(|r| r.to_string())
}

/// Where this process runs.
pub async fn place(reach: &Reach) -> anyhow::Result<Place> {
    const HINT: &str = "on an instance of EC2 see to it that its metadata service answers; else set region, availability_zone and instance_id in \
                        the [recover.volume] section";
    let region = super::region(reach)
        .await
        .ok_or_else(|| with_hint(anyhow!("nobody says in which AWS region this machine is"), HINT))?;
    let metadata = aws_config::imds::Client::builder().build();
    let ask = async |known: &Option<String>, path: &str, what: &str| match known {
        Some(known) => Ok(known.clone()),
        None => match metadata.get(path).await {
            Ok(answer) => Ok(String::from(answer)),
            Err(e) => {
                let e = anyhow!("the metadata service does not say {what}: {}", DisplayErrorContext(&e));
                Err(with_hint(e, HINT))
            }
        },
    };
    Ok(Place {
        region,
        zone: ask(
            &reach.zone,
            "/latest/meta-data/placement/availability-zone",
            "in which availability zone this machine is",
        )
        .await?,
        instance: ask(
            &reach.instance,
            "/latest/meta-data/instance-id",
            "which instance this machine is",
        )
        .await?,
    })
}

impl Volumes {
    pub async fn open(place: Place, endpoint: Option<&str>) -> Volumes {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT);
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(place.region.clone()))
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(timeouts.build());
        if let Some(endpoint) = endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let client = Client::new(&loader.load().await);
        Volumes { client, place }
    }

    async fn standing(&self, id: &str) -> anyhow::Result<Standing> {
        let described = match self.client.describe_volumes().volume_ids(id).send().await {
            Err(e) if e.code() == Some(NOT_FOUND) => return Ok(Standing::Gone),
            described => described.map_err(|e| self.failed("DescribeVolumes", &e))?,
        };
        let first = described.volumes().first();
        Ok(first.map_or(Standing::Gone, |volume| standing(volume, &self.place.instance)))
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

    /// A device name that no volume of the instance has.
    async fn free_name(&self) -> anyhow::Result<String> {
        let instance = &self.place.instance;
        let filter = Filter::builder().name("attachment.instance-id").values(instance).build();
        let mut pages = self.client.describe_volumes().filters(filter).into_paginator().items().send();
        let mut taken = BTreeSet::new();
        while let Some(volume) = pages.next().await {
            let volume = volume.map_err(|e| self.failed("DescribeVolumes", &e))?;
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

    /// What EC2 said, or that it said nothing; never a credential.
    fn failed<E: ProvideErrorMetadata + fmt::Debug + std::error::Error + 'static>(
        &self,
        action: &str,
        e: &SdkError<E>,
    ) -> anyhow::Error {
        let region = &self.place.region;
        let Some(code) = e.code() else {
            let e = anyhow!("EC2 in {region} does not answer ec2:{action}: {}", DisplayErrorContext(e));
            return with_hint(
                e,
                "see that this machine reaches the region's EC2 endpoint, and has credentials",
            );
        };
        let request = e.request_id().map_or(String::new(), |id| format!(" (request {id})"));
        let e = anyhow!(
            "EC2 in {region} refused ec2:{action}: {code}: {}{request}",
            e.message().unwrap_or_default()
        );
        with_hint(e, hint(code, action))
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
        while let Some(volume) = pages.next().await {
            let volume = volume.map_err(|e| self.failed("DescribeVolumes", &e))?;
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
            .map_err(|e| self.failed("CreateVolume", &e))?;
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
                    return Err(self.failed("AttachVolume", &e));
                }
            }
        }
        self.wait(id, "to be attached", |s| matches!(s, Standing::AttachedTo(_, true)))
            .await
    }

    async fn delete(&self, id: &str) -> anyhow::Result<()> {
        // Most often it is free, and then the role need not even be allowed to look.
        let deleted = self.client.delete_volume().volume_id(id).send().await;
        if deleted.as_ref().err().is_none_or(|e| e.code() == Some(NOT_FOUND)) {
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
                    return Err(self.failed("DetachVolume", &e));
                }
            }
            Standing::AttachedTo(other, _) => bail!("volume {id} is attached to instance {other}, and is left to it"),
            _ => {}
        }
        self.wait(id, "to be detached", |s| {
            matches!(s, Standing::Free | Standing::Broken | Standing::Gone)
        })
        .await?;
        match self.client.delete_volume().volume_id(id).send().await {
            Err(e) if e.code() != Some(NOT_FOUND) => Err(self.failed("DeleteVolume", &e)),
            _ => Ok(()),
        }
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

fn hint(code: &str, action: &str) -> String {
    match code {
        "UnauthorizedOperation" | "AccessDenied" => format!("allow ec2:{action} to the role that this recovery runs under"),
        "InvalidVolume.ZoneMismatch" => {
            "a volume can be attached in its own availability zone only: correct availability_zone in the [recover.volume] section, or leave it out".into()
        }
        "InvalidSnapshot.NotFound" => "the archive's record names a snapshot that is gone: recover from another one".into(),
        "AuthFailure" | "ExpiredToken" | "RequestExpired" | "InvalidClientTokenId" => {
            "see that this machine's credentials are valid and its clock is right".into()
        }
        _ => "see what EC2 says of the volume, and give the same command again".into(),
    }
}
