//! EC2 as [`Cloud`].
//!
//! Requests are repeated by the SDK, with backoff and jitter, where they can be: not `create`, which is made under a lock and once.
//! Keys and tokens come from the AWS chain (environment, profile, web identity, container, instance); messages quote no request.

use std::{
    collections::HashMap,
    fmt,
    time::{Duration, SystemTime},
};

use anyhow::anyhow;
use async_trait::async_trait;
use aws_config::{BehaviorVersion, SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_ec2::{
    Client,
    config::{Builder, ProvideCredentials, Region},
    error::ProvideErrorMetadata,
    types::{Filter, InstanceSpecification, ResourceType, Snapshot, SnapshotInfo, SnapshotState, Tag, TagSpecification},
};
use tokio::sync::{Mutex, OnceCell};

use super::{EbsOptions, errors::Call, machine, presign};
use crate::{
    support::hint::with_hint,
    volume::cloud::OPERATION_TAG,
    volume::cloud::{Cause, Cloud, CloudError, Made, MadeState, Order, SOURCE_TAG, Subject, Tags, VolumeFacts},
};

const ATTEMPTS: u32 = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// A request with all its attempts and the waits between.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);
/// What a request is told that would have been allowed.
const DRY_RUN: &str = "DryRunOperation";
/// Of snapshots on one page; a snapshot has a handful of volumes.
const PAGE: i32 = 200;

pub(super) struct Ec2 {
    options: EbsOptions,
    /// What the machine's AWS configuration says, read when it is first needed: the metadata service may be late.
    shared: OnceCell<SdkConfig>,
    clients: Mutex<HashMap<String, Client>>,
}

/// Without clients, whose own `Debug` shows the access key's id.
impl fmt::Debug for Ec2 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ec2").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Ec2 {
    pub(super) fn new(options: EbsOptions) -> Ec2 {
        Ec2 {
            options,
            shared: OnceCell::new(),
            clients: Mutex::default(),
        }
    }

    async fn shared(&self) -> &SdkConfig {
        let read = || async {
            let mut loader = aws_config::defaults(BehaviorVersion::latest());
            if let Some(region) = &self.options.region {
                loader = loader.region(Region::new(region.clone()));
            }
            loader.load().await
        };
        self.shared.get_or_init(read).await
    }

    async fn client(&self, region: &str) -> Client {
        let shared = self.shared().await;
        let make = || {
            let mut config = Builder::from(shared);
            config.set_endpoint_url(
                self.options
                    .endpoint
                    .clone()
                    .or_else(|| shared.endpoint_url().map(str::to_owned)),
            );
            let timeouts = TimeoutConfig::builder()
                .connect_timeout(CONNECT_TIMEOUT)
                .operation_attempt_timeout(ATTEMPT_TIMEOUT)
                .operation_timeout(CALL_TIMEOUT)
                .build();
            let config = config
                .region(Region::new(region.to_owned()))
                .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
                .timeout_config(timeouts);
            Client::from_conf(config.build())
        };
        self.clients
            .lock()
            .await
            .entry(region.to_owned())
            .or_insert_with(make)
            .clone()
    }

    async fn home(&self) -> Result<(Client, String), CloudError> {
        let region = self.home_region().await.map_err(|error| CloudError {
            cause: Cause::Refused,
            error,
        })?;
        Ok((self.client(&region).await, region))
    }

    fn specification(&self, tags: &Tags) -> TagSpecification {
        let all: Tags = self
            .options
            .tags
            .iter()
            .chain(tags)
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let tags = all.into_iter().map(|(k, v)| Tag::builder().key(k).value(v).build());
        TagSpecification::builder()
            .resource_type(ResourceType::Snapshot)
            .set_tags(Some(tags.collect()))
            .build()
    }

    /// For an encrypted snapshot; it is valid for others, too.
    async fn presigned(&self, snapshot_id: &str, from: &str, to: &str) -> anyhow::Result<String> {
        let shared = self.shared().await;
        let provider = shared
            .credentials_provider()
            .ok_or_else(|| anyhow!("there are no credentials"))?;
        let credentials = provider.provide_credentials().await?;
        let partition = if from.starts_with("cn-") { ".cn" } else { "" };
        let endpoint = self.options.endpoint.clone();
        let endpoint = endpoint.unwrap_or_else(|| format!("https://ec2.{from}.amazonaws.com{partition}"));
        let copy = presign::Copy { snapshot_id, from, to };
        presign::url(&copy, &endpoint, credentials, SystemTime::now())
    }
}

fn call(action: &'static str, object: impl Into<String>, region: &str) -> Call {
    Call {
        action,
        object: object.into(),
        region: region.to_owned(),
    }
}

#[async_trait]
impl Cloud for Ec2 {
    async fn home_region(&self) -> anyhow::Result<String> {
        if let Some(region) = &self.options.region {
            return Ok(region.clone());
        }
        let region = self.shared().await.region().map(|r| r.as_ref().to_owned());
        region.ok_or_else(|| {
            with_hint(
                anyhow!("the region of this server's volumes is not known"),
                "set region in the [ebs] section, or AWS_REGION",
            )
        })
    }

    async fn machine(&self) -> Option<String> {
        machine::instance_id().await
    }

    async fn facts(&self, volumes: &[String]) -> Result<Vec<VolumeFacts>, CloudError> {
        let (client, region) = self.home().await?;
        let call = call("DescribeVolumes", volumes.join(", "), &region);
        let sent = client.describe_volumes().set_volume_ids(Some(volumes.to_vec())).send().await;
        let found = sent.map_err(|e| call.error(e))?.volumes.unwrap_or_default();
        let facts = volumes.iter().map(|id| {
            let volume = found.iter().find(|v| v.volume_id() == Some(id));
            let volume = volume.ok_or_else(|| call.odd(&format!("does not tell of {id}")))?;
            Ok(VolumeFacts {
                volume_id: id.clone(),
                size_gib: volume.size().and_then(|size| u32::try_from(size).ok()).unwrap_or_default(),
                instance_id: volume.attachments().first().and_then(|a| a.instance_id()).map(str::to_owned),
                encrypted: volume.encrypted(),
                kms_key: volume.kms_key_id().map(str::to_owned),
            })
        });
        facts.collect()
    }

    async fn order(&self, volumes: &[VolumeFacts]) -> Result<Order, CloudError> {
        if let [one] = volumes {
            return Ok(Order::One(one.volume_id.clone()));
        }
        let (client, region) = self.home().await?;
        let ids: Vec<&str> = volumes.iter().map(|v| v.volume_id.as_str()).collect();
        let call = |object: String| call("DescribeInstances", object, &region);
        let instance_id = volumes.first().and_then(|v| v.instance_id.clone());
        let Some(instance_id) = instance_id.filter(|id| volumes.iter().all(|v| v.instance_id.as_ref() == Some(id))) else {
            let call = call(ids.join(", "));
            return Err(CloudError {
                cause: Cause::Refused,
                error: with_hint(
                    anyhow!(
                        "the volumes {} are not attached to one instance: no snapshot of one moment can be made of them",
                        call.object
                    ),
                    "correct volumes in the [ebs] section",
                ),
            });
        };
        let call = call(instance_id.clone());
        let sent = client.describe_instances().instance_ids(&instance_id).send().await;
        let answer = sent.map_err(|e| call.error(e))?;
        let mut instances = answer.reservations().iter().flat_map(|r| r.instances());
        let instance = instances.next().ok_or_else(|| call.odd("has no instance"))?;
        let mut order = (true, Vec::new());
        for device in instance.block_device_mappings() {
            let Some(volume_id) = device.ebs().and_then(|e| e.volume_id()) else {
                continue;
            };
            let (is_boot, is_wanted) = (device.device_name() == instance.root_device_name(), ids.contains(&volume_id));
            match (is_boot, is_wanted) {
                (true, wanted) => order.0 = !wanted,
                (false, false) => order.1.push(volume_id.to_owned()),
                (false, true) => {}
            }
        }
        Ok(Order::Several {
            instance_id,
            exclude_boot: order.0,
            exclude: order.1,
        })
    }

    async fn rehearse(&self, order: &Order) -> Result<(), CloudError> {
        let (client, region) = self.home().await?;
        // A specification without a tag is refused for that alone.
        let tags = self.specification(&Tags::from([(OPERATION_TAG.to_owned(), "rehearsal".to_owned())]));
        match order {
            Order::One(volume_id) => {
                let request = client.create_snapshot().volume_id(volume_id).tag_specifications(tags);
                match request.dry_run(true).send().await {
                    Err(e) if e.code() != Some(DRY_RUN) => Err(call("CreateSnapshot", volume_id, &region).error(e)),
                    _ => Ok(()),
                }
            }
            Order::Several { instance_id, .. } => {
                let request = client
                    .create_snapshots()
                    .instance_specification(specified(order))
                    .tag_specifications(tags);
                match request.dry_run(true).send().await {
                    Err(e) if e.code() != Some(DRY_RUN) => Err(call("CreateSnapshots", instance_id, &region).error(e)),
                    _ => Ok(()),
                }
            }
        }
    }

    async fn create(&self, order: &Order, subject: &Subject, limit: Duration) -> Result<Vec<Made>, CloudError> {
        let (client, region) = self.home().await?;
        let once = aws_sdk_ec2::config::Config::builder()
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(limit.min(CONNECT_TIMEOUT))
                    .operation_attempt_timeout(limit)
                    .operation_timeout(limit)
                    .build(),
            );
        match order {
            Order::One(volume_id) => {
                let call = call("CreateSnapshot", volume_id, &region);
                let sent = client
                    .create_snapshot()
                    .volume_id(volume_id)
                    .description(&subject.description)
                    .tag_specifications(self.specification(&subject.tags))
                    .customize()
                    .config_override(once)
                    .send()
                    .await;
                let answer = sent.map_err(|e| call.error(e))?;
                let snapshot_id = answer.snapshot_id.ok_or_else(|| call.odd("names no snapshot"))?;
                Ok(vec![Made {
                    snapshot_id,
                    volume_id: answer.volume_id.unwrap_or_default(),
                    state: state(answer.state.as_ref(), answer.state_message.as_deref()),
                    percent: percent(answer.progress.as_deref()),
                    encrypted: answer.encrypted,
                    kms_key: answer.kms_key_id,
                    tags: Tags::new(),
                }])
            }
            Order::Several { instance_id, .. } => {
                let call = call(
                    "CreateSnapshots",
                    format!("{} of {instance_id}", subject.volumes.join(", ")),
                    &region,
                );
                let sent = client
                    .create_snapshots()
                    .instance_specification(specified(order))
                    .description(&subject.description)
                    .tag_specifications(self.specification(&subject.tags))
                    .customize()
                    .config_override(once)
                    .send()
                    .await;
                let answer = sent.map_err(|e| call.error(e))?;
                answer.snapshots().iter().map(|s| begun(s, &call)).collect()
            }
        }
    }

    async fn find(&self, region: &str, operation: &str) -> Result<Vec<Made>, CloudError> {
        let client = self.client(region).await;
        let call = call("DescribeSnapshots", format!("snapshots of {operation}"), region);
        let mut pages = client
            .describe_snapshots()
            .owner_ids("self")
            .filters(
                Filter::builder()
                    .name(format!("tag:{OPERATION_TAG}"))
                    .values(operation)
                    .build(),
            )
            .into_paginator()
            .page_size(PAGE)
            .send();
        let mut found = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|e| call.error(e))?;
            for snapshot in page.snapshots() {
                let made = described(snapshot, &call)?;
                // A filter's value may be a pattern, and what is found is perhaps deleted.
                if made.tags.get(OPERATION_TAG).is_some_and(|tag| tag == operation) {
                    found.push(made);
                }
            }
        }
        Ok(found)
    }

    async fn copy(&self, snapshot_id: &str, region: &str, tags: &Tags) -> Result<String, CloudError> {
        let (client, (_, home)) = (self.client(region).await, self.home().await?);
        let call = call("CopySnapshot", format!("{snapshot_id} from {home}"), region);
        let presigned = self.presigned(snapshot_id, &home, region).await.map_err(|error| CloudError {
            cause: Cause::Refused,
            error: with_hint(
                error.context(format!("the copy of {snapshot_id} to {region} cannot be signed")),
                "check the AWS configuration of the user that runs mysql-pitr",
            ),
        })?;
        let key = self
            .options
            .dr_kms_key
            .clone()
            .filter(|_| self.options.dr_region.as_deref() == Some(region));
        let mut tags = tags.clone();
        tags.insert(SOURCE_TAG.to_owned(), snapshot_id.to_owned());
        let sent = client
            .copy_snapshot()
            .source_region(&home)
            .source_snapshot_id(snapshot_id)
            .presigned_url(presigned)
            .description(format!("copy of {snapshot_id} from {home}"))
            // A key alone would be refused.
            .set_encrypted(key.is_some().then_some(true))
            .set_kms_key_id(key)
            .tag_specifications(self.specification(&tags))
            // Repeated by whoever asked for it, who looks first whether there is one: there is no token that would tell two apart.
            .customize()
            .config_override(aws_sdk_ec2::config::Config::builder().retry_config(RetryConfig::disabled()))
            .send()
            .await;
        let answer = sent.map_err(|e| call.error(e))?;
        answer.snapshot_id.ok_or_else(|| call.odd("names no snapshot"))
    }

    async fn delete(&self, region: &str, snapshot_id: &str) -> Result<(), CloudError> {
        let client = self.client(region).await;
        let call = call("DeleteSnapshot", snapshot_id, region);
        match client
            .delete_snapshot()
            .snapshot_id(snapshot_id)
            .send()
            .await
            .map_err(|e| call.error(e))
        {
            Err(e) if e.cause == Cause::Missing => Ok(()),
            done => done.map(|_| ()),
        }
    }
}

fn specified(order: &Order) -> InstanceSpecification {
    let which = InstanceSpecification::builder();
    match order {
        Order::One(_) => which.build(),
        Order::Several {
            instance_id,
            exclude_boot,
            exclude,
        } => which
            .instance_id(instance_id)
            .exclude_boot_volume(*exclude_boot)
            .set_exclude_data_volume_ids((!exclude.is_empty()).then(|| exclude.clone()))
            .build(),
    }
}

fn begun(info: &SnapshotInfo, call: &Call) -> Result<Made, CloudError> {
    Ok(Made {
        snapshot_id: info.snapshot_id().ok_or_else(|| call.odd("names no snapshot"))?.to_owned(),
        volume_id: info.volume_id().unwrap_or_default().to_owned(),
        state: state(info.state(), None),
        percent: percent(info.progress()),
        encrypted: info.encrypted(),
        kms_key: None,
        tags: Tags::new(),
    })
}

fn described(snapshot: &Snapshot, call: &Call) -> Result<Made, CloudError> {
    let tag = |t: &Tag| Some((t.key.clone()?, t.value.clone().unwrap_or_default()));
    Ok(Made {
        snapshot_id: snapshot
            .snapshot_id()
            .ok_or_else(|| call.odd("has a snapshot without an id"))?
            .to_owned(),
        volume_id: snapshot.volume_id().unwrap_or_default().to_owned(),
        state: state(snapshot.state(), snapshot.state_message()),
        percent: percent(snapshot.progress()),
        encrypted: snapshot.encrypted(),
        kms_key: snapshot.kms_key_id().map(str::to_owned),
        tags: snapshot.tags().iter().filter_map(tag).collect(),
    })
}

fn state(state: Option<&SnapshotState>, message: Option<&str>) -> MadeState {
    match state {
        Some(SnapshotState::Completed) => MadeState::Complete,
        Some(SnapshotState::Error) => {
            MadeState::Failed(message.filter(|m| !m.is_empty()).unwrap_or("EC2 does not say why").to_owned())
        }
        _ => MadeState::Pending,
    }
}

/// `42%`
fn percent(progress: Option<&str>) -> Option<u8> {
    progress?.trim_end_matches('%').parse().ok()
}
